//! Keys, signatures, ciphertexts, MACs, agreements and imports against Python's `cryptography` (OpenSSL), in both directions.

use std::collections::BTreeMap;
use std::process::Command;

use data_encoding::BASE64;
use envelopefs::kms::material::{
    KeySpec, Material, MessageType, WrappingAlgorithm, WrappingKey, WrappingKeySpec, symmetric,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::python::{ask, script, with_module};

const MESSAGE: &[u8] = b"Lorem-ipsum-dolor-sit-amet.";

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes.as_ref())
}
fn bytes(value: &Value) -> Vec<u8> {
    BASE64.decode(value.as_str().unwrap_or_else(|| panic!("{value}")).as_bytes()).unwrap()
}

/// One of each kind.
fn keys(of: impl Fn(KeySpec) -> bool) -> Vec<Material> {
    KeySpec::ALL.iter().filter(|spec| of(**spec)).map(|spec| Material::generate(*spec).unwrap()).collect()
}

fn python(input: &Value) -> Option<Value> {
    let python = with_module("cryptography")?;
    Some(ask(Command::new(python).arg(script("material.py")), input))
}

/// A request that asks nothing but `part`.
fn only(part: &str, cases: Vec<Value>) -> Value {
    let mut request = json!({"pairs": [], "macs": [], "imports": [], "symmetric": [], "ids": []});
    request[part] = cases.into();
    request
}

fn digest(len: usize) -> Vec<u8> {
    match len {
        32 => Sha256::digest(MESSAGE).to_vec(),
        48 => sha2::Sha384::digest(MESSAGE).to_vec(),
        _ => sha2::Sha512::digest(MESSAGE).to_vec(),
    }
}

#[test]
fn key_pairs_signatures_ciphertexts_and_agreements() {
    let pairs = keys(KeySpec::is_asymmetric);
    let case = |key: &Material| {
        let spec = key.spec();
        let signatures: BTreeMap<_, _> = spec
            .signing_algorithms()
            .iter()
            .map(|algorithm| {
                let raw = key.sign(*algorithm, MessageType::Raw, MESSAGE).unwrap();
                let digest = key.sign(*algorithm, MessageType::Digest, &digest(algorithm.digest_len())).unwrap();
                (algorithm.as_str(), [base64(raw), base64(digest)])
            })
            .collect();
        let ciphertexts: BTreeMap<_, _> = spec
            .encryption_algorithms()
            .iter()
            .map(|algorithm| (algorithm.as_str(), base64(key.encrypt(*algorithm, MESSAGE).unwrap())))
            .collect();
        json!({
            "spec": spec.as_str(),
            "private": base64(key.to_bytes().unwrap()),
            "public": base64(key.public_key_der().unwrap()),
            "message": base64(MESSAGE),
            "signatures": signatures,
            "ciphertexts": ciphertexts,
            "agrees": !spec.key_agreement_algorithms().is_empty(),
        })
    };
    let Some(answer) = python(&only("pairs", pairs.iter().map(case).collect())) else { return };
    for (key, made) in pairs.iter().zip(answer["pairs"].as_array().unwrap()) {
        let spec = key.spec();
        for algorithm in spec.signing_algorithms() {
            let signature = bytes(&made["signatures"][algorithm.as_str()]);
            key.verify(*algorithm, MessageType::Raw, MESSAGE, &signature).unwrap();
            key.verify(*algorithm, MessageType::Digest, &digest(algorithm.digest_len()), &signature).unwrap();
        }
        for algorithm in spec.encryption_algorithms() {
            let ciphertext = bytes(&made["ciphertexts"][algorithm.as_str()]);
            assert_eq!(key.decrypt(*algorithm, &ciphertext).unwrap()[..], *MESSAGE);
        }
        if !spec.key_agreement_algorithms().is_empty() {
            let secret = key.derive_shared_secret(&bytes(&made["peer"])).unwrap();
            assert_eq!(secret[..], bytes(&made["secret"]), "{spec}");
        }
        let foreign = Material::from_bytes(spec, &bytes(&made["foreign"])).unwrap();
        assert_eq!(foreign.public_key_der().unwrap(), bytes(&made["foreign_public"]), "{spec}");
    }
}

#[test]
fn macs() {
    let keys = keys(KeySpec::is_hmac);
    let case = |key: &Material| json!({"spec": key.spec().as_str(), "key": base64(key.to_bytes().unwrap()), "message": base64(MESSAGE)});
    let Some(answer) = python(&only("macs", keys.iter().map(case).collect())) else { return };
    for (key, mac) in keys.iter().zip(answer["macs"].as_array().unwrap()) {
        let algorithm = key.spec().mac_algorithms()[0];
        assert_eq!(key.mac(algorithm, MESSAGE).unwrap(), bytes(mac), "{}", key.spec());
        key.verify_mac(algorithm, MESSAGE, &bytes(mac)).unwrap();
    }
}

#[test]
fn imports_in_every_way() {
    let wrapping: Vec<_> =
        WrappingKeySpec::ALL.iter().map(|spec| (*spec, WrappingKey::generate(*spec).unwrap())).collect();
    let ways = |wrapping: WrappingKeySpec| {
        let all = KeySpec::ALL.iter().flat_map(|spec| WrappingAlgorithm::ALL.iter().map(move |way| (*spec, *way)));
        // RSA-4096 takes seconds to make, and is carried like RSA-3072.
        all.filter(move |(spec, way)| way.accepts(*spec, wrapping) && *spec != KeySpec::Rsa4096)
    };
    let cases = wrapping.iter().map(|(spec, key)| {
        let ways: Vec<_> = ways(*spec).map(|(spec, way)| [spec.as_str(), way.as_str()]).collect();
        json!({"public": base64(key.public_key_der().unwrap()), "ways": ways})
    });
    let Some(answer) = python(&only("imports", cases.collect())) else { return };
    for ((wrapping, key), made) in wrapping.iter().zip(answer["imports"].as_array().unwrap()) {
        let made = made.as_array().unwrap();
        assert_eq!(made.len(), 2 * ways(*wrapping).count());
        for ((spec, way), made) in ways(*wrapping).zip(made.chunks(2)) {
            let material = key
                .unwrap_material(way, &bytes(&made[0]), spec)
                .unwrap_or_else(|e| panic!("{spec} by {way} under {wrapping}: {e}"));
            let known = match spec.is_asymmetric() {
                true => material.public_key_der().unwrap(),
                false => Sha256::digest(material.to_bytes().unwrap()).to_vec(),
            };
            assert_eq!(known, bytes(&made[1]), "{spec} by {way} under {wrapping}");
        }
    }
}

/// A ciphertext needs no more than its key and doc/KMS.md to be opened.
#[test]
fn symmetric_ciphertexts_and_material_ids_are_as_documented() {
    let key = Material::generate(KeySpec::SymmetricDefault).unwrap();
    let named = symmetric::Named { key: [0x5a; 16], material: key.id(&[0x5a; 16]).unwrap() };
    let contexts = [
        BTreeMap::new(),
        BTreeMap::from([("app", "billing"), ("Ä", "ü"), ("a", "")].map(|(n, v)| (n.to_owned(), v.to_owned()))),
    ];
    let mut request = only("symmetric", Vec::new());
    for (context, plaintext) in contexts.iter().flat_map(|context| [(context, MESSAGE), (context, &[7; 4096])]) {
        let blob = symmetric::seal(&key, &named, &symmetric::canonical_context(context), plaintext).unwrap();
        request["symmetric"].as_array_mut().unwrap().push(json!({
            "key": base64(key.to_bytes().unwrap()), "blob": base64(blob), "context": context,
            "key_id": base64(named.key), "material_id": base64(named.material),
        }));
    }
    let others = keys(|spec| !spec.is_rsa());
    request["ids"] = others
        .iter()
        .map(|key| {
            json!({"key": base64(key.to_bytes().unwrap()), "spec": key.spec().as_str(), "key_id": base64([9; 16])})
        })
        .collect();
    let Some(answer) = python(&request) else { return };
    for (made, plaintext) in answer["symmetric"].as_array().unwrap().iter().zip([MESSAGE, &[7; 4096]].iter().cycle()) {
        assert_eq!(bytes(made), *plaintext);
    }
    for (made, key) in answer["ids"].as_array().unwrap().iter().zip(&others) {
        assert_eq!(bytes(made), key.id(&[9; 16]).unwrap());
    }
}
