//! One self-contained 4096-byte block: `[nonce 12][tag 16][key_salt 4][valid_len 2][flags 2][reserved 12][ciphertext 4048]`.
//! Knows neither files nor sizes beyond one block.

use super::geometry::{PAGE, PLAIN};
use crate::crypto::{AuthError, aead::AeadKey};

/// The clear fields of a block, unauthenticated until it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek {
    pub key_salt: [u8; 4],
    /// Plaintext bytes that were valid when the block was written: 1..=PLAIN.
    pub valid_len: u16,
}

/// `None` for an all-zero page (a hole); the fields are not yet authenticated.
pub fn peek(page: &[u8; PAGE]) -> Option<Peek> {
    let _ = page;
    todo!()
}

/// Whether every byte of the page is zero.
pub fn is_hole(page: &[u8]) -> bool {
    let _ = page;
    todo!()
}

/// Seals the plaintext that already stands at `page[48..]` (zero-padded past `valid_len`) in place.
pub fn seal(key: &AeadKey, key_salt: [u8; 4], nonce: &[u8; 12], index: u64, valid_len: u16, page: &mut [u8; PAGE]) {
    let _ = (key, key_salt, nonce, index, valid_len, page);
    todo!()
}

/// Opens `page` into `out` and returns its authenticated `valid_len`.
pub fn open(key: &AeadKey, index: u64, page: &[u8; PAGE], out: &mut [u8; PLAIN]) -> Result<u16, AuthError> {
    let _ = (key, index, page, out);
    todo!()
}
