//! Keys: the CMK provider joint, the key tree, whom a mount trusts. Knows headers and volumes as data; no files, no FUSE.

use std::fmt;

use crate::crypto::secret::Secret32;

pub mod keyfile;
pub mod keyring;
pub mod known_volumes;
pub mod passphrase;
pub mod uri;
pub mod volume;

/// Authenticated names and values that accompany every provider call. Order does not matter; names are frozen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncryptionContext(pub Vec<(&'static str, String)>);

pub const CONTEXT_VOLUME: &str = "envelopefs:volume-id";
pub const CONTEXT_BRANCH: &str = "envelopefs:branch-id";
pub const CONTEXT_FILE: &str = "envelopefs:file-id";

/// A key as its provider names it. Recorded in headers; the only thing an allow-list compares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyRef {
    pub provider: String,
    pub key: String,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.key)
    }
}

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
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// One CMK at one provider. Implementations do one call each: no caching, no retries, no deadlines in here.
pub trait CmkProvider: Send + Sync {
    /// The provider's own name for the key.
    fn key_ref(&self) -> &KeyRef;
    /// A fresh 32-byte key and its wrapped blob.
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError>;
    /// Wraps a key that exists already (second and further CMKs of a branch).
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError>;
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError>;
    fn describe(&self) -> Result<CmkInfo, KeyError>;
}
