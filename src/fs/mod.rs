//! The filesystem's operations on inodes and names, free of FUSE: node table, directories, attributes, errno.

pub mod errno;

use std::sync::Arc;

use crate::file::FileContext;
use crate::format::{names::NameCodec, volume::VolumeKeys};
use crate::store::{Kind, SetTime, Stat, StatFs, Store};
pub use errno::FsError;

/// Inode number as applications see it: the backing inode's own number, 1 for the root.
pub type Ino = u64;
pub const ROOT: Ino = 1;

pub type Result<T> = std::result::Result<T, FsError>;

/// Who asks. `pid` is used to look up supplementary groups where a rule needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub umask: u32,
}

/// Attributes of one inode: the store's, with our inode number and the plaintext size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub stat: Stat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub ino: Ino,
    pub kind: Kind,
    pub name: Vec<u8>,
    /// Offset to continue after this entry.
    pub next: u64,
}

/// What a mount gives the filesystem at start.
pub struct FsConfig {
    pub files: Arc<FileContext>,
    pub names: NameCodec,
    pub keys: VolumeKeys,
    pub read_only: bool,
    /// Open backing files without touching their access times.
    pub noatime: bool,
    /// Descriptors that may be held beyond open files (directory cache, uncommitted files).
    pub descriptor_budget: usize,
}

/// One mounted tree. All methods may be called from any thread at once.
pub struct Fs<S: Store> {
    _store: S,
    _config: FsConfig,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenMode {
    pub read: bool,
    pub write: bool,
    pub truncate: bool,
}

impl<S: Store> Fs<S> {
    /// `store`: rooted at the tree directory; `overflow`: at the overflow directory. Checks the root's directory id.
    pub fn new(store: S, overflow: S, config: FsConfig) -> Result<Self> {
        let _ = (&store, overflow, &config);
        todo!()
    }
    /// Makes an empty tree (the root's directory id) in a fresh store.
    pub fn format(store: &S, keys: &VolumeKeys) -> Result<()> {
        let _ = (store, keys);
        todo!()
    }

    // Names. Every successful return of an `Attr` from here counts one lookup, to be given back by `forget`.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _ = (parent, name);
        todo!()
    }
    pub fn forget(&self, ino: Ino, count: u64) {
        let _ = (ino, count);
        todo!()
    }
    pub fn create(&self, by: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let _ = (by, parent, name, mode);
        todo!()
    }
    pub fn mknod(&self, by: &Caller, parent: Ino, name: &[u8], kind: Kind, mode: u32, rdev: u64) -> Result<Attr> {
        let _ = (by, parent, name, kind, mode, rdev);
        todo!()
    }
    pub fn mkdir(&self, by: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let _ = (by, parent, name, mode);
        todo!()
    }
    pub fn symlink(&self, by: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        let _ = (by, parent, name, target);
        todo!()
    }
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let _ = (ino, parent, name);
        todo!()
    }
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        todo!()
    }
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let _ = (parent, name);
        todo!()
    }
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: crate::store::RenameMode) -> Result<()> {
        let _ = (from, to, mode);
        todo!()
    }
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let _ = ino;
        todo!()
    }

    // Attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let _ = ino;
        todo!()
    }
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let _ = (ino, set);
        todo!()
    }
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let _ = (ino, name);
        todo!()
    }
    pub fn setxattr(&self, by: &Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let _ = (by, ino, name, value, flags);
        todo!()
    }
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let _ = ino;
        todo!()
    }
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let _ = (ino, name);
        todo!()
    }
    pub fn statfs(&self) -> Result<StatFs> {
        todo!()
    }

    // Content. Every successful `open` (and `create`) is given back by one `release`.
    pub fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        let _ = (ino, mode);
        todo!()
    }
    pub fn release(&self, ino: Ino) {
        let _ = ino;
        todo!()
    }
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let _ = (ino, offset, buf);
        todo!()
    }
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<()> {
        let _ = (ino, offset, data);
        todo!()
    }
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        let _ = (ino, data_only);
        todo!()
    }
    /// `mode` as fallocate(2).
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, len: u64) -> Result<()> {
        let _ = (ino, mode, offset, len);
        todo!()
    }
    pub fn seek(&self, ino: Ino, whence: crate::file::Seek, offset: u64) -> Result<u64> {
        let _ = (ino, whence, offset);
        todo!()
    }
    /// Copies up to `len` bytes through the engine; returns what was copied (short at the source's end).
    pub fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let _ = (from, to, len);
        todo!()
    }

    // Directories. A handle holds one consistent listing, taken at its first read or rewind.
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        let _ = ino;
        todo!()
    }
    pub fn releasedir(&self, handle: u64) {
        let _ = handle;
        todo!()
    }
    /// Calls `emit` for entries from `offset` on until it returns false. `.` and `..` are included.
    pub fn readdir(&self, ino: Ino, handle: u64, offset: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let _ = (ino, handle, offset, emit);
        todo!()
    }
    /// Like `readdir`, with attributes; each accepted entry other than `.` and `..` counts one lookup.
    pub fn readdirplus(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry, &Attr) -> bool,
    ) -> Result<()> {
        let _ = (ino, handle, offset, emit);
        todo!()
    }
    pub fn fsyncdir(&self, ino: Ino) -> Result<()> {
        let _ = ino;
        todo!()
    }

    /// One background commit of everything that changed: durable data, then floors and sizes.
    pub fn commit(&self) -> Result<()> {
        todo!()
    }
    /// Whether `commit` has anything to do.
    pub fn needs_commit(&self) -> bool {
        todo!()
    }
}
