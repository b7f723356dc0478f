//! Grants: terms, constraints, tokens, and what a grant permits. Must not know policies, nor where grants are kept.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::context::{Context, SOURCE_ARN};
use super::principal::{Named, Principal};
use crate::crypto::secret::{Secret32, wiping_stack};

/// Operations that a grant may permit (API: GrantOperation).
pub const OPERATIONS: [&str; 17] = [
    "CreateGrant",
    "Decrypt",
    "DeriveSharedSecret",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GetPublicKey",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
    "Sign",
    "Verify",
    "VerifyMac",
];
/// Those to which an encryption context belongs: the constraints on it count for them.
const WITH_ENCRYPTION_CONTEXT: [&str; 8] = [
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
];
/// Those that use no key material: constraints on the encryption context do not count for them.
const WITHOUT_KEY_MATERIAL: [&str; 4] = ["CreateGrant", "DescribeKey", "GetPublicKey", "RetireGrant"];

/// Pairs of one constraint, and characters of one value in it.
pub const MAX_PAIRS: usize = 8;
pub const MAX_VALUE: usize = 384;

/// Operations that a grant on a key may name, by KeyUsage and KeySpec; none for a usage that does not exist.
pub fn operations_for(usage: &str, spec: &str) -> &'static [&'static str] {
    match (usage, spec) {
        ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT") => &[
            "Decrypt",
            "Encrypt",
            "GenerateDataKey",
            "GenerateDataKeyPair",
            "GenerateDataKeyPairWithoutPlaintext",
            "GenerateDataKeyWithoutPlaintext",
            "ReEncryptFrom",
            "ReEncryptTo",
            "CreateGrant",
            "DescribeKey",
            "RetireGrant",
        ],
        ("ENCRYPT_DECRYPT", _) => &[
            "Decrypt",
            "Encrypt",
            "ReEncryptFrom",
            "ReEncryptTo",
            "GetPublicKey",
            "CreateGrant",
            "DescribeKey",
            "RetireGrant",
        ],
        ("SIGN_VERIFY", _) => &["Sign", "Verify", "GetPublicKey", "CreateGrant", "DescribeKey", "RetireGrant"],
        ("GENERATE_VERIFY_MAC", _) => &["GenerateMac", "VerifyMac", "CreateGrant", "DescribeKey", "RetireGrant"],
        ("KEY_AGREEMENT", _) => &["DeriveSharedSecret", "GetPublicKey", "CreateGrant", "DescribeKey", "RetireGrant"],
        _ => &[],
    }
}

/// Whom a grant names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Party {
    /// GranteePrincipal, RetiringPrincipal: the ARN of an account's root, a user, a role or a session.
    Principal(String),
    /// GranteeServicePrincipal, RetiringServicePrincipal: the name of a service.
    Service(String),
}

/// How a party and a caller belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Himself,
    /// The party is the caller's account: it passes on by its users' policies what it has.
    HisAccount,
    No,
}

impl Party {
    /// Nothing where it is the ARN of no principal.
    pub fn is_valid(&self) -> bool {
        match self {
            Party::Principal(arn) => matches!(Named::aws(arn), Some(Named::Arn(_))) || self.account_root().is_some(),
            Party::Service(name) => {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            }
        }
    }
    pub fn text(&self) -> &str {
        match self {
            Party::Principal(text) | Party::Service(text) => text,
        }
    }
    pub(super) fn condition_key(&self, principal: &'static str, service: &'static str) -> (&'static str, &str) {
        match self {
            Party::Principal(arn) => (principal, arn),
            Party::Service(name) => (service, name),
        }
    }
    /// The account whose root it is.
    fn account_root(&self) -> Option<String> {
        match self {
            Party::Principal(arn) if arn.starts_with("arn:") => match Named::aws(arn) {
                Some(Named::Account(account)) => Some(account),
                _ => None,
            },
            Party::Principal(_) | Party::Service(_) => None,
        }
    }
    pub(super) fn fit(&self, caller: &Principal) -> Fit {
        let himself = match self {
            Party::Principal(arn) => arn == caller.arn,
            Party::Service(name) => caller.service() == Some(name),
        };
        match self.account_root() {
            _ if himself => Fit::Himself,
            Some(account) if account == caller.account && !caller.is_root => Fit::HisAccount,
            _ => Fit::No,
        }
    }
}

pub type Pairs = BTreeMap<String, String>;

/// What else must be true when a grant is used; all that are there must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraints {
    /// EncryptionContextSubset: these pairs, and any others.
    pub subset: Option<Pairs>,
    /// EncryptionContextEquals: these pairs and no others.
    pub equals: Option<Pairs>,
    /// SourceArn: the resource on whose behalf a service calls.
    pub source_arn: Option<String>,
}

/// The name of a pair has no case in a constraint, its value has.
fn folded<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<(String, &'a str)> {
    let mut folded: Vec<_> = pairs.into_iter().map(|(name, value)| (name.to_lowercase(), value.as_str())).collect();
    folded.sort_unstable();
    folded
}
fn includes(all: &[(String, &str)], some: &Pairs) -> bool {
    folded(some).iter().all(|pair| all.contains(pair))
}

impl Constraints {
    /// Whether there is one on the encryption context.
    fn on_context(&self) -> bool {
        self.subset.is_some() || self.equals.is_some()
    }
    /// The value of `kms:GrantConstraintType`.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match self {
            Self { equals: Some(_), .. } => Some("EncryptionContextEquals"),
            Self { subset: Some(_), .. } => Some("EncryptionContextSubset"),
            Self { source_arn: Some(_), .. } => Some("SourceArn"),
            Self { .. } => None,
        }
    }
    fn allow_context(&self, pairs: &[(String, String)]) -> bool {
        let request = folded(pairs.iter().map(|(name, value)| (name, value)));
        self.subset.as_ref().is_none_or(|subset| includes(&request, subset))
            && self.equals.as_ref().is_none_or(|equals| folded(equals) == request)
    }
    fn allow_source(&self, context: &Context) -> bool {
        let sources = context.values(&SOURCE_ARN.to_lowercase());
        self.source_arn.as_ref().is_none_or(|arn| matches!(sources, [one] if one == arn))
    }
    /// Whether these are equal to the constraints of a parent, or stricter.
    fn within(&self, parent: &Constraints) -> bool {
        let subset = parent.subset.as_ref().is_none_or(|wanted| {
            [&self.subset, &self.equals].into_iter().flatten().any(|own| includes(&folded(own), wanted))
        });
        let equals = parent
            .equals
            .as_ref()
            .is_none_or(|wanted| self.equals.as_ref().is_some_and(|own| folded(own) == folded(wanted)));
        subset && equals && (parent.source_arn.is_none() || self.source_arn == parent.source_arn)
    }
}

/// What CreateGrant asks for. Two requests with one name and equal terms mean one grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantTerms {
    pub name: Option<String>,
    pub grantee: Party,
    pub retiring: Option<Party>,
    /// Of [`OPERATIONS`].
    pub operations: Vec<String>,
    pub constraints: Constraints,
}

/// Why terms were refused. The service answers a validation error, but for [`GrantError::Principal`]: InvalidArnException.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("a principal of the grant is not valid")]
    Principal,
    #[error("a grant permits at least one operation")]
    NoOperation,
    #[error("an operation of the grant is not supported by the key")]
    Operation,
    #[error("a grant constraint has too many pairs or too long a value")]
    Size,
    #[error("a grant constraint on the encryption context needs operations that have one")]
    Constraint,
}

impl GrantTerms {
    /// Whether a grant of these terms may exist on a key of this KeyUsage and KeySpec.
    pub fn check(&self, usage: &str, spec: &str) -> Result<(), GrantError> {
        if !self.grantee.is_valid() || !self.retiring.as_ref().is_none_or(Party::is_valid) {
            return Err(GrantError::Principal);
        }
        if self.operations.is_empty() {
            return Err(GrantError::NoOperation);
        }
        let supported = operations_for(usage, spec);
        if !self.operations.iter().all(|operation| supported.contains(&operation.as_str())) {
            return Err(GrantError::Operation);
        }
        let pairs = || [&self.constraints.subset, &self.constraints.equals].into_iter().flatten();
        if pairs().any(|p| p.len() > MAX_PAIRS || p.values().any(|value| value.chars().count() > MAX_VALUE)) {
            return Err(GrantError::Size);
        }
        if self.constraints.on_context() && spec != "SYMMETRIC_DEFAULT" {
            return Err(GrantError::Constraint);
        }
        Ok(())
    }
    /// Whether a retried CreateGrant means the grant that exists: named alike, and all terms equal, in any order.
    pub fn means(&self, existing: &GrantTerms) -> bool {
        let sorted = |terms: &GrantTerms| {
            let mut terms = terms.clone();
            terms.operations.sort_unstable();
            terms.operations.dedup();
            terms
        };
        self.name.is_some() && sorted(self) == sorted(existing)
    }
    fn permits_operation(&self, operation: &str) -> bool {
        self.operations.iter().any(|own| own == operation)
    }
}

/// A grant on one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The id of the key, not its ARN.
    pub key_id: String,
    pub issuing_account: String,
    /// Seconds since 1970.
    pub created: u64,
    pub terms: GrantTerms,
}

impl Grant {
    /// Whether the grant permits what is asked, were the caller its grantee.
    pub(super) fn permits(&self, action: &str, context: &Context) -> bool {
        let terms = &self.terms;
        let Some(operation) = action.strip_prefix("kms:").filter(|operation| terms.permits_operation(operation)) else {
            return false;
        };
        let context_counts = WITH_ENCRYPTION_CONTEXT.contains(&operation) || !WITHOUT_KEY_MATERIAL.contains(&operation);
        if context_counts && !terms.constraints.allow_context(context.encryption_context_pairs()) {
            return false;
        }
        if operation == "CreateGrant" {
            let Some(child) = context.terms_of_new_grant() else { return false };
            let fewer = child.operations.iter().all(|operation| terms.permits_operation(operation));
            if !fewer || !child.constraints.within(&terms.constraints) {
                return false;
            }
        }
        operation == "RetireGrant" || terms.constraints.allow_source(context)
    }

    /// A new token for the grant: each is different, all name it. `secret` is the service's own, for tokens only.
    pub fn token(&self, secret: &Secret32) -> String {
        let mut bytes = [0; NONCE].to_vec();
        crate::crypto::random::fill(&mut bytes);
        bytes.extend_from_slice(format!("{}/{}", self.key_id, self.id).as_bytes());
        let mac = token_mac(secret, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        BASE64URL_NOPAD.encode(&bytes)
    }
}

const NONCE: usize = 16;

fn token_mac(secret: &Secret32, bytes: &[u8]) -> Hmac<Sha256> {
    wiping_stack(|| {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.expose()).unwrap_or_else(|_| unreachable!("any length is a key"));
        mac.update(b"envelopefs kms grant token v1");
        mac.update(bytes);
        mac
    })
}
/// Key id and grant id that a token names; nothing where this service did not make it.
pub fn read_token(secret: &Secret32, token: &str) -> Option<(String, String)> {
    let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
    let (body, mac) = bytes.split_last_chunk::<32>()?;
    token_mac(secret, body).verify_slice(mac).ok()?;
    let (key_id, grant_id) = std::str::from_utf8(body.get(NONCE..)?).ok()?.split_once('/')?;
    Some((key_id.to_owned(), grant_id.to_owned()))
}
