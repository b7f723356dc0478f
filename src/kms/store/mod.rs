//! The database: sealed records in redb, one durable transaction a change. Knows how things are kept, not what they mean.
//!
//! Two tables. `records` maps a keyed hash of a record's name to the record, encrypted and bound to its place; `outbox` holds
//! trail records that belong to changes, until the trail itself has them on disk. Beside them one value in the open: the
//! sealed data key, without which nothing else can be read.

pub mod backup;
pub mod records;
pub mod sealing;

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use records::Record;
use sealing::{DataKey, SealedDataKey, StoreKeys};

use crate::keys::KeyError;
use crate::keys::passphrase::PassphraseSource;

const FILE: &str = "kms.redb";
/// Read cache and write buffer of the database, in bytes: everything is in memory already.
const CACHE: usize = 8 << 20;
const FORMAT: u32 = 1;

const OPEN: TableDefinition<&str, &[u8]> = TableDefinition::new("open");
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
const OUTBOX: TableDefinition<&str, &[u8]> = TableDefinition::new("outbox");
const HEADER: &str = "header";

/// Why the store could not be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Database(String),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl StoreError {
    pub fn io(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { path: path.display().to_string(), source: source.into() }
    }

    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

macro_rules! from_redb {
    ($($error:ident),+) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Database(format!("database: {error}"))
            }
        })+
    };
}
from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

/// What can be read without a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Header {
    pub format: u32,
    pub service_id: String,
    pub data_key: SealedDataKey,
}

/// One change: what is put and what is removed, together with the trail's record of it.
#[derive(Default)]
pub struct Change {
    pub put: Vec<Record>,
    /// Names.
    pub remove: Vec<String>,
    /// Event id and text of the trail's record.
    pub event: Option<(String, Vec<u8>)>,
    /// Event ids that the trail has on disk by now.
    pub settled: Vec<String>,
    /// A new seal.
    pub header: Option<Header>,
}

pub struct Store {
    path: PathBuf,
    /// `None` after a failure of the disk, until `reopen`: redb then refuses everything.
    database: Mutex<Option<Database>>,
    header: Mutex<Header>,
    keys: StoreKeys,
    data_key: DataKey,
}

/// What an opened store holds.
pub struct Contents {
    pub records: Vec<Record>,
    /// Trail records of changes that the trail may not have yet, in order of event id.
    pub outbox: Vec<(String, Vec<u8>)>,
}

impl Store {
    /// Makes the database. Nothing durable before the first `commit`.
    pub fn create(directory: &Path, header: Header, data_key: DataKey) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| StoreError::io(&path, e))?;
        let backend = FileBackend::new(file)?;
        let database = redb::Builder::new().set_cache_size(CACHE).create_with_backend(backend)?;
        let store = Self {
            path,
            database: Mutex::new(Some(database)),
            keys: data_key.keys(),
            data_key,
            header: Mutex::new(header.clone()),
        };
        store.commit(Change { header: Some(header), ..Change::default() })?;
        // The file's name has to survive a power cut as well.
        let at = fs::File::open(directory).map_err(|e| StoreError::io(directory, e))?;
        at.sync_all().map_err(|e| StoreError::io(directory, e))?;
        Ok(store)
    }

    /// Asks the seal's provider for the data key.
    pub fn open(directory: &Path, passphrase: &PassphraseSource) -> Result<(Self, Contents), StoreError> {
        let path = directory.join(FILE);
        let database = Self::open_database(&path)?;
        let header = read_header(&database)?;
        let data_key = DataKey::open(&header.data_key, passphrase, &header.service_id)?;
        let store = Self {
            path,
            database: Mutex::new(Some(database)),
            keys: data_key.keys(),
            data_key,
            header: Mutex::new(header),
        };
        let contents = store.contents()?;
        Ok((store, contents))
    }

    fn open_database(path: &Path) -> Result<Database, StoreError> {
        let mode = fs::metadata(path).map_err(|e| StoreError::io(path, e))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(StoreError::damaged(format!(
                "{}: others may read it (mode {:o}); chmod 600",
                path.display(),
                mode & 0o777
            )));
        }
        Ok(redb::Builder::new().set_cache_size(CACHE).open(path)?)
    }

    pub fn keys(&self) -> &StoreKeys {
        &self.keys
    }

    pub fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    pub fn header(&self) -> Header {
        self.header.lock().clone()
    }

    /// All or nothing, and on disk when it returns. After a failure nothing has changed, as far as the disk can tell; where it
    /// cannot (the failure came from the sync itself), the next start may find the change made.
    pub fn commit(&self, change: Change) -> Result<(), StoreError> {
        let mut guard = self.database.lock();
        let Some(database) = guard.as_ref() else { return Err(closed()) };
        let header = change.header.clone();
        match self.write(database, change) {
            Ok(()) => {
                if let Some(header) = header {
                    *self.header.lock() = header;
                }
                Ok(())
            }
            Err(error) => {
                // redb refuses everything after a failed write until it is opened again, which also finds the last good state.
                *guard = None;
                Err(error)
            }
        }
    }

    /// The disk has failed, and what is on it has not been read since.
    pub fn is_suspect(&self) -> bool {
        self.database.lock().is_none()
    }

    /// Opens the database again after a failure, and reads what it holds.
    pub fn reopen(&self) -> Result<Contents, StoreError> {
        let mut guard = self.database.lock();
        let database = Self::open_database(&self.path)?;
        let contents = self.read(&database)?;
        *self.header.lock() = read_header(&database)?;
        *guard = Some(database);
        Ok(contents)
    }

    fn write(&self, database: &Database, change: Change) -> Result<(), StoreError> {
        let transaction = database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for record in &change.put {
                let name = record.name();
                let place = self.keys.place(&name);
                let text = zeroize::Zeroizing::new(encode(record)?);
                records.insert(&place[..], &self.keys.seal_record(&place, &text)[..])?;
            }
            for name in &change.remove {
                records.remove(&self.keys.place(name)[..])?;
            }
            let mut outbox = transaction.open_table(OUTBOX)?;
            for id in &change.settled {
                outbox.remove(id.as_str())?;
            }
            if let Some((id, text)) = &change.event {
                outbox.insert(id.as_str(), &self.keys.seal_record(id.as_bytes(), text)[..])?;
            }
            if let Some(header) = &change.header {
                transaction.open_table(OPEN)?.insert(HEADER, &encode(header)?[..])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Everything, opened.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        self.read(self.database.lock().as_ref().ok_or_else(closed)?)
    }

    fn read(&self, database: &Database) -> Result<Contents, StoreError> {
        let transaction = database.begin_read()?;
        let mut contents = Contents { records: Vec::new(), outbox: Vec::new() };
        for entry in transaction.open_table(RECORDS)?.iter()? {
            let (place, sealed) = entry?;
            contents.records.push(open_record(&self.keys, place.value(), sealed.value())?);
        }
        for entry in transaction.open_table(OUTBOX)?.iter()? {
            let (id, sealed) = entry?;
            let text = self
                .keys
                .open_record(id.value().as_bytes(), sealed.value())
                .map_err(|_| StoreError::damaged("a trail record in the store is not authentic"))?;
            contents.outbox.push((id.value().to_owned(), text.to_vec()));
        }
        Ok(contents)
    }
}

fn closed() -> StoreError {
    StoreError::Database("database: closed since its disk failed".into())
}

/// The record in its place, or an error where it is not authentic or lies elsewhere.
fn open_record(keys: &StoreKeys, place: &[u8], sealed: &[u8]) -> Result<Record, StoreError> {
    let text = keys.open_record(place, sealed).map_err(|_| {
        StoreError::damaged("a record of the store is not authentic: it was altered, or is another store's")
    })?;
    let record: Record = serde_json::from_slice(&text).map_err(|_| {
        StoreError::damaged("a record of the store cannot be read: a newer version may have written it")
    })?;
    if keys.place(&record.name())[..] != *place {
        return Err(StoreError::damaged("a record of the store lies in another's place"));
    }
    Ok(record)
}

fn read_header(database: &Database) -> Result<Header, StoreError> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(OPEN)?;
    let header = table.get(HEADER)?.ok_or_else(|| StoreError::damaged("the store has no header"))?;
    parse_header(header.value())
}

fn parse_header(text: &[u8]) -> Result<Header, StoreError> {
    let header: Header =
        serde_json::from_slice(text).map_err(|_| StoreError::damaged("the store's header cannot be read"))?;
    if header.format != FORMAT {
        return Err(StoreError::damaged(format!(
            "the store has format {}, this program knows {FORMAT}",
            header.format
        )));
    }
    Ok(header)
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|_| StoreError::damaged("a record cannot be written"))
}

impl Header {
    pub fn new(service_id: String, data_key: SealedDataKey) -> Self {
        Self { format: FORMAT, service_id, data_key }
    }
}

/// Whether `directory` holds a store.
pub fn exists(directory: &Path) -> bool {
    directory.join(FILE).symlink_metadata().is_ok()
}
