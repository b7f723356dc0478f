//! The contract on AWS KMS: on moto (encryption context, tampering, signatures and IAM), on ministack (key states, RSA), on the
//! key service of this package (everything), and on endpoints that misbehave. Each test runs in a process of its own, because the SDK is configured by environment.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envelopefs::crypto::secret::Secret32;
use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::{Opening, open_cmk};
use envelopefs::keys::uri::CmkUri;
use envelopefs::keys::{CmkProvider, CmkState, KeyError};
use serde_json::{Value, json};

use super::contract::{self, Gaps, assert_refused, assert_unreachable, branch};
use super::fault::{Behaviour, FaultServer};
use super::own;
#[cfg(feature = "kms")]
use super::own::Own;
use super::servers::{self, Server, http, in_own_process};
use super::sigv4::Credentials;

/// What a call may take here; tests of limits add `SLACK` for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_secs(2);

/// An ARN that no server here knows.
const ARN: &str = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000";

mod faults;

type Environment = Vec<(String, String)>;

/// What the SDK finds: nothing of this host's, and these keys.
fn environment(home: &Path, more: &[(&str, String)]) -> Environment {
    let mut all: Environment = [
        ("HOME", home.to_str().unwrap()),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .into();
    for (name, value) in more {
        all.retain(|(other, _)| other != name);
        if !value.is_empty() {
            all.push(((*name).to_string(), value.clone()));
        }
    }
    all
}
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn moto(dir: &Path, arguments: &[&str]) -> Option<Server> {
    let program = servers::require("moto_server", servers::find("moto_server"))?;
    let port = servers::free_port();
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).args(arguments);
    Some(Server::start(&mut command, port, &dir.join("moto.log")))
}
fn ministack(dir: &Path) -> Option<Server> {
    let program = servers::require("ministack", servers::find("ministack"))?;
    let port = servers::free_port();
    let mut command = Command::new(program);
    command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).current_dir(dir);
    Some(Server::start(&mut command, port, &dir.join("ministack.log")))
}

/// The key service of this package, and what its account root's clients find.
#[cfg(feature = "kms")]
fn own(dir: &Path, more: &[(&str, String)]) -> (Own, Environment) {
    let own = Own::start_in(dir);
    let mut settings = vec![
        ("PORT", own.port.to_string()),
        ("OWN_ID", own.root.id.clone()),
        ("OWN_SECRET", own.root.secret.clone()),
        ("OWN_DATA", own.data.to_str().unwrap().to_string()),
        ("AWS_ACCESS_KEY_ID", own.root.id.clone()),
        ("AWS_SECRET_ACCESS_KEY", own.root.secret.clone()),
    ];
    settings.extend(more.iter().cloned());
    (own, environment(dir, &settings))
}
/// Its account root, in the process of a test that runs on it.
fn own_root() -> Option<Credentials> {
    std::env::var("OWN_ID").ok().map(|id| Credentials { id, secret: var("OWN_SECRET") })
}

/// Runs `body` on moto or ministack, and again on the key service of this package.
#[cfg(feature = "kms")]
fn on_own(test: &str, body: impl FnOnce()) {
    in_own_process(
        test,
        || {
            let dir = scratch();
            let (server, environment) = own(dir.path(), &[]);
            Some(((server, dir), environment))
        },
        body,
    );
}

/// What an administrator does: without a signature where nobody looks at it.
fn admin(port: u16, action: &str, input: Value) -> Value {
    if let Some(root) = own_root() {
        return own::admin(port, &root, action, &input);
    }
    let headers = format!(
        "X-Amz-Target: TrentService.{action}\r\nContent-Type: application/x-amz-json-1.1\r\nAuthorization: AWS4-HMAC-SHA256 \
         Credential=admin/20260101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0\r\n"
    );
    let (status, body) = http(port, "POST /", &headers, input.to_string().as_bytes()).unwrap();
    assert_eq!(status, 200, "{action}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap_or(Value::Null)
}
fn create_key(port: u16, input: Value) -> String {
    admin(port, "CreateKey", input)["KeyMetadata"]["Arn"].as_str().unwrap().to_string()
}
fn rsa_key(port: u16) -> String {
    create_key(port, json!({"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}))
}
fn at(port: u16, key: &str) -> String {
    format!("awskms:///{key}?endpoint=http://127.0.0.1:{port}")
}

fn open_within(uri: &str, timeout: Duration) -> Result<Arc<dyn CmkProvider>, KeyError> {
    open_cmk(&CmkUri::parse(uri)?, &mut Opening::new(&PassphraseSource::Terminal, timeout))
}
fn try_open(uri: &str) -> Result<Arc<dyn CmkProvider>, KeyError> {
    open_within(uri, TIMEOUT)
}
fn open(uri: &str) -> Arc<dyn CmkProvider> {
    try_open(uri).unwrap_or_else(|e| panic!("{uri}: {e}"))
}
fn assert_config<T>(result: Result<T, KeyError>, words: &[&str]) {
    match result {
        Err(KeyError::Config(text)) => words.iter().for_each(|word| assert!(text.contains(word), "{text:?}: {word:?}")),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("worked"),
    }
}
fn reason<T>(result: Result<T, KeyError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn moto_keeps_the_contract() {
    in_own_process(
        "aws::moto_keeps_the_contract",
        || {
            let dir = scratch();
            let server = moto(dir.path(), &[])?;
            let environment = environment(dir.path(), &[("PORT", server.port.to_string())]);
            Some(((server, dir), environment))
        },
        contract_of_symmetric_keys,
    );
}

#[cfg(feature = "kms")]
#[test]
fn own_keeps_the_contract() {
    on_own("aws::own_keeps_the_contract", contract_of_symmetric_keys);
}

fn contract_of_symmetric_keys() {
    let port: u16 = var("PORT").parse().unwrap();
    let (a, b) = (create_key(port, json!({})), create_key(port, json!({})));
    contract::holds(&|| open(&at(port, &a)), Gaps::default());
    // moto says "denied" of another key's blob; to be told from a revocation by one that is known to be good.
    let other = open(&at(port, &b));
    other.generate(&branch(1)).unwrap();
    contract::keys_are_apart(&*open(&at(port, &a)), &*other);
    admin(port, "CreateAlias", json!({"AliasName": "alias/team/app", "TargetKeyId": a}));
    contract::holds(&|| open(&at(port, "alias/team/app")), Gaps::default());

    // Callers do not wait for each other.
    let cmk = open(&at(port, &a));
    std::thread::scope(|scope| {
        for n in 0..16 {
            let cmk = cmk.clone();
            scope.spawn(move || {
                let (key, blob) = cmk.generate(&branch(n)).unwrap();
                assert_eq!(cmk.unwrap(&blob, &branch(n)).unwrap().expose(), key.expose());
            });
        }
    });

    // What was wrapped before a rotation opens after it, and rewrapping goes on under the same key.
    let cmk = open(&at(port, &a));
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    admin(port, "RotateKeyOnDemand", json!({"KeyId": a}));
    let rewrapped = cmk.rewrap(&blob, &branch(1)).unwrap().unwrap();
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    assert_eq!(cmk.unwrap(&rewrapped, &branch(1)).unwrap().expose(), key.expose());
    contract::assert_bad_blob(cmk.unwrap(&[7; 6145], &branch(1)), "more than a blob can be");
}

#[test]
fn every_name_of_a_key_is_the_same_key() {
    in_own_process(
        "aws::every_name_of_a_key_is_the_same_key",
        || {
            let dir = scratch();
            let server = moto(dir.path(), &[])?;
            let environment = environment(dir.path(), &[("PORT", server.port.to_string())]);
            Some(((server, dir), environment))
        },
        names,
    );
}

#[cfg(feature = "kms")]
#[test]
fn own_names_a_key_in_every_way() {
    on_own("aws::own_names_a_key_in_every_way", names);
}

fn names() {
    let port: u16 = var("PORT").parse().unwrap();
    let key = create_key(port, json!({"Description": "for\ntests"}));
    admin(port, "CreateAlias", json!({"AliasName": "alias/app", "TargetKeyId": key}));
    let alias_arn = format!("{}alias/app", key.split("key/").next().unwrap());
    let id = key.rsplit('/').next().unwrap();
    for name in [key.as_str(), id, "alias/app", &alias_arn] {
        let uri = CmkUri::parse(&at(port, name)).unwrap();
        let cmk = open(&uri.to_string());
        assert_eq!((cmk.key_ref().provider.as_str(), cmk.key_ref().key.as_str()), ("awskms", key.as_str()));
        assert!(!cmk.is_local());
        let pinned = uri.pinned(cmk.key_ref());
        assert_eq!(pinned.to_string(), at(port, &key), "{name}");
    }
    let info = open(&at(port, &key)).describe().unwrap();
    assert_eq!((info.description.as_str(), info.created.is_some()), ("for tests", true));

    // An alias that moves does not move what is pinned.
    let pinned = CmkUri::parse(&at(port, "alias/app")).unwrap().pinned(open(&at(port, "alias/app")).key_ref());
    let (secret, blob) = open(&at(port, "alias/app")).generate(&branch(1)).unwrap();
    let other = create_key(port, json!({}));
    admin(port, "UpdateAlias", json!({"AliasName": "alias/app", "TargetKeyId": other}));
    assert_eq!(open(&at(port, "alias/app")).key_ref().key, other);
    assert_eq!(open(&pinned.to_string()).unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose());

    // Names that lead nowhere, keys that are not what the URI says.
    assert_refused(try_open(&at(port, "alias/none")), &["NotFoundException", "region"], "no such alias");
    assert_refused(open(&at(port, ARN)).generate(&branch(1)), &["NotFoundException"], "no such key");
    let rsa = rsa_key(port);
    let rsa_id = rsa.rsplit('/').next().unwrap();
    assert_config(try_open(&at(port, rsa_id)), &["RSA key", "add algorithm=rsa"]);
    assert_config(try_open(&format!("{}&algorithm=rsa", at(port, id))), &["leave algorithm=rsa away"]);
    let signs = create_key(port, json!({"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}));
    let signs = signs.rsplit('/').next().unwrap();
    assert_config(try_open(&format!("{}&algorithm=rsa", at(port, signs))), &["SIGN_VERIFY, not for encryption"]);
}

#[test]
fn key_states_on_ministack() {
    in_own_process(
        "aws::key_states_on_ministack",
        || {
            let dir = scratch();
            let server = ministack(dir.path())?;
            let environment = environment(dir.path(), &[("PORT", server.port.to_string())]);
            Some(((server, dir), environment))
        },
        key_states,
    );
}

#[cfg(feature = "kms")]
#[test]
fn key_states_on_our_own() {
    on_own("aws::key_states_on_our_own", key_states);
}

fn key_states() {
    let port: u16 = var("PORT").parse().unwrap();
    let (key, rsa) = (create_key(port, json!({})), rsa_key(port));
    let rsa_uri = format!("{}&algorithm=rsa", at(port, &rsa));
    // ministack 1.5 encrypts with a keystream and no tag: an altered blob opens, to another key. Its RSA is real.
    let gaps = Gaps { tamper: own_root().is_none(), ..Gaps::default() };
    contract::holds(&|| open(&at(port, &key)), gaps);
    contract::holds(&|| open(&rsa_uri), Gaps::default());
    contract::keys_are_apart(&*open(&rsa_uri), &*open(&format!("{}&algorithm=rsa", at(port, &rsa_key(port)))));
    assert!(open(&rsa_uri).rewrap(&[1; 256], &branch(1)).unwrap().is_none());
    // An ARN asks nobody, so that it is an RSA key comes out at the first use.
    assert_config(open(&at(port, &rsa)).generate(&branch(1)), &["needs algorithm=rsa"]);

    for uri in [at(port, &key), rsa_uri] {
        let cmk = open(&uri);
        let (secret, blob) = cmk.generate(&branch(1)).unwrap();
        let steps = [
            (CmkState::Disabled, "DisabledException", vec!["DisableKey"], vec!["EnableKey"]),
            (
                CmkState::PendingDeletion,
                "pending deletion",
                vec!["ScheduleKeyDeletion"],
                vec!["CancelKeyDeletion", "EnableKey"],
            ),
        ];
        for (state, word, break_it, heal_it) in steps {
            for action in break_it {
                admin(port, action, json!({"KeyId": cmk.key_ref().key}));
            }
            assert_eq!(cmk.describe().unwrap().state, state);
            assert_refused(cmk.unwrap(&blob, &branch(1)), &[word, "enable"], "unwrap");
            assert_refused(cmk.generate(&branch(1)), &[word], "generate");
            assert_refused(cmk.wrap(&Secret32::random(), &branch(1)), &[word], "wrap");
            for action in heal_it {
                admin(port, action, json!({"KeyId": cmk.key_ref().key}));
            }
            assert_eq!(cmk.describe().unwrap().state, CmkState::Enabled);
            assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose(), "healed");
        }
    }
}

/// One IAM call to moto.
fn iam(port: u16, parameters: &str) -> String {
    let headers = "Content-Type: application/x-www-form-urlencoded\r\nAuthorization: AWS4-HMAC-SHA256 \
                   Credential=admin/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0\r\n";
    let body = format!("Version=2010-05-08&{parameters}");
    let (status, answer) = http(port, "POST /", headers, body.as_bytes()).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert_eq!(status, 200, "{parameters}: {answer}");
    answer
}
fn element(xml: &str, name: &str) -> String {
    xml.split_once(&format!("<{name}>")).unwrap().1.split_once("</").unwrap().0.to_string()
}
/// Percent-encoding of everything, for a form.
fn form(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}
/// One verb of `envelopefs kms` on the service of this process.
fn verb(verb: &[&str], rest: &[&str]) -> Value {
    own::verb(Path::new(&var("OWN_DATA")), verb, rest)
}
fn pair(answer: &Value) -> (String, String) {
    let field = |name: &str| answer[name].as_str().unwrap().to_string();
    (field("AccessKeyId"), field("SecretAccessKey"))
}

/// A user who may do `actions` on KMS: access key id and secret.
fn user(port: u16, name: &str, actions: &[&str]) -> (String, String) {
    if own_root().is_some() {
        let made = pair(&verb(&["user", "add"], &[name]));
        own::allow(Path::new(&var("OWN_DATA")), name, actions);
        return made;
    }
    iam(port, &format!("Action=CreateUser&UserName={name}"));
    let policy = json!({"Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]});
    let policy = form(&policy.to_string());
    iam(port, &format!("Action=PutUserPolicy&UserName={name}&PolicyName=p&PolicyDocument={policy}"));
    let keys = iam(port, &format!("Action=CreateAccessKey&UserName={name}"));
    (element(&keys, "AccessKeyId"), element(&keys, "SecretAccessKey"))
}

#[test]
fn credentials_are_judged_by_the_service() {
    in_own_process(
        "aws::credentials_are_judged_by_the_service",
        || {
            let dir = scratch();
            let server = moto(dir.path(), &[])?;
            let file = dir.path().join("credentials").to_str().unwrap().to_string();
            let environment = environment(
                dir.path(),
                &[
                    ("PORT", server.port.to_string()),
                    ("AWS_SHARED_CREDENTIALS_FILE", file),
                    ("AWS_ACCESS_KEY_ID", String::new()),
                    ("AWS_SECRET_ACCESS_KEY", String::new()),
                ],
            );
            Some(((server, dir), environment))
        },
        credentials,
    );
}

#[cfg(feature = "kms")]
#[test]
fn own_judges_credentials() {
    in_own_process(
        "aws::own_judges_credentials",
        || {
            let dir = scratch();
            let file = dir.path().join("credentials").to_str().unwrap().to_string();
            let settings = [
                ("AWS_SHARED_CREDENTIALS_FILE", file),
                ("AWS_ACCESS_KEY_ID", String::new()),
                ("AWS_SECRET_ACCESS_KEY", String::new()),
            ];
            let (server, environment) = own(dir.path(), &settings);
            Some(((server, dir), environment))
        },
        credentials,
    );
}

fn credentials() {
    let port: u16 = var("PORT").parse().unwrap();
    // So many further requests need no credentials.
    let reset = |count: &[u8]| {
        assert!(own_root().is_some() || http(port, "POST /moto-api/reset-auth", "", count).unwrap().0 == 200);
    };
    let key = create_key(port, json!({}));
    let good = user(port, "good", &["kms:*"]);
    let reader = user(port, "reader", &["kms:DescribeKey"]);
    reset(b"0");

    let file = var("AWS_SHARED_CREDENTIALS_FILE");
    let login = |(id, secret): (&str, &str), more: &str| {
        std::fs::write(&file, format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\n{more}"))
            .unwrap();
    };
    let good = (good.0.as_str(), good.1.as_str());
    login(good, "");
    let cmk = open(&at(port, &key));
    let (secret, blob) = cmk.generate(&branch(1)).unwrap();

    let unknown = ("AKIAAAAAAAAAAAAAAAAA", SECRET);
    login(unknown, "");
    let fresh = open(&at(port, &key));
    assert_refused(fresh.unwrap(&blob, &branch(1)), &["check the AWS credentials"], "unknown access key");
    login((good.0, SECRET), "");
    let wrong = open(&at(port, &key)).unwrap(&blob, &branch(1));
    assert_refused(wrong, &["Signature", "check the AWS secret access key"], "bad signature");
    login(good, "aws_session_token=made-up-token\n");
    let made_up = open(&at(port, &key)).unwrap(&blob, &branch(1));
    let text = reason(made_up);
    assert!(!text.contains("made-up-token") && !text.contains(good.1), "{text}");

    login((&reader.0, &reader.1), "");
    let denied = open(&at(port, &key));
    assert_eq!(denied.describe().unwrap().state, CmkState::Enabled);
    assert_refused(denied.unwrap(&blob, &branch(1)), &["AccessDenied", "grant kms:Decrypt"], "denied");
    assert_refused(denied.generate(&branch(1)), &["grant kms:GenerateDataKey"], "denied");
    let wrap = denied.wrap(&secret, &branch(1));
    assert_refused(wrap, &["grant kms:Encrypt"], "denied");
    assert_refused(denied.rewrap(&blob, &branch(1)), &["grant kms:ReEncrypt"], "denied");

    // Credentials that were rotated in their file are taken from there, without opening anew.
    login(good, "");
    assert_eq!(fresh.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose());
    login(unknown, "");
    assert_eq!(fresh.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose(), "kept for a while");

    // A secret that was rotated by the book: the old one is deleted, the new one stands in the file already.
    reset(b"100");
    let old = user(port, "rotated", &["kms:*"]);
    let new = if own_root().is_some() {
        pair(&verb(&["user", "rotate"], &["--keep-old", "rotated"]))
    } else {
        let keys = iam(port, "Action=CreateAccessKey&UserName=rotated");
        (element(&keys, "AccessKeyId"), element(&keys, "SecretAccessKey"))
    };
    reset(b"0");
    login((&old.0, &old.1), "");
    let rotated = open(&at(port, &key));
    assert_eq!(rotated.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose());
    reset(b"100");
    if own_root().is_some() {
        own::quiet_verb(Path::new(&var("OWN_DATA")), &["user", "disable"], &["rotated", "--access-key", &old.0]);
    } else {
        iam(port, &format!("Action=DeleteAccessKey&UserName=rotated&AccessKeyId={}", old.0));
    }
    reset(b"0");
    login((&new.0, &new.1), "");
    assert_eq!(rotated.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose(), "the same call looks again");

    // Expired, and nothing newer here: the service's word stands. Nothing here at all, later: an outage that heals.
    login(good, "");
    let front = FaultServer::start(Behaviour::Forward(port));
    let cmk = open(&at(front.port, &key));
    cmk.unwrap(&blob, &branch(1)).unwrap();
    std::fs::remove_file(&file).unwrap();
    front.set(Behaviour::Reply(400, "", br#"{"__type":"ExpiredTokenException"}"#.to_vec()));
    // The kept connection was cut, which the first request may be the one to find out.
    for _ in 0..2 {
        let _ = cmk.unwrap(&blob, &branch(1)).map(|_| panic!("expired credentials worked"));
    }
    front.set(Behaviour::Forward(port));
    assert_unreachable(cmk.unwrap(&blob, &branch(1)), "credentials have gone");
    login(good, "");
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose(), "and are back");

    // A profile in the URI is the only source.
    std::fs::write(
        &file,
        format!(
            "[app]\naws_access_key_id={}\naws_secret_access_key={}\n[default]\naws_access_key_id=x\n\
                     aws_secret_access_key=y\n",
            good.0, good.1
        ),
    )
    .unwrap();
    let app = open(&format!("{}&profile=app", at(port, &key)));
    assert_eq!(app.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose());
    let none = open(&format!("{}&profile=none", at(port, &key)));
    assert_config(none.unwrap(&blob, &branch(1)), &["none"]);
}

#[test]
fn slow_answers_count_and_outages_heal() {
    in_own_process(
        "aws::slow_answers_count_and_outages_heal",
        || {
            let dir = scratch();
            let server = moto(dir.path(), &[])?;
            let environment = environment(dir.path(), &[("PORT", server.port.to_string())]);
            Some(((server, dir), environment))
        },
        outages,
    );
}

#[cfg(feature = "kms")]
#[test]
fn outages_of_our_own_heal() {
    on_own("aws::outages_of_our_own_heal", outages);
}

fn outages() {
    let port: u16 = var("PORT").parse().unwrap();
    let key = create_key(port, json!({}));
    let front = FaultServer::start(Behaviour::Slow(port, Duration::from_millis(300)));
    let cmk = open(&at(front.port, &key));
    let (secret, blob) = cmk.generate(&branch(1)).unwrap();
    // A full ARN opened without asking anybody: the one request is the one that generated.
    assert_eq!(front.requests().len(), 1);
    for fault in [Behaviour::Close, Behaviour::Reply(500, "", Vec::new()), Behaviour::Hang] {
        front.set(fault);
        assert_unreachable(cmk.unwrap(&blob, &branch(1)), "outage");
        front.set(Behaviour::Forward(port));
        assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose(), "healed");
    }
}

#[test]
fn a_blob_of_another_key_does_not_look_like_a_revocation() {
    in_own_process(
        "aws::a_blob_of_another_key_does_not_look_like_a_revocation",
        || {
            let dir = scratch();
            let server = moto(dir.path(), &[])?;
            let environment = environment(dir.path(), &[("PORT", server.port.to_string())]);
            Some(((server, dir), environment))
        },
        foreign_blobs,
    );
}

#[cfg(feature = "kms")]
#[test]
fn a_foreign_blob_on_our_own_does_not_look_like_a_revocation() {
    on_own("aws::a_foreign_blob_on_our_own_does_not_look_like_a_revocation", foreign_blobs);
}

fn foreign_blobs() {
    let port: u16 = var("PORT").parse().unwrap();
    let key = create_key(port, json!({}));
    let front = FaultServer::start(Behaviour::Forward(port));
    let cmk = open(&at(front.port, &key));
    let (_, good) = cmk.generate(&branch(1)).unwrap();
    let (_, other) = cmk.generate(&branch(1)).unwrap();
    // As both make them: the id of a key in front. Of this one the service says "denied", as AWS does.
    let mut foreign = good.clone();
    match own_root() {
        // Behind the version.
        Some(_) => foreign[1..17].fill(0),
        None => foreign[..36].copy_from_slice(b"00000000-0000-0000-0000-000000000000"),
    }
    let result = cmk.unwrap(&foreign, &branch(1));
    let rewrapped = reason(cmk.rewrap(&foreign, &branch(1)));
    if own_root().is_some() {
        // Asked for one key, it says at once that the blob is another's, as AWS does where it knows that key.
        assert!(rewrapped.contains("IncorrectKeyException"), "{rewrapped}");
        contract::assert_bad_blob(result, "another key's blob");
        contract::assert_bad_blob(open(&at(port, &key)).unwrap(&foreign, &branch(1)), "no blob known");
    } else {
        assert!(rewrapped.contains("not a blob of this CMK"), "{rewrapped}");
        contract::assert_bad_blob(result, "another key's blob");
        // One that knows no good blob yet has nothing to compare with, and nothing to lose.
        assert_refused(open(&at(port, &key)).unwrap(&foreign, &branch(1)), &["AccessDenied"], "no blob known");
    }

    let denied = json!({"__type": "AccessDeniedException", "message": "no resource-based policy allows it"});
    front.set(Behaviour::Reply(400, "", denied.to_string().into_bytes()));
    // The kept connection was cut, which the first request may be the one to find out.
    let _ = cmk.describe();
    let before = front.requests().len();
    assert_refused(cmk.unwrap(&other, &branch(1)), &["grant kms:Decrypt"], "denied for every blob");
    assert_eq!(front.requests().len() - before, 2);
    assert_refused(cmk.unwrap(&good, &branch(1)), &["grant kms:Decrypt"], "the good one itself");
    assert_eq!(front.requests().len() - before, 3);
    assert_refused(cmk.rewrap(&other, &branch(1)), &["grant kms:ReEncrypt"], "rewrap");
}
