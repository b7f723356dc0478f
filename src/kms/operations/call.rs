//! One request at work: the key that it names, whether its caller may, whether the key's state allows it, what is recorded.
//! Knows no operation's own work.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Caller, Operation, Origin, new_uuid, shown, source};
use crate::kms::audit::Event;
use crate::kms::material::{KeyUsage, MaterialError, parse_key_id};
use crate::kms::policy::{self, Context, Decision, KeyFacts, Request, Why};
use crate::kms::store::records::LastUse;
use crate::kms::view::{self, Key, KeyState, View};
use crate::kms::wire::{ApiError, Input};
use crate::kms::{Edit, Service, Writer};

pub struct Call<'a> {
    pub service: &'a Service,
    pub input: &'a Input,
    pub caller: &'a Caller,
    pub now: i64,
    operation: &'static Operation,
    origin: &'a Origin,
    writer: RefCell<Option<Writer<'a>>>,
    event_id: String,
    resources: RefCell<Vec<String>>,
    additional: RefCell<Map<String, Value>>,
    recorded: Cell<bool>,
}

/// A key, and the alias by which the request named it.
pub struct Found {
    pub key: Arc<Key>,
    pub alias: Option<String>,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        service: &'a Service,
        operation: &'static Operation,
        input: &'a Input,
        caller: &'a Caller,
        origin: &'a Origin,
        writer: Option<Writer<'a>>,
    ) -> Self {
        Self {
            service,
            input,
            caller,
            now: service.now(),
            operation,
            origin,
            writer: RefCell::new(writer),
            event_id: new_uuid(),
            resources: RefCell::default(),
            additional: RefCell::default(),
            recorded: Cell::new(false),
        }
    }

    /// The key that a member names, by id, ARN or alias.
    pub fn find(&self, name: &str) -> Result<Found, ApiError> {
        let found = self.service.find_key(&self.service.view(), name, self.now)?;
        self.about(&found.key.arn);
        Ok(found)
    }

    /// The key that KeyId names; an operation that manages keys takes no alias.
    pub fn managed_key(&self) -> Result<Arc<Key>, ApiError> {
        let name = self.input.required("KeyId")?;
        if name.starts_with("alias/") || name.contains(":alias/") {
            return Err(ApiError::not_found(format!("Invalid keyId '{name}'")));
        }
        Ok(self.find(name)?.key)
    }

    /// Remembers a resource for the trail.
    pub fn about(&self, arn: &str) {
        let mut resources = self.resources.borrow_mut();
        if !resources.iter().any(|known| known == arn) {
            resources.push(arn.to_owned());
        }
    }

    pub fn note(&self, name: &str, value: impl Into<Value>) {
        self.additional.borrow_mut().insert(name.into(), value.into());
    }

    pub fn context(&self) -> Context {
        let account = &self.service.record.account;
        let principal = self.caller.principal(account);
        let mut context = Context::of(&principal)
            .at(u64::try_from(self.now / 1000).unwrap_or(0))
            .via(self.origin.address, self.origin.tls.is_some(), Some(&self.origin.user_agent))
            .in_region(&self.service.record.region);
        if self.caller.user.record.service {
            context.set(policy::context::VIA_SERVICE, [super::service_name(&self.service.record.region)]);
        }
        context
    }

    /// Whether the caller may do `action` (without `kms:`) with the key. `shape` adds the operation's own condition keys.
    pub fn allow(&self, found: &Found, action: &str, shape: impl FnOnce(Context) -> Context) -> Result<(), ApiError> {
        let Found { key, alias } = found;
        let view = self.service.view();
        let mut context = self.context().on_key(&self.facts(key, &view));
        if let Some(alias) = alias {
            context = context.by_alias(alias);
        }
        self.decide(&view, action, &key.arn, Some(key), shape(context))
    }

    pub fn allow_key(&self, key: &Arc<Key>, action: &str) -> Result<(), ApiError> {
        self.allow(&Found { key: key.clone(), alias: None }, action, |context| context)
    }

    /// The same for what is no key: `*`, or the ARN of an alias.
    pub fn allow_resource(
        &self,
        resource: &str,
        action: &str,
        shape: impl FnOnce(Context) -> Context,
    ) -> Result<(), ApiError> {
        self.decide(&self.service.view(), action, resource, None, shape(self.context()))
    }

    pub fn facts<'k>(&'k self, key: &'k Key, view: &'k View) -> KeyFacts<'k> {
        KeyFacts {
            account: &self.service.record.account,
            spec: key.record.spec.as_str(),
            usage: key.record.usage.as_str(),
            origin: key.record.origin.as_str(),
            multi_region: false,
            aliases: view.aliases_of(&key.record.id).collect(),
            tags: key.record.tags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        }
    }

    fn decide(
        &self,
        view: &View,
        action: &str,
        resource: &str,
        key: Option<&Arc<Key>>,
        context: Context,
    ) -> Result<(), ApiError> {
        let account = &self.service.record.account;
        let principal = self.caller.principal(account);
        let action = format!("kms:{action}");
        let request = Request { principal, action: &action, resource, context };
        let user_policies: Vec<_> = self.caller.user.policies.iter().collect();
        let root = view::user_arn(account, view::ROOT);
        let grantees = [principal.arn, principal.service().unwrap_or(""), &root];
        let grants: Vec<&policy::Grant> = key
            .and_then(|key| view.grants_of(&key.record.id))
            .into_iter()
            .flat_map(|grants| grants.of_grantees(&grantees))
            .map(|grant| &**grant)
            .collect();
        let decision = policy::decide(&request, key.map(|key| &key.policy), &user_policies, &grants);
        self.judge(&decision, &request)
    }

    /// Turns a decision into an answer, and says in the trail what decided.
    pub fn judge(&self, decision: &Decision, request: &Request<'_>) -> Result<(), ApiError> {
        let (Decision::Allow(why) | Decision::Deny(why)) = decision;
        let told = match why {
            Why::KeyPolicy { statement } => format!("key policy: {statement}"),
            Why::UserPolicy { statement, .. } => format!("user policy: {statement}"),
            Why::Grant { id } => format!("grant: {id}"),
            Why::AccountRoot => "account root".into(),
            Why::Nothing { .. } => "nothing allows it".into(),
        };
        self.note("decidedBy", told);
        match decision.denial(request) {
            None => Ok(()),
            Some(message) => Err(ApiError::denied(message)),
        }
    }

    /// The context of a request about `key`, for the checks that are not an action of their own.
    pub fn key_context(&self, key: &Key) -> Context {
        let view = self.service.view();
        self.context().on_key(&self.facts(key, &view))
    }

    /// For cryptographic use: enabled, and made for this usage.
    pub fn usable(&self, key: &Key, usage: KeyUsage) -> Result<(), ApiError> {
        self.enabled(key)?;
        if key.record.usage != usage {
            return Err(ApiError::new(
                "InvalidKeyUsageException",
                format!(
                    "{} key usage is {} which is not valid for {}.",
                    key.arn, key.record.usage, self.operation.name
                ),
            ));
        }
        Ok(())
    }

    pub fn enabled(&self, key: &Key) -> Result<(), ApiError> {
        self.state(key, &[KeyState::Enabled])
    }

    pub fn state(&self, key: &Key, allowed: &[KeyState]) -> Result<(), ApiError> {
        let state = key.state(self.now);
        if allowed.contains(&state) {
            return Ok(());
        }
        Err(match state {
            KeyState::Disabled => ApiError::new("DisabledException", format!("{} is disabled.", key.arn)),
            KeyState::PendingDeletion => ApiError::invalid_state(format!("{} is pending deletion.", key.arn)),
            KeyState::PendingImport => ApiError::invalid_state(format!("{} is pending import.", key.arn)),
            KeyState::Enabled => ApiError::invalid_state(format!("{} is enabled.", key.arn)),
        })
    }

    /// Every check has passed: a dry run ends here.
    pub fn dry_run(&self) -> Result<(), ApiError> {
        if self.input.flag("DryRun") {
            return Err(ApiError::new(
                "DryRunOperationException",
                "The request would have succeeded, but the DryRun option is set.",
            ));
        }
        Ok(())
    }

    /// A token of a grant of this service; that the grant is effective at once makes it otherwise superfluous.
    pub fn grant_tokens(&self) -> Result<(), ApiError> {
        for token in self.input.texts("GrantTokens") {
            if policy::grant::read_token(self.service.store().keys().tokens(), token).is_none() {
                return Err(ApiError::new("InvalidGrantTokenException", "Invalid grant token."));
            }
        }
        Ok(())
    }

    /// This service attests no enclaves; a request that wants its answer for one must not get it in the open.
    pub fn no_recipient(&self) -> Result<(), ApiError> {
        if self.input.has("Recipient") {
            return Err(ApiError::unsupported("Recipient is not supported by this service."));
        }
        Ok(())
    }

    pub fn encryption_context(&self, member: &str) -> BTreeMap<String, String> {
        self.input.pairs(member)
    }

    /// A key was used for cryptography.
    pub fn used(&self, key: &Key) {
        let mut uses = self.service.uses.lock();
        let last = LastUse {
            operation: self.operation.name.into(),
            time: self.now,
            request_id: self.origin.request_id.clone(),
            event_id: self.event_id.clone(),
        };
        match uses.get_mut(&key.record.id) {
            Some(old) => *old = last,
            None => {
                uses.insert(key.record.id.clone(), last);
            }
        }
    }

    /// From here on nobody else changes anything; for operations that have slow work to do before.
    pub fn begin_change(&self) {
        let mut writer = self.writer.borrow_mut();
        if writer.is_none() {
            *writer = Some(self.service.writer());
        }
    }

    /// Makes the change that this request is for: durable when it returns. `response` is what the trail shows of the answer.
    pub fn change(&self, edit: Edit, response: Value) -> Result<(), ApiError> {
        let writer = self.writer.borrow();
        let Some(writer) = &*writer else {
            log::error!("code=bug {} changes the store without being marked so", self.operation.name);
            return Err(ApiError::internal());
        };
        let mut event = self.event(None);
        event.response = response;
        self.service.change(writer, edit, &event)?;
        self.recorded.set(true);
        Ok(())
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.recorded.get()
    }

    pub(super) fn event(&self, error: Option<&ApiError>) -> Event {
        Event {
            id: self.event_id.clone(),
            request_id: self.origin.request_id.clone(),
            time: self.now,
            name: self.operation.name,
            actor: self.caller.actor(),
            source: source(self.origin),
            user_agent: self.origin.user_agent.clone(),
            request: shown(self.operation.name, self.input),
            response: Value::Null,
            additional: self.additional.borrow().clone(),
            read_only: self.operation.read_only,
            resources: self.resources.borrow().clone(),
            error: error.map(|error| (trail_code(error.code), error.message.clone().unwrap_or_default())),
            tls: self.origin.tls,
        }
    }

    /// What the cryptography says, as this operation's error.
    pub fn failed(&self, error: MaterialError) -> ApiError {
        match error {
            MaterialError::InvalidCiphertext => ApiError::silent("InvalidCiphertextException"),
            MaterialError::InvalidSignature => ApiError::silent("KMSInvalidSignatureException"),
            MaterialError::InvalidMac => ApiError::silent("KMSInvalidMacException"),
            MaterialError::PlaintextTooLong { limit } => {
                ApiError::validation(format!("Plaintext is longer than this key and algorithm take: {limit} bytes."))
            }
            MaterialError::DigestLength(_) | MaterialError::InvalidPublicKey => {
                ApiError::validation(capital(&error.to_string()))
            }
            MaterialError::InvalidMaterial(_) => {
                ApiError::new("IncorrectKeyMaterialException", capital(&error.to_string()))
            }
            MaterialError::WrongSpec => ApiError::new("InvalidKeyUsageException", capital(&error.to_string())),
            MaterialError::Library => {
                log::error!("code=crypto {}: {error}", self.operation.name);
                ApiError::internal()
            }
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_ascii_uppercase()).into_iter().collect();
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", chars.as_str())
}

/// CloudTrail writes AccessDenied without its ending.
fn trail_code(code: &str) -> String {
    if code == "AccessDeniedException" { "AccessDenied".into() } else { code.into() }
}

impl Service {
    /// The key that `name` means now: a key id, a key ARN, `alias/NAME` or an alias ARN.
    pub fn find_key(&self, view: &View, name: &str, now: i64) -> Result<Found, ApiError> {
        let local = match name.strip_prefix("arn:") {
            None => name,
            Some(rest) => self.local_part(name, rest)?,
        };
        if local.starts_with("alias/") {
            let alias = view.aliases.get(local).ok_or_else(|| {
                ApiError::not_found(format!("Alias {} is not found.", view::alias_arn(&self.record, local)))
            })?;
            let key = view.keys.get(&alias.target).filter(|key| !key.is_gone(now)).ok_or_else(|| {
                ApiError::not_found(format!("Key '{}' does not exist", view::key_arn(&self.record, &alias.target)))
            })?;
            return Ok(Found { key: key.clone(), alias: Some(local.to_owned()) });
        }
        let id = match (name.starts_with("arn:"), local.strip_prefix("key/")) {
            (true, Some(id)) => id,
            (false, None) => local,
            _ => return Err(ApiError::not_found(format!("Invalid keyId '{name}'"))),
        };
        let known = view.keys.get(id).filter(|key| !key.is_gone(now));
        match known {
            Some(key) => Ok(Found { key: key.clone(), alias: None }),
            None if parse_key_id(id).is_some() || id.starts_with("mrk-") => {
                Err(ApiError::not_found(format!("Key '{}' does not exist", view::key_arn(&self.record, id))))
            }
            None => Err(ApiError::not_found(format!("Invalid keyId '{name}'"))),
        }
    }

    /// `key/ID` or `alias/NAME` of an ARN of this service. `rest`: what follows `arn:`.
    fn local_part<'n>(&self, name: &str, rest: &'n str) -> Result<&'n str, ApiError> {
        let mut parts = rest.splitn(5, ':');
        let mut next = || parts.next().unwrap_or("");
        let (partition, service, region, account, local) = (next(), next(), next(), next(), next());
        if !partition.starts_with("aws") || service != "kms" || local.is_empty() {
            return Err(ApiError::new("InvalidArnException", format!("Invalid ARN '{name}'")));
        }
        if region != self.record.region {
            return Err(ApiError::not_found(format!("Invalid arn {region}")));
        }
        if account != self.record.account {
            return Err(ApiError::denied(format!(
                "The resource {name} belongs to another account, which this service does not serve."
            )));
        }
        Ok(local)
    }
}
