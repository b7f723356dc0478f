//! Callers, and the principals that statements name. Knows names only, not whether they exist.

use super::json::Json;

/// Who calls. A service principal is a user that is marked as one; its name as a service is the last part of its ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal<'a> {
    /// Twelve digits.
    pub account: &'a str,
    /// `arn:aws:iam::ACCOUNT:root`, `arn:aws:iam::ACCOUNT:user/NAME`.
    pub arn: &'a str,
    pub is_root: bool,
    pub is_service: bool,
}

impl<'a> Principal<'a> {
    /// The name behind the last `/`: of a user or a service, not of the root.
    pub fn name(&self) -> Option<&'a str> {
        if self.is_root { None } else { self.arn.rsplit_once('/').map(|(_, name)| name) }
    }
    /// The name under which policies and grants know a service.
    pub fn service(&self) -> Option<&'a str> {
        self.name().filter(|_| self.is_service)
    }
}

/// How a statement's principals cover a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// By name, or as one of everybody.
    Direct,
    /// As somebody of an account that is named: the account decides by its own policies.
    Account,
    Not,
}

/// One principal of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Everybody,
    /// An account, by number or by its root.
    Account(String),
    /// The ARN of a user, role or session.
    Arn(String),
    Service(String),
    /// An identity provider: nobody here comes from one.
    Federated(String),
}

impl Named {
    fn parse(kind: &str, text: &str) -> Result<Self, String> {
        let wrong = || Err("a statement has one or more invalid principals".to_owned());
        match kind {
            "AWS" if text == "*" => Ok(Named::Everybody),
            "AWS" if is_account(text) => Ok(Named::Account(text.to_owned())),
            "AWS" => {
                let parts: Vec<&str> = text.splitn(6, ':').collect();
                let [arn, partition, service, region, account, name] = parts[..] else { return wrong() };
                let iam = arn == "arn" && partition.starts_with("aws") && ["iam", "sts"].contains(&service);
                if !iam || !region.is_empty() || !is_account(account) || text.contains(['*', '?']) {
                    return wrong();
                }
                match name.split_once('/') {
                    None if name == "root" && service == "iam" => Ok(Named::Account(account.to_owned())),
                    Some((kind, name)) if !name.is_empty() && !kind.is_empty() => Ok(Named::Arn(text.to_owned())),
                    _ => wrong(),
                }
            }
            "Service" | "Federated" if text.is_empty() || text.contains(['*', '?']) => wrong(),
            "Service" => Ok(Named::Service(text.to_owned())),
            "Federated" => Ok(Named::Federated(text.to_owned())),
            _ => Err("the kind of a principal is AWS, Service or Federated".to_owned()),
        }
    }
    /// A principal of kind AWS.
    pub(super) fn aws(text: &str) -> Option<Self> {
        Self::parse("AWS", text).ok()
    }
    fn cover(&self, caller: &Principal) -> Cover {
        match self {
            Named::Everybody => Cover::Direct,
            Named::Account(account) if account == caller.account && caller.is_root => Cover::Direct,
            Named::Account(account) if account == caller.account => Cover::Account,
            Named::Arn(arn) if !caller.is_root && arn == caller.arn => Cover::Direct,
            Named::Service(name) if caller.service() == Some(name) => Cover::Direct,
            Named::Account(_) | Named::Arn(_) | Named::Service(_) | Named::Federated(_) => Cover::Not,
        }
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// The element `Principal` or `NotPrincipal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principals {
    pub negated: bool,
    pub named: Vec<Named>,
}

impl Principals {
    pub fn parse(json: &Json, negated: bool) -> Result<Self, String> {
        let mut named = Vec::new();
        match json {
            Json::Text(text) if text == "*" => named.push(Named::Everybody),
            Json::Object(kinds) => {
                for (kind, names) in kinds {
                    for name in names.members() {
                        let Json::Text(name) = name else { return Err("a principal is no text".to_owned()) };
                        named.push(Named::parse(kind, name)?);
                    }
                }
            }
            _ => return Err("a principal is \"*\" or an object".to_owned()),
        }
        if named.is_empty() {
            return Err("a statement names no principal".to_owned());
        }
        if negated && named.contains(&Named::Everybody) {
            return Err("NotPrincipal cannot be everybody".to_owned());
        }
        Ok(Self { negated, named })
    }
    /// The strongest way in which the element covers the caller. `NotPrincipal` spares a caller only where both he and his
    /// account are named, as IAM asks for; the account's root has but one name.
    pub fn cover(&self, caller: &Principal) -> Cover {
        let covers = |cover| self.named.iter().any(|named| named.cover(caller) == cover);
        if self.negated {
            let account = self.named.iter().any(|n| matches!(n, Named::Account(account) if account == caller.account));
            let service = self.named.iter().any(|n| matches!(n, Named::Service(s) if caller.service() == Some(s)));
            return if covers(Cover::Direct) && (account || service) { Cover::Not } else { Cover::Direct };
        }
        [Cover::Direct, Cover::Account].into_iter().find(|cover| covers(*cover)).unwrap_or(Cover::Not)
    }
}
