//! SoftHSM tokens for a test: each test runs in a process of its own with its own tokens, since a module and its logins belong
//! to a process; what another process would do to a token is done by another process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};

use crate::servers::{find, require};

/// Names the test that a child process is to run.
const CASE: &str = "ENVELOPEFS_TEST_PKCS11_CASE";
/// What a child process is to do to a token.
const ACTION: &str = "ENVELOPEFS_TEST_PKCS11_ACTION";
const SCRATCH: &str = "ENVELOPEFS_TEST_PKCS11_SCRATCH";

pub const PIN: &str = "1234-user";
const SO_PIN: &str = "1234-officer";

pub fn module() -> Option<PathBuf> {
    let known =
        ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib/pkcs11/libsofthsm2.so"];
    require("softhsm2-util", find("softhsm2-util"))?;
    require("libsofthsm2.so", known.map(PathBuf::from).into_iter().find(|path| path.is_file()))
}

/// Runs `case` in a child process, which has a SoftHSM of its own.
pub fn alone(name: &str, case: impl FnOnce(&Tokens)) {
    if std::env::var_os(CASE).is_some_and(|wanted| wanted == *name) {
        let scratch = PathBuf::from(std::env::var_os(SCRATCH).unwrap());
        return case(&Tokens { scratch, module: module().unwrap() });
    }
    let Some(module) = module() else { return };
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir(scratch.path().join("tokens")).unwrap();
    let conf = format!("directories.tokendir = {}/tokens\nlog.level = ERROR\n", scratch.path().display());
    std::fs::write(scratch.path().join("conf"), conf).unwrap();
    let mut command = itself(&format!("pkcs11::{name}"));
    command.env(CASE, name).env(SCRATCH, scratch.path()).env("SOFTHSM2_CONF", scratch.path().join("conf"));
    command.env("FAULTS_DIR", scratch.path()).env("FAULTS_MODULE", module);
    succeed(command);
}

fn itself(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{command:?}: {}\n{text}", output.status);
}

/// The tokens of this process.
pub struct Tokens {
    pub scratch: PathBuf,
    pub module: PathBuf,
}

impl Tokens {
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A private file with a PIN.
    pub fn pin_file(&self, pin: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.file("pin");
        std::fs::write(&path, format!("{pin}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    pub fn make_token(&self, label: &str) {
        let mut command = Command::new(find("softhsm2-util").unwrap());
        command.args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// In another process; see [`act`].
    pub fn elsewhere(&self, action: &[&str]) {
        let mut command = itself("pkcs11::another_process");
        command.env_remove(CASE).env(ACTION, action.join("\n"));
        succeed(command);
    }

    /// An AES-256 key that does not leave its token. The same `seed` is the same key.
    pub fn make_key(&self, token: &str, label: &str, id: &str, seed: &str) {
        self.elsewhere(&["make", token, label, id, seed, "32"]);
    }

    /// The module with faults in front of it.
    pub fn faulty(&self) -> PathBuf {
        let library = self.file("faults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/providers/pkcs11/faults.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut open = std::fs::metadata(&library).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o755);
        std::fs::set_permissions(&library, open).unwrap();
        library
    }

    /// Return codes, each for one call.
    pub fn fail(&self, function: &str, codes: &[u32]) {
        let lines: String = codes.iter().map(|code| format!("{code:x}\n")).collect();
        std::fs::write(self.file(&format!("fail-{function}")), lines).unwrap();
    }

    pub fn hang(&self, function: &str) {
        std::fs::write(self.file(&format!("hang-{function}")), "").unwrap();
    }

    pub fn release(&self, function: &str) {
        std::fs::remove_file(self.file(&format!("hang-{function}"))).unwrap();
    }

    /// How often the faulty module was called.
    pub fn calls(&self, function: &str) -> usize {
        let calls = std::fs::read_to_string(self.file("calls")).unwrap_or_default();
        calls.lines().filter(|line| *line == function).count()
    }
}

/// Repeats until it succeeds; for what another thread is about to do.
pub fn eventually<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(e) => assert!(start.elapsed() < Duration::from_secs(60), "{e:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What [`Tokens::elsewhere`] asked this process for.
pub fn act() {
    let Some(action) = std::env::var_os(ACTION) else { return };
    let action = action.into_string().unwrap();
    let words: Vec<&str> = action.split('\n').collect();
    let context = Pkcs11::new(module().unwrap()).unwrap();
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    match words.as_slice() {
        ["make", token, label, id, seed, len] => {
            let session = session(&context, token);
            session.create_object(&key(label, id, seed, len.parse().unwrap(), true)).unwrap();
        }
        ["make-extractable", token, label, id, seed] => {
            session(&context, token).create_object(&key(label, id, seed, 32, false)).unwrap();
        }
        ["make-generic", token, label] => {
            let mut template = key(label, "g", "g", 32, true);
            template.retain(|a| !matches!(a, Attribute::KeyType(_)));
            template.push(Attribute::KeyType(KeyType::GENERIC_SECRET));
            session(&context, token).create_object(&template).unwrap();
        }
        ["make-data", token, label] => {
            let label = Attribute::Label(label.as_bytes().to_vec());
            let class = Attribute::Class(ObjectClass::DATA);
            session(&context, token).create_object(&[class, Attribute::Token(true), label]).unwrap();
        }
        ["remove", token, label] => {
            let session = session(&context, token);
            let label = Attribute::Label(label.as_bytes().to_vec());
            let objects: Vec<_> = session.find_objects(&[Attribute::Token(true), label]).unwrap();
            assert_eq!(objects.len(), 1);
            session.destroy_object(objects[0]).unwrap();
        }
        other => panic!("{other:?}"),
    }
}

fn session(context: &Pkcs11, token: &str) -> Session {
    let slots = context.get_slots_with_initialized_token().unwrap();
    let slot = slots.into_iter().find(|slot| context.get_token_info(*slot).unwrap().label() == token).unwrap();
    let session = context.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&PIN.to_string().into())).unwrap();
    session
}

fn key(label: &str, id: &str, seed: &str, len: usize, sealed: bool) -> Vec<Attribute> {
    let value: Vec<u8> = seed.bytes().cycle().take(len).collect();
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(sealed),
        Attribute::Extractable(!sealed),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Value(value),
    ];
    if !id.is_empty() {
        template.push(Attribute::Id(id.as_bytes().to_vec()));
    }
    template
}
