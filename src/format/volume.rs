//! The volume file `envelopefs.toml` in the CIPHERDIR: identity, options, wrapped volume key, current branch.
//! Readable TOML, MACed under the volume key. Knows no provider and does no I/O.

use super::{BranchId, VolumeId, header::CmkSlot};
use crate::crypto::{AuthError, secret::Secret32};

/// Names inside a CIPHERDIR.
pub const VOLUME_FILE: &str = "envelopefs.toml";
pub const TREE_DIR: &str = "tree";
pub const OVERFLOW_DIR: &str = "overflow";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyMode {
    Branch,
    PerFile,
}

/// A branch key as every CMK of the volume wraps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRecord {
    pub id: BranchId,
    /// Seconds since the epoch.
    pub created: i64,
    pub slots: Vec<CmkSlot>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeConfig {
    pub volume_id: VolumeId,
    /// Seconds since the epoch.
    pub created: i64,
    pub plaintext_names: bool,
    pub header_pages: u32,
    pub key_mode: KeyMode,
    /// Seconds; a branch older than this is replaced by a new one for new files.
    pub branch_max_age: u64,
    pub branch_max_files: u64,
    /// CMK URIs as given at `init`: shown to people; whom a mount trusts is decided elsewhere.
    pub cmks: Vec<String>,
    /// The volume key under each CMK (context: volume id).
    pub volume_key: Vec<CmkSlot>,
    /// The branch in use when the file was last written.
    pub branch: Option<BranchRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("volume file is malformed: {0}")]
    Malformed(String),
    #[error("volume file has version {0}, this program knows version 1")]
    Version(i64),
    #[error("volume file authentication failed: it was changed by someone without the volume key")]
    Auth,
}

/// Parsed, not yet authentic.
pub struct UnverifiedVolume {
    config: VolumeConfig,
    _private: (),
}

impl UnverifiedVolume {
    pub fn parse(text: &[u8]) -> Result<Self, VolumeError> {
        let _ = text;
        todo!()
    }
    pub fn claims(&self) -> &VolumeConfig {
        &self.config
    }
    pub fn verify(self, keys: &VolumeKeys) -> Result<VolumeConfig, VolumeError> {
        let _ = keys;
        todo!()
    }
}

impl VolumeConfig {
    pub fn encode(&self, keys: &VolumeKeys) -> Vec<u8> {
        let _ = keys;
        todo!()
    }
}

/// Everything derived from the volume key.
pub struct VolumeKeys {
    pub names: Secret32,
    pub dir_id: Secret32,
    pub targets: Secret32,
    pub xattrs: Secret32,
    pub origin: Secret32,
    pub config: Secret32,
    /// What known-volumes records pin.
    pub commitment: [u8; 32],
}

impl VolumeKeys {
    pub fn derive(volume_id: &VolumeId, volume_key: &Secret32) -> Self {
        let _ = (volume_id, volume_key);
        todo!()
    }
}

/// Commitment stored in a `CmkSlot` for any wrapped 32-byte key.
pub fn key_commitment(key: &Secret32) -> [u8; 32] {
    let _ = key;
    todo!()
}

/// Checks `key` against a slot's commitment in constant time.
pub fn check_commitment(key: &Secret32, expected: &[u8; 32]) -> Result<(), AuthError> {
    let _ = (key, expected);
    todo!()
}
