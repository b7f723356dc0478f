//! Servers that are sealed, killed, restarted, slow, hanging, or talk nonsense.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envelopefs::keys::{CmkProvider, KeyError};
use serde_json::json;

use super::super::contract::{assert_refused, assert_unreachable, branch};
use super::super::fault::{Behaviour, FaultServer};
use super::bao::{Bao, open, open_within, write_secret};

#[test]
fn sealed_is_unreachable_and_heals() {
    let Some(bao) = Bao::start() else { return };
    let cmk = open(&bao.uri("app")).unwrap();
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    let unseal = bao.unseal_key();
    bao.must("PUT", "sys/seal", json!({}));
    let sealed = |result: Result<(), KeyError>| match result {
        Err(KeyError::Unreachable { reason, .. }) => assert!(reason.contains("sealed"), "{reason}"),
        other => panic!("{other:?}"),
    };
    sealed(cmk.unwrap(&blob, &branch(1)).map(drop));
    sealed(cmk.generate(&branch(1)).map(drop));
    sealed(cmk.describe().map(drop));
    sealed(open(&bao.uri("app")).map(drop));
    bao.must("PUT", "sys/unseal", json!({ "key": unseal }));
    let start = Instant::now();
    while let Err(e) = cmk.unwrap(&blob, &branch(1)) {
        assert!(matches!(e, KeyError::Unreachable { .. }), "{e}");
        assert!(start.elapsed() < Duration::from_secs(30), "{e}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn killed_and_restarted() {
    let Some(mut bao) = Bao::start_on_disk() else { return };
    let role_id = bao.enable_approle(json!({"token_policies": ["app"], "token_ttl": "1h"}));
    let secret = bao.secret("sid", &bao.secret_id());
    let login = bao.uri_with("app", &format!("auth=approle&role_id={role_id}&secret_id_file={}", secret.display()));
    let cmks = [open(&bao.uri("app")).unwrap(), open(&login).unwrap()];
    let (key, blob) = cmks[0].generate(&branch(1)).unwrap();
    bao.kill();
    for cmk in &cmks {
        assert_unreachable(cmk.unwrap(&blob, &branch(1)), "killed");
        assert_unreachable(cmk.describe(), "killed");
    }
    assert_unreachable(open(&login), "killed");
    bao.restart();
    for cmk in &cmks {
        assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    }
}

/// What comes back when the server behind misbehaves like this; the time of the call is bounded all the same.
fn meanwhile(front: &FaultServer, cmk: &dyn CmkProvider, blob: &[u8], behaviour: Behaviour) -> KeyError {
    front.set(behaviour.clone());
    let start = Instant::now();
    let outcomes =
        [cmk.unwrap(blob, &branch(1)).map(drop), cmk.generate(&branch(1)).map(drop), cmk.describe().map(drop)];
    assert!(start.elapsed() < Duration::from_secs(20), "{behaviour:?} took {:?}", start.elapsed());
    let [first, ..] = outcomes.map(|outcome| match outcome {
        Err(e) => e,
        Ok(()) => panic!("{behaviour:?}: answered"),
    });
    first
}

#[test]
fn whatever_is_no_answer_is_unreachable_and_ends_in_time() {
    let Some(bao) = Bao::start() else { return };
    let front = FaultServer::start(Behaviour::Forward(bao.port));
    let uri = bao.uri("app").replace(&bao.address(), &format!("http://127.0.0.1:{}", front.port));
    let timeout = Duration::from_secs(2);
    let cmk = open_within(&uri, timeout).unwrap();
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    let errors = |text: &str| serde_json::to_vec(&json!({ "errors": [text] })).unwrap();
    let json = "Content-Type: application/json\r\n";
    let cases = [
        Behaviour::Hang,
        Behaviour::Close,
        Behaviour::Slow(bao.port, Duration::from_secs(5)),
        Behaviour::Trickle(Duration::from_millis(20)),
        Behaviour::Endless,
        Behaviour::Raw(Vec::new()),
        Behaviour::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        Behaviour::Raw(vec![0xff; 100_000]),
        Behaviour::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"data\":{".to_vec()),
        Behaviour::Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n".to_vec()),
        Behaviour::Reply(200, json, b"".to_vec()),
        Behaviour::Reply(200, json, b"{}".to_vec()),
        Behaviour::Reply(200, json, b"{\"data\":null}".to_vec()),
        Behaviour::Reply(200, "", b"<html>please log in</html>".to_vec()),
        Behaviour::Reply(200, json, [b"{\"data\":{\"plaintext\":\"".to_vec(), vec![b'A'; 100_000]].concat()),
        Behaviour::Reply(204, json, b"".to_vec()),
        Behaviour::Reply(302, "Location: http://127.0.0.1:1/\r\n", b"".to_vec()),
        Behaviour::Reply(307, "Location: http://vault.example/v1/transit/decrypt/app\r\n", b"".to_vec()),
        Behaviour::Reply(307, "", b"".to_vec()),
        Behaviour::Reply(400, "", b"<html>bad request</html>".to_vec()),
        Behaviour::Reply(403, "", b"<html>the proxy says no</html>".to_vec()),
        Behaviour::Reply(404, "", b"<html>not found</html>".to_vec()),
        Behaviour::Reply(412, json, errors("required index state not present")),
        Behaviour::Reply(429, json, errors("request path: rate limit quota exceeded")),
        Behaviour::Reply(472, json, b"".to_vec()),
        Behaviour::Reply(473, json, b"".to_vec()),
        Behaviour::Reply(500, json, errors("internal error\u{1b}[2J")),
        Behaviour::Reply(502, "", b"<html>bad gateway</html>".to_vec()),
        Behaviour::Reply(503, json, errors("Vault is sealed")),
    ];
    for behaviour in cases {
        match meanwhile(&front, &*cmk, &blob, behaviour.clone()) {
            KeyError::Unreachable { reason, .. } => {
                assert!(reason.len() < 600 && !reason.contains('\u{1b}'), "{behaviour:?}: {reason}");
            }
            other => panic!("{behaviour:?}: {other:?}"),
        }
        let start = Instant::now();
        match open_within(&uri, timeout) {
            Err(KeyError::Unreachable { .. }) => {}
            other => panic!("{behaviour:?}: {:?}", other.err()),
        }
        assert!(start.elapsed() < Duration::from_secs(8), "{behaviour:?}: opening took {:?}", start.elapsed());
    }
    // In the server's own words they are definite.
    let no = meanwhile(&front, &*cmk, &blob, Behaviour::Reply(403, json, errors("permission denied")));
    assert!(matches!(no, KeyError::Refused { .. }), "{no:?}");
    let no =
        meanwhile(&front, &*cmk, &blob, Behaviour::Reply(400, json, errors("cipher: message authentication failed")));
    assert!(matches!(no, KeyError::BadBlob { .. }), "{no:?}");

    front.set(Behaviour::Forward(bao.port));
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose(), "heals");
    // Nobody listens, and nobody has that name.
    assert_unreachable(open_within(&bao.uri("app").replace(&bao.port.to_string(), "1"), timeout), "refused");
    let nowhere = uri.replace(&format!("http://127.0.0.1:{}", front.port), "https://no.such.host.invalid:8200");
    assert_unreachable(open_within(&nowhere, timeout), "no such host");
}

#[test]
fn a_standby_sends_to_its_active_node() {
    let Some(bao) = Bao::start() else { return };
    // The path differs from request to request, so that one fixed answer serves one kind of request.
    let location = format!("Location: {}/v1/transit/datakey/plaintext/app\r\n", bao.address()).leak();
    let front = FaultServer::start(Behaviour::Forward(bao.port));
    let uri = bao.uri("app").replace(&bao.address(), &format!("http://127.0.0.1:{}", front.port));
    let cmk = open(&uri).unwrap();
    front.set(Behaviour::Reply(307, location, Vec::new()));
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    assert_unreachable(cmk.unwrap(&blob, &branch(1)), "a redirect to another path");
    front.set(Behaviour::Forward(bao.port));
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    // Around and around.
    let itself = format!("Location: http://127.0.0.1:{}/v1/transit/datakey/plaintext/app\r\n", front.port).leak();
    front.set(Behaviour::Reply(307, itself, Vec::new()));
    assert_unreachable(cmk.generate(&branch(1)), "a loop");
}

#[test]
fn many_at_once_wait_for_one_login_and_no_longer_than_they_may() {
    let Some(bao) = Bao::start() else { return };
    let role_id = bao.enable_approle(json!({"token_policies": ["app"], "token_ttl": "1s", "token_max_ttl": "1s"}));
    let secret = bao.secret("sid", &bao.secret_id());
    let front = FaultServer::start(Behaviour::Forward(bao.port));
    let uri = bao
        .uri_with("app", &format!("auth=approle&role_id={role_id}&secret_id_file={}", secret.display()))
        .replace(&bao.address(), &format!("http://127.0.0.1:{}", front.port));
    let cmk = open_within(&uri, Duration::from_secs(2)).unwrap();
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    front.set(Behaviour::Hang);
    std::thread::sleep(Duration::from_millis(1500));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_unreachable(cmk.unwrap(&blob, &branch(1)), "hanging login"));
        }
    });
    // One after the other would take sixteen times as long.
    assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
    front.set(Behaviour::Forward(bao.port));
    cmk.unwrap(&blob, &branch(1)).unwrap();
    // The renewing thread ends with the CMK, even while its request hangs.
    front.set(Behaviour::Hang);
    std::thread::sleep(Duration::from_millis(800));
    let (start, weak) = (Instant::now(), Arc::downgrade(&cmk));
    drop(cmk);
    assert!(weak.upgrade().is_none() && start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn what_a_failing_login_says_is_not_final_while_the_server_is_away() {
    let Some(bao) = Bao::start() else { return };
    bao.write_policy("app", "");
    let front = FaultServer::start(Behaviour::Forward(bao.port));
    let first = bao.token(json!({"policies": ["app"]}));
    let file = bao.secret("app", &first);
    let uri = bao
        .uri_with("app", &format!("token_file={}", file.display()))
        .replace(&bao.address(), &format!("http://127.0.0.1:{}", front.port));
    let cmk = open_within(&uri, Duration::from_secs(2)).unwrap();
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    bao.must("POST", "auth/token/revoke", json!({ "token": first }));
    assert_refused(cmk.unwrap(&blob, &branch(1)), &["expired or revoked"], "revoked");
    write_secret(&file, &bao.token(json!({"policies": ["app"]})));
    front.set(Behaviour::Reply(500, "", b"{\"errors\":[\"try again\"]}".to_vec()));
    assert_unreachable(cmk.unwrap(&blob, &branch(1)), "away");
    front.set(Behaviour::Forward(bao.port));
    cmk.unwrap(&blob, &branch(1)).unwrap();
}
