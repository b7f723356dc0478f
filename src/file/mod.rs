//! One encrypted file: read, write, resize, header lifecycle, size protocol, locks. Knows keys and format; no names, no FUSE.

//!
//! Locks, in the order in which they are taken: `state` (shared by reads, writes and syncs; exclusive for everything that changes
//! length, phase or header), then the edge stripes of the blocks written, then `writer` or `written` for a moment.

mod commit;
mod drop_keys;
mod edges;
mod group;
mod pages;
mod ranges;
mod read;
mod resize;
mod state;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::format::block;
use crate::format::geometry::{Geometry, Length, PAGE, PLAIN};
use crate::format::header;
use crate::format::small::XattrCodec;
use crate::keys::{
    KeyError,
    keyring::{Keyring, Waits},
    wanted::Wanted,
};
use crate::store::BackingFile;
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use edges::Edges;
pub use group::{DirectoryGroup, Inherited};
use ranges::BlockRanges;
use state::{State, Writer};

/// What all files of a mount share.
pub struct FileContext {
    pub keyring: Keyring,
    pub geometry: Geometry,
}

impl Waits for FileError {
    fn wanted(&self) -> Option<&Wanted> {
        match self {
            FileError::Key(e) => e.wanted(),
            _ => None,
        }
    }
}

/// Why a file operation failed. `code` is the stable word for logs.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The backing store's own error, passed through.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Damage or tampering: EIO. `block` where one block is concerned.
    #[error("{code}{}", block.map(|b| format!(" (block {b})")).unwrap_or_default())]
    Corrupt { code: &'static str, block: Option<u64> },
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Size beyond the format's limit: EFBIG.
    #[error("file too large")]
    TooLarge,
    /// The wrapped keys do not fit the header: the text says which header_pages would do.
    #[error("{0}")]
    Header(#[from] crate::format::header::HeaderError),
    /// SEEK_DATA/SEEK_HOLE past the end: ENXIO.
    #[error("no such offset")]
    NoOffset,
    /// Mode that the format cannot express: EOPNOTSUPP.
    #[error("operation not supported")]
    Unsupported,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// mode 0 / KEEP_SIZE
    Allocate {
        keep_size: bool,
    },
    PunchHole,
    ZeroRange {
        keep_size: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Everything is durable and the size stands in the backing length.
    Quiet,
    /// Durable, but writes went on meanwhile: come back.
    Busy,
}

/// The content of one inode, shared by all its handles and by the background commit.
pub struct EncryptedFile<F: BackingFile> {
    context: Arc<FileContext>,
    state: RwLock<State<F>>,
    /// Plaintext size. Writers raise it while they hold the stripe of the block that made it grow.
    size: AtomicU64,
    edges: Edges,
    writer: Mutex<Option<Writer>>,
    /// Blocks written since the floor was last raised.
    written: Mutex<BlockRanges>,
    /// Counts changes of the backing file; raised after each, before its lock is released.
    epoch: AtomicU64,
    /// The epoch up to which everything is durable.
    synced: AtomicU64,
    /// The epoch of the header's creation: the header is durable once `synced` has reached it.
    header_epoch: AtomicU64,
    uncommitted: AtomicBool,
    /// The current version of the last block carries the `valid_len` of the current size.
    last_says_size: AtomicBool,
    keep_header: AtomicBool,
    /// The keys were taken away and nobody has needed them since.
    keys_dropped: AtomicBool,
    /// Why one header slot could not be used although the other could; until somebody asks.
    unused_slot: Mutex<Option<FileError>>,
    /// What the first header will hang on.
    group: Arc<Inherited>,
}

/// The plaintext size that the backing file alone tells, without keys: what `stat` and `lookup` show.
/// Reads the header's and the last block's clear bytes only where the file was left growing. An impossible length clamps.
pub fn probe_size<F: BackingFile>(backing: &F, geometry: Geometry) -> std::io::Result<u64> {
    let len = backing.stat()?.size;
    match geometry.decode(len) {
        Ok(Length::Empty { .. }) => Ok(0),
        Ok(Length::Quiet { size }) => Ok(size),
        Ok(Length::Growing { blocks }) => {
            let mut headers = vec![0; geometry.data_start() as usize];
            backing.read_at(&mut headers, 0)?;
            if header::was_never_durable(&headers, geometry) {
                return Ok(0);
            }
            let mut page = [0; PAGE];
            backing.read_at(&mut page, geometry.block_offset(blocks - 1))?;
            let valid = block::peek(&page).map_or(0, |p| p.valid_len.min(PLAIN as u16));
            Ok((blocks - 1) * PLAIN as u64 + u64::from(valid))
        }
        Err(bad) => Ok(geometry.clamp(bad)),
    }
}

impl<F: BackingFile> EncryptedFile<F> {
    /// Takes an open backing file. Does no key work: the header is read at the first data access.
    /// `size`: what `probe_size` or the store's length told at lookup; decided once per inode.
    pub fn new(context: Arc<FileContext>, backing: F, writable: bool, size: u64) -> Self {
        Self {
            context,
            state: RwLock::new(State::new(backing, writable)),
            size: AtomicU64::new(size),
            edges: Edges::default(),
            writer: Mutex::new(None),
            written: Mutex::new(BlockRanges::default()),
            epoch: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            header_epoch: AtomicU64::new(0),
            uncommitted: AtomicBool::new(false),
            last_says_size: AtomicBool::new(false),
            keep_header: AtomicBool::new(false),
            keys_dropped: AtomicBool::new(false),
            unused_slot: Mutex::new(None),
            group: Arc::default(),
        }
    }

    /// With another group than the volume's own CMKs for the first header.
    pub fn inheriting(mut self, group: Arc<Inherited>) -> Self {
        self.group = group;
        self
    }

    /// Whether the next data needs new keys. For a file that has been authenticated.
    pub fn lacks_keys(&self) -> bool {
        let st = self.state.read();
        st.loaded && st.open.is_none()
    }

    /// Replaces a read-only backing descriptor by a read-write one for the same inode.
    pub fn upgrade(&self, backing: F) {
        let mut st = self.state.write();
        st.backing = backing;
        st.writable = true;
        if st.phase != state::Phase::Quiet {
            // Possibly left by a crash and so far only read: adopt it like any file opened for writing.
            st.loaded = false;
        }
    }

    pub fn is_writable(&self) -> bool {
        self.state.read().writable
    }

    /// Current plaintext size in bytes. Never blocks on I/O.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Authenticates the header; what open(2) reports.
    pub fn authenticate(&self) -> Result<(), FileError> {
        self.loaded_state().map(drop)
    }

    /// Why one header slot was passed over when the header was read from the other, told once: it is damaged, or a crash
    /// interrupted its writing.
    pub fn take_unused_slot(&self) -> Option<FileError> {
        self.unused_slot.lock().take()
    }

    /// The shared lock, with length and header known.
    fn loaded_state(&self) -> Result<RwLockReadGuard<'_, State<F>>, FileError> {
        let st = self.state.read();
        if st.loaded {
            return Ok(st);
        }
        drop(st);
        let mut st = self.state.write();
        self.load(&mut st)?;
        Ok(RwLockWriteGuard::downgrade(st))
    }

    /// The codec of this file's extended attributes. `create`: makes the header (and so the key) where there is none yet, and
    /// makes it durable, since an attribute is metadata: a crash may leave it without the bytes that were written before.
    /// Otherwise `None` for a file without a header.
    pub fn xattrs(&self, create: bool) -> Result<Option<XattrCodec>, FileError> {
        let mut st = self.state.write();
        self.load(&mut st)?;
        if st.open.is_none() && create {
            self.create_header(&mut st)?;
            self.changed();
        }
        if create && !self.header_is_durable() {
            let token = self.sync_token();
            st.backing.sync_data()?;
            self.synced.fetch_max(token, Ordering::AcqRel);
        }
        Ok(st.open.as_ref().map(|open| XattrCodec::new(&open.keys.xattr_key())))
    }

    /// Tells that the inode has encrypted xattrs, so that truncation to 0 keeps the header.
    pub fn keep_header(&self, keep: bool) {
        self.keep_header.store(keep, Ordering::Release);
    }

    /// The backing file, for calls that need its descriptor (stat, xattrs).
    pub fn with_backing<R>(&self, f: impl FnOnce(&F) -> R) -> R {
        f(&self.state.read().backing)
    }

    /// Records a change of the backing file; called before the lock that covered it is released.
    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.uncommitted();
    }

    fn uncommitted(&self) {
        self.uncommitted.store(true, Ordering::Release);
    }

    fn header_written(&self) {
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        self.header_epoch.store(epoch, Ordering::Release);
    }

    fn header_is_durable(&self) -> bool {
        self.header_epoch.load(Ordering::Acquire) <= self.synced.load(Ordering::Acquire)
    }
}
