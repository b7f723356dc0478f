//! Ciphertext under a symmetric key: what AWS calls a CiphertextBlob. Knows one message and its key; no store, no policy.
//!
//! ```text
//! offset  bytes
//!      0      1  version: 0x01
//!      1     16  key id (the UUID)
//!     17     32  material id
//!     49     16  salt
//!     65     12  nonce
//!     77      n  ciphertext, as long as the plaintext (1..=4096)
//!   77+n     16  tag
//! ```
//! The message's key is HKDF-Expand-SHA256(material, "envelopefs kms message key v1" ‖ salt) (RFC 5869; material is uniform),
//! the cipher AES-256-GCM under it, and the associated data are bytes 0..65 followed by the encryption context.
//!
//! Salt and nonce are 224 random bits together. A pair (message key, nonce) comes twice among q messages with probability at
//! most q² / 2^225: below 2^-65 for 2^80 messages under one material, so no count of messages is kept and none is limited.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::{KeyId, Material, MaterialError, MaterialId};
use crate::crypto::aead::{AeadKey, NONCE_LEN, TAG_LEN};
use crate::crypto::kdf::Prk;
use crate::crypto::random;
use crate::crypto::secret::Secret32;

/// Bytes of plaintext at most; AWS's limit.
pub const PLAINTEXT_MAX: usize = 4096;
/// Bytes that a ciphertext is longer than its plaintext.
pub const OVERHEAD: usize = NONCE_AT + NONCE_LEN + TAG_LEN;

const VERSION: u8 = 1;
const MESSAGE_KEY: &[u8] = b"envelopefs kms message key v1";
const SALT_LEN: usize = 16;
const SALT_AT: usize = 1 + 16 + 32;
const NONCE_AT: usize = SALT_AT + SALT_LEN;
const TEXT_AT: usize = NONCE_AT + NONCE_LEN;

/// What a ciphertext says about itself, before anything has been proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    pub key: KeyId,
    pub material: MaterialId,
}

/// One byte string for one set of pairs: `count u32`, then by name `len u32 ‖ name ‖ len u32 ‖ value`, little-endian.
/// No context and an empty one are the same.
pub fn canonical_context(context: &BTreeMap<String, String>) -> Vec<u8> {
    // Lengths come from a request's body, which is far smaller than 4 GiB.
    let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = length(context.len()).to_vec();
    for part in context.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(&length(part.len()));
        out.extend_from_slice(part.as_bytes());
    }
    out
}

/// Which key and which material of it a ciphertext names. Nothing is proved by this: only [`open`] does.
pub fn parse(blob: &[u8]) -> Result<Named, MaterialError> {
    let parts = Parts::of(blob)?;
    Ok(Named { key: *parts.key, material: *parts.material })
}

/// Encrypts `plaintext` under the symmetric key `material`, which `named` names. `context` is [`canonical_context`]'s.
pub fn seal(material: &Material, named: &Named, context: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, MaterialError> {
    let material = material.symmetric()?;
    if plaintext.len() > PLAINTEXT_MAX {
        return Err(MaterialError::PlaintextTooLong { limit: PLAINTEXT_MAX });
    }
    let salt: [u8; SALT_LEN] = random::array();
    let nonce: [u8; NONCE_LEN] = random::array();
    let mut blob = Vec::with_capacity(plaintext.len() + OVERHEAD);
    blob.push(VERSION);
    blob.extend_from_slice(&named.key);
    blob.extend_from_slice(&named.material);
    blob.extend_from_slice(&salt);
    let aad = [&blob[..], context].concat();
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(plaintext);
    let tag = message_key(material, &salt).seal(&nonce, &aad, &mut blob[TEXT_AT..]);
    blob.extend_from_slice(&tag);
    Ok(blob)
}

/// The plaintext, where `material` and `context` are those it was sealed under and no bit of `blob` has changed.
pub fn open(material: &Material, context: &[u8], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
    let material = material.symmetric()?;
    let parts = Parts::of(blob)?;
    let aad = [&blob[..NONCE_AT], context].concat();
    let mut plaintext = Zeroizing::new(vec![0; parts.text.len()]);
    message_key(material, parts.salt)
        .open(parts.nonce, &aad, parts.text, parts.tag, &mut plaintext)
        .map_err(|_| MaterialError::InvalidCiphertext)?;
    Ok(plaintext)
}

fn message_key(material: &Secret32, salt: &[u8; SALT_LEN]) -> AeadKey {
    AeadKey::new(&Prk::from_uniform(material).expand(&[MESSAGE_KEY, salt]))
}

struct Parts<'a> {
    key: &'a KeyId,
    material: &'a MaterialId,
    salt: &'a [u8; SALT_LEN],
    nonce: &'a [u8; NONCE_LEN],
    text: &'a [u8],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> Parts<'a> {
    fn of(blob: &'a [u8]) -> Result<Self, MaterialError> {
        Self::split(blob).ok_or(MaterialError::InvalidCiphertext)
    }

    fn split(blob: &'a [u8]) -> Option<Self> {
        let rest = blob.strip_prefix(&[VERSION])?;
        let (key, rest) = rest.split_first_chunk()?;
        let (material, rest) = rest.split_first_chunk()?;
        let (salt, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (text, tag) = rest.split_last_chunk()?;
        (text.len() <= PLAINTEXT_MAX).then_some(Self { key, material, salt, nonce, text, tag })
    }
}

#[cfg(test)]
mod tests {
    use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};
    use hkdf::Hkdf;
    use proptest::prelude::*;
    use sha2::Sha256;

    use super::super::KeySpec;
    use super::*;

    const NAMED: Named = Named { key: [0x11; 16], material: [0x22; 32] };

    fn material(byte: u8) -> Material {
        Material::from_bytes(KeySpec::SymmetricDefault, &[byte; 32]).unwrap()
    }

    fn context(pairs: &[(&str, &str)]) -> Vec<u8> {
        canonical_context(&pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn every_length_comes_back_and_is_short_enough_for_the_wire() {
        let key = material(7);
        for len in [0, 1, 15, 16, 17, 4095, 4096] {
            let blob = seal(&key, &NAMED, b"c", &vec![len as u8; len]).unwrap();
            assert_eq!(blob.len(), len + OVERHEAD);
            assert!(blob.len() <= 6144);
            assert_eq!(parse(&blob), Ok(NAMED));
            assert_eq!(open(&key, b"c", &blob).unwrap()[..], vec![len as u8; len]);
        }
        assert_eq!(seal(&key, &NAMED, b"", &[0; 4097]), Err(MaterialError::PlaintextTooLong { limit: 4096 }));
    }

    #[test]
    fn two_encryptions_of_one_plaintext_share_nothing_that_is_secret() {
        let key = material(7);
        let [a, b] = [(); 2].map(|()| seal(&key, &NAMED, b"", &[0; 64]).unwrap());
        assert_eq!(a[..SALT_AT], b[..SALT_AT]);
        assert_ne!(a[SALT_AT..NONCE_AT], b[SALT_AT..NONCE_AT]);
        assert_ne!(a[NONCE_AT..TEXT_AT], b[NONCE_AT..TEXT_AT]);
        assert_ne!(a[TEXT_AT..], b[TEXT_AT..]);
    }

    #[test]
    fn any_changed_bit_and_any_other_length_is_refused() {
        let key = material(7);
        let blob = seal(&key, &NAMED, b"context", b"plaintext").unwrap();
        for bit in 0..blob.len() * 8 {
            let mut other = blob.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&key, b"context", &other).map(drop), Err(MaterialError::InvalidCiphertext), "bit {bit}");
        }
        for len in 0..blob.len() {
            assert_eq!(
                open(&key, b"context", &blob[..len]).map(drop),
                Err(MaterialError::InvalidCiphertext),
                "{len} bytes"
            );
            assert_eq!(open(&key, b"context", &blob[len + 1..]).map(drop), Err(MaterialError::InvalidCiphertext));
        }
        assert!(open(&key, b"context", &[&blob[..], b"\0"].concat()).is_err());
        assert!(open(&key, b"contexT", &blob).is_err());
        assert!(open(&key, b"", &blob).is_err());
        assert!(open(&material(8), b"context", &blob).is_err());
        assert!(open(&key, b"context", &blob).is_ok());
    }

    #[test]
    fn contexts_have_one_form_and_no_two_share_it() {
        assert_eq!(context(&[("a", "1"), ("b", "2")]), context(&[("b", "2"), ("a", "1")]));
        assert_eq!(context(&[]), 0u32.to_le_bytes());
        let different = [
            context(&[]),
            context(&[("", "")]),
            context(&[("a", "bc")]),
            context(&[("ab", "c")]),
            context(&[("abc", "")]),
            context(&[("a", "b"), ("c", "")]),
            context(&[("A", "bc")]),
        ];
        for (i, a) in different.iter().enumerate() {
            assert!(different[..i].iter().all(|b| b != a));
        }
        let bytes = [&1u32.to_le_bytes()[..], &1u32.to_le_bytes(), b"a", &2u32.to_le_bytes(), b"bc"].concat();
        assert_eq!(context(&[("a", "bc")]), bytes);
    }

    /// The format as it is written above, opened with other libraries.
    #[test]
    fn opens_as_it_is_specified() {
        let blob = seal(&material(9), &NAMED, b"context", b"plaintext").unwrap();
        let mut key = [0; 32];
        let info = [b"envelopefs kms message key v1", &blob[49..65]].concat();
        Hkdf::<Sha256>::from_prk(&[9; 32]).unwrap().expand(&info, &mut key).unwrap();
        let (nonce, text) = blob[65..].split_first_chunk::<12>().unwrap();
        let (text, tag) = text.split_last_chunk::<16>().unwrap();
        let mut text = text.to_vec();
        let aad = [&blob[..65], b"context"].concat();
        let cipher = Aes256Gcm::new(&key.into());
        cipher.decrypt_inout_detached(nonce.into(), &aad, text.as_mut_slice().into(), tag.into()).unwrap();
        assert_eq!(text, b"plaintext");
        assert_eq!(blob[..49], [&[1][..], &[0x11; 16], &[0x22; 32]].concat());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_open(blob in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&blob);
            prop_assert!(open(&material(1), b"", &blob).is_err());
            let ours = [&[VERSION][..], &blob].concat();
            prop_assert!(open(&material(1), b"", &ours).is_err());
        }
    }
}
