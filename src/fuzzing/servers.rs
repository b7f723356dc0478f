//! What key services answer: whole HTTP answers through the providers' own clients, plugin messages, blobs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use super::{Target, choice, halves, sequence};
use crate::crypto::{kdf::hmac_sha256, secret::Secret32};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::aws::AwsCmk;
use crate::keys::providers::k8s::{blob, messages, plugin};
use crate::keys::providers::vault::{VaultCmk, transit};
use crate::keys::providers::{Opening, pkcs11};
use crate::keys::uri::{CmkAddress, CmkUri};
use crate::keys::{CmkProvider, EncryptionContext, KeyError};

pub const TARGETS: &[Target] = &[
    Target { name: "vault_answer", run: vault_answer },
    Target { name: "vault_blob", run: vault_blob },
    Target { name: "aws_answer", run: aws_answer },
    Target { name: "k8s_answer", run: k8s_answer },
    Target { name: "k8s_blob", run: k8s_blob },
    Target { name: "pkcs11_blob", run: pkcs11_blob },
];

const SECRET: [u8; 32] = [0x5e; 32];
/// Every promise about the words of a server: one bounded line without control characters.
const REASON_MAX: usize = 8 * 1024;

fn context() -> EncryptionContext {
    EncryptionContext::for_volume(&sequence(super::VOLUME_ID))
}

/// A service on the loopback that answers every request with the same bytes.
struct Service {
    port: u16,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Clone, Default)]
struct Answer {
    bytes: Vec<u8>,
    /// The connection serves the next request too.
    stays: bool,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on the loopback");
        let port = listener.local_addr().expect("its address").port();
        let answer = Arc::new(Mutex::new(Answer::default()));
        let said = answer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let said = said.clone();
                std::thread::spawn(move || serve(stream, &said));
            }
        });
        Self { port, answer }
    }

    /// `how` 0: the bytes themselves, the connection ends with them. Else a status line and a length are put in front.
    fn says(&self, how: u8, input: &[u8]) {
        let answer = if how & 1 == 0 {
            Answer { bytes: input.to_vec(), stays: false }
        } else {
            let (code, body) = choice(input);
            let status = [200, 200, 204, 400, 403, 404, 412, 429, 472, 500, 503, 307][usize::from(code) % 12];
            let head = format!(
                "HTTP/1.1 {status} x\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            Answer { bytes: [head.as_bytes(), body].concat(), stays: true }
        };
        *self.answer.lock().expect("nobody panics with it") = answer;
    }
}

fn serve(mut stream: TcpStream, said: &Mutex<Answer>) {
    let mut request = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
            _ => return,
        }
        if !is_whole(&request) {
            continue;
        }
        request.clear();
        let Answer { bytes, stays } = said.lock().expect("nobody panics with it").clone();
        if stream.write_all(&bytes).is_err() || !stays {
            return;
        }
    }
}

/// Our own clients send a length with every body.
fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    request.len() >= end + 4 + length.unwrap_or(0)
}

/// Each use of the provider, whatever it is answered. Nothing that was not asked for comes back, and errors are fit to show.
fn use_all(cmk: &dyn CmkProvider, blob: &[u8], how: u8, said: &[u8]) {
    let context = context();
    let key = Secret32::from_bytes(SECRET);
    let error = match how % 5 {
        0 => cmk.unwrap(blob, &context).err(),
        1 => cmk.generate(&context).map(|(_, blob)| assert!(!blob.is_empty() && blob.len() <= 6144)).err(),
        2 => cmk.wrap(&key, &context).map(|blob| assert!(!blob.is_empty() && blob.len() <= 6144)).err(),
        3 => cmk.rewrap(blob, &context).err(),
        _ => cmk.describe().err(),
    };
    if let Some(error) = error {
        check_error(&error, said);
    }
}

/// `said`: what the service said, which may be anything, a key that the fuzzer has guessed too.
fn check_error(error: &KeyError, said: &[u8]) {
    let text = error.to_string();
    assert!(text.len() <= REASON_MAX, "{} bytes of error", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    let shown = data_encoding::BASE64.encode(&SECRET);
    let guessed = said.windows(shown.len()).any(|window| window == shown.as_bytes());
    assert!(guessed || !text.contains(&shown) && !format!("{error:?}").contains(&shown), "a key in an error");
}

fn address(uri: &str) -> CmkAddress {
    CmkUri::parse(uri).expect("a URI of our own").address
}

fn vault_answer(input: &[u8]) {
    static VAULT: OnceLock<(Service, VaultCmk)> = OnceLock::new();
    let (service, cmk) = VAULT.get_or_init(|| {
        let service = Service::start();
        service.says(1, b"\0{\"data\":{\"type\":\"aes256-gcm96\",\"derived\":true,\"keys\":{\"1\":1}}}");
        let uri = address(&format!("hashivault://transit/k?auth=none&address=http://127.0.0.1:{}", service.port));
        let CmkAddress::Vault(uri) = uri else { unreachable!("the scheme says so") };
        let source = PassphraseSource::Nowhere;
        let cmk = VaultCmk::open(&uri, &mut Opening::new(&source, Duration::from_secs(2))).expect("a good answer");
        (service, cmk)
    });
    let (how, rest) = choice(input);
    service.says(how, rest);
    use_all(cmk, b"vault:v1:AAAA", how >> 1, rest);
}

fn vault_blob(input: &[u8]) {
    if let Ok(text) = transit::parse_blob(input) {
        assert_eq!(text.as_bytes(), input);
        assert!(text.starts_with("vault:v"));
    }
}

/// Needs `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the environment, whatever they are, or nothing is ever sent.
fn aws_answer(input: &[u8]) {
    static AWS: OnceLock<(Service, AwsCmk)> = OnceLock::new();
    let (service, cmk) = AWS.get_or_init(|| {
        let service = Service::start();
        let uri = address(&format!(
            "awskms:///arn:aws:kms:us-east-1:111122223333:key/0a?endpoint=http://127.0.0.1:{}",
            service.port
        ));
        let CmkAddress::Aws(uri) = uri else { unreachable!("the scheme says so") };
        let source = PassphraseSource::Nowhere;
        let cmk = AwsCmk::open(&uri, &mut Opening::new(&source, Duration::from_secs(2))).expect("an ARN asks nobody");
        (service, cmk)
    });
    let (how, rest) = choice(input);
    service.says(how, rest);
    use_all(cmk, b"blob", how >> 1, rest);
}

/// A plugin's messages, and its errors.
fn k8s_answer(input: &[u8]) {
    let (how, rest) = choice(input);
    if how & 1 == 1 {
        let (code, text) = choice(rest);
        let status = Status::new(Code::from(i32::from(code)), String::from_utf8_lossy(text));
        check_error(&plugin::meaning("Decrypt", &status).of("k8skms:k"), text);
        return;
    }
    let _ = messages::StatusResponse::decode(rest);
    let _ = messages::DecryptResponse::decode(rest);
    let Ok(answer) = messages::EncryptResponse::decode(rest) else { return };
    match blob::Seed::from_answer(answer) {
        Ok(seed) => {
            let (material, key) = (Secret32::from_bytes([7; 32]), Secret32::from_bytes(SECRET));
            let blob = blob::seal(&seed, &material, &key, &context());
            assert!(blob.len() <= blob::BLOB_MAX);
            let (back, wrapped) = blob::parse(&blob).expect("our own blob");
            assert_eq!(back, seed);
            let opened = blob::open(&back, &material, wrapped, &context()).expect("our own blob");
            assert_eq!(opened.expose(), &SECRET);
        }
        Err(trouble) => check_error(&trouble.of("k8skms:k"), rest),
    }
}

fn k8s_blob(input: &[u8]) {
    let Some((seed, wrapped)) = blob::parse(input) else { return };
    assert!(seed.ciphertext.len() + seed.key_id.len() <= input.len());
    let material = Secret32::from_bytes(hmac_sha256(&Secret32::from_bytes([1; 32]), &[&seed.ciphertext]));
    assert!(blob::open(&seed, &material, wrapped, &context()).is_err(), "a key from a blob that nobody made");
}

fn pkcs11_blob(input: &[u8]) {
    if let Some((iv, sealed)) = pkcs11::parts(input) {
        assert_eq!([&[1][..], &iv, sealed].concat(), input);
    }
    let (name, token) = halves(input);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let shown = pkcs11::printable(&text(name));
    assert!(!shown.chars().any(char::is_control) && shown.len() <= REASON_MAX);
    let key = crate::keys::uri::Pkcs11Uri::key_name(&text(token), "1", &text(name), name);
    assert!(!key.chars().any(char::is_control), "{key:?}");
}
