//! Random documents, requests and grants: the decision is the oracle's, a Deny more never allows more, and nothing panics.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::reference::{Asked, GrantFact};
use super::*;

const ACCOUNTS: [&str; 2] = [ACCOUNT, "999999999999"];
const NAMES: [&str; 3] = ["XYZ", "ABC", "mount"];
const ACTIONS: [&str; 6] =
    ["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey", "kms:PutKeyPolicy", "kms:ReEncryptFrom", "kms:GenerateDataKey"];
/// Keys of requests; the last two nobody has.
const KEYS: [&str; 7] = [
    "kms:RequestAlias",
    "kms:EncryptionContext:app",
    "kms:ResourceAliases",
    "aws:SourceArn",
    "kms:RotationPeriodInDays",
    "aws:SourceVpc",
    "x:unknown",
];
const VALUES: [&str; 10] =
    ["a", "A", "ab", "a*", "true", "false", "7", "8", "arn:aws:iam::123456789012:user/a", "arn:aws:s3:::b"];

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    proptest::sample::select(from)
}
fn some<T: std::fmt::Debug + Clone>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    proptest::collection::vec(one, 1..4)
}
/// A list, or its only member bare.
fn bare(values: Vec<String>) -> Value {
    if let [one] = &values[..] { json!(one) } else { json!(values) }
}

fn principal() -> impl Strategy<Value = Value> {
    let aws = prop_oneof![
        3 => (0..2usize, pick(&NAMES)).prop_map(|(a, n)| format!("arn:aws:iam::{}:user/{n}", ACCOUNTS[a])),
        2 => (0..2usize).prop_map(|a| format!("arn:aws:iam::{}:root", ACCOUNTS[a])),
        1 => (0..2usize).prop_map(|a| ACCOUNTS[a].to_owned()),
    ];
    let with_star = prop_oneof![4 => aws.clone(), 1 => Just("*".to_owned())];
    prop_oneof![
        1 => Just(json!({ "Principal": "*" })),
        5 => some(with_star).prop_map(|names| json!({ "Principal": { "AWS": bare(names) } })),
        1 => pick(&NAMES).prop_map(|name| json!({ "Principal": { "Service": name } })),
        2 => some(aws).prop_map(|names| json!({ "NotPrincipal": { "AWS": bare(names) } })),
        1 => pick(&NAMES).prop_map(|name| json!({ "NotPrincipal": { "Service": name } })),
    ]
}
fn choice(name: &'static str, patterns: &'static [&'static str]) -> impl Strategy<Value = Value> {
    (some(pick(patterns)), proptest::bool::weighted(0.25)).prop_map(move |(patterns, negated)| {
        let name = if negated { format!("Not{name}") } else { name.to_owned() };
        json!({ name: bare(patterns.into_iter().map(str::to_owned).collect()) })
    })
}
const ACTION_PATTERNS: [&str; 9] = [
    "*",
    "kms:*",
    "kms:Encrypt",
    "KMS:decrypt",
    "kms:*crypt*",
    "kms:Describe*",
    "kms:?ecrypt",
    "kms:PutKeyPolicy",
    "s3:*",
];
const RESOURCE_PATTERNS: [&str; 8] = [
    "*",
    "arn:aws:kms:us-east-1:123456789012:key/*",
    "arn:aws:kms:*:*:alias/*",
    "arn:aws:kms:us-east-1:123456789012:key/${aws:username}",
    "arn:aws:kms:us-east-1:123456789012:key/${kms:RequestAlias}",
    "arn:aws:kms:us-east-1:123456789012:key/${kms:ResourceAliases}",
    "arn:aws:kms:us-????-1:123456789012:*/a",
    "arn:aws:kms:us-east-1:123456789012:key/${*}",
];
fn condition() -> impl Strategy<Value = (String, String, Value)> {
    const TEXT: [&str; 6] = [
        "StringEquals",
        "StringNotEquals",
        "StringLike",
        "StringNotLike",
        "StringEqualsIgnoreCase",
        "StringNotEqualsIgnoreCase",
    ];
    const NUMERIC: [&str; 6] = [
        "NumericEquals",
        "NumericNotEquals",
        "NumericLessThan",
        "NumericLessThanEquals",
        "NumericGreaterThan",
        "NumericGreaterThanEquals",
    ];
    const ARN: [&str; 4] = ["ArnEquals", "ArnLike", "ArnNotEquals", "ArnNotLike"];
    let texts = prop_oneof![
        pick(&VALUES),
        pick(&["a*", "?", "*", "${aws:username}", "${kms:ResourceAliases}", "A${*}", "${aws:SourceVpc}b", "*b"])
    ];
    let arns = pick(&[
        "arn:aws:iam::123456789012:user/a",
        "arn:aws:iam::*:user/?",
        "arn:*:*:*:*:*",
        "arn:aws:s3:::${kms:RequestAlias}",
        "arn:aws:s3:::b*",
    ]);
    let kinds = prop_oneof![
        5 => (pick(&TEXT), some(texts)).boxed(),
        2 => (pick(&NUMERIC), some(pick(&["7", "8", "-1"]))).boxed(),
        2 => (pick(&ARN), some(arns)).boxed(),
        1 => (Just("Bool"), some(pick(&["true", "false"]))).boxed(),
    ];
    let full = (pick(&["", "", "ForAllValues:", "ForAnyValue:"]), kinds, pick(&["", "", "IfExists"]), pick(&KEYS))
        .prop_map(|(set, (operator, values), exists, key)| {
            let values = values.into_iter().map(str::to_owned).collect();
            (format!("{set}{operator}{exists}"), key.to_owned(), bare(values))
        });
    let null = (pick(&KEYS), any::<bool>())
        .prop_map(|(key, value)| ("Null".to_owned(), key.to_owned(), json!(value.to_string())));
    prop_oneof![6 => full, 1 => null]
}
fn statement(for_key: bool) -> impl Strategy<Value = Value> {
    let conditions = prop_oneof![2 => Just(Vec::new()), 3 => proptest::collection::vec(condition(), 1..3)];
    let parts = (
        any::<bool>(),
        principal(),
        choice("Action", &ACTION_PATTERNS),
        choice("Resource", &RESOURCE_PATTERNS),
        conditions,
        proptest::bool::weighted(0.7),
    );
    parts.prop_map(move |(allow, principal, action, resource, conditions, plain)| {
        let mut all = serde_json::Map::new();
        if for_key {
            all.extend(principal.as_object().unwrap().clone());
        }
        let allow = allow && !all.contains_key("NotPrincipal");
        all.insert("Effect".into(), json!(if allow { "Allow" } else { "Deny" }));
        all.extend(action.as_object().unwrap().clone());
        // Most statements are for any resource, or nothing would ever be allowed.
        all.extend(if plain { json!({ "Resource": "*" }) } else { resource }.as_object().unwrap().clone());
        let mut object = serde_json::Map::new();
        for (operator, key, values) in conditions {
            let keys = object.entry(operator).or_insert_with(|| json!({}));
            keys.as_object_mut().unwrap().insert(key, values);
        }
        if !object.is_empty() {
            all.insert("Condition".into(), Value::Object(object));
        }
        Value::Object(all)
    })
}
fn document(for_key: bool) -> impl Strategy<Value = Value> {
    (proptest::collection::vec(statement(for_key), 1..5), proptest::bool::weighted(0.9)).prop_map(|(statements, new)| {
        json!({ "Version": if new { "2012-10-17" } else { "2008-10-17" }, "Statement": statements })
    })
}
fn grant() -> impl Strategy<Value = GrantFact> {
    let pairs = || {
        let map = proptest::collection::btree_map(pick(&["App", "app", "b"]), pick(&["x", "X"]), 0..3);
        let owned = map.prop_map(|m| m.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<Vec<_>>());
        proptest::option::weighted(0.3, owned)
    };
    let grantee = (0..2usize, pick(&["user/XYZ", "user/ABC", "root"]))
        .prop_map(|(account, name)| format!("arn:aws:iam::{}:{name}", ACCOUNTS[account]));
    let operations = some(pick(&["Decrypt", "Encrypt", "DescribeKey", "ReEncryptFrom"]));
    (grantee, operations, pairs(), pairs()).prop_map(|(grantee, operations, subset, equals)| GrantFact {
        grantee,
        operations: operations.into_iter().map(str::to_owned).collect(),
        subset,
        equals,
    })
}
fn asked() -> impl Strategy<Value = Asked> {
    let caller = (0..2usize, pick(&["XYZ", "ABC", "mount", "root"]), any::<bool>());
    let keys = proptest::collection::vec((0..5usize, proptest::collection::vec(pick(&VALUES), 0..3)), 0..5);
    let context = proptest::collection::btree_map(pick(&["App", "app", "b"]), pick(&["x", "X"]), 0..3);
    let resources =
        pick(&[KEY, KEY, "arn:aws:kms:us-east-1:123456789012:key/XYZ", "arn:aws:kms:us-east-1:123456789012:key/a"]);
    (caller, pick(&ACTIONS), resources, keys, context).prop_map(
        |((account, name, service), action, resource, keys, context)| {
            let root = name == "root";
            let account = ACCOUNTS[account].to_owned();
            let arn = if root {
                format!("arn:aws:iam::{account}:root")
            } else {
                format!("arn:aws:iam::{account}:user/{name}")
            };
            let mut keys: Vec<(String, Vec<String>)> = keys
                .into_iter()
                .map(|(key, values)| (KEYS[key].to_lowercase(), values.into_iter().map(str::to_owned).collect()))
                .collect();
            keys.sort();
            keys.dedup_by(|a, b| a.0 == b.0);
            if !root {
                keys.push(("aws:username".to_owned(), vec![name.to_owned()]));
            }
            Asked {
                account,
                arn,
                root,
                service: service && !root,
                action: action.to_owned(),
                resource: resource.to_owned(),
                keys,
                encryption_context: context.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            }
        },
    )
}

/// The same request for the evaluator.
fn as_request(asked: &Asked) -> Request<'_> {
    let principal =
        Principal { account: &asked.account, arn: &asked.arn, is_root: asked.root, is_service: asked.service };
    let pairs = asked.encryption_context.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    let mut context = Context::of(&principal).with_encryption_context(pairs);
    // The reference sees the keys that were drawn, whatever the encryption context says.
    context.set("kms:EncryptionContext:app", Vec::<String>::new());
    for (key, values) in &asked.keys {
        context.set(key, values.iter().map(String::as_str));
    }
    Request { principal, action: &asked.action, resource: &asked.resource, context }
}
fn as_grant(fact: &GrantFact) -> Grant {
    let pairs = |pairs: &Option<Vec<(String, String)>>| pairs.as_ref().map(|p| p.iter().cloned().collect());
    Grant {
        id: "g".to_owned(),
        key_id: "k".to_owned(),
        issuing_account: ACCOUNT.to_owned(),
        created: 0,
        terms: GrantTerms {
            name: None,
            grantee: Party::Principal(fact.grantee.clone()),
            retiring: None,
            operations: fact.operations.clone(),
            constraints: Constraints { subset: pairs(&fact.subset), equals: pairs(&fact.equals), source_arn: None },
        },
    }
}
fn decided(asked: &Asked, key: Option<&Value>, user: &[Value], grants: &[GrantFact]) -> bool {
    let key = key.map(|key| Document::parse_key_policy(&key.to_string()).unwrap_or_else(|e| panic!("{e}: {key}")));
    let user: Vec<Document> = user
        .iter()
        .map(|user| Document::parse_user_policy(&user.to_string()).unwrap_or_else(|e| panic!("{e}: {user}")))
        .collect();
    let grants: Vec<Grant> = grants.iter().map(as_grant).collect();
    let (user, grants): (Vec<_>, Vec<_>) = (user.iter().collect(), grants.iter().collect());
    decide(&as_request(asked), key.as_ref(), &user, &grants).is_allowed()
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn the_decision_is_the_references(
        asked in asked(),
        key in proptest::option::weighted(0.9, document(true)),
        user in proptest::collection::vec(document(false), 0..3),
        grants in proptest::collection::vec(grant(), 0..3),
    ) {
        let expected = asked.allowed(key.as_ref(), &user, &grants);
        prop_assert_eq!(decided(&asked, key.as_ref(), &user, &grants), expected);
    }

    #[test]
    fn one_statement_alone(asked in asked(), statement in statement(true)) {
        let key = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*" }, statement ] });
        prop_assert_eq!(decided(&asked, Some(&key), &[], &[]), asked.allowed(Some(&key), &[], &[]));
    }

    #[test]
    fn a_deny_more_never_allows_more(asked in asked(), key in document(true), mut more in statement(true)) {
        more["Effect"] = json!("Deny");
        let before = decided(&asked, Some(&key), &[], &[]);
        let mut longer = key.clone();
        longer["Statement"].as_array_mut().unwrap().push(more);
        prop_assert!(before || !decided(&asked, Some(&longer), &[], &[]));
    }

    #[test]
    fn any_text_is_refused_or_read(text in ".{0,200}", json in "[\\[\\]{}\",:A-Za-z0-9*$ ]{0,80}") {
        for text in [text, json] {
            let _ = Document::parse_key_policy(&text);
            let _ = Document::parse_user_policy(&text);
        }
    }

    #[test]
    fn wildcards_against_trying_every_way(pattern in "[ab:?*]{0,8}", subject in "[ab:]{0,8}") {
        let policy = user_policy(&[&format!(
            r#""Effect":"Allow","Action":"*","Resource":"*","Condition":{{"StringLike":{{"kms:RequestAlias":"{pattern}"}}}}"#
        )]);
        let mut context = Context::of(&OTHER);
        context.set("kms:RequestAlias", [subject.as_str()]);
        let got = decide(&Request { principal: OTHER, action: "kms:A", resource: "*", context }, None, &[&policy], &[]);
        prop_assert_eq!(got.is_allowed(), naive(pattern.as_bytes(), subject.as_bytes()));
    }
}

fn naive(pattern: &[u8], subject: &[u8]) -> bool {
    match pattern.split_first() {
        None => subject.is_empty(),
        Some((b'*', rest)) => (0..=subject.len()).any(|n| naive(rest, &subject[n..])),
        Some((b'?', rest)) => !subject.is_empty() && naive(rest, &subject[1..]),
        Some((c, rest)) => subject.first() == Some(c) && naive(rest, &subject[1..]),
    }
}
