//! Policy documents: what may stand in them, and how a statement applies to a request. Must not know what follows from it.

use std::collections::HashSet;

use super::condition::Condition;
use super::context::Context;
use super::json::Json;
use super::pattern::{Match, Pattern, Syntax};
use super::principal::{Cover, Named, Principal, Principals};

/// Why a document was refused: MalformedPolicyDocumentException. The text names elements, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub(super) String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
}

/// A list of patterns, one of which must match, or none where it is negated.
#[derive(Debug, Clone, PartialEq)]
struct Choice {
    negated: bool,
    patterns: Vec<Pattern>,
}

impl Choice {
    /// A variable without a value matches nothing; in an Allow its opposite does not hold either.
    fn holds(&self, effect: Effect, compare: impl Fn(&Pattern) -> Match) -> bool {
        let mut doubt = false;
        for pattern in &self.patterns {
            match compare(pattern) {
                Match::Yes => return !self.negated,
                Match::No => {}
                Match::Doubt => doubt = true,
            }
        }
        self.negated && !(doubt && effect == Effect::Allow)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    pub sid: Option<String>,
    pub effect: Effect,
    principals: Option<Principals>,
    /// None only where the statement has no effect: see [`Document::parse_key_policy`].
    actions: Option<Choice>,
    resources: Option<Choice>,
    conditions: Vec<Condition>,
}

impl Statement {
    /// How the statement's principals cover the caller; a statement without them is for a user's policy.
    pub fn cover(&self, caller: &Principal) -> Cover {
        self.principals.as_ref().map_or(Cover::Not, |principals| principals.cover(caller))
    }
    pub fn names_principals(&self) -> bool {
        self.principals.is_some()
    }
    /// Whether action, resource and conditions are the request's.
    pub fn applies(&self, action: &str, resource: &str, context: &Context) -> bool {
        let (Some(actions), Some(resources)) = (&self.actions, &self.resources) else { return false };
        let action = action.to_lowercase();
        actions.holds(self.effect, |pattern| pattern.matches_lower(&action).into())
            && resources.holds(self.effect, |pattern| pattern.matches_resource(resource, context))
            && self.conditions.iter().all(|condition| condition.holds(context, self.effect))
    }
}

/// A policy document, of a key or of a user.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    statements: Vec<Statement>,
}

impl Document {
    /// What both kinds of policy must hold. Use the parser of the kind where a document comes in.
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        Self::read(json).map_err(PolicyError)
    }
    /// A key policy: each statement has principals. A statement that allows and lacks its actions or resources is accepted and
    /// has no effect, as in AWS KMS; one that denies is refused, since its author would believe in it.
    pub fn parse_key_policy(json: &str) -> Result<Self, PolicyError> {
        // CreateKey, PutKeyPolicy: printable characters up to U+00FF, tab, line feed, carriage return.
        let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{a0}'..='\u{ff}');
        if !json.chars().all(allowed) {
            return Err(PolicyError("the document has characters that no key policy may have".to_owned()));
        }
        let document = Self::parse(json)?;
        if document.statements.iter().any(|statement| statement.principals.is_none()) {
            return Err(PolicyError("a statement of a key policy has no principal".to_owned()));
        }
        Ok(document)
    }
    /// A user's policy: no statement has principals, each has actions and resources.
    pub fn parse_user_policy(json: &str) -> Result<Self, PolicyError> {
        let document = Self::parse(json)?;
        for statement in &document.statements {
            if statement.principals.is_some() {
                return Err(PolicyError("a user's policy names no principals".to_owned()));
            }
            if statement.actions.is_none() || statement.resources.is_none() {
                return Err(PolicyError("a statement has no Action or no Resource".to_owned()));
            }
            if statement.sid.as_ref().is_some_and(|sid| !sid.bytes().all(|b| b.is_ascii_alphanumeric())) {
                return Err(PolicyError("a Sid of a user's policy has letters and digits only".to_owned()));
            }
        }
        Ok(document)
    }
    /// The policy of a key that was made without one: the account decides by its users' policies.
    pub fn default_for(account: &str) -> String {
        format!(
            r#"{{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {{
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "arn:aws:iam::{account}:root"
    }},
    "Action" : "kms:*",
    "Resource" : "*"
  }} ]
}}"#
        )
    }
    pub(super) fn statements(&self) -> &[Statement] {
        &self.statements
    }
    /// ARNs of users and roles, and names of services, that statements name: they must exist when a key policy is put.
    pub fn principals(&self) -> Vec<&str> {
        let named = self.statements.iter().filter_map(|s| s.principals.as_ref()).flat_map(|p| &p.named);
        named
            .filter_map(|named| match named {
                Named::Arn(name) | Named::Service(name) => Some(name.as_str()),
                Named::Everybody | Named::Account(_) | Named::Federated(_) => None,
            })
            .collect()
    }

    fn read(json: &str) -> Result<Self, String> {
        let tree = Json::parse(json).map_err(|error| format!("the document is no JSON: {error}"))?;
        let Json::Object(elements) = tree else { return Err("the document is no object".to_owned()) };
        let mut variables = false;
        let mut statements = None;
        for (name, value) in &elements {
            match (name.as_str(), value) {
                ("Version", Json::Text(version)) if version == "2012-10-17" => variables = true,
                ("Version", Json::Text(version)) if version == "2008-10-17" => {}
                ("Version", _) => return Err("Version is 2012-10-17 or 2008-10-17".to_owned()),
                ("Id", Json::Text(_)) => {}
                ("Statement", value @ (Json::List(_) | Json::Object(_))) => statements = Some(value),
                ("Id" | "Statement", _) => return Err(format!("{name} is of the wrong kind")),
                _ => return Err("the document has an element that is unknown".to_owned()),
            }
        }
        let statements = statements.ok_or("the document has no Statement")?;
        let statements: Vec<Statement> =
            statements.members().iter().map(|json| statement(json, variables)).collect::<Result<_, _>>()?;
        let mut sids = HashSet::new();
        if !statements.iter().filter_map(|s| s.sid.as_deref()).filter(|sid| !sid.is_empty()).all(|sid| sids.insert(sid))
        {
            return Err("a Sid stands twice".to_owned());
        }
        if statements.is_empty() {
            return Err("the document has no Statement".to_owned());
        }
        Ok(Self { statements })
    }
}

fn statement(json: &Json, variables: bool) -> Result<Statement, String> {
    let Json::Object(elements) = json else { return Err("a statement is no object".to_owned()) };
    let (mut sid, mut effect, mut conditions) = (None, None, Vec::new());
    let (mut principals, mut actions, mut resources) = (None, None, None);
    for (name, value) in elements {
        let negated = name.starts_with("Not");
        let twice = match name.as_str() {
            "Sid" => {
                let Json::Text(text) = value else { return Err("a Sid is no text".to_owned()) };
                sid.replace(text.clone()).is_some()
            }
            "Effect" => {
                let value = match value {
                    Json::Text(text) if text == "Allow" => Effect::Allow,
                    Json::Text(text) if text == "Deny" => Effect::Deny,
                    _ => return Err("an Effect is Allow or Deny".to_owned()),
                };
                effect.replace(value).is_some()
            }
            "Principal" | "NotPrincipal" => principals.replace(Principals::parse(value, negated)?).is_some(),
            "Action" | "NotAction" => actions.replace(choice(value, negated, action)?).is_some(),
            "Resource" | "NotResource" => {
                resources.replace(choice(value, negated, |text| resource(text, variables))?).is_some()
            }
            "Condition" => {
                conditions = Condition::parse_all(value, variables)?;
                false
            }
            _ => return Err("a statement has an element that is unknown".to_owned()),
        };
        if twice {
            return Err("a statement has an element and its opposite".to_owned());
        }
    }
    let effect = effect.ok_or("a statement has no Effect")?;
    if effect == Effect::Allow && principals.as_ref().is_some_and(|p| p.negated) {
        return Err("NotPrincipal stands with Deny only".to_owned());
    }
    if effect == Effect::Deny && (actions.is_none() || resources.is_none()) {
        return Err("a statement that denies has no Action or no Resource".to_owned());
    }
    Ok(Statement { sid, effect, principals, actions, resources, conditions })
}

fn choice(json: &Json, negated: bool, read: impl Fn(&str) -> Result<Pattern, String>) -> Result<Choice, String> {
    let pattern = |json: &Json| match json {
        Json::Text(text) => read(text),
        _ => Err("an action or a resource is no text".to_owned()),
    };
    let patterns: Vec<Pattern> = json.members().iter().map(pattern).collect::<Result<_, _>>()?;
    if patterns.is_empty() {
        return Err("a statement has an empty list".to_owned());
    }
    Ok(Choice { negated, patterns })
}
fn action(text: &str) -> Result<Pattern, String> {
    let named = |name: &str, extra: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let fits =
        text.split_once(':').is_some_and(|(vendor, name)| (vendor == "*" || named(vendor, "-")) && named(name, "*?"));
    if text == "*" || fits {
        Ok(Pattern::ignoring_case(text))
    } else {
        Err("an action is no service:operation".to_owned())
    }
}
fn resource(text: &str, variables: bool) -> Result<Pattern, String> {
    if text != "*" && !text.starts_with("arn:") {
        return Err("a resource is an ARN or \"*\"".to_owned());
    }
    Pattern::parse(text, Syntax { wildcards: true, variables })
}
