//! GenerateMac, VerifyMac.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::call::{Call, Found};
use crate::kms::material::{KeyUsage, MacAlgorithm};
use crate::kms::policy::context;
use crate::kms::wire::ApiError;

pub fn generate_mac(call: &Call<'_>) -> Result<Value, ApiError> {
    let (found, algorithm) = begin(call, "GenerateMac")?;
    let message = call.input.required_blob("Message")?;
    call.dry_run()?;
    let (_, material) = super::cipher::current(call, &found.key)?;
    let mac = material.mac(algorithm, &message).map_err(|e| call.failed(e))?;
    call.used(&found.key);
    Ok(json!({"Mac": BASE64.encode(&mac), "MacAlgorithm": algorithm, "KeyId": found.key.arn}))
}

pub fn verify_mac(call: &Call<'_>) -> Result<Value, ApiError> {
    let (found, algorithm) = begin(call, "VerifyMac")?;
    let (message, mac) = (call.input.required_blob("Message")?, call.input.required_blob("Mac")?);
    call.dry_run()?;
    let (_, material) = super::cipher::current(call, &found.key)?;
    call.used(&found.key);
    material.verify_mac(algorithm, &message, &mac).map_err(|e| call.failed(e))?;
    Ok(json!({"KeyId": found.key.arn, "MacValid": true, "MacAlgorithm": algorithm}))
}

fn begin(call: &Call<'_>, action: &str) -> Result<(Found, MacAlgorithm), ApiError> {
    let found = call.find(call.input.required("KeyId")?)?;
    let name = call.input.required("MacAlgorithm")?;
    call.allow(&found, action, |mut context| {
        context.set(context::MAC_ALGORITHM, [name]);
        context
    })?;
    call.grant_tokens()?;
    call.usable(&found.key, KeyUsage::GenerateVerifyMac)?;
    let algorithm: Option<MacAlgorithm> = name.parse().ok();
    match algorithm.filter(|algorithm| found.key.record.spec.mac_algorithms().contains(algorithm)) {
        Some(algorithm) => Ok((found, algorithm)),
        None => Err(ApiError::new(
            "InvalidKeyUsageException",
            format!("Algorithm {name} is incompatible with key spec {}.", found.key.record.spec),
        )),
    }
}
