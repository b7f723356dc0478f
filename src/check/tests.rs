//! What no command makes yet: sealed files; and headers that hang on some of the CMKs.

use std::path::Path;

use super::*;
use crate::crypto::secret::Secret32;
use crate::file::EncryptedFile;
use crate::format::dir_id::{DirRecord, NO_PARENT};
use crate::format::header::{FLAG_SEALED, Unverified};
use crate::format::names::DIR_ID_NAME;
use crate::format::volume::{KeyMode, OVERFLOW_DIR, TREE_DIR};
use crate::keys::guard::{Guard, OutagePolicy};
use crate::keys::keyring::{KeyPolicy, Keyring};
use crate::keys::test_cmk::TestCmk;
use crate::store::{BackingFile, Creator, Store};

const VOLUME: [u8; 16] = [7; 16];
const GEOMETRY: Geometry = Geometry { header_pages: 1 };

/// Code and path of a finding.
type Found = (&'static str, Option<Vec<u8>>);

#[derive(Default)]
struct Heard(Mutex<Vec<Found>>);

impl Sink for Heard {
    fn problem(&self, problem: &Problem) {
        self.0.lock().push((problem.code.word, problem.path.clone()));
    }
    fn progress(&self, _: &dyn Fn() -> Vec<u8>, _: u64) {}
}

struct Volume {
    dir: tempfile::TempDir,
    files: Arc<FileContext>,
    cmk: Arc<TestCmk>,
    config: VolumeConfig,
}

impl Volume {
    /// Plaintext names, so that objects are found.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for room in [TREE_DIR, OVERFLOW_DIR] {
            std::fs::create_dir(dir.path().join(room)).unwrap();
        }
        let keys = volume_keys();
        let record = DirRecord { id: [1; 16], parent: NO_PARENT, keys: None };
        let target = String::from_utf8(record.encode(&keys.dir_id).unwrap()).unwrap();
        let id = dir.path().join(TREE_DIR).join(std::str::from_utf8(DIR_ID_NAME).unwrap());
        std::os::unix::fs::symlink(target, id).unwrap();
        let cmk = Arc::new(TestCmk::new("one"));
        let guard = Guard::new(cmk.clone(), OutagePolicy::default());
        let policy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: u64::MAX, branch_max_files: u64::MAX };
        let keyring = Keyring::new(VOLUME, vec![guard], policy, Some(keys.origin.duplicate()), None);
        let slot = |key: &str| crate::format::header::CmkSlot {
            provider: "test".into(),
            key_ref: key.into(),
            blob: Vec::new(),
            commitment: [0; 32],
        };
        let config = VolumeConfig {
            volume_id: VOLUME,
            created: 0,
            plaintext_names: true,
            header_pages: 1,
            key_mode: KeyMode::Branch,
            branch_max_age: u64::MAX,
            branch_max_files: u64::MAX,
            cmks: Vec::new(),
            volume_key: vec![slot("one"), slot("two")],
            branch: None,
            directory_cmks: Vec::new(),
            directory_branches: Vec::new(),
        };
        Self { files: Arc::new(FileContext { keyring, geometry: GEOMETRY }), dir, cmk, config }
    }

    fn tree(&self) -> std::path::PathBuf {
        self.dir.path().join(TREE_DIR)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let store = DiskStore::open(self.tree()).unwrap();
        let by = Creator { uid: 0, gid: 0, umask: 0 };
        let backing = store.create_file(store.root(), name.as_bytes(), 0o600, by).unwrap();
        let file = EncryptedFile::new(self.files.clone(), backing, true, 0);
        file.write(0, content).unwrap();
        file.commit(None).unwrap();
    }

    /// Says in the header that the file is sealed with this size.
    fn seal(&self, name: &str, size: u64) {
        let store = DiskStore::open(self.tree()).unwrap();
        let place = crate::store::Place::Entry { dir: store.root(), name: name.as_bytes() };
        let file = store.open_file(place, crate::store::Access::ReadWrite).unwrap();
        let mut slot = vec![0; GEOMETRY.slot_len()];
        file.read_at(&mut slot, 0).unwrap();
        let keys = self.files.keyring.open(&Unverified::parse(&slot, GEOMETRY).unwrap()).unwrap().keys;
        let mut header = Unverified::parse(&slot, GEOMETRY).unwrap().claims().clone();
        header.flags |= FLAG_SEALED;
        header.sealed_size = size;
        file.write_at(&header.encode(&keys, self.files.keyring.origin(), GEOMETRY).unwrap(), 0).unwrap();
    }

    fn subject(&self) -> Subject<DiskStore> {
        let keys = Keys { files: self.files.clone(), names: NameCodec::Plain, volume: volume_keys() };
        let top = DiskStore::open(self.dir.path()).unwrap();
        Subject { top, config: Some(self.config.clone()), keys: Some(keys), remarks: Vec::new() }
    }

    fn check(&self, repair: Repair) -> (Vec<Found>, Counts) {
        let heard = Heard::default();
        let counts = run(self.subject(), Settings { quick: false, jobs: 2, repair }, &heard);
        (heard.0.into_inner(), counts)
    }
}

fn volume_keys() -> VolumeKeys {
    VolumeKeys::derive(&VOLUME, &Secret32::from_bytes([3; 32]))
}

fn at(path: &str) -> Option<Vec<u8>> {
    Some(path.as_bytes().to_vec())
}

#[test]
fn a_sealed_file_has_the_size_it_was_sealed_with() {
    let volume = Volume::new();
    volume.write("right", &[1; 10_000]);
    volume.write("wrong", &[1; 10_000]);
    volume.seal("right", 10_000);
    volume.seal("wrong", 10_001);
    let (heard, counts) = volume.check(Repair::Do);
    assert_eq!(heard, [("sealed-size", at("/wrong"))]);
    assert_eq!((counts.damage, counts.mended, counts.blocks), (1, 0, 6));
}

#[test]
fn files_that_lack_one_of_the_volume_s_cmks_are_counted() {
    let volume = Volume::new();
    volume.write("a", b"x");
    volume.write("b", b"y");
    let (heard, counts) = volume.check(Repair::No);
    assert_eq!(heard, []);
    let of = |key: &str| counts.cmks[&KeyRef { provider: "test".into(), key: key.into() }];
    assert_eq!(of("one"), CmkCount { files: 2, missing: 0, unproven: 0 });
    assert_eq!(of("two"), CmkCount { files: 0, missing: 2, unproven: 0 });
}

/// The same wrapped key in many headers is one question, whoever has the key in memory; another copy is one more.
#[test]
fn each_wrapped_key_is_asked_for_once() {
    let volume = Volume::new();
    for n in 0..20 {
        volume.write(&n.to_string(), b"content");
    }
    assert_eq!(volume.cmk.calls().2, 0);
    assert_eq!(volume.check(Repair::No).0, []);
    // Two threads may ask at the same time.
    assert!((1..=3).contains(&volume.cmk.calls().2), "{:?}", volume.cmk.calls());
}

/// The progress bar reaches its end.
#[test]
fn what_there_is_to_read_is_what_is_read() {
    struct Read(AtomicU64);
    impl Sink for Read {
        fn problem(&self, problem: &Problem) {
            panic!("{problem:?}");
        }
        fn progress(&self, _: &dyn Fn() -> Vec<u8>, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    let volume = Volume::new();
    for (n, size) in [1, 4048, 4049, 100_000, 0].into_iter().enumerate() {
        volume.write(&n.to_string(), &vec![7; size]);
    }
    std::fs::hard_link(volume.tree().join("3"), volume.tree().join("again")).unwrap();
    for quick in [false, true] {
        let read = Read(AtomicU64::new(0));
        run(volume.subject(), Settings { quick, jobs: 2, repair: Repair::No }, &read);
        let total = AtomicU64::new(0);
        let top = DiskStore::open(volume.dir.path()).unwrap();
        measure(&top, 1, quick, &AtomicBool::new(false), &|bytes| {
            total.fetch_add(bytes, Ordering::Relaxed);
        });
        assert_eq!(read.0.into_inner(), total.into_inner(), "quick: {quick}");
    }
}

#[test]
fn a_volume_without_rooms_is_told() {
    let volume = Volume::new();
    std::fs::remove_dir_all(volume.tree()).unwrap();
    std::fs::remove_dir(volume.dir.path().join(OVERFLOW_DIR)).unwrap();
    let (heard, counts) = volume.check(Repair::Do);
    assert_eq!(heard, [("layout", None), ("layout", None)]);
    assert_eq!(counts.mended, 1);
    assert!(Path::new(&volume.dir.path().join(OVERFLOW_DIR)).is_dir());
}
