//! Load for a key service, and the least that such a service can cost. Driven by bench/kms.sh; no part of the test run.
//!
//! ```text
//! kms_load load PORT ID SECRET OPERATION CONNECTIONS SECONDS    Decrypt or GenerateDataKey, one JSON line of figures
//! kms_load bare PORT                                            HTTP, one SigV4 verification and one AES-GCM a request
//! ```
//! Requests are signed before the clock runs, so that the client costs next to nothing: each connection sends the same bytes
//! again and again, and waits for the answer before the next.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use data_encoding::{BASE64, HEXLOWER};
use envelopefs::crypto::random;
use envelopefs::kms::material::{KeySpec, Material, symmetric};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[path = "../tests/providers/sigv4.rs"]
mod sigv4;

use sigv4::Credentials;

const REGION: &str = "us-east-1";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["load", port, id, secret, operation, connections, seconds] => {
            let who = Credentials { id: id.into(), secret: secret.into() };
            let port = port.parse().expect("a port");
            load(port, &who, operation, connections.parse().expect("a count"), seconds.parse().expect("seconds"));
        }
        ["bare", port] => bare(port.parse().expect("a port")),
        // `cargo bench` without arguments.
        _ => println!("see bench/kms.sh"),
    }
}

/// The bytes of one signed request.
fn request(port: u16, who: &Credentials, operation: &str, input: &Value) -> Vec<u8> {
    let body = input.to_string();
    let host = format!("127.0.0.1:{port}");
    let headers = sigv4::headers(who, REGION, &host, operation, body.as_bytes());
    format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

/// A connection that is opened again where the server closes it after an answer.
struct Connection {
    port: u16,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    fn new(port: u16) -> Self {
        Self { port, stream: None, buffer: Vec::with_capacity(16 << 10) }
    }

    /// Status and body of the answer.
    fn ask(&mut self, request: &[u8]) -> std::io::Result<(u16, &[u8])> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(("127.0.0.1", self.port))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                stream
            }
        };
        stream.write_all(request)?;
        self.buffer.clear();
        let mut chunk = [0; 8192];
        let (head, body) = loop {
            let count = stream.read(&mut chunk)?;
            self.buffer.extend_from_slice(&chunk[..count]);
            let head = self.buffer.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
            let length = head.and_then(|head| length(&self.buffer[..head]));
            match (head, length) {
                (Some(head), Some(length)) if self.buffer.len() >= head + length => break (head, length),
                (Some(head), None) if count == 0 => break (head, self.buffer.len() - head),
                _ if count == 0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head]).unwrap_or("");
        let closes = text.starts_with("HTTP/1.0") || text.to_ascii_lowercase().contains("connection: close");
        if !closes {
            self.stream = Some(stream);
        }
        let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, &self.buffer[head..head + body]))
    }
}

fn length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

fn once(port: u16, who: &Credentials, operation: &str, input: &Value) -> Value {
    let mut connection = Connection::new(port);
    let (status, body) = connection.ask(&request(port, who, operation, input)).expect("an answer");
    assert_eq!(status, 200, "{operation}: {}", String::from_utf8_lossy(body));
    serde_json::from_slice(body).expect("JSON")
}

fn load(port: u16, who: &Credentials, operation: &str, connections: usize, seconds: u64) {
    let made = once(port, who, "CreateKey", &json!({}));
    let key = &made["KeyMetadata"]["KeyId"];
    let data_key = json!({"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": {"app": "bench"}});
    let input = match operation {
        "GenerateDataKey" => data_key,
        "Decrypt" => {
            let made = once(port, who, "GenerateDataKey", &data_key);
            json!({"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": {"app": "bench"}})
        }
        other => panic!("{other} is not measured"),
    };
    let request = request(port, who, operation, &input);
    let barrier = Barrier::new(connections + 1);
    let (mut times, failed) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::new(port);
                    let (mut times, mut failed) = (Vec::new(), 0u64);
                    // One to open the connection and to warm up.
                    let _ = connection.ask(&request);
                    barrier.wait();
                    let end = Instant::now() + Duration::from_secs(seconds);
                    loop {
                        let start = Instant::now();
                        if start >= end {
                            return (times, failed);
                        }
                        match connection.ask(&request) {
                            Ok((200, _)) => times.push(start.elapsed()),
                            _ => failed += 1,
                        }
                    }
                })
            })
            .collect();
        barrier.wait();
        let mut all = (Vec::new(), 0);
        for worker in workers {
            let (times, failed) = worker.join().expect("a worker");
            all.0.extend(times);
            all.1 += failed;
        }
        all
    });
    times.sort_unstable();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).map_or(0, |time| time.as_micros());
    let figures = json!({
        "operation": operation, "connections": connections, "seconds": seconds, "answers": times.len(), "failed": failed,
        "per_second": times.len() as u64 / seconds, "p50_us": at(0.5) as u64, "p99_us": at(0.99) as u64,
    });
    println!("{figures}");
}

/// What nobody can do without: parse, verify one signature, open one ciphertext, answer. No policy, no states, no trail.
struct Bare {
    material: Material,
    named: symmetric::Named,
}

fn mac(key: &[u8], text: &str) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

impl Bare {
    fn verify(head: &hyper::http::request::Parts, body: &[u8]) -> Option<()> {
        let header = |name: &str| head.headers.get(name)?.to_str().ok();
        let authorization = header("authorization")?;
        let part = |name: &str| authorization.split_once(name)?.1.split([',', ' ']).next();
        let (signed, signature) = (part("SignedHeaders=")?, part("Signature=")?);
        let scope = part("Credential=")?.split_once('/')?.1;
        let mut canonical = String::from("POST\n/\n\n");
        for name in signed.split(';') {
            canonical.push_str(&format!("{name}:{}\n", header(name)?));
        }
        canonical.push_str(&format!("\n{signed}\n{}", HEXLOWER.encode(&Sha256::digest(body))));
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            header("x-amz-date")?,
            HEXLOWER.encode(&Sha256::digest(canonical.as_bytes()))
        );
        let mut key = b"AWS4secret".to_vec();
        for part in scope.split('/').chain([to_sign.as_str()]) {
            key = mac(&key, part).to_vec();
        }
        (HEXLOWER.encode(&key) == signature).then_some(())
    }

    fn answer(&self, operation: &str, input: &Value) -> Option<Value> {
        let context = serde_json::from_value(input["EncryptionContext"].clone()).unwrap_or_default();
        let context = symmetric::canonical_context(&context);
        let key = "arn:aws:kms:us-east-1:000000000000:key/00000000-0000-0000-0000-000000000000";
        match operation {
            "TrentService.CreateKey" => Some(json!({"KeyMetadata": {"KeyId": key}})),
            "TrentService.GenerateDataKey" => {
                let fresh: [u8; 32] = random::array();
                let blob = symmetric::seal(&self.material, &self.named, &context, &fresh).ok()?;
                Some(json!({"CiphertextBlob": BASE64.encode(&blob), "Plaintext": BASE64.encode(&fresh), "KeyId": key}))
            }
            "TrentService.Decrypt" => {
                let blob = BASE64.decode(input["CiphertextBlob"].as_str()?.as_bytes()).ok()?;
                let plaintext = symmetric::open(&self.material, &context, &blob).ok()?;
                Some(json!({"Plaintext": BASE64.encode(&plaintext), "KeyId": key}))
            }
            _ => None,
        }
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let operation = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or("");
        let answer = Self::verify(&head, &body)
            .and_then(|()| self.answer(operation, &serde_json::from_slice(&body).unwrap_or(Value::Null)));
        let status = if answer.is_some() { 200 } else { 400 };
        let body = Full::new(Bytes::from(answer.unwrap_or_default().to_string()));
        Ok(Response::builder().status(status).body(body).expect("a response"))
    }
}

fn bare(port: u16) {
    let material = Material::generate(KeySpec::SymmetricDefault).expect("a key");
    let named = symmetric::Named { key: [0; 16], material: [0; 32] };
    let bare: &'static Bare = Box::leak(Box::new(Bare { material, named }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let service = service_fn(move |request| bare.serve(request));
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}
