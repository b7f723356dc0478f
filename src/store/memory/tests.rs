//! Failures on demand, recording and replay: what the memory store adds to the contract of all stores.

use super::*;

const BY: Creator = Creator { uid: 1000, gid: 1000, umask: 0o022 };

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn file(store: &MemoryStore, name: &[u8]) -> MemoryFile {
    store.create_file(store.root(), name, 0o666, BY).unwrap()
}

fn read(store: &MemoryStore, name: &[u8]) -> Vec<u8> {
    let file = store.open_file(Place::Entry { dir: store.root(), name }, Access::Read).unwrap();
    let mut bytes = vec![0; file.stat().unwrap().size as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn clones_share_the_tree_and_snapshots_do_not() {
    let store = MemoryStore::new();
    let written = file(&store, b"f");
    written.write_at(b"one", 0).unwrap();
    let (clone, snapshot) = (store.clone(), store.snapshot());
    written.write_at(b"two", 0).unwrap();
    assert_eq!((read(&clone, b"f"), read(&snapshot, b"f")), (b"two".to_vec(), b"one".to_vec()));
    snapshot.unlink(snapshot.root(), b"f").unwrap();
    assert_eq!(read(&store, b"f"), b"two");
}

#[test]
fn one_operation_fails_without_effect() {
    let store = MemoryStore::new();
    let file = file(&store, b"f");
    store.fail_after(2, libc::EDQUOT);
    file.write_at(b"a", 0).unwrap();
    assert_eq!(errno(file.write_at(b"b", 1)), Some(libc::EDQUOT));
    assert_eq!(read(&store, b"f"), b"a");
    file.write_at(b"c", 1).unwrap();
    // Barriers count, too.
    store.fail_after(1, libc::EIO);
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    file.sync_data().unwrap();
}

#[test]
fn all_operations_fail_until_healed() {
    let store = MemoryStore::new();
    store.fail_from(1, libc::EROFS);
    for name in [b"a", b"b"] {
        assert_eq!(errno(store.mkdir(store.root(), name, 0o755, BY)), Some(libc::EROFS));
    }
    assert_eq!(store.list(store.root()).unwrap(), []);
    store.heal();
    store.mkdir(store.root(), b"a", 0o755, BY).unwrap();
}

#[test]
fn the_write_budget_stores_whole_pages_of_the_last_write() {
    let store = MemoryStore::new();
    let file = file(&store, b"f");
    store.write_budget(10_000);
    assert_eq!(store.statfs().unwrap().blocks_free, 2);
    // From 100: 10 000 bytes reach into the third page, so two page boundaries are stored.
    assert_eq!(errno(file.write_at(&[1; 20_000], 100)), Some(libc::ENOSPC));
    assert_eq!(file.stat().unwrap().size, 8192);
    assert_eq!(errno(file.write_at(&[1; 4096], 8192)), Some(libc::ENOSPC));
    assert_eq!(file.stat().unwrap().size, 8192);
    file.write_at(&[2; 10_000 - 8092], 8192).unwrap();
    assert_eq!(errno(file.write_at(&[1], 0)), Some(libc::ENOSPC));
    store.heal();
    file.write_at(&[1], 0).unwrap();
}

#[test]
fn operations_are_counted() {
    let store = MemoryStore::new();
    let file = file(&store, b"f");
    file.write_at(b"a", 0).unwrap();
    file.sync_all().unwrap();
    store.list(store.root()).unwrap();
    assert_eq!(store.operations(), 3);
    assert!(store.mkdir(store.root(), b"f", 0o700, BY).is_err());
    assert_eq!(store.operations(), 4);
}

#[test]
fn a_recording_replays_to_the_same_tree() {
    let store = MemoryStore::new();
    file(&store, b"before").write_at(b"old", 0).unwrap();
    let replayed = store.snapshot();
    store.start_recording();

    let root = store.root();
    let new = file(&store, b"new");
    store.write_budget(4096 + 10);
    assert_eq!(errno(new.write_at(&[9; 9000], 0)), Some(libc::ENOSPC));
    store.heal();
    new.set_len(5000).unwrap();
    new.sync_data().unwrap();
    store.mkdir(root, b"d", 0o777, BY).unwrap();
    let dir = store.pin(root, b"d").unwrap();
    store.symlink(&dir, b"l", b"target", BY).unwrap();
    store.link(Place::Entry { dir: root, name: b"before" }, &dir, b"again").unwrap();
    assert!(store.rmdir(root, b"d").is_err());
    store.unlink(root, b"before").unwrap();
    store.rename((root, b"new"), (&dir, b"moved"), RenameMode::NoReplace).unwrap();
    store.set_xattr(Place::Pinned(&dir), b"user.a", b"1", 0).unwrap();
    store.chmod(Place::Pinned(&dir), 0o700).unwrap();

    let recording = store.take_recording();
    assert_eq!(recording.iter().filter(|operation| operation.is_sync()).count(), 1);
    for operation in &recording {
        replayed.replay(operation).unwrap();
    }
    let seen = |store: &MemoryStore| {
        let dir = store.pin(store.root(), b"d").unwrap();
        let inner: Vec<(Entry, u64, u32, u64)> = store
            .list(&dir)
            .unwrap()
            .into_iter()
            .map(|entry| {
                let stat = store.stat(Place::Entry { dir: &dir, name: &entry.name }).unwrap();
                (entry, stat.size, stat.mode, stat.nlink)
            })
            .collect();
        let moved = read(&store.rooted_at(&dir), b"moved");
        (store.list(store.root()).unwrap(), inner, moved, store.get_xattr(Place::Pinned(&dir), b"user.a").unwrap())
    };
    assert_eq!(seen(&replayed), seen(&store));
    assert_eq!(seen(&store).1.len(), 3);
}

#[test]
fn a_replay_without_its_beginning_fails_and_changes_nothing() {
    let store = MemoryStore::new();
    let image = store.snapshot();
    store.start_recording();
    file(&store, b"f").write_at(b"x", 0).unwrap();
    let recording = store.take_recording();
    assert_eq!(errno(image.replay(&recording[1])), Some(libc::ESTALE));
    assert_eq!(image.list(image.root()).unwrap(), []);
}

#[test]
fn objects_without_name_and_handle_are_freed() {
    let store = MemoryStore::new();
    let inodes = |store: &MemoryStore| store.shared().0.lock().tree.inode_count();
    let open = file(&store, b"f");
    let pin = store.pin(store.root(), b"f").unwrap();
    store.mkdir(store.root(), b"d", 0o700, BY).unwrap();
    let dir = store.pin(store.root(), b"d").unwrap();
    store.unlink(store.root(), b"f").unwrap();
    store.rmdir(store.root(), b"d").unwrap();
    assert_eq!(inodes(&store), 3);
    assert_eq!(inodes(&store.snapshot()), 1);
    drop((open, dir));
    assert_eq!(inodes(&store), 2);
    drop(pin);
    assert_eq!(inodes(&store), 1);
}

#[test]
fn setgid_directories_pass_their_group_on() {
    let store = MemoryStore::new();
    store.mkdir(store.root(), b"d", 0o777, BY).unwrap();
    let dir = store.pin(store.root(), b"d").unwrap();
    store.chown(Place::Pinned(&dir), None, Some(77)).unwrap();
    store.chmod(Place::Pinned(&dir), 0o2775).unwrap();
    let made = store.create_file(&dir, b"f", 0o666, BY).unwrap().stat().unwrap();
    assert_eq!((made.uid, made.gid, made.mode), (1000, 77, 0o644));
    store.mkdir(&dir, b"sub", 0o777, BY).unwrap();
    let made = store.stat(Place::Entry { dir: &dir, name: b"sub" }).unwrap();
    assert_eq!((made.gid, made.mode), (77, 0o2755));
}
