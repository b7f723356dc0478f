//! Tests of `Material` with the library alone; other implementations are asked in `tests/kms_material`.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::key_wrap::{AES_128, AES_256, AesBlockCipher, AesKek, BlockCipher as _, KeyWrapPadded as _};

use super::*;

/// One key of each spec, made once: RSA keys take their time.
fn keys() -> &'static [Arc<Material>] {
    static KEYS: OnceLock<Vec<Arc<Material>>> = OnceLock::new();
    KEYS.get_or_init(|| KeySpec::ALL.iter().map(|spec| Arc::new(Material::generate(*spec).unwrap())).collect())
}
fn key(spec: KeySpec) -> &'static Material {
    keys().iter().find(|key| key.spec() == spec).unwrap()
}
fn signing_keys() -> impl Iterator<Item = (&'static Material, SigningAlgorithm)> {
    keys().iter().flat_map(|key| key.spec().signing_algorithms().iter().map(move |algorithm| (&**key, *algorithm)))
}

#[test]
fn every_key_comes_back_from_its_bytes_in_one_form() {
    for key in keys() {
        let bytes = key.to_bytes().unwrap();
        let again = Material::from_bytes(key.spec(), &bytes).unwrap();
        assert_eq!(again.to_bytes().unwrap(), bytes, "{}", key.spec());
        assert_eq!(again.id(&[1; 16]), key.id(&[1; 16]));
        assert!(key.spec().raw_len().is_none_or(|len| len == bytes.len()));
        // GenerateDataKeyPair encrypts this.
        assert!(bytes.len() <= symmetric::PLAINTEXT_MAX, "{}: {}", key.spec(), bytes.len());
    }
}

#[test]
fn no_bytes_make_a_key_of_another_spec() {
    for key in keys() {
        let bytes = key.to_bytes().unwrap();
        for spec in KeySpec::ALL.iter().filter(|spec| **spec != key.spec()) {
            // Plain strings of 32 bytes are keys of two kinds.
            if spec.raw_len() == Some(bytes.len()) {
                continue;
            }
            let refused = Material::from_bytes(*spec, &bytes).map(drop);
            assert_eq!(refused, Err(MaterialError::InvalidMaterial(*spec)), "{} as {spec}", key.spec());
        }
        for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], b"\0"].concat(), b"", b"\x30\x00", b"\x30\x82"] {
            assert!(Material::from_bytes(key.spec(), wrong).is_err(), "{}", key.spec());
        }
    }
}

#[test]
fn private_keys_whose_parts_do_not_belong_together_are_refused() {
    for key in keys().iter().filter(|key| key.spec().is_asymmetric()) {
        let bytes = key.to_bytes().unwrap();
        let mut accepted = Vec::new();
        for at in (0..bytes.len()).step_by(if key.spec().is_rsa() { 37 } else { 1 }) {
            let mut other = bytes.to_vec();
            other[at] ^= 0x10;
            if Material::from_bytes(key.spec(), &other).is_ok() {
                accepted.push(at);
            }
        }
        assert!(accepted.is_empty(), "{}: a change at {accepted:?} of {} was taken", key.spec(), bytes.len());
    }
}

#[test]
fn ids_tell_keys_materials_and_specs_apart() {
    let same = [7; 32];
    let aes = Material::from_bytes(KeySpec::SymmetricDefault, &same).unwrap();
    let hmac = Material::from_bytes(KeySpec::Hmac256, &same).unwrap();
    let other = Material::from_bytes(KeySpec::SymmetricDefault, &[8; 32]).unwrap();
    let ids = [aes.id(&[1; 16]), aes.id(&[2; 16]), hmac.id(&[1; 16]), other.id(&[1; 16])].map(Result::unwrap);
    for (i, a) in ids.iter().enumerate() {
        assert!(ids[..i].iter().all(|b| a != b));
    }
    assert_eq!(aes.id(&[1; 16]).unwrap(), ids[0]);
}

#[test]
fn nothing_prints_a_secret() {
    for key in keys() {
        assert_eq!(format!("{key:?}"), format!("Material({})", key.spec()));
    }
}

#[test]
fn key_ids_are_written_as_uuids() {
    let id = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0, 1, 2, 3, 4, 5, 6, 7];
    let text = "12345678-9abc-def0-0001-020304050607";
    assert_eq!(key_id_text(&id), text);
    assert_eq!(parse_key_id(text), Some(id));
    for wrong in [
        "",
        "12345678-9ABC-def0-0001-020304050607",
        "123456789abcdef00001020304050607",
        "é345678-9abc-def0-0001-020304050607",
    ] {
        assert_eq!(parse_key_id(wrong), None);
    }
    assert_eq!(parse_key_id(&"-".repeat(36)), None);
}

#[test]
fn oaep_takes_its_limit_and_no_byte_more() {
    for key in keys().iter().filter(|key| key.spec().is_rsa()) {
        for algorithm in key.spec().encryption_algorithms() {
            let limit = algorithm.plaintext_max(key.spec()).unwrap();
            for len in [1, 32, limit] {
                let ciphertext = key.encrypt(*algorithm, &vec![5; len]).unwrap();
                assert_eq!(ciphertext.len() * 8, key.spec().modulus_bits().unwrap());
                assert_eq!(key.decrypt(*algorithm, &ciphertext).unwrap()[..], vec![5; len]);
            }
            let refused = key.encrypt(*algorithm, &vec![5; limit + 1]);
            assert_eq!(refused, Err(MaterialError::PlaintextTooLong { limit }));
        }
    }
}

#[test]
fn oaep_refuses_what_was_changed_and_the_other_hash() {
    let key = key(KeySpec::Rsa2048);
    let [sha1, sha256] = [EncryptionAlgorithm::RsaesOaepSha1, EncryptionAlgorithm::RsaesOaepSha256];
    let good = key.encrypt(sha256, b"data").unwrap();
    let refused = |algorithm, ciphertext: &[u8]| {
        assert_eq!(key.decrypt(algorithm, ciphertext).map(drop), Err(MaterialError::InvalidCiphertext));
    };
    refused(sha1, &good);
    for at in [0, 1, 128, 255] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refused(sha256, &bad);
    }
    for bad in [&good[1..], &[&[0][..], &good].concat(), &[], &[0xff; 256], &[0; 256]] {
        refused(sha256, bad);
    }
}

#[test]
fn signatures_of_messages_and_of_their_digests_are_the_same_thing() {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
    for (key, algorithm) in signing_keys() {
        let message = b"a message";
        let hashed = match algorithm.digest_len() {
            32 => digest(&SHA256, message),
            48 => digest(&SHA384, message),
            _ => digest(&SHA512, message),
        };
        for (kind, input) in [(MessageType::Raw, &message[..]), (MessageType::Digest, hashed.as_ref())] {
            let signature = key.sign(algorithm, kind, input).unwrap();
            key.verify(algorithm, MessageType::Raw, message, &signature).unwrap();
            key.verify(algorithm, MessageType::Digest, hashed.as_ref(), &signature).unwrap();

            let refused = |message: &[u8], signature: &[u8]| {
                let outcome = key.verify(algorithm, MessageType::Raw, message, signature);
                assert_eq!(outcome, Err(MaterialError::InvalidSignature), "{} {algorithm}", key.spec());
            };
            refused(b"a messagE", &signature);
            refused(message, &signature[1..]);
            refused(message, &[&signature[..], b"\0"].concat());
            refused(message, b"");
            let mut bad = signature.clone();
            *bad.last_mut().unwrap() ^= 1;
            refused(message, &bad);
        }
        for len in [0, 20, 31, 33, 47, 49, 63, 65, 4096] {
            let wrong = vec![1; len];
            let refused = Err(MaterialError::DigestLength(algorithm));
            assert_eq!(key.sign(algorithm, MessageType::Digest, &wrong).map(drop), refused);
            assert_eq!(key.verify(algorithm, MessageType::Digest, &wrong, b"x"), refused);
        }
    }
    let text = MaterialError::DigestLength(SigningAlgorithm::RsassaPssSha384).to_string();
    assert_eq!(text, "Digest is invalid length for algorithm RSASSA_PSS_SHA_384.");
}

/// RFC 4231, test case 2 pads its key, so the 4 lengths are checked elsewhere against another implementation.
#[test]
fn macs_verify_whole_and_unchanged() {
    for key in keys().iter().filter(|key| key.spec().is_hmac()) {
        let algorithm = key.spec().mac_algorithms()[0];
        let mac = key.mac(algorithm, b"message").unwrap();
        assert_eq!(Some(mac.len()), key.spec().raw_len());
        key.verify_mac(algorithm, b"message", &mac).unwrap();
        let mut bad = mac.clone();
        bad[3] ^= 1;
        for (message, mac) in
            [(&b"messagf"[..], &mac[..]), (b"message", &mac[..mac.len() - 1]), (b"message", &bad), (b"message", b"")]
        {
            assert_eq!(key.verify_mac(algorithm, message, mac), Err(MaterialError::InvalidMac));
        }
    }
}

#[test]
fn both_sides_derive_one_secret() {
    for (spec, len) in [(KeySpec::EccNistP256, 32), (KeySpec::EccNistP384, 48), (KeySpec::EccNistP521, 66)] {
        let (ours, theirs) = (key(spec), Material::generate(spec).unwrap());
        let secret = ours.derive_shared_secret(&theirs.public_key_der().unwrap()).unwrap();
        assert_eq!(secret.len(), len);
        assert_eq!(theirs.derive_shared_secret(&ours.public_key_der().unwrap()).unwrap(), secret);
    }
}

#[test]
fn ecdh_takes_points_of_its_curve_in_the_protocols_form_only() {
    let ours = key(KeySpec::EccNistP256);
    let good = ours.public_key_der().unwrap();
    let bare = &good[good.len() - 65..];
    assert_eq!(bare[0], 4);
    let mut off_the_curve = good.clone();
    *off_the_curve.last_mut().unwrap() ^= 1;
    let wrong = [
        bare.to_vec(),
        off_the_curve,
        [&good[..], b"\0"].concat(),
        good[..good.len() - 1].to_vec(),
        Vec::new(),
        key(KeySpec::EccNistP384).public_key_der().unwrap(),
        key(KeySpec::EccSecgP256k1).public_key_der().unwrap(),
        key(KeySpec::Rsa2048).public_key_der().unwrap(),
    ];
    for wrong in wrong {
        assert_eq!(ours.derive_shared_secret(&wrong).map(drop), Err(MaterialError::InvalidPublicKey));
    }
    assert!(ours.derive_shared_secret(&good).is_ok());
}

#[test]
fn a_key_does_what_its_spec_allows_and_nothing_else() {
    let named = symmetric::Named { key: [0; 16], material: [0; 32] };
    for key in keys() {
        let spec = key.spec();
        let wrong = Some(MaterialError::WrongSpec);
        assert_eq!(key.public_key_der().err(), if spec.is_asymmetric() { None } else { wrong });
        let sealed = symmetric::seal(key, &named, b"", b"data");
        assert_eq!(sealed.err(), if spec == KeySpec::SymmetricDefault { None } else { wrong });
        assert_eq!(symmetric::open(key, b"", b"").err() == wrong, spec != KeySpec::SymmetricDefault);
        for algorithm in EncryptionAlgorithm::ALL {
            let fits = spec.is_rsa() && *algorithm != EncryptionAlgorithm::SymmetricDefault;
            assert_eq!(key.encrypt(*algorithm, b"data").is_ok(), fits);
            assert_eq!(key.decrypt(*algorithm, b"data").err() == wrong, !fits);
        }
        for algorithm in SigningAlgorithm::ALL {
            let fits = spec.signing_algorithms().contains(algorithm);
            assert_eq!(key.sign(*algorithm, MessageType::Raw, b"data").err(), if fits { None } else { wrong });
            assert_eq!(key.verify(*algorithm, MessageType::Raw, b"data", b"").err() == wrong, !fits);
        }
        for algorithm in MacAlgorithm::ALL {
            let fits = spec.mac_algorithms().contains(algorithm);
            assert_eq!(key.mac(*algorithm, b"data").err(), if fits { None } else { wrong });
            assert_eq!(key.verify_mac(*algorithm, b"data", b"").err() == wrong, !fits);
        }
        let agrees = !spec.key_agreement_algorithms().is_empty();
        assert_eq!(key.derive_shared_secret(b"").err() == wrong, !agrees);
    }
}

/// As a client wraps it, with the public key alone.
fn wrapped(by: &WrappingKey, algorithm: WrappingAlgorithm, aes: &'static AesBlockCipher, bytes: &[u8]) -> Vec<u8> {
    let oaep = match algorithm {
        WrappingAlgorithm::RsaesOaepSha1 | WrappingAlgorithm::RsaAesKeyWrapSha1 => EncryptionAlgorithm::RsaesOaepSha1,
        _ => EncryptionAlgorithm::RsaesOaepSha256,
    };
    let material = key(KeySpec::Rsa2048);
    let public = Material::from_bytes(material.spec(), &by.to_bytes().unwrap()).unwrap();
    if matches!(algorithm, WrappingAlgorithm::RsaesOaepSha1 | WrappingAlgorithm::RsaesOaepSha256) {
        return public.encrypt(oaep, bytes).unwrap();
    }
    let transport = [3; 32];
    let transport = &transport[..aes.key_len()];
    let mut out = vec![0; bytes.len() + 15];
    let inner = AesKek::new(aes, transport).unwrap().wrap_with_padding(bytes, &mut out).unwrap();
    [&public.encrypt(oaep, transport).unwrap()[..], inner].concat()
}

#[test]
fn imports_arrive_by_every_way_that_is_long_enough() {
    static AES: AesBlockCipher = AES_256;
    let pkcs8 = key(KeySpec::Rsa2048).to_bytes().unwrap();
    let by = WrappingKey::from_bytes(WrappingKeySpec::Rsa2048, &pkcs8).unwrap();
    assert_eq!(by.public_key_der(), key(KeySpec::Rsa2048).public_key_der());
    for algorithm in WrappingAlgorithm::ALL {
        for key in keys() {
            let bytes = key.to_bytes().unwrap();
            if !algorithm.accepts(key.spec(), WrappingKeySpec::Rsa2048) {
                assert!(bytes.len() > 214, "{} would fit", key.spec());
                continue;
            }
            let blob = wrapped(&by, *algorithm, &AES, &bytes);
            assert!(blob.len() <= ENCRYPTED_MATERIAL_MAX);
            let material = by.unwrap_material(*algorithm, &blob, key.spec()).unwrap();
            assert_eq!(material.id(&[1; 16]), key.id(&[1; 16]));
            for bad in [&blob[1..], &blob[..blob.len() - 1], &[&blob[..], b"\0"].concat(), b"", &[0; 6145]] {
                assert_eq!(by.unwrap(*algorithm, bad).map(drop), Err(MaterialError::InvalidCiphertext));
            }
        }
    }
}

#[test]
fn imports_of_the_wrong_kind_or_by_another_way_are_refused() {
    static AES: AesBlockCipher = AES_256;
    static SHORT: AesBlockCipher = AES_128;
    let by = WrappingKey::generate(WrappingKeySpec::Rsa2048).unwrap();
    let way = WrappingAlgorithm::RsaAesKeyWrapSha256;
    let blob = wrapped(&by, way, &AES, &[7; 32]);
    assert!(by.unwrap_material(way, &blob, KeySpec::SymmetricDefault).is_ok());
    let refused = by.unwrap_material(way, &blob, KeySpec::Hmac512).map(drop);
    assert_eq!(refused, Err(MaterialError::InvalidMaterial(KeySpec::Hmac512)));
    for other in WrappingAlgorithm::ALL.iter().filter(|other| **other != way) {
        assert_eq!(by.unwrap(*other, &blob).map(drop), Err(MaterialError::InvalidCiphertext));
    }
    for bit in (0..blob.len() * 8).step_by(101) {
        let mut bad = blob.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(by.unwrap(way, &bad).map(drop), Err(MaterialError::InvalidCiphertext));
    }
    // AWS takes AES-256 as the transport key and no shorter one.
    let short = wrapped(&by, way, &SHORT, &[7; 32]);
    assert_eq!(by.unwrap(way, &short).map(drop), Err(MaterialError::InvalidCiphertext));
}
