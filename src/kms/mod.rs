//! The key service: AWS KMS's protocol over keys of its own. Owns what runs: store, view, trail, clock; and how they go together.
//! Knows no command line.

pub mod admin;
pub mod audit;
pub mod clock;
pub mod http;
pub mod material;
pub mod operations;
pub mod policy;
pub mod running;
mod setup;
pub mod sigv4;
pub mod store;
mod sweep;
#[cfg(test)]
mod tests;
pub mod users;
pub mod view;
pub mod wire;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use audit::trail::Trail;
use audit::{Event, Place};
use clock::Clock;
pub use setup::{NewRoot, Plan};
use store::records::{Record, ServiceRecord};
use store::{Change, Store, StoreError};
use view::{Gone, Key, Piece, User, View};
use wire::ApiError;

/// A running service. Shared by every connection.
pub struct Service {
    pub directory: PathBuf,
    pub record: ServiceRecord,
    pub clock: Clock,
    store: Store,
    view: RwLock<View>,
    /// Held from the decision to the end of a change, so that what was decided still holds when it is made.
    writer: Mutex<()>,
    trail: Trail,
    place: Place,
    /// Uses of keys since they were last written down: key id to what is to be remembered.
    uses: Mutex<std::collections::HashMap<String, store::records::LastUse>>,
    /// The lock of the directory, for as long as the service lives.
    _lock: File,
}

/// What one change does to the view; the store's change is made from it.
#[derive(Default)]
pub struct Edit {
    pub put: Vec<Piece>,
    pub remove: Vec<Gone>,
}

impl Edit {
    pub fn key(key: Key) -> Self {
        Self { put: vec![Piece::Key(Arc::new(key))], remove: Vec::new() }
    }

    pub fn put(piece: Piece) -> Self {
        Self { put: vec![piece], remove: Vec::new() }
    }

    pub fn remove(gone: Gone) -> Self {
        Self { put: Vec::new(), remove: vec![gone] }
    }
}

/// Proof that the caller is the one who may change things now.
pub struct Writer<'a> {
    _turn: MutexGuard<'a, ()>,
}

impl Service {
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read()
    }

    pub fn writer(&self) -> Writer<'_> {
        Writer { _turn: self.writer.lock() }
    }

    pub fn now(&self) -> i64 {
        self.clock.now()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a change and its record in the trail: durable, visible to every later request, then this returns.
    pub fn change(&self, _writer: &Writer<'_>, edit: Edit, event: &Event) -> Result<(), ApiError> {
        self.recover()?;
        let text = event.to_json(&self.place);
        let change = Change {
            put: edit.put.iter().map(record_of).collect(),
            remove: edit.remove.iter().map(name_of).collect(),
            event: Some((event.id.clone(), text.clone())),
            ..Change::default()
        };
        if let Err(error) = self.store.commit(change) {
            log::error!("code=store {}: refused, nothing was changed: {error}", event.name);
            return Err(ApiError::internal());
        }
        {
            let mut view = self.view.write();
            for gone in &edit.remove {
                view.remove(gone);
            }
            for piece in edit.put {
                view.put(piece);
            }
        }
        self.trail.append(text, Some(event.id.clone()));
        Ok(())
    }

    /// After a failure of the disk nobody knows whether the last change was made: what is there now is read again.
    pub(crate) fn recover(&self) -> Result<(), ApiError> {
        if !self.store.is_suspect() {
            return Ok(());
        }
        let read = || {
            let contents = self.store.reopen()?;
            let (view, ..) = View::load(contents.records, self.store.keys())?;
            Ok((view, contents.outbox))
        };
        let (view, outbox) = read().map_err(|error: StoreError| self.fault(&error))?;
        *self.view.write() = view;
        for (id, text) in outbox {
            if !self.trail.has_unsettled(&id) {
                self.trail.append(text, Some(id));
            }
        }
        log::warn!("code=store the store works again");
        Ok(())
    }

    /// A record of what changed nothing.
    pub fn record_event(&self, event: &Event) {
        self.trail.append(event.to_json(&self.place), None);
    }

    /// A key made from `record`; material that `known` has open is not opened again.
    pub fn key(&self, record: store::records::KeyRecord, known: Option<&Key>) -> Result<Key, ApiError> {
        Key::new(record, &self.record, self.store.keys(), known).map_err(|e| self.fault(&e))
    }

    pub fn user(&self, record: store::records::UserRecord) -> Result<User, ApiError> {
        User::new(record, &self.record, self.store.keys()).map_err(|e| self.fault(&e))
    }

    fn fault(&self, error: &StoreError) -> ApiError {
        log::error!("code=store {error}");
        ApiError::internal()
    }
}

fn record_of(piece: &Piece) -> Record {
    match piece {
        Piece::Key(key) => Record::Key(key.record.clone()),
        Piece::Alias(alias) => Record::Alias(alias.clone()),
        Piece::Grant(grant) => Record::Grant((**grant).clone()),
        Piece::User(user) => Record::User(user.record.clone()),
    }
}

fn name_of(gone: &Gone) -> String {
    match gone {
        Gone::Key(id) => format!("key/{id}"),
        Gone::Alias(name) => name.clone(),
        Gone::Grant { key, id } => store::records::grant_name(key, id),
    }
}
