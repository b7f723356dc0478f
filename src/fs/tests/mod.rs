//! Tests of the filesystem on the memory store: bookkeeping, failures, crashes, damage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::crypto::{secret::Secret32, wrap};
use crate::format::geometry::Geometry;
use crate::format::volume::KeyMode;
use crate::keys::guard::{Guard, OutagePolicy};
use crate::keys::keyring::{KeyPolicy, Keyring};
use crate::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};
use crate::store::memory::MemoryStore;
use crate::store::{Access, RenameMode};

mod bookkeeping;
mod content;
mod damage;
mod directory_keys;
mod failures;
mod keys;
#[cfg(feature = "shuttle")]
mod model;
mod owner;

type MemoryFs = Fs<MemoryStore>;

const VOLUME: [u8; 16] = [7; 16];
const BY: Caller = Caller { uid: 1000, gid: 1000, pid: 0, umask: 0o022 };
const READ: OpenMode = OpenMode { read: true, write: false, truncate: false, drop_privileges: false };
const WRITE: OpenMode = OpenMode { read: true, write: true, truncate: false, drop_privileges: false };
const EMPTY: OpenMode = OpenMode { read: false, write: true, truncate: true, drop_privileges: false };

struct TestCmk {
    key_ref: KeyRef,
    key: Secret32,
    refuses: AtomicBool,
    calls: AtomicU64,
}

impl TestCmk {
    fn new() -> Arc<Self> {
        Self::named("one", 9)
    }
    fn named(key: &str, secret: u8) -> Arc<Self> {
        Arc::new(Self {
            key_ref: KeyRef { provider: "test".into(), key: key.into() },
            key: Secret32::from_bytes([secret; 32]),
            refuses: AtomicBool::new(false),
            calls: AtomicU64::new(0),
        })
    }
    fn answer(&self) -> std::result::Result<(), KeyError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.refuses.load(Ordering::Relaxed) {
            return Err(KeyError::Refused { key: self.key_ref.to_string(), reason: "disabled".into() });
        }
        Ok(())
    }
}

impl CmkProvider for TestCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }
    fn is_local(&self) -> bool {
        true
    }
    fn generate(&self, context: &EncryptionContext) -> std::result::Result<(Secret32, Vec<u8>), KeyError> {
        let key = Secret32::random();
        let blob = self.wrap(&key, context)?;
        Ok((key, blob))
    }
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> std::result::Result<Vec<u8>, KeyError> {
        self.answer()?;
        Ok(wrap::wrap_key(&self.key, &random::array(), format!("{context:?}").as_bytes(), key).to_vec())
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> std::result::Result<Secret32, KeyError> {
        self.answer()?;
        wrap::unwrap_key(&self.key, format!("{context:?}").as_bytes(), blob)
            .map_err(|e| KeyError::BadBlob { key: self.key_ref.to_string(), reason: e.to_string() })
    }
    fn describe(&self) -> std::result::Result<CmkInfo, KeyError> {
        Ok(CmkInfo { key: self.key_ref.clone(), state: CmkState::Enabled, description: String::new(), created: None })
    }
}

fn volume_keys() -> VolumeKeys {
    VolumeKeys::derive(&VOLUME, &Secret32::from_bytes([3; 32]))
}

/// A volume on memory stores, to be mounted again and again.
struct Volume {
    tree: MemoryStore,
    overflow: MemoryStore,
    cmk: Arc<TestCmk>,
    /// CMKs of directories that a mount is given.
    more: Vec<Arc<TestCmk>>,
}

impl Volume {
    fn new() -> Self {
        let tree = MemoryStore::new();
        Fs::format(&tree, &volume_keys()).unwrap();
        Self { tree, overflow: MemoryStore::new(), cmk: TestCmk::new(), more: Vec::new() }
    }
    /// The same volume after a crash that left this tree.
    fn with_tree(&self, tree: MemoryStore) -> Self {
        Self { tree, overflow: self.overflow.snapshot(), cmk: self.cmk.clone(), more: self.more.clone() }
    }
    fn config(&self, budget: usize) -> FsConfig {
        let keys = volume_keys();
        let policy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 1 << 30, branch_max_files: 1 << 20 };
        let keyring = Keyring::new(
            VOLUME,
            vec![Guard::new(self.cmk.clone(), OutagePolicy::default())],
            policy,
            Some(keys.origin.duplicate()),
            None,
        );
        for cmk in &self.more {
            keyring.add_cmk(Guard::new(cmk.clone(), OutagePolicy::default()));
        }
        FsConfig {
            files: Arc::new(FileContext { keyring, geometry: Geometry { header_pages: 1 } }),
            names: NameCodec::encrypted(&keys.names),
            keys,
            read_only: false,
            exclusive: true,
            noatime: false,
            descriptor_budget: budget,
        }
    }
    fn try_mount(&self, budget: usize, read_only: bool) -> Result<MemoryFs> {
        let tree = self.tree.rooted_at(self.tree.root());
        let overflow = self.overflow.rooted_at(self.overflow.root());
        Fs::new(tree, overflow, FsConfig { read_only, ..self.config(budget) })
    }
    fn mount(&self) -> MemoryFs {
        self.try_mount(64, false).unwrap()
    }
    /// Raw names in the backing directory of a path, sorted.
    fn raw(&self, fs: &MemoryFs, ino: Ino) -> Vec<Vec<u8>> {
        let handle = fs.handle(&fs.node(ino).unwrap()).unwrap();
        let mut names: Vec<_> = fs.store.list(&handle).unwrap().into_iter().map(|e| e.name.to_vec()).collect();
        names.sort();
        names
    }
}

/// A file of this content, closed and not committed.
fn file(fs: &MemoryFs, parent: Ino, name: &[u8], content: &[u8]) -> Ino {
    let ino = fs.create(&BY, parent, name, 0o644).unwrap().ino;
    fs.write(ino, 0, content).unwrap();
    fs.release(ino);
    ino
}

fn read_open(fs: &MemoryFs, ino: Ino) -> Result<Vec<u8>> {
    let mut buf = vec![0; 1 << 16];
    let n = fs.read(ino, 0, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

fn content(fs: &MemoryFs, ino: Ino) -> Result<Vec<u8>> {
    fs.open(ino, READ)?;
    let read = read_open(fs, ino);
    fs.release(ino);
    read
}

/// Shown names without dots, in order.
fn names(fs: &MemoryFs, ino: Ino) -> Vec<Vec<u8>> {
    let handle = fs.opendir(ino).unwrap();
    let mut names = Vec::new();
    fs.readdir(ino, handle, 2, &mut |e| {
        names.push(e.name.clone());
        true
    })
    .unwrap();
    fs.releasedir(handle);
    names.sort();
    names
}

#[track_caller]
fn refused<T>(result: Result<T>, errno: i32) {
    match result {
        Ok(_) => panic!("expected {}", std::io::Error::from_raw_os_error(errno)),
        Err(e) => assert_eq!(e.errno(), errno, "{e}"),
    }
}

fn long(letter: u8) -> Vec<u8> {
    vec![letter; 255]
}
