//! aws-sdk-kms: each operation that it knows (1.99 has no GetKeyLastUsage), its answers by type, its exceptions by type.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_sdk_kms::config::{BehaviorVersion, Credentials as Keys, Region, retry::RetryConfig};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    AlgorithmSpec, DataKeyPairSpec, DataKeySpec, ExpirationModelType, GrantOperation, KeyAgreementAlgorithmSpec,
    KeySpec, KeyState, KeyUsageType, MacAlgorithmSpec, MessageType, OriginType, SigningAlgorithmSpec, Tag,
    WrappingKeySpec,
};
use aws_sdk_kms::{Client, Config};

use super::*;

fn client(own: &Own) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(own.endpoint())
        .credentials_provider(Keys::new(&own.root.id, &own.root.secret, None, None, "test"))
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// The code of what was refused.
fn code<T, E: ProvideErrorMetadata, R>(result: Result<T, SdkError<E, R>>) -> String {
    match result {
        Ok(_) => "none".into(),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    }
}
/// The exception is of the type that this method asks for: `refused!(call, is_not_found_exception)`.
macro_rules! refused {
    ($call:expr, $is:ident) => {
        match $call.send().await {
            Ok(_) => panic!("{} worked", stringify!($call)),
            Err(error) => {
                let error = error.into_service_error();
                assert!(error.$is(), "{}: {error:?}", stringify!($call));
            }
        }
    };
}

async fn key(kms: &Client, spec: KeySpec, usage: KeyUsageType) -> String {
    let made = kms.create_key().key_spec(spec).key_usage(usage).send().await.unwrap();
    made.key_metadata.unwrap().key_id
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

#[test]
fn the_rust_sdk_drives_every_operation() {
    let own = Own::start();
    own.user("other");
    let kms = client(&own);
    block_on(async {
        let id = &keys(&kms).await;
        encryption(&kms, id).await;
        proofs(&kms).await;
        import(&kms).await;
        rotation_and_policy(&kms, id).await;
        grants(&kms, id).await;
        states(&kms, id).await;
        unsupported(&kms, id).await;
    });
}

async fn keys(kms: &Client) -> String {
    let tag = Tag::builder().tag_key("a").tag_value("1").build().unwrap();
    let made = kms.create_key().description("by the SDK").tags(tag.clone()).send().await.unwrap().key_metadata.unwrap();
    assert_eq!((made.key_state, made.enabled), (Some(KeyState::Enabled), true));
    let id = made.key_id;
    let described = kms.describe_key().key_id(made.arn.unwrap()).send().await.unwrap().key_metadata.unwrap();
    assert_eq!(described.description.as_deref(), Some("by the SDK"));
    refused!(kms.describe_key().key_id("alias/none"), is_not_found_exception);
    let other = key(kms, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await;
    let mut pages = kms.list_keys().limit(1).into_paginator().send();
    let mut seen = Vec::new();
    while let Some(page) = pages.next().await {
        seen.extend(page.unwrap().keys.unwrap().into_iter().filter_map(|key| key.key_id));
    }
    assert!(seen.contains(&id) && seen.contains(&other));
    kms.update_key_description().key_id(&id).description("d").send().await.unwrap();
    kms.create_alias().alias_name("alias/app").target_key_id(&other).send().await.unwrap();
    refused!(kms.create_alias().alias_name("alias/app").target_key_id(&id), is_already_exists_exception);
    kms.update_alias().alias_name("alias/app").target_key_id(&id).send().await.unwrap();
    let aliases = kms.list_aliases().key_id(&id).send().await.unwrap().aliases.unwrap();
    assert_eq!(aliases[0].alias_name.as_deref(), Some("alias/app"));
    kms.create_alias().alias_name("alias/gone").target_key_id(&id).send().await.unwrap();
    kms.delete_alias().alias_name("alias/gone").send().await.unwrap();
    kms.tag_resource()
        .key_id(&id)
        .tags(Tag::builder().tag_key("b").tag_value("2").build().unwrap())
        .send()
        .await
        .unwrap();
    kms.untag_resource().key_id(&id).tag_keys("b").send().await.unwrap();
    assert_eq!(kms.list_resource_tags().key_id(&id).send().await.unwrap().tags.unwrap(), [tag]);
    id
}

async fn encryption(kms: &Client, id: &str) {
    let other = key(kms, KeySpec::SymmetricDefault, KeyUsageType::EncryptDecrypt).await;
    let sealed = kms.encrypt().key_id("alias/app").plaintext(Blob::new("secret")).encryption_context("a", "b");
    let blob = sealed.send().await.unwrap().ciphertext_blob.unwrap();
    let opened = kms.decrypt().ciphertext_blob(blob.clone()).encryption_context("a", "b").send().await.unwrap();
    assert_eq!(opened.plaintext.unwrap().as_ref(), b"secret");
    refused!(kms.decrypt().ciphertext_blob(blob.clone()), is_invalid_ciphertext_exception);
    let wrong = kms.decrypt().ciphertext_blob(blob.clone()).encryption_context("a", "b").key_id(&other);
    refused!(wrong, is_incorrect_key_exception);
    refused!(kms.encrypt().key_id(id).plaintext(Blob::new("x")).dry_run(true), is_dry_run_operation_exception);
    let moved = kms.re_encrypt().ciphertext_blob(blob).source_encryption_context("a", "b").destination_key_id(&other);
    let moved = moved.send().await.unwrap().ciphertext_blob.unwrap();
    assert_eq!(kms.decrypt().ciphertext_blob(moved).send().await.unwrap().plaintext.unwrap().as_ref(), b"secret");

    let made = kms.generate_data_key().key_id(id).key_spec(DataKeySpec::Aes256).send().await.unwrap();
    let opened = kms.decrypt().ciphertext_blob(made.ciphertext_blob.unwrap()).send().await.unwrap();
    assert_eq!(opened.plaintext, made.plaintext);
    kms.generate_data_key_without_plaintext().key_id(id).number_of_bytes(64).send().await.unwrap();
    let pair =
        kms.generate_data_key_pair().key_id(id).key_pair_spec(DataKeyPairSpec::EccNistP256).send().await.unwrap();
    let opened = kms.decrypt().ciphertext_blob(pair.private_key_ciphertext_blob.unwrap()).send().await.unwrap();
    assert_eq!(opened.plaintext, pair.private_key_plaintext);
    let alone = kms.generate_data_key_pair_without_plaintext().key_id(id).key_pair_spec(DataKeyPairSpec::Rsa2048);
    assert!(alone.send().await.unwrap().public_key.is_some());
    let random = kms.generate_random().number_of_bytes(1024).send().await.unwrap().plaintext.unwrap();
    assert_eq!(random.as_ref().len(), 1024);
    let long = kms.encrypt().key_id(id).plaintext(Blob::new(vec![0; 4097])).send().await;
    assert_eq!(code(long), "ValidationException");
}

async fn proofs(kms: &Client) {
    let message = || Blob::new("a message");
    let signer = key(kms, KeySpec::Rsa2048, KeyUsageType::SignVerify).await;
    let algorithm = SigningAlgorithmSpec::RsassaPssSha256;
    let sign = kms.sign().key_id(&signer).message(message()).signing_algorithm(algorithm.clone());
    let signature = sign.send().await.unwrap().signature.unwrap();
    let verify = || kms.verify().key_id(&signer).message(message()).signing_algorithm(algorithm.clone());
    assert!(verify().signature(signature.clone()).send().await.unwrap().signature_valid);
    refused!(verify().signature(Blob::new("x")), is_kms_invalid_signature_exception);
    let digest = kms.sign().key_id(&signer).message(message()).message_type(MessageType::Digest);
    assert_eq!(code(digest.signing_algorithm(algorithm.clone()).send().await), "ValidationException");
    refused!(kms.encrypt().key_id(&signer).plaintext(message()), is_invalid_key_usage_exception);

    let mac_key = key(kms, KeySpec::Hmac384, KeyUsageType::GenerateVerifyMac).await;
    let algorithm = MacAlgorithmSpec::HmacSha384;
    let make = kms.generate_mac().key_id(&mac_key).message(message()).mac_algorithm(algorithm.clone());
    let mac = make.send().await.unwrap().mac.unwrap();
    let verify = || kms.verify_mac().key_id(&mac_key).message(message()).mac_algorithm(algorithm.clone());
    assert!(verify().mac(mac).send().await.unwrap().mac_valid);
    refused!(verify().mac(Blob::new("x")), is_kms_invalid_mac_exception);

    let mut secrets = Vec::new();
    let keys = [
        key(kms, KeySpec::EccNistP384, KeyUsageType::KeyAgreement).await,
        key(kms, KeySpec::EccNistP384, KeyUsageType::KeyAgreement).await,
    ];
    for (mine, peer) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
        let public = kms.get_public_key().key_id(peer).send().await.unwrap().public_key.unwrap();
        let derive = kms.derive_shared_secret().key_id(mine).public_key(public);
        let derive = derive.key_agreement_algorithm(KeyAgreementAlgorithmSpec::Ecdh);
        secrets.push(derive.send().await.unwrap().shared_secret.unwrap());
    }
    assert_eq!(secrets[0], secrets[1]);
}

async fn import(kms: &Client) {
    let made = kms.create_key().origin(OriginType::External).send().await.unwrap().key_metadata.unwrap();
    assert_eq!(made.key_state, Some(KeyState::PendingImport));
    let id = &made.key_id;
    refused!(kms.encrypt().key_id(id).plaintext(Blob::new("x")), is_kms_invalid_state_exception);
    let parameters = kms.get_parameters_for_import().key_id(id).wrapping_key_spec(WrappingKeySpec::Rsa2048);
    let parameters = parameters.wrapping_algorithm(AlgorithmSpec::RsaesOaepSha256).send().await.unwrap();
    let public = PublicEncryptingKey::from_der(parameters.public_key.unwrap().as_ref()).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let mut wrapped = vec![0; public.ciphertext_size()];
    public.encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut wrapped, None).unwrap();
    let import = kms.import_key_material().key_id(id).import_token(parameters.import_token.unwrap());
    let import = import.expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire);
    refused!(import.clone().encrypted_key_material(Blob::new(vec![0; 256])), is_invalid_ciphertext_exception);
    import.encrypted_key_material(Blob::new(wrapped)).send().await.unwrap();
    let sealed = kms.encrypt().key_id(id).plaintext(Blob::new("x")).send().await.unwrap().ciphertext_blob.unwrap();
    kms.delete_imported_key_material().key_id(id).send().await.unwrap();
    refused!(kms.decrypt().ciphertext_blob(sealed), is_kms_invalid_state_exception);
}

async fn rotation_and_policy(kms: &Client, id: &str) {
    let sealed = kms.encrypt().key_id(id).plaintext(Blob::new("old")).send().await.unwrap().ciphertext_blob.unwrap();
    kms.enable_key_rotation().key_id(id).rotation_period_in_days(180).send().await.unwrap();
    let status = kms.get_key_rotation_status().key_id(id).send().await.unwrap();
    assert_eq!((status.key_rotation_enabled, status.rotation_period_in_days), (true, Some(180)));
    kms.disable_key_rotation().key_id(id).send().await.unwrap();
    kms.rotate_key_on_demand().key_id(id).send().await.unwrap();
    let rotations = kms.list_key_rotations().key_id(id).send().await.unwrap().rotations.unwrap();
    assert_eq!(rotations.len(), 1);
    assert_eq!(kms.decrypt().ciphertext_blob(sealed).send().await.unwrap().plaintext.unwrap().as_ref(), b"old");
    let policy = kms.get_key_policy().key_id(id).send().await.unwrap().policy.unwrap();
    kms.put_key_policy().key_id(id).policy(policy).send().await.unwrap();
    refused!(kms.put_key_policy().key_id(id).policy("{}"), is_malformed_policy_document_exception);
    assert_eq!(kms.list_key_policies().key_id(id).send().await.unwrap().policy_names.unwrap(), ["default"]);
}

async fn grants(kms: &Client, id: &str) {
    let other = format!("arn:aws:iam::{ACCOUNT}:user/other");
    let grant = || kms.create_grant().key_id(id).grantee_principal(&other).operations(GrantOperation::Decrypt);
    let (one, two) = (grant().name("one").send().await.unwrap(), grant().send().await.unwrap());
    assert_eq!(kms.list_grants().key_id(id).send().await.unwrap().grants.unwrap().len(), 2);
    assert!(kms.list_retirable_grants().retiring_principal(&other).send().await.unwrap().grants.unwrap().is_empty());
    kms.revoke_grant().key_id(id).grant_id(one.grant_id.unwrap()).send().await.unwrap();
    kms.retire_grant().grant_token(two.grant_token.unwrap()).send().await.unwrap();
    refused!(kms.revoke_grant().key_id(id).grant_id(two.grant_id.unwrap()), is_not_found_exception);
}

async fn states(kms: &Client, id: &str) {
    kms.disable_key().key_id(id).send().await.unwrap();
    refused!(kms.encrypt().key_id(id).plaintext(Blob::new("x")), is_disabled_exception);
    kms.enable_key().key_id(id).send().await.unwrap();
    let deletion = kms.schedule_key_deletion().key_id(id).pending_window_in_days(7).send().await.unwrap();
    assert_eq!(deletion.key_state, Some(KeyState::PendingDeletion));
    refused!(kms.encrypt().key_id(id).plaintext(Blob::new("x")), is_kms_invalid_state_exception);
    kms.cancel_key_deletion().key_id(id).send().await.unwrap();
    kms.enable_key().key_id(id).send().await.unwrap();
}

async fn unsupported(kms: &Client, id: &str) {
    let expected = "UnsupportedOperationException";
    assert_eq!(code(kms.create_custom_key_store().custom_key_store_name("s").send().await), expected);
    assert_eq!(code(kms.describe_custom_key_stores().send().await), expected);
    assert_eq!(code(kms.connect_custom_key_store().custom_key_store_id("c").send().await), expected);
    assert_eq!(code(kms.disconnect_custom_key_store().custom_key_store_id("c").send().await), expected);
    assert_eq!(code(kms.update_custom_key_store().custom_key_store_id("c").send().await), expected);
    assert_eq!(code(kms.delete_custom_key_store().custom_key_store_id("c").send().await), expected);
    refused!(kms.replicate_key().key_id(id).replica_region("eu-west-1"), is_unsupported_operation_exception);
    refused!(kms.update_primary_region().key_id(id).primary_region("eu-west-1"), is_unsupported_operation_exception);
}
