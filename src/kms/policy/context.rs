//! The condition keys of a request and their values. Owns the list of keys that exist; must not know what policies say of them.

use std::collections::BTreeMap;

use super::grant::GrantTerms;
use super::principal::Principal;
use super::values::iso;

// Names of keys that operations set themselves, with `Context::set`: the parameter's value, or its default where it is absent.
pub const BYPASS_LOCKOUT_CHECK: &str = "kms:BypassPolicyLockoutSafetyCheck";
pub const DATA_KEY_PAIR_SPEC: &str = "kms:DataKeyPairSpec";
pub const ENCRYPTION_ALGORITHM: &str = "kms:EncryptionAlgorithm";
pub const EXPIRATION_MODEL: &str = "kms:ExpirationModel";
pub const KEY_AGREEMENT_ALGORITHM: &str = "kms:KeyAgreementAlgorithm";
pub const MAC_ALGORITHM: &str = "kms:MacAlgorithm";
pub const MESSAGE_TYPE: &str = "kms:MessageType";
pub const RE_ENCRYPT_ON_SAME_KEY: &str = "kms:ReEncryptOnSameKey";
pub const ROTATION_PERIOD_IN_DAYS: &str = "kms:RotationPeriodInDays";
pub const DELETION_WINDOW_IN_DAYS: &str = "kms:ScheduleKeyDeletionPendingWindowInDays";
pub const SIGNING_ALGORITHM: &str = "kms:SigningAlgorithm";
/// A date: ISO 8601, or seconds since 1970.
pub const VALID_TO: &str = "kms:ValidTo";
pub const WRAPPING_ALGORITHM: &str = "kms:WrappingAlgorithm";
pub const WRAPPING_KEY_SPEC: &str = "kms:WrappingKeySpec";
pub const GRANT_IS_FOR_AWS_RESOURCE: &str = "kms:GrantIsForAWSResource";
pub const SOURCE_ARN: &str = "aws:SourceArn";
pub const SOURCE_ACCOUNT: &str = "aws:SourceAccount";
pub const VIA_SERVICE: &str = "kms:ViaService";
const ENCRYPTION_CONTEXT: &str = "kms:EncryptionContext:";

/// Keys that exist, in lower case: those that this service sets, and those of AWS that a request here never has (there are no
/// roles, sessions, organisations and VPCs). Any other is a slip of whoever wrote the document.
const KNOWN: [&str; 93] = [
    "aws:assumedroot",
    "aws:calledvia",
    "aws:calledviafirst",
    "aws:calledvialast",
    "aws:chatbotsourcearn",
    "aws:currenttime",
    "aws:ec2instancesourceprivateipv4",
    "aws:ec2instancesourcevpc",
    "aws:epochtime",
    "aws:federatedprovider",
    "aws:ismcpserviceaction",
    "aws:multifactorauthage",
    "aws:multifactorauthpresent",
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principalisawsservice",
    "aws:principalorgid",
    "aws:principalorgpaths",
    "aws:principalservicename",
    "aws:principalservicenameslist",
    "aws:principaltype",
    "aws:referer",
    "aws:requestedregion",
    "aws:resourceaccount",
    "aws:resourceorgid",
    "aws:resourceorgpaths",
    "aws:rolename",
    "aws:securetransport",
    "aws:signinsessionarn",
    "aws:sourceaccount",
    "aws:sourcearn",
    "aws:sourceidentity",
    "aws:sourceip",
    "aws:sourceorgid",
    "aws:sourceorgpaths",
    "aws:sourceowner",
    "aws:sourcevpc",
    "aws:sourcevpcarn",
    "aws:sourcevpce",
    "aws:tagkeys",
    "aws:tokenissuetime",
    "aws:useragent",
    "aws:userid",
    "aws:username",
    "aws:viaawsmcpservice",
    "aws:viaawsservice",
    "aws:vpceaccount",
    "aws:vpceorgid",
    "aws:vpceorgpaths",
    "aws:vpcsourceip",
    "ec2:rolesdelivery",
    "ec2:sourceinstancearn",
    "kms:bypasspolicylockoutsafetycheck",
    "kms:calleraccount",
    "kms:customermasterkeyspec",
    "kms:customermasterkeyusage",
    "kms:datakeypairspec",
    "kms:encryptionalgorithm",
    "kms:encryptioncontextkeys",
    "kms:expirationmodel",
    "kms:grantconstrainttype",
    "kms:granteeprincipal",
    "kms:granteeserviceprincipal",
    "kms:grantisforawsresource",
    "kms:grantoperations",
    "kms:keyagreementalgorithm",
    "kms:keyorigin",
    "kms:keyspec",
    "kms:keyusage",
    "kms:macalgorithm",
    "kms:messagetype",
    "kms:multiregion",
    "kms:multiregionkeytype",
    "kms:primaryregion",
    "kms:reencryptonsamekey",
    "kms:replicaregion",
    "kms:requestalias",
    "kms:resourcealiases",
    "kms:retiringprincipal",
    "kms:retiringserviceprincipal",
    "kms:rotationperiodindays",
    "kms:schedulekeydeletionpendingwindowindays",
    "kms:signingalgorithm",
    "kms:validto",
    "kms:viaservice",
    "kms:wrappingalgorithm",
    "kms:wrappingkeyspec",
    "lambda:sourcefunctionarn",
    "s3:resourceaccount",
    "sts:externalid",
    "sts:rolesessionname",
    "sts:sourceidentity",
    "sts:transitivetagkeys",
];
/// Beginnings of keys whose rest is the name of a pair or a tag.
const KNOWN_PREFIXES: [&str; 6] = [
    "aws:principaltag/",
    "aws:requesttag/",
    "aws:resourcetag/",
    "aws:userclaim/",
    "kms:encryptioncontext:",
    "kms:recipientattestation:",
];

/// Whether a request could have the key, in this service or in AWS; `key` in lower case.
pub(super) fn is_known(key: &str) -> bool {
    KNOWN.contains(&key) || KNOWN_PREFIXES.iter().any(|prefix| key.strip_prefix(prefix).is_some_and(|r| !r.is_empty()))
}

/// What a policy may ask about the key that a request is for.
#[derive(Debug, Clone, Default)]
pub struct KeyFacts<'a> {
    /// The account that owns the key.
    pub account: &'a str,
    pub spec: &'a str,
    pub usage: &'a str,
    pub origin: &'a str,
    pub multi_region: bool,
    /// `alias/NAME`, all that point to the key.
    pub aliases: Vec<&'a str>,
    pub tags: Vec<(&'a str, &'a str)>,
}

/// The keys of one request. Names of keys have no case; a key that was set to no value at all is there and empty.
#[derive(Debug, Clone, Default)]
pub struct Context {
    keys: BTreeMap<String, Vec<String>>,
    encryption_context: Vec<(String, String)>,
    new_grant: Option<GrantTerms>,
}

impl Context {
    /// With what follows from the caller.
    pub fn of(caller: &Principal) -> Self {
        let mut context = Self::default();
        context.set("kms:CallerAccount", [caller.account]);
        context.set("aws:PrincipalAccount", [caller.account]);
        context.set("aws:PrincipalArn", [caller.arn]);
        context.set("aws:PrincipalType", [if caller.is_root { "Account" } else { "User" }]);
        context.set("aws:PrincipalIsAWSService", [caller.is_service.to_string()]);
        context.set("aws:ViaAWSService", ["false"]);
        if let Some(name) = caller.name() {
            context.set("aws:username", [name]);
        }
        if let Some(service) = caller.service() {
            context.set("aws:PrincipalServiceName", [service]);
            context.set("aws:PrincipalServiceNamesList", [service]);
        }
        context
    }
    /// Replaces the values of a key.
    pub fn set<V: Into<String>>(&mut self, key: &str, values: impl IntoIterator<Item = V>) {
        self.keys.insert(key.to_lowercase(), values.into_iter().map(Into::into).collect());
    }
    fn add(&mut self, key: &str, value: &str) {
        self.keys.entry(key.to_lowercase()).or_default().push(value.to_owned());
    }
    /// The values of a key, by its name in lower case; none where it is absent.
    pub fn values(&self, key: &str) -> &[String] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }
    pub(super) fn encryption_context_pairs(&self) -> &[(String, String)] {
        &self.encryption_context
    }
    pub(super) fn terms_of_new_grant(&self) -> Option<&GrantTerms> {
        self.new_grant.as_ref()
    }

    /// The time of the request, in seconds since 1970.
    #[must_use]
    pub fn at(mut self, seconds: u64) -> Self {
        self.set("aws:CurrentTime", [iso(seconds)]);
        self.set("aws:EpochTime", [seconds.to_string()]);
        self
    }
    /// How the request came; a request over the service's own socket has no address.
    #[must_use]
    pub fn via(mut self, address: Option<std::net::IpAddr>, tls: bool, user_agent: Option<&str>) -> Self {
        if let Some(address) = address {
            self.set("aws:SourceIp", [address.to_canonical().to_string()]);
        }
        self.set("aws:SecureTransport", [tls.to_string()]);
        if let Some(agent) = user_agent {
            self.set("aws:UserAgent", [agent]);
        }
        self
    }
    #[must_use]
    pub fn in_region(mut self, region: &str) -> Self {
        self.set("aws:RequestedRegion", [region]);
        self
    }
    /// The key that the request is for, or that CreateKey would make.
    #[must_use]
    pub fn on_key(mut self, key: &KeyFacts) -> Self {
        for name in ["kms:KeySpec", "kms:CustomerMasterKeySpec"] {
            self.set(name, [key.spec]);
        }
        for name in ["kms:KeyUsage", "kms:CustomerMasterKeyUsage"] {
            self.set(name, [key.usage]);
        }
        self.set("kms:KeyOrigin", [key.origin]);
        self.set("kms:MultiRegion", [key.multi_region.to_string()]);
        self.set("kms:ResourceAliases", key.aliases.iter().copied());
        self.set("aws:ResourceAccount", [key.account]);
        for (name, value) in &key.tags {
            self.add(&format!("aws:ResourceTag/{name}"), value);
        }
        self
    }
    /// The alias (`alias/NAME`) by which the request names its key.
    #[must_use]
    pub fn by_alias(mut self, alias: &str) -> Self {
        self.set("kms:RequestAlias", [alias]);
        self
    }
    /// The encryption context of a cryptographic operation; call it with no pairs where the request has none.
    #[must_use]
    pub fn with_encryption_context<'a>(mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.encryption_context = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for (name, value) in self.encryption_context.clone() {
            self.add(&format!("{ENCRYPTION_CONTEXT}{name}"), &value);
            self.add("kms:EncryptionContextKeys", &name);
        }
        self
    }
    /// Tags that the request sets.
    #[must_use]
    pub fn with_tags<'a>(mut self, tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (name, value) in tags {
            self.add(&format!("aws:RequestTag/{name}"), value);
            self.add("aws:TagKeys", name);
        }
        self
    }
    /// Names of tags that the request removes.
    #[must_use]
    pub fn with_tag_keys<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.set("aws:TagKeys", names);
        self
    }
    /// The grant that CreateGrant would make. For ListGrants and RevokeGrant see [`Context::for_grants`].
    #[must_use]
    pub fn for_new_grant(mut self, terms: &GrantTerms, caller: &Principal) -> Self {
        self = self.for_grants(caller);
        self.set("kms:GrantOperations", terms.operations.iter().map(String::as_str));
        let (key, grantee) = terms.grantee.condition_key("kms:GranteePrincipal", "kms:GranteeServicePrincipal");
        self.set(key, [grantee]);
        if let Some(retiring) = &terms.retiring {
            let (key, retiring) = retiring.condition_key("kms:RetiringPrincipal", "kms:RetiringServicePrincipal");
            self.set(key, [retiring]);
        }
        if let Some(kind) = terms.constraints.kind() {
            self.set("kms:GrantConstraintType", [kind]);
        }
        self.new_grant = Some(terms.clone());
        self
    }
    /// For CreateGrant, ListGrants and RevokeGrant: a grant is a service's own where a service calls.
    #[must_use]
    pub fn for_grants(mut self, caller: &Principal) -> Self {
        self.set(GRANT_IS_FOR_AWS_RESOURCE, [caller.is_service.to_string()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_lower_case_and_sorted() {
        assert!(KNOWN.is_sorted());
        assert!(KNOWN.iter().chain(&KNOWN_PREFIXES).all(|key| key.to_lowercase() == **key));
        assert!(is_known("kms:encryptioncontext:app") && !is_known("kms:encryptioncontext:") && !is_known("kms:typo"));
    }

    #[test]
    fn pairs_that_differ_in_case_are_values_of_one_key() {
        let context = Context::default().with_encryption_context([("App", "x"), ("app", "y")]);
        assert_eq!(context.values("kms:encryptioncontext:app"), ["x", "y"]);
        assert_eq!(context.values("kms:encryptioncontextkeys"), ["App", "app"]);
        assert!(context.values("kms:encryptioncontext:other").is_empty());
    }
}
