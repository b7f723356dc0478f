//! The inodes that somebody still refers to: lookup counts, names, pins, content state. Does no I/O; must not know FUSE.
//!
//! A node lives while the kernel counts lookups of it or content state hangs on it. Inode numbers are the backing store's
//! own, so a node whose last name goes away is pinned first: its number cannot be used again before it is forgotten.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{FsError, Ino, ROOT, Result};
use crate::file::{DirectoryGroup, EncryptedFile, Inherited};
use crate::format::{DirId, KeyGroup};
use crate::keys::keyring::KeySource;
use crate::store::{Kind, Store};
use crate::sync::{AtomicBool, Mutex, RwLock};

/// One name of a node: where it stands in the backing tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub parent: Ino,
    /// The raw (encoded) entry name.
    pub name: Box<[u8]>,
}

/// Extended attributes that a node is known not to have, so that the store need not be asked again.
#[derive(Default)]
pub(super) struct AbsentXattrs(AtomicU32);

impl AbsentXattrs {
    /// It has none at all.
    pub const ALL: u32 = 1;
    /// No `security.capability`.
    pub const CAPABILITY: u32 = 1 << 1;
    /// Above the bits: counts changes, so that what was read before one says nothing after it.
    const CHANGE: u32 = 1 << 8;

    pub fn known(&self, which: u32) -> bool {
        self.0.load(Ordering::Acquire) & (which | Self::ALL) != 0
    }
    /// Before asking the store.
    pub fn before(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
    /// The store has said so, asked since `before`.
    pub fn learn(&self, before: u32, which: u32) {
        let _ = self.0.compare_exchange(before, before | which, Ordering::AcqRel, Ordering::Relaxed);
    }
    /// After each attempt to set one.
    pub fn changed(&self) {
        let next = |now: u32| Some((now & !(Self::CHANGE - 1)).wrapping_add(Self::CHANGE));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }
}

pub(super) type Content<S> = Arc<EncryptedFile<<S as Store>::File>>;

/// One inode. The order of the locks is in the module documentation of `fs`.
pub(super) struct Node<S: Store> {
    pub ino: Ino,
    pub kind: Kind,
    /// Of a directory: shared while an entry is resolved, exclusive while entries change. Held across I/O.
    pub entries: RwLock<()>,
    /// Opening, upgrading and closing of content exclude each other. Held across I/O.
    pub opening: Mutex<()>,
    /// A commit (which restores mtime) and a change of times exclude each other. Held across I/O.
    pub times: Mutex<()>,
    /// Whether the node is in the dirty set; see `commit`.
    pub dirty: AtomicBool,
    /// Set once, after `group`, under the state lock.
    dir_id: OnceLock<DirId>,
    /// Of a directory its own, for good; anything else follows the directory where it was met last.
    pub group: Arc<Inherited>,
    /// uid in the upper half, gid in the lower; all ones where unknown.
    owner: AtomicU64,
    /// The set-id bits that the kernel was told, as mode bits; all ones where unknown.
    set_id: AtomicU32,
    pub absent_xattrs: AbsentXattrs,
    state: Mutex<State<S>>,
}

/// The part of a node that changes; its lock is never held across I/O.
pub(super) struct State<S: Store> {
    /// Known names; a directory has exactly one unless it was removed.
    pub links: Vec<Link>,
    /// Files and symlinks: the size that the kernel was told, until content state knows better.
    pub size: Option<u64>,
    /// Holds the inode where no known name leads to it.
    pub pin: Option<Arc<S::Handle>>,
    pub content: Option<Content<S>>,
    /// Whether `content` has a read-write descriptor.
    pub writable: bool,
    /// Opens and temporary uses that `content` must outlive.
    pub opens: u64,
    /// Whether `content` stays without opens because it waits for a commit; counted by the dirty set.
    pub lingering: bool,
    /// A failed commit that no fsync has reported yet.
    pub failed: Option<i32>,
    /// Where the keys came from that the closed content had: its pages may be in the kernel's cache still.
    pub source: Option<Arc<KeySource>>,
    /// Target of a removed symlink whose overflow object is gone.
    pub target: Option<Box<[u8]>>,
}

const NO_OWNER: u64 = u64::MAX;
const NO_MODE: u32 = u32::MAX;
/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

impl<S: Store> Node<S> {
    /// `parent`: the group of the directory it stands in.
    fn new(ino: Ino, kind: Kind, parent: Arc<DirectoryGroup>) -> Self {
        let group = if kind == Kind::Directory { Arc::default() } else { parent };
        let state = State {
            links: Vec::new(),
            size: None,
            pin: None,
            content: None,
            writable: false,
            opens: 0,
            lingering: false,
            failed: None,
            source: None,
            target: None,
        };
        Self {
            ino,
            kind,
            entries: RwLock::new(()),
            opening: Mutex::new(()),
            times: Mutex::new(()),
            dirty: AtomicBool::new(false),
            dir_id: OnceLock::new(),
            group: Arc::new(Inherited::from(group)),
            owner: AtomicU64::new(NO_OWNER),
            set_id: AtomicU32::new(NO_MODE),
            absent_xattrs: AbsentXattrs::default(),
            state: Mutex::new(state),
        }
    }

    /// Runs `f` under the state lock: no I/O, no other lock in there.
    pub fn with<R>(&self, f: impl FnOnce(&mut State<S>) -> R) -> R {
        f(&mut self.state.lock())
    }

    pub fn dir_id(&self) -> Option<DirId> {
        self.dir_id.get().copied()
    }
    /// The first record read stays: only `set_keys` changes the keys afterwards.
    pub fn learn_dir(&self, id: DirId, keys: KeyGroup) {
        self.with(|_| {
            if self.dir_id.get().is_none() {
                self.group.directory().set(keys);
                let _ = self.dir_id.set(id);
            }
        });
    }
    /// Of a directory whose record has been read: under `entries`, so that what is made inside has one group.
    pub fn keys(&self) -> KeyGroup {
        self.group.group()
    }
    /// Callers hold `entries` exclusively and have written the record.
    pub fn set_keys(&self, keys: KeyGroup) {
        self.group.directory().set(keys);
    }
    /// It stands in this directory from now on.
    pub fn inherit(&self, directory: &Self) {
        if self.kind != Kind::Directory {
            self.group.follow(directory.group.directory());
        }
    }

    pub fn owner(&self) -> Option<(u32, u32)> {
        match self.owner.load(Ordering::Relaxed) {
            NO_OWNER => None,
            both => Some(((both >> 32) as u32, both as u32)),
        }
    }
    /// Set-id bits that this file is known to have; 0 where it has none or nothing is known.
    pub fn set_id(&self) -> u32 {
        match self.set_id.load(Ordering::Relaxed) {
            NO_MODE => 0,
            bits => bits,
        }
    }
    /// Whether this file may have set-id bits, as far as is known.
    pub fn may_have_set_id(&self) -> bool {
        self.set_id.load(Ordering::Relaxed) != 0
    }
    /// Somebody with the right to do so has set the mode.
    pub fn set_mode(&self, mode: u32) {
        self.set_id.store(mode & SET_ID, Ordering::Relaxed);
    }
    /// The mode may have changed as a side effect: the next look at the object tells.
    pub fn forget_mode(&self) {
        self.set_id.store(NO_MODE, Ordering::Relaxed);
    }
    /// The first look at the object tells; later ones may meet what our own writes have stripped.
    pub fn learn_mode(&self, mode: u32) {
        let _ = self.set_id.compare_exchange(NO_MODE, mode & SET_ID, Ordering::Relaxed, Ordering::Relaxed);
    }
    pub fn set_owner(&self, uid: u32, gid: u32) {
        self.owner.store((u64::from(uid) << 32) | u64::from(gid), Ordering::Relaxed);
    }

    pub fn content(&self) -> Option<Content<S>> {
        self.state.lock().content.clone()
    }
    pub fn pin(&self) -> Option<Arc<S::Handle>> {
        self.state.lock().pin.clone()
    }
    pub fn links(&self) -> Vec<Link> {
        self.state.lock().links.clone()
    }
    pub fn first_link(&self) -> Option<Link> {
        self.state.lock().links.first().cloned()
    }
    pub fn has_link(&self, link: &Link) -> bool {
        self.state.lock().links.contains(link)
    }

    /// The size to show, where it is known: content state first.
    pub fn size(&self) -> Option<u64> {
        let state = self.state.lock();
        state.content.as_ref().map(|c| c.size()).or(state.size)
    }
    /// The first size told to the kernel stays.
    pub fn learn_size(&self, size: u64) {
        self.state.lock().size.get_or_insert(size);
    }

    pub fn add_link(&self, link: Link) {
        let mut state = self.state.lock();
        if self.kind == Kind::Directory {
            state.links.clear();
        }
        if !state.links.contains(&link) {
            state.links.push(link);
        }
    }
    pub fn remove_link(&self, link: &Link) {
        self.state.lock().links.retain(|l| l != link);
    }
    /// A rename: `from` is gone, `to` leads here.
    pub fn move_link(&self, from: &Link, to: Link) {
        self.remove_link(from);
        self.add_link(to);
    }
    /// Whether the node would have no known name left without `link`.
    pub fn lives_by(&self, link: &Link) -> bool {
        self.state.lock().links.iter().all(|l| l == link)
    }
}

struct Slot<S: Store> {
    node: Arc<Node<S>>,
    lookups: u64,
}

type Shard<S> = Mutex<HashMap<Ino, Slot<S>>>;

/// All nodes, by inode number. A shard's lock is never held across I/O.
pub(super) struct NodeTable<S: Store> {
    shards: Box<[Shard<S>]>,
}

const SHARDS: usize = 64;

impl<S: Store> NodeTable<S> {
    /// With the root, which stays for good.
    pub fn new() -> Self {
        let table = Self { shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect() };
        let root = Slot { node: Arc::new(Node::new(ROOT, Kind::Directory, Arc::default())), lookups: 1 };
        table.shard(ROOT).lock().insert(ROOT, root);
        table
    }

    fn shard(&self, ino: Ino) -> &Shard<S> {
        // Inode numbers often step by a power of two: the multiplication spreads them.
        let spread = ino.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        &self.shards[spread as usize % SHARDS]
    }

    pub fn find(&self, ino: Ino) -> Option<Arc<Node<S>>> {
        self.shard(ino).lock().get(&ino).map(|slot| slot.node.clone())
    }

    /// Counts one lookup of `ino` under a name in `dir`, making the node where there is none.
    /// EIO where the number belongs to an object of another kind, which somebody else put there.
    pub fn attach(&self, ino: Ino, kind: Kind, dir: &Node<S>, link: Link) -> Result<Arc<Node<S>>> {
        let group = dir.group.directory();
        let mut shard = self.shard(ino).lock();
        let new = || Slot { node: Arc::new(Node::new(ino, kind, group)), lookups: 0 };
        let slot = match shard.entry(ino) {
            Entry::Vacant(vacant) => vacant.insert(new()),
            Entry::Occupied(slot) => {
                let slot = slot.into_mut();
                slot.node.inherit(dir);
                slot
            }
        };
        if slot.node.kind != kind {
            return Err(FsError::Corrupt { code: "entry-replaced" });
        }
        slot.node.add_link(link);
        slot.lookups += 1;
        Ok(slot.node.clone())
    }

    pub fn forget(&self, ino: Ino, count: u64) {
        self.settle(ino, count);
    }
    /// Drops the node where nothing refers to it any more.
    pub fn reap(&self, ino: Ino) {
        self.settle(ino, 0);
    }

    fn settle(&self, ino: Ino, count: u64) {
        if ino == ROOT {
            return;
        }
        let mut shard = self.shard(ino).lock();
        let Some(slot) = shard.get_mut(&ino) else { return };
        slot.lookups = slot.lookups.saturating_sub(count);
        let idle = slot.lookups == 0 && slot.node.with(|s| s.opens == 0 && s.content.is_none());
        let gone = if idle { shard.remove(&ino) } else { None };
        drop(shard);
        // Closing a pin is I/O: only now.
        drop(gone);
    }

    /// Every node there is now.
    pub fn all(&self) -> Vec<Arc<Node<S>>> {
        self.shards.iter().flat_map(|s| s.lock().values().map(|slot| slot.node.clone()).collect::<Vec<_>>()).collect()
    }

    /// Number of nodes, the root included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
    #[cfg(test)]
    pub fn lookups(&self, ino: Ino) -> u64 {
        self.shard(ino).lock().get(&ino).map_or(0, |s| s.lookups)
    }
}
