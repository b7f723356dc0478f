//! Importing key material: parameters, import, deletion. The import token carries the wrapping key, sealed; nothing is kept
//! between the two requests.

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{Call, Found};
use super::{keys, lifecycle};
use crate::kms::material::{
    KeySpec, Material, MaterialError, WrappingAlgorithm, WrappingKey, WrappingKeySpec, parse_key_id,
};
use crate::kms::policy::context;
use crate::kms::store::records::{Import, MaterialRecord, Origin};
use crate::kms::view::{Key, KeyState};
use crate::kms::wire::ApiError;
use crate::kms::wire::time::{DAY, seconds};

/// How long parameters may be used.
const VALID: i64 = DAY;
/// Furthest end of imported material.
const VALID_TO_MAX: i64 = 365 * DAY;
const TOKEN: &[u8] = b"import token";
const STATES: &[KeyState] = &[KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport];

pub fn get_parameters_for_import(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let algorithm_name = call.input.required("WrappingAlgorithm")?;
    let spec_name = call.input.required("WrappingKeySpec")?;
    call.allow(&Found { key: key.clone(), alias: None }, "GetParametersForImport", |mut context| {
        context.set(context::WRAPPING_ALGORITHM, [algorithm_name]);
        context.set(context::WRAPPING_KEY_SPEC, [spec_name]);
        context
    })?;
    external(&key)?;
    call.state(&key, STATES)?;
    let unsupported = |what: &str| ApiError::unsupported(format!("{what} is not supported by this service."));
    let algorithm: WrappingAlgorithm = algorithm_name.parse().map_err(|_| unsupported(algorithm_name))?;
    let spec: WrappingKeySpec = spec_name.parse().map_err(|_| unsupported(spec_name))?;
    if !algorithm.accepts(key.record.spec, spec) {
        return Err(ApiError::validation(format!(
            "Key material of the spec {} cannot be wrapped with {algorithm} under {spec}.",
            key.record.spec
        )));
    }
    let wrapping = WrappingKey::generate(spec).map_err(|e| call.failed(e))?;
    let public = wrapping.public_key_der().map_err(|e| call.failed(e))?;
    let valid_to = call.now + VALID;
    let private = wrapping.to_bytes().map_err(|e| call.failed(e))?;
    let mut token = Zeroizing::new(Vec::with_capacity(private.len() + 64));
    token.extend_from_slice(&valid_to.to_le_bytes());
    token.extend_from_slice(format!("{algorithm} {spec}\n").as_bytes());
    token.extend_from_slice(&private);
    let token = call.service.store().keys().wrap(&[TOKEN, key.record.id.as_bytes()], &token);
    Ok(json!({
        "KeyId": key.arn,
        "ImportToken": BASE64.encode(&token),
        "PublicKey": BASE64.encode(&public),
        "ParametersValidTo": seconds(valid_to),
    }))
}

/// The wrapping key and algorithm of a token for `key`.
fn open_token(call: &Call<'_>, key: &Key) -> Result<(WrappingKey, WrappingAlgorithm), ApiError> {
    let invalid = || ApiError::new("InvalidImportTokenException", "The import token is not valid for this key.");
    let token = call.input.required_blob("ImportToken")?;
    let open = call.service.store().keys().unwrap(&[TOKEN, key.record.id.as_bytes()], &token).map_err(|_| invalid())?;
    let (valid_to, rest) = open.split_first_chunk::<8>().ok_or_else(invalid)?;
    if i64::from_le_bytes(*valid_to) <= call.now {
        return Err(ApiError::new(
            "ExpiredImportTokenException",
            "The import token is expired. Get new parameters for import.",
        ));
    }
    let end = rest.iter().position(|b| *b == b'\n').ok_or_else(invalid)?;
    let names = std::str::from_utf8(&rest[..end]).map_err(|_| invalid())?;
    let (algorithm, spec) = names.split_once(' ').ok_or_else(invalid)?;
    let algorithm = algorithm.parse().map_err(|_| invalid())?;
    let spec = spec.parse().map_err(|_| invalid())?;
    let wrapping = WrappingKey::from_bytes(spec, &rest[end + 1..]).map_err(|_| invalid())?;
    Ok((wrapping, algorithm))
}

pub fn import_key_material(call: &Call<'_>) -> Result<Value, ApiError> {
    let input = call.input;
    let key = call.managed_key()?;
    let model = input.text("ExpirationModel").unwrap_or("KEY_MATERIAL_EXPIRES");
    let valid_to = input.time("ValidTo");
    call.allow(&Found { key: key.clone(), alias: None }, "ImportKeyMaterial", |mut context| {
        context.set(context::EXPIRATION_MODEL, [model]);
        if let Some(end) = valid_to {
            context.set(context::VALID_TO, [(end / 1000).to_string()]);
        }
        context
    })?;
    external(&key)?;
    call.state(&key, STATES)?;
    let valid_to = expiry(model, valid_to, call.now)?;
    let (wrapping, algorithm) = open_token(call, &key)?;
    let wrapped = input.required_blob("EncryptedKeyMaterial")?;
    let bytes = wrapping.unwrap(algorithm, &wrapped).map_err(|e| call.failed(e))?;
    let material = Material::from_bytes(key.record.spec, &bytes).map_err(|e| call.failed(e))?;
    let id = parse_key_id(&key.record.id).ok_or_else(ApiError::internal)?;
    let id = HEXLOWER.encode(&material.id(&id).map_err(|e| call.failed(e))?);
    if input.text("KeyMaterialId").is_some_and(|wanted| wanted != id) {
        return Err(call.failed(MaterialError::InvalidMaterial(key.record.spec)));
    }
    let import = Import { valid_to, description: input.text("KeyMaterialDescription").unwrap_or("").into() };
    let mut record = key.record.clone();
    let fresh = keys::wrap(&record, call.service.store().keys(), &material).map_err(|e| call.failed(e))?;
    let wants_new = input.text("ImportType") == Some("NEW_KEY_MATERIAL");
    match record.materials.iter().position(|m| m.id == id) {
        Some(at) => {
            record.materials[at].wrapped = fresh.wrapped;
            record.materials[at].import = Some(import);
        }
        None if record.materials.is_empty() => {
            record.current = Some(id.clone());
            record.materials.push(MaterialRecord { current_since: Some(call.now), import: Some(import), ..fresh });
        }
        None if wants_new && record.spec == KeySpec::SymmetricDefault => {
            if record.materials.iter().any(|m| m.current_since.is_none()) {
                return Err(ApiError::invalid_state(format!(
                    "{} has key material that is pending rotation already.",
                    key.arn
                )));
            }
            record.materials.push(MaterialRecord { import: Some(import), ..fresh });
        }
        None => {
            return Err(ApiError::new(
                "IncorrectKeyMaterialException",
                "The key material in the request is not the key material that was previously imported into this KMS key.",
            ));
        }
    }
    if key.state(call.now) == KeyState::PendingImport {
        record.enabled = true;
    }
    call.note("keyMaterialId", id.as_str());
    let imported = call.service.key(record, Some(&key))?;
    call.change(crate::kms::Edit::key(imported), json!({"keyId": key.arn, "keyMaterialId": id}))?;
    Ok(json!({"KeyId": key.arn, "KeyMaterialId": id}))
}

/// When material ends, where it does.
fn expiry(model: &str, valid_to: Option<i64>, now: i64) -> Result<Option<i64>, ApiError> {
    match (model, valid_to) {
        ("KEY_MATERIAL_DOES_NOT_EXPIRE", None) => Ok(None),
        ("KEY_MATERIAL_DOES_NOT_EXPIRE", Some(_)) => {
            Err(ApiError::validation("ValidTo must not be set where ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE."))
        }
        (_, None) => Err(ApiError::validation("ValidTo must be set where ExpirationModel is KEY_MATERIAL_EXPIRES.")),
        (_, Some(end)) if end <= now => Err(ApiError::validation("ValidTo must be in the future.")),
        (_, Some(end)) if end > now + VALID_TO_MAX => {
            Err(ApiError::validation("ValidTo must be within 365 days from now."))
        }
        (_, Some(end)) => Ok(Some(end)),
    }
}

pub fn delete_imported_key_material(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "DeleteImportedKeyMaterial")?;
    external(&key)?;
    let wanted = call.input.text("KeyMaterialId").map(str::to_owned).or_else(|| key.record.current.clone());
    let Some(wanted) = wanted else { return Ok(json!({"KeyId": key.arn})) };
    if !key.record.materials.iter().any(|m| m.id == wanted) {
        return Err(ApiError::not_found(format!("Key material '{wanted}' does not exist")));
    }
    let response = json!({"keyId": key.arn, "keyMaterialId": wanted});
    lifecycle::put(call, &key, response, |record| {
        // Material that never was current leaves nothing that needs it.
        record.materials.retain(|m| m.id != wanted || m.current_since.is_some());
        for material in record.materials.iter_mut().filter(|m| m.id == wanted) {
            material.wrapped = None;
        }
    })?;
    Ok(json!({"KeyId": key.arn, "KeyMaterialId": wanted}))
}

fn external(key: &Key) -> Result<(), ApiError> {
    if key.record.origin == Origin::External {
        return Ok(());
    }
    Err(ApiError::unsupported(format!("{} origin is AWS_KMS which is not valid for this operation.", key.arn)))
}
