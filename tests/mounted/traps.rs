//! The seventeen traps of FUSE that this design knows of, each with a test of its own that would show it.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};

use rustix::fs::{SeekFrom, seek};

use super::content::{create, read_write};
use super::metadata::{chmod, mode};
use crate::common::*;
use crate::needs;

/// SEEK_DATA does not flush: dirty pages of another writer must still count, or `cp` copies nothing and exits 0.
#[test]
fn trap_01_seek_data_sees_dirty_pages() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for round in 0..20 {
        let path = mount.join(format!("file{round}"));
        let writer = create(&path);
        writer.set_len(10 << 20).unwrap();
        let reader = File::open(&path).unwrap();
        let offset = (1 << 20) + round * 4001;
        writer.write_all_at(b"dirty", offset).unwrap();
        let found = seek(&reader, SeekFrom::Data(0)).expect("the hole hides the data");
        assert!(found <= offset, "SEEK_DATA skips data at {offset}: {found}");
        let copy = mount.join(format!("copy{round}"));
        tool("cp", &["--sparse=always".as_ref(), path.as_os_str(), copy.as_os_str()]);
        let mut model = vec![0; 10 << 20];
        super::content::put(&mut model, offset, b"dirty");
        assert_file(&copy, &model);
        fs::remove_file(&copy).unwrap();
    }
}

/// The kernel keeps the size of LOOKUP: after a crash that left a file growing, stat, open and append agree.
#[test]
fn trap_02_one_size_per_inode_decided_at_lookup() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let mut model = pattern(1, 10_000);
    let file = OpenOptions::new().append(true).create(true).open(mount.join("log")).unwrap();
    std::io::Write::write_all(&mut &file, &model).unwrap();
    file.sync_data().unwrap();
    mount.kill();
    drop(file);
    let mount = volume.mount();
    let path = mount.join("log");
    assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
    let file = OpenOptions::new().read(true).append(true).open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10_000);
    std::io::Write::write_all(&mut &file, b"appended").unwrap();
    model.extend(b"appended");
    assert_file(&path, &model);
    drop(file);
    mount.unmount();
    assert_file(&volume.mount().join("log"), &model);
}

/// Writes come late, without their writer, page by page: pages of one block are written back at once from two threads.
#[test]
fn trap_03_writeback_of_neighbouring_pages() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    const PAGES: usize = 64;
    create(&path).write_all_at(&vec![0xFF; PAGES * 4096], 0).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                // Writing only: below, the rest of each block must be read all the same.
                let file = OpenOptions::new().write(true).open(path).unwrap();
                for round in 0..10_u64 {
                    for page in (writer..PAGES).step_by(4) {
                        file.write_all_at(&pattern(round * 100 + page as u64, 4096), page as u64 * 4096).unwrap();
                        if (page / 4) % 8 == 0 {
                            file.sync_data().unwrap();
                        }
                    }
                }
            });
        }
        // Truncation up and down at the far end runs into the same locks.
        let path = &path;
        scope.spawn(move || {
            let file = read_write(path);
            for round in 0..100 {
                file.set_len((PAGES * 4096) as u64 + round % 7 * 1000).unwrap();
            }
            file.set_len((PAGES * 4096) as u64).unwrap();
        });
    });
    let model: Vec<u8> = (0..PAGES).flat_map(|page| pattern(900 + page as u64, 4096)).collect();
    assert_file(&path, &model);
    // A long run is written back in several requests at once; where one ends and the next begins they share a block.
    let long = create(&mount.join("long"));
    for round in 0..6 {
        let content = pattern(round, 12 << 20);
        long.write_all_at(&content, 0).unwrap();
        long.sync_data().unwrap();
        // What the daemon has, not what the page cache has.
        rustix::fs::fadvise(&long, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_file(&mount.join("long"), &content);
    }
    drop(long);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}

/// ENOSPC is not seen by a buffered write(2): fsync reports it.
#[test]
fn trap_04_enospc_is_reported_by_fsync_at_the_latest() {
    needs!(have_mount, have_root, have_loop);
    let disk = LoopFs::ext4(32, &["-m", "0"]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    let file = create(&mount.join("file"));
    let chunk = pattern(1, 1 << 20);
    let written = (0..64).map(|index| file.write_all_at(&chunk, index << 20)).find(Result::is_err);
    let reported = match written {
        Some(result) => errno(result),
        None => errno(file.sync_all()),
    };
    assert_eq!(reported, libc::ENOSPC);
    drop(file);
    fs::remove_file(mount.join("file")).unwrap();
    mount.unmount();
}

/// sync(1) never reaches the daemon: after the commit interval the sizes are durable all the same.
#[test]
fn trap_05_the_commit_interval_bounds_sync() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount_with(&["commit=1"]);
    let paths: Vec<_> = (0..10).map(|index| mount.join(format!("f{index}"))).collect();
    for (index, path) in paths.iter().enumerate() {
        fs::write(path, pattern(index as u64, 5000 + index)).unwrap();
    }
    rustix::fs::sync();
    let backing: Vec<_> = paths.iter().map(|path| volume.backing_of(fs::metadata(path).unwrap().ino())).collect();
    eventually("all sizes stand in the backing lengths", || {
        let quiet = |path: &std::path::PathBuf| {
            (1..=PLAIN).contains(&((fs::metadata(path).unwrap().len() - DATA_START) % PAGE))
        };
        backing.iter().all(quiet)
    });
    mount.kill();
    let mount = volume.mount();
    for index in 0..10 {
        assert_file(&mount.join(format!("f{index}")), &pattern(index as u64, 5000 + index));
    }
}

/// Under HANDLE_KILLPRIV_V2 the kernel leaves set-id clearing to us, and fuser drops some of its signs: every way to change
/// content must clear the bits.
#[test]
fn trap_06_setid_bits_are_cleared_on_truncate() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    chmod(&mount.path, 0o755);
    if baseline() {
        chmod(&volume.cipher, 0o755);
    }
    let path = mount.join("program");
    for truncate in [false, true] {
        fs::write(&path, b"content").unwrap();
        chmod(&path, 0o6777);
        ALICE.run(|| {
            let file = OpenOptions::new().write(true).truncate(truncate).open(&path).unwrap();
            if !truncate {
                file.set_len(2).unwrap();
            }
        });
        assert_eq!(mode(&path), 0o777, "O_TRUNC {truncate}");
    }
}

/// A root daemon would bypass the backing store's reserve on behalf of anybody.
#[test]
fn trap_07_users_cannot_eat_roots_reserve() {
    needs!(have_mount, have_root, have_loop);
    super::full::the_reserve_is_out_of_reach(ALICE);
}

/// Requests on an unlinked open file can come without a handle: fsync, setattr, setxattr.
#[test]
fn trap_08_unlinked_files_answer_without_a_handle() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, b"content").unwrap();
    let file = read_write(&path);
    fs::remove_file(&path).unwrap();
    let proc = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(&proc, std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
    rustix::fs::setxattr(&*proc, "user.tag", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    file.sync_all().unwrap();
    file.set_len(3).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.len(), metadata.nlink()), (0o604, 3, 0));
}

/// Cached names are per mount, not per caller: what one user may see does not leak to another.
#[test]
fn trap_09_cached_entries_do_not_grant_access() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    chmod(&mount.path, 0o755);
    if baseline() {
        chmod(&volume.cipher, 0o755);
    }
    fs::create_dir(mount.join("closed")).unwrap();
    fs::write(mount.join("closed/file"), b"content").unwrap();
    chmod(&mount.join("closed"), 0o700);
    // In every cache there is.
    fs::read(mount.join("closed/file")).unwrap();
    names(&mount.join("closed"));
    ALICE.run(|| {
        assert_errno(fs::metadata(mount.join("closed/file")), libc::EACCES);
        assert_errno(fs::read(mount.join("closed/file")), libc::EACCES);
        assert_errno(fs::read_dir(mount.join("closed")), libc::EACCES);
    });
    // And what was taken away is gone at once.
    fs::write(mount.join("open"), b"content").unwrap();
    ALICE.run(|| fs::read(mount.join("open"))).unwrap();
    chmod(&mount.join("open"), 0o600);
    assert_errno(ALICE.run(|| fs::read(mount.join("open"))), libc::EACCES);
}

/// FLUSH is answered always: one ENOSYS would switch it off, and close(2) with it, for the whole connection.
#[test]
fn trap_10_close_pushes_data_to_the_daemon() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    for round in 0..5 {
        let path = mount.join(format!("f{round}"));
        fs::write(&path, pattern(round, 50_000)).unwrap();
        let backing = volume.backing_of(fs::metadata(&path).unwrap().ino());
        // close(2) has returned, so the daemon has the data, in the first file as in the last.
        assert!(fs::metadata(&backing).unwrap().len() > 50_000, "round {round}");
    }
    mount.kill();
    let mount = volume.mount();
    for round in 0..5 {
        assert_file(&mount.join(format!("f{round}")), &pattern(round, 50_000));
    }
}

/// `Session::from_fd` on a live descriptor cannot work: a new daemon is a new mount, and the old one's end is clean.
#[test]
fn trap_11_a_new_daemon_is_a_new_mount() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    let held = File::open(mount.join("file")).unwrap();
    mount.kill();
    // A handle of the dead mount says so; it does not reach the new daemon.
    let mount = volume.mount();
    let got = errno(held.metadata().and_then(|_| held.sync_all()));
    assert!(got == libc::ENOTCONN || got == libc::ECONNABORTED || got == libc::EIO, "errno {got}");
    assert_file(&mount.join("file"), b"content");
}

/// Several read-only mounts share a volume with each other, none with a writer.
#[test]
fn trap_12_readers_share_writers_do_not() {
    needs!(have_mount);
    let volume = Volume::new();
    let second = volume.scratch().join("second");
    fs::create_dir(&second).unwrap();
    let writer = volume.mount();
    let reader = |volume: &Volume| {
        volume.run(["mount".as_ref(), "-o".as_ref(), "ro".as_ref(), volume.cipher.as_os_str(), second.as_os_str()])
    };
    assert_eq!(reader(&volume).status.code(), Some(6));
    writer.unmount();
    let one = volume.mount_with(&["ro"]);
    let two = volume.mount_at(&second, &["ro"]);
    drop((one, two));
}

/// What a multi-user daemon needs is limited: it keeps no supplementary groups and works in each caller's name.
#[test]
fn trap_13_objects_are_made_with_the_callers_ids() {
    needs!(have_fuse, have_root);
    let volume = Volume::new();
    let mount = volume.mount();
    chmod(&mount.path, 0o1777);
    if baseline() {
        chmod(&volume.cipher, 0o755);
    }
    // Alternating callers on the same daemon threads.
    for round in 0..20 {
        for user in [ALICE, BOB] {
            let path = mount.join(format!("{}-{round}", user.uid));
            user.run(|| fs::write(&path, b"x")).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (user.uid, user.gid));
        }
    }
}

/// Invalidation from inside a handler deadlocks: SEEK under heavy writing by all threads must come back.
#[test]
fn trap_14_invalidation_does_not_deadlock() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    create(&path).set_len(4 << 20).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let path = &path;
            scope.spawn(move || {
                let file = read_write(path);
                let mut random = Random::new(thread);
                for _ in 0..100 {
                    let offset = random.below(4 << 20);
                    if thread % 2 == 0 {
                        file.write_all_at(&pattern(offset, 3000), offset).unwrap();
                    } else {
                        let _ = seek(&file, SeekFrom::Data(offset));
                        let _ = seek(&file, SeekFrom::Hole(offset));
                    }
                }
            });
        }
    });
    fs::metadata(&path).unwrap();
}

/// fuser does not pass lk_flags: with forwarded locks flock and fcntl could not be told apart.
#[test]
fn trap_15_flock_and_fcntl_are_independent() {
    needs!(have_fuse);
    let volume = Volume::new();
    super::locks::flock_and_record_locks_do_not_meet(&volume.mount());
}

/// Writeback caching is on (and passthrough therefore off): a buffered write does not wait for the daemon.
#[test]
fn trap_16_writeback_is_on_and_direct_io_still_works() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let file = create(&path);
    let backing = volume.backing_of(file.metadata().unwrap().ino());
    // Somebody else's sync(1) may push a page out early: once in many tries is proof that writes wait in the page cache.
    let waited = (0..50).any(|_| {
        file.set_len(0).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        // mtime of a write under writeback is the kernel's: it is there at once, before the daemon has the data.
        assert!(file.metadata().unwrap().mtime() > 1_600_000_000);
        let before = fs::metadata(&backing).unwrap().len();
        file.sync_all().unwrap();
        before == 0 && fs::metadata(&backing).unwrap().len() > DATA_START
    });
    assert!(waited, "writes go straight to the daemon");
    // O_DIRECT is coherent with it.
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    file.write_all_at(&[2; 100], 100).unwrap();
    let mut buffer = [0; 300];
    direct.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!((buffer[99], buffer[100], buffer[199], buffer[200]), (1, 2, 2, 1));
    direct.write_all_at(&[3; 50], 4040).unwrap();
    file.read_exact_at(&mut buffer[..60], 4035).unwrap();
    assert_eq!((buffer[4], buffer[5], buffer[54], buffer[55]), (1, 3, 3, 1));
}

/// umount(2) does not wait for the daemon; `envelopefs umount` does, and a new mount waits for a departing owner.
#[test]
fn trap_17_unmount_waits_for_the_last_commit() {
    needs!(have_mount, have_root);
    let volume = Volume::new();
    for round in 0..3 {
        volume.ok(["mount".as_ref(), volume.cipher.as_os_str(), volume.mountpoint.as_os_str()]);
        for index in 0..100 {
            fs::write(volume.mountpoint.join(format!("f{index}")), pattern(round * 1000 + index, 20_000)).unwrap();
        }
        volume.umount();
        // Nobody has the volume any more and nothing is left to commit: a shared lock is free at once.
        let lock = File::open(&volume.cipher).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    }
    let mount = volume.mount();
    for index in 0..100 {
        assert_file(&mount.join(format!("f{index}")), &pattern(2000 + index, 20_000));
    }
}
