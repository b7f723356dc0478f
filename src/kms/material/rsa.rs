//! RSA keys of 2048, 3072 and 4096 bits: OAEP and signatures of digests. Knows not which of the two a key is for.

use std::sync::OnceLock;

use aws_lc_rs::digest::Digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, UnparsedPublicKey, VerificationAlgorithm,
};
use zeroize::Zeroizing;

use super::{EncryptionAlgorithm, KeySpec, MaterialError, SigningAlgorithm};
use crate::sys::cipher_memory::for_keys;

pub(super) struct Key {
    pair: KeyPair,
    /// The same key as the library wants it for decryption; made at the first one.
    decrypting: OnceLock<Option<OaepPrivateDecryptingKey>>,
}

impl Key {
    pub(super) fn generate(spec: KeySpec) -> Result<Self, MaterialError> {
        let size = match spec {
            KeySpec::Rsa2048 => KeySize::Rsa2048,
            KeySpec::Rsa3072 => KeySize::Rsa3072,
            KeySpec::Rsa4096 => KeySize::Rsa4096,
            _ => return Err(MaterialError::WrongSpec),
        };
        Ok(Self::new(for_keys(|| KeyPair::generate(size)).map_err(|_| MaterialError::Library)?))
    }

    /// PKCS#8 with nothing after it. The library checks that the numbers belong together.
    pub(super) fn from_pkcs8(spec: KeySpec, der: &[u8]) -> Result<Self, MaterialError> {
        let invalid = MaterialError::InvalidMaterial(spec);
        if !super::import::is_one_der_sequence(der) {
            return Err(invalid);
        }
        let pair = for_keys(|| KeyPair::from_pkcs8(der)).map_err(|_| invalid)?;
        let key = Self::new(pair);
        // Bits, not bytes: a modulus of 2041 bits is 256 bytes long too.
        let bits = key.encrypting()?.key_size_bits();
        if Some(bits) == spec.modulus_bits() { Ok(key) } else { Err(invalid) }
    }

    fn new(pair: KeyPair) -> Self {
        Self { pair, decrypting: OnceLock::new() }
    }

    pub(super) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().map_err(|_| MaterialError::Library)?;
        Ok(Zeroizing::new(der.as_ref().to_vec()))
    }

    pub(super) fn public_key_der(&self) -> Result<Vec<u8>, MaterialError> {
        let der: PublicKeyX509Der<'_> = self.pair.public_key().as_der().map_err(|_| MaterialError::Library)?;
        Ok(der.as_ref().to_vec())
    }

    fn encrypting(&self) -> Result<OaepPublicEncryptingKey, MaterialError> {
        let public = PublicEncryptingKey::from_der(&self.public_key_der()?).map_err(|_| MaterialError::Library)?;
        OaepPublicEncryptingKey::new(public).map_err(|_| MaterialError::Library)
    }

    pub(super) fn encrypt(&self, algorithm: EncryptionAlgorithm, plaintext: &[u8]) -> Result<Vec<u8>, MaterialError> {
        let key = self.encrypting()?;
        let mut ciphertext = vec![0; key.ciphertext_size()];
        let written = key.encrypt(oaep(algorithm)?, plaintext, &mut ciphertext, None);
        let len = written.map_err(|_| MaterialError::Library)?.len();
        ciphertext.truncate(len);
        Ok(ciphertext)
    }

    pub(super) fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let algorithm = oaep(algorithm)?;
        let key = self.decrypting.get_or_init(|| {
            let der = self.to_pkcs8().ok()?;
            let key = for_keys(|| PrivateDecryptingKey::from_pkcs8(&der)).ok()?;
            OaepPrivateDecryptingKey::new(key).ok()
        });
        let key = key.as_ref().ok_or(MaterialError::Library)?;
        // RFC 8017 section 7.1.2 step 1b: exactly as long as the modulus.
        if ciphertext.len() != key.key_size_bytes() {
            return Err(MaterialError::InvalidCiphertext);
        }
        let mut plaintext = Zeroizing::new(vec![0; key.min_output_size()]);
        let written = key.decrypt(algorithm, ciphertext, &mut plaintext, None);
        let len = written.map_err(|_| MaterialError::InvalidCiphertext)?.len();
        plaintext.truncate(len);
        Ok(plaintext)
    }

    pub(super) fn sign(&self, algorithm: SigningAlgorithm, digest: &Digest) -> Result<Vec<u8>, MaterialError> {
        let (encoding, _) = signing(algorithm)?;
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign_digest(encoding, digest, &mut signature).map_err(|_| MaterialError::Library)?;
        Ok(signature)
    }

    pub(super) fn verify(
        &self,
        algorithm: SigningAlgorithm,
        digest: &Digest,
        signature: &[u8],
    ) -> Result<(), MaterialError> {
        let (_, parameters) = signing(algorithm)?;
        let key = UnparsedPublicKey::new(parameters, self.pair.public_key());
        key.verify_digest(digest, signature).map_err(|_| MaterialError::InvalidSignature)
    }
}

fn oaep(algorithm: EncryptionAlgorithm) -> Result<&'static OaepAlgorithm, MaterialError> {
    match algorithm {
        EncryptionAlgorithm::RsaesOaepSha1 => Ok(&OAEP_SHA1_MGF1SHA1),
        EncryptionAlgorithm::RsaesOaepSha256 => Ok(&OAEP_SHA256_MGF1SHA256),
        EncryptionAlgorithm::SymmetricDefault => Err(MaterialError::WrongSpec),
    }
}

/// The library's name of an algorithm for signing and for verifying.
type Signing = (&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm);

fn signing(algorithm: SigningAlgorithm) -> Result<Signing, MaterialError> {
    Ok(match algorithm {
        SigningAlgorithm::RsassaPssSha256 => (&RSA_PSS_SHA256, &RSA_PSS_2048_8192_SHA256),
        SigningAlgorithm::RsassaPssSha384 => (&RSA_PSS_SHA384, &RSA_PSS_2048_8192_SHA384),
        SigningAlgorithm::RsassaPssSha512 => (&RSA_PSS_SHA512, &RSA_PSS_2048_8192_SHA512),
        SigningAlgorithm::RsassaPkcs1V15Sha256 => (&RSA_PKCS1_SHA256, &RSA_PKCS1_2048_8192_SHA256),
        SigningAlgorithm::RsassaPkcs1V15Sha384 => (&RSA_PKCS1_SHA384, &RSA_PKCS1_2048_8192_SHA384),
        SigningAlgorithm::RsassaPkcs1V15Sha512 => (&RSA_PKCS1_SHA512, &RSA_PKCS1_2048_8192_SHA512),
        SigningAlgorithm::EcdsaSha256 | SigningAlgorithm::EcdsaSha384 | SigningAlgorithm::EcdsaSha512 => {
            return Err(MaterialError::WrongSpec);
        }
    })
}
