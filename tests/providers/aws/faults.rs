//! AWS KMS when the way to it is at fault: endpoints that misbehave, credentials that cannot be had, TLS, proxies.

use super::*;

/// `body` runs against an address with credentials; no server of AWS's kind is needed.
fn against_faults(test: &str, more: &[(&str, String)], body: impl FnOnce()) {
    let dir = scratch();
    let environment = environment(dir.path(), more);
    in_own_process(test, || Some((dir, environment)), body);
}

#[test]
fn whatever_does_not_answer_is_unreachable_in_time() {
    against_faults("aws::faults::whatever_does_not_answer_is_unreachable_in_time", &[], || {
        let server = FaultServer::start(Behaviour::Hang);
        let uri = at(server.port, ARN);
        let timeout = Duration::from_secs(1);
        let cmk = open_within(&uri, timeout).unwrap();
        let json = "Content-Type: application/x-amz-json-1.1\r\n";
        let faults = [
            Behaviour::Hang,
            Behaviour::Trickle(Duration::from_millis(20)),
            Behaviour::Endless,
            Behaviour::Close,
            Behaviour::Raw(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
            Behaviour::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"KeyId\":".to_vec()),
            Behaviour::Reply(200, json, Vec::new()),
            Behaviour::Reply(200, json, b"{}".to_vec()),
            Behaviour::Reply(200, json, b"<html>welcome</html>".to_vec()),
            Behaviour::Reply(200, json, format!("{{\"KeyId\":\"{ARN}\",\"Plaintext\":\"%%\"}}").into_bytes()),
            Behaviour::Reply(200, json, br#"{"KeyId":"arn:aws:kms:us-east-1:1:key/other"}"#.to_vec()),
            Behaviour::Reply(403, "Content-Type: text/html\r\n", b"<h1>proxy says no</h1>".to_vec()),
            Behaviour::Reply(302, "Location: http://127.0.0.1:1/\r\n", Vec::new()),
            Behaviour::Reply(404, "", b"\xff\xfe\0".to_vec()),
            Behaviour::Reply(500, json, br#"{"__type":"KMSInternalException","message":"oops"}"#.to_vec()),
            Behaviour::Reply(500, json, br#"{"__type":"KeyUnavailableException"}"#.to_vec()),
            Behaviour::Reply(503, json, br#"{"__type":"DependencyTimeoutException"}"#.to_vec()),
            Behaviour::Reply(503, "", b"Service Unavailable".to_vec()),
            Behaviour::Reply(429, "", Vec::new()),
            Behaviour::Reply(400, json, br#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#.to_vec()),
            Behaviour::Reply(
                400,
                json,
                br#"{"__type":"InvalidSignatureException","message":"Signature expired: x"}"#.to_vec(),
            ),
        ];
        for fault in faults {
            server.set(fault.clone());
            let before = server.requests().len();
            let start = Instant::now();
            assert_unreachable(cmk.unwrap(&[1; 100], &branch(1)), &format!("{fault:?}"));
            assert_unreachable(cmk.generate(&branch(1)), &format!("{fault:?}"));
            assert_unreachable(cmk.describe(), &format!("{fault:?}"));
            assert!(start.elapsed() < 3 * timeout + SLACK, "{fault:?} took {:?}", start.elapsed());
            assert!(server.requests().len() - before <= 3, "{fault:?}: a call is one request, never retried in here");
        }
        drop(server);
        assert_unreachable(cmk.unwrap(&[1; 100], &branch(1)), "connection refused");
        let text = reason(cmk.unwrap(&[1; 100], &branch(1)));
        assert!(text.contains("Connection refused"), "{text}");
        assert_unreachable(try_open(&uri.replace(ARN, "alias/x")), "an alias cannot be resolved");
    });
}

#[test]
fn definite_answers_are_told_from_others() {
    against_faults("aws::faults::definite_answers_are_told_from_others", &[], || {
        let json = "Content-Type: application/x-amz-json-1.1\r\n";
        let server = FaultServer::start(Behaviour::Close);
        let cmk = open(&at(server.port, ARN));
        let answer = |status: u16, code: &str, message: &str| {
            server.set(Behaviour::Reply(
                status,
                json,
                json!({"__type": code, "message": message}).to_string().into_bytes(),
            ));
            cmk.unwrap(&[1; 100], &branch(1))
        };
        for (code, message) in [
            ("ExpiredTokenException", "The security token included in the request is expired"),
            ("UnrecognizedClientException", "The security token included in the request is invalid."),
            ("AccessDeniedException", "User: arn:aws:iam::1:user/u is not authorized to perform: kms:Decrypt"),
            ("com.amazonaws.kms#DisabledException", "it is disabled."),
            ("KMSInvalidStateException", "it is pending import."),
            ("NotFoundException", "Key 'x' does not exist"),
        ] {
            assert_refused(answer(400, code, message), &[code.rsplit('#').next().unwrap(), message], code);
        }
        assert_unreachable(answer(400, "KMSInvalidStateException", "it is unavailable: its key store"), "key store");
        for code in ["InvalidCiphertextException", "IncorrectKeyException"] {
            contract::assert_bad_blob(answer(400, code, ""), code);
        }
        // The service's words are cut and harmless; those about a signature are not repeated.
        let text = reason(answer(400, "AccessDeniedException", &format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(9000))));
        assert!(text.len() < 700 && !text.contains(['\u{1b}', '\u{202e}', '\n']), "{text:?}");
        let text = reason(answer(403, "SignatureDoesNotMatch", "x-amz-security-token:leaked"));
        assert!(!text.contains("leaked") && text.contains("secret access key"), "{text}");

        // Front ends say it in XML.
        let xml = "<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>bad token</Message></Error></ErrorResponse>";
        server.set(Behaviour::Reply(403, "Content-Type: text/xml\r\n", xml.as_bytes().to_vec()));
        assert_refused(cmk.generate(&branch(1)), &["InvalidClientTokenId: bad token", "credentials"], "XML");

        // The right answer, but in more than any answer takes.
        for (filler, opens) in [(100, true), (300_000, false)] {
            let plaintext = data_encoding::BASE64.encode(&[7; 32]);
            let body = json!({"KeyId": ARN, "Plaintext": plaintext, "Filler": "x".repeat(filler)});
            server.set(Behaviour::Reply(200, json, body.to_string().into_bytes()));
            let result = cmk.unwrap(&[1; 100], &branch(1));
            if opens {
                assert_eq!(result.unwrap().expose(), &[7; 32]);
            } else {
                assert_unreachable(result, "an answer without bounds");
            }
        }

        // A plaintext that is not a key.
        for size in [0, 31, 33, 64] {
            let body = json!({"KeyId": ARN, "Plaintext": data_encoding::BASE64.encode(&vec![7; size])});
            server.set(Behaviour::Reply(200, json, body.to_string().into_bytes()));
            let result = cmk.unwrap(&[1; 100], &branch(1));
            assert!(matches!(result, Err(KeyError::BadBlob { .. })), "{size}: {result:?}");
        }
    });
}

#[test]
fn no_credentials_say_what_to_set() {
    let none = [("AWS_ACCESS_KEY_ID", String::new()), ("AWS_SECRET_ACCESS_KEY", String::new())];
    against_faults("aws::faults::no_credentials_say_what_to_set", &none, || {
        let server = FaultServer::start(Behaviour::Close);
        let cmk = open(&at(server.port, ARN));
        assert_config(cmk.generate(&branch(1)), &["no AWS credentials found", "AWS_PROFILE", "role"]);
        assert_config(try_open("awskms:///alias/x"), &["no AWS region", "AWS_REGION"]);
        assert!(server.requests().is_empty(), "nothing was sent unsigned");
    });
}

#[test]
fn a_metadata_service_that_hangs_costs_no_more_than_the_limit() {
    let hanging = FaultServer::start(Behaviour::Hang);
    let settings = [
        ("AWS_ACCESS_KEY_ID", String::new()),
        ("AWS_SECRET_ACCESS_KEY", String::new()),
        ("AWS_EC2_METADATA_DISABLED", String::new()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://127.0.0.1:{}", hanging.port)),
    ];
    against_faults("aws::faults::a_metadata_service_that_hangs_costs_no_more_than_the_limit", &settings, || {
        let server = FaultServer::start(Behaviour::Close);
        let start = Instant::now();
        let text = reason(open(&at(server.port, ARN)).generate(&branch(1)));
        assert!(text.contains("credentials"), "{text}");
        assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
        let start = Instant::now();
        assert_config(try_open("awskms:///alias/x"), &["no AWS region"]);
        assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
    });
}

#[test]
fn a_credential_process_that_hangs_is_an_outage() {
    let dir = scratch();
    let config = dir.path().join("config");
    std::fs::write(&config, "[default]\ncredential_process = sleep 20\n").unwrap();
    let settings = [
        ("AWS_ACCESS_KEY_ID", String::new()),
        ("AWS_SECRET_ACCESS_KEY", String::new()),
        ("AWS_CONFIG_FILE", config.to_str().unwrap().to_string()),
    ];
    against_faults("aws::faults::a_credential_process_that_hangs_is_an_outage", &settings, || {
        let server = FaultServer::start(Behaviour::Close);
        let start = Instant::now();
        let result = open(&at(server.port, ARN)).generate(&branch(1));
        assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
        assert_unreachable(result, "credential_process");
    });
}

#[test]
fn a_role_that_is_denied_is_refused() {
    let sts = FaultServer::start(Behaviour::Reply(
        403,
        "Content-Type: text/xml\r\n",
        b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not your role</Message></Error>\
          </ErrorResponse>"
            .to_vec(),
    ));
    let dir = scratch();
    let token = dir.path().join("token");
    std::fs::write(&token, "a.web.token").unwrap();
    let settings = [
        ("AWS_ACCESS_KEY_ID", String::new()),
        ("AWS_SECRET_ACCESS_KEY", String::new()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/app".to_string()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap().to_string()),
        ("AWS_ENDPOINT_URL_STS", format!("http://127.0.0.1:{}", sts.port)),
        ("STS", sts.port.to_string()),
    ];
    against_faults("aws::faults::a_role_that_is_denied_is_refused", &settings, || {
        let server = FaultServer::start(Behaviour::Close);
        let cmk = open(&at(server.port, ARN));
        assert_refused(
            cmk.generate(&branch(1)),
            &["credentials cannot be had", "AccessDenied", "not your role"],
            "role",
        );
        assert!(!reason(cmk.generate(&branch(1))).contains("a.web.token"));
    });
}

#[test]
fn keys_never_travel_without_tls() {
    let settings = [("AWS_ENDPOINT_URL_KMS", "http://kms.example:80".to_string())];
    against_faults("aws::faults::keys_never_travel_without_tls", &settings, || {
        let cmk = open(&format!("awskms:///{ARN}"));
        assert_config(cmk.generate(&branch(1)), &["plain http on another host", "https"]);
        // What the URI names comes before the variable.
        let server = FaultServer::start(Behaviour::Reply(503, "", Vec::new()));
        assert_unreachable(open(&at(server.port, ARN)).generate(&branch(1)), "the URI's endpoint");
        assert_eq!(server.requests().len(), 1);
        // Proxies for http are not used for keys or for metadata.
        assert_config(try_open("awskms:///alias/x?endpoint=http://kms.example"), &["http is for this host only"]);
    });
}

/// A CA and a certificate of `kms.test` and 127.0.0.1 from it, made by openssl: paths of CA, certificate and key.
fn certificates(dir: &Path) -> Option<[String; 3]> {
    let openssl = servers::require("openssl", servers::find("openssl"))?;
    let run = |arguments: &[&str]| {
        let output = Command::new(&openssl).args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    run(&[&new[..], &["-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem"]].concat());
    let names = "subjectAltName=DNS:kms.test,IP:127.0.0.1";
    let signed =
        ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", names];
    run(&[&new[..], &["-subj", "/CN=kms.test", "-keyout", "tls.key", "-out", "tls.pem"], &signed[..]].concat());
    Some(["ca.pem", "tls.pem", "tls.key"].map(|name| dir.join(name).to_str().unwrap().to_string()))
}

#[test]
fn a_private_ca_and_a_proxy_are_honoured() {
    in_own_process(
        "aws::faults::a_private_ca_and_a_proxy_are_honoured",
        || {
            let dir = scratch();
            let [ca, certificate, key] = certificates(dir.path())?;
            let plain = moto(dir.path(), &[])?;
            let tls = moto(dir.path(), &["-c", &certificate, "-k", &key])?;
            let proxy = FaultServer::start(Behaviour::Proxy(tls.port));
            let environment = environment(
                dir.path(),
                &[
                    ("PORT", plain.port.to_string()),
                    ("TLS_PORT", tls.port.to_string()),
                    ("AWS_CA_BUNDLE", ca),
                    ("https_proxy", format!("http://user:hunter2@127.0.0.1:{}", proxy.port)),
                    ("NO_PROXY", "127.0.0.1".to_string()),
                    // Would break everything that is plain http, were it used.
                    ("http_proxy", "http://127.0.0.1:1".to_string()),
                ],
            );
            Some(((plain, tls, proxy, dir), environment))
        },
        a_private_ca_and_a_proxy,
    );
}

/// What AWS has from the start, and moto, too: the alias of its own services' key.
const EBS: &str = "alias/aws/ebs";
const OWN_EBS: &str = "alias/ebs";

fn a_private_ca_and_a_proxy() {
    let alias = if own_root().is_some() { OWN_EBS } else { EBS };
    let tls: u16 = var("TLS_PORT").parse().unwrap();
    let named = |uri: &str| {
        let cmk = open(uri);
        let (secret, blob) = cmk.generate(&branch(1)).unwrap();
        assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), secret.expose());
    };
    named(&format!("awskms://127.0.0.1:{tls}/{alias}"));
    // No resolver knows this name; the proxy takes it.
    named(&format!("awskms://kms.test/{alias}"));
    if own_root().is_none() {
        named(&at(var("PORT").parse().unwrap(), alias));
    }
    // The certificate is not of this name.
    let text = reason(try_open(&format!("awskms://other.test/{alias}")));
    assert!(text.contains("cannot be reached") && text.contains("certificate"), "{text}");
    assert!(!text.contains("hunter2"));
}

#[cfg(feature = "kms")]
#[test]
fn our_own_tls_is_honoured_through_a_proxy() {
    in_own_process(
        "aws::faults::our_own_tls_is_honoured_through_a_proxy",
        || {
            let dir = scratch();
            let [ca, certificate, key] = certificates(dir.path())?;
            let (tls, settings) = own_with_tls(dir.path(), &certificate, &key);
            let made = tls.verb_call("CreateKey", &json!({}));
            let alias = json!({"AliasName": OWN_EBS, "TargetKeyId": made["KeyMetadata"]["KeyId"]});
            tls.verb_call("CreateAlias", &alias);
            let proxy = FaultServer::start(Behaviour::Proxy(tls.port));
            let mut settings = settings;
            settings.extend([
                ("AWS_CA_BUNDLE", ca),
                ("https_proxy", format!("http://user:hunter2@127.0.0.1:{}", proxy.port)),
                ("NO_PROXY", "127.0.0.1".to_string()),
                ("http_proxy", "http://127.0.0.1:1".to_string()),
            ]);
            let environment = environment(dir.path(), &settings);
            Some(((tls, proxy, dir), environment))
        },
        a_private_ca_and_a_proxy,
    );
}

/// The key service of this package behind TLS, and what its account root's clients find.
#[cfg(feature = "kms")]
fn own_with_tls(dir: &Path, certificate: &str, key: &str) -> (Own, Vec<(&'static str, String)>) {
    let mut own = Own::made_in(dir);
    own.serve_with(&["--tls-cert", certificate, "--tls-key", key]);
    let settings = vec![
        ("TLS_PORT", own.port.to_string()),
        ("OWN_ID", own.root.id.clone()),
        ("OWN_SECRET", own.root.secret.clone()),
        ("AWS_ACCESS_KEY_ID", own.root.id.clone()),
        ("AWS_SECRET_ACCESS_KEY", own.root.secret.clone()),
    ];
    (own, settings)
}

#[test]
fn tls_that_cannot_be_trusted_is_unreachable() {
    in_own_process(
        "aws::faults::tls_that_cannot_be_trusted_is_unreachable",
        || {
            let dir = scratch();
            let [_, certificate, key] = certificates(dir.path())?;
            let tls = moto(dir.path(), &["-c", &certificate, "-k", &key])?;
            let empty = dir.path().join("empty.pem");
            std::fs::write(&empty, "not a certificate\n").unwrap();
            let environment = environment(dir.path(), &[("TLS_PORT", tls.port.to_string())]);
            Some(((tls, dir), environment))
        },
        untrusted_tls,
    );
}

#[cfg(feature = "kms")]
#[test]
fn our_own_tls_that_cannot_be_trusted_is_unreachable() {
    in_own_process(
        "aws::faults::our_own_tls_that_cannot_be_trusted_is_unreachable",
        || {
            let dir = scratch();
            let [_, certificate, key] = certificates(dir.path())?;
            let (tls, settings) = own_with_tls(dir.path(), &certificate, &key);
            let environment = environment(dir.path(), &settings);
            Some(((tls, dir), environment))
        },
        untrusted_tls,
    );
}

fn untrusted_tls() {
    let uri = format!("awskms://127.0.0.1:{}/{ARN}", var("TLS_PORT"));
    assert_unreachable(open(&uri).generate(&branch(1)), "an unknown CA");
    assert!(reason(open(&uri).generate(&branch(1))).contains("AWS_CA_BUNDLE"));
    // http to a port that speaks TLS, and the other way round.
    assert_unreachable(open(&at(var("TLS_PORT").parse().unwrap(), ARN)).generate(&branch(1)), "http to TLS");
    let plain = FaultServer::start(Behaviour::Reply(200, "", Vec::new()));
    let uri = format!("awskms://127.0.0.1:{}/{ARN}", plain.port);
    assert_unreachable(open(&uri).generate(&branch(1)), "TLS to http");
}

#[test]
fn settings_that_are_wrong_are_named() {
    let settings = [("AWS_CA_BUNDLE", "/nonexistent/ca.pem".to_string())];
    against_faults("aws::faults::settings_that_are_wrong_are_named", &settings, || {
        assert_config(try_open(&format!("awskms:///{ARN}")), &["AWS_CA_BUNDLE /nonexistent/ca.pem", "No such file"]);
    });
}
