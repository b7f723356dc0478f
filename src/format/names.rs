//! Entry names: encryption, base64url, long names, reserved names. Knows no directory but by its id.

use super::DirId;
use crate::crypto::{AuthError, secret::Secret32};

/// Prefix of every name that belongs to envelopefs itself; refused for users in plaintext-names mode.
pub const RESERVED_PREFIX: &[u8] = b".envelopefs.";
/// The symbolic link inside each directory that holds its id.
pub const DIR_ID_NAME: &[u8] = b".envelopefs.dir";
/// Prefix of temporary names (followed by random base64url).
pub const TEMP_PREFIX: &[u8] = b".envelopefs.tmp.";
/// Prefix of the short form of a long name (followed by base64url of SHA-256 of the ciphertext).
pub const LONG_PREFIX: &[u8] = b".envelopefs.long.";
/// Suffix of the companion symbolic link whose target is the full encoded name.
pub const LONG_SUFFIX: &[u8] = b".name";
pub const NAME_MAX: usize = 255;

/// A name as it stands in the backing directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The entry's own name, ≤ 255 bytes.
    pub name: Box<[u8]>,
    /// For a long name: the companion's name and its target (the full base64url ciphertext).
    pub companion: Option<(Box<[u8]>, Box<[u8]>)>,
}

/// What a raw backing name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    Name(Vec<u8>),
    /// Short form of a long name: read the companion of this name and call `decode_long`.
    Long {
        companion: Box<[u8]>,
    },
    /// Ours: directory id, temporary, companion. Never shown.
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// More than 255 bytes: ENAMETOOLONG.
    #[error("name is longer than 255 bytes")]
    TooLong,
    /// Reserved prefix in plaintext-names mode: EPERM... mapped in fs.
    #[error("names that begin with .envelopefs. are reserved on this volume")]
    Reserved,
    /// Empty, `.`, `..`, or contains NUL or `/`.
    #[error("not a file name")]
    Invalid,
}

/// Encodes and decodes the names of one volume. `Send + Sync`.
pub enum NameCodec {
    Encrypted(Box<crate::crypto::siv::SivKey>),
    Plain,
}

impl NameCodec {
    /// `key`: the volume's name key.
    pub fn encrypted(key: &Secret32) -> Self {
        let _ = key;
        todo!()
    }
    pub fn encode(&self, dir: &DirId, name: &[u8]) -> Result<Encoded, NameError> {
        let _ = (dir, name);
        todo!()
    }
    /// `AuthError`: an entry that does not belong in this directory (moved, forged or damaged).
    pub fn decode(&self, dir: &DirId, raw: &[u8]) -> Result<Decoded, AuthError> {
        let _ = (dir, raw);
        todo!()
    }
    /// `short`: the entry's raw name; `target`: the companion's target. Checks that they belong together.
    pub fn decode_long(&self, dir: &DirId, short: &[u8], target: &[u8]) -> Result<Vec<u8>, AuthError> {
        let _ = (dir, short, target);
        todo!()
    }
}

/// A fresh temporary name from 16 random bytes.
pub fn temp_name(random: [u8; 16]) -> Box<[u8]> {
    let _ = random;
    todo!()
}
