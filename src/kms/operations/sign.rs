//! Sign, Verify, GetPublicKey, DeriveSharedSecret: what key pairs are for.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::call::{Call, Found};
use super::cipher::current;
use crate::kms::material::{KeyUsage, MessageType, SigningAlgorithm};
use crate::kms::policy::context;
use crate::kms::wire::ApiError;

pub fn sign(call: &Call<'_>) -> Result<Value, ApiError> {
    let signing = Signing::begin(call, "Sign")?;
    let message = call.input.required_blob("Message")?;
    let (_, material) = current(call, &signing.found.key)?;
    // Before a dry run ends: the length of a digest is one of its checks.
    signing.check(&message)?;
    call.dry_run()?;
    let signature = material.sign(signing.algorithm, signing.kind, &message).map_err(|e| call.failed(e))?;
    call.used(&signing.found.key);
    Ok(json!({
        "KeyId": signing.found.key.arn,
        "Signature": BASE64.encode(&signature),
        "SigningAlgorithm": signing.algorithm,
    }))
}

pub fn verify(call: &Call<'_>) -> Result<Value, ApiError> {
    let signing = Signing::begin(call, "Verify")?;
    let (message, signature) = (call.input.required_blob("Message")?, call.input.required_blob("Signature")?);
    signing.check(&message)?;
    call.dry_run()?;
    let (_, material) = current(call, &signing.found.key)?;
    call.used(&signing.found.key);
    material.verify(signing.algorithm, signing.kind, &message, &signature).map_err(|e| call.failed(e))?;
    Ok(json!({"KeyId": signing.found.key.arn, "SignatureValid": true, "SigningAlgorithm": signing.algorithm}))
}

struct Signing {
    found: Found,
    algorithm: SigningAlgorithm,
    kind: MessageType,
}

impl Signing {
    fn begin(call: &Call<'_>, action: &str) -> Result<Self, ApiError> {
        let found = call.find(call.input.required("KeyId")?)?;
        let name = call.input.required("SigningAlgorithm")?;
        let kind = call.input.text("MessageType").unwrap_or(MessageType::Raw.as_str());
        call.allow(&found, action, |mut context| {
            context.set(context::SIGNING_ALGORITHM, [name]);
            context.set(context::MESSAGE_TYPE, [kind]);
            context
        })?;
        call.grant_tokens()?;
        call.usable(&found.key, KeyUsage::SignVerify)?;
        let algorithm: Option<SigningAlgorithm> = name.parse().ok();
        let fitting = algorithm.filter(|algorithm| found.key.record.spec.signing_algorithms().contains(algorithm));
        let Some(algorithm) = fitting else {
            return Err(ApiError::new(
                "InvalidKeyUsageException",
                format!("Algorithm {name} is incompatible with key spec {}.", found.key.record.spec),
            ));
        };
        let kind = kind.parse().map_err(|_| {
            ApiError::validation(format!("MessageType {kind} is not supported with algorithm {algorithm}."))
        })?;
        Ok(Self { found, algorithm, kind })
    }

    fn check(&self, message: &[u8]) -> Result<(), ApiError> {
        if self.kind == MessageType::Digest && message.len() != self.algorithm.digest_len() {
            return Err(ApiError::validation(format!("Digest is invalid length for algorithm {}.", self.algorithm)));
        }
        Ok(())
    }
}

pub fn get_public_key(call: &Call<'_>) -> Result<Value, ApiError> {
    let found = call.find(call.input.required("KeyId")?)?;
    call.allow(&found, "GetPublicKey", |context| context)?;
    call.grant_tokens()?;
    let record = &found.key.record;
    if !record.spec.is_asymmetric() {
        return Err(ApiError::unsupported(format!(
            "{} key spec is {} which is not valid for GetPublicKey.",
            found.key.arn, record.spec
        )));
    }
    call.enabled(&found.key)?;
    let (_, material) = current(call, &found.key)?;
    let public = material.public_key_der().map_err(|e| call.failed(e))?;
    let mut answer = json!({
        "KeyId": found.key.arn,
        "PublicKey": BASE64.encode(&public),
        "CustomerMasterKeySpec": record.spec,
        "KeySpec": record.spec,
        "KeyUsage": record.usage,
    });
    match record.usage {
        KeyUsage::EncryptDecrypt => answer["EncryptionAlgorithms"] = json!(record.spec.encryption_algorithms()),
        KeyUsage::SignVerify => answer["SigningAlgorithms"] = json!(record.spec.signing_algorithms()),
        KeyUsage::KeyAgreement => answer["KeyAgreementAlgorithms"] = json!(record.spec.key_agreement_algorithms()),
        KeyUsage::GenerateVerifyMac => {}
    }
    Ok(answer)
}

pub fn derive_shared_secret(call: &Call<'_>) -> Result<Value, ApiError> {
    call.no_recipient()?;
    let found = call.find(call.input.required("KeyId")?)?;
    let algorithm = call.input.required("KeyAgreementAlgorithm")?;
    call.allow(&found, "DeriveSharedSecret", |mut context| {
        context.set(context::KEY_AGREEMENT_ALGORITHM, [algorithm]);
        context
    })?;
    call.grant_tokens()?;
    call.usable(&found.key, KeyUsage::KeyAgreement)?;
    let public = call.input.required_blob("PublicKey")?;
    call.dry_run()?;
    let (_, material) = current(call, &found.key)?;
    let secret = material.derive_shared_secret(&public).map_err(|e| call.failed(e))?;
    call.used(&found.key);
    Ok(json!({
        "KeyId": found.key.arn,
        "SharedSecret": BASE64.encode(&secret),
        "KeyAgreementAlgorithm": algorithm,
        "KeyOrigin": found.key.record.origin.as_str(),
    }))
}
