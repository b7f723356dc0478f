//! Keys: the CMK provider joint, the key tree, whom a mount trusts. Knows headers and volumes as data; no files, no FUSE.

use wanted::Wanted;

use data_encoding::HEXLOWER;

use crate::crypto::secret::Secret32;
pub use crate::format::KeyRef;
use crate::format::{BranchId, FileId, VolumeId};

mod cache;
pub mod guard;
pub mod keyring;
pub mod known_volumes;
pub mod passphrase;
mod protected;
pub mod providers;
mod slots;
mod standing;
mod terminal;
pub mod uri;
pub mod volume;
pub mod wanted;

/// Authenticated names and values that accompany every provider call. Order does not matter; names are frozen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncryptionContext(pub Vec<(&'static str, String)>);

impl EncryptionContext {
    /// For the volume key.
    pub fn for_volume(volume: &VolumeId) -> Self {
        Self(vec![(CONTEXT_VOLUME, HEXLOWER.encode(volume))])
    }
    /// For a branch key.
    pub fn for_branch(volume: &VolumeId, branch: &BranchId) -> Self {
        Self(vec![(CONTEXT_VOLUME, HEXLOWER.encode(volume)), (CONTEXT_BRANCH, HEXLOWER.encode(branch))])
    }
    /// For a file's own key in per-file mode.
    pub fn for_file(volume: &VolumeId, file: &FileId) -> Self {
        Self(vec![(CONTEXT_VOLUME, HEXLOWER.encode(volume)), (CONTEXT_FILE, HEXLOWER.encode(file))])
    }
    /// One byte string for one set of pairs: `count u32`, then by name `len u32 ‖ name ‖ len u32 ‖ value`, little-endian.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut pairs: Vec<(&str, &str)> = self.0.iter().map(|(n, v)| (*n, v.as_str())).collect();
        pairs.sort_unstable();
        let mut out = length_prefix(pairs.len()).to_vec();
        for part in pairs.iter().flat_map(|(name, value)| [name, value]) {
            out.extend_from_slice(&length_prefix(part.len()));
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}

/// Lengths in authenticated data; they are short by construction, and a longer one cannot alias a shorter one silently.
fn length_prefix(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

pub const CONTEXT_VOLUME: &str = "envelopefs:volume-id";
pub const CONTEXT_BRANCH: &str = "envelopefs:branch-id";
pub const CONTEXT_FILE: &str = "envelopefs:file-id";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmkState {
    Enabled,
    Disabled,
    PendingDeletion,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmkInfo {
    pub key: KeyRef,
    pub state: CmkState,
    pub description: String,
    /// Seconds since the epoch, where the provider tells.
    pub created: Option<i64>,
}

/// Why a key could not be had. `Display` never shows secrets and says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A definite answer: disabled, pending deletion, access denied.
    #[error("CMK {key} refuses: {reason}")]
    Refused { key: String, reason: String },
    /// Nobody answered in time.
    #[error("CMK {key} cannot be reached: {reason}")]
    Unreachable { key: String, reason: String },
    /// The blob is not what this CMK wrapped, or the context or commitment differs.
    #[error("wrapped key under {key} does not open: {reason}")]
    BadBlob { key: String, reason: String },
    /// No configured CMK is referenced by the header.
    #[error("no configured CMK opens this (it names {named}); add one with --cmk URI")]
    NoCmk { named: String },
    #[error("{0}")]
    Config(String),
    /// The volume file is not authentic, or contradicts what this host recorded about the volume.
    #[error("{0}")]
    Volume(String),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    /// Not an answer: a remote provider has to be asked first, by somebody who may wait and holds no lock
    /// (`Keyring::fetch`); then the same thing is tried again.
    #[error("a key has to be fetched first")]
    Pending(Box<Wanted>),
}

impl KeyError {
    /// The same answer for another caller that waited for it (`io::Error` cannot be cloned).
    fn repeat(&self) -> Self {
        match self {
            Self::Refused { key, reason } => Self::Refused { key: key.clone(), reason: reason.clone() },
            Self::Unreachable { key, reason } => Self::Unreachable { key: key.clone(), reason: reason.clone() },
            Self::BadBlob { key, reason } => Self::BadBlob { key: key.clone(), reason: reason.clone() },
            Self::NoCmk { named } => Self::NoCmk { named: named.clone() },
            Self::Config(text) => Self::Config(text.clone()),
            Self::Volume(text) => Self::Volume(text.clone()),
            Self::Pending(wanted) => Self::Pending(wanted.clone()),
            Self::Io { path, source } => Self::Io {
                path: path.clone(),
                source: match source.raw_os_error() {
                    Some(errno) => std::io::Error::from_raw_os_error(errno),
                    None => std::io::Error::new(source.kind(), source.to_string()),
                },
            },
        }
    }

    /// Whether the key itself may be sound, so that the answer can change: asked too early, nobody there, or a decision.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Pending(_) | Self::Refused { .. } | Self::Unreachable { .. })
    }

    fn io(path: &std::path::Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { path: path.display().to_string(), source: source.into() }
    }
}

/// One CMK at one provider. Implementations do one call each: no caching, no retries in here. What waits for a network or a
/// device ends by itself within the `providers::Opening::timeout` it was opened with, and says `Unreachable` then.
pub trait CmkProvider: Send + Sync {
    /// The provider's own name for the key.
    fn key_ref(&self) -> &KeyRef;
    /// Answers from this host's memory and files, so that it may be called where waiting is not allowed.
    fn is_local(&self) -> bool {
        false
    }
    /// A fresh 32-byte key and its wrapped blob.
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError>;
    /// Wraps a key that exists already (second and further CMKs of a branch).
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError>;
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError>;
    /// The same key in a fresh blob under the CMK's newest version, where the service does that without showing the key
    /// to us; `None` where it cannot: unwrap and wrap then do the same.
    fn rewrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Option<Vec<u8>>, KeyError> {
        let _ = (blob, context);
        Ok(None)
    }
    fn describe(&self) -> Result<CmkInfo, KeyError>;
}

/// Seconds since the epoch by the wall clock; before it counts as 0.
fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod test_cmk;
