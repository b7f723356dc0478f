//! One encrypted file: read, write, resize, header lifecycle, size protocol, locks. Knows keys and format; no names, no FUSE.

use std::sync::Arc;

use crate::format::geometry::Geometry;
use crate::format::small::XattrCodec;
use crate::keys::{KeyError, keyring::Keyring};
use crate::store::BackingFile;

/// What all files of a mount share.
pub struct FileContext {
    pub keyring: Keyring,
    pub geometry: Geometry,
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
    _backing: F,
    _context: Arc<FileContext>,
}

/// The plaintext size that the backing file alone tells, without keys: what `stat` and `lookup` show.
/// Reads the last block's clear bytes only where the file was left growing. An impossible length clamps.
pub fn probe_size<F: BackingFile>(backing: &F, geometry: Geometry) -> std::io::Result<u64> {
    let _ = (backing, geometry);
    todo!()
}

impl<F: BackingFile> EncryptedFile<F> {
    /// Takes an open backing file. Does no key work: the header is read at the first data access.
    /// `size`: what `probe_size` or the store's length told at lookup; decided once per inode.
    pub fn new(context: Arc<FileContext>, backing: F, writable: bool, size: u64) -> Self {
        let _ = (&context, &backing, writable, size);
        todo!()
    }
    /// Replaces a read-only backing descriptor by a read-write one for the same inode.
    pub fn upgrade(&self, backing: F) {
        let _ = backing;
        todo!()
    }
    pub fn is_writable(&self) -> bool {
        todo!()
    }
    /// Current plaintext size in bytes. Never blocks on I/O.
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Authenticates the header (and the last block of a growing file); what open(2) reports.
    pub fn authenticate(&self) -> Result<(), FileError> {
        todo!()
    }
    /// Reads up to `buf.len()` bytes; short only at the end of the file.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, FileError> {
        let _ = (offset, buf);
        todo!()
    }
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let _ = (offset, data);
        todo!()
    }
    pub fn truncate(&self, size: u64) -> Result<(), FileError> {
        let _ = size;
        todo!()
    }
    pub fn fallocate(&self, mode: Fallocate, offset: u64, len: u64) -> Result<(), FileError> {
        let _ = (mode, offset, len);
        todo!()
    }
    pub fn seek(&self, whence: Seek, offset: u64) -> Result<u64, FileError> {
        let _ = (whence, offset);
        todo!()
    }
    /// fdatasync or fsync of everything written so far.
    pub fn sync(&self, data_only: bool) -> Result<(), FileError> {
        let _ = data_only;
        todo!()
    }
    /// Whether a commit has something to do.
    pub fn needs_commit(&self) -> bool {
        todo!()
    }
    /// The background commit of this file: data durable, then floor and size tail; never changes mtime.
    /// `synced`: a token from `sync_token` taken before the caller made the whole store durable, else this syncs by itself.
    pub fn commit(&self, synced: Option<u64>) -> Result<Commit, FileError> {
        let _ = synced;
        todo!()
    }
    /// What has been written up to now, for a caller that makes the whole store durable at once.
    pub fn sync_token(&self) -> u64 {
        todo!()
    }
    /// The codec of this file's extended attributes. `create`: makes the header (and so the key) where there is none yet;
    /// otherwise `None` for a file without a header.
    pub fn xattrs(&self, create: bool) -> Result<Option<XattrCodec>, FileError> {
        let _ = create;
        todo!()
    }
    /// Tells that the inode has encrypted xattrs, so that truncation to 0 keeps the header.
    pub fn keep_header(&self, keep: bool) {
        let _ = keep;
        todo!()
    }
    /// The backing file, for calls that need its descriptor (stat, xattrs).
    pub fn with_backing<R>(&self, f: impl FnOnce(&F) -> R) -> R {
        let _ = f;
        todo!()
    }
}
