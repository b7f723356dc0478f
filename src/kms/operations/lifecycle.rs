//! Enabling, disabling, deleting keys, and describing them. Owns the transitions between states.

use serde_json::{Value, json};

use super::call::Call;
use crate::kms::Edit;
use crate::kms::policy::context;
use crate::kms::store::records::{Deletion, KeyRecord};
use crate::kms::view::{Key, KeyState};
use crate::kms::wire::time::{DAY, seconds};
use crate::kms::wire::{ApiError, time};

const WINDOW_DEFAULT: i64 = 30;

/// Makes the key that `alter` describes the one that is there.
pub fn put(call: &Call<'_>, key: &Key, response: Value, alter: impl FnOnce(&mut KeyRecord)) -> Result<(), ApiError> {
    let mut record = key.record.clone();
    alter(&mut record);
    let key = call.service.key(record, Some(key))?;
    call.change(Edit::key(key), response)
}

pub fn enable_key(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "EnableKey")?;
    call.state(&key, &[KeyState::Enabled, KeyState::Disabled])?;
    put(call, &key, Value::Null, |record| record.enabled = true)?;
    Ok(Value::Null)
}

pub fn disable_key(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "DisableKey")?;
    call.state(&key, &[KeyState::Enabled, KeyState::Disabled])?;
    put(call, &key, Value::Null, |record| record.enabled = false)?;
    Ok(Value::Null)
}

pub fn schedule_key_deletion(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let window = call.input.integer("PendingWindowInDays").unwrap_or(WINDOW_DEFAULT);
    call.allow(&super::call::Found { key: key.clone(), alias: None }, "ScheduleKeyDeletion", |mut context| {
        context.set(context::DELETION_WINDOW_IN_DAYS, [window.to_string()]);
        context
    })?;
    if !(7..=30).contains(&window) {
        let bound = if window < 7 { "greater than or equal to 7" } else { "less than or equal to 30" };
        return Err(ApiError::validation(format!(
            "1 validation error detected: Value '{window}' at 'pendingWindowInDays' failed to satisfy constraint: Member \
             must have value {bound}"
        )));
    }
    call.state(&key, &[KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport])?;
    let date = call.now + window * DAY;
    let response = json!({"keyId": key.arn, "deletionDate": time::rfc3339(date), "keyState": "PendingDeletion", "pendingWindowInDays": window});
    put(call, &key, response, |record| {
        record.deletion = Some(Deletion { date, window_days: window });
        // A deletion that is taken back leaves the key disabled.
        record.enabled = false;
    })?;
    Ok(json!({
        "KeyId": key.arn,
        "DeletionDate": seconds(date),
        "KeyState": "PendingDeletion",
        "PendingWindowInDays": window,
    }))
}

pub fn cancel_key_deletion(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "CancelKeyDeletion")?;
    if key.record.deletion.is_none() {
        return Err(ApiError::invalid_state(format!("{} is not pending deletion.", key.arn)));
    }
    put(call, &key, json!({"keyId": key.arn}), |record| record.deletion = None)?;
    Ok(json!({"KeyId": key.arn}))
}

pub fn update_key_description(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "UpdateKeyDescription")?;
    call.state(&key, &[KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport])?;
    let description = call.input.required("Description")?.to_owned();
    put(call, &key, Value::Null, |record| record.description = description)?;
    Ok(Value::Null)
}
