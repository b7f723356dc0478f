//! AWS KMS stand-ins for mounts: a server, a front that can misbehave, volumes under its keys. Knows no test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::common::{Mount, Volume, text};
use crate::fault::{Behaviour, FaultServer};
use crate::own::Own;
use crate::servers::{Server, find, free_port, http, require};
use crate::sigv4::Credentials;

/// Credentials that such servers take.
pub const CREDENTIALS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "not-a-real-secret-access-key")];

pub struct Kms {
    server: Kind,
    pub front: FaultServer,
    port: u16,
}

enum Kind {
    Other(#[allow(dead_code, reason = "ends with the test")] Server),
    Own(Box<Own>),
}

/// Services of this package that run here: the profile and the access key of each, since they do look at signatures.
static PROFILES: Mutex<Vec<(String, Credentials)>> = Mutex::new(Vec::new());

impl Kms {
    /// Encryption contexts and blobs are checked there; key states are not.
    pub fn moto() -> Option<Self> {
        let program = require("moto (moto_server)", find("moto_server"))?;
        let port = free_port();
        Some(Self::start(Command::new(program).args(["-H", "127.0.0.1", "-p", &port.to_string()]), port))
    }
    /// Key states are enforced there, and RSA is real; contexts and blobs are not checked.
    pub fn ministack() -> Option<Self> {
        let program = require("ministack", find("ministack"))?;
        let port = free_port();
        let mut command = Command::new(program);
        command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string());
        Some(Self::start(&mut command, port))
    }

    fn start(command: &mut Command, port: u16) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let server = Server::start(command, port, log.path());
        Self { server: Kind::Other(server), front: FaultServer::start(Behaviour::Forward(port)), port }
    }

    /// `envelopefs kms serve`: everything is checked and enforced there.
    pub fn own() -> Self {
        let own = Own::start();
        let port = own.port;
        PROFILES.lock().unwrap().push((format!("own-{port}"), own.root.clone()));
        Self { server: Kind::Own(Box::new(own)), front: FaultServer::start(Behaviour::Forward(port)), port }
    }
    /// Another server, where it is installed, and then this package's own.
    pub fn and_own(other: fn() -> Option<Self>) -> Vec<Self> {
        other().into_iter().chain(cfg!(feature = "kms").then(Self::own)).collect()
    }

    /// One call past the front, as an administrator.
    pub fn call(&self, operation: &str, body: &Value) -> Value {
        if let Kind::Own(own) = &self.server {
            return own.admin(operation, body);
        }
        let headers = format!(
            "X-Amz-Target: TrentService.{operation}\r\nContent-Type: application/x-amz-json-1.1\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/kms/aws4_request, \
             SignedHeaders=host, Signature=0\r\n"
        );
        let (status, answer) = http(self.port, "POST /", &headers, body.to_string().as_bytes()).unwrap();
        assert_eq!(status, 200, "{operation}: {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap_or(Value::Null)
    }

    /// A new symmetric key: its id.
    pub fn key(&self) -> String {
        self.key_of("SYMMETRIC_DEFAULT")
    }
    pub fn key_of(&self, spec: &str) -> String {
        let made = self.call("CreateKey", &json!({ "KeySpec": spec, "KeyUsage": "ENCRYPT_DECRYPT" }));
        made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }

    /// The URI of a key behind the front.
    pub fn uri(&self, key: &str) -> String {
        let profile = match &self.server {
            Kind::Own(_) => format!("&profile=own-{}", self.port),
            Kind::Other(_) => String::new(),
        };
        format!("awskms:///{key}?region=us-east-1&endpoint=http://127.0.0.1:{}{profile}", self.front.port)
    }
    pub fn works(&self) {
        self.front.set(Behaviour::Forward(self.port));
    }
    pub fn real_port(&self) -> u16 {
        self.port
    }
}

/// A volume under these CMKs.
pub fn volume(cmks: &[&str], options: &[&str]) -> Volume {
    let volume = Volume::unmade(None);
    let profiles: String = PROFILES
        .lock()
        .unwrap()
        .iter()
        .map(|(name, who)| format!("[{name}]\naws_access_key_id={}\naws_secret_access_key={}\n", who.id, who.secret))
        .collect();
    std::fs::write(credentials_file(&volume), profiles).unwrap();
    let mut arguments = vec!["init"];
    cmks.iter().for_each(|cmk| arguments.extend(["--cmk", *cmk]));
    arguments.extend(options);
    let output = crate::common::finish(command(&volume, &arguments).arg(&volume.cipher));
    assert!(output.status.success(), "{}", text(&output));
    volume
}

/// `envelopefs` with credentials.
pub fn command(volume: &Volume, arguments: &[&str]) -> Command {
    let mut command = volume.command(arguments);
    command.envs(CREDENTIALS).env("AWS_EC2_METADATA_DISABLED", "true").env("ENVELOPEFS_RUNTIME_DIR", runtime(volume));
    command.env("AWS_SHARED_CREDENTIALS_FILE", credentials_file(volume));
    command
}
pub fn credentials_file(volume: &Volume) -> PathBuf {
    volume.scratch().join("aws-credentials")
}
fn runtime(volume: &Volume) -> PathBuf {
    volume.scratch().join("run")
}

pub fn mount_command(volume: &Volume, options: &str) -> Command {
    let mut command = command(volume, &["mount", "--foreground", "-o", options]);
    command.arg(&volume.cipher).arg(&volume.mountpoint);
    command
}
pub fn mount(volume: &Volume, options: &str) -> Mount {
    Mount::wait_until_up(volume, &volume.mountpoint, mount_command(volume, options))
}

/// What `envelopefs status --json` says.
pub fn status(volume: &Volume) -> Value {
    let output = crate::common::finish(command(volume, &["status", "--json"]).arg(&volume.mountpoint));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
}
/// The entry of one CMK, by a part of its key's name.
pub fn cmk(status: &Value, key: &str) -> Value {
    let cmks = status["cmks"].as_array().unwrap_or_else(|| panic!("no cmks in {status}"));
    cmks.iter().find(|cmk| cmk["key"].as_str().unwrap().contains(key)).unwrap().clone()
}
pub fn calls(volume: &Volume, key: &str) -> (u64, u64) {
    let cmk = cmk(&status(volume), key);
    (cmk["generate"]["calls"].as_u64().unwrap(), cmk["unwrap"]["calls"].as_u64().unwrap())
}
pub fn forget_keys(volume: &Volume) {
    let output = crate::common::finish(command(volume, &["forget-keys"]).arg(&volume.mountpoint));
    assert!(output.status.success(), "{}", text(&output));
}
