//! Making a service, opening one, moving it: what happens once, under the lock of its directory. Knows no requests.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use parking_lot::{Mutex, RwLock};

use super::audit::trail::Trail;
use super::audit::{Actor, Event, Place};
use super::clock::{Clock, wall};
use super::store::records::{Record, ServiceRecord, TrailHead};
use super::store::sealing::DataKey;
use super::store::{self, Change, Contents, Header, Store, StoreError};
use super::users::{self, NewAccessKey};
use super::view::{ROOT, View};
use super::{Service, operations};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::CmkUri;
use crate::sys::lock;

/// How a new service is to be.
pub struct Plan<'a> {
    pub seal: &'a CmkUri,
    pub passphrase: &'a PassphraseSource,
    /// Twelve digits.
    pub account: &'a str,
    pub region: &'a str,
}

/// What init shows once.
pub type NewRoot = NewAccessKey;

impl Service {
    /// A new service in an empty or missing directory.
    pub fn create(directory: &Path, plan: &Plan<'_>) -> Result<(Self, NewRoot), StoreError> {
        prepare(directory)?;
        let lock = take_lock(directory)?;
        if store::exists(directory) {
            return Err(StoreError::damaged(format!("{}: there is a key service already", directory.display())));
        }
        let now = wall();
        let id = operations::new_uuid();
        let data_key = DataKey::fresh();
        let sealed = data_key.seal(plan.seal, plan.passphrase, &id, now)?;
        let record =
            ServiceRecord { id: id.clone(), account: plan.account.into(), region: plan.region.into(), created: now };
        let store = Store::create(directory, Header::new(id, sealed), data_key)?;
        let (root, secret) = users::new_user(store.keys(), ROOT, false, now);
        let put = vec![Record::Service(record), Record::User(root), Record::TrailHead(TrailHead::default())];
        store.commit(Change { put, ..Change::default() })?;
        let contents = store.contents()?;
        let service = Self::start(directory, lock, store, contents)?;
        service.note("InitService", serde_json::json!({"rootAccessKeyId": secret.id}));
        Ok((service, secret))
    }

    /// The service of a directory. `StoreError::Busy` where another process has it.
    pub fn open(directory: &Path, passphrase: &PassphraseSource) -> Result<Self, StoreError> {
        check_directory(directory)?;
        let lock = take_lock(directory)?;
        let (store, contents) = Store::open(directory, passphrase)?;
        Self::start(directory, lock, store, contents)
    }

    /// A service from a backup, in an empty or missing directory. Its trail goes on where the backup's stood.
    pub fn restore(directory: &Path, from: &Path, passphrase: &PassphraseSource) -> Result<Self, StoreError> {
        prepare(directory)?;
        let lock = take_lock(directory)?;
        if store::exists(directory) {
            return Err(StoreError::damaged(format!("{}: there is a key service already", directory.display())));
        }
        let (store, mut contents) = Store::restore(directory, from, passphrase)?;
        for record in &mut contents.records {
            if let Record::TrailHead(head) = record
                && head.base != head.sequence
            {
                head.base = head.sequence;
                head.base_hash.clone_from(&head.hash);
                store.commit(Change { put: vec![Record::TrailHead(head.clone())], ..Change::default() })?;
            }
        }
        let service = Self::start(directory, lock, store, contents)?;
        service.note("RestoreService", serde_json::json!({"recordsBefore": service.trail.head().base}));
        Ok(service)
    }

    fn start(directory: &Path, lock: File, store: Store, contents: Contents) -> Result<Self, StoreError> {
        let (view, record, head) = View::load(contents.records, store.keys())?;
        if record.id != store.header().service_id {
            return Err(StoreError::damaged("the store's header is of another service"));
        }
        let (trail, findings, known) = Trail::open(directory, store.keys().trail(), &head)?;
        let place = Place { account: record.account.clone(), region: record.region.clone() };
        let service = Self {
            directory: directory.to_owned(),
            record,
            clock: Clock::default(),
            store,
            view: RwLock::new(view),
            writer: Mutex::new(()),
            trail,
            place,
            uses: Mutex::default(),
            _lock: lock,
        };
        for (id, text) in contents.outbox {
            // What the trail has already only waits to be settled.
            if known.contains(&id) {
                service.trail.unsynced(vec![id]);
            } else {
                service.trail.append(text, Some(id));
            }
        }
        for finding in findings {
            log::error!("code=trail {finding}");
            service.note("TrailFinding", serde_json::json!({"finding": finding}));
        }
        Ok(service)
    }

    /// Something that the service itself did or found.
    pub(super) fn note(&self, name: &'static str, parameters: serde_json::Value) {
        self.record_event(&self.own_event(name, parameters, Vec::new()));
    }

    pub(super) fn own_event(&self, name: &'static str, request: serde_json::Value, resources: Vec<String>) -> Event {
        Event {
            id: operations::new_uuid(),
            request_id: operations::new_uuid(),
            time: self.now(),
            name,
            actor: Actor::Service,
            source: "kms.internal".into(),
            user_agent: "kms.internal".into(),
            request,
            response: serde_json::Value::Null,
            additional: serde_json::Map::new(),
            read_only: false,
            resources,
            error: None,
            tls: None,
        }
    }

    /// The data key under another CMK; the old seal opens the store no more.
    pub fn reseal(&self, uri: &CmkUri, passphrase: &PassphraseSource) -> Result<Header, StoreError> {
        let _writer = self.writer();
        let mut header = self.store.header();
        let before = header.data_key.key.clone();
        header.data_key = self.store.data_key().seal(uri, passphrase, &header.service_id, wall())?;
        self.store.commit(Change { header: Some(header.clone()), ..Change::default() })?;
        let name = |key: &store::sealing::KeyName| format!("{}:{}", key.provider, key.key);
        self.note("RotateSeal", serde_json::json!({"from": name(&before), "to": name(&header.data_key.key)}));
        Ok(header)
    }
}

fn prepare(directory: &Path) -> Result<(), StoreError> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
                .map_err(|e| StoreError::io(directory, e))?;
            check_directory(directory)
        }
        Err(e) => Err(StoreError::io(directory, e)),
    }
}

/// Whoever can write to the directory could put another store there.
fn check_directory(directory: &Path) -> Result<(), StoreError> {
    let stat = fs::metadata(directory).map_err(|e| StoreError::io(directory, e))?;
    if stat.permissions().mode() & 0o077 != 0 {
        return Err(StoreError::damaged(format!(
            "{}: others have rights on it (mode {:o}); chmod 700",
            directory.display(),
            stat.permissions().mode() & 0o777
        )));
    }
    let own = rustix::process::geteuid().as_raw();
    if stat.uid() != own && own != 0 {
        return Err(StoreError::damaged(format!(
            "{}: belongs to another user (uid {})",
            directory.display(),
            stat.uid()
        )));
    }
    Ok(())
}

fn take_lock(directory: &Path) -> Result<File, StoreError> {
    let file = File::open(directory).map_err(|e| StoreError::io(directory, e))?;
    match lock::try_lock(&file, true) {
        Ok(true) => Ok(file),
        Ok(false) => Err(StoreError::Busy(format!("{}: another process has this key service", directory.display()))),
        Err(e) => Err(StoreError::io(directory, e)),
    }
}
