//! The filesystem's operations on inodes and names, free of FUSE: node table, directories, attributes, errno.
//! Knows the file engine, names and the store by their interfaces; must not know providers, FUSE or mount options.
//!
//! Lock order, outermost first:
//! 1. `Fs::committing`: one commit at a time;
//! 2. `Node::opening`;
//! 3. `Node::times`;
//! 4. `Node::entries` of directories: several by ascending inode number, one that is to be removed only by `try_write`;
//! 5. `Fs::owner_access`;
//! 6. the locks of the file engine;
//! 7. leaves: handle cache, node table shard, then node state; dirty set; listings; reports.
//!
//! Leaves are never held across I/O or a key call. 2 to 5 concern single inodes and are held across I/O. Key calls happen
//! under none of 2, 4, 5 and 7.

mod attributes;
mod commit;
mod content;
mod directory;
mod directory_keys;
pub mod errno;
mod handles;
mod listing;
mod names;
mod nodes;
mod rename;
mod report;
mod symlink;
mod unlink;
mod xattr;

use std::sync::Arc;

use parking_lot::ReentrantMutex;

use crate::crypto::random;
use crate::file::FileContext;
use crate::format::dir_id::{DirRecord, NO_PARENT};
use crate::format::names::{DIR_ID_NAME, NameCodec};
use crate::format::volume::VolumeKeys;
use crate::store::{Creator, Kind, Place, SetTime, Stat, Store};
use crate::sync::Mutex;
use commit::DirtySet;
pub use errno::FsError;
use handles::HandleCache;
use listing::Listings;
use nodes::NodeTable;
use report::Reports;

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
    /// Somebody without CAP_FSETID does this, so that set-id bits go.
    pub drop_set_id: bool,
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
    /// Nobody else changes the tree: what the store has said once stays true.
    pub exclusive: bool,
    /// Open backing files without touching their access times.
    pub noatime: bool,
    /// Descriptors that may be held beyond open files (directory cache, uncommitted files).
    pub descriptor_budget: usize,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenMode {
    pub read: bool,
    pub write: bool,
    pub truncate: bool,
    /// The opener may not keep set-id bits and file capabilities on a file that it empties (no CAP_FSETID): the kernel
    /// leaves their removal to us with the emptying itself.
    pub drop_privileges: bool,
}

/// One mounted tree. All methods may be called from any thread at once.
pub struct Fs<S: Store> {
    store: S,
    overflow: S,
    config: FsConfig,
    root_dev: u64,
    /// The root's number in the backing store.
    root_ino: u64,
    nodes: NodeTable<S>,
    handles: HandleCache<S::Handle>,
    listings: Listings,
    dirty: DirtySet<S>,
    /// One commit at a time.
    committing: Mutex<()>,
    /// One temporary change of mode bits at a time; see `as_owner`.
    owner_access: ReentrantMutex<()>,
    reports: Reports,
}

/// The directory cache's share of the descriptor budget; the rest is for uncommitted files.
const DIRECTORY_SHARE: usize = 4;

impl<S: Store> Fs<S> {
    /// `store`: rooted at the tree directory; `overflow`: at the overflow directory. Checks the root's directory id, and makes
    /// the store durable as it is: a daemon that was killed may have left what it wrote in the page cache only, and what is
    /// found in a file counts as durable.
    pub fn new(store: S, overflow: S, config: FsConfig) -> Result<Self> {
        let root = store.stat(Place::Pinned(store.root()))?;
        if root.kind != Kind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let directories = (config.descriptor_budget / DIRECTORY_SHARE).max(1);
        let files = config.descriptor_budget.saturating_sub(directories);
        let fs = Self {
            store,
            overflow,
            config,
            root_dev: root.dev,
            root_ino: root.ino,
            nodes: NodeTable::new(),
            handles: HandleCache::new(directories),
            listings: Listings::new(),
            dirty: DirtySet::new(files),
            committing: Mutex::new(()),
            owner_access: ReentrantMutex::new(()),
            reports: Reports::new(),
        };
        fs.dir(ROOT)?;
        if !fs.config.read_only {
            fs.store.sync_fs()?;
        }
        Ok(fs)
    }

    /// Makes an empty tree (the root's directory id) in a fresh store. EEXIST where it has one already.
    pub fn format(store: &S, keys: &VolumeKeys) -> Result<()> {
        let root = store.stat(Place::Pinned(store.root()))?;
        let record = DirRecord { id: random16(), parent: NO_PARENT, keys: None };
        let by = Creator { uid: root.uid, gid: root.gid, umask: 0 };
        let target = record.encode(&keys.dir_id).map_err(std::io::Error::other)?;
        store.symlink(store.root(), DIR_ID_NAME, &target, by)?;
        Ok(store.sync_dir(store.root())?)
    }

    /// `op` on this filesystem, with the keys fetched that it lacks. For threads that may wait and hold no lock.
    pub fn patiently<T>(&self, mut op: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        self.config.files.keyring.patiently(|| op(self))
    }

    /// EROFS where nothing may be changed.
    fn writable(&self) -> Result<()> {
        if self.config.read_only { Err(FsError::Errno(libc::EROFS)) } else { Ok(()) }
    }
}

fn random16() -> [u8; 16] {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    bytes
}

impl Caller {
    fn creator(&self) -> Creator {
        Creator { uid: self.uid, gid: self.gid, umask: self.umask }
    }
}

#[cfg(test)]
mod tests;
