//! AES-256-SIV (RFC 5297): deterministic, misuse-resistant encryption of short strings. Knows no directories.

use aes_siv::{KeyInit, Tag, siv::Aes256Siv};
use parking_lot::Mutex;

use super::{
    AuthError,
    kdf::Prk,
    secret::{Secret32, wiping_stack},
};
use crate::sys::locked::Locked;

/// Bytes that encryption adds in front (the synthetic IV).
pub const SIV_LEN: usize = 16;

/// How many threads find a ready key schedule before one has to compute its own.
const POOL: usize = 4;

/// A 512-bit SIV key derived from one secret. `Send + Sync`.
pub struct SivKey {
    /// S2V key (first half) and CTR key (second half).
    key: Locked<[u8; 64]>,
    /// Ready ciphers (the library works on `&mut`); each lock is held for one message.
    ready: [Mutex<Locked<Aes256Siv>>; POOL],
}

impl SivKey {
    /// Two labelled halves of `key` make the 64-byte SIV key: `HKDF-Expand(key, label ‖ " s2v")` and `… ‖ " ctr"`.
    pub fn derive(key: &Secret32, label: &[u8]) -> Self {
        let prk = Prk::from_uniform(key);
        let mut both = Locked::<[u8; 64]>::zeroed();
        both[..32].copy_from_slice(prk.expand(&[label, b" s2v"]).expose());
        both[32..].copy_from_slice(prk.expand(&[label, b" ctr"]).expose());
        Self::from_halves(both)
    }

    fn from_halves(key: Locked<[u8; 64]>) -> Self {
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
                // The library makes the schedule of the CTR half anew for each message, on the stack.
                return wiping_stack(|| run(&mut cipher));
            }
        }
        let mut cipher = cipher(&self.key);
        wiping_stack(|| run(&mut cipher))
    }
}

fn cipher(key: &[u8; 64]) -> Locked<Aes256Siv> {
    wiping_stack(|| Locked::new(Aes256Siv::new(key.into())))
}

#[cfg(test)]
mod tests {
    use aes_gcm::aes::{
        Aes128, Aes256,
        cipher::{BlockCipherEncrypt, KeyInit as _},
    };
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    /// RFC 5297 written down naively over any block cipher, as the oracle: checked against the RFC's own vectors
    /// (which are for AES-128) and then compared with the library for AES-256.
    struct Reference<'a> {
        s2v: &'a dyn Fn([u8; 16]) -> [u8; 16],
        ctr: &'a dyn Fn([u8; 16]) -> [u8; 16],
    }

    fn dbl(block: [u8; 16]) -> [u8; 16] {
        let x = u128::from_be_bytes(block);
        ((x << 1) ^ if x >> 127 == 1 { 0x87 } else { 0 }).to_be_bytes()
    }

    fn xor(a: [u8; 16], b: &[u8]) -> [u8; 16] {
        std::array::from_fn(|i| a[i] ^ b.get(i).copied().unwrap_or(0))
    }

    impl Reference<'_> {
        fn cmac(&self, message: &[u8]) -> [u8; 16] {
            let k1 = dbl((self.s2v)([0; 16]));
            let whole = !message.is_empty() && message.len().is_multiple_of(16);
            let last_at = if whole { message.len() - 16 } else { message.len() / 16 * 16 };
            let state = message[..last_at].chunks(16).fold([0; 16], |state, block| (self.s2v)(xor(state, block)));
            let last = if whole {
                xor(k1, &message[last_at..])
            } else {
                xor(dbl(k1), &[&message[last_at..], &[0x80]].concat())
            };
            (self.s2v)(xor(state, &last))
        }

        fn seal(&self, associated: &[&[u8]], plaintext: &[u8]) -> Vec<u8> {
            let d = associated.iter().fold(self.cmac(&[0; 16]), |d, s| xor(dbl(d), &self.cmac(s)));
            let t = if plaintext.len() >= 16 {
                let (head, tail) = plaintext.split_at(plaintext.len() - 16);
                [head, &xor(d, tail)].concat()
            } else {
                xor(dbl(d), &[plaintext, &[0x80]].concat()).to_vec()
            };
            let siv = self.cmac(&t);
            let mut counter = u128::from_be_bytes(siv) & !(1 << 63) & !(1 << 31);
            let mut out = siv.to_vec();
            for chunk in plaintext.chunks(16) {
                out.extend_from_slice(&xor((self.ctr)(counter.to_be_bytes()), chunk)[..chunk.len()]);
                counter = counter.wrapping_add(1);
            }
            out
        }
    }

    fn unhex(s: &str) -> Vec<u8> {
        HEXLOWER.decode(s.as_bytes()).unwrap()
    }

    fn reference_128(key: &[u8], associated: &[&[u8]], plaintext: &[u8]) -> String {
        let (a, b) = (Aes128::new_from_slice(&key[..16]).unwrap(), Aes128::new_from_slice(&key[16..]).unwrap());
        let run = |c: &Aes128, block: [u8; 16]| {
            let mut block = block.into();
            c.encrypt_block(&mut block);
            block.into()
        };
        HEXLOWER.encode(&Reference { s2v: &|x| run(&a, x), ctr: &|x| run(&b, x) }.seal(associated, plaintext))
    }

    fn reference_256(key: &[u8; 64], associated: &[&[u8]], plaintext: &[u8]) -> Vec<u8> {
        let (a, b) = (Aes256::new_from_slice(&key[..32]).unwrap(), Aes256::new_from_slice(&key[32..]).unwrap());
        let run = |c: &Aes256, block: [u8; 16]| {
            let mut block = block.into();
            c.encrypt_block(&mut block);
            block.into()
        };
        Reference { s2v: &|x| run(&a, x), ctr: &|x| run(&b, x) }.seal(associated, plaintext)
    }

    /// RFC 5297 appendices A.1 and A.2.
    #[test]
    fn the_oracle_meets_the_rfc() {
        assert_eq!(
            reference_128(
                &unhex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"),
                &[&unhex("101112131415161718191a1b1c1d1e1f2021222324252627")],
                &unhex("112233445566778899aabbccddee"),
            ),
            "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"
        );
        assert_eq!(
            reference_128(
                &unhex("7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f"),
                &[
                    &unhex("00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100"),
                    &unhex("102030405060708090a0"),
                    &unhex("09f911029d74e35bd84156c5635688c0"),
                ],
                b"this is some plaintext to encrypt using SIV-AES",
            ),
            concat!(
                "7bdb6e3b432667eb06f4d14bff2fbd0fcb900f2fddbe404326601965c889bf17",
                "dba77ceb094fa663b7a3f748ba8af829ea64ad544a272e9c485b62a3fd5c0d"
            )
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn agrees_with_the_oracle(
            key in proptest::collection::vec(any::<u8>(), 64),
            associated in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..3),
            plain in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let key: [u8; 64] = key.try_into().unwrap();
            let associated: Vec<&[u8]> = associated.iter().map(Vec::as_slice).collect();
            let siv = SivKey::from_halves(Locked::new(key));
            let sealed = siv.seal(&associated, &plain);
            prop_assert_eq!(&sealed, &reference_256(&key, &associated, &plain));
            prop_assert_eq!(siv.open(&associated, &sealed), Ok(plain));
        }
    }

    #[test]
    fn derivation_separates_labels() {
        let key = Secret32::from_bytes([1; 32]);
        let (a, b) = (SivKey::derive(&key, b"a"), SivKey::derive(&key, b"b"));
        assert_ne!(*a.key, *b.key);
        assert_ne!(a.key[..32], a.key[32..]);
        assert_eq!(b.open(&[], &a.seal(&[], b"x")), Err(AuthError));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let siv = SivKey::derive(&Secret32::from_bytes([1; 32]), b"t");
        let sealed = siv.seal(&[b"dir"], b"a name of more than sixteen bytes");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(siv.open(&[b"dir"], &bad).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(siv.open(&[b"dir"], &sealed[..len]).is_err(), "cut at {len}");
        }
        assert!(siv.open(&[b"Dir"], &sealed).is_err());
        assert!(siv.open(&[b"di", b"r"], &sealed).is_err());
    }

    #[test]
    fn more_threads_than_ready_ciphers() {
        let siv = SivKey::derive(&Secret32::from_bytes([1; 32]), b"t");
        let expected = siv.seal(&[b"dir"], b"name");
        // With every ready cipher taken, a call makes its own.
        let taken: Vec<_> = siv.ready.iter().map(|m| m.lock()).collect();
        assert_eq!(siv.seal(&[b"dir"], b"name"), expected);
        drop(taken);
        std::thread::scope(|s| {
            for _ in 0..2 * POOL {
                s.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(siv.seal(&[b"dir"], b"name"), expected);
                    }
                });
            }
        });
    }
}
