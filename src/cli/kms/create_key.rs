//! `envelopefs kms create-key`: the five steps of the AWS console, on a terminal or as flags. And any operation of the API.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde_json::{Value, json};

use super::super::{Failure, exit, say};
use super::user::document;
use super::{Place, show};
use crate::kms::admin::Request;

/// Make a key in five steps: configure, label, administrators, users, review
///
/// On a terminal each step that no flag answers is asked for. In scripts give --yes: what no flag says has its default.
#[derive(Args)]
pub struct CreateKey {
    #[command(flatten)]
    place: Place,
    /// Step 1: SYMMETRIC_DEFAULT, RSA_2048 … RSA_4096, ECC_NIST_P256 … ECC_SECG_P256K1, HMAC_224 … HMAC_512
    #[arg(long, value_name = "SPEC")]
    key_spec: Option<String>,
    /// Step 1: ENCRYPT_DECRYPT, SIGN_VERIFY, GENERATE_VERIFY_MAC or KEY_AGREEMENT
    #[arg(long, value_name = "USAGE")]
    key_usage: Option<String>,
    /// Step 1: AWS_KMS (material is made here) or EXTERNAL (it is imported)
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// Step 2: a name for the key, alias/NAME or NAME
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Step 2
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Step 2; may be repeated
    #[arg(long = "tag", value_name = "NAME=VALUE")]
    tags: Vec<String>,
    /// Step 3: a user who may administer the key; may be repeated
    #[arg(long = "administrator", value_name = "USER")]
    administrators: Vec<String>,
    /// Step 3: whether administrators may delete the key
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    administrators_may_delete: bool,
    /// Step 4: a user who may use the key; may be repeated
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
    /// Step 5: this document instead of the one that steps 3 and 4 make
    #[arg(long, value_name = "FILE", conflicts_with_all = ["administrators", "users"])]
    policy: Option<PathBuf>,
    /// Ask nothing
    #[arg(long, short = 'y')]
    yes: bool,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

impl CreateKey {
    pub fn run(mut self) -> Result<(), Failure> {
        let ask = !self.yes;
        if ask && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Failure::new(
                exit::USAGE,
                "there is no terminal to ask at: give the steps as flags, and --yes",
            ));
        }
        let status = self.place.ask(Request::Status {})?;
        let account = status["account"].as_str().unwrap_or("").to_owned();
        if ask {
            self.ask_steps()?;
        }
        let alias =
            self.alias.take().filter(|alias| !alias.is_empty()).map(|alias| match alias.starts_with("alias/") {
                true => alias,
                false => format!("alias/{alias}"),
            });
        let policy = match &self.policy {
            Some(file) => document(Some(file))?,
            None => self.make_policy(&account),
        };
        let mut input = json!({"Policy": policy});
        for (member, value) in [
            ("KeySpec", &self.key_spec),
            ("KeyUsage", &self.key_usage),
            ("Origin", &self.origin),
            ("Description", &self.description),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                input[member] = value.as_str().into();
            }
        }
        if self.key_usage.is_none()
            && let Some(usage) = self.key_spec.as_deref().and_then(usual_usage)
        {
            input["KeyUsage"] = usage.into();
        }
        if !self.tags.is_empty() {
            input["Tags"] = self.tags.iter().map(|tag| tag_of(tag)).collect::<Result<Vec<_>, _>>()?.into();
        }
        if ask && !review(&input, alias.as_deref())? {
            return Err(Failure::new(exit::FAILURE, "no key was made"));
        }
        let answer = self.place.call("CreateKey", input)?;
        let metadata = answer.get("KeyMetadata").cloned().unwrap_or_default();
        if let Some(alias) = &alias {
            let id = metadata["KeyId"].as_str().unwrap_or("");
            let named = self.place.call("CreateAlias", json!({"AliasName": alias, "TargetKeyId": id}));
            named.map_err(|e| {
                Failure::new(e.code, format!("key {id} was made, but has no alias {alias}: {}", e.message))
            })?;
        }
        let mut shown = metadata;
        if let Some(alias) = alias {
            shown["AliasName"] = alias.into();
        }
        show(&shown, self.json);
        Ok(())
    }

    fn ask_steps(&mut self) -> Result<(), Failure> {
        heading("Step 1 of 5: configure key");
        question(&mut self.key_spec, "Key spec", "SYMMETRIC_DEFAULT")?;
        let usage = self.key_spec.as_deref().and_then(usual_usage).unwrap_or("ENCRYPT_DECRYPT");
        question(&mut self.key_usage, "Key usage", usage)?;
        question(&mut self.origin, "Origin of the key material (AWS_KMS or EXTERNAL)", "AWS_KMS")?;
        heading("Step 2 of 5: add label");
        question(&mut self.alias, "Alias", "")?;
        question(&mut self.description, "Description", "")?;
        questions(&mut self.tags, "Tag NAME=VALUE (none: go on)")?;
        if self.policy.is_none() {
            heading("Step 3 of 5: key administrators");
            questions(&mut self.administrators, "User who may administer the key (none: go on)")?;
            heading("Step 4 of 5: key users");
            questions(&mut self.users, "User who may use the key (none: go on)")?;
        }
        Ok(())
    }

    /// The document that the console makes of these steps.
    fn make_policy(&self, account: &str) -> String {
        let arns = |names: &[String]| -> Value {
            let arns: Vec<String> = names.iter().map(|name| arn_of(account, name)).collect();
            if let [one] = &arns[..] { one.as_str().into() } else { arns.into() }
        };
        let mut statements = vec![json!({
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": {"AWS": format!("arn:aws:iam::{account}:root")},
            "Action": "kms:*",
            "Resource": "*",
        })];
        if !self.administrators.is_empty() {
            let mut actions = vec![
                "kms:Create*",
                "kms:Describe*",
                "kms:Enable*",
                "kms:List*",
                "kms:Put*",
                "kms:Update*",
                "kms:Revoke*",
                "kms:Disable*",
                "kms:Get*",
                "kms:Delete*",
                "kms:TagResource",
                "kms:UntagResource",
            ];
            if self.administrators_may_delete {
                actions.extend(["kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"]);
            }
            if self.origin.as_deref() == Some("EXTERNAL") {
                actions.push("kms:ImportKeyMaterial");
            }
            statements.push(json!({
                "Sid": "Allow access for Key Administrators",
                "Effect": "Allow",
                "Principal": {"AWS": arns(&self.administrators)},
                "Action": actions,
                "Resource": "*",
            }));
        }
        if !self.users.is_empty() {
            statements.push(json!({
                "Sid": "Allow use of the key",
                "Effect": "Allow",
                "Principal": {"AWS": arns(&self.users)},
                "Action": self.use_actions(),
                "Resource": "*",
            }));
            statements.push(json!({
                "Sid": "Allow attachment of persistent resources",
                "Effect": "Allow",
                "Principal": {"AWS": arns(&self.users)},
                "Action": ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"],
                "Resource": "*",
                "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}},
            }));
        }
        let document = json!({"Id": "key-consolepolicy-3", "Version": "2012-10-17", "Statement": statements});
        super::pretty(&document)
    }

    fn use_actions(&self) -> &'static [&'static str] {
        let spec = self.key_spec.as_deref().unwrap_or("");
        let usage = self.key_usage.as_deref().or(usual_usage(spec)).unwrap_or("ENCRYPT_DECRYPT");
        match usage {
            "SIGN_VERIFY" => &["kms:DescribeKey", "kms:GetPublicKey", "kms:Sign", "kms:Verify"],
            "GENERATE_VERIFY_MAC" => &["kms:DescribeKey", "kms:GenerateMac", "kms:VerifyMac"],
            "KEY_AGREEMENT" => &["kms:DescribeKey", "kms:GetPublicKey", "kms:DeriveSharedSecret"],
            _ if spec.starts_with("RSA") => {
                &["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:DescribeKey", "kms:GetPublicKey"]
            }
            _ => &["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"],
        }
    }
}

/// What keys of a spec are mostly for; nothing where they are for encryption.
fn usual_usage(spec: &str) -> Option<&'static str> {
    match spec {
        spec if spec.starts_with("RSA") || spec.starts_with("ECC") => Some("SIGN_VERIFY"),
        spec if spec.starts_with("HMAC") => Some("GENERATE_VERIFY_MAC"),
        _ => None,
    }
}

fn arn_of(account: &str, name: &str) -> String {
    if name.starts_with("arn:") { name.to_owned() } else { format!("arn:aws:iam::{account}:user/{name}") }
}

fn tag_of(text: &str) -> Result<Value, Failure> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| Failure::new(exit::USAGE, format!("--tag {text:?}: write NAME=VALUE")))?;
    Ok(json!({"TagKey": name, "TagValue": value}))
}

fn heading(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

fn line(prompt: &str) -> Result<String, Failure> {
    let mut err = std::io::stderr();
    let _ = write!(err, "  {prompt}: ");
    let _ = err.flush();
    let mut text = String::new();
    let read = std::io::stdin().lock().read_line(&mut text);
    match read {
        Ok(0) => Err(Failure::new(exit::FAILURE, "no key was made")),
        Ok(_) => Ok(text.trim().to_owned()),
        Err(e) => Err(Failure::new(exit::FAILURE, e.to_string())),
    }
}

fn question(answer: &mut Option<String>, prompt: &str, default: &str) -> Result<(), Failure> {
    if answer.is_none() {
        let shown = if default.is_empty() { prompt.to_owned() } else { format!("{prompt} [{default}]") };
        let text = line(&shown)?;
        *answer = Some(if text.is_empty() { default.to_owned() } else { text });
    }
    Ok(())
}

fn questions(answers: &mut Vec<String>, prompt: &str) -> Result<(), Failure> {
    if !answers.is_empty() {
        return Ok(());
    }
    loop {
        let text = line(prompt)?;
        if text.is_empty() {
            return Ok(());
        }
        answers.push(text);
    }
}

fn review(input: &Value, alias: Option<&str>) -> Result<bool, Failure> {
    heading("Step 5 of 5: review");
    let mut err = std::io::stderr();
    for (name, value) in input.as_object().into_iter().flatten().filter(|(name, _)| *name != "Policy") {
        let _ = writeln!(err, "  {name}: {value}");
    }
    if let Some(alias) = alias {
        let _ = writeln!(err, "  Alias: {alias}");
    }
    let _ = writeln!(err, "{}", input["Policy"].as_str().unwrap_or(""));
    Ok(matches!(line("Make this key? [y/N]")?.as_str(), "y" | "Y" | "yes"))
}

/// Run an operation of the API as the account root: its input and answer are JSON
#[derive(Args)]
pub struct Call {
    #[command(flatten)]
    place: Place,
    /// Such as DescribeKey
    operation: String,
    /// Its input; - reads standard input
    #[arg(default_value = "{}")]
    input: String,
}

impl Call {
    pub fn run(self) -> Result<(), Failure> {
        let text = if self.input == "-" { document(None)? } else { self.input };
        let input: Value =
            serde_json::from_str(&text).map_err(|e| Failure::new(exit::USAGE, format!("the input is no JSON: {e}")))?;
        let answer = self.place.call(&self.operation, input)?;
        if !answer.is_null() {
            say(super::pretty(&answer));
        }
        Ok(())
    }
}
