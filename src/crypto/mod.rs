//! Pure cryptography: secrets, derivation, block AEAD, key wrap, deterministic names. Knows no formats and no files.

pub mod aead;
pub mod file_keys;
pub mod kdf;
pub mod random;
pub mod secret;
pub mod siv;
pub mod wrap;

/// An authentication check failed: wrong key, wrong place, or altered bytes. Says no more, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct AuthError;
