//! A backup: one file with everything that the store holds, still sealed, and a MAC over all of it. Knows no record's inside.
//!
//! `magic 16 ‖ entries ‖ end`, where an entry is `kind 1 ‖ key length u32 LE ‖ key ‖ value length u32 LE ‖ value` and the end is
//! `0xff ‖ HMAC-SHA256 32` under a sub-key of the data key over everything before the MAC. The first entry is the header.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::{ReadableDatabase, ReadableTable};

use super::{Change, Contents, HEADER, Header, OPEN, OUTBOX, RECORDS, Store, StoreError, open_record, parse_header};
use crate::crypto::kdf;
use crate::keys::passphrase::PassphraseSource;
use crate::kms::store::sealing::DataKey;

const MAGIC: &[u8; 16] = b"envelopefs-kms-1";
const KIND_HEADER: u8 = 0;
const KIND_RECORD: u8 = 1;
const KIND_OUTBOX: u8 = 2;
const END: u8 = 0xff;
/// Larger backups are refused before they are read: everything in them also has to fit into the service's memory.
const BACKUP_MAX: u64 = 8 << 30;

impl Store {
    /// A consistent copy of the store while it is in use, mode 0600, never over an existing file; durable when it returns.
    pub fn backup(&self, to: &Path) -> Result<u64, StoreError> {
        let mut bytes = MAGIC.to_vec();
        {
            let transaction = {
                let guard = self.database.lock();
                let database = guard.as_ref().ok_or_else(super::closed)?;
                database.begin_read()?
            };
            let header = transaction.open_table(OPEN)?;
            let header = header.get(HEADER)?.ok_or_else(|| StoreError::damaged("the store has no header"))?;
            entry(&mut bytes, KIND_HEADER, HEADER.as_bytes(), header.value());
            for item in transaction.open_table(RECORDS)?.iter()? {
                let (place, sealed) = item?;
                entry(&mut bytes, KIND_RECORD, place.value(), sealed.value());
            }
            for item in transaction.open_table(OUTBOX)?.iter()? {
                let (id, sealed) = item?;
                entry(&mut bytes, KIND_OUTBOX, id.value().as_bytes(), sealed.value());
            }
        }
        bytes.push(END);
        let mac = self.keys.backup_mac(&[&bytes]);
        bytes.extend_from_slice(&mac);
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
            let written = file.write_all(&bytes).and_then(|()| file.sync_all());
            if written.is_err() {
                let _ = fs::remove_file(to);
            }
            written?;
            let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(parent)?.sync_all()
        };
        write().map_err(|e| StoreError::io(to, e))?;
        Ok(bytes.len() as u64)
    }

    /// Makes the store of `directory` from a backup, whose seal has to be had.
    pub fn restore(
        directory: &Path,
        from: &Path,
        passphrase: &PassphraseSource,
    ) -> Result<(Self, Contents), StoreError> {
        let bytes = read(from)?;
        let (backup, signed) = Backup::parse(&bytes)?;
        let data_key = DataKey::open(&backup.header.data_key, passphrase, &backup.header.service_id)?;
        let keys = data_key.keys();
        if !kdf::mac_eq(&keys.backup_mac(&[signed]), backup.mac) {
            return Err(StoreError::damaged(
                "the backup is not authentic: it was altered, cut, or is not of this seal",
            ));
        }
        // Every record is opened before anything is written.
        let mut put = Vec::with_capacity(backup.records.len());
        for (place, sealed) in &backup.records {
            put.push(open_record(&keys, place, sealed)?);
        }
        let store = Self::create(directory, backup.header, data_key)?;
        store.commit(Change { put, ..Change::default() })?;
        for (id, sealed) in &backup.outbox {
            let id = std::str::from_utf8(id).map_err(|_| StoreError::damaged("the backup cannot be read"))?;
            let text = store
                .keys
                .open_record(id.as_bytes(), sealed)
                .map_err(|_| StoreError::damaged("a trail record in the backup is not authentic"))?;
            store.commit(Change { event: Some((id.to_owned(), text.to_vec())), ..Change::default() })?;
        }
        let contents = store.contents()?;
        Ok((store, contents))
    }
}

fn read(from: &Path) -> Result<Vec<u8>, StoreError> {
    let file = fs::File::open(from).map_err(|e| StoreError::io(from, e))?;
    let mut bytes = Vec::new();
    file.take(BACKUP_MAX + 1).read_to_end(&mut bytes).map_err(|e| StoreError::io(from, e))?;
    if bytes.len() as u64 > BACKUP_MAX {
        return Err(StoreError::damaged("the backup is too large"));
    }
    Ok(bytes)
}

fn entry(out: &mut Vec<u8>, kind: u8, key: &[u8], value: &[u8]) {
    out.push(kind);
    for part in [key, value] {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// A key and a value.
type Entry<'a> = (&'a [u8], &'a [u8]);

struct Backup<'a> {
    header: Header,
    records: Vec<Entry<'a>>,
    outbox: Vec<Entry<'a>>,
    mac: &'a [u8],
}

impl<'a> Backup<'a> {
    /// Also what the MAC covers.
    fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), StoreError> {
        let cut = || StoreError::damaged("this is no backup of a key service, or a part of one");
        let mut rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or_else(cut)?;
        let (mut header, mut records, mut outbox) = (None, Vec::new(), Vec::new());
        loop {
            let (kind, after) = rest.split_first().ok_or_else(cut)?;
            rest = after;
            if *kind == END {
                break;
            }
            let key = part(&mut rest).ok_or_else(cut)?;
            let value = part(&mut rest).ok_or_else(cut)?;
            match *kind {
                KIND_HEADER if header.is_none() => header = Some(parse_header(value)?),
                KIND_RECORD => records.push((key, value)),
                KIND_OUTBOX => outbox.push((key, value)),
                _ => return Err(cut()),
            }
        }
        if rest.len() != 32 {
            return Err(cut());
        }
        let header = header.ok_or_else(cut)?;
        Ok((Self { header, records, outbox, mac: rest }, &bytes[..bytes.len() - rest.len()]))
    }
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (part, after) = after.split_at_checked(len)?;
    *rest = after;
    Some(part)
}
