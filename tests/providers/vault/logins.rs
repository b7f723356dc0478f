//! Tokens that end, are renewed, rewritten, revoked, denied; AppRole; Kubernetes against a fake of its login only.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envelopefs::keys::{CmkProvider, KeyError};
use serde_json::{Value, json};

use super::super::contract::{assert_refused, assert_unreachable, branch};
use super::super::servers;
use super::bao::{Bao, open, write_secret};

fn works(cmk: &dyn CmkProvider, when: &str) {
    let (key, blob) = cmk.generate(&branch(1)).unwrap_or_else(|e| panic!("{when}: {e}"));
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose(), "{when}");
}

/// `what` within a generous time: the servers' clocks decide when exactly.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_documented_policy_is_enough_and_each_path_of_it_is_needed() {
    let Some(bao) = Bao::start() else { return };
    bao.write_policy("app", "");
    let file = bao.secret("app", &bao.token(json!({"policies": ["app"]})));
    let uri = bao.uri_with("app", &format!("token_file={}", file.display()));
    let cmk = open(&uri).unwrap();
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    cmk.wrap(&key, &branch(1)).unwrap();
    cmk.rewrap(&blob, &branch(1)).unwrap().unwrap();
    cmk.describe().unwrap();

    // A policy counts at once, on open tokens too.
    let denied = |path: &str| {
        ["permission denied", "the token is valid", "(app, default)"]
            .map(str::to_string)
            .into_iter()
            .chain([path.to_string()])
            .collect::<Vec<_>>()
    };
    let check = |without: &str, what: &dyn Fn() -> Result<(), KeyError>| {
        bao.write_policy("app", without);
        let words = denied(without);
        assert_refused(what(), &words.iter().map(String::as_str).collect::<Vec<_>>(), without);
        bao.write_policy("app", "");
        what().unwrap();
    };
    check("transit/datakey/plaintext/app", &|| cmk.generate(&branch(1)).map(drop));
    check("transit/encrypt/app", &|| cmk.wrap(&key, &branch(1)).map(drop));
    check("transit/decrypt/app", &|| cmk.unwrap(&blob, &branch(1)).map(drop));
    check("transit/rewrap/app", &|| cmk.rewrap(&blob, &branch(1)).map(drop));

    // May encrypt, but neither look nor decrypt: whether the key binds a context cannot be known.
    bao.must(
        "PUT",
        "sys/policies/acl/app",
        json!({"policy": "path \"transit/datakey/plaintext/app\" { capabilities = [\"update\"] }"}),
    );
    assert_refused(open(&uri), &["takes read on transit/keys/app", "update transit/decrypt/app"], "blind");
    bao.must("PUT", "sys/policies/acl/app", json!({"policy": "path \"transit/x\" { capabilities = [\"read\"] }"}));
    assert_refused(open(&uri), &["permission denied", "takes read on transit/keys/app"], "nothing allowed");
}

#[test]
fn a_rewritten_token_file_is_picked_up() {
    let Some(bao) = Bao::start() else { return };
    bao.write_policy("app", "");
    let fresh = || bao.token(json!({"policies": ["app"]}));
    let first = fresh();
    let file = bao.secret("app", &first);
    let cmk = open(&bao.uri_with("app", &format!("token_file={}", file.display()))).unwrap();
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    bao.must("POST", "auth/token/revoke", json!({ "token": first }));
    let words = ["permission denied", "expired or revoked", "write a new token to", file.to_str().unwrap()];
    assert_refused(cmk.unwrap(&blob, &branch(1)), &words, "revoked");
    std::fs::remove_file(&file).unwrap();
    assert_refused(cmk.unwrap(&blob, &branch(1)), &words, "revoked, and the file is gone");
    write_secret(&file, &format!("{}\n", fresh()));
    cmk.unwrap(&blob, &branch(1)).unwrap();
    // While nobody has written it yet, a mount may wait for it.
    std::fs::remove_file(&file).unwrap();
    assert_unreachable(open(&bao.uri_with("app", &format!("token_file={}", file.display()))), "no file yet");
    match open(&bao.uri_with("app", &format!("token_file={}", bao.secret("bad", "s.nonsense").display()))) {
        Err(KeyError::Refused { reason, .. }) => assert!(!reason.contains("s.nonsense"), "{reason}"),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_periodic_token_is_kept_alive() {
    let Some(bao) = Bao::start() else { return };
    bao.write_policy("app", "");
    let file = bao.secret("app", &bao.token(json!({"policies": ["app"], "period": "4s"})));
    let cmk = open(&bao.uri_with("app", &format!("token_file={}", file.display()))).unwrap();
    // More than two periods without a call: only a renewal can have kept it.
    std::thread::sleep(Duration::from_secs(9));
    works(&*cmk, "after two periods");
    drop(cmk);
    eventually("the token ends once nobody renews it", || bao.app_tokens().is_empty());
}

#[test]
fn approle_renews_and_logs_in_again_at_the_end() {
    let Some(bao) = Bao::start() else { return };
    let role_id = bao.enable_approle(json!({"token_policies": ["app"], "token_ttl": "4s"}));
    let secret = bao.secret("sid", &bao.secret_id());
    let uri = bao.uri_with("app", &format!("auth=approle&role_id={role_id}&secret_id_file={}", secret.display()));
    let cmk = open(&uri).unwrap();
    let first = bao.app_tokens();
    assert_eq!(first.len(), 1);
    std::thread::sleep(Duration::from_secs(9));
    works(&*cmk, "after more than two leases");
    assert_eq!(bao.app_tokens(), first, "it was renewed, not replaced");
    drop(cmk);

    // A token that cannot be renewed beyond 3 s is replaced.
    bao.must(
        "POST",
        "auth/approle/role/app",
        json!({"token_policies": ["app"], "token_ttl": "2s", "token_max_ttl": "3s"}),
    );
    let cmk = open(&uri).unwrap();
    eventually("the first token ends", || !bao.app_tokens().iter().any(|token| first.contains(token)));
    std::thread::sleep(Duration::from_secs(4));
    works(&*cmk, "after the maximum");
    drop(cmk);

    // Batch tokens cannot be renewed at all.
    bao.must(
        "POST",
        "auth/approle/role/app",
        json!({"token_policies": ["app"], "token_ttl": "2s", "token_type": "batch"}),
    );
    let cmk = open(&uri).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    works(&*cmk, "after the end of a batch token");
}

#[test]
fn approle_with_bad_ids_and_after_a_revocation() {
    let Some(bao) = Bao::start() else { return };
    let role_id = bao.enable_approle(json!({"token_policies": ["app"], "token_ttl": "1h"}));
    let secret = bao.secret("sid", &bao.secret_id());
    let ids = format!(
        "auth=approle&role_id_file={}&secret_id_file={}",
        bao.secret("rid", &role_id).display(),
        secret.display()
    );
    let cmk = open(&bao.uri_with("app", &ids)).unwrap();
    works(&*cmk, "logged in");

    // Revoked under its feet: one new login, whoever comes first.
    let revoke = || {
        // Logins follow each other no faster than once in a second.
        std::thread::sleep(Duration::from_millis(1100));
        for (accessor, _) in bao.app_tokens() {
            bao.must("POST", "auth/token/revoke-accessor", json!({ "accessor": accessor }));
        }
    };
    revoke();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| works(&*cmk, "revoked, eight at once"));
        }
    });
    assert_eq!(bao.app_tokens().len(), 1);

    // The secret id has expired when it is needed again.
    bao.must(
        "POST",
        "auth/approle/role/app/secret-id/destroy",
        json!({"secret_id": std::fs::read_to_string(&secret).unwrap()}),
    );
    works(&*cmk, "the token is still good");
    revoke();
    let words = ["approle login failed (HTTP 400)", "invalid", "secret_id_file="];
    assert_refused(cmk.generate(&branch(1)), &words, "an expired secret id");
    assert_refused(open(&bao.uri_with("app", &ids)), &words, "an expired secret id");
    write_secret(&secret, &bao.secret_id());
    works(&*cmk, "a new secret id");

    assert_refused(open(&bao.uri_with("app", "auth=approle&role_id=nobody")), &["login failed"], "no such role");
    assert_refused(open(&bao.uri_with("app", &format!("{ids}&auth_mount=other"))), &["login failed"], "no such mount");
    let gone = format!("auth=approle&role_id={role_id}&secret_id_file=/nonexistent/sid");
    assert_unreachable(open(&bao.uri_with("app", &gone)), "no secret id file yet");
}

/// Forwards to a server, but answers `auth/kubernetes/login` itself: no Kubernetes stands behind the server here that could
/// review a pod's token. The tokens that it hands out are real ones of that server.
struct KubernetesLogin {
    port: u16,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl KubernetesLogin {
    fn start(bao: &Bao, ttl: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Value>>>::default();
        let (behind, ttl, log) = (bao.port, ttl.to_string(), seen.clone());
        // Ends with the test process; it holds nothing but this port.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (ttl, log) = (ttl.clone(), log.clone());
                std::thread::spawn(move || serve(stream, behind, &ttl, &log));
            }
        });
        Self { port, seen }
    }
}

fn serve(mut stream: TcpStream, behind: u16, ttl: &str, seen: &Mutex<Vec<Value>>) -> Option<()> {
    let (head, body) = read_request(&mut stream)?;
    let (request, headers) = head.split_once(" HTTP/1.1\r\n")?;
    let (status, answer) = if request == "POST /v1/auth/kubernetes/login" {
        let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
        seen.lock().unwrap().push(sent.clone());
        match (sent["role"].as_str(), sent["jwt"].as_str()) {
            (Some("app"), Some("pod-token")) => {
                let wanted = json!({"policies": ["app"], "ttl": ttl}).to_string();
                let create = "POST /v1/auth/token/create";
                servers::http(behind, create, "X-Vault-Token: root\r\n", wanted.as_bytes()).ok()?
            }
            (Some("app"), _) => (403, br#"{"errors":["permission denied"]}"#.to_vec()),
            _ => (400, br#"{"errors":["invalid role name \"nobody\""]}"#.to_vec()),
        }
    } else {
        let kept: String =
            headers.split_inclusive("\r\n").filter(|line| line.to_ascii_lowercase().starts_with("x-vault-")).collect();
        servers::http(behind, request, &kept, &body).ok()?
    };
    write!(stream, "HTTP/1.1 {status} Answer\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", answer.len()).ok()?;
    stream.write_all(&answer).ok()?;
    stream.shutdown(Shutdown::Both).ok()
}

fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length =
        head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

#[test]
fn kubernetes_logs_in_with_the_pods_token() {
    let Some(bao) = Bao::start() else { return };
    bao.write_policy("app", "");
    let front = KubernetesLogin::start(&bao, "4s");
    let pod = bao.secret("pod", "pod-token\n");
    let uri = |role: &str| {
        format!(
            "hashivault://transit/app?address=http://127.0.0.1:{}&auth=kubernetes&role={role}&jwt_file={}",
            front.port,
            pod.display()
        )
    };
    let cmk = open(&uri("app")).unwrap();
    works(&*cmk, "logged in");
    assert_eq!(*front.seen.lock().unwrap(), [json!({"role": "app", "jwt": "pod-token"})]);
    std::thread::sleep(Duration::from_secs(9));
    works(&*cmk, "after two leases");
    assert_eq!(front.seen.lock().unwrap().len(), 1, "it was renewed");

    assert_refused(open(&uri("nobody")), &["kubernetes login failed (HTTP 400)", "invalid role"], "role");
    write_secret(&pod, "stolen");
    assert_refused(open(&uri("app")), &["kubernetes login failed (HTTP 403)"], "token");
    // The cluster rotates the pod's token in its file; the next login reads it anew.
    for (accessor, _) in bao.app_tokens() {
        bao.must("POST", "auth/token/revoke-accessor", json!({ "accessor": accessor }));
    }
    assert_refused(cmk.generate(&branch(1)), &["kubernetes login failed"], "a token that does not count any more");
    write_secret(&pod, "pod-token");
    works(&*cmk, "with the new token of the pod");
}

#[test]
fn an_agent_that_adds_the_token_needs_none() {
    let Some(bao) = Bao::start() else { return };
    // Nobody adds one here, and the server says so.
    assert_refused(open(&bao.uri_with("app", "auth=none")), &["permission denied", "the agent at"], "no token");
}
