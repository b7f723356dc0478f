//! A volume with a key of the test's own, mounted on any store.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use envelopefs::crypto::secret::Secret32;
use envelopefs::crypto::{random, wrap};
use envelopefs::file::FileContext;
use envelopefs::format::geometry::Geometry;
use envelopefs::format::names::NameCodec;
use envelopefs::format::volume::{KeyMode, VolumeKeys};
use envelopefs::fs::{Caller, Fs, FsConfig};
use envelopefs::keys::guard::{Guard, OutagePolicy};
use envelopefs::keys::keyring::{KeyPolicy, Keyring};
use envelopefs::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};
use envelopefs::store::Store;
use envelopefs::store::disk::DiskStore;
use envelopefs::store::memory::MemoryStore;

pub const VOLUME: [u8; 16] = [7; 16];

/// The identity of the test process, so that the tests run for every user.
pub fn caller() -> Caller {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Caller { uid, gid, pid: std::process::id(), umask: 0o022 }
}

pub struct TestCmk(KeyRef, Secret32);

impl CmkProvider for TestCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.0
    }
    fn is_local(&self) -> bool {
        true
    }
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let key = Secret32::random();
        let blob = self.wrap(&key, context)?;
        Ok((key, blob))
    }
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        Ok(wrap::wrap_key(&self.1, &random::array(), format!("{context:?}").as_bytes(), key).to_vec())
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        wrap::unwrap_key(&self.1, format!("{context:?}").as_bytes(), blob)
            .map_err(|e| KeyError::BadBlob { key: self.0.to_string(), reason: e.to_string() })
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        Ok(CmkInfo { key: self.0.clone(), state: CmkState::Enabled, description: String::new(), created: None })
    }
}

pub fn volume_keys() -> VolumeKeys {
    VolumeKeys::derive(&VOLUME, &Secret32::from_bytes([3; 32]))
}

pub fn mount<S: Store>(tree: S, overflow: S, plain_names: bool) -> Fs<S> {
    let keys = volume_keys();
    let cmk = TestCmk(KeyRef { provider: "test".into(), key: "one".into() }, Secret32::from_bytes([9; 32]));
    let policy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 1 << 30, branch_max_files: 1 << 20 };
    let keyring = Keyring::new(
        VOLUME,
        vec![Guard::new(Arc::new(cmk), OutagePolicy::default())],
        policy,
        Some(keys.origin.duplicate()),
        None,
    );
    let config = FsConfig {
        files: Arc::new(FileContext { keyring, geometry: Geometry { header_pages: 1 } }),
        names: if plain_names { NameCodec::Plain } else { NameCodec::encrypted(&keys.names) },
        keys,
        read_only: false,
        exclusive: true,
        noatime: false,
        // Small, so that handles are evicted and commits are forced.
        descriptor_budget: 6,
    };
    Fs::new(tree, overflow, config).expect("the tree mounts")
}

/// The two stores of a volume, to be opened by mount after mount.
pub struct Backing<S> {
    pub tree: Box<dyn Fn() -> S>,
    pub overflow: Box<dyn Fn() -> S>,
}

impl Backing<MemoryStore> {
    pub fn memory() -> Self {
        fn reopen(store: MemoryStore) -> Box<dyn Fn() -> MemoryStore> {
            Box::new(move || store.rooted_at(store.root()))
        }
        Self { tree: reopen(MemoryStore::new()), overflow: reopen(MemoryStore::new()) }
    }
}

impl Backing<DiskStore> {
    pub fn disk(dir: &Path) -> Self {
        fn reopen(path: PathBuf) -> Box<dyn Fn() -> DiskStore> {
            std::fs::create_dir(&path).expect("a directory is made");
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("its mode is set");
            Box::new(move || DiskStore::open(&path).expect("the store opens"))
        }
        Self { tree: reopen(dir.join("tree")), overflow: reopen(dir.join("overflow")) }
    }
}
