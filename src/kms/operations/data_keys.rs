//! GenerateDataKey and its kin: keys for use elsewhere, under a key here. Knows no use of them.

use data_encoding::BASE64;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::call::{Call, Found};
use super::cipher;
use crate::crypto::random;
use crate::kms::material::{DataKeySpec, EncryptionAlgorithm, KeySpec, KeyUsage, Material};
use crate::kms::policy::context;
use crate::kms::wire::ApiError;

pub fn generate_data_key(call: &Call<'_>) -> Result<Value, ApiError> {
    call.no_recipient()?;
    let (plaintext, mut answer) = data_key(call, "GenerateDataKey")?;
    answer.insert("Plaintext".into(), BASE64.encode(&plaintext).into());
    Ok(Value::Object(answer))
}

pub fn generate_data_key_without_plaintext(call: &Call<'_>) -> Result<Value, ApiError> {
    data_key(call, "GenerateDataKeyWithoutPlaintext").map(|(_, answer)| Value::Object(answer))
}

/// A key in the open, and the answer without it.
type DataKey = (Zeroizing<Vec<u8>>, Map<String, Value>);

fn data_key(call: &Call<'_>, action: &str) -> Result<DataKey, ApiError> {
    let found = call.find(call.input.required("KeyId")?)?;
    let pairs = call.encryption_context("EncryptionContext");
    allow(call, &found, action, None)?;
    call.usable(&found.key, KeyUsage::EncryptDecrypt)?;
    symmetric(call, &found)?;
    let len = match (call.input.text("KeySpec"), call.input.integer("NumberOfBytes")) {
        (Some(spec), None) => {
            spec.parse::<DataKeySpec>().map_err(|_| ApiError::validation("Unknown KeySpec."))?.bytes()
        }
        (None, Some(bytes)) => usize::try_from(bytes).map_err(|_| ApiError::internal())?,
        _ => return Err(ApiError::validation("Please specify either number of bytes or key spec.")),
    };
    call.dry_run()?;
    let mut plaintext = Zeroizing::new(vec![0; len]);
    random::fill(&mut plaintext);
    let (blob, material) = cipher::seal(call, &found.key, &pairs, &plaintext)?;
    call.used(&found.key);
    let mut answer = Map::new();
    answer.insert("CiphertextBlob".into(), BASE64.encode(&blob).into());
    answer.insert("KeyId".into(), found.key.arn.as_str().into());
    answer.insert("KeyMaterialId".into(), material.into());
    Ok((plaintext, answer))
}

pub fn generate_data_key_pair(call: &Call<'_>) -> Result<Value, ApiError> {
    call.no_recipient()?;
    let (private, mut answer) = data_key_pair(call, "GenerateDataKeyPair")?;
    answer["PrivateKeyPlaintext"] = BASE64.encode(&private).into();
    Ok(answer)
}

pub fn generate_data_key_pair_without_plaintext(call: &Call<'_>) -> Result<Value, ApiError> {
    data_key_pair(call, "GenerateDataKeyPairWithoutPlaintext").map(|(_, answer)| answer)
}

fn data_key_pair(call: &Call<'_>, action: &str) -> Result<(Zeroizing<Vec<u8>>, Value), ApiError> {
    let found = call.find(call.input.required("KeyId")?)?;
    let name = call.input.required("KeyPairSpec")?;
    let pairs = call.encryption_context("EncryptionContext");
    allow(call, &found, action, Some(name))?;
    call.usable(&found.key, KeyUsage::EncryptDecrypt)?;
    symmetric(call, &found)?;
    let spec: KeySpec = name
        .parse()
        .ok()
        .filter(|spec: &KeySpec| spec.is_asymmetric())
        .ok_or_else(|| ApiError::unsupported(format!("KeyPairSpec {name} is not supported by this service.")))?;
    call.dry_run()?;
    let pair = Material::generate(spec).map_err(|e| call.failed(e))?;
    let private = pair.to_bytes().map_err(|e| call.failed(e))?;
    let public = pair.public_key_der().map_err(|e| call.failed(e))?;
    let (blob, material) = cipher::seal(call, &found.key, &pairs, &private)?;
    call.used(&found.key);
    let answer = json!({
        "PrivateKeyCiphertextBlob": BASE64.encode(&blob),
        "PublicKey": BASE64.encode(&public),
        "KeyId": found.key.arn,
        "KeyPairSpec": name,
        "KeyMaterialId": material,
    });
    Ok((private, answer))
}

fn allow(call: &Call<'_>, found: &Found, action: &str, pair_spec: Option<&str>) -> Result<(), ApiError> {
    let pairs = call.encryption_context("EncryptionContext");
    call.allow(found, action, |context| {
        let mut context = cipher::shape(context, EncryptionAlgorithm::SymmetricDefault.as_str(), &pairs);
        if let Some(spec) = pair_spec {
            context.set(context::DATA_KEY_PAIR_SPEC, [spec]);
        }
        context
    })?;
    call.grant_tokens()
}

fn symmetric(call: &Call<'_>, found: &Found) -> Result<(), ApiError> {
    let _ = call;
    let key = &found.key;
    if key.record.spec == KeySpec::SymmetricDefault {
        return Ok(());
    }
    Err(ApiError::new(
        "InvalidKeyUsageException",
        format!("{} key spec is {} which is not valid for data keys.", key.arn, key.record.spec),
    ))
}
