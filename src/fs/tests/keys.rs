//! Keys that have to be fetched and keys that are taken away: no side effect of an attempt without one, and files that
//! lose their keys and get them back.

use std::time::Duration;

use super::*;
use crate::file::Seek;
use crate::keys::keyring::Waits;
use crate::keys::test_cmk::{Mood, TestCmk as RemoteCmk};

const QUICK: OutagePolicy = OutagePolicy {
    deadline: Duration::from_millis(200),
    revalidate: Duration::from_secs(3600),
    max_stale: None,
    revoke: crate::keys::guard::Revoke::Any,
};

/// A volume under a CMK that nobody calls where he stands.
struct Remote {
    volume: Volume,
    cmk: Arc<RemoteCmk>,
}

impl Remote {
    fn new() -> Self {
        Self { volume: Volume::new(), cmk: Arc::new(RemoteCmk::remote("far")) }
    }
    fn mount_by(&self, mode: KeyMode) -> MemoryFs {
        let keys = volume_keys();
        let policy = KeyPolicy { mode, branch_max_age: 1 << 30, branch_max_files: 1 << 20 };
        let guards = vec![Guard::new(self.cmk.clone(), QUICK)];
        let keyring = Keyring::new(VOLUME, guards, policy, Some(keys.origin.duplicate()), None);
        let files = Arc::new(FileContext { keyring, geometry: Geometry { header_pages: 1 } });
        let config = FsConfig { files, ..self.volume.config(64) };
        let tree = self.volume.tree.rooted_at(self.volume.tree.root());
        let overflow = self.volume.overflow.rooted_at(self.volume.overflow.root());
        Fs::new(tree, overflow, config).unwrap()
    }
    fn mount(&self) -> MemoryFs {
        self.mount_by(KeyMode::Branch)
    }
}

/// As a thread does that may wait.
fn make(fs: &MemoryFs, name: &[u8], data: &[u8]) -> Ino {
    let ino = fs.patiently(|fs| fs.create(&BY, ROOT, name, 0o644)).unwrap().ino;
    fs.patiently(|fs| fs.write(ino, 0, data)).unwrap();
    ino
}

fn look_up(fs: &MemoryFs, name: &[u8]) -> Ino {
    fs.lookup(ROOT, name).unwrap().ino
}

fn lose(fs: &MemoryFs, name: &str) {
    for cmk in fs.config.files.keyring.cmks() {
        cmk.probe();
    }
    for loss in fs.config.files.keyring.watch(Duration::ZERO) {
        fs.config.files.keyring.enforce(&loss);
    }
    let keyring = &fs.config.files.keyring;
    let affected = fs.drop_keys(&|source| keyring.lost(source));
    assert!(!affected.is_empty(), "{name}");
}

type Operation = fn(&MemoryFs, Ino) -> Result<()>;

/// Every operation on a file that needs its key, and one that makes a file.
const OPERATIONS: &[(&str, Operation)] = &[
    ("open", |fs, ino| fs.open(ino, READ).map(|()| fs.release(ino))),
    ("open for writing", |fs, ino| fs.open(ino, WRITE).map(|()| fs.release(ino))),
    ("open and empty", |fs, ino| fs.open(ino, EMPTY).map(|()| fs.release(ino))),
    ("read", |fs, ino| fs.read(ino, 0, &mut [0; 10]).map(drop)),
    ("write", |fs, ino| fs.write(ino, 3, b"new")),
    ("write far", |fs, ino| fs.write(ino, 100_000, b"new")),
    ("extend", |fs, ino| fs.setattr(ino, &SetAttr { size: Some(50_000), ..SetAttr::default() }).map(drop)),
    ("shorten", |fs, ino| fs.setattr(ino, &SetAttr { size: Some(5), ..SetAttr::default() }).map(drop)),
    ("reserve", |fs, ino| fs.fallocate(ino, 0, 0, 90_000)),
    ("punch", |fs, ino| fs.fallocate(ino, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4, 9000)),
    ("zero", |fs, ino| fs.fallocate(ino, libc::FALLOC_FL_ZERO_RANGE, 4, 90_000)),
    ("seek", |fs, ino| fs.seek(ino, Seek::Hole, 0).map(drop)),
    ("set an attribute", |fs, ino| fs.setxattr(&BY, ino, b"user.a", b"value", 0)),
    ("get an attribute", |fs, ino| fs.getxattr(ino, b"user.there").map(drop)),
    ("list attributes", |fs, ino| fs.listxattr(ino).map(drop)),
    ("remove an attribute", |fs, ino| fs.removexattr(ino, b"user.there")),
    ("copy", |fs, ino| fs.copy_range((ino, 0), (ino, 200_000), 3000).map(drop)),
    ("create", |fs, _| {
        let made = fs.create(&BY, ROOT, b"made", 0o644)?;
        fs.release(made.ino);
        fs.forget(made.ino, 1);
        Ok(())
    }),
    ("create under a long name", |fs, _| {
        let made = fs.create(&BY, ROOT, &long(b'm'), 0o644)?;
        fs.release(made.ino);
        fs.forget(made.ino, 1);
        Ok(())
    }),
    ("make a node under a long name", |fs, _| {
        let made = fs.mknod(&BY, ROOT, &long(b'n'), Kind::File, 0o644, 0)?;
        fs.forget(made.ino, 1);
        Ok(())
    }),
];

#[test]
fn an_operation_that_lacks_a_key_changes_nothing_and_works_once_it_is_there() {
    for mode in [KeyMode::Branch, KeyMode::PerFile] {
        for (name, operation) in OPERATIONS {
            let remote = Remote::new();
            let writer = remote.mount_by(mode);
            let ino = make(&writer, b"f", &[7; 20_000]);
            writer.patiently(|fs| fs.setxattr(&BY, ino, b"user.there", b"x", 0)).unwrap();
            writer.release(ino);
            writer.commit().unwrap();
            drop(writer);

            let fs = remote.mount_by(mode);
            let ino = look_up(&fs, b"f");
            let before = (fs.nodes.len(), fs.nodes.lookups(ino), remote.cmk.calls());
            remote.volume.tree.start_recording();
            for _ in 0..2 {
                let wanted = operation(&fs, ino).err().and_then(|e| e.wanted().cloned());
                assert!(wanted.is_some(), "{name}: asks for a key");
            }
            let node = fs.node(ino).unwrap();
            assert_eq!(node.with(|state| (state.opens, state.failed)), (0, None), "{name}");
            assert_eq!(content_size(&fs, ino), 20_000, "{name}");
            assert_eq!(remote.volume.tree.take_recording(), [], "{name}: changes nothing below");
            assert!(!fs.needs_commit(), "{name}: leaves nothing to a commit");
            assert_eq!(before, (fs.nodes.len(), fs.nodes.lookups(ino), remote.cmk.calls()), "{name}");
            fs.patiently(|fs| operation(fs, ino)).unwrap_or_else(|e| panic!("{name}: {e}"));
            fs.commit().unwrap();

            // The same with a CMK that is called in place gives the same file.
            let expected = with_local_key(*operation);
            let mut read = vec![0; 300_000];
            let n = fs.patiently(|fs| fs.read(ino, 0, &mut read)).unwrap();
            assert!(read[..n] == expected, "{name}: {n} bytes");
        }
    }
}

fn content_size(fs: &MemoryFs, ino: Ino) -> u64 {
    fs.getattr(ino).unwrap().stat.size
}

fn with_local_key(operation: Operation) -> Vec<u8> {
    let volume = Volume::new();
    let fs = volume.mount();
    let ino = file(&fs, ROOT, b"f", &[7; 20_000]);
    fs.setxattr(&BY, ino, b"user.there", b"x", 0).unwrap();
    operation(&fs, ino).unwrap();
    let mut read = vec![0; 300_000];
    let n = fs.read(ino, 0, &mut read).unwrap();
    read.truncate(n);
    read
}

#[test]
fn a_tree_is_one_generate_call_and_a_file_under_many_threads_one_unwrap() {
    let remote = Remote::new();
    let fs = remote.mount();
    for n in 0..3000 {
        let ino = make(&fs, format!("f{n}").as_bytes(), b"content");
        fs.release(ino);
    }
    assert_eq!(remote.cmk.calls(), (1, 0, 0));
    fs.commit().unwrap();
    let fs = remote.mount();
    let ino = look_up(&fs, b"f7");
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| fs.patiently(|fs| content(fs, ino)).unwrap());
        }
    });
    assert_eq!(remote.cmk.calls(), (1, 0, 1));
}

#[test]
fn without_a_key_no_file_is_made_and_none_is_emptied() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", b"content");
    fs.release(ino);
    fs.commit().unwrap();
    let fs = remote.mount();
    let ino = look_up(&fs, b"f");
    for mood in [Mood::Unreachable, Mood::Refuses] {
        let errno = if mood == Mood::Refuses { libc::EKEYREVOKED } else { libc::ENOKEY };
        *remote.cmk.mood.lock() = mood;
        // The breaker may be open, and failures are remembered for a moment.
        let eventually = |what: &str, op: &mut dyn FnMut() -> Result<()>| {
            for _ in 0..100 {
                match op() {
                    Err(e) if e.errno() == errno => return,
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                    Ok(()) => panic!("{what} works"),
                }
            }
            panic!("{what}: not {errno}");
        };
        eventually("create", &mut || fs.patiently(|fs| fs.create(&BY, ROOT, b"new", 0o644)).map(drop));
        refused(fs.lookup(ROOT, b"new"), libc::ENOENT);
        eventually("empty", &mut || fs.patiently(|fs| fs.open(ino, EMPTY)));
        // What is there already is there, whatever the key says; and it can be removed and truncated.
        refused(fs.patiently(|fs| fs.create(&BY, ROOT, b"f", 0o644)), libc::EEXIST);
        assert_eq!(content_size(&fs, ino), 7);
        for cmk in fs.config.files.keyring.cmks() {
            cmk.probe();
        }
    }
    fs.setattr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    fs.unlink(ROOT, b"f").unwrap();
}

#[test]
fn a_revoked_file_is_settled_then_closed_and_opens_again_on_the_same_handle() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", &[1; 10_000]);
    fs.fsync(ino, true).unwrap();
    fs.write(ino, 10_000, &[2; 5_000]).unwrap();
    *remote.cmk.mood.lock() = Mood::Refuses;
    lose(&fs, "revoked");
    // Durable, with its size where the next mount finds it.
    assert!(!fs.needs_commit() || fs.commit().is_ok());
    let mut buf = vec![0; 20_000];
    for _ in 0..3 {
        refused(fs.patiently(|fs| fs.read(ino, 0, &mut buf)), libc::EKEYREVOKED);
        refused(fs.patiently(|fs| fs.write(ino, 0, b"late")), libc::EKEYREVOKED);
        refused(fs.patiently(|fs| fs.fsync(ino, true)), libc::EKEYREVOKED);
        refused(fs.patiently(|fs| fs.open(ino, READ)), libc::EKEYREVOKED);
    }
    assert_eq!(content_size(&fs, ino), 15_000);
    // Commits neither fail nor find work.
    fs.commit().unwrap();
    assert!(!fs.needs_commit());
    *remote.cmk.mood.lock() = Mood::Works;
    fs.config.files.keyring.cmks()[0].probe();
    let n = fs.patiently(|fs| fs.read(ino, 0, &mut buf)).unwrap();
    assert!(n == 15_000 && buf[..10_000] == [1; 10_000] && buf[10_000..n] == [2; 5_000]);
    fs.write(ino, 0, b"in time").unwrap();
    fs.fsync(ino, true).unwrap();
    fs.release(ino);
    let other = remote.mount();
    assert!(other.patiently(|fs| content(fs, look_up(fs, b"f"))).unwrap().starts_with(b"in time"));
}

#[test]
fn a_failing_store_does_not_keep_the_keys() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", &[1; 10_000]);
    fs.fsync(ino, true).unwrap();
    fs.write(ino, 4000, &[2; 3000]).unwrap();
    remote.volume.tree.fail_from(0, libc::EIO);
    assert_eq!(fs.drop_keys(&|_| true), [ino]);
    remote.volume.tree.heal();
    assert!(fs.node(ino).unwrap().content().unwrap().key_source().is_none());
    let mut buf = vec![0; 20_000];
    let n = fs.patiently(|fs| fs.read(ino, 0, &mut buf)).unwrap();
    assert!(n == 10_000 && buf[4000..7000] == [2; 3000], "written data went to the store at once");
}

#[test]
fn closed_files_are_named_for_the_page_cache_and_others_are_left_alone() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", b"content");
    fs.release(ino);
    fs.commit().unwrap();
    let never_opened = make(&fs, b"empty", b"");
    assert_eq!(fs.drop_keys(&|_| true), [ino]);
    assert_eq!(fs.drop_keys(&|_| true), [] as [Ino; 0], "said once");
    assert_eq!(fs.patiently(|fs| content(fs, ino)).unwrap(), b"content");
    assert!(fs.drop_keys(&|_| false).is_empty());
    assert!(fs.node(never_opened).is_ok());
}

#[test]
fn readers_and_writers_go_on_while_keys_come_and_go() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", &[0; 40_000]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4u8)
            .map(|t| {
                let (fs, over) = (&fs, &over);
                scope.spawn(move || {
                    let (at, mut round) = (u64::from(t) * 10_000, 0u8);
                    while !over.load(Ordering::Relaxed) {
                        round = round.wrapping_add(1);
                        fs.patiently(|fs| fs.write(ino, at, &[round; 9_999])).unwrap();
                        let mut buf = [0; 9_999];
                        assert_eq!(fs.patiently(|fs| fs.read(ino, at, &mut buf)).unwrap(), 9_999);
                        assert!(buf == [round; 9_999]);
                    }
                })
            })
            .collect();
        for n in 0..200 {
            fs.drop_keys(&|_| true);
            if n % 10 == 0 {
                fs.config.files.keyring.forget();
                fs.commit().unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
}

/// What a failed settling may have cost is told to whoever syncs, also after the key is back.
#[test]
fn a_file_that_could_not_be_settled_says_so_to_its_next_fsync() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", &[1; 10_000]);
    fs.fsync(ino, true).unwrap();
    fs.write(ino, 4000, &[2; 3000]).unwrap();
    remote.volume.tree.fail_from(0, libc::EIO);
    assert_eq!(fs.drop_keys(&|_| true), [ino]);
    remote.volume.tree.heal();
    refused(fs.patiently(|fs| fs.fsync(ino, true)), libc::EIO);
    fs.fsync(ino, true).unwrap();
    fs.commit().unwrap();
    assert!(!fs.needs_commit());
}

/// The header of a file with sealed attributes outlives its emptying: what is written next needs that old key.
#[test]
fn a_file_with_attributes_is_not_emptied_without_its_own_key() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", b"content");
    fs.setxattr(&BY, ino, b"user.a", b"value", 0).unwrap();
    fs.release(ino);
    fs.commit().unwrap();
    drop(fs);
    let fs = remote.mount();
    // A branch for new files is there; the one of this file is not.
    fs.release(make(&fs, b"other", b"x"));
    let ino = look_up(&fs, b"f");
    assert!(fs.open(ino, EMPTY).is_err_and(|e| e.wanted().is_some()), "its own key is asked for");
    *remote.cmk.mood.lock() = Mood::Refuses;
    refused(fs.patiently(|fs| fs.open(ino, EMPTY)), libc::EKEYREVOKED);
    assert_eq!(content_size(&fs, ino), 7, "nothing is lost");
    // truncate(2) asks for nothing.
    fs.setattr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
}

/// The damage is what emptying is for.
#[test]
fn a_file_with_attributes_and_a_broken_header_can_be_emptied_all_the_same() {
    let volume = Volume::new();
    let fs = volume.mount();
    let ino = file(&fs, ROOT, b"f", b"content");
    fs.setxattr(&BY, ino, b"user.a", b"value", 0).unwrap();
    fs.commit().unwrap();
    let node = fs.node(ino).unwrap();
    let backing = fs.open_backing(&node, Access::ReadWrite).unwrap();
    crate::store::BackingFile::write_at(&backing, &[0xaa; 64], 40).unwrap();
    drop(fs);
    let fs = volume.mount();
    let ino = look_up(&fs, b"f");
    assert!(fs.open(ino, READ).is_err());
    fs.open(ino, EMPTY).unwrap();
    assert_eq!(content_size(&fs, ino), 0);
}

/// A loss of keys, or an unmount after it, leaves nothing that is tried for ever.
#[test]
fn a_revoked_file_that_could_not_be_settled_does_not_keep_commits_busy() {
    let remote = Remote::new();
    let fs = remote.mount();
    let ino = make(&fs, b"f", &[1; 10_000]);
    *remote.cmk.mood.lock() = Mood::Refuses;
    remote.volume.tree.fail_from(0, libc::EIO);
    lose(&fs, "revoked");
    assert!(fs.commit().is_err(), "the store still fails");
    remote.volume.tree.heal();
    fs.commit().unwrap();
    assert!(!fs.needs_commit());
    fs.release(ino);
    assert_eq!(fs.node(ino).unwrap().with(|state| (state.opens, state.lingering)), (0, false));
    *remote.cmk.mood.lock() = Mood::Works;
    drop(fs);
    let fs = remote.mount();
    assert_eq!(fs.patiently(|fs| content(fs, look_up(fs, b"f"))).unwrap(), [1; 10_000]);
}
