//! GetKeyPolicy, PutKeyPolicy, ListKeyPolicies, and what a policy must be to be taken. Knows not what policies mean.

use serde_json::{Value, json};

use super::call::{Call, Found};
use super::lifecycle;
use crate::kms::policy::{self, Context, Document, context};
use crate::kms::view::user_arn;
use crate::kms::wire::ApiError;

/// The only name that a key policy has.
const NAME: &str = "default";
/// In bytes.
pub const POLICY_MAX: usize = 32 * 1024;

/// Whether the policy may be put on the key `arn`: well formed, of known principals, and, unless `bypass`, no lock-out of
/// the caller. `shape` adds what is known of the key.
pub fn check(
    call: &Call<'_>,
    arn: &str,
    text: &str,
    bypass: bool,
    shape: impl FnOnce(Context) -> Context,
) -> Result<(), ApiError> {
    if text.len() > POLICY_MAX {
        return Err(ApiError::limit(format!("A key policy has at most {POLICY_MAX} bytes.")));
    }
    let malformed = |why: String| ApiError::new("MalformedPolicyDocumentException", why);
    let document = Document::parse_key_policy(text).map_err(|e| malformed(e.to_string()))?;
    let account = &call.service.record.account;
    let own = format!("arn:aws:iam::{account}:");
    for principal in document.principals() {
        let known = match principal.strip_prefix(&own) {
            Some(local) => local.strip_prefix("user/").is_some_and(|name| {
                call.service.view().users.contains_key(name) && user_arn(account, name) == principal
            }),
            // Other accounts and services are not ours to judge.
            None => true,
        };
        if !known {
            return Err(malformed("Policy contains a statement with one or more invalid principals.".into()));
        }
    }
    if bypass {
        return Ok(());
    }
    let caller = call.caller.principal(account);
    let user_policies: Vec<_> = call.caller.user.policies.iter().collect();
    if policy::locks_out(&document, &caller, arn, &shape(call.context()), &user_policies) {
        return Err(malformed("The new key policy will not allow you to update the key policy in the future.".into()));
    }
    Ok(())
}

pub fn put_key_policy(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let bypass = call.input.flag("BypassPolicyLockoutSafetyCheck");
    call.allow(&Found { key: key.clone(), alias: None }, "PutKeyPolicy", |mut context| {
        context.set(context::BYPASS_LOCKOUT_CHECK, [bypass.to_string()]);
        context
    })?;
    named_default(call)?;
    let text = call.input.required("Policy")?;
    check(call, &key.arn, text, bypass, |_| call.key_context(&key))?;
    lifecycle::put(call, &key, Value::Null, |record| record.policy = text.to_owned())?;
    Ok(Value::Null)
}

pub fn get_key_policy(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "GetKeyPolicy")?;
    named_default(call)?;
    Ok(json!({"Policy": key.record.policy, "PolicyName": NAME}))
}

pub fn list_key_policies(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    call.allow_key(&key, "ListKeyPolicies")?;
    Ok(json!({"PolicyNames": [NAME], "Truncated": false}))
}

fn named_default(call: &Call<'_>) -> Result<(), ApiError> {
    match call.input.text("PolicyName") {
        None | Some(NAME) => Ok(()),
        Some(_) => Err(ApiError::not_found("No such policy exists")),
    }
}
