//! The server before it knows anybody: limits, refusals, TLS; and the socket for verbs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::kms::admin::{self, Request};
use crate::kms::http::may_listen;
use crate::kms::running::Running;

fn start(world: &mut World) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Running::start(world.service.take().unwrap(), listener, None).unwrap()
}

/// What a raw request is answered with.
fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(target: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-amz-target: {target}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn strangers_are_refused_and_recorded() {
    let mut world = World::new();
    let data = world.data();
    let running = start(&mut world);
    let address = running.address();
    let healthy = send(address, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(healthy.starts_with("HTTP/1.1 200"), "{healthy}");
    let unsigned = send(address, &post("TrentService.ListKeys", "", "{}"));
    assert!(
        unsigned.starts_with("HTTP/1.1 400") && unsigned.contains("MissingAuthenticationTokenException"),
        "{unsigned}"
    );
    assert!(unsigned.contains("x-amzn-requestid: ") && unsigned.contains("content-type: application/x-amz-json-1.1"));
    let credential = "AKIAAAAAAAAAAAAAAAAA/20260101/us-east-1/kms/aws4_request";
    let signed = format!(
        "authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host;x-amz-date;x-amz-target, Signature={}\r\n\
         x-amz-date: 20260101T000000Z\r\n",
        "0".repeat(64)
    );
    let wrong = send(address, &post("TrentService.ListKeys", &signed, "{}"));
    assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains("__type"), "{wrong}");
    for request in
        [&b"nonsense\r\n\r\n"[..], b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"]
    {
        assert!(!send(address, request).contains("200 OK"));
    }
    let large = send(address, &post("TrentService.ListKeys", "", &" ".repeat((1 << 20) + 1)));
    assert!(large.is_empty() || large.starts_with("HTTP/1.1 413"), "{large}");
    let header = format!("x-long: {}\r\n", "a".repeat(100_000));
    assert!(!send(address, &post("TrentService.ListKeys", &header, "{}")).contains(" 200 "));
    for _ in 0..50 {
        send(address, &post("TrentService.Decrypt", "", "{}"));
    }
    let verdict = admin::ask(&data, &Request::VerifyTrail {}).unwrap().unwrap().unwrap();
    assert_eq!(verdict["problems"], json!([]));
    running.stop(Duration::from_secs(5));
    let mut refused = 0;
    let mut claimed = false;
    let filter = crate::kms::audit::verify::Filter::default();
    crate::kms::audit::verify::read(&data, &filter, |_, record| {
        refused += usize::from(record["userIdentity"]["type"] == "Unknown");
        claimed |= record["userIdentity"]["accessKeyId"] == "AKIAAAAAAAAAAAAAAAAA";
        true
    })
    .unwrap();
    assert!(claimed && (3..50).contains(&refused), "{refused}");
}

#[test]
fn verbs_are_answered_at_the_socket_until_the_service_ends() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new();
    let data = world.data();
    assert!(admin::ask(&data, &Request::Status {}).unwrap().is_none(), "nobody listens");
    let running = start(&mut world);
    let socket = data.join("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |request| admin::ask(&data, &request).unwrap().unwrap();
    assert_eq!(ask(Request::Status {}).unwrap()["account"], ACCOUNT);
    let made = ask(Request::Call { operation: "CreateKey".into(), input: json!({}) }).unwrap();
    assert!(made["KeyMetadata"]["KeyId"].is_string());
    let unknown = ask(Request::Call { operation: "Nonsense".into(), input: json!({}) }).unwrap_err();
    assert_eq!(unknown.code, "UnknownOperationException");
    let absent = ask(Request::Call { operation: "ReplicateKey".into(), input: json!({}) }).unwrap_err();
    assert_eq!(absent.code, "UnsupportedOperationException");
    assert_eq!(ask(Request::PolicyGet { name: "nobody".into() }).unwrap_err().code, "NoSuchEntity");
    {
        let mut raw = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        raw.write_all(b"{\"version\":7,\"request\":\"status\"}\n").unwrap();
        let mut answer = String::new();
        raw.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("version 7"), "{answer}");
    }
    running.stop(Duration::from_secs(5));
    assert!(!socket.exists());
    assert!(admin::ask(&data, &Request::Status {}).unwrap().is_none());
}

#[test]
fn other_hosts_only_by_tls() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
        assert!(may_listen(&at(loopback), false).is_ok());
    }
    for open in ["0.0.0.0:1", "[::]:1", "192.168.1.1:1", "[::ffff:127.0.0.1]:1"] {
        assert!(may_listen(&at(open), false).unwrap_err().contains("--tls-cert"));
        assert!(may_listen(&at(open), true).is_ok());
    }
}
