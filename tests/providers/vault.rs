//! The contract on Vault's Transit, kept by a real OpenBao; `vault/` has the logins and the outages.

mod bao;
mod logins;
mod outages;

use envelopefs::keys::{CmkState, KeyError};
use serde_json::json;

use super::contract::{self, Gaps, assert_bad_blob, assert_refused, assert_unreachable, branch};
use super::servers::in_own_process;
use bao::{Bao, open};

fn config_error(uri: &str) -> String {
    match open(uri) {
        Err(KeyError::Config(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{uri} opened"),
    }
}

#[test]
fn transit_keeps_the_contract() {
    let Some(bao) = Bao::start() else { return };
    bao.create_key("other");
    bao.must("POST", "transit/keys/cha", json!({"derived": true, "type": "chacha20-poly1305"}));
    contract::holds(&|| open(&bao.uri("app")).unwrap(), Gaps::default());
    contract::holds(&|| open(&bao.uri("cha")).unwrap(), Gaps::default());
    contract::keys_are_apart(&*open(&bao.uri("app")).unwrap(), &*open(&bao.uri("other")).unwrap());

    let cmk = open(&bao.uri("app")).unwrap();
    assert_eq!((cmk.key_ref().provider.as_str(), cmk.key_ref().key.as_str()), ("hashivault", "transit/app"));
    let info = cmk.describe().unwrap();
    assert!(info.description.contains("aes256-gcm96") && info.created.is_some_and(|at| at > 1_600_000_000), "{info:?}");
    let labelled = open(&format!("{}&label=eu-1", bao.uri("app"))).unwrap();
    assert_eq!(labelled.key_ref().key, "transit/app@eu-1");

    // The trailing bits of base64 that a lenient decoder ignores are no second form of a blob.
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    let text = String::from_utf8(blob).unwrap();
    assert_bad_blob(cmk.unwrap(text.replace("vault:v1:", "vault:v01:").as_bytes(), &branch(1)), "another number");
    assert_bad_blob(cmk.unwrap(text.replace("vault:v1:", "vault:v2:").as_bytes(), &branch(1)), "a version to come");

    // 16 bytes wrapped by somebody else are no key.
    let context = data_encoding::BASE64.encode(&branch(1).canonical_bytes());
    let plaintext = data_encoding::BASE64.encode(&[1; 16]);
    let short = bao.must("POST", "transit/encrypt/app", json!({ "plaintext": plaintext, "context": context }));
    let short = short["data"]["ciphertext"].as_str().unwrap();
    assert_bad_blob(cmk.unwrap(short.as_bytes(), &branch(1)), "16 bytes");
}

#[test]
fn rotation_rewrap_and_retired_versions() {
    let Some(bao) = Bao::start() else { return };
    let cmk = open(&bao.uri("app")).unwrap();
    let (key, old) = cmk.generate(&branch(1)).unwrap();
    bao.must("POST", "transit/keys/app/rotate", json!({}));
    assert!(cmk.generate(&branch(1)).unwrap().1.starts_with(b"vault:v2:"));
    assert_eq!(cmk.unwrap(&old, &branch(1)).unwrap().expose(), key.expose());
    let new = cmk.rewrap(&old, &branch(1)).unwrap().unwrap();
    assert!(old.starts_with(b"vault:v1:") && new.starts_with(b"vault:v2:"));
    match cmk.rewrap(&old, &branch(2)) {
        Err(KeyError::BadBlob { .. }) => {}
        other => panic!("rewrapped under another context: {other:?}"),
    }

    bao.must("POST", "transit/keys/app/config", json!({"min_decryption_version": 2}));
    assert_refused(cmk.unwrap(&old, &branch(1)), &["too old", "min_decryption_version"], "a retired version");
    assert_refused(cmk.rewrap(&old, &branch(1)), &["too old", "min_decryption_version"], "a retired version");
    assert_eq!(cmk.unwrap(&new, &branch(1)).unwrap().expose(), key.expose());
    assert!(cmk.describe().unwrap().description.contains("version 2, opens from version 2"));
    bao.must("POST", "transit/keys/app/config", json!({"min_decryption_version": 1}));
    assert_eq!(cmk.unwrap(&old, &branch(1)).unwrap().expose(), key.expose());
}

#[test]
fn soft_deleted_deleted_and_unknown_keys() {
    let Some(bao) = Bao::start() else { return };
    let cmk = open(&bao.uri("app")).unwrap();
    let (key, blob) = cmk.generate(&branch(1)).unwrap();

    bao.must("DELETE", "transit/keys/app/soft-delete", json!({}));
    let words = ["soft-deleted", "soft-delete-restore"];
    assert_refused(cmk.unwrap(&blob, &branch(1)), &words, "unwrap");
    assert_refused(cmk.generate(&branch(1)), &words, "generate");
    assert_refused(cmk.wrap(&key, &branch(1)), &words, "wrap");
    assert_refused(cmk.rewrap(&blob, &branch(1)), &words, "rewrap");
    assert_eq!(cmk.describe().unwrap().state, CmkState::Disabled);
    // It opens, and refuses every use, so that a mount finds out by use as with any other state.
    assert_refused(open(&bao.uri("app")).unwrap().unwrap(&blob, &branch(1)), &words, "opened anew");
    bao.must("POST", "transit/keys/app/soft-delete-restore", json!({}));
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());

    bao.must("POST", "transit/keys/app/config", json!({"deletion_allowed": true}));
    bao.must("DELETE", "transit/keys/app", json!({}));
    assert_refused(cmk.unwrap(&blob, &branch(1)), &["encryption key not found"], "unwrap");
    assert_refused(cmk.generate(&branch(1)), &["encryption key not found"], "generate");
    assert_refused(cmk.describe(), &["no key app", "derived=true"], "describe");
    // A root token may create keys by encrypting; this must not.
    assert_refused(cmk.wrap(&key, &branch(1)), &["no key app"], "wrap");
    assert_eq!(bao.call("GET", "transit/keys/app", &json!({})).0, 404, "the key was created anew");
    assert_refused(
        open(&bao.uri("app")),
        &["no key app", "bao write -f transit/keys/app derived=true type=aes256-gcm96"],
        "open",
    );
    assert_refused(open(&bao.uri("app").replace("//transit/", "//elsewhere/")), &["secrets enable"], "no such mount");
    assert_refused(open(&bao.uri("app").replace("//transit/", "//secret/")), &[], "not a Transit engine");
}

#[test]
fn keys_that_do_not_bind_a_context_are_refused() {
    let Some(bao) = Bao::start() else { return };
    bao.must("POST", "transit/keys/plain", json!({"type": "aes256-gcm96"}));
    bao.must(
        "POST",
        "transit/keys/same",
        json!({"type": "aes256-gcm96", "derived": true, "convergent_encryption": true}),
    );
    bao.must("POST", "transit/keys/rsa", json!({"type": "rsa-2048"}));
    let command = "bao write -f transit/keys/plain-derived derived=true type=aes256-gcm96";
    let why = config_error(&bao.uri("plain"));
    assert!(why.contains("not derived") && why.contains(command), "{why}");
    assert!(config_error(&bao.uri("same")).contains("convergently"));
    assert!(config_error(&bao.uri("rsa")).contains("rsa-2048"));

    // Without the right to read the key's properties its behaviour tells.
    let policy = ["plain", "app"].map(|key| {
        format!(
            "path \"transit/datakey/plaintext/{key}\" {{ capabilities = [\"update\"] }}\n\
             path \"transit/decrypt/{key}\" {{ capabilities = [\"update\"] }}\n\
             path \"transit/encrypt/{key}\" {{ capabilities = [\"update\"] }}\n"
        )
    });
    bao.must("PUT", "sys/policies/acl/blind", json!({ "policy": policy.concat() }));
    let token = bao.secret("blind", &bao.token(json!({"policies": ["blind"]})));
    let blind = |key| bao.uri_with(key, &format!("token_file={}", token.display()));
    let why = config_error(&blind("plain"));
    assert!(why.contains("not derived") && why.contains(command), "{why}");
    let cmk = open(&blind("app")).unwrap();
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    cmk.wrap(&key, &branch(2)).unwrap();
    assert_refused(cmk.rewrap(&blob, &branch(1)), &["permission denied", "update transit/rewrap/app"], "rewrap");
    let info = cmk.describe().unwrap();
    assert!(info.state == CmkState::Enabled && info.description.contains("may not be read"), "{info:?}");
    bao.must("DELETE", "transit/keys/app/soft-delete", json!({}));
    assert_refused(cmk.describe(), &["soft-deleted"], "describe");
}

#[test]
fn a_private_certification_authority() {
    let Some(bao) = Bao::start_tls() else { return };
    let ca = bao.ca();
    let with = |more: &str| format!("{}{more}", bao.uri("app"));
    contract::holds(&|| open(&with(&format!("&ca={}", ca.display()))).unwrap(), Gaps::default());
    let directory = bao.dir.path().join("cas");
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(&ca, directory.join("one.pem")).unwrap();
    open(&with(&format!("&ca={}", directory.display()))).unwrap();

    // The system knows nothing of it; nor does its certificate name every host.
    match open(&with("")) {
        Err(KeyError::Unreachable { reason, .. }) => assert!(reason.contains("ca=/PATH"), "{reason}"),
        other => panic!("{:?}", other.err()),
    }
    assert_unreachable(open(&with(&format!("&ca={}&tls_server_name=vault.example", ca.display()))), "another name");
    open(&with(&format!("&ca={}&tls_server_name=localhost", ca.display()))).unwrap();
    assert!(config_error(&with("&ca=/nonexistent/ca.pem")).contains("/nonexistent/ca.pem"));
    let empty = bao.secret("empty", "no certificate\n");
    assert!(config_error(&with(&format!("&ca={}", empty.display()))).contains("no certificate in it"));
    assert_unreachable(open(&with(&format!("&ca={}", ca.display())).replace("https:", "http:")), "plain HTTP to TLS");
}

#[test]
fn a_server_that_asks_for_a_certificate() {
    // One server is the certification authority of the other's clients.
    let Some(authority) = Bao::start() else { return };
    authority.command(&["secrets", "enable", "pki"]).unwrap();
    authority.command(&["write", "pki/root/generate/internal", "common_name=test", "ttl=24h"]).unwrap();
    authority.command(&["write", "pki/roles/any", "allow_any_name=true", "enforce_hostnames=false", "ttl=1h"]).unwrap();
    let issue = |name: &str| {
        let common = format!("common_name={name}");
        let answer = authority.command(&["write", "pki/issue/any", &common, "ip_sans=127.0.0.1"]).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        ["certificate", "private_key", "issuing_ca"].map(|field| {
            authority.secret(&format!("{name}-{field}"), answer["data"][field].as_str().unwrap()).display().to_string()
        })
    };
    let ([cert, key, ca], [client_cert, client_key, _]) = (issue("localhost"), issue("client"));
    let port = super::servers::free_port();
    let bao = Bao::start_on_disk_with(&format!(
        "listener \"tcp\" {{ address = \"127.0.0.1:{port}\"\n tls_cert_file = \"{cert}\"\n tls_key_file = \"{key}\"\n \
         tls_client_ca_file = \"{ca}\"\n tls_require_and_verify_client_cert = true }}\n"
    ))
    .unwrap();
    let uri = |more: &str| {
        let token = bao.secret("root", &bao.root);
        let address = format!("https://127.0.0.1:{port}&ca={ca}");
        format!("hashivault://transit/app?address={address}&token_file={}{more}", token.display())
    };
    let with = uri(&format!("&client_cert={client_cert}&client_key={client_key}"));
    open(&with).unwrap().generate(&branch(1)).unwrap();
    assert_unreachable(open(&uri("")), "no certificate");
    assert!(
        config_error(&uri(&format!("&client_cert={client_cert}&client_key={client_cert}"))).contains("no private key")
    );
    assert!(config_error(&uri(&format!("&client_cert={client_cert}&client_key={key}"))).contains("client certificate"));
}

#[test]
fn the_namespace_decides_which_key() {
    let Some(bao) = Bao::start() else { return };
    bao.must("POST", "sys/namespaces/team", json!({}));
    let inside = |method, path, body| {
        let (status, answer) = bao.call_as("root", "team", method, path, &body).unwrap();
        assert!((200..300).contains(&status), "{path}: {answer}");
    };
    inside("POST", "sys/mounts/kms/transit", json!({"type": "transit"}));
    inside("POST", "kms/transit/keys/app", json!({"derived": true}));
    let uri = |more: &str| {
        format!(
            "hashivault://kms/transit/app?address={}&token_file={}{more}",
            bao.address(),
            bao.secret("t", "root").display()
        )
    };
    let cmk = open(&uri("&namespace=team")).unwrap();
    assert_eq!(cmk.key_ref().key, "kms/transit/app");
    contract::holds(&|| open(&uri("&namespace=team")).unwrap(), Gaps::default());
    assert_refused(open(&uri("")), &["nothing is mounted"], "the root namespace");
    assert_refused(open(&uri("&namespace=nope")), &["namespace"], "no such namespace");
}

#[test]
fn the_environment_of_the_command_line_is_understood() {
    in_own_process(
        "vault::the_environment_of_the_command_line_is_understood",
        || {
            let bao = Bao::start_tls()?;
            let environment = vec![
                ("VAULT_ADDR".into(), bao.address()),
                ("VAULT_TOKEN".into(), "root".into()),
                ("VAULT_CACERT".into(), bao.ca().display().to_string()),
                ("VAULT_SKIP_VERIFY".into(), "true".into()),
                ("HOME".into(), bao.dir.path().display().to_string()),
            ];
            Some((bao, environment))
        },
        || {
            let cmk = open("hashivault://transit/app").unwrap();
            let (key, blob) = cmk.generate(&branch(1)).unwrap();
            assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
            // What is recorded goes on meaning this server.
            let uri = envelopefs::keys::uri::CmkUri::parse("hashivault://transit/app").unwrap();
            let address = std::env::var("VAULT_ADDR").unwrap();
            assert_eq!(uri.pinned(cmk.key_ref()).to_string(), format!("hashivault://transit/app?address={address}"));
        },
    );
}

#[test]
fn unverified_servers_stay_unverified() {
    in_own_process(
        "vault::unverified_servers_stay_unverified",
        || {
            let bao = Bao::start_tls()?;
            let environment = vec![
                ("BAO_ADDR".into(), bao.address()),
                ("BAO_TOKEN".into(), "root".into()),
                ("VAULT_SKIP_VERIFY".into(), "1".into()),
            ];
            Some((bao, environment))
        },
        || assert_unreachable(open("hashivault://transit/app"), "VAULT_SKIP_VERIFY"),
    );
}

#[test]
fn a_proxy_from_the_environment() {
    use super::fault::{Behaviour, FaultServer};
    in_own_process(
        "vault::a_proxy_from_the_environment",
        || {
            let bao = Bao::start_tls()?;
            let proxy = FaultServer::start(Behaviour::Proxy(bao.port));
            let environment = vec![
                ("HTTPS_PROXY".into(), format!("http://127.0.0.1:{}", proxy.port)),
                ("NO_PROXY".into(), "direct.invalid".into()),
                ("VAULT_TOKEN".into(), "root".into()),
                ("VAULT_CACERT".into(), bao.ca().display().to_string()),
                ("DIRECT".into(), bao.address()),
            ];
            Some(((bao, proxy), environment))
        },
        || {
            // Only the proxy knows where that is.
            let far = "hashivault://transit/app?address=https://vault.invalid:8200&tls_server_name=localhost";
            open(far).unwrap().generate(&branch(1)).unwrap();
            assert_unreachable(open(&far.replace("vault.invalid", "direct.invalid")), "NO_PROXY");
            // This host itself is never asked through it, and is reached.
            open(&format!("hashivault://transit/app?address={}", std::env::var("DIRECT").unwrap())).unwrap();
        },
    );
}

#[test]
fn without_address_or_token_the_error_says_what_to_set() {
    in_own_process(
        "vault::without_address_or_token_the_error_says_what_to_set",
        || Some(((), vec![])),
        || {
            assert!(config_error("hashivault://transit/app").contains("VAULT_ADDR"));
            let why = config_error("hashivault://transit/app?address=http://127.0.0.1:1");
            assert!(why.contains("VAULT_TOKEN") && why.contains("token_file="), "{why}");
            let why = config_error("hashivault://t/k?address=http://127.0.0.1:1&token_file=$CREDENTIALS_DIRECTORY/t");
            assert!(why.contains("LoadCredential="), "{why}");
        },
    );
}

#[test]
fn the_token_of_a_login_is_found() {
    in_own_process(
        "vault::the_token_of_a_login_is_found",
        || {
            let bao = Bao::start()?;
            bao::write_secret(&bao.dir.path().join(".vault-token"), "root");
            let home = bao.dir.path().display().to_string();
            let environment = vec![("VAULT_ADDR".into(), bao.address()), ("HOME".into(), home)];
            Some((bao, environment))
        },
        || drop(open("hashivault://transit/app").unwrap().generate(&branch(1)).unwrap()),
    );
}

#[test]
fn the_environments_token_goes_before_that_of_a_login() {
    in_own_process(
        "vault::the_environments_token_goes_before_that_of_a_login",
        || {
            let bao = Bao::start()?;
            bao::write_secret(&bao.dir.path().join(".vault-token"), "root");
            let environment = vec![
                ("VAULT_ADDR".into(), bao.address()),
                ("HOME".into(), bao.dir.path().display().to_string()),
                ("VAULT_TOKEN".into(), "s.wrong".into()),
            ];
            Some((bao, environment))
        },
        || assert_refused(open("hashivault://transit/app"), &["permission denied"], "VAULT_TOKEN"),
    );
}

/// Everything that any library logs at the most talkative level that can be set.
#[derive(Default)]
struct Lines(std::sync::Mutex<String>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push_str(&format!("{}: {}\n", record.target(), record.args()));
    }
    fn flush(&self) {}
}

#[test]
fn no_secret_is_in_any_log_line_or_error() {
    in_own_process(
        "vault::no_secret_is_in_any_log_line_or_error",
        || {
            let bao = Bao::start()?;
            let role_id = bao.enable_approle(json!({"token_policies": ["app"], "token_ttl": "2s"}));
            let secret_id = bao.secret_id();
            let login =
                format!("auth=approle&role_id={role_id}&secret_id_file={}", bao.secret("sid", &secret_id).display());
            let environment = vec![("URI".into(), bao.uri_with("app", &login)), ("SECRET_ID".into(), secret_id)];
            Some((bao, environment))
        },
        || {
            let lines: &Lines = Box::leak(Box::default());
            log::set_logger(lines).unwrap();
            log::set_max_level(log::LevelFilter::Debug);
            let (uri, secret_id) = (std::env::var("URI").unwrap(), std::env::var("SECRET_ID").unwrap());
            let cmk = open(&uri).unwrap();
            let (key, blob) = cmk.generate(&branch(1)).unwrap();
            cmk.wrap(&key, &branch(1)).unwrap();
            cmk.unwrap(&blob, &branch(1)).unwrap();
            std::thread::sleep(std::time::Duration::from_secs(2));
            let error = cmk.unwrap(&blob, &branch(2)).unwrap_err();
            let refused = open(&uri.replace("role_id=", "role_id=x")).err().unwrap();
            let all = format!("{}{error:?}{error}{refused:?}{refused}{uri:?}", lines.0.lock().unwrap());
            assert!(all.contains("ureq"), "nothing was logged at all");
            for secret in [secret_id, data_encoding::BASE64.encode(key.expose()), "s.".into()] {
                // Tokens of this server begin with `s.`; a word with that in it would be one.
                let found = all.split(|c: char| !(c.is_ascii_graphic())).find(|word| match secret.as_str() {
                    "s." => word.len() > 20 && word.trim_matches('"').starts_with("s."),
                    _ => word.contains(&secret),
                });
                assert_eq!(found, None);
            }
        },
    );
}
