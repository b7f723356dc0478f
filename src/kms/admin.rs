//! The verbs of the command line: what they ask for, the socket that they ask at, and what is done. They act as the account root.
//!
//! One JSON line each way: `{"version":1,"request":KIND,…}`, answered by `{"version":1,"ok":VALUE}` or
//! `{"version":1,"error":{"code":CODE,"message":TEXT}}`. The socket is in the service's directory, which only its owner may
//! enter; whoever connects must be that owner or root.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::audit::verify;
use super::operations::{self, Asked, Caller, Origin};
use super::policy::Document;
use super::users;
use super::view::{Piece, ROOT};
use super::wire::ApiError;
use super::wire::time::rfc3339;
use super::{Edit, Service};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::CmkUri;
use crate::sys::peer;

const SOCKET: &str = "admin.sock";
const VERSION: u32 = 1;
const REQUEST_MAX: u64 = 1 << 20;
const ANSWER_MAX: u64 = 256 << 20;
const CLIENTS_MAX: usize = 16;
/// How long a client may take to say what it wants and to take its answer.
const CLIENT: Duration = Duration::from_secs(10);
/// How long an answer may take: a backup or a verification reads everything.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Request {
    Status {},
    /// An operation of the API.
    Call {
        operation: String,
        input: Value,
    },
    UserAdd {
        name: String,
        service: bool,
    },
    /// With all access keys, or one of them.
    UserDisable {
        name: String,
        access_key: Option<String>,
    },
    UserEnable {
        name: String,
    },
    /// A new access key; the others end, but for the newest where `keep_old`.
    UserRotate {
        name: String,
        keep_old: bool,
    },
    UserList {},
    PolicyPut {
        name: String,
        document: String,
    },
    PolicyGet {
        name: String,
    },
    PolicyDelete {
        name: String,
    },
    /// To a file that the service can make.
    Backup {
        file: PathBuf,
    },
    RotateSeal {
        uri: String,
        passphrase_file: Option<PathBuf>,
    },
    VerifyTrail {},
}

#[derive(Serialize, Deserialize)]
struct Question {
    version: u32,
    #[serde(flatten)]
    request: Request,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Told>,
}

/// An error as it is told.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{}", if .message.is_empty() { .code } else { .message })]
pub struct Told {
    pub code: String,
    pub message: String,
}

impl From<ApiError> for Told {
    fn from(error: ApiError) -> Self {
        Self { code: error.code.into(), message: error.message.unwrap_or_default() }
    }
}

fn refused(code: &str, message: impl Into<String>) -> Told {
    Told { code: code.into(), message: message.into() }
}

fn no_such_user(name: &str) -> Told {
    refused("NoSuchEntity", format!("The user with name {name} cannot be found."))
}

impl Service {
    /// Does what is asked, as the account root, for the process with this user id.
    pub fn administer(&self, request: Request, uid: u32) -> Result<Value, Told> {
        let admin = Admin { service: self, uid };
        match request {
            Request::Status {} => Ok(admin.status()),
            Request::Call { operation, input } => admin.call(&operation, &input),
            Request::UserAdd { name, service } => admin.add(&name, service),
            Request::UserDisable { name, access_key } => admin.disable(&name, access_key.as_deref()),
            Request::UserEnable { name } => admin.enable(&name),
            Request::UserRotate { name, keep_old } => admin.rotate(&name, keep_old),
            Request::UserList {} => Ok(admin.list()),
            Request::PolicyPut { name, document } => admin.put_policy(&name, Some(document)),
            Request::PolicyDelete { name } => admin.put_policy(&name, None),
            Request::PolicyGet { name } => admin.get_policy(&name),
            Request::Backup { file } => admin.backup(&file),
            Request::RotateSeal { uri, passphrase_file } => admin.rotate_seal(&uri, passphrase_file),
            Request::VerifyTrail {} => admin.verify(),
        }
    }
}

struct Admin<'a> {
    service: &'a Service,
    uid: u32,
}

impl Admin<'_> {
    fn event(&self, name: &'static str, request: Value, read_only: bool) -> super::audit::Event {
        let mut event = self.service.own_event(name, request, Vec::new());
        event.actor = super::audit::Actor::Administrator { uid: self.uid };
        event.source = "admin socket".into();
        event.user_agent = user_agent();
        event.read_only = read_only;
        event
    }

    fn status(&self) -> Value {
        let service = self.service;
        let view = service.view();
        let header = service.store().header();
        let head = service.trail().head();
        json!({
            "service-id": service.record.id,
            "account": service.record.account,
            "region": service.record.region,
            "created": rfc3339(service.record.created),
            "seal": header.data_key.seal,
            "sealed": rfc3339(header.data_key.sealed),
            "keys": view.keys.len(),
            "aliases": view.aliases.len(),
            "users": view.users.len(),
            "trail-records": head.sequence,
        })
    }

    fn call(&self, operation: &str, input: &Value) -> Result<Value, Told> {
        let root = self.service.view().users.get(ROOT).cloned();
        let user = root.ok_or_else(|| refused("InternalFailure", "the store has no account root"))?;
        let caller = Caller { user, access_key: Err(self.uid) };
        let origin = Origin { address: None, user_agent: user_agent(), tls: None, request_id: operations::new_uuid() };
        match operations::find(operation) {
            Asked::Served(operation) => {
                let body = input.to_string();
                Ok(self.service.perform(operation, body.as_bytes(), &caller, &origin)?)
            }
            Asked::Unsupported(name) => Err(self.service.refuse(name, &caller, &origin).into()),
            Asked::Unknown => Err(refused("UnknownOperationException", format!("there is no operation {operation}"))),
        }
    }

    fn add(&self, name: &str, service_principal: bool) -> Result<Value, Told> {
        let service = self.service;
        users::check_name(name).map_err(|why| refused("ValidationError", why))?;
        let writer = service.writer();
        {
            let view = service.view();
            if view.users.contains_key(name) {
                return Err(refused("EntityAlreadyExists", format!("User with name {name} already exists.")));
            }
            if view.users.len() >= users::USERS_MAX {
                return Err(refused("LimitExceeded", "The number of users has reached its limit."));
            }
        }
        let (record, secret) = users::new_user(service.store().keys(), name, service_principal, service.now());
        let user = service.user(record)?;
        let arn = user.arn.clone();
        let event = self.event(
            "CreateUser",
            json!({"userName": name, "servicePrincipal": service_principal, "accessKeyId": secret.id}),
            false,
        );
        service.change(&writer, Edit::put(Piece::User(Arc::new(user))), &event)?;
        Ok(shown_once(name, &arn, &secret))
    }

    /// Alters a user and records it.
    fn alter(
        &self,
        name: &str,
        event: &'static str,
        request: Value,
        alter: impl FnOnce(&mut super::store::records::UserRecord) -> Result<(), Told>,
    ) -> Result<Arc<super::view::User>, Told> {
        let service = self.service;
        let writer = service.writer();
        let old = service.view().users.get(name).cloned().ok_or_else(|| no_such_user(name))?;
        let mut record = old.record.clone();
        alter(&mut record)?;
        let user = Arc::new(service.user(record)?);
        service.change(&writer, Edit::put(Piece::User(user.clone())), &self.event(event, request, false))?;
        Ok(user)
    }

    fn disable(&self, name: &str, access_key: Option<&str>) -> Result<Value, Told> {
        let request = json!({"userName": name, "accessKeyId": access_key, "status": "Inactive"});
        self.alter(name, "UpdateAccessKey", request, |user| {
            match access_key {
                None => user.enabled = false,
                Some(id) => match user.access_keys.iter_mut().find(|key| key.id == id) {
                    Some(key) => key.active = false,
                    None => return Err(refused("NoSuchEntity", format!("The user {name} has no access key {id}."))),
                },
            }
            Ok(())
        })?;
        Ok(Value::Null)
    }

    fn enable(&self, name: &str) -> Result<Value, Told> {
        self.alter(name, "UpdateAccessKey", json!({"userName": name, "status": "Active"}), |user| {
            user.enabled = true;
            Ok(())
        })?;
        Ok(Value::Null)
    }

    fn rotate(&self, name: &str, keep_old: bool) -> Result<Value, Told> {
        let service = self.service;
        let (access_key, secret) = users::new_access_key(service.store().keys(), name, service.now());
        let request = json!({"userName": name, "accessKeyId": secret.id, "keepOld": keep_old});
        let user = self.alter(name, "CreateAccessKey", request, |user| {
            let kept = if keep_old { users::ACCESS_KEYS_MAX - 1 } else { 0 };
            let surplus = user.access_keys.len().saturating_sub(kept);
            user.access_keys.drain(..surplus);
            user.access_keys.push(access_key);
            Ok(())
        })?;
        Ok(shown_once(name, &user.arn, &secret))
    }

    fn list(&self) -> Value {
        self.service.record_event(&self.event("ListUsers", Value::Null, true));
        let view = self.service.view();
        let users = view.users.values().map(|user| {
            let keys = user.record.access_keys.iter().map(|key| {
                let active = key.active && user.record.enabled;
                json!({
                    "AccessKeyId": key.id,
                    "Status": if active { "Active" } else { "Inactive" },
                    "CreateDate": rfc3339(key.created),
                })
            });
            json!({
                "UserName": user.record.name,
                "Arn": user.arn,
                "CreateDate": rfc3339(user.record.created),
                "ServicePrincipal": user.record.service,
                "HasPolicy": user.record.policy.is_some(),
                "AccessKeys": keys.collect::<Vec<_>>(),
            })
        });
        json!({"Users": users.collect::<Vec<_>>()})
    }

    fn put_policy(&self, name: &str, document: Option<String>) -> Result<Value, Told> {
        if let Some(document) = &document {
            Document::parse_user_policy(document).map_err(|e| refused("MalformedPolicyDocument", e.to_string()))?;
        }
        let event = if document.is_some() { "PutUserPolicy" } else { "DeleteUserPolicy" };
        let request = json!({"userName": name, "policyDocument": document});
        self.alter(name, event, request, |user| {
            if name == ROOT {
                return Err(refused(
                    "ValidationError",
                    "the account root has all rights of the account; it takes no policy",
                ));
            }
            if document.is_none() && user.policy.is_none() {
                return Err(refused("NoSuchEntity", format!("The user {name} has no policy.")));
            }
            user.policy = document;
            Ok(())
        })?;
        Ok(Value::Null)
    }

    fn get_policy(&self, name: &str) -> Result<Value, Told> {
        self.service.record_event(&self.event("GetUserPolicy", json!({"userName": name}), true));
        let user = self.service.view().users.get(name).cloned().ok_or_else(|| no_such_user(name))?;
        match &user.record.policy {
            Some(policy) => Ok(json!({"UserName": name, "PolicyDocument": policy})),
            None => Err(refused("NoSuchEntity", format!("The user {name} has no policy."))),
        }
    }

    fn backup(&self, file: &Path) -> Result<Value, Told> {
        let bytes = self.service.store().backup(file).map_err(|e| refused("BackupFailed", e.to_string()))?;
        self.service.record_event(&self.event("BackupService", json!({"file": file, "bytes": bytes}), false));
        Ok(json!({"File": file, "Bytes": bytes}))
    }

    fn rotate_seal(&self, uri: &str, passphrase_file: Option<PathBuf>) -> Result<Value, Told> {
        let failed = |e: &dyn std::fmt::Display| refused("SealFailed", e.to_string());
        let uri = CmkUri::parse(uri).map_err(|e| failed(&e))?;
        let passphrase = passphrase_file.map_or(PassphraseSource::Nowhere, PassphraseSource::File);
        let header = self.service.reseal(&uri, &passphrase).map_err(|e| failed(&e))?;
        self.service.record_event(&self.event("RotateSeal", json!({"seal": header.data_key.seal}), false));
        Ok(json!({"Seal": header.data_key.seal}))
    }

    fn verify(&self) -> Result<Value, Told> {
        let service = self.service;
        service.settle();
        // What is appended while this reads is beyond the head that it begins with, and in order all the same.
        let head = service.trail().head();
        let verdict = verify::verify(service.directory(), service.store().keys().trail(), &head)
            .map_err(|e| refused("VerificationFailed", e.to_string()))?;
        service.record_event(&self.event("VerifyTrail", json!({"problems": verdict.problems.len()}), true));
        serde_json::to_value(verdict).map_err(|e| refused("VerificationFailed", e.to_string()))
    }
}

fn shown_once(name: &str, arn: &str, secret: &users::NewAccessKey) -> Value {
    json!({"UserName": name, "Arn": arn, "AccessKeyId": secret.id, "SecretAccessKey": secret.secret.as_str()})
}

fn user_agent() -> String {
    format!("envelopefs/{}", env!("CARGO_PKG_VERSION"))
}

/// The socket of a running service.
pub struct Socket {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Socket {
    /// Listens in the directory of `service`, whose lock says that nobody else does.
    pub fn start(service: Arc<Service>) -> io::Result<Self> {
        let path = service.directory().join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = {
            let directory = File::open(service.directory())?;
            UnixListener::bind(short(&directory))?
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("admin".into()).spawn(move || {
            let clients = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else {
                    thread::sleep(Duration::from_millis(50));
                    continue;
                };
                if clients.load(Ordering::Relaxed) >= CLIENTS_MAX {
                    continue;
                }
                clients.fetch_add(1, Ordering::Relaxed);
                let (service, clients) = (service.clone(), Leaving(clients.clone()));
                let serve = move || {
                    let _leaving = clients;
                    if let Err(error) = serve(&service, &stream) {
                        log::debug!("code=admin {error}");
                    }
                };
                if let Err(error) = thread::Builder::new().name("admin-client".into()).spawn(serve) {
                    log::warn!("code=admin no thread for a client: {error}");
                }
            }
        })?;
        Ok(Self { path, stop, thread: Some(thread) })
    }
}

/// Gives a client's place back, also where its thread panics.
struct Leaving(Arc<AtomicUsize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for clients.
        if let Some(directory) = self.path.parent().and_then(|d| File::open(d).ok()) {
            let _ = UnixStream::connect(short(&directory));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// A path to the socket that fits into a socket's address, however long the directory's own is (unix(7): 108 bytes).
fn short(directory: &File) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())
}

fn serve(service: &Service, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT))?;
    stream.set_write_timeout(Some(CLIENT))?;
    let uid = peer::uid(stream.as_fd())?;
    let own = rustix::process::geteuid().as_raw();
    let outcome = if uid != own && uid != 0 {
        Err(refused("AccessDenied", "only the owner of the service and root may ask here"))
    } else {
        match question(stream) {
            Ok(request) => service.administer(request, uid),
            Err(why) => Err(refused("ValidationError", why)),
        }
    };
    let answer = match outcome {
        Ok(value) => Answer { version: VERSION, ok: Some(value), error: None },
        Err(error) => Answer { version: VERSION, ok: None, error: Some(error) },
    };
    let mut line = zeroize::Zeroizing::new(serde_json::to_vec(&answer)?);
    line.push(b'\n');
    let mut stream = stream;
    stream.write_all(&line)
}

fn question(stream: &UnixStream) -> Result<Request, String> {
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line).map_err(|e| e.to_string())?;
    let question: Question = serde_json::from_str(&line).map_err(|e| format!("not a request: {e}"))?;
    if question.version != VERSION {
        return Err(format!("version {} is not known here: client and service differ", question.version));
    }
    Ok(question.request)
}

/// Asks the running service of `directory`; `None` where none runs.
pub fn ask(directory: &Path, request: &Request) -> io::Result<Option<Result<Value, Told>>> {
    let at = File::open(directory)?;
    let stream = match UnixStream::connect(short(&at)) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(e),
    };
    stream.set_write_timeout(Some(CLIENT))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Question { version: VERSION, request: request.clone() })?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut text = zeroize::Zeroizing::new(String::new());
    BufReader::new((&stream).take(ANSWER_MAX)).read_line(&mut text)?;
    let answer: Answer = serde_json::from_str(&text).map_err(|_| io::Error::other("the service gave no answer"))?;
    Ok(Some(match answer.error {
        Some(error) => Err(error),
        None => Ok(answer.ok.unwrap_or(Value::Null)),
    }))
}
