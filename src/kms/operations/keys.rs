//! CreateKey, DescribeKey, ListKeys, GetKeyLastUsage: keys and what is told of them. Knows no material's inside.

use std::collections::BTreeMap;

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::{new_uuid, policies, tags};
use crate::kms::Edit;
use crate::kms::material::{KeySpec, KeyUsage, Material, parse_key_id};
use crate::kms::policy::{KeyFacts, context};
use crate::kms::store::records::{KeyRecord, Manager, MaterialRecord, Origin};
use crate::kms::store::sealing::StoreKeys;
use crate::kms::view::{Key, key_arn, wrap_context};
use crate::kms::wire::time::seconds;
use crate::kms::wire::{ApiError, page::page};

pub const KEYS_MAX: usize = 100_000;

pub fn create_key(call: &Call<'_>) -> Result<Value, ApiError> {
    let input = call.input;
    let account = &call.service.record.account;
    for member in ["CustomKeyStoreId", "XksKeyId"] {
        if input.has(member) {
            return Err(ApiError::unsupported("Custom key stores are not supported by this service."));
        }
    }
    if input.flag("MultiRegion") {
        return Err(ApiError::unsupported("Multi-Region keys are not supported by this service."));
    }
    let origin = match input.text("Origin") {
        None | Some("AWS_KMS") => Origin::Service,
        Some("EXTERNAL") => Origin::External,
        Some(other) => return Err(ApiError::unsupported(format!("Origin {other} is not supported by this service."))),
    };
    let (spec, usage) = spec_and_usage(call)?;
    let tags = tags::of(input)?;
    let id = new_uuid();
    let arn = key_arn(&call.service.record, &id);
    let bypass = input.flag("BypassPolicyLockoutSafetyCheck");
    let facts = KeyFacts {
        account,
        spec: spec.as_str(),
        usage: usage.as_str(),
        origin: origin.as_str(),
        ..KeyFacts::default()
    };
    let pairs = || tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    call.allow_resource("*", "CreateKey", |context| {
        let mut context = context.on_key(&facts).with_tags(pairs());
        context.set(context::BYPASS_LOCKOUT_CHECK, [bypass.to_string()]);
        context
    })?;
    if !tags.is_empty() {
        call.allow_resource("*", "TagResource", |context| context.on_key(&facts).with_tags(pairs()))?;
    }
    let policy = match input.text("Policy") {
        Some(policy) => policy.to_owned(),
        None => crate::kms::policy::Document::default_for(account),
    };
    if call.service.view().keys.len() >= KEYS_MAX {
        return Err(ApiError::limit("The number of keys of this service has reached its limit."));
    }
    let mut record = KeyRecord {
        id,
        created: call.now,
        description: input.text("Description").unwrap_or("").into(),
        usage,
        spec,
        origin,
        manager: Manager::Customer,
        enabled: true,
        deletion: None,
        materials: Vec::new(),
        current: None,
        policy: policy.clone(),
        tags,
        rotation: None,
        on_demand_rotations: 0,
        last_use: None,
    };
    // The policy is judged as the key's own, whose facts its conditions may ask for.
    // The default one leaves the key to its account, whoever makes it: only a policy that is given is checked for a lock-out.
    let unchecked = bypass || input.text("Policy").is_none();
    let draft = policies::check(call, &arn, &policy, unchecked, |context| {
        let facts = KeyFacts { tags: record.tags.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect(), ..facts };
        context.on_key(&facts)
    });
    draft?;
    if origin == Origin::Service {
        // RSA keys take a while: nobody waits for it but this request.
        add_material(&mut record, call.service.store().keys(), call.now).map_err(|e| call.failed(e))?;
    }
    let key = call.service.key(record, None)?;
    call.about(&key.arn);
    let answer = json!({"KeyMetadata": metadata(account, &key, call.now)});
    call.begin_change();
    call.change(Edit::key(key), lower(&answer))?;
    Ok(answer)
}

/// The trail writes names of members small.
fn lower(answer: &Value) -> Value {
    fn walk(value: &Value) -> Value {
        match value {
            Value::Object(members) => {
                Value::Object(members.iter().map(|(name, value)| (super::small(name), walk(value))).collect())
            }
            other => other.clone(),
        }
    }
    walk(answer)
}

fn spec_and_usage(call: &Call<'_>) -> Result<(KeySpec, KeyUsage), ApiError> {
    let input = call.input;
    let name = match (input.text("KeySpec"), input.text("CustomerMasterKeySpec")) {
        (Some(_), Some(_)) => {
            return Err(ApiError::validation(
                "You cannot specify KeySpec and CustomerMasterKeySpec in the same request.",
            ));
        }
        (Some(name), None) | (None, Some(name)) => name,
        (None, None) => KeySpec::SymmetricDefault.as_str(),
    };
    let spec: KeySpec =
        name.parse().map_err(|_| ApiError::unsupported(format!("KeySpec {name} is not supported by this service.")))?;
    let usage: KeyUsage = match input.text("KeyUsage") {
        Some(name) => name.parse().map_err(|_| ApiError::unsupported(format!("KeyUsage {name} is not supported.")))?,
        None if spec == KeySpec::SymmetricDefault => KeyUsage::EncryptDecrypt,
        None => {
            return Err(ApiError::validation(
                "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
            ));
        }
    };
    if !spec.usages().contains(&usage) {
        return Err(ApiError::validation(format!("KeyUsage {usage} is not compatible with KeySpec {spec}")));
    }
    Ok((spec, usage))
}

/// Fresh material, which becomes the current one.
pub fn add_material(
    record: &mut KeyRecord,
    keys: &StoreKeys,
    now: i64,
) -> Result<(), crate::kms::material::MaterialError> {
    let material = Material::generate(record.spec)?;
    let fresh = wrap(record, keys, &material)?;
    record.current = Some(fresh.id.clone());
    record.materials.push(MaterialRecord { current_since: Some(now), ..fresh });
    Ok(())
}

/// Material as it is stored; not current yet.
pub fn wrap(
    record: &KeyRecord,
    keys: &StoreKeys,
    material: &Material,
) -> Result<MaterialRecord, crate::kms::material::MaterialError> {
    let key_id = parse_key_id(&record.id).ok_or(crate::kms::material::MaterialError::Library)?;
    let id = HEXLOWER.encode(&material.id(&key_id)?);
    let wrapped = keys.wrap(&wrap_context(record, &id), &material.to_bytes()?);
    Ok(MaterialRecord { id, wrapped: Some(BASE64.encode(&wrapped)), current_since: None, rotation: None, import: None })
}

pub fn describe_key(call: &Call<'_>) -> Result<Value, ApiError> {
    let found = call.find(call.input.required("KeyId")?)?;
    call.allow(&found, "DescribeKey", |context| context)?;
    call.grant_tokens()?;
    Ok(json!({"KeyMetadata": metadata(&call.service.record.account, &found.key, call.now)}))
}

pub fn list_keys(call: &Call<'_>) -> Result<Value, ApiError> {
    call.allow_resource("*", "ListKeys", |context| context)?;
    let view = call.service.view();
    let keys = view.keys.values().filter(|key| !key.is_gone(call.now));
    let show = |key: &std::sync::Arc<Key>| json!({"KeyId": key.record.id, "KeyArn": key.arn});
    page(call.input, 100, "Keys", keys, |key| &key.record.id, show).map(Value::Object)
}

pub fn get_key_last_usage(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "GetKeyLastUsage")?;
    let mut answer = Map::new();
    answer.insert("KeyId".into(), key.record.id.as_str().into());
    let recent = call.service.uses.lock().get(&key.record.id).cloned();
    if let Some(last) = recent.or_else(|| key.record.last_use.clone()) {
        let last = json!({
            "Operation": last.operation,
            "Timestamp": seconds(last.time),
            "CloudTrailEventId": last.event_id,
            "KmsRequestId": last.request_id,
        });
        answer.insert("KeyLastUsage".into(), last);
    }
    answer.insert("TrackingStartDate".into(), seconds(key.record.created));
    answer.insert("KeyCreationDate".into(), seconds(key.record.created));
    Ok(Value::Object(answer))
}

/// KeyMetadata as the API has it.
pub fn metadata(account: &str, key: &Key, now: i64) -> Value {
    let record = &key.record;
    let state = key.state(now);
    let mut out = json!({
        "AWSAccountId": account,
        "KeyId": record.id,
        "Arn": key.arn,
        "CreationDate": seconds(record.created),
        "Enabled": state == crate::kms::view::KeyState::Enabled,
        "Description": record.description,
        "KeyUsage": record.usage,
        "KeyState": state.as_str(),
        "Origin": record.origin.as_str(),
        "KeyManager": record.manager.as_str(),
        "CustomerMasterKeySpec": record.spec,
        "KeySpec": record.spec,
        "MultiRegion": false,
    });
    match record.usage {
        KeyUsage::EncryptDecrypt => out["EncryptionAlgorithms"] = json!(record.spec.encryption_algorithms()),
        KeyUsage::SignVerify => out["SigningAlgorithms"] = json!(record.spec.signing_algorithms()),
        KeyUsage::GenerateVerifyMac => out["MacAlgorithms"] = json!(record.spec.mac_algorithms()),
        KeyUsage::KeyAgreement => out["KeyAgreementAlgorithms"] = json!(record.spec.key_agreement_algorithms()),
    }
    if let Some(deletion) = &record.deletion {
        out["DeletionDate"] = seconds(deletion.date);
    }
    let current = record.current.as_ref().and_then(|id| record.materials.iter().find(|m| m.id == *id));
    if record.spec == KeySpec::SymmetricDefault
        && let Some(current) = current
    {
        out["CurrentKeyMaterialId"] = current.id.as_str().into();
    }
    if record.origin == Origin::External
        && let Some(current) = current.filter(|m| m.wrapped.is_some())
    {
        let valid_to = current.import.as_ref().and_then(|import| import.valid_to).filter(|end| *end > now);
        out["ExpirationModel"] = expiration_model(valid_to).into();
        if let Some(end) = valid_to {
            out["ValidTo"] = seconds(end);
        }
    }
    out
}

pub fn expiration_model(valid_to: Option<i64>) -> &'static str {
    if valid_to.is_some() { "KEY_MATERIAL_EXPIRES" } else { "KEY_MATERIAL_DOES_NOT_EXPIRE" }
}

/// Tags as pairs of names and values.
pub type Tags = BTreeMap<String, String>;
