//! What grants permit, to whom, under which constraints; children, retiring, names, tokens.

use super::grant::{OPERATIONS, operations_for, read_token};
use super::*;
use crate::crypto::secret::Secret32;

const SYMMETRIC: (&str, &str) = ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT");

fn terms(grantee: &Principal, operations: &[&str]) -> GrantTerms {
    GrantTerms {
        name: None,
        grantee: Party::Principal(grantee.arn.to_owned()),
        retiring: None,
        operations: operations.iter().map(|o| (*o).to_owned()).collect(),
        constraints: Constraints::default(),
    }
}
fn grant(terms: GrantTerms) -> Grant {
    Grant { id: "g1".to_owned(), key_id: "k".to_owned(), issuing_account: ACCOUNT.to_owned(), created: 0, terms }
}
fn pairs(pairs: &[(&str, &str)]) -> Option<std::collections::BTreeMap<String, String>> {
    Some(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
}
fn account_policy() -> Document {
    Document::parse_key_policy(&Document::default_for(ACCOUNT)).unwrap()
}
fn permits(grant: &Grant, caller: Principal, action: &str, context: Context) -> bool {
    decide(&request(caller, action, context), Some(&account_policy()), &[], &[grant]).is_allowed()
}

#[test]
fn to_the_grantee_and_for_its_operations_only() {
    let grant = grant(terms(&ABC, &["Decrypt", "ReEncryptFrom"]));
    for operation in OPERATIONS {
        let action = format!("kms:{operation}");
        let expected = ["Decrypt", "ReEncryptFrom"].contains(&operation);
        assert_eq!(permits(&grant, ABC, &action, Context::of(&ABC)), expected, "{action}");
        assert!(!permits(&grant, XYZ, &action, Context::of(&XYZ)), "{action}");
    }
    assert!(!permits(&grant, ABC, "Decrypt", Context::of(&ABC)));
    assert!(!permits(&grant, ABC, "kms:decrypt", Context::of(&ABC)));
    let decision = decide(&request(ABC, "kms:Decrypt", Context::of(&ABC)), Some(&account_policy()), &[], &[&grant]);
    assert_eq!(decision, Decision::Allow(Why::Grant { id: "g1".to_owned() }));
}

#[test]
fn an_explicit_deny_wins_over_a_grant() {
    let grant = grant(terms(&ABC, &["Decrypt"]));
    let deny = key_policy(&[r#""Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*""#]);
    let asked = request(ABC, "kms:Decrypt", Context::of(&ABC));
    assert!(!decide(&asked, Some(&deny), &[], &[&grant]).is_allowed());
    let user = user_policy(&[r#""Effect":"Deny","Action":"kms:*","Resource":"*""#]);
    assert!(!decide(&asked, Some(&account_policy()), &[&user], &[&grant]).is_allowed());
    assert!(!decide(&asked, None, &[], &[&grant]).is_allowed(), "no key, no grants");
}

#[test]
fn to_services_and_accounts() {
    let mut service = terms(&ABC, &["Decrypt"]);
    service.grantee = Party::Service("mount".to_owned());
    let service = grant(service);
    assert!(permits(&service, MOUNT, "kms:Decrypt", Context::of(&MOUNT)));
    let user = Principal { is_service: false, ..MOUNT };
    assert!(!permits(&service, user, "kms:Decrypt", Context::of(&user)));
    // The account passes on by its users' policies what it has.
    let account = grant(terms(&ROOT, &["Decrypt"]));
    let asked = request(ABC, "kms:Decrypt", Context::of(&ABC));
    let nobody = key_policy(&[r#""Effect":"Allow","Principal":{"Service":"x"},"Action":"kms:*","Resource":"*""#]);
    let user = user_policy(&[r#""Effect":"Allow","Action":"kms:Decrypt","Resource":"*""#]);
    assert!(!decide(&asked, Some(&nobody), &[], &[&account]).is_allowed());
    assert!(decide(&asked, Some(&nobody), &[&user], &[&account]).is_allowed());
    let root = request(ROOT, "kms:Decrypt", Context::of(&ROOT));
    assert!(decide(&root, Some(&nobody), &[], &[&account]).is_allowed());
    // A foreign user needs his own account's leave as well.
    let foreign = grant(terms(&FOREIGN, &["Decrypt"]));
    let asked = request(FOREIGN, "kms:Decrypt", Context::of(&FOREIGN));
    assert!(!decide(&asked, Some(&nobody), &[], &[&foreign]).is_allowed());
    assert!(decide(&asked, Some(&nobody), &[&user], &[&foreign]).is_allowed());
}

#[test]
fn constraints_on_the_encryption_context() {
    let with = |subset: Option<_>, equals: Option<_>| {
        let mut terms = terms(&ABC, &["Decrypt", "DescribeKey", "GetPublicKey", "RetireGrant"]);
        terms.constraints = Constraints { subset, equals, source_arn: None };
        grant(terms)
    };
    let ask = |grant: &Grant, context: &[(&str, &str)]| {
        permits(grant, ABC, "kms:Decrypt", Context::of(&ABC).with_encryption_context(context.iter().copied()))
    };
    let subset = with(pairs(&[("App", "x")]), None);
    assert!(ask(&subset, &[("App", "x")]) && ask(&subset, &[("app", "x"), ("more", "y")]));
    for context in [&[][..], &[("App", "X")], &[("Other", "x")], &[("App", "y"), ("b", "x")]] {
        assert!(!ask(&subset, context), "{context:?}");
    }
    let equals = with(None, pairs(&[("App", "x"), ("Team", "t")]));
    assert!(ask(&equals, &[("TEAM", "t"), ("app", "x")]));
    for context in [
        &[][..],
        &[("App", "x")],
        &[("App", "x"), ("Team", "T")],
        &[("App", "x"), ("Team", "t"), ("c", "d")],
        &[("App", "x"), ("Team", "t"), ("team", "t")],
    ] {
        assert!(!ask(&equals, context), "{context:?}");
    }
    let none = with(None, pairs(&[]));
    assert!(ask(&none, &[]) && !ask(&none, &[("a", "b")]));
    let both = with(pairs(&[("a", "b")]), pairs(&[("a", "b"), ("c", "d")]));
    assert!(ask(&both, &[("a", "b"), ("c", "d")]) && !ask(&both, &[("a", "b")]));
    // What has no encryption context is not constrained by it.
    for action in ["kms:DescribeKey", "kms:GetPublicKey"] {
        assert!(permits(&equals, ABC, action, Context::of(&ABC)), "{action}");
    }
    // An operation without one that got there anyway is.
    let mut odd = equals.clone();
    odd.terms.operations.push("Sign".to_owned());
    assert!(!permits(&odd, ABC, "kms:Sign", Context::of(&ABC)));
}

#[test]
fn constraint_on_the_source() {
    let mut constrained = terms(&MOUNT, &["Decrypt", "DescribeKey", "RetireGrant"]);
    constrained.constraints.source_arn = Some("arn:aws:s3:::bucket".to_owned());
    let grant = grant(constrained);
    let from = |arn: &[&str]| {
        let mut context = Context::of(&MOUNT);
        context.set(context::SOURCE_ARN, arn.iter().copied());
        context
    };
    for action in ["kms:Decrypt", "kms:DescribeKey"] {
        assert!(permits(&grant, MOUNT, action, from(&["arn:aws:s3:::bucket"])));
        for arns in [&[][..], &["arn:aws:s3:::other"], &["arn:aws:s3:::bucket", "arn:aws:s3:::other"]] {
            assert!(!permits(&grant, MOUNT, action, from(arns)), "{action} {arns:?}");
        }
    }
    assert!(retires(&grant, MOUNT, &[]));
}

#[test]
fn children_are_equal_or_stricter() {
    let constraints =
        |subset, equals, source: Option<&str>| Constraints { subset, equals, source_arn: source.map(str::to_owned) };
    let ask = |parent: Constraints, operations: &[&str], child: Constraints, source: Option<&str>| {
        let mut own = terms(&ABC, &["CreateGrant", "Decrypt", "Encrypt"]);
        own.constraints = parent;
        let mut new = terms(&XYZ, operations);
        new.constraints = child;
        let mut context = Context::of(&ABC).for_new_grant(&new, &ABC);
        if let Some(source) = source {
            context.set(context::SOURCE_ARN, [source]);
        }
        permits(&grant(own), ABC, "kms:CreateGrant", context)
    };
    let free = || constraints(None, None, None);
    assert!(ask(free(), &["Decrypt"], free(), None) && ask(free(), &["Decrypt", "CreateGrant"], free(), None));
    assert!(!ask(free(), &["Decrypt", "DescribeKey"], free(), None), "an operation more than the parent");
    let a = || pairs(&[("a", "1")]);
    let ab = || pairs(&[("A", "1"), ("b", "2")]);
    let cases = [
        (constraints(a(), None, None), free(), false),
        (constraints(a(), None, None), constraints(a(), None, None), true),
        (constraints(a(), None, None), constraints(ab(), None, None), true),
        (constraints(a(), None, None), constraints(None, ab(), None), true),
        (constraints(ab(), None, None), constraints(a(), None, None), false),
        (constraints(a(), None, None), constraints(pairs(&[("a", "2")]), None, None), false),
        (constraints(None, a(), None), constraints(None, a(), None), true),
        (constraints(None, a(), None), constraints(None, ab(), None), false),
        (constraints(None, a(), None), constraints(a(), None, None), false),
        (constraints(None, a(), None), free(), false),
    ];
    for (parent, child, expected) in cases {
        assert_eq!(ask(parent.clone(), &["Decrypt"], child.clone(), None), expected, "{parent:?} {child:?}");
    }
    let source = || constraints(None, None, Some("arn:aws:s3:::b"));
    assert!(ask(source(), &["Decrypt"], source(), Some("arn:aws:s3:::b")));
    assert!(!ask(source(), &["Decrypt"], source(), None), "the parent itself is constrained");
    assert!(!ask(source(), &["Decrypt"], free(), Some("arn:aws:s3:::b")));
    // Without knowing the child nothing is granted.
    let parent = grant(terms(&ABC, &["CreateGrant"]));
    assert!(!permits(&parent, ABC, "kms:CreateGrant", Context::of(&ABC)));
}

fn retires(grant: &Grant, caller: Principal, user: &[&Document]) -> bool {
    let asked = request(caller, "kms:RetireGrant", Context::of(&caller));
    decide_retire(&asked, Some(&account_policy()), user, grant).is_allowed()
}

#[test]
fn retiring() {
    let mut with = terms(&ABC, &["Decrypt"]);
    with.retiring = Some(Party::Principal(XYZ.arn.to_owned()));
    let own = grant(with.clone());
    assert!(retires(&own, XYZ, &[]) && retires(&own, ROOT, &[]));
    assert!(!retires(&own, ABC, &[]) && !retires(&own, OTHER, &[]));
    assert!(retires(&grant(terms(&ABC, &["RetireGrant"])), ABC, &[]));
    let user = user_policy(&[r#""Effect":"Allow","Action":"kms:RetireGrant","Resource":"*""#]);
    assert!(retires(&own, OTHER, &[&user]), "passed on by the account");
    let mut foreign = own.clone();
    foreign.issuing_account = FOREIGN.account.to_owned();
    assert!(!retires(&foreign, ROOT, &[]) && !retires(&foreign, OTHER, &[&user]));
    let deny = key_policy(&[r#""Effect":"Deny","Principal":"*","Action":"kms:RetireGrant","Resource":"*""#]);
    let asked = request(XYZ, "kms:RetireGrant", Context::of(&XYZ));
    assert!(!decide_retire(&asked, Some(&deny), &[], &own).is_allowed());
    with.retiring = Some(Party::Service("mount".to_owned()));
    assert!(retires(&grant(with), MOUNT, &[]));
}

#[test]
fn terms_that_no_grant_may_have() {
    let check = |terms: &GrantTerms, (usage, spec): (&str, &str)| terms.check(usage, spec);
    let good = terms(&ABC, &["Decrypt", "CreateGrant"]);
    assert_eq!(check(&good, SYMMETRIC), Ok(()));
    assert_eq!(check(&terms(&ABC, &[]), SYMMETRIC), Err(GrantError::NoOperation));
    assert_eq!(check(&terms(&ABC, &["Sign"]), SYMMETRIC), Err(GrantError::Operation));
    assert_eq!(check(&terms(&ABC, &["PutKeyPolicy"]), SYMMETRIC), Err(GrantError::Operation));
    assert_eq!(check(&terms(&ABC, &["GenerateDataKey"]), ("ENCRYPT_DECRYPT", "RSA_2048")), Err(GrantError::Operation));
    for arn in ["", "*", "123456789012", "arn:aws:iam::123456789012:user/*", "arn:aws:s3:::bucket", "bob"] {
        let party = Party::Principal(arn.to_owned());
        assert_eq!(
            check(&GrantTerms { grantee: party.clone(), ..good.clone() }, SYMMETRIC),
            Err(GrantError::Principal)
        );
        assert_eq!(check(&GrantTerms { retiring: Some(party), ..good.clone() }, SYMMETRIC), Err(GrantError::Principal));
    }
    let long = "v".repeat(385);
    let many: Vec<(String, String)> = (0..9).map(|n| (n.to_string(), String::new())).collect();
    for equals in [pairs(&[("a", &long)]), Some(many.into_iter().collect())] {
        let constraints = Constraints { equals, ..Constraints::default() };
        assert_eq!(check(&GrantTerms { constraints, ..good.clone() }, SYMMETRIC), Err(GrantError::Size));
    }
    let constraints = Constraints { subset: pairs(&[("a", "b")]), ..Constraints::default() };
    let signing = GrantTerms { constraints, ..terms(&ABC, &["Sign"]) };
    assert_eq!(check(&signing, ("SIGN_VERIFY", "ECC_NIST_P256")), Err(GrantError::Constraint));
    for usage in ["ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT"] {
        assert!(operations_for(usage, "SYMMETRIC_DEFAULT").iter().all(|o| OPERATIONS.contains(o)));
    }
    assert!(operations_for("OTHER", "SYMMETRIC_DEFAULT").is_empty());
}

#[test]
fn one_name_and_equal_terms_mean_one_grant() {
    let named = |name: &str, operations: &[&str]| GrantTerms { name: Some(name.to_owned()), ..terms(&ABC, operations) };
    let first = named("n", &["Decrypt", "Encrypt"]);
    assert!(named("n", &["Encrypt", "Decrypt", "Decrypt"]).means(&first));
    assert!(!named("m", &["Decrypt", "Encrypt"]).means(&first) && !named("n", &["Decrypt"]).means(&first));
    assert!(!terms(&ABC, &["Decrypt"]).means(&terms(&ABC, &["Decrypt"])), "without a name each is a new one");
    let other = GrantTerms { retiring: Some(Party::Service("x".to_owned())), ..first.clone() };
    assert!(!other.means(&first));
}

#[test]
fn tokens_name_their_grant_and_cannot_be_made_up() {
    let (secret, other) = (Secret32::from_bytes([7; 32]), Secret32::from_bytes([8; 32]));
    let grant = grant(terms(&ABC, &["Decrypt"]));
    let (first, second) = (grant.token(&secret), grant.token(&secret));
    assert_ne!(first, second);
    for token in [&first, &second] {
        assert_eq!(read_token(&secret, token), Some(("k".to_owned(), "g1".to_owned())));
        assert_eq!(read_token(&other, token), None);
    }
    for at in 0..first.len() {
        let mut bytes = first.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(read_token(&secret, std::str::from_utf8(&bytes).unwrap()), None, "{at}");
        assert_eq!(read_token(&secret, &first[..at]), None, "{at}");
    }
}
