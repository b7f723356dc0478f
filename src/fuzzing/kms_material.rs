//! What the key service's cryptography takes from its clients: ciphertexts, imported keys, wrapped keys, public keys, signatures.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};

use super::{DEK, Target, choice, halves, sequence};
use crate::kms::material::{
    ENCRYPTED_MATERIAL_MAX, EncryptionAlgorithm, KeySpec, Material, MaterialError, MessageType, WrappingAlgorithm,
    WrappingKey, WrappingKeySpec, key_id_text, parse_key_id, symmetric,
};

pub const TARGETS: &[Target] = &[
    Target { name: "kms_ciphertext", run: ciphertext },
    Target { name: "kms_import", run: import },
    Target { name: "kms_peer", run: peer },
];

/// Those whose making does not take seconds.
const SPECS: [KeySpec; 9] = [
    KeySpec::SymmetricDefault,
    KeySpec::Rsa2048,
    KeySpec::EccNistP256,
    KeySpec::EccNistP384,
    KeySpec::EccNistP521,
    KeySpec::EccSecgP256k1,
    KeySpec::Hmac224,
    KeySpec::Hmac384,
    KeySpec::Hmac512,
];

/// One of each of `SPECS`, and who opens what is wrapped.
struct Keys {
    materials: Vec<Material>,
    wrapping: WrappingKey,
    /// The same key, which encrypts as a client does.
    public: Material,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let materials: Vec<_> = SPECS.iter().map(|spec| Material::generate(*spec).expect("a key")).collect();
        let bytes = materials[1].to_bytes().expect("its bytes");
        Keys {
            wrapping: WrappingKey::from_bytes(WrappingKeySpec::Rsa2048, &bytes).expect("an RSA key"),
            public: Material::from_bytes(KeySpec::Rsa2048, &bytes).expect("an RSA key"),
            materials,
        }
    })
}

fn key(how: u8) -> &'static Material {
    &keys().materials[usize::from(how) % SPECS.len()]
}

/// A blob of the fuzzer's, and one of ours with its context and plaintext of the fuzzer's choice.
fn ciphertext(input: &[u8]) {
    let material = Material::from_bytes(KeySpec::SymmetricDefault, &sequence::<32>(DEK)).expect("32 bytes");
    let (how, rest) = choice(input);
    let (context, rest) = halves(rest);
    if how & 1 == 0 {
        assert_eq!(symmetric::open(&material, context, rest).map(drop), Err(MaterialError::InvalidCiphertext));
        if let Ok(named) = symmetric::parse(rest) {
            assert!(rest.len() >= symmetric::OVERHEAD && rest.len() <= 6144);
            assert_eq!(parse_key_id(&key_id_text(&named.key)), Some(named.key));
        }
        return;
    }
    let pair = String::from_utf8_lossy(context);
    let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
    let context = symmetric::canonical_context(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
    let named = symmetric::Named { key: sequence(how), material: sequence(how) };
    let Ok(mut blob) = symmetric::seal(&material, &named, &context, rest) else {
        assert!(rest.len() > symmetric::PLAINTEXT_MAX);
        return;
    };
    assert_eq!(symmetric::parse(&blob), Ok(named));
    assert_eq!(symmetric::open(&material, &context, &blob).as_deref().map(Vec::as_slice), Ok(rest));
    let at =
        rest.iter().fold(usize::from(how), |sum, byte| sum.wrapping_mul(31) + usize::from(*byte)) % (blob.len() * 8);
    blob[at / 8] ^= 1 << (at % 8);
    assert_eq!(symmetric::open(&material, &context, &blob).map(drop), Err(MaterialError::InvalidCiphertext));
}

/// Key material: as it is; a genuine key with bytes changed; wrapped rightly around what the fuzzer wrote; wrapped bytes of
/// the fuzzer's.
fn import(input: &[u8]) {
    let (how, rest) = choice(input);
    let spec = key(how >> 2).spec();
    match how & 3 {
        0 => check_material(spec, rest),
        1 => {
            let mut bytes = key(how >> 2).to_bytes().expect("its bytes").to_vec();
            for change in rest.chunks_exact(3).take(8) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
                bytes[at] ^= change[2];
            }
            bytes.truncate(bytes.len() - rest.len() % 3);
            check_material(spec, &bytes);
        }
        2 => {
            let transport: [u8; 32] = sequence(DEK);
            let algorithm = EncryptionAlgorithm::RsaesOaepSha256;
            let mut blob = keys().public.encrypt(algorithm, &transport).expect("32 bytes fit");
            let mut wrapped = vec![0; rest.len() + 15];
            let kek = AesKek::new(&AES_256, &transport).expect("32 bytes");
            let Ok(wrapped) = kek.wrap_with_padding(rest, &mut wrapped) else { return assert!(rest.is_empty()) };
            blob.extend_from_slice(wrapped);
            let opened = keys().wrapping.unwrap(WrappingAlgorithm::RsaAesKeyWrapSha256, &blob);
            match opened {
                Ok(opened) => assert_eq!(opened[..], *rest),
                Err(_) => assert!(blob.len() > ENCRYPTED_MATERIAL_MAX),
            }
        }
        _ => {
            for algorithm in WrappingAlgorithm::ALL {
                assert!(keys().wrapping.unwrap(*algorithm, rest).is_err());
            }
        }
    }
}

/// What is taken has one form, an id, and works.
fn check_material(spec: KeySpec, bytes: &[u8]) {
    let Ok(material) = Material::from_bytes(spec, bytes) else { return };
    let form = material.to_bytes().expect("its bytes");
    let again = Material::from_bytes(spec, &form).expect("its own bytes");
    assert_eq!(again.to_bytes().as_deref(), Ok(&*form));
    assert_eq!(again.id(&sequence(0)), material.id(&sequence(0)));
    assert_eq!(again.public_key_der(), material.public_key_der());
    if let Some(algorithm) = spec.signing_algorithms().first() {
        let signature = material.sign(*algorithm, MessageType::Raw, bytes).expect("a signature");
        again.verify(*algorithm, MessageType::Raw, bytes, &signature).expect("our own signature");
    }
}

/// Public keys, signatures, MACs and asymmetric ciphertexts: none that the fuzzer makes is right.
fn peer(input: &[u8]) {
    let (how, rest) = choice(input);
    let key = key(how);
    if let Ok(secret) = key.derive_shared_secret(rest) {
        assert!([32, 48, 66].contains(&secret.len()) && !rest.is_empty());
    }
    let (message, proof) = halves(rest);
    for kind in MessageType::ALL {
        for algorithm in key.spec().signing_algorithms() {
            assert!(key.verify(*algorithm, *kind, message, proof).is_err());
        }
    }
    for algorithm in key.spec().mac_algorithms() {
        assert!(key.verify_mac(*algorithm, message, proof).is_err());
    }
    for algorithm in key.spec().encryption_algorithms() {
        assert!(key.decrypt(*algorithm, rest).is_err());
    }
}
