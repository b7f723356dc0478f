//! Rotation: on a schedule, on demand, and what has been rotated. Symmetric keys only, as in AWS.

use serde_json::{Map, Value, json};

use super::call::{Call, Found};
use super::{keys, lifecycle};
use crate::kms::material::KeySpec;
use crate::kms::policy::context;
use crate::kms::store::records::{KeyRecord, MaterialRecord, Origin, Rotation, RotationType};
use crate::kms::view::{Key, KeyState};
use crate::kms::wire::time::{DAY, seconds};
use crate::kms::wire::{ApiError, page::page};

pub const PERIOD_DEFAULT: i64 = 365;
const ON_DEMAND_MAX: u32 = 25;

pub fn enable_key_rotation(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let period = call.input.integer("RotationPeriodInDays").unwrap_or(PERIOD_DEFAULT);
    call.allow(&Found { key: key.clone(), alias: None }, "EnableKeyRotation", |mut context| {
        context.set(context::ROTATION_PERIOD_IN_DAYS, [period.to_string()]);
        context
    })?;
    rotatable(&key)?;
    call.enabled(&key)?;
    made_here(&key)?;
    let rotation = Rotation { period_days: period, next: call.now + period * DAY };
    // Asking again for what is so already does not put the next rotation off.
    let same = key
        .record
        .rotation
        .as_ref()
        .is_some_and(|old| old.period_days == period || !call.input.has("RotationPeriodInDays"));
    lifecycle::put(call, &key, Value::Null, |record| {
        if !same {
            record.rotation = Some(rotation);
        }
    })?;
    Ok(Value::Null)
}

pub fn disable_key_rotation(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "DisableKeyRotation")?;
    rotatable(&key)?;
    call.enabled(&key)?;
    made_here(&key)?;
    lifecycle::put(call, &key, Value::Null, |record| record.rotation = None)?;
    Ok(Value::Null)
}

pub fn get_key_rotation_status(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "GetKeyRotationStatus")?;
    let mut answer = Map::new();
    answer.insert("KeyId".into(), key.arn.as_str().into());
    let pending = key.state(call.now) == KeyState::PendingDeletion;
    match key.record.rotation.as_ref().filter(|_| !pending) {
        Some(rotation) => {
            answer.insert("KeyRotationEnabled".into(), true.into());
            answer.insert("RotationPeriodInDays".into(), rotation.period_days.into());
            answer.insert("NextRotationDate".into(), seconds(rotation.next));
        }
        None => drop(answer.insert("KeyRotationEnabled".into(), false.into())),
    }
    Ok(Value::Object(answer))
}

pub fn rotate_key_on_demand(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "RotateKeyOnDemand")?;
    rotatable(&key)?;
    call.enabled(&key)?;
    if key.record.on_demand_rotations >= ON_DEMAND_MAX {
        return Err(ApiError::limit(format!("A key can be rotated on demand {ON_DEMAND_MAX} times.")));
    }
    let mut record = key.record.clone();
    match record.origin {
        Origin::Service => {
            rotate(&mut record, call.service.store().keys(), RotationType::OnDemand, call.now)
                .map_err(|e| call.failed(e))?;
        }
        Origin::External => {
            let pending = record.materials.iter_mut().find(|m| m.current_since.is_none() && m.wrapped.is_some());
            let Some(pending) = pending else {
                return Err(ApiError::invalid_state(format!(
                    "{} has no key material that is pending rotation.",
                    key.arn
                )));
            };
            pending.current_since = Some(call.now);
            pending.rotation = Some(RotationType::OnDemand);
            record.current = Some(pending.id.clone());
        }
    }
    record.on_demand_rotations += 1;
    let key = call.service.key(record, Some(&key))?;
    let arn = key.arn.clone();
    call.change(crate::kms::Edit::key(key), json!({"keyId": arn}))?;
    Ok(json!({"KeyId": arn}))
}

/// Fresh material; what there was stays for decryption.
pub fn rotate(
    record: &mut KeyRecord,
    keys: &crate::kms::store::sealing::StoreKeys,
    why: RotationType,
    now: i64,
) -> Result<(), crate::kms::material::MaterialError> {
    keys::add_material(record, keys, now)?;
    if let Some(fresh) = record.materials.last_mut() {
        fresh.rotation = Some(why);
    }
    Ok(())
}

pub fn list_key_rotations(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "ListKeyRotations")?;
    rotatable(&key)?;
    let all = call.input.text("IncludeKeyMaterial") == Some("ALL_KEY_MATERIAL");
    let listed = key.record.materials.iter().enumerate().filter(|(_, m)| all || m.rotation.is_some());
    // Pages are kept by the order in which the materials came.
    let listed: Vec<(String, &MaterialRecord)> = listed.map(|(number, m)| (format!("{number:010}"), m)).collect();
    let show = |(_, material): &(String, &MaterialRecord)| shown(call, &key, material);
    page(call.input, 100, "Rotations", listed.iter(), |(number, _)| number.as_str(), show).map(Value::Object)
}

fn shown(call: &Call<'_>, key: &Key, material: &MaterialRecord) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
    put("KeyId", key.arn.as_str().into());
    put("KeyMaterialId", material.id.as_str().into());
    let state = match material.current_since {
        None => "PENDING_ROTATION",
        Some(_) if key.record.current.as_ref() == Some(&material.id) => "CURRENT",
        Some(_) => "NON_CURRENT",
    };
    put("KeyMaterialState", state.into());
    if let Some(import) = &material.import {
        let usable = material.wrapped.is_some() && import.valid_to.is_none_or(|end| end > call.now);
        put("ImportState", if usable { "IMPORTED" } else { "PENDING_IMPORT" }.into());
        put("KeyMaterialDescription", import.description.as_str().into());
        if usable {
            put("ExpirationModel", keys::expiration_model(import.valid_to).into());
            if let Some(end) = import.valid_to {
                put("ValidTo", seconds(end));
            }
        }
    }
    if let (Some(why), Some(since)) = (material.rotation, material.current_since) {
        put("RotationDate", seconds(since));
        put("RotationType", why.as_str().into());
    }
    Value::Object(out)
}

fn rotatable(key: &Key) -> Result<(), ApiError> {
    if key.record.spec == KeySpec::SymmetricDefault {
        return Ok(());
    }
    Err(ApiError::unsupported(format!(
        "{} key spec is {} which is not valid for this operation.",
        key.arn, key.record.spec
    )))
}

fn made_here(key: &Key) -> Result<(), ApiError> {
    if key.record.origin == Origin::Service {
        return Ok(());
    }
    Err(ApiError::unsupported(format!("{} origin is EXTERNAL which is not valid for this operation.", key.arn)))
}
