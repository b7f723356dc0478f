//! Entry names: encryption, base64url, long names, reserved names. Knows no directory but by its id.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};

use super::DirId;
use crate::crypto::{
    AuthError,
    secret::Secret32,
    siv::{SIV_LEN, SivKey},
};

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

/// Label of the name key's SIV halves.
const LABEL: &[u8] = b"envelopefs v1 names";
/// Longest sealed name: `siv 16 ‖ 255`.
const SEALED_MAX: usize = SIV_LEN + NAME_MAX;
/// Longest sealed name whose base64url fits in `NAME_MAX`: 191 bytes make 255 characters.
const SEALED_SHORT_MAX: usize = NAME_MAX * 6 / 8;
/// Characters of a base64url SHA-256.
const HASH_CHARS: usize = 43;

/// A companion symlink's name and its target (the full base64url ciphertext of the long name).
pub type Companion = (Box<[u8]>, Box<[u8]>);

/// A name as it stands in the backing directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The entry's own name, ≤ 255 bytes.
    pub name: Box<[u8]>,
    /// For a long name only.
    pub companion: Option<Companion>,
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
    Encrypted(Box<SivKey>),
    Plain,
}

impl NameCodec {
    /// `key`: the volume's name key.
    pub fn encrypted(key: &Secret32) -> Self {
        Self::Encrypted(Box::new(SivKey::derive(key, LABEL)))
    }

    /// The same name in the same directory always gives the same result.
    pub fn encode(&self, dir: &DirId, name: &[u8]) -> Result<Encoded, NameError> {
        if !is_file_name(name) {
            return Err(NameError::Invalid);
        }
        if name.len() > NAME_MAX {
            return Err(NameError::TooLong);
        }
        match self {
            Self::Plain if name.starts_with(RESERVED_PREFIX) => Err(NameError::Reserved),
            Self::Plain => Ok(Encoded { name: name.into(), companion: None }),
            Self::Encrypted(key) => {
                let mut buf = [0u8; SEALED_MAX];
                let sealed = &mut buf[..SIV_LEN + name.len()];
                sealed[SIV_LEN..].copy_from_slice(name);
                key.seal_in_place(&[dir], sealed);
                let text = BASE64URL_NOPAD.encode(sealed).into_bytes().into_boxed_slice();
                if sealed.len() <= SEALED_SHORT_MAX {
                    return Ok(Encoded { name: text, companion: None });
                }
                let short = short_form(sealed);
                let companion = companion_name(&short);
                Ok(Encoded { name: short, companion: Some((companion, text)) })
            }
        }
    }

    /// `AuthError`: an entry that does not belong in this directory (moved, forged or damaged).
    pub fn decode(&self, dir: &DirId, raw: &[u8]) -> Result<Decoded, AuthError> {
        let Self::Encrypted(key) = self else {
            let internal = raw.starts_with(RESERVED_PREFIX);
            return Ok(if internal { Decoded::Internal } else { Decoded::Name(raw.to_vec()) });
        };
        if raw.starts_with(RESERVED_PREFIX) {
            return decode_reserved(raw);
        }
        let mut buf = [0u8; SEALED_MAX];
        let sealed = from_base64(raw, &mut buf[..SEALED_SHORT_MAX])?;
        Ok(Decoded::Name(open_name(key, dir, sealed)?))
    }

    /// `short`: the entry's raw name; `target`: the companion's target. Checks that they belong together.
    pub fn decode_long(&self, dir: &DirId, short: &[u8], target: &[u8]) -> Result<Vec<u8>, AuthError> {
        let Self::Encrypted(key) = self else { return Err(AuthError) };
        let mut buf = [0u8; SEALED_MAX];
        let sealed = from_base64(target, &mut buf)?;
        // One name has one form: what fits in a short name never stands in a long one.
        if sealed.len() <= SEALED_SHORT_MAX || *short_form(sealed) != *short {
            return Err(AuthError);
        }
        open_name(key, dir, sealed)
    }
}

/// Whether a short entry name has the form of a sealed one; all that can be told without the key.
pub fn has_name_form(raw: &[u8]) -> bool {
    let mut buf = [0u8; SEALED_SHORT_MAX];
    from_base64(raw, &mut buf).is_ok_and(|sealed| sealed.len() > SIV_LEN)
}

/// Whether `target` is the full form that belongs to the entry name `short`, by their hash; needs no key.
pub fn is_companion_of(short: &[u8], target: &[u8]) -> bool {
    let mut buf = [0u8; SEALED_MAX];
    from_base64(target, &mut buf).is_ok_and(|sealed| sealed.len() > SEALED_SHORT_MAX && *short_form(sealed) == *short)
}

fn decode_reserved(raw: &[u8]) -> Result<Decoded, AuthError> {
    let Some(rest) = raw.strip_prefix(LONG_PREFIX) else { return Ok(Decoded::Internal) };
    let (hash, internal) = match rest.strip_suffix(LONG_SUFFIX) {
        Some(hash) => (hash, true),
        None => (rest, false),
    };
    if hash.len() != HASH_CHARS || !hash.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Err(AuthError);
    }
    Ok(if internal { Decoded::Internal } else { Decoded::Long { companion: companion_name(raw) } })
}

/// Strict base64url into `buf`: no padding, no stray bits, nothing longer than `buf`.
fn from_base64<'a>(text: &[u8], buf: &'a mut [u8]) -> Result<&'a mut [u8], AuthError> {
    let len = BASE64URL_NOPAD.decode_len(text.len()).map_err(|_| AuthError)?;
    let out = buf.get_mut(..len).ok_or(AuthError)?;
    BASE64URL_NOPAD.decode_mut(text, out).map_err(|_| AuthError)?;
    Ok(out)
}

/// `sealed` is overwritten.
fn open_name(key: &SivKey, dir: &DirId, sealed: &mut [u8]) -> Result<Vec<u8>, AuthError> {
    key.open_in_place(&[dir], sealed)?;
    let name = &sealed[SIV_LEN..];
    if is_file_name(name) { Ok(name.to_vec()) } else { Err(AuthError) }
}

fn short_form(sealed: &[u8]) -> Box<[u8]> {
    let mut out = Vec::with_capacity(LONG_PREFIX.len() + HASH_CHARS);
    out.extend_from_slice(LONG_PREFIX);
    out.extend_from_slice(BASE64URL_NOPAD.encode(&Sha256::digest(sealed)).as_bytes());
    out.into_boxed_slice()
}

fn companion_name(short: &[u8]) -> Box<[u8]> {
    [short, LONG_SUFFIX].concat().into_boxed_slice()
}

fn is_file_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// A fresh temporary name from 16 random bytes.
pub fn temp_name(random: [u8; 16]) -> Box<[u8]> {
    [TEMP_PREFIX, BASE64URL_NOPAD.encode(&random).as_bytes()].concat().into_boxed_slice()
}

#[cfg(test)]
mod tests;
