//! The token: where it comes from, how long it holds, and who replaces it. Knows no Transit.

use std::{
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use ureq::http::Method;
use zeroize::{Zeroize, Zeroizing};

use super::client::{Answer, Client};
use super::failure::{Failure, words};
use super::json_object;
use crate::keys::protected::{credentials_directory, read_bounded};
use crate::keys::uri::vault::{FilePath, RoleId, VaultAuth, from_environment};

/// Where the command lines of Vault and OpenBao look for a token first, and the file in the home directory.
const TOKEN_VARIABLES: [&str; 2] = ["VAULT_TOKEN", "BAO_TOKEN"];
const HOME_TOKEN: &str = ".vault-token";
/// Where Kubernetes puts a pod's own token.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Largest credential file, in bytes.
const CREDENTIAL_MAX: usize = 16 * 1024;
/// Logins do not follow each other faster, whatever the server says.
const LOGIN_PAUSE: Duration = Duration::from_secs(1);
/// A valid token that is younger and denied is denied by policy: another login would change nothing.
const POLICY_PAUSE: Duration = Duration::from_secs(60);
/// Leases are not believed to be longer, so that no clock overflows.
const LEASE_MAX: Duration = Duration::from_secs(10 * 365 * 86400);
/// Between attempts to renew, at most and at least.
const RETRY_MAX: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(200);

/// A token as it is sent.
pub struct Token {
    pub text: Zeroizing<String>,
    since: Instant,
}

/// What the server promised of a token.
#[derive(Debug, Clone, Copy)]
struct Lease {
    ends: Instant,
    /// When to renew, or to replace the token.
    due: Instant,
    renewable: bool,
    /// As granted first: one that comes back much shorter nears its end for good.
    full: Duration,
}

impl Lease {
    /// `None`: it never ends.
    fn new(seconds: u64, renewable: bool, full: Option<Duration>) -> Option<Self> {
        let length = Duration::from_secs(seconds).min(LEASE_MAX);
        if length.is_zero() {
            return None;
        }
        let now = Instant::now();
        let full = full.unwrap_or(length);
        Some(Self { ends: now + length, due: now + length * 2 / 3, renewable: renewable && length >= full / 2, full })
    }
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    lease: Option<Lease>,
    stop: bool,
}

struct Shared {
    client: Arc<Client>,
    method: VaultAuth,
    /// Longest time of one renewal.
    timeout: Duration,
    /// A moment each, never across a request.
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever logs in, so that nobody else does.
    replacing: Mutex<()>,
}

/// The login of one CMK. Its thread renews leases, and ends with it.
pub struct Auth {
    shared: Arc<Shared>,
    renewer: Option<JoinHandle<()>>,
}

impl Auth {
    pub fn new(client: Arc<Client>, method: VaultAuth, timeout: Duration) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            client,
            method,
            timeout,
            state: Mutex::default(),
            changed: Condvar::new(),
            replacing: Mutex::default(),
        });
        let renewer = match shared.method {
            VaultAuth::None => None,
            _ => {
                let shared = shared.clone();
                let renewer = std::thread::Builder::new().name("vault-token".into());
                let renewer = renewer.spawn(move || shared.keep_renewed());
                Some(renewer.map_err(|e| Failure::Unreachable(format!("no thread could be started: {e}")))?)
            }
        };
        Ok(Self { shared, renewer })
    }

    /// The token to send; `None` where an agent adds one.
    pub fn token(&self, until: Instant) -> Result<Option<Arc<Token>>, Failure> {
        self.shared.token(until)
    }

    /// Another token than `worn`, which was answered with 403, where one can be had: from a file that was rewritten, or
    /// by a new login, which also brings policies that the role was given meanwhile.
    pub fn instead_of(&self, worn: &Token, until: Instant) -> Result<Option<Arc<Token>>, Failure> {
        let shared = &self.shared;
        if let Some(token) = shared.current().filter(|token| token.text != worn.text) {
            return Ok(Some(token));
        }
        match &shared.method {
            VaultAuth::None => Ok(None),
            VaultAuth::Token { file } => match find_token(file.as_ref()) {
                Ok(text) if text != worn.text => shared.replace(Some(worn), until),
                // The 403 stands where there is none to be read either.
                _ => Ok(None),
            },
            _ => {
                let age = worn.since.elapsed();
                let by_policy = || age < POLICY_PAUSE && matches!(shared.found(worn, until), Some(Some(_)));
                if !shared.is_over() && (age < LOGIN_PAUSE || by_policy()) {
                    return Ok(None);
                }
                shared.replace(Some(worn), until)
            }
        }
    }

    /// Why `token` was answered with 403, and what to do: the server says the same to an expired token and to a denied one.
    pub fn explain(&self, token: Option<&Token>, wanted: &str, until: Instant) -> String {
        let Some(token) = token else {
            return format!("permission denied: the agent at {} may not {wanted}", self.shared.client.address());
        };
        match self.shared.found(token, until) {
            Some(Some(found)) => format!(
                "permission denied: the token is valid, but its policies ({}) do not allow to {wanted}",
                words(&found.policies.join(", "))
            ),
            _ => format!(
                "permission denied: the token is expired or revoked, or may not {wanted}; {}",
                self.shared.remedy()
            ),
        }
    }
}

impl Drop for Auth {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        // A renewal that waits for the server is interrupted.
        self.shared.client.shut_down();
        if let Some(renewer) = self.renewer.take() {
            // Its only way to fail is a panic, which has been reported.
            let _ = renewer.join();
        }
    }
}

impl Shared {
    /// What the server knows of a token; `Some(None)`: it is not valid, or may not ask; `None`: no answer.
    fn found(&self, token: &Token, until: Instant) -> Option<Option<Lookup>> {
        let path = "auth/token/lookup-self";
        let answer = self.client.call(&Method::GET, path, Some(&token.text), None, until).ok()?;
        Some(if answer.is_success() { Lookup::parse(&answer) } else { None })
    }

    fn current(&self) -> Option<Arc<Token>> {
        self.state.lock().token.clone()
    }

    /// Whether the token's lease has run out.
    fn is_over(&self) -> bool {
        self.state.lock().lease.is_some_and(|lease| lease.ends <= Instant::now())
    }

    fn token(&self, until: Instant) -> Result<Option<Arc<Token>>, Failure> {
        if matches!(self.method, VaultAuth::None) {
            return Ok(None);
        }
        let worn = match self.current() {
            // A token from a file is used until the server says no: only the server knows who else has renewed it.
            Some(token) if !self.is_over() || matches!(self.method, VaultAuth::Token { .. }) => return Ok(Some(token)),
            other => other,
        };
        self.replace(worn.as_deref(), until)?.map(Some).ok_or_else(|| Failure::Refused(self.remedy()))
    }

    /// A token other than `worn`; `None` where the source still holds the same one.
    fn replace(&self, worn: Option<&Token>, until: Instant) -> Result<Option<Arc<Token>>, Failure> {
        let Some(_only_one) = self.replacing.try_lock_until(until) else {
            return Err(Failure::Unreachable("another login did not end in time".into()));
        };
        // Somebody else may have done it meanwhile.
        if let Some(token) = self.current()
            && worn.is_none_or(|worn| worn.text != token.text)
            && !self.is_over()
        {
            return Ok(Some(token));
        }
        let (text, lease) = match &self.method {
            VaultAuth::None => return Ok(None),
            VaultAuth::Token { file } => {
                let text = find_token(file.as_ref())?;
                if worn.is_some_and(|worn| worn.text == text) {
                    return Ok(None);
                }
                let lease = self.look_up(&text, until)?;
                (text, lease)
            }
            VaultAuth::AppRole { mount, role_id, secret_id } => {
                let role_id = match role_id {
                    RoleId::Text(id) => Zeroizing::new(id.clone()),
                    RoleId::File(file) => read_credential(file, "role id file", Readers::Owner)?,
                };
                let secret_id = secret_id
                    .as_ref()
                    .map(|file| read_credential(file, "secret id file", Readers::Owner))
                    .transpose()?;
                let mut pairs = vec![("role_id", role_id.as_str())];
                pairs.extend(secret_id.as_ref().map(|id| ("secret_id", id.as_str())));
                self.log_in(mount, &pairs, until)?
            }
            VaultAuth::Kubernetes { mount, role, jwt } => {
                let default = FilePath::At(PathBuf::from(SERVICE_ACCOUNT_TOKEN));
                let jwt = read_credential(jwt.as_ref().unwrap_or(&default), "service account token", Readers::Anyone)?;
                self.log_in(mount, &[("role", role), ("jwt", &jwt)], until)?
            }
        };
        let token = Arc::new(Token { text, since: Instant::now() });
        let mut state = self.state.lock();
        (state.token, state.lease) = (Some(token.clone()), lease);
        drop(state);
        self.changed.notify_all();
        Ok(Some(token))
    }

    fn log_in(
        &self,
        mount: &str,
        pairs: &[(&str, &str)],
        until: Instant,
    ) -> Result<(Zeroizing<String>, Option<Lease>), Failure> {
        let method = self.method.name();
        let path = format!("auth/{}/login", crate::keys::uri::encode(mount.as_bytes()));
        let answer = self.client.call(&Method::POST, &path, None, Some(&json_object(pairs)), until)?;
        if !answer.is_success() {
            let said = answer.errors().unwrap_or_default();
            let hint = match self.method {
                VaultAuth::AppRole { .. } => {
                    "write a new secret id to secret_id_file=, or check role_id= and auth_mount="
                }
                _ => "check role=, auth_mount= and the role's bound service accounts",
            };
            return Err(Failure::Refused(format!("{method} login failed (HTTP {}): {said}; {hint}", answer.status)));
        }
        let Some(mut auth) = Granted::parse(&answer) else {
            return Err(Failure::Unreachable(format!(
                "{method} login at {}: the answer has no token (a login that asks for a second factor cannot be used)",
                self.client.address()
            )));
        };
        let lease = Lease::new(auth.lease_duration, auth.renewable, None);
        Ok((usable(std::mem::take(&mut auth.client_token)).map_err(Failure::Unreachable)?, lease))
    }

    /// A token that may not look itself up, or is not valid, has no lease that we know of: its first use decides.
    fn look_up(&self, text: &str, until: Instant) -> Result<Option<Lease>, Failure> {
        let answer = self.client.call(&Method::GET, "auth/token/lookup-self", Some(text), None, until)?;
        if !answer.is_success() {
            return Ok(None);
        }
        let Some(found) = Lookup::parse(&answer) else {
            return Err(Failure::Unreachable(format!(
                "{}: the answer about the token is malformed",
                self.client.address()
            )));
        };
        let lease = Lease::new(found.ttl, found.renewable, None);
        if let (Some(_), false, VaultAuth::Token { file: None }) = (lease, found.renewable, &self.method) {
            log::warn!(
                "the token for {} ends in {} s and cannot be renewed; use auth=approle, auth=kubernetes or token_file=",
                self.client.address(),
                found.ttl
            );
        }
        Ok(lease)
    }

    fn remedy(&self) -> String {
        match &self.method {
            VaultAuth::Token { file: Some(file) } => match file.path() {
                Ok(path) => format!("write a new token to {}", path.display()),
                Err(why) => why,
            },
            VaultAuth::Token { file: None } => {
                "a new token in ~/.vault-token is picked up, one in VAULT_TOKEN needs a new mount".into()
            }
            _ => "check the policies of its role".into(),
        }
    }

    /// The renewing thread. Waits without polling; ends when told so.
    fn keep_renewed(&self) {
        let mut failures = 0u32;
        loop {
            let mut state = self.state.lock();
            loop {
                let due = state.lease.map(|lease| lease.due);
                match due {
                    _ if state.stop => return,
                    Some(due) if due <= Instant::now() => break,
                    Some(due) => drop(self.changed.wait_until(&mut state, due)),
                    None => self.changed.wait(&mut state),
                }
            }
            let (token, lease) = (state.token.clone(), state.lease);
            drop(state);
            let (Some(token), Some(lease)) = (token, lease) else { continue };
            let until = Instant::now() + self.timeout;
            let outcome = match lease.renewable {
                true => self.renew(&token, &lease, until),
                false => self.replace_worn(&token, until),
            };
            match outcome {
                Ok(()) => failures = 0,
                Err(why) => {
                    failures = failures.saturating_add(1);
                    self.put_off(&token, &why, failures);
                }
            }
        }
    }

    fn renew(&self, token: &Token, lease: &Lease, until: Instant) -> Result<(), Failure> {
        let path = "auth/token/renew-self";
        let answer = self.client.call(&Method::POST, path, Some(&token.text), Some(b"{}"), until)?;
        if !answer.is_success() {
            return self.replace_worn(token, until);
        }
        let Some(granted) = Granted::parse(&answer) else {
            return Err(Failure::Unreachable("the answer to a renewal is malformed".into()));
        };
        let renewed = Lease::new(granted.lease_duration, granted.renewable, Some(lease.full));
        let mut state = self.state.lock();
        if state.token.as_ref().is_some_and(|current| current.text == token.text) {
            state.lease = renewed;
        }
        Ok(())
    }

    /// A token that cannot be renewed (any more).
    fn replace_worn(&self, token: &Token, until: Instant) -> Result<(), Failure> {
        match self.replace(Some(token), until)? {
            Some(_) => Ok(()),
            None => Err(Failure::Refused(format!("the token cannot be renewed; {}", self.remedy()))),
        }
    }

    /// Until the next attempt: soon while there is something to lose, and never without end in a row.
    fn put_off(&self, token: &Token, why: &Failure, failures: u32) {
        let mut state = self.state.lock();
        let current = state.token.as_ref().is_some_and(|current| current.text == token.text);
        let (true, false, Some(lease)) = (current, state.stop, &mut state.lease) else { return };
        let now = Instant::now();
        let left = lease.ends.saturating_duration_since(now);
        lease.due = now + (left / 4).max(RETRY_MIN * 2u32.saturating_pow(failures.min(10))).min(RETRY_MAX);
        if failures == 1 {
            let (Failure::Refused(why) | Failure::Unreachable(why) | Failure::BadBlob(why) | Failure::Config(why)) =
                why;
            log::warn!(
                "the token for {} ends in {} s and could not be renewed: {why}",
                self.client.address(),
                left.as_secs()
            );
        }
        if left.is_zero() {
            // The next call finds out; it is not asked for on and on.
            state.lease = None;
            if !matches!(self.method, VaultAuth::Token { .. }) {
                state.token = None;
            }
        }
    }
}

/// `auth` of a login's or a renewal's answer.
#[derive(Deserialize)]
struct Granted {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.client_token.zeroize();
    }
}

impl Granted {
    fn parse(answer: &Answer) -> Option<Self> {
        #[derive(Deserialize)]
        struct Login {
            auth: Option<Granted>,
        }
        serde_json::from_slice::<Login>(&answer.body).ok()?.auth
    }
}

/// `data` of what a token's own look-up says; without the token itself.
#[derive(Deserialize)]
struct Lookup {
    /// Seconds; 0 for one that never ends.
    #[serde(default)]
    ttl: u64,
    /// Left out for the token of an initialisation.
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    policies: Vec<String>,
}

impl Lookup {
    fn parse(answer: &Answer) -> Option<Self> {
        #[derive(Deserialize)]
        struct Outer {
            data: Option<Lookup>,
        }
        serde_json::from_slice::<Outer>(&answer.body).ok()?.data
    }
}

/// As a header can carry it.
fn usable(text: String) -> Result<Zeroizing<String>, String> {
    let text = Zeroizing::new(text);
    if text.is_empty() || text.len() > CREDENTIAL_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("that is no token (empty, or with characters that no token has)".into());
    }
    Ok(text)
}

/// In the order of the command line: the file that was named, the environment, the home directory.
fn find_token(file: Option<&FilePath>) -> Result<Zeroizing<String>, Failure> {
    if let Some(file) = file {
        return read_credential(file, "token file", Readers::Owner);
    }
    if let Some(token) = from_environment(&TOKEN_VARIABLES) {
        return usable(token).map_err(|why| Failure::Config(format!("VAULT_TOKEN: {why}")));
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(HOME_TOKEN));
    match home {
        Some(path) if path.exists() => read_credential(&FilePath::At(path), "token file", Readers::Owner),
        _ => Err(Failure::Config(
            "there is no token: set VAULT_TOKEN, write one to ~/.vault-token or name a file with token_file=; auth=approle \
             and auth=kubernetes log in by themselves"
                .into(),
        )),
    }
}

/// Who may read a credential besides us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readers {
    /// The owner and the group: agents write their tokens with mode 0640.
    Owner,
    /// Kubernetes projects service account tokens with mode 0644.
    Anyone,
}

/// The owner does not matter: agents run as users of their own, and whoever plants a wrong token gains nothing by it.
/// A file that cannot be read now may be there in a moment, when its writer is done.
fn read_credential(file: &FilePath, what: &str, readers: Readers) -> Result<Zeroizing<String>, Failure> {
    let path = file.path().map_err(Failure::Config)?;
    let later = |e: &dyn std::fmt::Display| Failure::Unreachable(format!("{what} {}: {e}", path.display()));
    let wrong = |why: String| Failure::Config(format!("{what} {} {why}", path.display()));
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path)
        .map_err(|e| later(&e))?;
    let meta = file.metadata().map_err(|e| later(&e))?;
    if !meta.is_file() {
        return Err(wrong("is not a regular file".into()));
    }
    let in_credentials = credentials_directory().is_some_and(|dir| path.starts_with(dir));
    if readers == Readers::Owner && meta.mode() & 0o007 != 0 && !in_credentials {
        return Err(wrong(format!(
            "has mode {:04o}, so everybody has access to it: chmod o= it",
            meta.mode() & 0o7777
        )));
    }
    let bytes = read_bounded(file, &path, what, CREDENTIAL_MAX).map_err(|e| later(&e))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not text".into()))?.trim();
    if text.is_empty() {
        return Err(later(&"it is empty"));
    }
    usable(text.to_string()).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn leases_are_renewed_at_two_thirds_and_given_up_when_they_shrink() {
        assert!(Lease::new(0, true, None).is_none());
        let lease = Lease::new(90, true, None).unwrap();
        let (to_due, to_end) = (lease.due - Instant::now(), lease.ends - Instant::now());
        assert!(lease.renewable && to_due <= Duration::from_secs(60) && to_due > Duration::from_secs(59));
        assert!(to_end > Duration::from_secs(89));
        assert!(Lease::new(45, true, Some(lease.full)).unwrap().renewable);
        assert!(!Lease::new(44, true, Some(lease.full)).unwrap().renewable);
        assert!(!Lease::new(90, false, None).unwrap().renewable);
        assert!(Lease::new(u64::MAX, true, None).unwrap().ends > Instant::now());
    }

    #[test]
    fn credential_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |readers| read_credential(&FilePath::At(path.clone()), "token file", readers);
        assert!(matches!(read(Readers::Owner), Err(Failure::Unreachable(why)) if why.contains("token file")));
        let write = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(b"s.abc\n", 0o640);
        assert_eq!(*read(Readers::Owner).unwrap(), "s.abc");
        write(b" \n", 0o600);
        assert!(matches!(read(Readers::Owner), Err(Failure::Unreachable(why)) if why.contains("empty")));
        write(b"s.abc", 0o644);
        assert!(matches!(read(Readers::Owner), Err(Failure::Config(why)) if why.contains("0644")));
        assert_eq!(*read(Readers::Anyone).unwrap(), "s.abc");
        for bad in [&b"a b"[..], b"a\nb", b"\xff", "ü".as_bytes()] {
            write(bad, 0o600);
            assert!(matches!(read(Readers::Owner), Err(Failure::Config(_))));
        }
        write(&[b'a'; CREDENTIAL_MAX + 1], 0o600);
        assert!(read(Readers::Owner).is_err());
        assert!(matches!(
            read_credential(&FilePath::At(dir.path().into()), "token file", Readers::Owner),
            Err(Failure::Config(_))
        ));
    }
}
