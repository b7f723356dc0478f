//! AES-256-SIV (RFC 5297): deterministic, misuse-resistant encryption of short strings. Knows no directories.

use aes_siv::{KeyInit, Tag, siv::Aes256Siv};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::{AuthError, kdf::Prk, secret::Secret32};

/// Bytes that encryption adds in front (the synthetic IV).
pub const SIV_LEN: usize = 16;

/// How many threads find a ready key schedule before one has to compute its own.
const POOL: usize = 4;

/// A 512-bit SIV key derived from one secret. `Send + Sync`.
pub struct SivKey {
    /// S2V key (first half) and CTR key (second half).
    key: Zeroizing<[u8; 64]>,
    /// Ready ciphers (the library works on `&mut`); each lock is held for one message.
    ready: [Mutex<Aes256Siv>; POOL],
}

impl SivKey {
    /// Two labelled halves of `key` make the 64-byte SIV key: `HKDF-Expand(key, label ‖ " s2v")` and `… ‖ " ctr"`.
    pub fn derive(key: &Secret32, label: &[u8]) -> Self {
        let prk = Prk::from_uniform(key);
        let mut both = Zeroizing::new([0u8; 64]);
        both[..32].copy_from_slice(prk.expand(&[label, b" s2v"]).expose());
        both[32..].copy_from_slice(prk.expand(&[label, b" ctr"]).expose());
        Self::from_halves(both)
    }

    fn from_halves(key: Zeroizing<[u8; 64]>) -> Self {
        let ready = std::array::from_fn(|_| Mutex::new(cipher(&key)));
        Self { key, ready }
    }

    /// `siv 16 ‖ ciphertext`, same input gives same output. At most 126 associated strings (RFC 5297 section 7).
    pub fn seal(&self, associated: &[&[u8]], plaintext: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; SIV_LEN + plaintext.len()];
        out[SIV_LEN..].copy_from_slice(plaintext);
        self.seal_in_place(associated, &mut out);
        out
    }

    /// The same without allocation: `buf` holds 16 bytes of room and then the plaintext.
    pub fn seal_in_place(&self, associated: &[&[u8]], buf: &mut [u8]) {
        let (siv, text) = buf.split_at_mut(SIV_LEN);
        let tag = self
            .with_cipher(|c| c.encrypt_inout_detached(associated, text.into()))
            .expect("fewer than 127 associated strings");
        siv.copy_from_slice(&tag);
    }

    pub fn open(&self, associated: &[&[u8]], sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        let mut buf = sealed.to_vec();
        self.open_in_place(associated, &mut buf)?;
        buf.drain(..SIV_LEN);
        Ok(buf)
    }

    /// The same without allocation: `buf` holds `siv 16 ‖ ciphertext`, and the plaintext from byte 16 on afterwards.
    pub fn open_in_place(&self, associated: &[&[u8]], buf: &mut [u8]) -> Result<(), AuthError> {
        let (siv, text) = buf.split_first_chunk_mut::<SIV_LEN>().ok_or(AuthError)?;
        let tag = Tag::from(*siv);
        self.with_cipher(|c| c.decrypt_inout_detached(associated, text.into(), &tag)).map_err(|_| AuthError)
    }

    fn with_cipher<R>(&self, run: impl FnOnce(&mut Aes256Siv) -> R) -> R {
        for slot in &self.ready {
            if let Some(mut cipher) = slot.try_lock() {
                return run(&mut cipher);
            }
        }
        run(&mut cipher(&self.key))
    }
}

fn cipher(key: &[u8; 64]) -> Aes256Siv {
    Aes256Siv::new(key.into())
}
