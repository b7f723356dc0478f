//! What has changed and waits for the background commit, and the commit itself. Knows content state; no names.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Condvar;

use super::nodes::{Content, Node};
use super::{Fs, FsError, Ino, Result};
use crate::file::{Commit, FileError};
use crate::keys::keyring::KeySource;
use crate::store::{Place, Store};
use crate::sync::Mutex;

/// More files than this are made durable by one sync of the whole store.
const SINGLE_SYNCS: usize = 16;

/// Nodes whose content waits for a commit, and how many of them only wait for it.
pub(super) struct DirtySet<S: Store> {
    set: Mutex<HashMap<Ino, Arc<Node<S>>>>,
    /// Closed files that keep a descriptor until they are committed.
    lingering: AtomicUsize,
    /// Most descriptors that closed files may keep.
    limit: usize,
    requested: parking_lot::Mutex<bool>,
    wake: Condvar,
}

impl<S: Store> DirtySet<S> {
    pub fn new(limit: usize) -> Self {
        Self {
            set: Mutex::new(HashMap::new()),
            lingering: AtomicUsize::new(0),
            limit,
            requested: parking_lot::Mutex::new(false),
            wake: Condvar::new(),
        }
    }

    /// Called after each change. A change after `take` marks the node again, so that no change is missed.
    pub fn mark(&self, node: &Arc<Node<S>>) {
        if !node.dirty.swap(true, Ordering::AcqRel) {
            self.set.lock().insert(node.ino, node.clone());
        }
    }

    fn take(&self) -> Vec<Arc<Node<S>>> {
        let mut set = self.set.lock();
        let mut nodes: Vec<_> = std::mem::take(&mut *set).into_values().collect();
        // One order for one set of files, so that a run of tests can be repeated exactly.
        nodes.sort_unstable_by_key(|node| node.ino);
        for node in &nodes {
            node.dirty.store(false, Ordering::Release);
        }
        nodes
    }

    fn remove(&self, node: &Node<S>) {
        let mut set = self.set.lock();
        let gone = set.remove(&node.ino);
        node.dirty.store(false, Ordering::Release);
        drop(set);
        drop(gone);
    }

    fn is_empty(&self) -> bool {
        self.set.lock().is_empty()
    }

    /// Under the node's `opening` lock. Returns how many files linger.
    pub fn set_lingering(&self, node: &Node<S>, yes: bool) -> usize {
        let before = node.with(|state| std::mem::replace(&mut state.lingering, yes));
        match (before, yes) {
            (false, true) => self.lingering.fetch_add(1, Ordering::Relaxed) + 1,
            (true, false) => self.lingering.fetch_sub(1, Ordering::Relaxed) - 1,
            _ => self.lingering.load(Ordering::Relaxed),
        }
    }

    fn request(&self) {
        *self.requested.lock() = true;
        self.wake.notify_all();
    }
}

impl<S: Store> Fs<S> {
    /// Notes a change of content. Cheap where one is noted already.
    pub(super) fn changed(&self, node: &Arc<Node<S>>, content: &Content<S>) {
        if !node.dirty.load(Ordering::Acquire) && content.needs_commit() {
            self.dirty.mark(node);
        }
    }

    /// Drops the content state of a node that nobody has open, unless a commit has to come first; then the node where
    /// the kernel has forgotten it. Called without locks.
    pub(super) fn settle(&self, node: &Arc<Node<S>>) {
        let lingering = {
            let _opening = node.opening.lock();
            let (content, orphan) = node.with(|state| {
                let idle = if state.opens == 0 { state.content.clone() } else { None };
                (idle, if state.links.is_empty() { state.pin.clone() } else { None })
            });
            match content {
                Some(content) => self.drop_or_keep(node, content, orphan),
                None => 0,
            }
        };
        self.nodes.reap(node.ino);
        if lingering > self.dirty.limit {
            // Reported to its fsync, to the next commit and to the log.
            let _ = self.commit_one(node, None);
        } else if lingering > self.dirty.limit / 2 {
            self.dirty.request();
        }
    }

    /// Under the node's `opening` lock, with no opens. Returns how many files linger, 0 where this one does not.
    fn drop_or_keep(&self, node: &Arc<Node<S>>, content: Content<S>, orphan: Option<Arc<S::Handle>>) -> usize {
        if content.needs_commit() && !orphan.is_some_and(|pin| self.is_unlinked(&pin)) {
            self.dirty.mark(node);
            return self.dirty.set_lingering(node, true);
        }
        self.dirty.set_lingering(node, false);
        let source = content.key_source();
        let last = node.with(|state| {
            state.size = Some(content.size());
            state.source = source.or(state.source.take());
            state.writable = false;
            state.content.take()
        });
        self.dirty.remove(node);
        drop(last);
        0
    }

    fn is_unlinked(&self, pin: &S::Handle) -> bool {
        self.store.stat(Place::Pinned(pin)).is_ok_and(|st| st.nlink == 0)
    }

    /// One background commit of everything that changed: durable data, then floors and sizes.
    /// What fails stays in the set and is tried again; the first error is returned, all are logged.
    pub fn commit(&self) -> Result<()> {
        *self.dirty.requested.lock() = false;
        let _one_at_a_time = self.committing.lock();
        let nodes = self.dirty.take();
        let mut first_error = None;
        let tokens = if nodes.len() > SINGLE_SYNCS {
            match self.sync_together(&nodes) {
                Ok(tokens) => Some(tokens),
                Err(e) => {
                    // One by one then: each file's own sync tells whether it is the one that suffers.
                    self.reports.error("commit", "tree", &format!("syncfs failed: {e}"));
                    first_error = Some(e);
                    None
                }
            }
        } else {
            None
        };
        for (i, node) in nodes.iter().enumerate() {
            let token = tokens.as_ref().and_then(|t| t.get(i).copied().flatten());
            if let Err(e) = self.commit_one(node, token) {
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Everything that was written before is durable afterwards; says what that was, per node.
    fn sync_together(&self, nodes: &[Arc<Node<S>>]) -> Result<Vec<Option<u64>>> {
        let tokens = nodes.iter().map(|n| n.content().map(|c| c.sync_token())).collect();
        self.store.sync_fs()?;
        Ok(tokens)
    }

    fn commit_one(&self, node: &Arc<Node<S>>, synced: Option<u64>) -> Result<()> {
        let Some(content) = node.content() else {
            return Ok(());
        };
        let orphan = node.with(|s| if s.links.is_empty() { s.pin.clone() } else { None });
        if orphan.is_some_and(|pin| self.is_unlinked(&pin)) {
            // Dropped at its last close.
            return Ok(());
        }
        self.charge(node);
        let result = {
            let _times = node.times.lock();
            let result = content.commit(synced);
            self.keep_set_id(node);
            result
        };
        let result = match result {
            Ok(Commit::Quiet) => {
                self.changed(node, &content);
                self.settle_committed(node, content);
                Ok(())
            }
            Ok(Commit::Busy) => {
                self.dirty.mark(node);
                Ok(())
            }
            Err(e) => {
                self.dirty.mark(node);
                Err(self.commit_failed(node, e))
            }
        };
        self.nodes.reap(node.ino);
        result
    }

    /// Like `settle`, without starting another commit.
    fn settle_committed(&self, node: &Arc<Node<S>>, content: Content<S>) {
        let _opening = node.opening.lock();
        let idle = node.with(|state| state.opens == 0 && state.content.is_some());
        if idle {
            self.drop_or_keep(node, content, None);
        }
    }

    fn commit_failed(&self, node: &Node<S>, error: FileError) -> FsError {
        let error = FsError::from(error);
        node.with(|state| state.failed = Some(error.errno()));
        let code = error.code().unwrap_or("commit");
        self.reports.error(code, &self.backing_path(node), &format!("commit failed and will be repeated: {error}"));
        error
    }

    /// Takes the keys away from every file for whose source `lost` says so, after what was written is durable as far as may
    /// be. Returns the files whose plaintext may be in the kernel's cache: those, and closed ones that had such keys.
    pub fn drop_keys(&self, lost: &dyn Fn(&KeySource) -> bool) -> Vec<Ino> {
        let mut affected = Vec::new();
        for node in self.nodes.all() {
            let (content, source) = node.with(|state| (state.content.clone(), state.source.clone()));
            let dropped = content.and_then(|content| {
                self.charge(&node);
                let _times = node.times.lock();
                let settled = content.drop_keys(lost);
                self.keep_set_id(&node);
                settled
            });
            let had_keys = dropped.is_some();
            if let Some(Err(e)) = dropped {
                let e = FsError::from(e);
                node.with(|state| state.failed = Some(e.errno()));
                self.dirty.mark(&node);
                let detail = format!("its key goes before what was written is settled: {e}");
                self.reports.error("commit", &self.backing_path(&node), &detail);
            }
            if had_keys || source.is_some_and(|source| lost(&source)) {
                node.with(|state| state.source = None);
                affected.push(node.ino);
            }
        }
        affected
    }

    /// Whether `commit` has anything to do.
    pub fn needs_commit(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Waits until so many closed files keep a descriptor that a commit should come early, or until the time is over.
    /// True where a commit is wanted. For the thread that commits.
    pub fn wait_commit_wanted(&self, timeout: Duration) -> bool {
        let mut requested = self.dirty.requested.lock();
        if !*requested {
            self.dirty.wake.wait_for(&mut requested, timeout);
        }
        *requested
    }

    /// Ends `wait_commit_wanted` early, as at unmount.
    pub fn want_commit(&self) {
        self.dirty.request();
    }
}
