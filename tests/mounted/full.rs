//! A full backing store: errors by fsync or close at the latest, nothing old is lost, and it works again after freeing.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::content::read_write;
use super::metadata::chmod;
use crate::common::*;
use crate::needs;

/// A small ext4 with a volume on it.
fn small() -> (LoopFs, Volume) {
    let disk = LoopFs::ext4(48, &["-m", "0"]);
    let volume = Volume::on(&disk.path);
    (disk, volume)
}
/// Writes until the disk is full; returns the errno and where it was reported.
fn fill(path: &Path) -> (i32, &'static str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    let chunk = pattern(7, 1 << 20);
    for _ in 0..200 {
        if let Err(error) = file.write_all(&chunk) {
            let code = error.raw_os_error().unwrap();
            let _ = file.sync_all();
            return (code, "write");
        }
    }
    (errno(file.sync_all()), "fsync")
}

#[test]
fn enospc_is_reported_and_loses_nothing_old() {
    needs!(have_mount, have_root, have_loop);
    let (_disk, volume) = small();
    let mount = volume.mount();
    let old = pattern(1, 100_000);
    fs::write(mount.join("old"), &old).unwrap();
    File::open(mount.join("old")).unwrap().sync_all().unwrap();
    let (code, place) = fill(&mount.join("filler"));
    assert_eq!(code, libc::ENOSPC, "reported by {place}");
    // New files: an error somewhere, never silence.
    let mut failed = false;
    for index in 0..50 {
        let attempt = File::create(mount.join(format!("new{index}"))).and_then(|mut file| {
            file.write_all(&pattern(index, 50_000))?;
            file.sync_all()
        });
        failed |= attempt.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC));
    }
    assert!(failed);
    assert_file(&mount.join("old"), &old);
    // Overwriting in place needs no space.
    read_write(&mount.join("old")).write_all_at(&pattern(2, 4048), 4048).unwrap();
    File::open(mount.join("old")).unwrap().sync_all().unwrap();
    // Freeing works on a full disk, and then everything else does again.
    fs::remove_file(mount.join("filler")).unwrap();
    for index in 0..50 {
        let _ = fs::remove_file(mount.join(format!("new{index}")));
    }
    eventually("space comes back", || {
        let write = || {
            fs::write(mount.join("after"), pattern(3, 1 << 20))
                .and_then(|()| File::open(mount.join("after"))?.sync_all())
        };
        write().is_ok()
    });
    mount.unmount();
    let mount = volume.mount();
    let mut model = old;
    super::content::put(&mut model, 4048, &pattern(2, 4048));
    assert_file(&mount.join("old"), &model);
    assert_file(&mount.join("after"), &pattern(3, 1 << 20));
    mount.unmount();
}

/// Files that ran into ENOSPC stay readable: what was acknowledged by fsync is there, the rest is old, new or zero.
#[test]
fn files_that_met_enospc_are_not_broken() {
    needs!(have_mount, have_root, have_loop);
    let (_disk, volume) = small();
    let mount = volume.mount();
    let synced = pattern(1, 50_000);
    for index in 0..10 {
        let file = super::content::create(&mount.join(format!("f{index}")));
        file.write_all_at(&synced, 0).unwrap();
        file.sync_all().unwrap();
    }
    assert_eq!(fill(&mount.join("filler")).0, libc::ENOSPC);
    for index in 0..10 {
        let file = OpenOptions::new().append(true).open(mount.join(format!("f{index}"))).unwrap();
        let _ = (&file).write_all(&pattern(9, 300_000));
        let _ = file.sync_all();
    }
    let check = |mount: &Mount| {
        for index in 0..10 {
            let got = fs::read(mount.join(format!("f{index}"))).unwrap();
            assert!(got.len() >= synced.len());
            assert_same(&got[..synced.len()], &synced, "what was synced");
        }
    };
    check(&mount);
    fs::remove_file(mount.join("filler")).unwrap();
    mount.unmount();
    let mount = volume.mount();
    check(&mount);
    mount.unmount();
}

/// Every namespace operation on a full disk succeeds or fails whole: nothing half made is left.
#[test]
fn names_on_a_full_disk() {
    needs!(have_mount, have_root, have_loop);
    let disk = LoopFs::ext4(16, &["-m", "0", "-N", "200"]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    // Out of inodes first: an entry takes one, a directory two.
    let mut made = 0;
    loop {
        let path = mount.join(format!("d{made}"));
        match if made % 2 == 0 { fs::create_dir(&path) } else { File::create(&path).map(drop) } {
            Ok(()) => made += 1,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                break;
            }
        }
        assert!(made < 1000);
    }
    assert_eq!(names(&mount.path).len(), made);
    let _ = fs::create_dir(mount.join("l".repeat(255)));
    let _ = std::os::unix::fs::symlink("t".repeat(4000), mount.join("link"));
    for name in names(&mount.path) {
        let path = mount.join(&name);
        let is_directory = fs::symlink_metadata(&path).unwrap().is_dir();
        if is_directory { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
    }
    fs::create_dir(mount.join("works")).unwrap();
    mount.unmount();
    assert_eq!(walk(&volume.cipher.join("overflow")).len(), 0);
}

/// Root's reserve (5 % of ext4) stays root's: data is written without CAP_SYS_RESOURCE, in the owner's name.
pub fn the_reserve_is_out_of_reach(user: User) {
    let disk = LoopFs::ext4(64, &["-m", "20"]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    chmod(&mount.path, 0o777);
    let free = || rustix::fs::statvfs(&disk.path).unwrap();
    let reserve = free().f_bfree - free().f_bavail;
    assert!(reserve * 4096 > 8 << 20, "the image has a reserve");
    let (code, _) = user.run(|| fill(&mount.join("filler")));
    assert_eq!(code, libc::ENOSPC);
    let left = free();
    assert!(left.f_bfree * 10 >= reserve * 9, "{} of {reserve} reserved blocks left", left.f_bfree);
    // Root may use it.
    let file = File::create(mount.join("root's")).unwrap();
    file.write_all_at(&pattern(1, 2 << 20), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
}

#[test]
fn fallocate_reports_enospc_at_once() {
    needs!(have_mount, have_root, have_loop);
    let (_disk, volume) = small();
    let mount = volume.mount();
    let file = super::content::create(&mount.join("file"));
    file.write_all_at(b"content", 0).unwrap();
    let flags = rustix::fs::FallocateFlags::empty();
    assert_errno(rustix::fs::fallocate(&file, flags, 0, 1 << 30), libc::ENOSPC);
    drop(file);
    assert!(fs::read(mount.join("file")).unwrap().starts_with(b"content"));
    // ext4 may keep what it had found before it failed; it goes with the file.
    fs::remove_file(mount.join("file")).unwrap();
    // What was reserved cannot run out.
    let file = super::content::create(&mount.join("reserved"));
    eventually("space comes back", || rustix::fs::fallocate(&file, flags, 0, 8 << 20).is_ok());
    assert_eq!(fill(&mount.join("filler")).0, libc::ENOSPC);
    file.write_all_at(&pattern(1, 8 << 20), 0).unwrap();
    file.sync_all().unwrap();
    assert_file(&mount.join("reserved"), &pattern(1, 8 << 20));
    drop(file);
    mount.unmount();
}
