//! The directory id record: target of the `.envelopefs.dir` symlink, base64url of `id 16 ‖ parent 16 ‖ MAC 12`.

use data_encoding::BASE64URL_NOPAD;

use super::DirId;
use crate::crypto::{
    AuthError,
    kdf::{hmac_sha256, mac_eq},
    secret::Secret32,
};

/// Parent of the root directory.
pub const NO_PARENT: DirId = [0; 16];

const MAC_LEN: usize = 12;
const RECORD_LEN: usize = 16 + 16 + MAC_LEN;
/// Characters of an encoded record: the most that ext4 keeps inside an inode.
pub const ENCODED_LEN: usize = 59;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirRecord {
    pub id: DirId,
    /// The parent's id when the directory was made; renames do not rewrite it.
    pub parent: DirId,
}

impl DirRecord {
    /// 59 characters.
    pub fn encode(&self, mac_key: &Secret32) -> Vec<u8> {
        let mut record = [0u8; RECORD_LEN];
        record[..16].copy_from_slice(&self.id);
        record[16..32].copy_from_slice(&self.parent);
        record[32..].copy_from_slice(&self.mac(mac_key));
        BASE64URL_NOPAD.encode(&record).into_bytes()
    }

    pub fn decode(target: &[u8], mac_key: &Secret32) -> Result<Self, AuthError> {
        let mut record = [0u8; RECORD_LEN];
        if target.len() != ENCODED_LEN || BASE64URL_NOPAD.decode_mut(target, &mut record).is_err() {
            return Err(AuthError);
        }
        let (mut id, mut parent) = ([0; 16], [0; 16]);
        id.copy_from_slice(&record[..16]);
        parent.copy_from_slice(&record[16..32]);
        let decoded = Self { id, parent };
        if mac_eq(&record[32..], &decoded.mac(mac_key)) { Ok(decoded) } else { Err(AuthError) }
    }

    /// The first 12 bytes of `HMAC(id ‖ parent)`.
    fn mac(&self, mac_key: &Secret32) -> [u8; MAC_LEN] {
        let full = hmac_sha256(mac_key, &[&self.id, &self.parent]);
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&full[..MAC_LEN]);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: DirRecord = DirRecord { id: [1; 16], parent: [2; 16] };

    #[test]
    fn round_trip_in_59_characters() {
        let key = Secret32::from_bytes([3; 32]);
        let target = RECORD.encode(&key);
        assert_eq!(target.len(), ENCODED_LEN);
        assert_eq!(DirRecord::decode(&target, &key), Ok(RECORD));
        assert!(DirRecord::decode(&target, &Secret32::from_bytes([4; 32])).is_err());
    }

    #[test]
    fn every_changed_character_is_refused() {
        let key = Secret32::from_bytes([3; 32]);
        let target = RECORD.encode(&key);
        for at in 0..target.len() {
            for other in [b'A', b'B', b'/', b'=', 0, 255] {
                let mut bad = target.clone();
                if bad[at] == other {
                    continue;
                }
                bad[at] = other;
                assert!(DirRecord::decode(&bad, &key).is_err(), "character {at} as {other}");
            }
        }
        assert!(DirRecord::decode(&target[..58], &key).is_err());
        assert!(DirRecord::decode(&[target.as_slice(), b"A"].concat(), &key).is_err());
        assert!(DirRecord::decode(b"", &key).is_err());
    }
}
