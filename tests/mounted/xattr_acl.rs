//! Extended attributes and POSIX ACLs: every namespace, long names, big values, where they follow a file and where not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, Mode, XattrFlags, getxattr, lgetxattr, listxattr, lsetxattr, mkfifoat, removexattr, setxattr};
use rustix::io::Errno;

use crate::common::*;
use crate::needs;

pub fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    setxattr(path, name, value, XattrFlags::empty())
}
pub fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 65_536];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}
pub fn list(path: &Path) -> BTreeSet<String> {
    let mut buffer = vec![0; 65_536];
    let len = listxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .filter(|name| !name.starts_with("security.selinux"))
        .collect()
}

#[test]
fn set_get_list_remove() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    File::create(mount.join("empty")).unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    for name in ["file", "empty", "directory", "."] {
        let path = mount.join(name);
        assert_eq!(list(&path), BTreeSet::new(), "{name}: nothing of ours is listed");
        assert_errno(get(&path, "user.none"), libc::ENODATA);
        set(&path, "user.one", b"first").unwrap();
        set(&path, "user.two", b"").unwrap();
        set(&path, "user.one", &pattern(1, 1000)).unwrap();
        let replace = setxattr(&path, "user.three", b"", XattrFlags::REPLACE);
        assert_errno(replace, libc::ENODATA);
        assert_errno(setxattr(&path, "user.two", b"x", XattrFlags::CREATE), libc::EEXIST);
        setxattr(&path, "user.two", b"binary\0\xff", XattrFlags::REPLACE).unwrap();
        assert_eq!(get(&path, "user.one").unwrap(), pattern(1, 1000));
        assert_eq!(get(&path, "user.two").unwrap(), b"binary\0\xff");
        assert_eq!(list(&path), ["user.one", "user.two"].map(String::from).into());
        removexattr(&path, "user.one").unwrap();
        assert_errno(removexattr(&path, "user.one"), libc::ENODATA);
    }
    mount.unmount();
    let mount = volume.mount();
    for name in ["file", "empty", "directory", "."] {
        assert_eq!(list(&mount.join(name)), ["user.two".to_owned()].into(), "{name}");
        assert_eq!(get(&mount.join(name), "user.two").unwrap(), b"binary\0\xff");
    }
    assert_file(&mount.join("file"), b"content");
    assert_file(&mount.join("empty"), b"");
}

/// Where the kernel runs no SELinux, a label that is not there is "not supported", so that ls(1) asks once and not for each file.
#[test]
fn missing_selinux_labels_are_not_supported_and_others_are_kept() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    File::create(&path).unwrap();
    // With SELinux the kernel answers by itself, and always has a label.
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return assert!(get(&path, "security.selinux").is_ok());
    }
    let missing = if baseline() { libc::ENODATA } else { libc::EOPNOTSUPP };
    assert_errno(get(&path, "security.selinux"), missing);
    set(&path, "security.selinux", b"label\0").unwrap();
    assert_eq!(get(&path, "security.selinux").unwrap(), b"label\0");
    removexattr(&path, "security.selinux").unwrap();
    assert_errno(get(&path, "security.selinux"), missing);
    assert_errno(get(&path, "security.other"), libc::ENODATA);
}

/// What is known to be absent is looked for again once somebody has set it, by whatever name of the inode.
#[test]
fn attributes_that_were_absent_are_found_when_they_come() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let (one, two) = (mount.join("one"), mount.join("two"));
    for round in 0..3 {
        fs::write(&one, b"content").unwrap();
        fs::hard_link(&one, &two).unwrap();
        for path in [&one, &two, &one] {
            assert_eq!(list(path), BTreeSet::new());
            assert_errno(get(path, "user.name"), libc::ENODATA);
        }
        set(&two, "user.name", b"value").unwrap();
        assert_eq!((get(&one, "user.name").unwrap(), list(&one).len()), (b"value".to_vec(), 1), "round {round}");
        removexattr(&one, "user.name").unwrap();
        assert_errno(get(&two, "user.name"), libc::ENODATA);
        fs::remove_file(&one).unwrap();
        fs::remove_file(&two).unwrap();
    }
}

#[test]
fn sizes_and_buffers() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    File::create(&path).unwrap();
    // One at a time: the backing store's own room (ext4: one block) bounds the sum.
    for len in [0, 1, 16, 100, 255, 1000, 2000, 3000] {
        set(&path, "user.value", &pattern(len as u64, len)).unwrap();
        assert_eq!(get(&path, "user.value").unwrap(), pattern(len as u64, len));
    }
    assert_eq!(rustix::fs::getxattr_query(&path, "user.value").unwrap(), 3000);
    assert_errno(getxattr(&path, "user.value", &mut [0_u8; 10][..]), libc::ERANGE);
    assert_errno(listxattr(&path, &mut [0_u8; 3][..]), libc::ERANGE);
    assert_eq!(rustix::fs::listxattr_query(&path).unwrap(), "user.value\0".len());
    // What does not fit is refused, and what was there stays.
    match errno(set(&path, "user.value", &vec![1; 60_000])) {
        0 => assert_eq!(get(&path, "user.value").unwrap(), vec![1; 60_000]),
        code => {
            assert_eq!(code, libc::ENOSPC);
            assert_eq!(get(&path, "user.value").unwrap(), pattern(3000, 3000));
        }
    }
}

#[test]
fn long_names() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for (index, length) in [1, 50, 100, 150, 200, 249, 250].into_iter().enumerate() {
        for directory in [false, true] {
            let path = mount.join(format!("{index}{directory}"));
            if directory {
                fs::create_dir(&path).unwrap()
            } else {
                drop(File::create(&path).unwrap())
            }
            let name = format!("user.{}", "n".repeat(length));
            set(&path, &name, &pattern(1, 3000)).unwrap();
            assert_eq!(get(&path, &name).unwrap(), pattern(1, 3000), "{length}");
            assert_eq!(list(&path), [name].into());
        }
    }
    let path = mount.join("0false");
    assert_errno(set(&path, &format!("user.{}", "n".repeat(251)), b""), libc::ERANGE);
    assert_errno(set(&path, "user.", b""), libc::EINVAL);
}

#[test]
fn many_attributes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, b"content").unwrap();
    let want: BTreeSet<String> = (0..25).map(|index| format!("user.attribute.{index}")).collect();
    for name in &want {
        set(&path, name, name.as_bytes()).unwrap();
    }
    mount.unmount();
    let mount = volume.mount();
    let path = mount.join("file");
    assert_eq!(list(&path), want);
    for name in &want {
        assert_eq!(get(&path, name).unwrap(), name.as_bytes());
    }
}

#[test]
fn attributes_follow_the_file() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for directory in [false, true] {
        let path = mount.join(format!("object {directory}"));
        if directory {
            fs::create_dir(&path).unwrap()
        } else {
            fs::write(&path, pattern(1, 10_000)).unwrap()
        }
        set(&path, "user.tag", b"value").unwrap();
        fs::create_dir_all(mount.join("elsewhere")).unwrap();
        fs::rename(&path, mount.join("elsewhere").join(format!("moved {directory}"))).unwrap();
    }
    let moved = mount.join("elsewhere/moved false");
    fs::hard_link(&moved, mount.join("link")).unwrap();
    for size in [5000, 0, 100] {
        super::content::read_write(&moved).set_len(size).unwrap();
        assert_eq!(get(&mount.join("link"), "user.tag").unwrap(), b"value", "after truncation to {size}");
    }
    fs::write(&moved, b"").unwrap();
    mount.unmount();
    let mount = volume.mount();
    let moved = mount.join("elsewhere/moved false");
    assert_file(&moved, b"");
    assert_eq!(get(&moved, "user.tag").unwrap(), b"value");
    assert_eq!(get(&mount.join("elsewhere/moved true"), "user.tag").unwrap(), b"value");
    // The file takes new content under the same attributes.
    fs::write(&moved, b"new content").unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("elsewhere/moved false"), b"new content");
    assert_eq!(get(&mount.join("elsewhere/moved false"), "user.tag").unwrap(), b"value");
}

#[test]
fn cp_and_tar_carry_them() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("from")).unwrap();
    fs::write(mount.join("from/file"), b"content").unwrap();
    set(&mount.join("from/file"), "user.tag", b"value").unwrap();
    set(&mount.join("from"), "user.tag", b"directory").unwrap();
    tool("setfacl", &["-m".as_ref(), "u:4711:rw".as_ref(), mount.join("from/file").as_os_str()]);
    tool("cp", &["-a".as_ref(), mount.join("from").as_os_str(), mount.join("copy").as_os_str()]);
    let archive = volume.scratch().join("archive");
    tool(
        "tar",
        &[
            "--xattrs".as_ref(),
            "--acls".as_ref(),
            "-cf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            mount.path.as_os_str(),
            "from".as_ref(),
        ],
    );
    fs::create_dir(mount.join("x")).unwrap();
    tool(
        "tar",
        &[
            "--xattrs".as_ref(),
            "--acls".as_ref(),
            "-xf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            mount.join("x").as_os_str(),
        ],
    );
    for copy in ["copy", "x/from"] {
        assert_eq!(get(&mount.join(copy).join("file"), "user.tag").unwrap(), b"value");
        assert_eq!(get(&mount.join(copy), "user.tag").unwrap(), b"directory");
        assert!(acl(&mount.join(copy).join("file")).contains("user:4711:rw-"));
    }
}

#[test]
fn namespaces() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    let (file, link, fifo) = (mount.join("file"), mount.join("link"), mount.join("fifo"));
    fs::write(&file, b"").unwrap();
    symlink("nowhere", &link).unwrap();
    mkfifoat(CWD, &fifo, Mode::RUSR).unwrap();
    for path in [&file, &link, &fifo] {
        lsetxattr(path, "trusted.tag", b"value", XattrFlags::empty()).unwrap();
        let mut value = [0; 10];
        assert_eq!(lgetxattr(path, "trusted.tag", &mut value[..]).unwrap(), 5);
    }
    // user.* exists on files and directories only, as everywhere on Linux.
    assert_errno(lsetxattr(&link, "user.tag", b"", XattrFlags::empty()), libc::EPERM);
    assert_errno(set(&fifo, "user.tag", b""), libc::EPERM);
    set(&file, "security.tag", b"value").unwrap();
    assert_eq!(get(&file, "security.tag").unwrap(), b"value");
    assert_errno(set(&file, "other.tag", b""), libc::EOPNOTSUPP);
    assert_errno(set(&file, "system.tag", b""), libc::EOPNOTSUPP);
    assert_eq!(list(&file), ["trusted.tag", "security.tag"].map(String::from).into());
    ALICE.run(|| {
        assert_errno(set(&file, "trusted.tag", b""), libc::EPERM);
        assert!(get(&file, "trusted.tag").is_err(), "trusted.* is root's");
        assert_errno(set(&file, "user.tag", b""), libc::EACCES);
    });
}

#[test]
fn racing_attribute_writers() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    File::create(&path).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for round in 0..50 {
                    set(path, &format!("user.w{writer}"), format!("{round}").as_bytes()).unwrap();
                }
            });
        }
    });
    for writer in 0..4 {
        assert_eq!(get(&path, &format!("user.w{writer}")).unwrap(), b"49");
    }
}

pub fn acl(path: &Path) -> String {
    tool("getfacl", &["-pn".as_ref(), path.as_os_str()])
}
pub fn setfacl(arguments: &[&str], path: &Path) {
    let mut all: Vec<&std::ffi::OsStr> = arguments.iter().map(std::ffi::OsStr::new).collect();
    all.push(path.as_os_str());
    tool("setfacl", &all);
}

#[test]
fn acls_are_kept_and_enforced() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::set_permissions(&mount.path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&path, b"content").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let alice = format!("u:{}:rw", ALICE.uid);
    setfacl(&["-m", &alice, "-m", &format!("g:{}:r", BOB.gid)], &path);
    let check = |path: &Path| {
        let text = acl(path);
        for line in [format!("user:{}:rw-", ALICE.uid), format!("group:{}:r--", BOB.gid), "mask::rw-".into()] {
            assert!(text.contains(&line), "{line} not in:\n{text}");
        }
        // The group bits show the mask.
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o660);
        ALICE.run(|| fs::OpenOptions::new().read(true).write(true).open(path).map(drop)).unwrap();
        BOB.run(|| File::open(path).map(drop)).unwrap();
        assert_errno(BOB.run(|| fs::OpenOptions::new().write(true).open(path)), libc::EACCES);
        let stranger = User { uid: 54_400, gid: 54_400, ..ALICE };
        assert_errno(stranger.run(|| File::open(path)), libc::EACCES);
    };
    check(&path);
    mount.unmount();
    let mount = volume.mount();
    let path = mount.join("file");
    check(&path);
    // chmod of the group bits moves the mask and takes Alice's right to write.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(acl(&path).contains("mask::r--"));
    assert_errno(ALICE.run(|| fs::OpenOptions::new().write(true).open(&path)), libc::EACCES);
    setfacl(&["-b"], &path);
    assert!(!acl(&path).contains("mask"));
    assert_errno(ALICE.run(|| File::open(&path)), libc::EACCES);
    // An ACL that says no more than mode bits becomes mode bits.
    setfacl(&["--set", "u::rw,g::r,o::r"], &path);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    assert!(!list(&path).contains("system.posix_acl_access"));
}

#[test]
fn default_acls_are_inherited() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    let directory = mount.join("d");
    fs::create_dir(&directory).unwrap();
    setfacl(&["-d", "-m", &format!("u:{}:rwx,g::r-x,o::---", ALICE.uid)], &directory);
    with_umask(0o077, || {
        // A default ACL stands in place of the umask.
        fs::write(directory.join("file"), b"content").unwrap();
        fs::create_dir(directory.join("sub")).unwrap();
    });
    assert_eq!(fs::metadata(directory.join("file")).unwrap().mode() & 0o777, 0o660);
    let (file, sub) = (acl(&directory.join("file")), acl(&directory.join("sub")));
    assert!(file.contains(&format!("user:{}:rwx", ALICE.uid)) && file.contains("mask::rw-"), "{file}");
    assert!(sub.contains(&format!("default:user:{}:rwx", ALICE.uid)), "{sub}");
    setfacl(&["-k"], &directory);
    assert!(!acl(&directory).contains("default:"));
}

#[test]
fn acl_rights_of_non_owners() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::set_permissions(&mount.path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(mount.join("file"), b"").unwrap();
    let attempt = ALICE.run(|| {
        // An access ACL with version 2 and three entries: u::rw- g::r-- o::r--
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions) in [(1_u16, 6_u16), (4, 4), (32, 4)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(u32::MAX.to_le_bytes());
        }
        set(&mount.join("file"), "system.posix_acl_access", &bytes)
    });
    assert_errno(attempt, libc::EPERM);
}
