//! Who may do what, end to end, and requests that nobody would send: boto3 and raw HTTP against a running service.

use std::process::Command;

use serde_json::{Value, json};

use crate::own::{ACCOUNT, Own, REGION, allow, quiet_verb};
use crate::python::{ask, script, with_module};
use crate::sigv4::Credentials;

fn keys(users: &[(&str, &Credentials)]) -> Value {
    users.iter().map(|(name, key)| ((*name).to_owned(), json!([key.id, key.secret]))).collect::<serde_json::Map<_, _>>().into()
}
/// Runs a script of this directory against the service.
fn run(own: &Own, name: &str, users: &[(&str, &Credentials)], more: &Value) -> Option<Value> {
    let python = with_module("boto3")?;
    let mut input = json!({"endpoint": own.endpoint(), "region": REGION, "account": ACCOUNT, "users": keys(users)});
    input.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.env_clear().env("HOME", home.path()).env("AWS_EC2_METADATA_DISABLED", "true").arg(script(name));
    Some(ask(&mut command, &input))
}

#[test]
fn policies_grants_and_signatures_decide() {
    let own = Own::start();
    let (xyz, abc, other, mount) = (own.user("XYZ"), own.user("ABC"), own.user("other"), own.service("mount"));
    let users = [("root", &own.root), ("XYZ", &xyz), ("ABC", &abc), ("other", &other), ("mount", &mount)];
    let answer = run(&own, "authorisation.py", &users, &Value::Null);
    assert!(answer.is_none_or(|answer| answer == "ok"));
}

#[test]
fn a_users_policy_counts_where_the_account_is_named() {
    let own = Own::start();
    let user = own.user("app");
    let key = own.admin("CreateKey", &json!({}))["KeyMetadata"]["Arn"].clone();
    let encrypt = json!({"KeyId": key, "Plaintext": "eA=="});
    let may = |operation: &str, input: &Value| {
        let (status, answer) = own.ask(&user, operation, input).unwrap();
        assert!(status == 200 || answer["__type"] == "AccessDeniedException", "{answer}");
        status == 200
    };
    assert!(!may("Encrypt", &encrypt) && !may("CreateKey", &json!({})));
    own.allow("app", &["kms:Encrypt", "kms:CreateKey"]);
    assert!(may("Encrypt", &encrypt) && may("CreateKey", &json!({})) && !may("DisableKey", &json!({"KeyId": key})));
    // A key that does not name the account is none of the account's business.
    let mine = format!("arn:aws:iam::{ACCOUNT}:user/app");
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": mine},
        "Action": ["kms:DescribeKey", "kms:PutKeyPolicy"], "Resource": "*"}]});
    let put = json!({"KeyId": key, "PolicyName": "default", "Policy": policy.to_string(), "BypassPolicyLockoutSafetyCheck": true});
    own.admin("PutKeyPolicy", &put);
    assert!(!may("Encrypt", &encrypt) && may("DescribeKey", &json!({"KeyId": key})));
    own.admin("CreateKey", &json!({}));
    own.verb(&["user", "disable"], &["app"]);
    let (status, answer) = own.ask(&user, "DescribeKey", &json!({"KeyId": key})).unwrap();
    assert_eq!((status, answer["__type"].as_str()), (400, Some("UnrecognizedClientException")), "{answer}");
}

#[test]
fn a_changed_access_key_ends_the_old_one() {
    let own = Own::start();
    let old = own.user("app");
    own.allow("app", &["kms:ListKeys"]);
    let ask = |who: &Credentials| own.ask(who, "ListKeys", &json!({})).unwrap();
    assert_eq!(ask(&old).0, 200);
    let new = own.verb(&["user", "rotate"], &["app"]);
    let text = |name: &str| new[name].as_str().unwrap().to_owned();
    let new = Credentials { id: text("AccessKeyId"), secret: text("SecretAccessKey") };
    assert_eq!(ask(&new).0, 200);
    let crossed = Credentials { id: new.id.clone(), secret: old.secret.clone() };
    assert_eq!(ask(&crossed).1["__type"], "InvalidSignatureException");
    allow(&own.data, "app", &["kms:GenerateRandom"]);
    assert_eq!(ask(&new).1["__type"], "AccessDeniedException");
    quiet_verb(&own.data, &["user", "policy", "delete"], &["app"]);
    assert_eq!(ask(&new).1["__type"], "AccessDeniedException");
}

#[test]
fn fuzzed_requests() {
    let own = Own::start();
    let nobody = own.user("nobody");
    let count: u64 = std::env::var("ENVELOPEFS_FUZZ_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let seed: u64 = std::env::var("ENVELOPEFS_FUZZ_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let more = json!({"data": own.data, "count": count, "seed": seed});
    let Some(codes) = run(&own, "fuzz_requests.py", &[("root", &own.root), ("nobody", &nobody)], &more) else { return };
    // The requests are not all refused at the door.
    for code in ["ok", "AccessDeniedException", "ValidationException", "NotFoundException"] {
        assert!(codes[code].as_u64().is_some_and(|n| n > 5), "{codes}");
    }
    assert!(!own.log().contains("panicked"), "{}", own.log());
}
