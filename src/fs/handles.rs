//! Reaching the backing object of a node: a bounded cache of directory handles, and paths resolved entry by entry.
//! Knows nodes and the store; no encryption.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::nodes::{Link, Node};
use super::{Fs, FsError, Ino, ROOT, Result};
use crate::store::{Access, BackingFile, Kind, Place, Stat, Store};

/// How often a path is tried again when entries move under it.
const RETRIES: usize = 5;
/// No tree is deeper; a longer chain of parents is a loop.
const MAX_DEPTH: usize = 1 << 16;

/// Directory handles by inode number, the least recently used dropped first (second chance). Handles survive renames.
pub(super) struct HandleCache<H> {
    capacity: usize,
    table: RwLock<Table<H>>,
}

struct Table<H> {
    slots: HashMap<Ino, Slot<H>>,
    /// Insertion order. Numbers whose slot is gone stay for a while and are skipped; one may be there twice.
    queue: VecDeque<Ino>,
}

struct Slot<H> {
    handle: Arc<H>,
    used: AtomicBool,
}

impl<H> HandleCache<H> {
    pub fn new(capacity: usize) -> Self {
        let table = Table { slots: HashMap::new(), queue: VecDeque::new() };
        Self { capacity: capacity.max(1), table: RwLock::new(table) }
    }

    pub fn get(&self, ino: Ino) -> Option<Arc<H>> {
        let table = self.table.read();
        let slot = table.slots.get(&ino)?;
        slot.used.store(true, Ordering::Relaxed);
        Some(slot.handle.clone())
    }

    pub fn insert(&self, ino: Ino, handle: Arc<H>) {
        // Evicted handles are closed after the lock is gone.
        let mut evicted = Vec::new();
        let mut table = self.table.write();
        match table.slots.insert(ino, Slot { handle, used: AtomicBool::new(false) }) {
            Some(old) => evicted.push(old),
            None => table.queue.push_back(ino),
        }
        while table.slots.len() > self.capacity {
            let Some(candidate) = table.queue.pop_front() else { break };
            let again = table.slots.get(&candidate).is_some_and(|s| s.used.swap(false, Ordering::Relaxed));
            if again {
                table.queue.push_back(candidate);
            } else {
                evicted.extend(table.slots.remove(&candidate));
            }
        }
        if table.queue.len() > 2 * self.capacity {
            let Table { slots, queue } = &mut *table;
            let mut seen = HashSet::new();
            queue.retain(|ino| slots.contains_key(ino) && seen.insert(*ino));
        }
        drop(table);
    }

    pub fn remove(&self, ino: Ino) {
        let mut table = self.table.write();
        let gone = table.slots.remove(&ino);
        drop(table);
        drop(gone);
    }
}

/// A pinned object in use.
pub(super) enum HandleRef<'a, H> {
    Root(&'a H),
    Shared(Arc<H>),
}

impl<H> Deref for HandleRef<'_, H> {
    type Target = H;
    fn deref(&self) -> &H {
        match self {
            HandleRef::Root(h) => h,
            HandleRef::Shared(h) => h,
        }
    }
}

/// What the owner's own mode bits must allow for an operation inside an object.
pub(super) const OWNER_ALL: u32 = 0o700;
pub(super) const OWNER_SEARCH: u32 = 0o100;

pub(super) fn is(e: &io::Error, errno: i32) -> bool {
    e.raw_os_error() == Some(errno)
}

impl<S: Store> Fs<S> {
    /// ESTALE where the kernel does not hold this inode.
    pub(super) fn node(&self, ino: Ino) -> Result<Arc<Node<S>>> {
        self.nodes.find(ino).ok_or(FsError::Errno(libc::ESTALE))
    }

    /// Backing numbers and ours: the root is 1, and whoever had 1 in the backing store has the root's. Its own inverse.
    pub(super) fn ino_of(&self, backing: u64) -> Ino {
        if backing == self.root_ino {
            ROOT
        } else if backing == ROOT {
            self.root_ino
        } else {
            backing
        }
    }

    pub(super) fn is_node(&self, node: &Node<S>, st: &Stat) -> bool {
        st.dev == self.root_dev && self.ino_of(st.ino) == node.ino && st.kind == node.kind
    }

    fn known_handle(&self, node: &Node<S>) -> Option<HandleRef<'_, S::Handle>> {
        if node.ino == ROOT {
            return Some(HandleRef::Root(self.store.root()));
        }
        node.pin().or_else(|| self.handles.get(node.ino)).map(HandleRef::Shared)
    }

    /// A handle of a directory node.
    pub(super) fn handle(&self, node: &Arc<Node<S>>) -> Result<HandleRef<'_, S::Handle>> {
        if let Some(known) = self.known_handle(node) {
            return Ok(known);
        }
        for _ in 0..RETRIES {
            if let Some(handle) = self.descend(node)? {
                return Ok(handle);
            }
        }
        Err(FsError::Errno(libc::ESTALE))
    }

    /// Climbs from `node` to the nearest directory whose handle is known, then opens its way down.
    /// `None` where an entry moved meanwhile.
    fn descend(&self, node: &Arc<Node<S>>) -> Result<Option<HandleRef<'_, S::Handle>>> {
        let mut chain = vec![node.clone()];
        let (mut parent, mut handle) = loop {
            let Some(above) = chain.last().and_then(|n| n.first_link()).and_then(|l| self.nodes.find(l.parent)) else {
                // Removed meanwhile, and so pinned; or its parent is not known any more.
                return Ok(self.known_handle(node));
            };
            if let Some(handle) = self.known_handle(&above) {
                break (above, handle);
            }
            if chain.len() > MAX_DEPTH {
                return Err(FsError::Errno(libc::ESTALE));
            }
            chain.push(above);
        };
        while let Some(next) = chain.pop() {
            let pinned = {
                let _shared = parent.entries.read();
                let Some(link) = next.first_link().filter(|l| l.parent == parent.ino) else { return Ok(None) };
                let place = Place::Pinned(&*handle);
                match self.as_owner(place, OWNER_SEARCH, || self.store.pin(&handle, &link.name)) {
                    Ok(pinned) => Arc::new(pinned),
                    Err(e) if is(&e, libc::ENOENT) => return Ok(None),
                    Err(e) => return Err(e.into()),
                }
            };
            if !self.is_node(&next, &self.store.stat(Place::Pinned(&pinned))?) {
                return Ok(None);
            }
            self.handles.insert(next.ino, pinned.clone());
            handle = HandleRef::Shared(pinned);
            parent = next;
        }
        Ok(Some(handle))
    }

    /// Runs `f` on the node's object: its pin where there is one, else one of its names, whose directory stays as it is
    /// meanwhile. Callers hold no `entries` lock.
    pub(super) fn with_place<R>(
        &self,
        node: &Arc<Node<S>>,
        mut f: impl FnMut(Place<'_, S::Handle>) -> io::Result<R>,
    ) -> Result<R> {
        for _ in 0..RETRIES {
            if node.kind == Kind::Directory {
                let handle = self.handle(node)?;
                return Ok(f(Place::Pinned(&handle))?);
            }
            if let Some(pin) = node.pin() {
                return Ok(f(Place::Pinned(&pin))?);
            }
            for link in node.links() {
                if let Some(result) = self.with_link(node, &link, &mut f)? {
                    return Ok(result);
                }
            }
        }
        Err(FsError::Errno(libc::ESTALE))
    }

    /// `None` where the name does not lead to the node any more.
    fn with_link<R>(
        &self,
        node: &Node<S>,
        link: &Link,
        f: &mut impl FnMut(Place<'_, S::Handle>) -> io::Result<R>,
    ) -> Result<Option<R>> {
        let Some(parent) = self.nodes.find(link.parent) else { return Ok(None) };
        let handle = match self.handle(&parent) {
            Ok(handle) => handle,
            Err(FsError::Errno(libc::ESTALE)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let _shared = parent.entries.read();
        if !node.has_link(link) {
            return Ok(None);
        }
        let place = Place::Entry { dir: &*handle, name: &link.name };
        match self.as_owner(Place::Pinned(&*handle), OWNER_SEARCH, || f(place)) {
            Ok(result) => Ok(Some(result)),
            Err(e) if is(&e, libc::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A pin of the node's object, verified.
    pub(super) fn pin_of(&self, node: &Arc<Node<S>>) -> Result<HandleRef<'_, S::Handle>> {
        if node.kind == Kind::Directory {
            return self.handle(node);
        }
        if let Some(pin) = node.pin() {
            return Ok(HandleRef::Shared(pin));
        }
        let pin = self.with_place(node, |place| match place {
            Place::Entry { dir, name } => self.store.pin(dir, name).map(Some),
            // It was pinned for good since we looked.
            Place::Pinned(_) => Ok(None),
        })?;
        let pin = match pin {
            Some(pin) => Arc::new(pin),
            None => node.pin().ok_or(FsError::Errno(libc::ESTALE))?,
        };
        if !self.is_node(node, &self.store.stat(Place::Pinned(&pin))?) {
            return Err(self.damaged(node, "entry-replaced"));
        }
        Ok(HandleRef::Shared(pin))
    }

    /// The backing attributes of a node.
    pub(super) fn stat_node(&self, node: &Arc<Node<S>>) -> Result<Stat> {
        // Not through content state, which may wait for a key.
        let st = self.with_place(node, |place| self.store.stat(place))?;
        if !self.is_node(node, &st) {
            return Err(self.damaged(node, "entry-replaced"));
        }
        node.set_owner(st.uid, st.gid);
        node.learn_mode(st.mode);
        Ok(st)
    }

    /// Opens a file node's backing file anew, whatever the owner's mode bits say: the kernel has checked what must be.
    pub(super) fn open_backing(&self, node: &Arc<Node<S>>, access: Access) -> Result<S::File> {
        let need = if access == Access::Read { 0o400 } else { 0o600 };
        let opened = self
            .with_place(node, |place| self.as_owner(place, need, || self.store.open_file(place, access)))
            .and_then(|file| Ok((file.stat()?, file)));
        match opened {
            Ok((st, file)) if self.is_node(node, &st) => Ok(file),
            // Something else stands there now: a link, a device, another file.
            Ok(_) | Err(FsError::Errno(libc::ELOOP)) => Err(self.damaged(node, "entry-replaced")),
            // The store's word for what is no file, or a failing device.
            Err(e @ FsError::Errno(libc::EIO)) => {
                self.stat_node(node)?;
                Err(self.noted(node, e))
            }
            Err(e) => Err(e),
        }
    }

    /// Runs `f`, and where the object's own mode refuses its owner, once more with the bits of `need` set meanwhile.
    /// Only where euid is not 0: root is never refused. `f` may run twice.
    pub(super) fn as_owner<R>(
        &self,
        object: Place<'_, S::Handle>,
        need: u32,
        mut f: impl FnMut() -> io::Result<R>,
    ) -> io::Result<R> {
        let refused = match f() {
            Err(e) if is(&e, libc::EACCES) && !self.config.read_only => e,
            result => return result,
        };
        let _one_at_a_time = self.owner_access.lock();
        let before = self.store.stat(object)?;
        if before.mode & need == need {
            return f();
        }
        let widened = before.mode | need;
        if self.store.chmod(object, widened).is_err() {
            return Err(refused);
        }
        let result = f();
        // Not where it is gone, nor where somebody has set another mode meanwhile.
        if self.store.stat(object).is_ok_and(|now| now.ino == before.ino && now.mode == widened)
            && let Err(e) = self.store.chmod(object, before.mode)
        {
            self.reports.error("mode-restore", "", &format!("inode {} keeps mode {widened:o}: {e}", before.ino));
        }
        result
    }

    /// The node's backing path, for logs: encoded names, so that a log gives no names away.
    pub(super) fn backing_path(&self, node: &Node<S>) -> String {
        const SHOWN: usize = 64;
        let mut names: Vec<String> = Vec::new();
        let mut link = node.first_link();
        if link.is_none() && node.ino != ROOT {
            return format!("(unlinked inode {})", node.ino);
        }
        while let Some(l) = link {
            names.push(String::from_utf8_lossy(&l.name).into_owned());
            if names.len() >= SHOWN {
                names.push("…".into());
                break;
            }
            link = self.nodes.find(l.parent).and_then(|n| n.first_link());
        }
        names.push("tree".into());
        names.reverse();
        names.join("/")
    }

    /// Logs damage at a node and makes the error of it.
    pub(super) fn damaged(&self, node: &Node<S>, code: &'static str) -> FsError {
        self.reports.error(code, &self.backing_path(node), "refused with EIO; run `envelopefs check`");
        FsError::Corrupt { code }
    }

    /// Logs an error at a node where it tells of damage or of a missing key.
    pub(super) fn noted(&self, node: &Node<S>, error: impl Into<FsError>) -> FsError {
        let error = error.into();
        if let Some(code) = error.code() {
            self.reports.error(code, &self.backing_path(node), &error.to_string());
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = HandleCache::new(3);
        for ino in 10..13 {
            cache.insert(ino, Arc::new(ino));
        }
        assert_eq!(cache.get(10).as_deref(), Some(&10));
        cache.insert(13, Arc::new(13));
        assert_eq!(cache.get(10).as_deref(), Some(&10), "used since it came");
        assert!(cache.get(11).is_none(), "the oldest unused one went");
        assert_eq!(cache.table.read().slots.len(), 3);
    }

    #[test]
    fn removal_and_replacement_leave_no_ghosts() {
        let cache = HandleCache::new(2);
        for round in 0..1000 {
            cache.insert(1, Arc::new(round));
            cache.insert(2, Arc::new(round));
            assert_eq!(cache.get(2).as_deref(), Some(&round));
            cache.remove(1);
            assert!(cache.get(1).is_none());
        }
        for ino in 3..1000 {
            cache.insert(ino, Arc::new(0));
        }
        let table = cache.table.read();
        assert_eq!(table.slots.len(), 2);
        assert!(table.queue.len() <= 4);
    }

    #[test]
    fn evicted_handles_are_closed() {
        let cache = HandleCache::new(1);
        let first = Arc::new(1);
        cache.insert(1, first.clone());
        cache.insert(2, Arc::new(2));
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
