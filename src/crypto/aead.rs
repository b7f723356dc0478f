//! AES-256-GCM over content, on the fast library. Knows neither blocks nor files; nonces and AAD are passed in.

use super::{AuthError, secret::Secret32};

pub const NONCE_LEN: usize = 12;
pub const TAG_LEN: usize = 16;

/// A ready AES-256-GCM key schedule. `Send + Sync`; shared by `Arc`.
pub struct AeadKey {
    // aws_lc_rs::aead::LessSafeKey
}

impl AeadKey {
    pub fn new(key: &Secret32) -> Self {
        let _ = key;
        todo!()
    }
    /// Encrypts `in_out` in place and returns the tag.
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_LEN] {
        let _ = (nonce, aad, in_out);
        todo!()
    }
    /// Decrypts `ciphertext` into `out` (equal lengths) only if the tag holds; on failure `out` holds no plaintext.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let _ = (nonce, aad, ciphertext, tag, out);
        todo!()
    }
}
