//! CreateAlias, UpdateAlias, DeleteAlias, ListAliases. An alias needs a right on itself and on its key.

use serde_json::{Map, Value};

use super::call::{Call, Found};
use crate::kms::Edit;
use crate::kms::store::records::AliasRecord;
use crate::kms::view::{Gone, Key, KeyState, Piece, alias_arn};
use crate::kms::wire::time::seconds;
use crate::kms::wire::{ApiError, page::page};

const ALIASES_PER_KEY_MAX: usize = 50;
const NOT_PENDING_DELETION: &[KeyState] = &[KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport];

pub fn create_alias(call: &Call<'_>) -> Result<Value, ApiError> {
    let name = alias_name(call)?;
    let arn = alias_arn(&call.service.record, name);
    let key = target(call)?;
    call.allow_resource(&arn, "CreateAlias", |context| context)?;
    call.allow_key(&key, "CreateAlias")?;
    call.about(&arn);
    call.state(&key, NOT_PENDING_DELETION)?;
    {
        let view = call.service.view();
        if view.aliases.contains_key(name) {
            return Err(ApiError::new(
                "AlreadyExistsException",
                format!("An alias with the name {arn} already exists"),
            ));
        }
        few_enough(view.aliases_of(&key.record.id).count())?;
    }
    let alias = AliasRecord { name: name.into(), target: key.record.id.clone(), created: call.now, updated: call.now };
    call.change(Edit::put(Piece::Alias(alias)), Value::Null)?;
    Ok(Value::Null)
}

pub fn update_alias(call: &Call<'_>) -> Result<Value, ApiError> {
    let name = alias_name(call)?;
    let arn = alias_arn(&call.service.record, name);
    let key = target(call)?;
    let (alias, old) = existing(call, name)?;
    call.allow_resource(&arn, "UpdateAlias", |context| context)?;
    if let Some(old) = &old {
        call.allow(old, "UpdateAlias", |context| context)?;
    }
    call.allow_key(&key, "UpdateAlias")?;
    call.about(&arn);
    call.state(&key, NOT_PENDING_DELETION)?;
    if let Some(Found { key: old, .. }) = &old {
        let symmetric = |key: &Key| key.record.spec.is_asymmetric();
        if symmetric(old) != symmetric(&key) || old.record.usage != key.record.usage {
            return Err(ApiError::validation(format!(
                "Alias {arn} cannot be changed from key {} to key {}: they are of different types.",
                old.arn, key.arn
            )));
        }
        if old.record.id != key.record.id {
            few_enough(call.service.view().aliases_of(&key.record.id).count())?;
        }
    }
    let alias = AliasRecord { target: key.record.id.clone(), updated: call.now, ..alias };
    call.change(Edit::put(Piece::Alias(alias)), Value::Null)?;
    Ok(Value::Null)
}

pub fn delete_alias(call: &Call<'_>) -> Result<Value, ApiError> {
    let name = alias_name(call)?;
    let arn = alias_arn(&call.service.record, name);
    let (alias, key) = existing(call, name)?;
    call.allow_resource(&arn, "DeleteAlias", |context| context)?;
    if let Some(key) = &key {
        call.allow(key, "DeleteAlias", |context| context)?;
    }
    call.about(&arn);
    call.change(Edit::remove(Gone::Alias(alias.name)), Value::Null)?;
    Ok(Value::Null)
}

pub fn list_aliases(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = match call.input.text("KeyId") {
        Some(_) => Some(call.managed_key()?),
        None => None,
    };
    call.allow_resource("*", "ListAliases", |context| context)?;
    let view = call.service.view();
    let aliases = view.aliases.values().filter(|alias| {
        key.as_ref().is_none_or(|key| alias.target == key.record.id)
            && view.keys.get(&alias.target).is_some_and(|key| !key.is_gone(call.now))
    });
    let show = |alias: &AliasRecord| {
        let mut out = Map::new();
        out.insert("AliasName".into(), alias.name.as_str().into());
        out.insert("AliasArn".into(), alias_arn(&call.service.record, &alias.name).into());
        out.insert("TargetKeyId".into(), alias.target.as_str().into());
        out.insert("CreationDate".into(), seconds(alias.created));
        out.insert("LastUpdatedDate".into(), seconds(alias.updated));
        Value::Object(out)
    };
    page(call.input, 50, "Aliases", aliases, |alias| &alias.name, show).map(Value::Object)
}

/// The alias, and its key where that is still there.
fn existing(call: &Call<'_>, name: &str) -> Result<(AliasRecord, Option<Found>), ApiError> {
    let alias = call.service.view().aliases.get(name).cloned();
    let alias = alias
        .ok_or_else(|| ApiError::not_found(format!("Alias {} is not found.", alias_arn(&call.service.record, name))))?;
    let key = call.find(&alias.target).ok().map(|found| Found { alias: Some(name.to_owned()), ..found });
    Ok((alias, key))
}

fn target(call: &Call<'_>) -> Result<std::sync::Arc<Key>, ApiError> {
    let name = call.input.required("TargetKeyId")?;
    if name.starts_with("alias/") || name.contains(":alias/") {
        return Err(ApiError::validation("Aliases must refer to keys. Not aliases"));
    }
    Ok(call.find(name)?.key)
}

fn alias_name<'c>(call: &'c Call<'_>) -> Result<&'c str, ApiError> {
    let name = call.input.required("AliasName")?;
    let Some(rest) = name.strip_prefix("alias/").filter(|rest| !rest.is_empty()) else {
        return Err(ApiError::validation("Invalid identifier"));
    };
    if rest.contains(':') {
        return Err(ApiError::validation(format!("{rest} contains invalid characters for an alias")));
    }
    if rest.starts_with("aws/") || rest == "aws" {
        // Not an exception of the model, and without a text. Not compared with the real service.
        return Err(ApiError::silent("NotAuthorizedException"));
    }
    Ok(name)
}

fn few_enough(aliases: usize) -> Result<(), ApiError> {
    if aliases < ALIASES_PER_KEY_MAX {
        return Ok(());
    }
    Err(ApiError::limit(format!("A key has at most {ALIASES_PER_KEY_MAX} aliases.")))
}
