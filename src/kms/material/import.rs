//! The way of material into the service: the key it is wrapped under, and the unwrapping. Knows no import token and no store.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use zeroize::Zeroizing;

use super::{EncryptionAlgorithm, KeySpec, Material, MaterialError, WrappingAlgorithm, WrappingKeySpec};

/// Bytes of wrapped material, at most; AWS's limit.
pub const ENCRYPTED_MATERIAL_MAX: usize = 6144;

/// An RSA key pair that exists for one import. Prints its spec only.
#[derive(Debug)]
pub struct WrappingKey(Material);

impl WrappingKey {
    pub fn generate(spec: WrappingKeySpec) -> Result<Self, MaterialError> {
        Material::generate(spec.key_spec()).map(Self)
    }

    /// From [`WrappingKey::to_bytes`].
    pub fn from_bytes(spec: WrappingKeySpec, pkcs8: &[u8]) -> Result<Self, MaterialError> {
        Material::from_bytes(spec.key_spec(), pkcs8).map(Self)
    }

    /// PKCS#8, DER.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        self.0.to_bytes()
    }

    /// X.509 SubjectPublicKeyInfo, DER: what GetParametersForImport answers.
    pub fn public_key_der(&self) -> Result<Vec<u8>, MaterialError> {
        self.0.public_key_der()
    }

    /// The bytes inside `wrapped`, which may be no key at all. Every failure is the same `InvalidCiphertext`.
    ///
    /// `RSA_AES_KEY_WRAP_*` is PKCS#11's CKM_RSA_AES_KEY_WRAP: an AES-256 key under RSA-OAEP, as long as the modulus, and
    /// behind it the material under that key by AES key wrap with padding (RFC 5649).
    pub fn unwrap(&self, algorithm: WrappingAlgorithm, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let invalid = MaterialError::InvalidCiphertext;
        if wrapped.len() > ENCRYPTED_MATERIAL_MAX {
            return Err(invalid);
        }
        let (oaep, under_aes) = match algorithm {
            WrappingAlgorithm::RsaesOaepSha1 => (EncryptionAlgorithm::RsaesOaepSha1, false),
            WrappingAlgorithm::RsaesOaepSha256 => (EncryptionAlgorithm::RsaesOaepSha256, false),
            WrappingAlgorithm::RsaAesKeyWrapSha1 => (EncryptionAlgorithm::RsaesOaepSha1, true),
            WrappingAlgorithm::RsaAesKeyWrapSha256 => (EncryptionAlgorithm::RsaesOaepSha256, true),
        };
        if !under_aes {
            return self.0.decrypt(oaep, wrapped);
        }
        let modulus = self.0.spec().modulus_bits().ok_or(MaterialError::WrongSpec)? / 8;
        let (key, material) = wrapped.split_at_checked(modulus).ok_or(invalid)?;
        let key = self.0.decrypt(oaep, key)?;
        let key = AesKek::new(&AES_256, &key).map_err(|_| invalid)?;
        let mut out = Zeroizing::new(vec![0; material.len()]);
        let len = key.unwrap_with_padding(material, &mut out).map_err(|_| invalid)?.len();
        out.truncate(len);
        Ok(out)
    }

    /// [`WrappingKey::unwrap`], and what comes out is one key of `spec`, or `InvalidMaterial`.
    pub fn unwrap_material(
        &self,
        algorithm: WrappingAlgorithm,
        wrapped: &[u8],
        spec: KeySpec,
    ) -> Result<Material, MaterialError> {
        Material::from_bytes(spec, &self.unwrap(algorithm, wrapped)?)
    }
}

/// One DER SEQUENCE and nothing behind it: the library ignores what follows.
pub(super) fn is_one_der_sequence(der: &[u8]) -> bool {
    let Some((&[0x30, first], rest)) = der.split_first_chunk::<2>() else { return false };
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Two bytes of length suffice for every key and every request.
        0x81 | 0x82 => {
            let Some((len, rest)) = rest.split_at_checked(usize::from(first & 3)) else { return false };
            (len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return false,
    };
    rest.len() == len
}
