//! AES-256-GCM over content, on the fast library. Knows neither blocks nor files; nonces and AAD are passed in.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{
    AuthError,
    secret::{Secret32, wiping_stack},
};
use crate::sys::cipher_memory::for_keys;

/// Bytes of a nonce (NIST SP 800-38D, the 96-bit case).
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;

/// A ready AES-256-GCM key schedule, in key memory and wiped on drop. `Send + Sync`; shared by `Arc`.
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    pub fn new(key: &Secret32) -> Self {
        // Fails for a wrong key length only, which the type rules out.
        let key = wiping_stack(|| for_keys(|| UnboundKey::new(&AES_256_GCM, key.expose()))).expect("a key of 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts `in_out` in place and returns the tag. A nonce must never come twice under one key.
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        // Fails for messages near 64 GiB only; callers seal one block or one attribute.
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), in_out).expect("a short message");
        let mut out = [0u8; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Decrypts `ciphertext` into `out` only if the tag holds; on failure `out` is zeros.
    /// Unequal lengths count as a failure.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AuthError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, out).map_err(|_| {
            out.fill(0);
            AuthError
        })
    }
}

#[cfg(test)]
mod tests {
    use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn hex<const N: usize>(s: &str) -> [u8; N] {
        HEXLOWER.decode(s.as_bytes()).unwrap().try_into().unwrap()
    }

    /// The GCM specification's test case 16 (McGrew and Viega, "The Galois/Counter Mode of Operation").
    #[test]
    fn gcm_specification_case_16() {
        let key = AeadKey::new(&Secret32::from_bytes(hex(
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        )));
        let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888");
        let aad: [u8; 20] = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plain: [u8; 60] = hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ));
        let mut buf = plain;
        let tag = key.seal(&nonce, &aad, &mut buf);
        assert_eq!(
            HEXLOWER.encode(&buf),
            concat!(
                "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
                "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
            )
        );
        assert_eq!(tag, hex("76fc6ece0f4e1768cddf8853bb2d551b"));
        let mut out = [0xaau8; 60];
        key.open(&nonce, &aad, &buf, &tag, &mut out).unwrap();
        assert_eq!(out, plain);
    }

    #[test]
    fn a_refused_message_leaves_zeros() {
        let key = AeadKey::new(&Secret32::from_bytes([7; 32]));
        let mut buf = [0x55u8; 100];
        let mut tag = key.seal(&[1; 12], b"aad", &mut buf);
        tag[0] ^= 1;
        let mut out = [0xffu8; 100];
        assert_eq!(key.open(&[1; 12], b"aad", &buf, &tag, &mut out), Err(AuthError));
        assert_eq!(out, [0u8; 100]);
        tag[0] ^= 1;
        let mut short = [0xffu8; 99];
        assert_eq!(key.open(&[1; 12], b"aad", &buf, &tag, &mut short), Err(AuthError));
        assert_eq!(short, [0u8; 99]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Two independent implementations agree in both directions.
        #[test]
        fn agrees_with_the_pure_rust_oracle(
            key in any::<[u8; 32]>(),
            nonce in any::<[u8; 12]>(),
            aad in proptest::collection::vec(any::<u8>(), 0..80),
            plain in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let fast = AeadKey::new(&Secret32::from_bytes(key));
            let oracle = Aes256Gcm::new(&key.into());
            let mut ours = plain.clone();
            let tag = fast.seal(&nonce, &aad, &mut ours);
            let mut theirs = plain.clone();
            let oracle_tag =
                oracle.encrypt_inout_detached(&nonce.into(), &aad, theirs.as_mut_slice().into()).unwrap();
            prop_assert_eq!(&ours, &theirs);
            prop_assert_eq!(&tag[..], &oracle_tag[..]);
            let mut out = vec![0u8; plain.len()];
            fast.open(&nonce, &aad, &theirs, &tag, &mut out).unwrap();
            prop_assert_eq!(&out, &plain);
            oracle.decrypt_inout_detached(&nonce.into(), &aad, ours.as_mut_slice().into(), &tag.into()).unwrap();
            prop_assert_eq!(ours, plain);
        }
    }
}
