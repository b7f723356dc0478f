//! The trail on disk: appending, making durable, going on after a crash. Knows lines, not what they tell.
//!
//! Contract. A record of a change is durable before the change is answered: it lies in the store, in the same transaction as
//! the change, until the trail's file has it on disk. A record of any other request is handed to the kernel before the
//! answer, so that it survives the death of this process; a power cut may cost the last second of these. Where the disk is full,
//! they are held in memory and written later; beyond a bound they are counted, and the trail says how many were lost.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use parking_lot::Mutex;

use super::lines::{self, Hash, NOTHING};
use crate::crypto::secret::Secret32;
use crate::kms::store::StoreError;
use crate::kms::store::records::TrailHead;

const DIRECTORY: &str = "trail";
/// A segment is closed when it is this long, in bytes.
const SEGMENT: u64 = 64 << 20;
/// Records that wait for room on the disk, in bytes.
const HELD_MAX: usize = 16 << 20;

pub struct Trail {
    directory: PathBuf,
    key: Secret32,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// Bytes of whole lines in it.
    len: u64,
    sequence: u64,
    hash: Hash,
    /// Records since the file was made durable.
    dirty: bool,
    base: u64,
    base_hash: String,
    /// Waiting for room; their bytes.
    held: VecDeque<Vec<u8>>,
    held_bytes: usize,
    lost: u64,
    /// Event ids of changes whose records are in the file, but not known to be on disk.
    unsettled: Vec<String>,
    complained: bool,
}

/// What a sync made durable.
pub struct Synced {
    pub head: TrailHead,
    /// Event ids.
    pub settled: Vec<String>,
}

/// What was found wrong when the trail was opened.
pub type Finding = String;

impl Trail {
    /// Opens the trail behind `head`, which the store remembers. Lines after it that are whole and in order are kept; a torn end
    /// is cut off. Where lines that the store remembers are missing, the chain goes on from the head, and that is a finding.
    /// Also the event ids after the head.
    pub fn open(
        datadir: &Path,
        key: &Secret32,
        head: &TrailHead,
    ) -> Result<(Self, Vec<Finding>, Vec<String>), StoreError> {
        let directory = datadir.join(DIRECTORY);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => sync_directory(datadir)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(StoreError::io(&directory, e)),
        }
        let key = key.duplicate();
        let mut findings = Vec::new();
        let mut ids = Vec::new();
        let last = segments(&directory)?.pop();
        let remembered: Hash =
            HEXLOWER.decode(head.hash.as_bytes()).ok().and_then(|h| h.try_into().ok()).unwrap_or(NOTHING);
        let mut end = End { sequence: head.sequence, hash: remembered };
        let (file, len) = match last {
            Some((first, path)) => {
                let read = read_segment(&path, &key, first, head, &mut ids)?;
                let file = open_append(&path, false)?;
                if read.len < read.total {
                    findings.push(format!(
                        "{}: {} bytes at its end are no whole records and were cut off",
                        path.display(),
                        read.total - read.len
                    ));
                    file.set_len(read.len).map_err(|e| StoreError::io(&path, e))?;
                }
                match read.end {
                    Some(found) if found.sequence >= head.sequence => {
                        end = found;
                        (file, read.len)
                    }
                    // The head of a restored backup may be the end of no segment; a fresh segment follows it.
                    _ if first == head.sequence + 1 && read.len == 0 => (file, 0),
                    found => {
                        findings.push(format!(
                            "{}: ends at record {}, but there were {}: records are missing",
                            path.display(),
                            found.map_or(0, |end| end.sequence),
                            head.sequence
                        ));
                        (open_segment(&directory, head.sequence + 1)?, 0)
                    }
                }
            }
            None => {
                if head.sequence > head.base {
                    findings.push(format!("the trail is gone: there were {} records", head.sequence));
                }
                (open_segment(&directory, head.sequence + 1)?, 0)
            }
        };
        let inner = Inner {
            file,
            len,
            sequence: end.sequence,
            hash: end.hash,
            dirty: end.sequence > head.sequence,
            base: head.base,
            base_hash: head.base_hash.clone(),
            held: VecDeque::new(),
            held_bytes: 0,
            lost: 0,
            unsettled: Vec::new(),
            complained: false,
        };
        Ok((Self { directory, key, inner: Mutex::new(inner) }, findings, ids))
    }

    /// Appends a record (a JSON object). Never fails: what cannot be written is held, and at worst counted.
    /// `change`: the event id, where the store holds this record until it is settled.
    pub fn append(&self, record: Vec<u8>, change: Option<String>) {
        let mut inner = self.inner.lock();
        inner.unsettled.extend(change);
        if inner.held.is_empty() && inner.lost == 0 {
            match self.write(&mut inner, &record) {
                Ok(()) => return,
                Err(error) => complain(&mut inner, &error),
            }
        }
        if inner.held_bytes + record.len() <= HELD_MAX {
            inner.held_bytes += record.len();
            inner.held.push_back(record);
        } else {
            inner.lost += 1;
        }
        self.flush(&mut inner);
    }

    fn flush(&self, inner: &mut Inner) {
        while let Some(record) = inner.held.pop_front() {
            if self.write(inner, &record).is_err() {
                inner.held.push_front(record);
                return;
            }
            inner.held_bytes -= record.len();
        }
        if inner.lost > 0 {
            let gap =
                format!("{{\"eventName\":\"TrailGap\",\"additionalEventData\":{{\"recordsLost\":{}}}}}", inner.lost);
            if self.write(inner, gap.as_bytes()).is_err() {
                return;
            }
            inner.lost = 0;
        }
        if inner.complained {
            log::warn!("code=trail-full records of the audit trail can be written again");
            inner.complained = false;
        }
    }

    fn write(&self, inner: &mut Inner, record: &[u8]) -> io::Result<()> {
        if inner.len >= SEGMENT {
            inner.file.sync_data()?;
            inner.file = open_segment(&self.directory, inner.sequence + 1).map_err(io::Error::other)?;
            inner.len = 0;
        }
        let (line, hash) = lines::write(&self.key, &inner.hash, inner.sequence + 1, record);
        if let Err(error) = inner.file.write_all(&line) {
            // Half a line would make the next one unreadable.
            let _ = inner.file.set_len(inner.len);
            return Err(error);
        }
        inner.len += line.len() as u64;
        inner.sequence += 1;
        inner.hash = hash;
        inner.dirty = true;
        Ok(())
    }

    /// Makes durable what was appended so far. `None` where nothing was.
    pub fn sync(&self) -> io::Result<Option<Synced>> {
        let (file, mut synced) = {
            let mut inner = self.inner.lock();
            if !inner.held.is_empty() || inner.lost > 0 {
                self.flush(&mut inner);
            }
            if !inner.dirty && inner.unsettled.is_empty() {
                return Ok(None);
            }
            inner.dirty = false;
            let settled = if inner.held.is_empty() { std::mem::take(&mut inner.unsettled) } else { Vec::new() };
            (inner.file.try_clone()?, Synced { head: head(&inner), settled })
        };
        // Requests go on appending meanwhile. Closed segments were synced when they were closed.
        if let Err(error) = file.sync_data() {
            self.unsynced(std::mem::take(&mut synced.settled));
            return Err(error);
        }
        Ok(Some(synced))
    }

    /// What `sync` returned could not be remembered after all.
    pub fn unsynced(&self, settled: Vec<String>) {
        let mut inner = self.inner.lock();
        inner.dirty = true;
        inner.unsettled.extend(settled);
    }

    /// Whether this change's record has been appended and is not settled yet.
    pub fn has_unsettled(&self, id: &str) -> bool {
        self.inner.lock().unsettled.iter().any(|known| known == id)
    }

    pub fn head(&self) -> TrailHead {
        head(&self.inner.lock())
    }
}

fn head(inner: &Inner) -> TrailHead {
    TrailHead {
        sequence: inner.sequence,
        hash: HEXLOWER.encode(&inner.hash),
        base: inner.base,
        base_hash: inner.base_hash.clone(),
    }
}

fn complain(inner: &mut Inner, error: &io::Error) {
    if !inner.complained {
        log::error!(
            "code=trail-full the audit trail cannot be written ({error}): records are held in memory until it can"
        );
        inner.complained = true;
    }
}

#[derive(Clone, Copy)]
struct End {
    sequence: u64,
    hash: Hash,
}

struct Read {
    /// Of the last good line.
    end: Option<End>,
    /// Bytes up to its end, and in all.
    len: u64,
    total: u64,
}

/// Reads the last segment. Lines up to the head are taken as they are, since verification is another's work; after it only
/// whole, authentic lines in order count.
fn read_segment(
    path: &Path,
    key: &Secret32,
    first: u64,
    head: &TrailHead,
    ids: &mut Vec<String>,
) -> Result<Read, StoreError> {
    let file = File::open(path).map_err(|e| StoreError::io(path, e))?;
    let total = file.metadata().map_err(|e| StoreError::io(path, e))?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut read = Read { end: None, len: 0, total };
    let mut line = Vec::new();
    let mut expected = first;
    loop {
        line.clear();
        let taken = reader.read_until(b'\n', &mut line).map_err(|e| StoreError::io(path, e))?;
        let Some(text) = line.strip_suffix(b"\n") else { return Ok(read) };
        let Some((link, open)) = lines::read(text) else { return Ok(read) };
        if link.sequence > head.sequence {
            let follows = read.end.is_none_or(|end| end.hash == link.previous) && link.sequence == expected;
            if !follows || !lines::authentic(key, &link, open) {
                return Ok(read);
            }
            ids.extend(event_id(open));
        }
        read.len += taken as u64;
        read.end = Some(End { sequence: link.sequence, hash: link.hash });
        expected = link.sequence + 1;
    }
}

fn event_id(open: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Id {
        #[serde(rename = "eventID")]
        id: Option<String>,
    }
    serde_json::from_slice::<Id>(&lines::record(open)).ok()?.id
}

/// First sequence number and path of each segment, in order.
pub(super) fn segments(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(StoreError::io(directory, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| StoreError::io(directory, e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(|n| n.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn directory(datadir: &Path) -> PathBuf {
    datadir.join(DIRECTORY)
}

fn open_append(path: &Path, create: bool) -> Result<File, StoreError> {
    fs::OpenOptions::new().append(true).create(create).mode(0o600).open(path).map_err(|e| StoreError::io(path, e))
}

fn open_segment(directory: &Path, first: u64) -> Result<File, StoreError> {
    let file = open_append(&directory.join(format!("{first:020}.jsonl")), true)?;
    sync_directory(directory)?;
    Ok(file)
}

fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| StoreError::io(directory, e))
}
