//! The directory id record: target of the `.envelopefs.dir` symlink, base64url of `id 16 ‖ parent 16 ‖ MAC 12`.

use super::DirId;
use crate::crypto::{AuthError, secret::Secret32};

/// Parent of the root directory.
pub const NO_PARENT: DirId = [0; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirRecord {
    pub id: DirId,
    /// The parent's id when the directory was made; renames do not rewrite it.
    pub parent: DirId,
}

impl DirRecord {
    /// 59 characters.
    pub fn encode(&self, mac_key: &Secret32) -> Vec<u8> {
        let _ = mac_key;
        todo!()
    }
    pub fn decode(target: &[u8], mac_key: &Secret32) -> Result<Self, AuthError> {
        let _ = (target, mac_key);
        todo!()
    }
}
