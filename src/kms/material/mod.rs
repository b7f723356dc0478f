//! Key material and everything that is done with it: pure cryptography in AWS's terms. Knows no store, no policy, no wire.
//!
//! Callers ask first whether a key's usage and spec allow an operation; here a pairing that does not exist is `WrongSpec`.
//! Making and using RSA keys takes milliseconds to seconds: not on a thread that serves others.

mod ecc;
mod import;
mod mac;
mod rsa;
mod spec;
pub mod symmetric;
#[cfg(test)]
mod tests;

use std::fmt;

use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

pub use import::{ENCRYPTED_MATERIAL_MAX, WrappingKey};
pub use spec::{
    DataKeySpec, EncryptionAlgorithm, KeyAgreementAlgorithm, KeySpec, KeyUsage, MacAlgorithm, MessageType,
    SigningAlgorithm, UnknownName, WrappingAlgorithm, WrappingKeySpec,
};

use crate::crypto::secret::{Secret32, wiping_stack};

/// The 16 bytes of a key's UUID.
pub type KeyId = [u8; 16];
/// Names one material of one key; AWS writes it as 64 hexadecimal digits.
pub type MaterialId = [u8; 32];

/// Bytes of a message that is signed or authenticated, at most; AWS's limit.
pub const MESSAGE_MAX: usize = 4096;

const MATERIAL_ID: &[u8] = b"envelopefs kms material id v1";

/// Why something was not done. Says nothing about secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    /// This kind of key knows no such operation or algorithm.
    #[error("the key cannot be used so")]
    WrongSpec,
    #[error("at most {limit} bytes can be encrypted at once")]
    PlaintextTooLong { limit: usize },
    /// `DIGEST` was said, and the message has another length than the algorithm's digests.
    #[error("Digest is invalid length for algorithm {0}.")]
    DigestLength(SigningAlgorithm),
    /// Altered, made under another key or context, or no ciphertext at all.
    #[error("the ciphertext cannot be decrypted")]
    InvalidCiphertext,
    #[error("the signature is not valid")]
    InvalidSignature,
    #[error("the MAC is not valid")]
    InvalidMac,
    /// Material from outside that is no key of the kind that was asked for.
    #[error("the key material is not a key of the spec {0}")]
    InvalidMaterial(KeySpec),
    /// No X.509 SubjectPublicKeyInfo (DER) of a point on the key's curve.
    #[error("the public key is not valid for this key")]
    InvalidPublicKey,
    /// The cryptographic library failed where nothing from outside is at fault.
    #[error("the cryptographic library failed")]
    Library,
}

/// The secret of one key. `Send + Sync`; shared by `Arc`. Prints its spec only.
pub struct Material {
    spec: KeySpec,
    secret: Secret,
}

enum Secret {
    Symmetric(Secret32),
    Mac(mac::Key),
    Rsa(Box<rsa::Key>),
    Ecc(Box<ecc::Key>),
}

impl Material {
    /// A new key from the kernel's randomness (AES, HMAC) or the library's generator, which the kernel seeds (RSA, ECC).
    pub fn generate(spec: KeySpec) -> Result<Self, MaterialError> {
        let secret = match spec {
            KeySpec::SymmetricDefault => Secret::Symmetric(Secret32::random()),
            spec if spec.is_hmac() => Secret::Mac(mac::Key::generate(spec)?),
            spec if spec.is_rsa() => Secret::Rsa(Box::new(rsa::Key::generate(spec)?)),
            spec => Secret::Ecc(Box::new(ecc::Key::generate(spec)?)),
        };
        Ok(Self { spec, secret })
    }

    /// From [`Material::to_bytes`], or from whoever imports it: the bytes of an AES or HMAC key, or the PKCS#8 DER
    /// (RFC 5958) of a private key. Anything else than exactly one key of `spec` is `InvalidMaterial`.
    pub fn from_bytes(spec: KeySpec, bytes: &[u8]) -> Result<Self, MaterialError> {
        let secret = match spec {
            KeySpec::SymmetricDefault => {
                let key = Secret32::written_by(|out| {
                    (bytes.len() == out.len()).then(|| out.copy_from_slice(bytes)).ok_or(())
                });
                Secret::Symmetric(key.map_err(|()| MaterialError::InvalidMaterial(spec))?)
            }
            spec if spec.is_hmac() => Secret::Mac(mac::Key::from_bytes(spec, bytes)?),
            spec if spec.is_rsa() => Secret::Rsa(Box::new(rsa::Key::from_pkcs8(spec, bytes)?)),
            spec => Secret::Ecc(Box::new(ecc::Key::from_pkcs8(spec, bytes)?)),
        };
        Ok(Self { spec, secret })
    }

    /// What [`Material::from_bytes`] takes; one form for one key. For wrapping, and for the answer of GenerateDataKeyPair.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        match &self.secret {
            Secret::Symmetric(key) => Ok(Zeroizing::new(key.expose().to_vec())),
            Secret::Mac(key) => Ok(Zeroizing::new(key.expose().to_vec())),
            Secret::Rsa(key) => key.to_pkcs8(),
            Secret::Ecc(key) => key.to_pkcs8(),
        }
    }

    pub fn spec(&self) -> KeySpec {
        self.spec
    }

    /// The name of this material under one key: HKDF-SHA256 of its bytes (salt a label, info the spec and the key id). So
    /// material that is imported again has the id it had, and two keys with the same material do not show it.
    pub fn id(&self, key: &KeyId) -> Result<MaterialId, MaterialError> {
        let bytes = self.to_bytes()?;
        let mut id = [0; 32];
        wiping_stack(|| {
            let hkdf = Hkdf::<Sha256>::new(Some(MATERIAL_ID), &bytes);
            hkdf.expand_multi_info(&[key, self.spec.as_str().as_bytes()], &mut id).map_err(|_| MaterialError::Library)
        })?;
        Ok(id)
    }

    /// X.509 SubjectPublicKeyInfo (RFC 5280), DER.
    pub fn public_key_der(&self) -> Result<Vec<u8>, MaterialError> {
        match &self.secret {
            Secret::Rsa(key) => key.public_key_der(),
            Secret::Ecc(key) => key.public_key_der(),
            _ => Err(MaterialError::WrongSpec),
        }
    }

    /// RSA-OAEP (RFC 8017 section 7.1, MGF1 with the same hash, no label). Symmetric keys have [`symmetric::seal`].
    pub fn encrypt(&self, algorithm: EncryptionAlgorithm, plaintext: &[u8]) -> Result<Vec<u8>, MaterialError> {
        let limit = algorithm.plaintext_max(self.spec).ok_or(MaterialError::WrongSpec)?;
        let Secret::Rsa(key) = &self.secret else { return Err(MaterialError::WrongSpec) };
        if plaintext.len() > limit {
            return Err(MaterialError::PlaintextTooLong { limit });
        }
        key.encrypt(algorithm, plaintext)
    }

    /// The inverse of [`Material::encrypt`]; every failure is the same `InvalidCiphertext`.
    pub fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        match &self.secret {
            Secret::Rsa(key) => key.decrypt(algorithm, ciphertext),
            _ => Err(MaterialError::WrongSpec),
        }
    }

    /// RSASSA-PKCS1-v1_5, RSASSA-PSS (MGF1 with the same hash, the salt as long as the digest) or ECDSA (DER, RFC 3279
    /// section 2.2.3) over a message of at most [`MESSAGE_MAX`] bytes or its digest.
    pub fn sign(
        &self,
        algorithm: SigningAlgorithm,
        kind: MessageType,
        message: &[u8],
    ) -> Result<Vec<u8>, MaterialError> {
        let digest = self.digest(algorithm, kind, message)?;
        match &self.secret {
            Secret::Rsa(key) => key.sign(algorithm, &digest),
            Secret::Ecc(key) => key.sign(&digest),
            _ => Err(MaterialError::WrongSpec),
        }
    }

    /// `InvalidSignature` where `signature` is not one of `message` by this key.
    pub fn verify(
        &self,
        algorithm: SigningAlgorithm,
        kind: MessageType,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), MaterialError> {
        let digest = self.digest(algorithm, kind, message)?;
        match &self.secret {
            Secret::Rsa(key) => key.verify(algorithm, &digest, signature),
            Secret::Ecc(key) => key.verify(&digest, signature),
            _ => Err(MaterialError::WrongSpec),
        }
    }

    fn digest(
        &self,
        algorithm: SigningAlgorithm,
        kind: MessageType,
        message: &[u8],
    ) -> Result<aws_lc_rs::digest::Digest, MaterialError> {
        use aws_lc_rs::digest::{Digest, SHA256, SHA384, SHA512, digest};
        if !self.spec.signing_algorithms().contains(&algorithm) {
            return Err(MaterialError::WrongSpec);
        }
        let hash = match algorithm.digest_len() {
            32 => &SHA256,
            48 => &SHA384,
            _ => &SHA512,
        };
        match kind {
            MessageType::Raw => Ok(digest(hash, message)),
            MessageType::Digest => {
                Digest::import_less_safe(message, hash).map_err(|_| MaterialError::DigestLength(algorithm))
            }
        }
    }

    /// HMAC (RFC 2104) over `message`, whole.
    pub fn mac(&self, algorithm: MacAlgorithm, message: &[u8]) -> Result<Vec<u8>, MaterialError> {
        Ok(self.mac_key(algorithm)?.mac(algorithm, message))
    }

    /// In constant time; a shortened MAC is `InvalidMac` like any other.
    pub fn verify_mac(&self, algorithm: MacAlgorithm, message: &[u8], mac: &[u8]) -> Result<(), MaterialError> {
        self.mac_key(algorithm)?.verify(algorithm, message, mac)
    }

    fn mac_key(&self, algorithm: MacAlgorithm) -> Result<&mac::Key, MaterialError> {
        match &self.secret {
            Secret::Mac(key) if self.spec.mac_algorithms().contains(&algorithm) => Ok(key),
            _ => Err(MaterialError::WrongSpec),
        }
    }

    /// ECDH (NIST SP 800-56A, cofactor 1): the x-coordinate, as long as the curve's field. `public_key` is the peer's, as an
    /// X.509 SubjectPublicKeyInfo in DER, on the same curve.
    pub fn derive_shared_secret(&self, public_key: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        match &self.secret {
            Secret::Ecc(key) => key.derive_shared_secret(public_key),
            _ => Err(MaterialError::WrongSpec),
        }
    }

    fn symmetric(&self) -> Result<&Secret32, MaterialError> {
        match &self.secret {
            Secret::Symmetric(key) => Ok(key),
            _ => Err(MaterialError::WrongSpec),
        }
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Material({})", self.spec)
    }
}

/// A key's UUID as it is written, 8-4-4-4-12 in lower case.
pub fn key_id_text(id: &KeyId) -> String {
    let hex = HEXLOWER.encode(id);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The inverse of [`key_id_text`]; nothing where `text` is no UUID in that form.
pub fn parse_key_id(text: &str) -> Option<KeyId> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || ![8, 13, 18, 23].iter().all(|at| bytes[*at] == b'-') {
        return None;
    }
    let hex: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'-').collect();
    HEXLOWER.decode(&hex).ok()?.try_into().ok()
}
