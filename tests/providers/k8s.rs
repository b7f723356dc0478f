//! The contract on Kubernetes KMS v2 plugins: a plugin of another implementation (Python's gRPC, its stubs generated here from
//! the published field numbers), and sockets that are none.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use envelopefs::crypto::secret::Secret32;
use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::{Opening, open_cmk};
use envelopefs::keys::{CmkProvider, KeyError};

use super::contract::{self, Gaps, assert_bad_blob, assert_refused, assert_unreachable, branch};
use super::servers::{find, require};

/// Far more than any answer takes here.
const PATIENT: Duration = Duration::from_secs(30);
const HASTY: Duration = Duration::from_millis(300);

/// The Python with gRPC, and the directory of stubs that it made from our definition once.
fn python() -> Option<&'static (PathBuf, tempfile::TempDir)> {
    static PYTHON: OnceLock<Option<(PathBuf, tempfile::TempDir)>> = OnceLock::new();
    let made = PYTHON.get_or_init(|| {
        let usable = |python: &PathBuf| {
            let mut command = Command::new(python);
            command.args(["-c", "import grpc, grpc_tools, cryptography"]).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let python = find("python3").filter(usable)?;
        let stubs = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/providers/k8s");
        let status = Command::new(&python)
            .args(["-m", "grpc_tools.protoc", "-I"])
            .arg(&source)
            .arg(format!("--python_out={}", stubs.path().display()))
            .arg(format!("--grpc_python_out={}", stubs.path().display()))
            .arg(source.join("kms.proto"))
            .status()
            .unwrap();
        assert!(status.success());
        Some((python, stubs))
    });
    require("Python with grpcio, grpcio-tools and cryptography", made.as_ref().map(|(python, _)| python.clone()))?;
    made.as_ref()
}

/// A plugin and what it is told to do.
struct Plugin {
    scratch: tempfile::TempDir,
    secret: &'static str,
    child: Option<Child>,
}

impl Plugin {
    fn start(secret: &'static str) -> Option<Self> {
        let mut plugin = Self { scratch: tempfile::tempdir().unwrap(), secret, child: None };
        plugin.control(r#"{"key_id": "kek/1"}"#);
        plugin.run()?;
        Some(plugin)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn control(&self, json: &str) {
        std::fs::write(self.file("control.new"), json).unwrap();
        std::fs::rename(self.file("control.new"), self.file("control")).unwrap();
    }

    fn run(&mut self) -> Option<()> {
        let (python, stubs) = python()?;
        let _ = std::fs::remove_file(self.file("socket"));
        let errors = std::fs::File::create(self.file("errors")).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/providers/k8s/plugin.py");
        let mut command = Command::new(python);
        command.arg(source).arg(stubs.path()).arg(self.file("socket")).arg(self.secret);
        command.arg(self.file("control")).arg(self.file("log")).stdin(Stdio::null()).stderr(errors);
        let child = self.child.insert(command.spawn().unwrap());
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.scratch.path().join("socket")).is_err() {
            let errors = || std::fs::read_to_string(self.scratch.path().join("errors")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "the plugin ended: {}", errors());
            assert!(start.elapsed() < Duration::from_secs(60), "the plugin does not listen: {}", errors());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(())
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn cmk(&self, timeout: Duration) -> Arc<dyn CmkProvider> {
        open(&self.file("socket"), timeout)
    }

    /// Lines of the log: method and uid.
    fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        log.lines().map(String::from).collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn open(socket: &Path, timeout: Duration) -> Arc<dyn CmkProvider> {
    let uri = format!("k8skms://{}", socket.display()).parse().unwrap();
    open_cmk(&uri, &mut Opening::new(&PassphraseSource::Terminal, timeout)).unwrap()
}

fn config_error<T>(result: Result<T, KeyError>) -> String {
    match result {
        Err(KeyError::Config(text)) => text,
        Ok(_) => panic!("worked"),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_plugin_keeps_the_contract() {
    let Some(plugin) = Plugin::start("one") else { return };
    let Some(other) = Plugin::start("other") else { return };
    contract::holds(&|| plugin.cmk(PATIENT), Gaps::default());
    contract::keys_are_apart(&*plugin.cmk(PATIENT), &*other.cmk(PATIENT));
    let uids: Vec<String> = plugin.requests().into_iter().filter(|line| !line.starts_with("Status")).collect();
    assert!(uids.iter().all(|line| line.split(' ').nth(1).is_some_and(|uid| uid.len() == 32)));
    assert_eq!(
        uids.len(),
        uids.iter().collect::<std::collections::BTreeSet<_>>().len(),
        "every request has its own uid"
    );
}

#[test]
fn one_call_each() {
    let Some(plugin) = Plugin::start("one") else { return };
    let cmk = plugin.cmk(PATIENT);
    assert!(plugin.requests().is_empty(), "opening asks nothing");
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    let methods: Vec<_> = plugin.requests().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(methods, ["Encrypt", "Decrypt"]);
}

#[test]
fn a_rotated_plugin_opens_what_it_made_before() {
    let Some(plugin) = Plugin::start("one") else { return };
    let cmk = plugin.cmk(PATIENT);
    let name = cmk.key_ref().clone();
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    plugin.control(r#"{"key_id": "kek/2"}"#);
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    let (_, new) = cmk.generate(&branch(1)).unwrap();
    let holds = |blob: &[u8], key_id: &[u8]| blob.windows(key_id.len()).any(|w| w == key_id);
    assert!(holds(&blob, b"kek/1") && holds(&new, b"kek/2"));
    assert!(cmk.rewrap(&blob, &branch(1)).unwrap().is_none());
    assert!(cmk.describe().unwrap().description.contains("kek/2"));
    assert_eq!(plugin.cmk(PATIENT).key_ref(), &name, "rotation does not change the name");

    // The old version is gone: the plugin is well all the same, and the text says why.
    plugin.control(r#"{"key_id": "kek/2", "gone": ["kek/1"]}"#);
    match cmk.unwrap(&blob, &branch(1)) {
        Err(KeyError::BadBlob { reason, .. }) => {
            assert!(reason.contains("failed to decrypt") && reason.contains("kek/1"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_survives_a_moved_socket() {
    let Some(plugin) = Plugin::start("one") else { return };
    let socket = plugin.file("socket");
    let (key, blob) = plugin.cmk(PATIENT).generate(&branch(1)).unwrap();
    let moved = plugin.file("moved");
    std::fs::rename(&socket, &moved).unwrap();
    let uri = format!("k8skms://{}?name={}", moved.display(), socket.display()).parse().unwrap();
    let cmk = open_cmk(&uri, &mut Opening::new(&PassphraseSource::Terminal, PATIENT)).unwrap();
    assert_eq!(cmk.key_ref(), plugin.cmk(PATIENT).key_ref());
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
}

#[test]
fn down_and_back_without_opening_again() {
    let Some(mut plugin) = Plugin::start("one") else { return };
    let cmk = plugin.cmk(PATIENT);
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    plugin.stop();
    assert_unreachable(cmk.unwrap(&blob, &branch(1)), "killed");
    assert_unreachable(cmk.generate(&branch(1)), "killed");
    assert_unreachable(cmk.describe(), "killed");
    std::fs::remove_file(plugin.file("socket")).unwrap();
    match cmk.unwrap(&blob, &branch(1)) {
        Err(KeyError::Unreachable { reason, .. }) => {
            assert!(reason.contains("No such file") && reason.contains("socket"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    plugin.run().unwrap();
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
}

#[test]
fn a_hanging_plugin_costs_the_time_limit_and_no_more() {
    let Some(plugin) = Plugin::start("one") else { return };
    let (key, blob) = plugin.cmk(PATIENT).generate(&branch(1)).unwrap();
    plugin.control(r#"{"key_id": "kek/1", "mode": "hang"}"#);
    let cmk = plugin.cmk(HASTY);
    let start = Instant::now();
    assert_unreachable(cmk.unwrap(&blob, &branch(1)), "hangs");
    assert_unreachable(cmk.generate(&branch(1)), "hangs");
    assert_unreachable(cmk.describe(), "hangs");
    assert!(start.elapsed() >= 3 * HASTY && start.elapsed() < PATIENT);
    plugin.control(r#"{"key_id": "kek/1"}"#);
    assert_eq!(plugin.cmk(PATIENT).unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
}

#[test]
fn what_the_plugin_says_decides() {
    let Some(plugin) = Plugin::start("one") else { return };
    let cmk = plugin.cmk(PATIENT);
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    let mode = |mode: &str| plugin.control(&format!(r#"{{"key_id": "kek/1", "mode": "{mode}"}}"#));
    for code in ["PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION", "NOT_FOUND"] {
        mode(&format!("code:{code}"));
        assert_refused(cmk.generate(&branch(1)), &["as the test\\nwishes"], code);
        assert_refused(cmk.unwrap(&blob, &branch(1)), &["Decrypt: "], code);
    }
    mode("says:failed to decrypt operation error KMS: Decrypt, StatusCode: 400, DisabledException: kek is disabled.");
    assert_refused(cmk.generate(&branch(1)), &["DisabledException"], "a KMS behind the plugin");
    assert_refused(cmk.unwrap(&blob, &branch(1)), &["DisabledException"], "a KMS behind the plugin");
    // Errors of the plugin's own service, whatever their code: it does not open its own fresh seed either.
    for code in ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "INVALID_ARGUMENT"] {
        mode(&format!("code:{code}"));
        assert_unreachable(cmk.generate(&branch(1)), code);
        assert_unreachable(cmk.unwrap(&blob, &branch(1)), code);
    }
    mode("code:UNIMPLEMENTED");
    assert!(config_error(cmk.generate(&branch(1))).contains("KMS v2"));
    mode("cannot-decrypt");
    assert_unreachable(cmk.unwrap(&blob, &branch(1)), "encrypts, decrypts nothing");
    mode("empty");
    assert_unreachable(cmk.generate(&branch(1)), "no ciphertext");
    mode("endless");
    assert_unreachable(cmk.generate(&branch(1)), "an answer of a megabyte");
    mode("long");
    assert!(config_error(cmk.generate(&branch(1))).contains("annotations"));
    // A stumble, not a foreign blob.
    let before = plugin.requests().len();
    mode("fails-once");
    cmk.unwrap(&blob, &branch(1)).unwrap();
    let methods: Vec<_> = plugin.requests()[before..].iter().map(|r| r.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(methods, ["Decrypt", "Encrypt", "Decrypt", "Status", "Decrypt"]);
    mode("short");
    assert_bad_blob(cmk.unwrap(&blob, &branch(1)), "31 bytes");
    mode("ok");
    cmk.unwrap(&blob, &branch(1)).unwrap();
}

/// Else whoever writes to one file would take everybody's keys away.
#[test]
fn a_blob_that_names_another_key_does_not_revoke_this_one() {
    let Some(plugin) = Plugin::start("one") else { return };
    let cmk = plugin.cmk(PATIENT);
    let (_, mut blob) = cmk.generate(&branch(1)).unwrap();
    let at = blob.windows(5).position(|w| w == b"kek/1").unwrap();
    blob[at..at + 5].copy_from_slice(b"other");
    match cmk.unwrap(&blob, &branch(1)) {
        Err(KeyError::BadBlob { reason, .. }) => assert!(reason.contains("no right to other"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn status_tells_how_it_is() {
    let Some(plugin) = Plugin::start("one") else { return };
    let cmk = plugin.cmk(PATIENT);
    plugin.control(r#"{"key_id": "kek/1", "version": "v2beta1"}"#);
    cmk.describe().unwrap();
    plugin.control(r#"{"key_id": "kek/1", "version": "v1beta1"}"#);
    assert!(config_error(cmk.describe()).contains("v1beta1"));
    let (_, blob) = cmk.generate(&branch(1)).unwrap();
    plugin.control(r#"{"key_id": "kek/1", "healthz": "vault is sealed", "gone": ["kek/1"]}"#);
    for outcome in [cmk.describe().map(drop), cmk.unwrap(&blob, &branch(1)).map(drop)] {
        match outcome {
            Err(KeyError::Unreachable { reason, .. }) => assert!(reason.contains("vault is sealed"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_socket_that_is_no_plugin() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    // The first peer gets rubbish, the second an early end, the third nothing.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        drop(stream);
        drop(listener.accept().unwrap());
        let silent = listener.accept().unwrap();
        (listener, silent)
    });
    assert_unreachable(open(&socket, PATIENT).generate(&branch(1)), "rubbish");
    assert_unreachable(open(&socket, PATIENT).generate(&branch(1)), "an early end");
    assert_unreachable(open(&socket, HASTY).wrap(&Secret32::random(), &branch(1)), "silence");
    drop(server.join().unwrap());

    std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let error = config_error(open(&socket, PATIENT).generate(&branch(1)));
    assert!(error.contains("chmod o-w"), "{error}");
}
