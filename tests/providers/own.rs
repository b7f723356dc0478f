//! `envelopefs kms serve` as a server under test, beside the others: made, started, killed, started again. Knows no test.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::servers::{Server, free_port, http};
use super::sigv4::{self, Credentials};

pub const REGION: &str = "us-east-1";
pub const ACCOUNT: &str = "123456789012";

/// A service in a directory of its own.
pub struct Own {
    server: Option<Server>,
    pub port: u16,
    /// The account root: may do everything.
    pub root: Credentials,
    pub data: PathBuf,
    /// Holds the data and the log, where the caller gave no directory.
    _scratch: Option<tempfile::TempDir>,
    log: PathBuf,
}

impl Own {
    pub fn start() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut own = Self::start_in(scratch.path());
        own._scratch = Some(scratch);
        own
    }

    /// The data and its seal below `directory`.
    pub fn start_in(directory: &Path) -> Self {
        let mut own = Self::made_in(directory);
        own.serve();
        own
    }

    /// Made, and not running.
    pub fn made_in(directory: &Path) -> Self {
        let data = directory.join("kms");
        let made = run(Command::new(binary())
            .args(["kms", "init", "--json", "--account-id", ACCOUNT, "--region", REGION])
            .arg("--seal")
            .arg(seal(directory))
            .arg(&data));
        let root = access_key(&made);
        let port = free_port();
        Self { server: None, port, root, data, _scratch: None, log: directory.join("kms.log") }
    }

    /// Starts it on the port that it had.
    pub fn serve(&mut self) {
        self.serve_with(&[]);
    }

    pub fn serve_with(&mut self, arguments: &[&str]) {
        let mut command = Command::new(binary());
        command.args(["kms", "serve", "--listen", &format!("127.0.0.1:{}", self.port)]).args(arguments);
        let port = self.port;
        self.serve_by(&mut command, |_| TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// `command` lacks the directory only.
    pub fn serve_by(&mut self, command: &mut Command, is_up: impl Fn(&Self) -> bool) {
        command.arg(&self.data);
        self.server = Some(Server::start_until(command, self.port, &self.log, || is_up(self)));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.server = None;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// One verb of `envelopefs kms` on this service: what it prints, as JSON.
    pub fn verb(&self, name: &[&str], rest: &[&str]) -> Value {
        verb(&self.data, name, rest)
    }

    /// An operation of the API over the service's own socket, as the account root.
    pub fn verb_call(&self, operation: &str, input: &Value) -> Value {
        let mut command = Command::new(binary());
        command.args(["kms", "call"]).arg(&self.data).args([operation, &input.to_string()]);
        run(&mut command)
    }

    /// A new user without rights but those that key policies give.
    pub fn user(&self, name: &str) -> Credentials {
        access_key(&self.verb(&["user", "add"], &[name]))
    }
    /// One that is a service principal.
    pub fn service(&self, name: &str) -> Credentials {
        access_key(&self.verb(&["user", "add"], &["--service", name]))
    }
    /// `actions` on everything, by a policy of the user's own.
    pub fn allow(&self, user: &str, actions: &[&str]) {
        allow(&self.data, user, actions);
    }

    /// One signed call: status and body.
    pub fn ask(&self, who: &Credentials, operation: &str, input: &Value) -> Result<(u16, Value), String> {
        call(self.port, who, operation, input)
    }
    /// One call as the account root, which must succeed.
    pub fn admin(&self, operation: &str, input: &Value) -> Value {
        admin(self.port, &self.root, operation, input)
    }
}

/// One verb of `envelopefs kms`: what it prints, as JSON.
pub fn verb(data: &Path, verb: &[&str], rest: &[&str]) -> Value {
    run(Command::new(binary()).arg("kms").args(verb).arg("--json").arg(data).args(rest))
}
/// One that prints nothing.
pub fn quiet_verb(data: &Path, verb: &[&str], rest: &[&str]) {
    run(Command::new(binary()).arg("kms").args(verb).arg(data).args(rest));
}
pub fn allow(data: &Path, user: &str, actions: &[&str]) {
    let policy = serde_json::json!({"Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), policy.to_string()).unwrap();
    quiet_verb(data, &["user", "policy", "put"], &[user, file.path().to_str().unwrap()]);
}

/// One signed call to a service on this host: status and body (`null` where it is empty).
pub fn call(port: u16, who: &Credentials, operation: &str, input: &Value) -> Result<(u16, Value), String> {
    let body = input.to_string();
    let headers = sigv4::headers(who, REGION, &format!("127.0.0.1:{port}"), operation, body.as_bytes());
    let (status, answer) = http(port, "POST /", &headers, body.as_bytes())?;
    Ok((status, serde_json::from_slice(&answer).unwrap_or(Value::Null)))
}

pub fn admin(port: u16, root: &Credentials, operation: &str, input: &Value) -> Value {
    let (status, answer) = call(port, root, operation, input).unwrap();
    assert_eq!(status, 200, "{operation}: {answer}");
    answer
}

/// A keyfile beside the data.
fn seal(directory: &Path) -> String {
    let file = directory.join("seal.json");
    if !file.exists() {
        let output = Command::new(binary()).arg("keygen").arg(&file).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    format!("keyfile://{}", file.display())
}

fn access_key(answer: &Value) -> Credentials {
    let field = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("no {name}: {answer}")).to_owned();
    Credentials { id: field("AccessKeyId"), secret: field("SecretAccessKey") }
}

fn binary() -> PathBuf {
    std::env::var_os("ENVELOPEFS_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_envelopefs").into(), PathBuf::from)
}

fn run(command: &mut Command) -> Value {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.stdout.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{command:?}: {e}: {}", String::from_utf8_lossy(&output.stdout)))
}
