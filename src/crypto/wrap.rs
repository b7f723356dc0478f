//! Wrapping one 32-byte key under another (AES-256-GCM, pure Rust). Knows no key hierarchy.

use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};

use super::{
    AuthError,
    secret::{Secret32, wiping_stack},
};

pub const WRAPPED_LEN: usize = 12 + 32 + 16;

/// `nonce 12 ‖ ciphertext 32 ‖ tag 16`. The nonce is drawn by the caller and must not come twice under one `kek`.
pub fn wrap_key(kek: &Secret32, nonce: &[u8; 12], aad: &[u8], key: &Secret32) -> [u8; WRAPPED_LEN] {
    let mut out = [0u8; WRAPPED_LEN];
    out[..12].copy_from_slice(nonce);
    out[12..44].copy_from_slice(key.expose());
    wiping_stack(|| {
        let tag = Aes256Gcm::new(kek.expose().into())
            .encrypt_inout_detached(nonce.into(), aad, (&mut out[12..44]).into())
            .expect("32 bytes are far below GCM's limit");
        out[44..].copy_from_slice(&tag);
    });
    out
}

/// The key inside `wrapped`; any other length than `WRAPPED_LEN` fails.
pub fn unwrap_key(kek: &Secret32, aad: &[u8], wrapped: &[u8]) -> Result<Secret32, AuthError> {
    let wrapped: &[u8; WRAPPED_LEN] = wrapped.try_into().map_err(|_| AuthError)?;
    let (nonce, rest) = wrapped.split_first_chunk::<12>().ok_or(AuthError)?;
    let (ciphertext, tag) = rest.split_first_chunk::<32>().ok_or(AuthError)?;
    let tag: &[u8; 16] = tag.try_into().map_err(|_| AuthError)?;
    Secret32::written_by(|out| {
        out.copy_from_slice(ciphertext);
        wiping_stack(|| {
            Aes256Gcm::new(kek.expose().into())
                .decrypt_inout_detached(nonce.into(), aad, out.as_mut_slice().into(), tag.into())
                .map_err(|_| AuthError)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::aead::AeadKey;

    #[test]
    fn round_trip_and_every_flipped_bit() {
        let kek = Secret32::from_bytes([1; 32]);
        let key = Secret32::from_bytes([2; 32]);
        let wrapped = wrap_key(&kek, &[3; 12], b"context", &key);
        assert_eq!(unwrap_key(&kek, b"context", &wrapped).unwrap().expose(), key.expose());
        for bit in 0..WRAPPED_LEN * 8 {
            let mut bad = wrapped;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap_key(&kek, b"context", &bad).is_err(), "bit {bit}");
        }
        assert!(unwrap_key(&kek, b"Context", &wrapped).is_err());
        assert!(unwrap_key(&key, b"context", &wrapped).is_err());
        assert!(unwrap_key(&kek, b"context", &wrapped[..59]).is_err());
        assert!(unwrap_key(&kek, b"context", &[]).is_err());
    }

    #[test]
    fn agrees_with_the_fast_library() {
        let kek = Secret32::from_bytes([0x21; 32]);
        let key = Secret32::from_bytes([0x43; 32]);
        let wrapped = wrap_key(&kek, &[9; 12], b"aad", &key);
        let mut buf = *key.expose();
        let tag = AeadKey::new(&kek).seal(&[9; 12], b"aad", &mut buf);
        assert_eq!(wrapped[12..44], buf);
        assert_eq!(wrapped[44..], tag);
    }
}
