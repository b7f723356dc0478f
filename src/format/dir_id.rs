//! The directory id record: target of the `.envelopefs.dir` symlink, base64url of `id 16 ‖ parent 16 ‖ keys ‖ MAC 12`.
//! `keys` is empty where new files of the directory hang on the volume's own CMKs. Parsing is total and bounded.

use data_encoding::BASE64URL_NOPAD;

use super::DirId;
use super::key_ref::{KeyGroup, KeyRef, PROVIDER_MAX, well_formed};
use crate::crypto::{
    AuthError,
    kdf::{hmac_sha256, mac_eq},
    secret::Secret32,
};

/// Parent of the root directory.
pub const NO_PARENT: DirId = [0; 16];

const MAC_LEN: usize = 12;
/// id and parent.
const IDS_LEN: usize = 16 + 16;
/// Characters of an encoded record without keys: the most that ext4 keeps inside an inode.
pub const ENCODED_LEN: usize = 59;
/// Longest record in characters: what every file system takes as the target of a link (XFS 1023 bytes).
pub const ENCODED_MAX: usize = 1023;
/// The same in bytes before encoding.
const RECORD_MAX: usize = ENCODED_MAX * 3 / 4;
const _: () = assert!(RECORD_MAX == 767);
/// Bytes that the list of keys may take: each key 3 and its two names.
pub const KEYS_MAX: usize = RECORD_MAX - IDS_LEN - MAC_LEN;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRecord {
    pub id: DirId,
    /// The parent's id when the directory was made; renames do not rewrite it.
    pub parent: DirId,
    /// What new files of the directory hang on.
    pub keys: KeyGroup,
}

/// Why a list of CMKs cannot stand in a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("a directory's list of CMKs must not be empty")]
    Empty,
    #[error("CMK {0} is listed twice")]
    Twice(KeyRef),
    #[error("CMK {0:?} has a name that cannot be recorded")]
    Name(KeyRef),
    #[error("the names of the directory's CMKs take {0} bytes, and its record has room for {KEYS_MAX}")]
    TooLong(usize),
}

impl DirRecord {
    /// 59 characters without keys, at most `ENCODED_MAX` with such as `check_keys` allows.
    pub fn encode(&self, mac_key: &Secret32) -> Result<Vec<u8>, KeysError> {
        let mut record = Vec::with_capacity(RECORD_MAX);
        record.extend_from_slice(&self.id);
        record.extend_from_slice(&self.parent);
        if let Some(keys) = &self.keys {
            check_keys(keys)?;
            for KeyRef { provider, key } in keys.iter() {
                // Both fit: the list is at most KEYS_MAX long.
                record.push(provider.len() as u8);
                record.extend_from_slice(provider.as_bytes());
                record.extend_from_slice(&(key.len() as u16).to_le_bytes());
                record.extend_from_slice(key.as_bytes());
            }
        }
        let mac = mac(mac_key, &record);
        record.extend_from_slice(&mac);
        Ok(BASE64URL_NOPAD.encode(&record).into_bytes())
    }

    /// What is not authentic is not looked at.
    pub fn decode(target: &[u8], mac_key: &Secret32) -> Result<Self, AuthError> {
        if !(ENCODED_LEN..=ENCODED_MAX).contains(&target.len()) {
            return Err(AuthError);
        }
        let record = BASE64URL_NOPAD.decode(target).map_err(|_| AuthError)?;
        let (said, tag) = record.split_last_chunk::<MAC_LEN>().ok_or(AuthError)?;
        if !mac_eq(tag, &mac(mac_key, said)) {
            return Err(AuthError);
        }
        let (id, rest) = said.split_first_chunk().ok_or(AuthError)?;
        let (parent, list) = rest.split_first_chunk().ok_or(AuthError)?;
        Ok(Self { id: *id, parent: *parent, keys: parse_keys(list).ok_or(AuthError)? })
    }
}

/// Id and parent as a record claims them, where it has the form of one. Nothing of it is authentic.
pub fn claimed_ids(target: &[u8]) -> Option<(DirId, DirId)> {
    if !(ENCODED_LEN..=ENCODED_MAX).contains(&target.len()) {
        return None;
    }
    let record = BASE64URL_NOPAD.decode(target).ok()?;
    let (said, _) = record.split_last_chunk::<MAC_LEN>()?;
    let (id, rest) = said.split_first_chunk()?;
    let (parent, list) = rest.split_first_chunk()?;
    parse_keys(list)?;
    Some((*id, *parent))
}

/// The first 12 bytes of the HMAC of everything before it.
fn mac(key: &Secret32, said: &[u8]) -> [u8; MAC_LEN] {
    let full = hmac_sha256(key, &[said]);
    let mut mac = [0; MAC_LEN];
    mac.copy_from_slice(&full[..MAC_LEN]);
    mac
}

/// Whether a list can stand in a record.
pub fn check_keys(keys: &[KeyRef]) -> Result<(), KeysError> {
    if keys.is_empty() {
        return Err(KeysError::Empty);
    }
    if let Some(key) = keys.iter().find(|key| !key.is_well_formed()) {
        return Err(KeysError::Name(key.clone()));
    }
    if let Some((_, key)) = keys.iter().enumerate().find(|(at, key)| keys[..*at].contains(key)) {
        return Err(KeysError::Twice(key.clone()));
    }
    let len = keys.iter().map(|k| 3 + k.provider.len() + k.key.len()).sum();
    if len > KEYS_MAX { Err(KeysError::TooLong(len)) } else { Ok(()) }
}

/// `None`: malformed. An empty list is no group.
fn parse_keys(mut list: &[u8]) -> Option<KeyGroup> {
    if list.is_empty() {
        return Some(None);
    }
    let mut keys: Vec<KeyRef> = Vec::new();
    while let Some((&len, rest)) = list.split_first() {
        let (provider, rest) = rest.split_at_checked(usize::from(len)).filter(|_| usize::from(len) <= PROVIDER_MAX)?;
        let (len, rest) = rest.split_first_chunk()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let key = KeyRef { provider: text(provider)?, key: text(key)? };
        if !well_formed(&key.provider, &key.key) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
        list = rest;
    }
    Some(Some(keys.into()))
}

#[cfg(test)]
mod tests;
