//! AES-256-SIV (RFC 5297): deterministic, misuse-resistant encryption of short strings. Knows no directories.

use super::{AuthError, secret::Secret32};

/// Bytes that encryption adds in front (the synthetic IV).
pub const SIV_LEN: usize = 16;

/// A 512-bit SIV key derived from one secret.
pub struct SivKey {
    _private: (),
}

impl SivKey {
    /// Two labelled halves of `key` make the 64-byte SIV key.
    pub fn derive(key: &Secret32, label: &[u8]) -> Self {
        let _ = (key, label);
        todo!()
    }
    /// `siv 16 ‖ ciphertext`, same input gives same output.
    pub fn seal(&self, associated: &[&[u8]], plaintext: &[u8]) -> Vec<u8> {
        let _ = (associated, plaintext);
        todo!()
    }
    pub fn open(&self, associated: &[&[u8]], sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        let _ = (associated, sealed);
        todo!()
    }
}
