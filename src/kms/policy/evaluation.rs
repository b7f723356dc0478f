//! The decision: key policy, users' policies and grants together. Owns the order of precedence; must not know how it is answered.

use super::context::Context;
use super::document::{Document, Effect, Statement};
use super::grant::{Fit, Grant};
use super::principal::{Cover, Principal};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub principal: Principal<'a>,
    /// `kms:Encrypt`; for ReEncrypt two requests, `kms:ReEncryptFrom` and `kms:ReEncryptTo`.
    pub action: &'a str,
    /// The ARN of a key or an alias, or `*` for what concerns neither.
    pub resource: &'a str,
    pub context: Context,
}

/// Which statement or grant decided, for the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A statement of the key policy, by Sid or number from 1.
    KeyPolicy {
        statement: String,
    },
    /// A statement of the user's policy with this number from 0.
    UserPolicy {
        policy: usize,
        statement: String,
    },
    Grant {
        id: String,
    },
    /// The account's root, where there is no key whose policy could decide.
    AccountRoot,
    /// No statement and no grant allows it. The account's own policies could have, where `delegated`.
    Nothing {
        delegated: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(Why),
    Deny(Why),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
    /// The message of AccessDeniedException; nothing for what is allowed.
    pub fn denial(&self, request: &Request) -> Option<String> {
        let Decision::Deny(why) = self else { return None };
        let action = request.action;
        let because = match why {
            Why::KeyPolicy { .. } => "with an explicit deny in a resource-based policy".to_owned(),
            Why::UserPolicy { .. } => "with an explicit deny in an identity-based policy".to_owned(),
            Why::Nothing { delegated: true } => format!("because no identity-based policy allows the {action} action"),
            Why::Nothing { .. } | Why::Grant { .. } | Why::AccountRoot => {
                format!("because no resource-based policy allows the {action} action")
            }
        };
        let (arn, resource) = (request.principal.arn, request.resource);
        Some(format!("User: {arn} is not authorized to perform: {action} on resource: {resource} {because}"))
    }
}

/// Decides. Pass the policy and the grants of the key that the request is for; neither where it is for an alias or for no
/// resource: there the caller's own policies decide. Operations on an alias need a decision for the alias and one for the key.
pub fn decide(
    request: &Request,
    key_policy: Option<&Document>,
    user_policies: &[&Document],
    grants: &[&Grant],
) -> Decision {
    let asked = Asked { request, key_policy, user_policies };
    if let Some(why) = asked.denied() {
        return Decision::Deny(why);
    }
    let caller = &request.principal;
    let user = asked.user_allows();
    let Some(own_account) = asked.resource_account().map(|account| account == caller.account) else {
        return Decision::Deny(Why::Nothing { delegated: false });
    };
    let Some(key_policy) = key_policy else {
        let root = (caller.is_root).then_some(Why::AccountRoot);
        return root
            .or(user)
            .filter(|_| own_account)
            .map_or(Decision::Deny(Why::Nothing { delegated: true }), Decision::Allow);
    };
    let (direct, delegated) = asked.key_policy_allows(key_policy);
    // A foreign account must let its user go, whatever the key's account says.
    let may_go = own_account || caller.is_root || user.is_some();
    if let Some(why) = direct.filter(|_| may_go) {
        return Decision::Allow(why);
    }
    if let Some(why) = user.clone().filter(|_| delegated) {
        return Decision::Allow(why);
    }
    for grant in grants {
        let fits = match grant.terms.grantee.fit(caller) {
            Fit::Himself => may_go,
            Fit::HisAccount => user.is_some(),
            Fit::No => false,
        };
        if fits && grant.permits(request.action, &request.context) {
            return Decision::Allow(Why::Grant { id: grant.id.clone() });
        }
    }
    Decision::Deny(Why::Nothing { delegated })
}

/// Decides RetireGrant (`request.action`): no policy allows it by itself, only the grant and the account that issued it do.
pub fn decide_retire(
    request: &Request,
    key_policy: Option<&Document>,
    user_policies: &[&Document],
    grant: &Grant,
) -> Decision {
    let asked = Asked { request, key_policy, user_policies };
    if let Some(why) = asked.denied() {
        return Decision::Deny(why);
    }
    let caller = &request.principal;
    let passed_on = asked.user_allows().is_some();
    let is = |fit| match fit {
        Fit::Himself => true,
        Fit::HisAccount => passed_on,
        Fit::No => false,
    };
    let retiring = grant.terms.retiring.as_ref().is_some_and(|party| is(party.fit(caller)));
    let grantee = is(grant.terms.grantee.fit(caller)) && grant.permits("kms:RetireGrant", &request.context);
    let issuer = caller.account == grant.issuing_account && (caller.is_root || passed_on);
    if retiring || grantee || issuer {
        Decision::Allow(Why::Grant { id: grant.id.clone() })
    } else {
        Decision::Deny(Why::Nothing { delegated: true })
    }
}

/// The safety check of PutKeyPolicy and CreateKey: whether under `document` the caller could not put another policy. `context`
/// is that of the request, `key` the ARN of the key.
pub fn locks_out(
    document: &Document,
    caller: &Principal,
    key: &str,
    context: &Context,
    user_policies: &[&Document],
) -> bool {
    let request = Request { principal: *caller, action: "kms:PutKeyPolicy", resource: key, context: context.clone() };
    !decide(&request, Some(document), user_policies, &[]).is_allowed()
}

struct Asked<'a> {
    request: &'a Request<'a>,
    key_policy: Option<&'a Document>,
    user_policies: &'a [&'a Document],
}

fn name(number: usize, statement: &Statement) -> String {
    match statement.sid.as_deref() {
        None | Some("") => format!("#{}", number + 1),
        Some(sid) => sid.to_owned(),
    }
}

impl Asked<'_> {
    fn applies(&self, statement: &Statement, effect: Effect) -> bool {
        let Request { action, resource, context, .. } = self.request;
        statement.effect == effect && statement.applies(action, resource, context)
    }
    /// The account of the key or alias, the caller's own for `*`; nothing for what is no ARN.
    fn resource_account(&self) -> Option<&str> {
        match self.request.resource {
            "*" => Some(self.request.principal.account),
            arn => arn.split(':').nth(4).filter(|account| !account.is_empty()),
        }
    }
    /// An explicit Deny, wherever it stands.
    fn denied(&self) -> Option<Why> {
        let key = self
            .key_policy
            .into_iter()
            .flat_map(|document| document.statements().iter().enumerate())
            .find(|(_, s)| s.cover(&self.request.principal) != Cover::Not && self.applies(s, Effect::Deny));
        let key = key.map(|(number, statement)| Why::KeyPolicy { statement: name(number, statement) });
        key.or_else(|| self.user_statement(Effect::Deny))
    }
    fn user_allows(&self) -> Option<Why> {
        self.user_statement(Effect::Allow)
    }
    /// The first statement of the caller's policies that has this effect on the request.
    fn user_statement(&self, effect: Effect) -> Option<Why> {
        self.user_policies.iter().enumerate().find_map(|(policy, document)| {
            let found = document
                .statements()
                .iter()
                .enumerate()
                .find(|(_, s)| !s.names_principals() && self.applies(s, effect));
            found.map(|(number, statement)| Why::UserPolicy { policy, statement: name(number, statement) })
        })
    }
    /// The statement of the key policy that allows the caller himself, and whether one allows his account.
    fn key_policy_allows(&self, document: &Document) -> (Option<Why>, bool) {
        let (mut direct, mut delegated) = (None, false);
        for (number, statement) in document.statements().iter().enumerate() {
            match statement.cover(&self.request.principal) {
                Cover::Not => {}
                _ if !self.applies(statement, Effect::Allow) => {}
                Cover::Direct if direct.is_none() => {
                    direct = Some(Why::KeyPolicy { statement: name(number, statement) });
                }
                Cover::Direct => {}
                Cover::Account => delegated = true,
            }
        }
        (direct, delegated)
    }
}
