//! States of keys, and what they allow; rotation; imported material.

use data_encoding::BASE64;

use super::*;

#[test]
fn every_state_is_enforced_in_every_operation() {
    let world = World::new();
    let key = world.key();
    let blob = world.encrypt(&key);
    let use_it = || {
        [
            code(world.root("Encrypt", json!({"KeyId": key, "Plaintext": "aGVsbG8="}))),
            code(world.decrypt(&blob)),
            code(world.root("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"}))),
            code(world.root("GenerateDataKeyWithoutPlaintext", json!({"KeyId": key, "NumberOfBytes": 7}))),
            code(world.root("GenerateDataKeyPair", json!({"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}))),
            code(world.root("ReEncrypt", json!({"CiphertextBlob": blob, "DestinationKeyId": key}))),
            code(world.root("RotateKeyOnDemand", json!({"KeyId": key}))),
            code(world.root("EnableKeyRotation", json!({"KeyId": key}))),
            code(world.root(
                "CreateGrant",
                json!({"KeyId": key, "GranteePrincipal": "arn:aws:iam::123456789012:root", "Operations": ["Decrypt"]}),
            )),
        ]
    };
    assert_eq!(use_it(), ["success"; 9]);
    world.root("DisableKey", json!({"KeyId": key})).unwrap();
    assert_eq!(use_it(), ["DisabledException"; 9]);
    world.root("EnableKey", json!({"KeyId": key})).unwrap();
    let answer = world.root("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 7})).unwrap();
    assert_eq!(answer["KeyState"], "PendingDeletion");
    assert_eq!(use_it(), ["KMSInvalidStateException"; 9]);
    for operation in ["EnableKey", "DisableKey", "ScheduleKeyDeletion"] {
        assert_eq!(code(world.root(operation, json!({"KeyId": key}))), "KMSInvalidStateException", "{operation}");
    }
    let error = world.decrypt(&blob).unwrap_err();
    assert!(error.message.unwrap().ends_with(" is pending deletion."));
    world.root("CancelKeyDeletion", json!({"KeyId": key})).unwrap();
    assert_eq!(world.state(&key), "Disabled");
    assert_eq!(code(world.root("CancelKeyDeletion", json!({"KeyId": key}))), "KMSInvalidStateException");
    world.root("EnableKey", json!({"KeyId": key})).unwrap();
    assert_eq!(world.decrypt(&blob).unwrap(), "aGVsbG8=");
}

#[test]
fn a_key_is_gone_when_its_window_has_passed() {
    let mut world = World::new();
    let key = world.key();
    let blob = world.encrypt(&key);
    world.root("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key})).unwrap();
    world.root("ScheduleKeyDeletion", json!({"KeyId": key, "PendingWindowInDays": 7})).unwrap();
    for window in [6, 31] {
        let input = json!({"KeyId": key, "PendingWindowInDays": window});
        assert_eq!(code(world.root("ScheduleKeyDeletion", input)), "ValidationException");
    }
    world.advance(7 * DAY - 60_000);
    assert_eq!(world.state(&key), "PendingDeletion");
    world.restart();
    world.advance(61_000);
    // Before and after the sweep, which takes it from the disk.
    for _ in 0..2 {
        assert_eq!(code(world.root("DescribeKey", json!({"KeyId": key}))), "NotFoundException");
        assert_eq!(code(world.root("CancelKeyDeletion", json!({"KeyId": key}))), "NotFoundException");
        assert_eq!(code(world.root("DescribeKey", json!({"KeyId": "alias/a"}))), "NotFoundException");
        assert_eq!(code(world.decrypt(&blob)), "AccessDeniedException");
        assert_eq!(world.root("ListKeys", json!({})).unwrap()["Keys"], json!([]));
        assert_eq!(world.root("ListAliases", json!({})).unwrap()["Aliases"], json!([]));
        world.service().sweep();
    }
    world.restart();
    assert!(world.service().view().keys.is_empty());
    assert!(world.service().view().aliases.is_empty());
}

#[test]
fn ciphertexts_open_after_rotations() {
    let mut world = World::new();
    let key = world.key();
    let material = |world: &World| {
        let answer = world.root("DescribeKey", json!({"KeyId": key})).unwrap();
        answer["KeyMetadata"]["CurrentKeyMaterialId"].as_str().unwrap().to_owned()
    };
    let (first, first_id) = (world.encrypt(&key), material(&world));
    world.root("EnableKeyRotation", json!({"KeyId": key, "RotationPeriodInDays": 90})).unwrap();
    world.root("DisableKey", json!({"KeyId": key})).unwrap();
    world.advance(91 * DAY);
    world.service().sweep();
    assert_eq!(material(&world), first_id, "a disabled key is not rotated");
    world.root("EnableKey", json!({"KeyId": key})).unwrap();
    world.service().sweep();
    let (second, second_id) = (world.encrypt(&key), material(&world));
    assert_ne!(first_id, second_id);
    world.root("RotateKeyOnDemand", json!({"KeyId": key})).unwrap();
    let third = world.encrypt(&key);
    world.restart();
    for blob in [&first, &second, &third] {
        assert_eq!(world.decrypt(blob).unwrap(), "aGVsbG8=");
    }
    let answer = world.root("Decrypt", json!({"CiphertextBlob": first})).unwrap();
    assert_eq!(answer["KeyMaterialId"], first_id.as_str());
    let rotations = world.root("ListKeyRotations", json!({"KeyId": key})).unwrap();
    let kinds: Vec<&Value> = rotations["Rotations"].as_array().unwrap().iter().map(|r| &r["RotationType"]).collect();
    assert_eq!(kinds, ["AUTOMATIC", "ON_DEMAND"]);
    let all = world
        .root("ListKeyRotations", json!({"KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL", "Limit": 2}))
        .unwrap();
    assert_eq!((all["Rotations"].as_array().unwrap().len(), &all["Truncated"]), (2, &json!(true)));
    let status = world.root("GetKeyRotationStatus", json!({"KeyId": key})).unwrap();
    assert_eq!((&status["KeyRotationEnabled"], &status["RotationPeriodInDays"]), (&json!(true), &json!(90)));
    for _ in 1..25 {
        world.root("RotateKeyOnDemand", json!({"KeyId": key})).unwrap();
    }
    assert_eq!(code(world.root("RotateKeyOnDemand", json!({"KeyId": key}))), "LimitExceededException");
}

/// What a client does with the answer of GetParametersForImport.
fn wrapped(parameters: &Value, material: &[u8]) -> String {
    use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
    let der = BASE64.decode(parameters["PublicKey"].as_str().unwrap().as_bytes()).unwrap();
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&der).unwrap()).unwrap();
    let mut out = vec![0; key.ciphertext_size()];
    BASE64.encode(key.encrypt(&OAEP_SHA256_MGF1SHA256, material, &mut out, None).unwrap())
}

struct Importing<'a> {
    world: &'a World,
    key: &'a str,
    parameters: Value,
}

impl<'a> Importing<'a> {
    fn new(world: &'a World, key: &'a str) -> Self {
        let input = json!({"KeyId": key, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"});
        Self { world, key, parameters: world.root("GetParametersForImport", input).unwrap() }
    }

    fn import(&self, material: &[u8], more: Value) -> Result<Value, ApiError> {
        let mut input = json!({
            "KeyId": self.key,
            "ImportToken": self.parameters["ImportToken"],
            "EncryptedKeyMaterial": wrapped(&self.parameters, material),
            "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
        });
        for (name, value) in more.as_object().unwrap() {
            input[name] = value.clone();
        }
        self.world.root("ImportKeyMaterial", input)
    }
}

#[test]
fn imported_material_expires_and_comes_back() {
    let mut world = World::new();
    let key = id_of(&world.root("CreateKey", json!({"Origin": "EXTERNAL"})).unwrap());
    assert_eq!(world.state(&key), "PendingImport");
    let error = world.root("Encrypt", json!({"KeyId": key, "Plaintext": "aGVsbG8="})).unwrap_err();
    assert!(error.code == "KMSInvalidStateException" && error.message.unwrap().ends_with(" is pending import."));
    let importing = Importing::new(&world, &key);
    let end = (world.service().now() + DAY / 2) / 1000;
    assert_eq!(
        code(importing.import(&[7; 32], json!({"ExpirationModel": "KEY_MATERIAL_EXPIRES"}))),
        "ValidationException"
    );
    assert_eq!(code(importing.import(&[7; 31], json!({}))), "IncorrectKeyMaterialException");
    assert_eq!(code(importing.import(&[7; 32], json!({"ImportToken": "AAAA"}))), "InvalidImportTokenException");
    importing.import(&[7; 32], json!({"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": end})).unwrap();
    assert_eq!(world.state(&key), "Enabled");
    let blob = world.encrypt(&key);
    assert_eq!(code(importing.import(&[8; 32], json!({}))), "IncorrectKeyMaterialException");
    assert_eq!(code(world.root("EnableKeyRotation", json!({"KeyId": key}))), "UnsupportedOperationException");
    world.advance(DAY / 2 + 1000);
    assert_eq!(code(world.decrypt(&blob)), "KMSInvalidStateException");
    world.service().sweep();
    assert_eq!(world.state(&key), "PendingImport");
    world.advance(DAY);
    {
        let late = Importing { world: &world, key: &key, parameters: importing.parameters };
        assert_eq!(code(late.import(&[7; 32], json!({}))), "ExpiredImportTokenException");
    }
    world.restart();
    Importing::new(&world, &key).import(&[7; 32], json!({})).unwrap();
    assert_eq!(world.decrypt(&blob).unwrap(), "aGVsbG8=");
    world.root("DeleteImportedKeyMaterial", json!({"KeyId": key})).unwrap();
    assert_eq!(world.state(&key), "PendingImport");
    assert_eq!(code(world.decrypt(&blob)), "KMSInvalidStateException");
    let generated = world.key();
    assert_eq!(
        code(world.root("DeleteImportedKeyMaterial", json!({"KeyId": generated}))),
        "UnsupportedOperationException"
    );
}

#[test]
fn imported_keys_rotate_on_demand_with_new_material() {
    let world = World::new();
    let key = id_of(&world.root("CreateKey", json!({"Origin": "EXTERNAL"})).unwrap());
    let importing = Importing::new(&world, &key);
    importing.import(&[1; 32], json!({})).unwrap();
    let first = world.encrypt(&key);
    assert_eq!(code(world.root("RotateKeyOnDemand", json!({"KeyId": key}))), "KMSInvalidStateException");
    importing.import(&[2; 32], json!({"ImportType": "NEW_KEY_MATERIAL", "KeyMaterialDescription": "second"})).unwrap();
    let state = |world: &World| {
        let input = json!({"KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"});
        let all = world.root("ListKeyRotations", input).unwrap();
        all["Rotations"].as_array().unwrap().iter().map(|r| r["KeyMaterialState"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(state(&world), ["CURRENT", "PENDING_ROTATION"]);
    world.root("RotateKeyOnDemand", json!({"KeyId": key})).unwrap();
    assert_eq!(state(&world), ["NON_CURRENT", "CURRENT"]);
    assert_eq!(world.decrypt(&first).unwrap(), "aGVsbG8=");
}

#[test]
fn dry_runs_end_after_every_check() {
    let world = World::new();
    let key = world.key();
    let blob = world.encrypt(&key);
    for (operation, input) in [
        ("Encrypt", json!({"KeyId": key, "Plaintext": "aGVsbG8=", "DryRun": true})),
        ("Decrypt", json!({"CiphertextBlob": blob, "DryRun": true})),
        ("Decrypt", json!({"KeyId": key, "DryRun": true, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]})),
        ("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256", "DryRun": true})),
        (
            "CreateGrant",
            json!({"KeyId": key, "GranteePrincipal": "arn:aws:iam::123456789012:root", "Operations": ["Decrypt"], "DryRun": true}),
        ),
    ] {
        assert_eq!(code(world.root(operation, input)), "DryRunOperationException", "{operation}");
    }
    assert_eq!(world.root("ListGrants", json!({"KeyId": key})).unwrap()["Grants"], json!([]));
    let other = json!({"CiphertextBlob": blob, "DryRun": true, "EncryptionContext": {"a": "b"}});
    assert_eq!(code(world.root("Decrypt", other)), "InvalidCiphertextException");
}

#[test]
fn key_pairs_and_macs() {
    let world = World::new();
    let make =
        |spec: &str, usage: &str| id_of(&world.root("CreateKey", json!({"KeySpec": spec, "KeyUsage": usage})).unwrap());
    let signer = make("ECC_NIST_P256", "SIGN_VERIFY");
    let signed = world
        .root("Sign", json!({"KeyId": signer, "Message": "aGVsbG8=", "SigningAlgorithm": "ECDSA_SHA_256"}))
        .unwrap();
    let verify = |message: &str| {
        let input = json!({"KeyId": signer, "Message": message, "Signature": signed["Signature"], "SigningAlgorithm": "ECDSA_SHA_256"});
        code(world.root("Verify", input))
    };
    assert_eq!((verify("aGVsbG8="), verify("aGVsbG9v")), ("success", "KMSInvalidSignatureException"));
    let short =
        json!({"KeyId": signer, "Message": "aGVsbG8=", "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"});
    assert_eq!(
        world.root("Sign", short).unwrap_err().message.unwrap(),
        "Digest is invalid length for algorithm ECDSA_SHA_256."
    );
    let misused = world.root("Encrypt", json!({"KeyId": signer, "Plaintext": "aGVsbG8="})).unwrap_err();
    assert_eq!(misused.code, "InvalidKeyUsageException");
    assert!(misused.message.unwrap().ends_with("key usage is SIGN_VERIFY which is not valid for Encrypt."));
    assert_eq!(code(world.root("GetPublicKey", json!({"KeyId": signer}))), "success");
    assert_eq!(code(world.root("GetPublicKey", json!({"KeyId": world.key()}))), "UnsupportedOperationException");
    let mac = make("HMAC_256", "GENERATE_VERIFY_MAC");
    let made = world
        .root("GenerateMac", json!({"KeyId": mac, "Message": "aGVsbG8=", "MacAlgorithm": "HMAC_SHA_256"}))
        .unwrap();
    let check = |message: &str| {
        let input = json!({"KeyId": mac, "Message": message, "Mac": made["Mac"], "MacAlgorithm": "HMAC_SHA_256"});
        code(world.root("VerifyMac", input))
    };
    assert_eq!((check("aGVsbG8="), check("aGVsbG9v")), ("success", "KMSInvalidMacException"));
    assert_eq!(code(world.root("CreateKey", json!({"KeySpec": "HMAC_256"}))), "ValidationException");
    assert_eq!(
        code(world.root("CreateKey", json!({"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"}))),
        "UnsupportedOperationException"
    );
    assert_eq!(code(world.root("CreateKey", json!({"MultiRegion": true}))), "UnsupportedOperationException");
}
