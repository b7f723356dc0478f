//! Verification against AWS's own vectors, requests signed by the AWS SDK, and another verifier; and what is refused, and how.

use std::cell::Cell;
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SessionTokenMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};
use proptest::prelude::*;
use scratchstack_aws_signature::{
    GetSigningKeyRequest, GetSigningKeyResponse, KSecretKey, NO_ADDITIONAL_SIGNED_HEADERS, SignatureOptions,
    service_for_signing_key_fn, sigv4_validate_request,
};

use super::*;

const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// 2015-08-30T12:36:00Z.
const NOW: u64 = 1_440_938_160;

fn lookup(id: &str) -> Option<Zeroizing<String>> {
    (id == ID).then(|| Zeroizing::new(SECRET.to_owned()))
}
fn check(verifier: &Verifier, request: &Request<Vec<u8>>, now: u64) -> Result<Verified, AuthError> {
    let head = Head { method: request.method(), uri: request.uri(), headers: request.headers() };
    verifier.verify(head, request.body(), now, &lookup)
}
fn verify(request: &Request<Vec<u8>>) -> Result<Verified, AuthError> {
    check(&Verifier::new("us-east-1"), request, NOW)
}
fn plain(body: &[u8]) -> Request<Vec<u8>> {
    Request::post("/")
        .header("host", "127.0.0.1:8765")
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", "TrentService.Encrypt")
        .header("user-agent", "test")
        .body(body.to_vec())
        .unwrap()
}

/// How a request is signed.
struct Signing<'a> {
    secret: &'a str,
    region: &'a str,
    service: &'a str,
    time: u64,
    /// Presigned, and for how long.
    expires: Option<u64>,
    token: Option<String>,
}
const SIGNING: Signing =
    Signing { secret: SECRET, region: "us-east-1", service: "kms", time: NOW, expires: None, token: None };

/// As the AWS SDK does it.
fn signed(mut request: Request<Vec<u8>>, how: &Signing) -> Request<Vec<u8>> {
    let identity = Credentials::new(ID, how.secret, how.token.clone(), None, "test").into();
    let mut settings = SigningSettings::default();
    settings.session_token_mode = SessionTokenMode::Include;
    settings.payload_checksum_kind = aws_sigv4::http_request::PayloadChecksumKind::XAmzSha256;
    if let Some(seconds) = how.expires {
        settings.expires_in = Some(Duration::from_secs(seconds));
        settings.signature_location = SignatureLocation::QueryParams;
    }
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(how.region)
        .name(how.service)
        .time(UNIX_EPOCH + Duration::from_secs(how.time))
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let (parts, body) = request.clone().into_parts();
    let headers = parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    let uri = format!("http://127.0.0.1:8765{}", parts.uri);
    let signable = SignableRequest::new("POST", uri, headers, SignableBody::Bytes(&body)).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    let path = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
    *request.uri_mut() = path;
    request
}
fn set(request: &mut Request<Vec<u8>>, name: &'static str, value: &str) {
    request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
}
/// The request with a text of its Authorization header replaced.
fn with(request: &Request<Vec<u8>>, from: &str, to: &str) -> Request<Vec<u8>> {
    let mut request = request.clone();
    let old = request.headers()["authorization"].to_str().unwrap().to_owned();
    assert!(old.contains(from), "{old}");
    set(&mut request, "authorization", &old.replace(from, to));
    request
}

#[test]
fn the_vectors_of_aws() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors/sigv4.json")).unwrap();
    let verifier = Verifier::for_service("us-east-1", "service");
    let (mut good, all) = (0, vectors["requests"].as_array().unwrap());
    for vector in all {
        let uri: String = vector["uri"].as_str().unwrap().bytes().map(ascii).collect();
        let mut request = Request::builder().method(vector["method"].as_str().unwrap()).uri(uri);
        for header in vector["headers"].as_array().unwrap() {
            request = request.header(header[0].as_str().unwrap(), header[1].as_str().unwrap().trim());
        }
        let authorization = vector["authorization"].as_str().unwrap();
        let mut request =
            request.header("authorization", authorization).body(Vec::from(vector["body"].as_str().unwrap())).unwrap();
        let name = vector["name"].as_str().unwrap();
        let result = check(&verifier, &request, NOW);
        match name {
            // Signed rightly, with a session token that this service has not issued.
            "post-sts-header-before" => assert_eq!(result, Err(AuthError::UnknownKey)),
            _ => {
                assert_eq!(result.map(|v| v.access_key_id), Ok(ID.to_owned()), "{name}");
                request.body_mut().push(b'x');
                assert_eq!(check(&verifier, &request, NOW), Err(AuthError::Mismatch), "{name}");
                good += 1;
            }
        }
    }
    assert_eq!((good, all.len()), (18, 19));
}
/// Bytes beyond ASCII as a client must send them.
fn ascii(b: u8) -> String {
    if b.is_ascii() { char::from(b).to_string() } else { format!("%{b:02X}") }
}

#[test]
fn what_the_sdk_signs_is_accepted() {
    for body in [&b""[..], br#"{"KeyId":"alias/test"}"#, &[0xff; 4096]] {
        let header = verify(&signed(plain(body), &SIGNING)).unwrap();
        assert_eq!(header, Verified { access_key_id: ID.to_owned(), signed_at: NOW, presigned: false });
        let query = verify(&signed(plain(body), &Signing { expires: Some(60), ..SIGNING })).unwrap();
        assert_eq!(query, Verified { access_key_id: ID.to_owned(), signed_at: NOW, presigned: true });
    }
}

#[test]
fn whatever_is_changed_is_noticed() {
    for expires in [None, Some(60)] {
        let good = signed(plain(b"{}"), &Signing { expires, ..SIGNING });
        let refused = |change: &dyn Fn(&mut Request<Vec<u8>>)| {
            let mut request = good.clone();
            change(&mut request);
            let error = verify(&request).unwrap_err();
            assert!(["InvalidSignatureException", "IncompleteSignatureException"].contains(&error.code()), "{error:?}");
        };
        refused(&|r| r.body_mut().push(b' '));
        refused(&|r| *r.method_mut() = Method::PUT);
        refused(&|r| set(r, "host", "elsewhere"));
        refused(&|r| set(r, "x-amz-target", "TrentService.Decrypt"));
        refused(&|r| set(r, "content-type", "text/plain"));
        refused(&|r| set(r, "x-amz-extra", "1"));
        refused(&|r| drop(r.headers_mut().remove("x-amz-target")));
        refused(&|r| {
            r.headers_mut().append("x-amz-target", HeaderValue::from_static("b"));
        });
        refused(&|r| {
            let uri = r.uri().to_string();
            let more = if uri.contains('?') { "&a=b" } else { "?a=b" };
            *r.uri_mut() = format!("{uri}{more}").parse().unwrap();
        });
        refused(&|r| *r.uri_mut() = r.uri().to_string().replacen('/', "/a", 1).parse().unwrap());
        refused(&|r| *r.uri_mut() = r.uri().to_string().replacen('/', "//", 1).parse().unwrap());
        // What is not signed may change on the way.
        let mut request = good.clone();
        set(&mut request, "user-agent", "other");
        set(&mut request, "x-amzn-trace-id", "1");
        assert!(verify(&request).is_ok());
    }
}

#[test]
fn each_error_has_its_code() {
    let good = signed(plain(b"{}"), &SIGNING);
    let code = |request: &Request<Vec<u8>>| {
        let error = verify(request).unwrap_err();
        assert_eq!(error.status(), 400);
        (error.code(), error.to_string())
    };
    assert_eq!(code(&plain(b"{}")).0, "MissingAuthenticationTokenException");
    let wrong = signed(plain(b"{}"), &Signing { secret: "wrong", ..SIGNING });
    assert_eq!(code(&wrong).0, "InvalidSignatureException");
    assert!(code(&wrong).1.starts_with("The request signature we calculated does not match"));
    assert_eq!(code(&with(&good, ID, "AKIDOTHER")).0, "UnrecognizedClientException");
    assert_eq!(code(&with(&good, ID, "AKID.OTHER")).0, "UnrecognizedClientException");
    assert_eq!(code(&with(&good, ID, "")).0, "UnrecognizedClientException");
    assert_eq!(code(&with(&good, ID, &"A".repeat(129))).0, "UnrecognizedClientException");
    let token = signed(plain(b"{}"), &Signing { token: Some("token".to_owned()), ..SIGNING });
    assert_eq!(code(&token).0, "UnrecognizedClientException");
    let token = signed(plain(b"{}"), &Signing { token: Some("token".to_owned()), expires: Some(60), ..SIGNING });
    assert_eq!(code(&token).0, "UnrecognizedClientException");
    for (from, to) in [
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        ("AWS4-HMAC-SHA256", "Bearer"),
        ("Credential=", "Credential"),
        ("/20150830/us-east-1", "/20150830"),
        ("/aws4_request", "/aws4_request/x"),
        ("SignedHeaders=content-type;host", "SignedHeaders=host;content-type"),
        ("SignedHeaders=content-type;host", "SignedHeaders=content-type"),
        ("SignedHeaders=content-type;host", "SignedHeaders=Content-type;host"),
        ("SignedHeaders=content-type;host", "SignedHeaders=content-type;content-type;host"),
        ("SignedHeaders=content-type;host", "SignedHeaders=absent;content-type;host"),
        (";x-amz-target", ""),
        ("Signature=", "Signature=0"),
        ("Signature=", "Other=1, Signature="),
        ("Signature=", "Signature=, Signature="),
    ] {
        assert_eq!(code(&with(&good, from, to)).0, "IncompleteSignatureException", "{from} {to}");
    }
    let mut twice = good.clone();
    twice.headers_mut().append("authorization", HeaderValue::from_static("AWS4-HMAC-SHA256 x"));
    assert_eq!(code(&twice).0, "IncompleteSignatureException");
    let mut dateless = good.clone();
    for date in ["20150830T123600", "2015-08-30T12:36:00Z", "20150230T123600Z", "yesterday", ""] {
        set(&mut dateless, "x-amz-date", date);
        assert_eq!(code(&dateless).0, "IncompleteSignatureException", "{date}");
    }
    dateless.headers_mut().remove("x-amz-date");
    assert_eq!(code(&dateless).0, "IncompleteSignatureException");
    let both = Request::post(signed(plain(b"{}"), &Signing { expires: Some(60), ..SIGNING }).uri());
    let mut both = both.body(b"{}".to_vec()).unwrap();
    *both.headers_mut() = good.headers().clone();
    assert_eq!(code(&both).0, "IncompleteSignatureException");
}

#[test]
fn the_scope_must_be_this_service_here_today() {
    let text = |how: &Signing| {
        let error = verify(&signed(plain(b"{}"), how)).unwrap_err();
        assert_eq!(error.code(), "InvalidSignatureException");
        error.to_string()
    };
    let region = text(&Signing { region: "eu-west-1", ..SIGNING });
    assert!(region.contains("Credential should be scoped to a valid region, not 'eu-west-1'"), "{region}");
    assert!(region.contains("'us-east-1'"), "{region}");
    assert!(text(&Signing { service: "s3", ..SIGNING }).contains("correct service: 'kms'"));
    let good = signed(plain(b"{}"), &SIGNING);
    for (from, to) in [("/20150830/", "/20150829/"), ("/20150830/", "/2015/"), ("aws4_request", "aws4_reques")] {
        let error = verify(&with(&good, from, to)).unwrap_err();
        assert!(matches!(error, AuthError::Invalid(_)), "{error:?}");
    }
    // Foreign text comes back short and clean.
    let long = format!("/{}/", "\u{1b}[x".repeat(100).replace('\u{1b}', "~"));
    let shown = verify(&with(&good, "/us-east-1/", &long)).unwrap_err().to_string();
    assert!(shown.len() < 200, "{shown}");
}

#[test]
fn clocks_may_differ_by_five_minutes() {
    let at = |signed_at: u64, expires: Option<u64>| {
        verify(&signed(plain(b"{}"), &Signing { time: signed_at, expires, ..SIGNING }))
    };
    for skew in [0, SKEW] {
        assert!(at(NOW - skew, None).is_ok() && at(NOW + skew, None).is_ok());
    }
    let early = at(NOW - SKEW - 1, None).unwrap_err();
    assert_eq!(
        early.to_string(),
        "Signature expired: 20150830T123059Z is now earlier than 20150830T123100Z (20150830T123600Z - 5 min.)"
    );
    assert_eq!(early.code(), "InvalidSignatureException");
    let late = at(NOW + SKEW + 1, None).unwrap_err();
    assert_eq!(
        late.to_string(),
        "Signature not yet current: 20150830T124101Z is still later than 20150830T124100Z (20150830T123600Z + 5 min.)"
    );
    // Presigned: as long as it says, not as the clocks allow.
    assert!(at(NOW - 60, Some(60)).is_ok() && at(NOW - 3600, Some(3600)).is_ok() && at(NOW + SKEW, Some(1)).is_ok());
    for (time, expires) in [(NOW - 61, 60), (NOW - 3601, 3600), (NOW + SKEW + 1, 3600)] {
        assert!(matches!(at(time, Some(expires)), Err(AuthError::Invalid(_))));
    }
    for expires in [0, MAX_EXPIRES + 1] {
        assert!(matches!(at(NOW, Some(expires)), Err(AuthError::Incomplete(_))));
    }
    assert!(at(NOW, Some(MAX_EXPIRES)).is_ok());
    // Neither missing nor twice.
    let good = signed(plain(b"{}"), &Signing { expires: Some(60), ..SIGNING });
    for (from, to) in
        [("X-Amz-Expires=60&", ""), ("X-Amz-Expires=60", "X-Amz-Expires=60&X-Amz-Expires=60"), ("=60&", "=%2B60&")]
    {
        let mut request = good.clone();
        *request.uri_mut() = good.uri().to_string().replace(from, to).parse().unwrap();
        assert_ne!(request.uri(), good.uri(), "{from}");
        assert!(matches!(verify(&request), Err(AuthError::Incomplete(_))), "{to}");
    }
}

#[test]
fn the_payload_hash_must_be_the_payloads() {
    let mut request = plain(b"{}");
    for hash in ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", &"0".repeat(64), ""] {
        set(&mut request, "x-amz-content-sha256", hash);
        let signed = signed(request.clone(), &SIGNING);
        let mut forged = signed.clone();
        set(&mut forged, "x-amz-content-sha256", hash);
        assert!(matches!(verify(&forged), Err(AuthError::Invalid(_))), "{hash}");
    }
}

#[test]
fn keys_are_derived_once_a_day_and_forgotten_on_demand() {
    let verifier = Verifier::new("us-east-1");
    let asked = Cell::new(0);
    let ask = |secret: Option<&str>, time: u64| {
        let request = signed(plain(b"{}"), &Signing { time, ..SIGNING });
        let head = Head { method: request.method(), uri: request.uri(), headers: request.headers() };
        verifier.verify(head, request.body(), time, &|_| {
            asked.set(asked.get() + 1);
            secret.map(|secret| Zeroizing::new(secret.to_owned()))
        })
    };
    assert!(ask(Some(SECRET), NOW).is_ok() && ask(None, NOW).is_ok());
    assert_eq!(asked.get(), 1);
    verifier.forget("AKIDOTHER");
    assert!(ask(None, NOW).is_ok());
    verifier.forget(ID);
    assert_eq!(ask(None, NOW), Err(AuthError::UnknownKey));
    assert_eq!(ask(Some("changed"), NOW), Err(AuthError::Mismatch));
    verifier.forget(ID);
    assert!(ask(Some(SECRET), NOW).is_ok() && ask(Some(SECRET), NOW + 86_400).is_ok());
    assert_eq!(asked.get(), 5);
    // A secret that is changed while it is read does not stay.
    verifier.forget(ID);
    let request = signed(plain(b"{}"), &SIGNING);
    let head = Head { method: request.method(), uri: request.uri(), headers: request.headers() };
    let during = verifier.verify(head, request.body(), NOW, &|_| {
        verifier.forget(ID);
        lookup(ID)
    });
    assert!(during.is_ok());
    assert_eq!(ask(None, NOW), Err(AuthError::UnknownKey));
}

#[test]
fn the_cache_is_bounded() {
    let verifier = Verifier::new("us-east-1");
    let any = |_: &str| Some(Zeroizing::new(SECRET.to_owned()));
    let all_of = |wanted: &str| verifier.cache.lock().keys.keys().all(|(_, day)| day == wanted);
    for number in 0..MAX_CACHED + 10 {
        assert!(verifier.signing_key(&format!("AKID{number}"), "20150829", &any).is_some());
        assert!(verifier.cache.lock().keys.len() <= MAX_CACHED);
    }
    assert!(all_of("20150829"));
    for number in 0..MAX_CACHED {
        verifier.signing_key(&format!("AKID{number}"), "20150830", &any);
    }
    assert!(all_of("20150830"));
    assert_eq!(verifier.cache.lock().keys.len(), MAX_CACHED);
}

/// What another implementation says of a signature in the header (of presigned requests it takes none with an escaped `/`).
fn other_says(request: &Request<Vec<u8>>) -> bool {
    async fn key(asked: GetSigningKeyRequest) -> Result<GetSigningKeyResponse, tower::BoxError> {
        if asked.access_key() != ID {
            return Err("unknown".into());
        }
        let secret: KSecretKey = SECRET.parse().map_err(|_| "length")?;
        let signing_key = secret.to_ksigning(asked.request_date(), asked.region(), asked.service());
        Ok(GetSigningKeyResponse::builder().signing_key(signing_key).build()?)
    }
    let now = chrono::DateTime::from_timestamp(NOW as i64, 0).unwrap();
    let mut keys = service_for_signing_key_fn(key);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let verdict = runtime.block_on(sigv4_validate_request(
        request.clone(),
        "us-east-1",
        "kms",
        &mut keys,
        now,
        &NO_ADDITIONAL_SIGNED_HEADERS,
        SignatureOptions::default(),
    ));
    verdict.is_ok()
}

#[derive(Debug, Clone)]
enum Change {
    None,
    Body(usize, u8),
    Authorization(usize, u8),
    Query(usize, u8),
    Header(&'static str, String),
    Remove(&'static str),
}
fn change() -> impl Strategy<Value = Change> {
    let name =
        || proptest::sample::select(&["host", "x-amz-date", "x-amz-target", "content-type", "x-amz-new", "accept"][..]);
    prop_oneof![
        Just(Change::None),
        (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Change::Body(at, to)),
        (any::<usize>(), 32..127u8).prop_map(|(at, to)| Change::Authorization(at, to)),
        (any::<usize>(), 33..127u8).prop_map(|(at, to)| Change::Query(at, to)),
        (name(), "[ -~]{0,20}").prop_map(|(name, value)| Change::Header(name, value)),
        name().prop_map(Change::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn nothing_is_accepted_that_another_verifier_refuses(
        body in proptest::collection::vec(any::<u8>(), 0..64),
        value in "[!-~][ -~]{0,10}[!-~]",
        presigned in any::<bool>(),
        change in change(),
    ) {
        let mut request = plain(&body);
        set(&mut request, "x-amz-meta", &value);
        let expires = presigned.then_some(600);
        let good = signed(request, &Signing { expires, ..SIGNING });
        prop_assert!(verify(&good).is_ok() && (presigned || other_says(&good)), "{good:?}");
        let mut request = good.clone();
        match change {
            Change::None => {}
            Change::Body(at, to) if !body.is_empty() => request.body_mut()[at % body.len()] = to,
            Change::Authorization(at, to) if !presigned => {
                let mut text = good.headers()["authorization"].as_bytes().to_vec();
                let at = at % text.len();
                text[at] = to;
                request.headers_mut().insert("authorization", HeaderValue::from_bytes(&text).unwrap());
            }
            Change::Query(at, to) if presigned => {
                let mut text = good.uri().to_string().into_bytes();
                let at = 1 + at % (text.len() - 1);
                text[at] = to;
                let Ok(uri) = String::from_utf8(text).unwrap().parse() else { return Ok(()) };
                *request.uri_mut() = uri;
            }
            Change::Header(name, value) => set(&mut request, name, &value),
            Change::Remove(name) => drop(request.headers_mut().remove(name)),
            Change::Body(..) | Change::Authorization(..) | Change::Query(..) => {}
        }
        if verify(&request).is_ok() {
            // A query may change in the case of its escapes only.
            let same = request.uri().to_string().eq_ignore_ascii_case(&good.uri().to_string());
            prop_assert!(if presigned { same } else { other_says(&request) }, "{request:?}");
        }
    }

    #[test]
    fn nothing_panics(authorization in ".{0,100}", query in "[!-~]{0,60}", date in ".{0,20}") {
        let mut request = plain(b"");
        for (name, value) in [("authorization", format!("AWS4-HMAC-SHA256 {authorization}")), ("x-amz-date", date)] {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                request.headers_mut().insert(name, value);
            }
        }
        if let Ok(uri) = format!("/?{query}").parse() {
            *request.uri_mut() = uri;
        }
        let _ = verify(&request);
    }
}
