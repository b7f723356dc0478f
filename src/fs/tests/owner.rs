//! A mount by an ordinary user on a real directory: modes that keep the owner out do not keep us from our work.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::*;
use crate::store::disk::DiskStore;

const NOBODY: u32 = 65534;

fn mount(dir: &std::path::Path) -> Fs<DiskStore> {
    let volume = Volume::new();
    for name in ["tree", "overflow"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    let tree = DiskStore::open(dir.join("tree")).unwrap();
    Fs::format(&tree, &volume_keys()).unwrap();
    let overflow = DiskStore::open(dir.join("overflow")).unwrap();
    Fs::new(tree, overflow, volume.config(16)).unwrap()
}

fn act() {
    let scratch = tempfile::tempdir().unwrap();
    let fs = mount(scratch.path());
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let by = Caller { uid, gid, pid: std::process::id(), umask: 0 };
    let mode = |ino: Ino| fs.getattr(ino).unwrap().stat.mode;

    // Files: a creator may write to what nobody else may, and so may write-back.
    let a = fs.create(&by, ROOT, b"a", 0o000).unwrap().ino;
    fs.write(a, 0, b"text").unwrap();
    fs.release(a);
    fs.commit().unwrap();
    fs.write(a, 4, b" more").unwrap();
    fs.setattr(a, &SetAttr { size: Some(6), ..SetAttr::default() }).unwrap();
    let mut buf = [0; 16];
    assert_eq!(fs.read(a, 0, &mut buf).unwrap(), 6);
    assert_eq!(&buf[..6], b"text m");
    assert_eq!(mode(a), 0o000);

    // Attributes: setting and listing need no permission to read.
    if fs.setxattr(&by, a, b"user.x", b"1", 0).is_ok() {
        assert_eq!(fs.listxattr(a).unwrap(), [b"user.x"]);
        assert_eq!(mode(a), 0o000);
    }

    // Directories come into being with any mode, and their owner may remove them.
    for (name, m) in [(&b"d0"[..], 0o000), (b"d5", 0o555), (b"d3", 0o300)] {
        let d = fs.mkdir(&by, ROOT, name, m).unwrap().ino;
        assert_eq!(mode(d), m);
        fs.getattr(d).unwrap();
        fs.rmdir(ROOT, name).unwrap();
    }

    // What stands open inside a closed directory goes on working.
    let d = fs.mkdir(&by, ROOT, b"d", 0o755).unwrap().ino;
    let inside = fs.create(&by, d, b"inside", 0o644).unwrap().ino;
    fs.setattr(d, &SetAttr { mode: Some(0o000), ..SetAttr::default() }).unwrap();
    fs.write(inside, 0, b"x").unwrap();
    assert_eq!(fs.getattr(inside).unwrap().stat.size, 1);
    fs.setattr(inside, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    fs.release(inside);
    fs.commit().unwrap();
    assert_eq!(mode(d), 0o000);
    // It is not empty, and stays what it is.
    assert_eq!(fs.rmdir(ROOT, b"d").unwrap_err().errno(), libc::ENOTEMPTY);
    assert_eq!(mode(d), 0o000);

    // A closed empty directory gives way to another.
    let closed = fs.mkdir(&by, ROOT, b"closed", 0o000).unwrap().ino;
    let other = fs.mkdir(&by, ROOT, b"other", 0o500).unwrap().ino;
    fs.rename((ROOT, b"other"), (ROOT, b"closed"), RenameMode::Replace).unwrap();
    assert_eq!(fs.lookup(ROOT, b"closed").unwrap().ino, other);
    assert_eq!(mode(other), 0o500);
    assert_ne!(closed, other);

    // One that may be read but not searched shows its names.
    let r = fs.mkdir(&by, ROOT, b"r", 0o755).unwrap().ino;
    fs.create(&by, r, b"name", 0o644).map(|a| fs.release(a.ino)).unwrap();
    fs.setattr(r, &SetAttr { mode: Some(0o400), ..SetAttr::default() }).unwrap();
    let listing = fs.opendir(r).unwrap();
    let mut shown = Vec::new();
    fs.readdirplus(r, listing, 2, &mut |e, _| {
        shown.push(e.name.clone());
        true
    })
    .unwrap();
    assert_eq!(shown, [b"name"]);
    assert_eq!(mode(r), 0o400);
    for (name, m) in [(&b"d"[..], 0o755), (b"r", 0o755)] {
        let dir = fs.lookup(ROOT, name).unwrap().ino;
        fs.setattr(dir, &SetAttr { mode: Some(m), ..SetAttr::default() }).unwrap();
    }
}

/// Root is never refused, so the test runs itself again as somebody else.
#[test]
fn modes_do_not_keep_the_owner_from_housekeeping() {
    if rustix::process::geteuid().is_root() {
        let status = Command::new("/proc/self/exe")
            .args(["--exact", "fs::tests::owner::modes_do_not_keep_the_owner_from_housekeeping", "--nocapture"])
            .current_dir("/")
            .env_remove("TMPDIR")
            .uid(NOBODY)
            .gid(NOBODY)
            .status()
            .unwrap();
        assert!(status.success());
    } else {
        act();
    }
}
