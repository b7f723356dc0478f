//! The sub-keys of one file: commitment, header MAC, block keys, xattr key. Knows no byte layout.

use std::sync::Arc;

use super::{aead::AeadKey, secret::Secret32};

/// Everything derived from one file's DEK: `PRK = HKDF-Extract(file_id, DEK)`, expanded with labels.
pub struct FileKeys {
    _private: (),
}

impl FileKeys {
    pub fn derive(file_id: &[u8; 32], dek: &Secret32) -> Self {
        let _ = (file_id, dek);
        todo!()
    }
    /// Key commitment stored in the header: a wrong DEK is recognised before any MAC is trusted.
    pub fn commitment(&self) -> [u8; 32] {
        todo!()
    }
    /// MAC of the header's authenticated part.
    pub fn header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        let _ = bytes;
        todo!()
    }
    /// The block key of `salt`, from a small cache (bounded, most recent kept).
    pub fn block_key(&self, salt: [u8; 4]) -> Arc<AeadKey> {
        let _ = salt;
        todo!()
    }
    /// The key for this file's extended attributes.
    pub fn xattr_key(&self) -> Secret32 {
        todo!()
    }
}
