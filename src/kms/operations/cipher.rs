//! Encrypt, Decrypt, ReEncrypt. Knows algorithms by name only.

use std::collections::BTreeMap;

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{Call, Found};
use crate::kms::material::{EncryptionAlgorithm, KeyUsage, key_id_text, symmetric};
use crate::kms::policy::{Context, context};
use crate::kms::view::Key;
use crate::kms::wire::ApiError;

pub fn encrypt(call: &Call<'_>) -> Result<Value, ApiError> {
    let found = call.find(call.input.required("KeyId")?)?;
    let side = Side {
        call,
        key: &found.key,
        algorithm: "EncryptionAlgorithm",
        pairs: call.encryption_context("EncryptionContext"),
    };
    call.allow(&found, "Encrypt", |context| side.shape(context))?;
    call.grant_tokens()?;
    side.usable()?;
    let plaintext = call.input.required_blob("Plaintext")?;
    side.fits(plaintext.len())?;
    call.dry_run()?;
    let (blob, _) = side.seal(&plaintext)?;
    call.used(&found.key);
    Ok(json!({
        "CiphertextBlob": BASE64.encode(&blob),
        "KeyId": found.key.arn,
        "EncryptionAlgorithm": side.name(),
    }))
}

pub fn decrypt(call: &Call<'_>) -> Result<Value, ApiError> {
    call.no_recipient()?;
    let blob = ciphertext(call)?;
    let found = source(call, "KeyId", "EncryptionAlgorithm", blob.as_deref().map(Vec::as_slice))?;
    let side = Side {
        call,
        key: &found.key,
        algorithm: "EncryptionAlgorithm",
        pairs: call.encryption_context("EncryptionContext"),
    };
    call.allow(&found, "Decrypt", |context| side.shape(context)).map_err(|error| {
        // Whoever named no key need not learn which one it is.
        if call.input.has("KeyId") { error } else { not_allowed() }
    })?;
    call.grant_tokens()?;
    side.usable()?;
    let Some(blob) = blob else {
        call.dry_run()?;
        return Err(missing_ciphertext());
    };
    let (plaintext, material) = side.open(&blob)?;
    call.dry_run()?;
    call.used(&found.key);
    let mut answer = json!({
        "KeyId": found.key.arn,
        "Plaintext": BASE64.encode(&plaintext),
        "EncryptionAlgorithm": side.name(),
    });
    if let Some(material) = material {
        answer["KeyMaterialId"] = material.into();
    }
    Ok(answer)
}

pub fn re_encrypt(call: &Call<'_>) -> Result<Value, ApiError> {
    let blob = ciphertext(call)?;
    let from = source(call, "SourceKeyId", "SourceEncryptionAlgorithm", blob.as_deref().map(Vec::as_slice))?;
    let to = call.find(call.input.required("DestinationKeyId")?)?;
    let source = Side {
        call,
        key: &from.key,
        algorithm: "SourceEncryptionAlgorithm",
        pairs: call.encryption_context("SourceEncryptionContext"),
    };
    let destination = Side {
        call,
        key: &to.key,
        algorithm: "DestinationEncryptionAlgorithm",
        pairs: call.encryption_context("DestinationEncryptionContext"),
    };
    let same = from.key.record.id == to.key.record.id;
    let shape = |side: &Side<'_, '_>, context: Context| {
        let mut context = side.shape(context);
        context.set(context::RE_ENCRYPT_ON_SAME_KEY, [same.to_string()]);
        context
    };
    call.allow(&from, "ReEncryptFrom", |context| shape(&source, context))?;
    call.allow(&to, "ReEncryptTo", |context| shape(&destination, context))?;
    call.grant_tokens()?;
    source.usable()?;
    destination.usable()?;
    let Some(blob) = blob else {
        call.dry_run()?;
        return Err(missing_ciphertext());
    };
    let (plaintext, from_material) = source.open(&blob)?;
    destination.fits(plaintext.len())?;
    call.dry_run()?;
    let (blob, to_material) = destination.seal(&plaintext)?;
    call.used(&from.key);
    call.used(&to.key);
    let mut answer = json!({
        "CiphertextBlob": BASE64.encode(&blob),
        "SourceKeyId": from.key.arn,
        "KeyId": to.key.arn,
        "SourceEncryptionAlgorithm": source.name(),
        "DestinationEncryptionAlgorithm": destination.name(),
    });
    for (name, material) in [("SourceKeyMaterialId", from_material), ("DestinationKeyMaterialId", to_material)] {
        if let Some(material) = material {
            answer[name] = material.into();
        }
    }
    Ok(answer)
}

/// `None` where a dry run leaves the ciphertext out, as it may.
fn ciphertext(call: &Call<'_>) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
    let blob = call.input.blob("CiphertextBlob")?;
    let may_lack = call.input.flag("DryRun") && call.input.texts("DryRunModifiers").contains(&"IGNORE_CIPHERTEXT");
    if may_lack {
        return Ok(None);
    }
    if blob.is_none() {
        return Err(missing_ciphertext());
    }
    Ok(blob)
}

fn missing_ciphertext() -> ApiError {
    ApiError::validation(
        "1 validation error detected: Value at 'ciphertextBlob' failed to satisfy constraint: Member must not be null",
    )
}

/// The key that a ciphertext was made under: the one that the request names, or the one that the ciphertext does.
fn source(call: &Call<'_>, key: &str, algorithm: &str, blob: Option<&[u8]>) -> Result<Found, ApiError> {
    let named = call.input.text(key).map(|name| call.find(name)).transpose()?;
    let algorithm = call.input.text(algorithm).unwrap_or(EncryptionAlgorithm::SymmetricDefault.as_str());
    if algorithm != EncryptionAlgorithm::SymmetricDefault.as_str() {
        return named.ok_or_else(|| ApiError::validation("KeyId is required to decrypt with an asymmetric key."));
    }
    let Some(blob) = blob else {
        return named.ok_or_else(|| ApiError::validation("KeyId is required where the ciphertext is left out."));
    };
    match (named, symmetric::parse(blob)) {
        (Some(named), Ok(inside)) => {
            if key_id_text(&inside.key) != named.key.record.id {
                // Whoever may not use the key he names learns nothing about the ciphertext.
                call.allow(&named, "Decrypt", |context| context)?;
                return Err(ApiError::new(
                    "IncorrectKeyException",
                    "The key ID in the request does not identify a CMK that can perform this operation.",
                ));
            }
            Ok(named)
        }
        (Some(named), Err(_)) => {
            call.allow(&named, "Decrypt", |context| context)?;
            Err(ApiError::silent("InvalidCiphertextException"))
        }
        (None, Ok(inside)) => call.find(&key_id_text(&inside.key)).map_err(|_| not_allowed()),
        (None, Err(_)) => Err(ApiError::silent("InvalidCiphertextException")),
    }
}

fn not_allowed() -> ApiError {
    ApiError::denied(
        "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not \
         allowed to access.",
    )
}

/// One key with its algorithm and encryption context, on one side of an operation.
struct Side<'a, 'c> {
    call: &'a Call<'c>,
    key: &'a Key,
    /// The member that names the algorithm.
    algorithm: &'static str,
    pairs: BTreeMap<String, String>,
}

impl Side<'_, '_> {
    fn name(&self) -> &str {
        self.call.input.text(self.algorithm).unwrap_or(EncryptionAlgorithm::SymmetricDefault.as_str())
    }

    fn shape(&self, context: Context) -> Context {
        shape(context, self.name(), &self.pairs)
    }

    fn algorithm(&self) -> Result<EncryptionAlgorithm, ApiError> {
        let found = self.name().parse().ok().filter(|a| self.key.record.spec.encryption_algorithms().contains(a));
        found.ok_or_else(|| {
            ApiError::new(
                "InvalidKeyUsageException",
                format!("Algorithm {} is incompatible with key spec {}.", self.name(), self.key.record.spec),
            )
        })
    }

    fn usable(&self) -> Result<(), ApiError> {
        self.call.usable(self.key, KeyUsage::EncryptDecrypt)?;
        let algorithm = self.algorithm()?;
        if algorithm != EncryptionAlgorithm::SymmetricDefault && !self.pairs.is_empty() {
            return Err(ApiError::validation("An encryption context is valid for symmetric encryption keys only."));
        }
        Ok(())
    }

    fn fits(&self, len: usize) -> Result<(), ApiError> {
        match self.algorithm()?.plaintext_max(self.key.record.spec) {
            Some(limit) if len > limit => {
                Err(self.call.failed(crate::kms::material::MaterialError::PlaintextTooLong { limit }))
            }
            _ => Ok(()),
        }
    }

    /// Also the material's id, where the key is symmetric.
    fn seal(&self, plaintext: &[u8]) -> Result<(Vec<u8>, Option<String>), ApiError> {
        let algorithm = self.algorithm()?;
        if algorithm == EncryptionAlgorithm::SymmetricDefault {
            return seal(self.call, self.key, &self.pairs, plaintext).map(|(blob, id)| (blob, Some(id)));
        }
        let (_, material) = current(self.call, self.key)?;
        let blob = material.encrypt(algorithm, plaintext).map_err(|e| self.call.failed(e))?;
        Ok((blob, None))
    }

    fn open(&self, blob: &[u8]) -> Result<(Zeroizing<Vec<u8>>, Option<String>), ApiError> {
        let algorithm = self.algorithm()?;
        if algorithm == EncryptionAlgorithm::SymmetricDefault {
            let invalid = || ApiError::silent("InvalidCiphertextException");
            let named = symmetric::parse(blob).map_err(|_| invalid())?;
            let material = self.key.material(&named.material).ok_or_else(invalid)?;
            let context = symmetric::canonical_context(&self.pairs);
            let plaintext = symmetric::open(material, &context, blob).map_err(|e| self.call.failed(e))?;
            return Ok((plaintext, Some(HEXLOWER.encode(&named.material))));
        }
        let (_, material) = current(self.call, self.key)?;
        Ok((material.decrypt(algorithm, blob).map_err(|e| self.call.failed(e))?, None))
    }
}

/// The condition keys of an encryption.
pub fn shape(mut context: Context, algorithm: &str, pairs: &BTreeMap<String, String>) -> Context {
    context.set(context::ENCRYPTION_ALGORITHM, [algorithm]);
    context.with_encryption_context(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// A symmetric ciphertext under the key's current material, and that material's id.
pub fn seal(
    call: &Call<'_>,
    key: &Key,
    pairs: &BTreeMap<String, String>,
    plaintext: &[u8],
) -> Result<(Vec<u8>, String), ApiError> {
    let (id, material) = current(call, key)?;
    let Some(key_id) = crate::kms::material::parse_key_id(&key.record.id) else { return Err(ApiError::internal()) };
    let named = symmetric::Named { key: key_id, material: *id };
    let context = symmetric::canonical_context(pairs);
    let blob = symmetric::seal(material, &named, &context, plaintext).map_err(|e| call.failed(e))?;
    Ok((blob, HEXLOWER.encode(id)))
}

pub fn current<'k>(
    call: &Call<'_>,
    key: &'k Key,
) -> Result<(&'k crate::kms::material::MaterialId, &'k crate::kms::material::Material), ApiError> {
    key.current().map(|(id, material)| (id, &**material)).ok_or_else(|| {
        log::error!("code=material key {} has no material in memory", key.record.id);
        let _ = call;
        ApiError::internal()
    })
}
