//! TagResource, UntagResource, ListResourceTags, and what a tag may be.

use serde_json::{Value, json};

use super::call::{Call, Found};
use super::keys::Tags;
use super::lifecycle;
use crate::kms::view::KeyState;
use crate::kms::wire::{ApiError, Input, page::page};

const TAGS_MAX: usize = 50;
const STATES: &[KeyState] = &[KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport];

/// The member Tags.
pub fn of(input: &Input) -> Result<Tags, ApiError> {
    let mut tags = Tags::new();
    for tag in input.structures("Tags") {
        let text = |name: &str| tag.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let name = text("TagKey");
        if name.to_ascii_lowercase().starts_with("aws:") {
            return Err(ApiError::new("TagException", "Tag keys that begin with aws: are reserved."));
        }
        if tags.insert(name, text("TagValue")).is_some() {
            return Err(ApiError::new("TagException", "Duplicate tag keys"));
        }
    }
    few_enough(&tags)?;
    Ok(tags)
}

fn few_enough(tags: &Tags) -> Result<(), ApiError> {
    if tags.len() <= TAGS_MAX { Ok(()) } else { Err(ApiError::limit(format!("A key has at most {TAGS_MAX} tags."))) }
}

pub fn tag_resource(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let tags = of(call.input)?;
    call.allow(&Found { key: key.clone(), alias: None }, "TagResource", |context| {
        context.with_tags(tags.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    })?;
    call.state(&key, STATES)?;
    let mut all = key.record.tags.clone();
    all.extend(tags);
    few_enough(&all)?;
    lifecycle::put(call, &key, Value::Null, |record| record.tags = all)?;
    Ok(Value::Null)
}

pub fn untag_resource(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let names = call.input.texts("TagKeys");
    call.allow(&Found { key: key.clone(), alias: None }, "UntagResource", |context| {
        context.with_tag_keys(names.iter().copied())
    })?;
    call.state(&key, STATES)?;
    lifecycle::put(call, &key, Value::Null, |record| record.tags.retain(|name, _| !names.contains(&name.as_str())))?;
    Ok(Value::Null)
}

pub fn list_resource_tags(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "ListResourceTags")?;
    let show = |(name, value): (&String, &String)| json!({"TagKey": name, "TagValue": value});
    page(call.input, 50, "Tags", key.record.tags.iter(), |(name, _)| name.as_str(), show).map(Value::Object)
}
