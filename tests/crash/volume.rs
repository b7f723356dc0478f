//! A volume on one memory store, mounted by the real engine again and again. Knows nothing of crashes.

use std::sync::Arc;

use envelopefs::check::{Keys, Subject};
use envelopefs::crypto::secret::Secret32;
use envelopefs::crypto::{random, wrap};
use envelopefs::file::FileContext;
use envelopefs::format::geometry::Geometry;
use envelopefs::format::header::CmkSlot;
use envelopefs::format::names::NameCodec;
use envelopefs::format::volume::{KeyMode, VolumeConfig, VolumeKeys};
use envelopefs::fs::{Caller, Fs, FsConfig, OpenMode, Result};
use envelopefs::keys::guard::{Guard, OutagePolicy};
use envelopefs::keys::keyring::{KeyPolicy, Keyring};
use envelopefs::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};
use envelopefs::store::memory::MemoryStore;
use envelopefs::store::{Creator, Store};

pub type Engine = Fs<MemoryStore>;

const VOLUME: [u8; 16] = [7; 16];
const ROOT_USER: Creator = Creator { uid: 0, gid: 0, umask: 0 };
pub const BY: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };
pub const READ: OpenMode = OpenMode { read: true, write: false, truncate: false, drop_privileges: false };
pub const WRITE: OpenMode = OpenMode { read: true, write: true, truncate: false, drop_privileges: false };
pub const EMPTY: OpenMode = OpenMode { read: false, write: true, truncate: true, drop_privileges: false };

/// A CMK whose key never changes, so that every mount of every image has the same one.
struct TestCmk {
    key_ref: KeyRef,
    key: Secret32,
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
        Ok(wrap::wrap_key(&self.key, &random::array(), format!("{context:?}").as_bytes(), key).to_vec())
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> std::result::Result<Secret32, KeyError> {
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

/// Both directories of a fresh volume, in one store, as on one disk.
pub fn format() -> MemoryStore {
    let disk = MemoryStore::new();
    for name in [&b"tree"[..], b"overflow"] {
        disk.mkdir(disk.root(), name, 0o755, ROOT_USER).expect("a directory is made");
    }
    Fs::format(&part(&disk, b"tree"), &volume_keys()).expect("the tree is made");
    disk
}

pub fn part(disk: &MemoryStore, name: &[u8]) -> MemoryStore {
    disk.rooted_at(&disk.pin(disk.root(), name).expect("the volume has this directory"))
}

/// A keyring with nothing in it but the CMK.
fn files(keys: &VolumeKeys, header_pages: u32) -> Arc<FileContext> {
    let cmk =
        TestCmk { key_ref: KeyRef { provider: "test".into(), key: "one".into() }, key: Secret32::from_bytes([9; 32]) };
    let policy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 1 << 30, branch_max_files: 1 << 20 };
    let guards = vec![Guard::new(Arc::new(cmk), OutagePolicy::default())];
    let keyring = Keyring::new(VOLUME, guards, policy, Some(keys.origin.duplicate()), None);
    Arc::new(FileContext { keyring, geometry: Geometry { header_pages } })
}

/// A mount with keys of its own: nothing but the CMK is carried over from an earlier one.
pub fn mount(disk: &MemoryStore, header_pages: u32) -> Result<Engine> {
    let keys = volume_keys();
    let config = FsConfig {
        files: files(&keys, header_pages),
        names: NameCodec::encrypted(&keys.names),
        keys,
        read_only: false,
        exclusive: true,
        noatime: false,
        descriptor_budget: 64,
    };
    Fs::new(part(disk, b"tree"), part(disk, b"overflow"), config)
}

/// What `envelopefs check` is told of such a volume.
pub fn subject(disk: &MemoryStore, header_pages: u32) -> Subject<MemoryStore> {
    let slot = CmkSlot { provider: "test".into(), key_ref: "one".into(), blob: Vec::new(), commitment: [0; 32] };
    let config = VolumeConfig {
        volume_id: VOLUME,
        created: 0,
        plaintext_names: false,
        header_pages,
        key_mode: KeyMode::Branch,
        branch_max_age: 1 << 30,
        branch_max_files: 1 << 20,
        cmks: Vec::new(),
        volume_key: vec![slot],
        branch: None,
        directory_cmks: Vec::new(),
        directory_branches: Vec::new(),
    };
    let keys = volume_keys();
    let (files, names) = (files(&keys, header_pages), NameCodec::encrypted(&keys.names));
    let keys = Some(Keys { files, names, volume: keys });
    Subject { top: disk.rooted_at(disk.root()), config: Some(config), keys, remarks: Vec::new() }
}
