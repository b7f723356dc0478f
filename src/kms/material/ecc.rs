//! Keys on P-256, P-384, P-521 and secp256k1: ECDSA over digests, and ECDH on the first three. Knows not which a key is for.

use std::sync::OnceLock;

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521, ParsedPublicKey, ParsedPublicKeyFormat};
use aws_lc_rs::digest::Digest;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256K1_SHA256_ASN1, ECDSA_P256K1_SHA256_ASN1_SIGNING,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair as _, UnparsedPublicKey,
};
use zeroize::Zeroizing;

use super::{KeySpec, MaterialError};
use crate::sys::cipher_memory::for_keys;

/// The library's names of a curve.
struct Curve {
    signing: &'static EcdsaSigningAlgorithm,
    verifying: &'static EcdsaVerificationAlgorithm,
    agreement: Option<&'static agreement::Algorithm>,
}

static P256: Curve =
    Curve { signing: &ECDSA_P256_SHA256_ASN1_SIGNING, verifying: &ECDSA_P256_SHA256_ASN1, agreement: Some(&ECDH_P256) };
static P384: Curve =
    Curve { signing: &ECDSA_P384_SHA384_ASN1_SIGNING, verifying: &ECDSA_P384_SHA384_ASN1, agreement: Some(&ECDH_P384) };
static P521: Curve =
    Curve { signing: &ECDSA_P521_SHA512_ASN1_SIGNING, verifying: &ECDSA_P521_SHA512_ASN1, agreement: Some(&ECDH_P521) };
static P256K1: Curve =
    Curve { signing: &ECDSA_P256K1_SHA256_ASN1_SIGNING, verifying: &ECDSA_P256K1_SHA256_ASN1, agreement: None };

fn curve(spec: KeySpec) -> Result<&'static Curve, MaterialError> {
    match spec {
        KeySpec::EccNistP256 => Ok(&P256),
        KeySpec::EccNistP384 => Ok(&P384),
        KeySpec::EccNistP521 => Ok(&P521),
        KeySpec::EccSecgP256k1 => Ok(&P256K1),
        _ => Err(MaterialError::WrongSpec),
    }
}

pub(super) struct Key {
    curve: &'static Curve,
    pair: EcdsaKeyPair,
    /// The same key as the library wants it for ECDH; made at the first one.
    agreeing: OnceLock<Option<agreement::PrivateKey>>,
}

impl Key {
    pub(super) fn generate(spec: KeySpec) -> Result<Self, MaterialError> {
        let curve = curve(spec)?;
        let pair = for_keys(|| EcdsaKeyPair::generate(curve.signing)).map_err(|_| MaterialError::Library)?;
        Ok(Self { curve, pair, agreeing: OnceLock::new() })
    }

    /// PKCS#8 with nothing after it. The library checks the curve, the range of the number, and the public key if it is there.
    pub(super) fn from_pkcs8(spec: KeySpec, der: &[u8]) -> Result<Self, MaterialError> {
        let curve = curve(spec)?;
        let invalid = MaterialError::InvalidMaterial(spec);
        if !super::import::is_one_der_sequence(der) {
            return Err(invalid);
        }
        let pair = for_keys(|| EcdsaKeyPair::from_pkcs8(curve.signing, der)).map_err(|_| invalid)?;
        Ok(Self { curve, pair, agreeing: OnceLock::new() })
    }

    pub(super) fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let document = self.pair.to_pkcs8v1().map_err(|_| MaterialError::Library)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    pub(super) fn public_key_der(&self) -> Result<Vec<u8>, MaterialError> {
        let der: PublicKeyX509Der<'_> = self.pair.public_key().as_der().map_err(|_| MaterialError::Library)?;
        Ok(der.as_ref().to_vec())
    }

    pub(super) fn sign(&self, digest: &Digest) -> Result<Vec<u8>, MaterialError> {
        let signature = self.pair.sign_digest(digest).map_err(|_| MaterialError::Library)?;
        Ok(signature.as_ref().to_vec())
    }

    pub(super) fn verify(&self, digest: &Digest, signature: &[u8]) -> Result<(), MaterialError> {
        let key = UnparsedPublicKey::new(self.curve.verifying, self.pair.public_key());
        key.verify_digest(digest, signature).map_err(|_| MaterialError::InvalidSignature)
    }

    pub(super) fn derive_shared_secret(&self, public_key: &[u8]) -> Result<Zeroizing<Vec<u8>>, MaterialError> {
        let algorithm = self.curve.agreement.ok_or(MaterialError::WrongSpec)?;
        let peer = agreement::UnparsedPublicKey::new(algorithm, public_key);
        let peer = ParsedPublicKey::try_from(peer).map_err(|_| MaterialError::InvalidPublicKey)?;
        // The library takes bare points too; the protocol does not.
        if peer.format() != ParsedPublicKeyFormat::X509 || !super::import::is_one_der_sequence(public_key) {
            return Err(MaterialError::InvalidPublicKey);
        }
        let key = self.agreeing.get_or_init(|| {
            let der = self.to_pkcs8().ok()?;
            for_keys(|| agreement::PrivateKey::from_private_key_der(algorithm, &der)).ok()
        });
        let key = key.as_ref().ok_or(MaterialError::Library)?;
        agreement::agree(key, peer, MaterialError::InvalidPublicKey, |secret| Ok(Zeroizing::new(secret.to_vec())))
    }
}
