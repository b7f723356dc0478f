//! The oracle: the documented rules read as plainly as possible, over the JSON itself. Shares no code with what it judges.
//!
//! Written from the IAM User Guide ("Policy evaluation logic", "Condition operators", "Multivalued context keys", "Variables and
//! tags") and the KMS Developer Guide ("Grants"). Slow, recursive, and without a parser: it believes that documents are right.

use serde_json::Value;

/// A request in the reference's own terms.
#[derive(Debug)]
pub struct Asked {
    pub account: String,
    pub arn: String,
    pub root: bool,
    pub service: bool,
    pub action: String,
    pub resource: String,
    /// Names of keys in lower case.
    pub keys: Vec<(String, Vec<String>)>,
    pub encryption_context: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct GrantFact {
    pub grantee: String,
    pub operations: Vec<String>,
    pub subset: Option<Vec<(String, String)>>,
    pub equals: Option<Vec<(String, String)>>,
}

fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    }
}
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `*` and `?`, by trying every way. A wildcard in the subject's place is but a character.
fn wild(pattern: &[(char, bool)], subject: &[char]) -> bool {
    match pattern {
        [] => subject.is_empty(),
        [('*', true), rest @ ..] => (0..=subject.len()).any(|skip| wild(rest, &subject[skip..])),
        [('?', true), rest @ ..] => !subject.is_empty() && wild(rest, &subject[1..]),
        [(c, _), rest @ ..] => subject.first() == Some(c) && wild(rest, &subject[1..]),
    }
}

impl Asked {
    fn values(&self, key: &str) -> Vec<String> {
        let key = key.to_lowercase();
        self.keys.iter().filter(|(name, _)| *name == key).flat_map(|(_, values)| values.clone()).collect()
    }
    /// Characters of a pattern, each with "may be a wildcard"; None where a variable has no single value.
    fn expand(&self, pattern: &str, variables: bool) -> Option<Vec<(char, bool)>> {
        let mut out = Vec::new();
        let mut rest = pattern.to_owned();
        while !rest.is_empty() {
            if variables && rest.starts_with("${") {
                let end = rest.find('}').unwrap();
                let body = rest[2..end].to_owned();
                rest = rest[end + 1..].to_owned();
                if body.len() == 1 {
                    out.push((body.chars().next().unwrap(), false));
                    continue;
                }
                let values = self.values(&body);
                if values.len() != 1 {
                    return None;
                }
                out.extend(values[0].chars().map(|c| (c, false)));
            } else {
                let c = rest.remove(0);
                out.push((c, true));
            }
        }
        Some(out)
    }
    fn like(&self, pattern: &str, subject: &str, variables: bool) -> Option<bool> {
        let subject: Vec<char> = subject.chars().collect();
        self.expand(pattern, variables).map(|pattern| wild(&pattern, &subject))
    }

    /// "If the principal is named directly" and "if the account is named".
    fn named(&self, principal: &Value) -> (bool, bool) {
        let (mut directly, mut account) = (false, false);
        if principal == "*" {
            return (true, false);
        }
        for (kind, names) in principal.as_object().unwrap() {
            for name in list(names) {
                let name = name.as_str().unwrap();
                if kind == "Service" {
                    directly |= self.service && self.arn.ends_with(&format!("user/{name}"));
                } else if name == "*" {
                    directly = true;
                } else if name == self.account || name == format!("arn:aws:iam::{}:root", self.account) {
                    account = true;
                } else if name == self.arn {
                    directly = true;
                }
            }
        }
        (directly, account)
    }

    fn condition(&self, operator: &str, key: &str, wanted: &Value, allow: bool, variables: bool) -> bool {
        let unknown = key.to_lowercase().starts_with("x:");
        if unknown && allow {
            return false;
        }
        let have = self.values(key);
        let wanted: Vec<String> = list(wanted).into_iter().map(text).collect();
        if operator == "Null" {
            return wanted.iter().any(|w| (w == "true") == have.is_empty());
        }
        let if_exists = operator.ends_with("IfExists");
        let operator = operator.trim_end_matches("IfExists");
        let (set, operator) = operator.rsplit_once(':').unwrap_or(("", operator));
        let positive = operator.replace("Not", "");
        let negative = positive != operator;
        if have.is_empty() {
            return match set {
                "ForAllValues" => true,
                "ForAnyValue" => if_exists,
                _ => negative || if_exists,
            };
        }
        let one = |value: &String| {
            let answers: Vec<Option<bool>> =
                wanted.iter().map(|w| self.compare(&positive, value, w, variables)).collect();
            if answers.contains(&Some(true)) {
                return !negative;
            }
            if allow && answers.contains(&None) {
                return false;
            }
            negative
        };
        match set {
            "ForAllValues" => have.iter().all(one),
            "ForAnyValue" => have.iter().any(one),
            _ if allow => have.iter().filter(|v| !one(v)).count() == 0,
            _ => have.iter().filter(|v| one(v)).count() > 0,
        }
    }
    /// None: the value is not of the operator's kind, or a variable has no value.
    fn compare(&self, operator: &str, have: &str, want: &str, variables: bool) -> Option<bool> {
        let plain = || {
            let expanded = self.expand(want, variables)?;
            Some(expanded.into_iter().map(|(c, _)| c).collect::<String>())
        };
        let numbers = |test: fn(i64, i64) -> bool| Some(test(have.parse().ok()?, want.parse().unwrap()));
        match operator {
            "StringEquals" => Some(plain()? == have),
            "StringEqualsIgnoreCase" => Some(plain()?.to_lowercase() == have.to_lowercase()),
            "StringLike" => self.like(want, have, variables),
            "NumericEquals" => numbers(|a, b| a == b),
            "NumericLessThan" => numbers(|a, b| a < b),
            "NumericLessThanEquals" => numbers(|a, b| a <= b),
            "NumericGreaterThan" => numbers(|a, b| a > b),
            "NumericGreaterThanEquals" => numbers(|a, b| a >= b),
            "Bool" => match have {
                "true" | "false" => Some(have == want),
                _ => None,
            },
            "ArnEquals" | "ArnLike" => {
                let have: Vec<&str> = have.splitn(6, ':').collect();
                let want: Vec<&str> = want.splitn(6, ':').collect();
                if have.len() < 6 || have[0] != "arn" {
                    return None;
                }
                let mut all = true;
                for (pattern, part) in want.iter().zip(have) {
                    all &= self.like(pattern, part, variables)?;
                }
                Some(all)
            }
            other => panic!("the reference does not know {other}"),
        }
    }

    fn statement(&self, statement: &Value, variables: bool) -> bool {
        let allow = statement["Effect"] == "Allow";
        let action = self.action.to_lowercase();
        let act = |names: &Value| {
            list(names).iter().any(|n| self.like(&text(n).to_lowercase(), &action, false) == Some(true))
        };
        let right_action = match (&statement["Action"], &statement["NotAction"]) {
            (Value::Null, Value::Null) => return false,
            (Value::Null, not) => !act(not),
            (names, _) => act(names),
        };
        let resources = |names: &Value| -> Vec<Option<bool>> {
            list(names).iter().map(|n| self.like(&text(n), &self.resource, variables)).collect()
        };
        let right_resource = match (&statement["Resource"], &statement["NotResource"]) {
            (Value::Null, Value::Null) => return false,
            (Value::Null, not) => {
                let answers = resources(not);
                !(answers.contains(&Some(true)) || allow && answers.contains(&None))
            }
            (names, _) => resources(names).contains(&Some(true)),
        };
        let mut conditions = true;
        if let Some(operators) = statement["Condition"].as_object() {
            for (operator, keys) in operators {
                for (key, wanted) in keys.as_object().unwrap() {
                    conditions &= self.condition(operator, key, wanted, allow, variables);
                }
            }
        }
        right_action && right_resource && conditions
    }

    fn grant(&self, grant: &GrantFact) -> bool {
        let fold = |pairs: &[(String, String)]| {
            let mut pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.to_lowercase(), v.clone())).collect();
            pairs.sort();
            pairs
        };
        let have = fold(&self.encryption_context);
        let subset = grant.subset.as_ref().is_none_or(|s| fold(s).iter().all(|p| have.contains(p)));
        let equals = grant.equals.as_ref().is_none_or(|e| fold(e) == have);
        let operation = grant.operations.iter().any(|o| format!("kms:{o}") == self.action);
        let free = self.action == "kms:DescribeKey";
        grant.grantee == self.arn && operation && (free || subset && equals)
    }

    /// Deny overrides; then the key policy; then what the account may pass on; then grants.
    pub fn allowed(&self, key_policy: Option<&Value>, user_policies: &[Value], grants: &[GrantFact]) -> bool {
        let variables = |document: &Value| document["Version"] == "2012-10-17";
        let mut key_allows_him = false;
        let mut key_allows_account = false;
        if let Some(document) = key_policy {
            for statement in list(&document["Statement"]) {
                let applies = self.statement(statement, variables(document));
                if statement["Effect"] == "Deny" {
                    let (directly, account) = if statement["NotPrincipal"].is_null() {
                        self.named(&statement["Principal"])
                    } else {
                        let (directly, account) = self.named(&statement["NotPrincipal"]);
                        let as_service = self.service
                            && list(&statement["NotPrincipal"]["Service"])
                                .iter()
                                .any(|n| n.as_str().is_some_and(|n| self.arn.ends_with(&format!("user/{n}"))));
                        let spared = account && (directly || self.root) || as_service;
                        (!spared, false)
                    };
                    if applies && (directly || account) {
                        return false;
                    }
                } else if applies {
                    let (directly, account) = self.named(&statement["Principal"]);
                    key_allows_him |= directly || account && self.root;
                    key_allows_account |= account;
                }
            }
        }
        let mut user_allows = false;
        for document in user_policies {
            for statement in list(&document["Statement"]) {
                if self.statement(statement, variables(document)) {
                    if statement["Effect"] == "Deny" {
                        return false;
                    }
                    user_allows = true;
                }
            }
        }
        let owner = self.resource.split(':').nth(4).unwrap_or(&self.account);
        let at_home = owner == self.account;
        if key_policy.is_none() {
            return at_home && (self.root || user_allows);
        }
        let by_grant = grants.iter().any(|grant| self.grant(grant));
        let account_grant = grants.iter().any(|g| {
            g.grantee == format!("arn:aws:iam::{}:root", self.account)
                && !self.root
                && self.grant(&GrantFact {
                    grantee: self.arn.clone(),
                    operations: g.operations.clone(),
                    subset: g.subset.clone(),
                    equals: g.equals.clone(),
                })
        });
        let from_here = key_allows_him || by_grant;
        if at_home || self.root {
            return from_here || (key_allows_account || account_grant) && user_allows;
        }
        user_allows && (from_here || key_allows_account || account_grant)
    }
}
