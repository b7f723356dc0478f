//! Official clients drive every operation of a running service: boto3, the aws CLI, aws-sdk-kms.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::own::{ACCOUNT, Own, REGION};
use crate::python::{ask, script, with_module};
use crate::servers::{find, require};
use crate::sigv4::Credentials;

mod cli;
#[cfg(feature = "aws")]
mod sdk;

/// A client's environment: nothing of this host's, and this service.
fn configure(command: &mut Command, own: &Own, who: &Credentials, home: &Path) {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("AWS_ENDPOINT_URL_KMS", own.endpoint())
        .env("AWS_DEFAULT_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", &who.id)
        .env("AWS_SECRET_ACCESS_KEY", &who.secret)
        .env("AWS_EC2_METADATA_DISABLED", "true");
}

fn python(own: &Own, who: &Credentials, name: &str, input: &Value) -> Option<Value> {
    let python = with_module("boto3, cryptography")?;
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    configure(&mut command, own, who, home.path());
    Some(ask(command.arg(script(name)), input))
}

#[test]
fn boto3_drives_every_operation_and_raises_its_own_exceptions() {
    let own = Own::start();
    own.user("other");
    let other = format!("arn:aws:iam::{ACCOUNT}:user/other");
    let called = python(&own, &own.root, "boto3_every_operation.py", &json!({"other_user_arn": other}));
    assert!(called.is_none_or(|called| called.as_array().unwrap().len() == 54));
}

#[test]
fn the_session_of_the_article() {
    let own = Own::start();
    let key = own.admin("CreateKey", &json!({}))["KeyMetadata"]["KeyId"].clone();
    own.admin("CreateAlias", &json!({"AliasName": "alias/test", "TargetKeyId": key}));
    let who = own.user("app");
    own.allow("app", &["kms:Encrypt", "kms:Decrypt"]);
    python(&own, &who, "boto3_session.py", &Value::Null);
}
