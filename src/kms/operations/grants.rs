//! CreateGrant, ListGrants, ListRetirableGrants, RetireGrant, RevokeGrant. Knows not what a grant permits.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

use super::call::{Call, Found};
use crate::crypto::random;
use crate::kms::Edit;
use crate::kms::policy::grant::{self, Constraints, GrantError, GrantTerms, Party};
use crate::kms::policy::{self, Grant, Request};
use crate::kms::view::{Gone, Key, Piece};
use crate::kms::wire::input::pairs;
use crate::kms::wire::time::seconds;
use crate::kms::wire::{ApiError, page::page};

const GRANTS_PER_KEY_MAX: usize = 50_000;

pub fn create_grant(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let terms = terms(call)?;
    let account = &call.service.record.account;
    let caller = call.caller.principal(account);
    terms.check(key.record.usage.as_str(), key.record.spec.as_str()).map_err(|error| match error {
        GrantError::Principal => ApiError::new("InvalidArnException", "A principal of the grant is not valid."),
        other => {
            let text = other.to_string();
            ApiError::validation(format!("{}{}.", text[..1].to_uppercase(), &text[1..]))
        }
    })?;
    call.allow(&Found { key: key.clone(), alias: None }, "CreateGrant", |context| {
        context.for_new_grant(&terms, &caller)
    })?;
    call.grant_tokens()?;
    call.enabled(&key)?;
    call.dry_run()?;
    let tokens = call.service.store().keys().tokens();
    let same = {
        let view = call.service.view();
        let grants = view.grants_of(&key.record.id);
        let same = grants.and_then(|grants| grants.by_id.values().find(|grant| terms.means(&grant.terms)).cloned());
        if same.is_none() && grants.is_some_and(|grants| grants.by_id.len() >= GRANTS_PER_KEY_MAX) {
            return Err(ApiError::limit(format!("A key has at most {GRANTS_PER_KEY_MAX} grants.")));
        }
        same
    };
    let answer = |grant: &Grant| json!({"GrantToken": grant.token(tokens), "GrantId": grant.id});
    if let Some(same) = same {
        return Ok(answer(&same));
    }
    let grant = Grant {
        id: HEXLOWER.encode(&random::array::<32>()),
        key_id: key.record.id.clone(),
        issuing_account: account.clone(),
        created: u64::try_from(call.now / 1000).unwrap_or(0),
        terms,
    };
    let out = answer(&grant);
    let response = json!({"grantId": grant.id, "keyId": key.arn});
    call.change(Edit::put(Piece::Grant(Arc::new(grant))), response)?;
    Ok(out)
}

fn terms(call: &Call<'_>) -> Result<GrantTerms, ApiError> {
    let input = call.input;
    let party = |principal: &str, service: &str| match (input.text(principal), input.text(service)) {
        (Some(_), Some(_)) => Err(ApiError::validation(format!("Specify only one of {principal} and {service}."))),
        (Some(arn), None) => Ok(Some(Party::Principal(arn.into()))),
        (None, Some(name)) => Ok(Some(Party::Service(name.into()))),
        (None, None) => Ok(None),
    };
    let grantee = party("GranteePrincipal", "GranteeServicePrincipal")?.ok_or_else(|| {
        ApiError::validation(
            "1 validation error detected: Value at 'granteePrincipal' failed to satisfy constraint: Member must not be null",
        )
    })?;
    let constraints = input.structure("Constraints");
    let constraint = |name: &str| constraints.and_then(|c| c.get(name)).filter(|value| !value.is_null());
    Ok(GrantTerms {
        name: input.text("Name").map(str::to_owned),
        grantee,
        retiring: party("RetiringPrincipal", "RetiringServicePrincipal")?,
        operations: input.texts("Operations").into_iter().map(str::to_owned).collect(),
        constraints: Constraints {
            subset: constraint("EncryptionContextSubset").map(pairs),
            equals: constraint("EncryptionContextEquals").map(pairs),
            source_arn: constraint("SourceArn").and_then(Value::as_str).map(str::to_owned),
        },
    })
}

pub fn list_grants(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let caller = call.caller.principal(&call.service.record.account);
    call.allow(&Found { key: key.clone(), alias: None }, "ListGrants", |context| context.for_grants(&caller))?;
    let wanted = |member: &str, text: Option<&str>| call.input.text(member).is_none_or(|wanted| text == Some(wanted));
    let view = call.service.view();
    let grants = view.grants_of(&key.record.id).into_iter().flat_map(|grants| grants.by_id.values()).filter(|grant| {
        let (principal, service) = split(&grant.terms.grantee);
        wanted("GrantId", Some(&grant.id))
            && wanted("GranteePrincipal", principal)
            && wanted("GranteeServicePrincipal", service)
    });
    page(call.input, 50, "Grants", grants, |grant| &grant.id, |grant| shown(grant, &key.arn)).map(Value::Object)
}

pub fn list_retirable_grants(call: &Call<'_>) -> Result<Value, ApiError> {
    call.allow_resource("*", "ListRetirableGrants", |context| context)?;
    let (principal, service) = (call.input.text("RetiringPrincipal"), call.input.text("RetiringServicePrincipal"));
    if principal.is_some() == service.is_some() {
        return Err(ApiError::validation("Specify one of RetiringPrincipal and RetiringServicePrincipal."));
    }
    let view = call.service.view();
    let mut grants: Vec<(&Arc<Grant>, &Arc<Key>)> = view
        .all_grants()
        .filter(|grant| {
            let retiring = grant.terms.retiring.as_ref().map(split);
            retiring.is_some_and(|(arn, name)| {
                (principal.is_some() && arn == principal) || (service.is_some() && name == service)
            })
        })
        .filter_map(|grant| Some((grant, view.keys.get(&grant.key_id).filter(|key| !key.is_gone(call.now))?)))
        .collect();
    grants.sort_unstable_by(|a, b| a.0.id.cmp(&b.0.id));
    let show = |(grant, key): (&Arc<Grant>, &Arc<Key>)| shown(grant, &key.arn);
    page(call.input, 50, "Grants", grants.into_iter(), |(grant, _)| &grant.id, show).map(Value::Object)
}

pub fn revoke_grant(call: &Call<'_>) -> Result<Value, ApiError> {
    let key = call.managed_key()?;
    let caller = call.caller.principal(&call.service.record.account);
    call.allow(&Found { key: key.clone(), alias: None }, "RevokeGrant", |context| context.for_grants(&caller))?;
    let id = call.input.required("GrantId")?;
    let grant = existing(call, &key, id)?;
    call.dry_run()?;
    remove(call, &grant)
}

pub fn retire_grant(call: &Call<'_>) -> Result<Value, ApiError> {
    let input = call.input;
    let (key, id) = match (input.text("GrantToken"), input.text("KeyId"), input.text("GrantId")) {
        (Some(token), None, None) => {
            let named = grant::read_token(call.service.store().keys().tokens(), token);
            let (key, id) = named.ok_or_else(|| ApiError::new("InvalidGrantTokenException", "Invalid grant token."))?;
            (call.find(&key)?.key, id)
        }
        (None, Some(_), Some(id)) => (call.managed_key()?, id.to_owned()),
        _ => return Err(ApiError::validation("Specify a grant token, or a key ID and a grant ID.")),
    };
    let grant = existing(call, &key, &id)?;
    let account = &call.service.record.account;
    let request = Request {
        principal: call.caller.principal(account),
        action: "kms:RetireGrant",
        resource: &key.arn,
        context: call.key_context(&key),
    };
    let user_policies: Vec<_> = call.caller.user.policies.iter().collect();
    call.judge(&policy::decide_retire(&request, Some(&key.policy), &user_policies, &grant), &request)?;
    call.dry_run()?;
    remove(call, &grant)
}

fn existing(call: &Call<'_>, key: &Key, id: &str) -> Result<Arc<Grant>, ApiError> {
    let view = call.service.view();
    let grant = view.grants_of(&key.record.id).and_then(|grants| grants.by_id.get(id)).cloned();
    grant.ok_or_else(|| ApiError::not_found(format!("Grant ID {id} not found")))
}

fn remove(call: &Call<'_>, grant: &Grant) -> Result<Value, ApiError> {
    call.note("grantId", grant.id.as_str());
    let gone = Gone::Grant { key: grant.key_id.clone(), id: grant.id.clone() };
    call.change(Edit::remove(gone), Value::Null)?;
    Ok(Value::Null)
}

/// As a principal's ARN and as a service's name.
fn split(party: &Party) -> (Option<&str>, Option<&str>) {
    match party {
        Party::Principal(arn) => (Some(arn), None),
        Party::Service(name) => (None, Some(name)),
    }
}

fn shown(grant: &Grant, key: &str) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
    put("KeyId", key.into());
    put("GrantId", grant.id.as_str().into());
    // As AWS: a grant without a name has an empty one.
    put("Name", grant.terms.name.as_deref().unwrap_or("").into());
    put("CreationDate", seconds(i64::try_from(grant.created).unwrap_or(0).saturating_mul(1000)));
    put("IssuingAccount", crate::kms::audit::root_arn(&grant.issuing_account).into());
    put("Operations", json!(grant.terms.operations));
    let mut party = |party: &Party, principal: &str, service: &str| {
        let name = if matches!(party, Party::Principal(_)) { principal } else { service };
        out.insert(name.to_owned(), party.text().into());
    };
    party(&grant.terms.grantee, "GranteePrincipal", "GranteeServicePrincipal");
    if let Some(retiring) = &grant.terms.retiring {
        party(retiring, "RetiringPrincipal", "RetiringServicePrincipal");
    }
    let constraints = &grant.terms.constraints;
    let mut told = Map::new();
    for (name, pairs) in
        [("EncryptionContextSubset", &constraints.subset), ("EncryptionContextEquals", &constraints.equals)]
    {
        if let Some(pairs) = pairs {
            told.insert(name.into(), json!(pairs));
        }
    }
    if let Some(arn) = &constraints.source_arn {
        told.insert("SourceArn".into(), arn.as_str().into());
    }
    if !told.is_empty() {
        out.insert("Constraints".into(), Value::Object(told));
    }
    Value::Object(out)
}
