//! Wrapping one 32-byte key under another (AES-256-GCM, pure Rust). Knows no key hierarchy.

use super::{AuthError, secret::Secret32};

pub const WRAPPED_LEN: usize = 12 + 32 + 16;

/// `nonce 12 ‖ ciphertext 32 ‖ tag 16`. The nonce is drawn by the caller.
pub fn wrap_key(kek: &Secret32, nonce: &[u8; 12], aad: &[u8], key: &Secret32) -> [u8; WRAPPED_LEN] {
    let _ = (kek, nonce, aad, key);
    todo!()
}

pub fn unwrap_key(kek: &Secret32, aad: &[u8], wrapped: &[u8]) -> Result<Secret32, AuthError> {
    let _ = (kek, aad, wrapped);
    todo!()
}
