//! Names that go away, by unlink or under a rename: pinning, overflow objects, content state. Knows no directories.

use std::sync::Arc;

use super::handles::is;
use super::names::Dir;
use super::nodes::{Link, Node};
use super::{Fs, FsError, Ino, Result};
use crate::store::{Kind, Place, Stat, Store};

/// An entry that is about to lose its name. Its node, where it has one, outlives the name by a pin.
pub(super) struct Victim<S: Store> {
    link: Link,
    node: Option<Arc<Node<S>>>,
    pinned_here: bool,
    /// Overflow object that nobody needs once this name is gone, and the target that was in it.
    overflow: Option<([u8; 16], Option<Vec<u8>>)>,
}

impl<S: Store> Fs<S> {
    /// Prepares the removal of the name `raw`, under the exclusive lock of its directory. `None` where there is none.
    pub(super) fn doom(&self, dir: &Dir<'_, S>, raw: &[u8]) -> Result<Option<(Victim<S>, Stat)>> {
        let pin = match self.store.pin(&dir.handle, raw) {
            Ok(pin) => Arc::new(pin),
            Err(e) if is(&e, libc::ENOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let st = self.store.stat(Place::Pinned(&pin))?;
        let link = dir.link(raw);
        let node = self.nodes.find(self.ino_of(st.ino)).filter(|n| self.is_node(n, &st));
        let overflow = if st.kind == Kind::Symlink && st.nlink <= 1 { self.overflow_of(&pin) } else { None };
        let pinned_here = node.as_ref().is_some_and(|node| {
            let last = node.lives_by(&link);
            node.with(|state| {
                let needed = last && state.pin.is_none();
                if needed {
                    state.pin = Some(pin);
                }
                needed
            })
        });
        Ok(Some((Victim { link, node, pinned_here, overflow }, st)))
    }

    /// The name stays after all.
    pub(super) fn spare(&self, victim: Victim<S>) {
        if let Some(node) = victim.node
            && victim.pinned_here
        {
            let pin = node.with(|state| state.pin.take());
            drop(pin);
        }
    }

    /// The name is gone. Callers then drop their `entries` locks and call `mourn`.
    pub(super) fn bury(&self, victim: Victim<S>) -> Option<Arc<Node<S>>> {
        if let Some(node) = &victim.node {
            node.remove_link(&victim.link);
            // A name that is left, where there is one, says which directory's keys it would get.
            if let Some(directory) = node.first_link().and_then(|link| self.nodes.find(link.parent)) {
                node.inherit(&directory);
            }
        }
        if let Some((id, target)) = victim.overflow {
            if let (Some(node), Some(target)) = (&victim.node, target) {
                node.with(|state| state.target = Some(target.into()));
            }
            self.drop_overflow(id);
        }
        victim.node
    }

    /// Content state of a file whose last name is gone is not worth a commit. Called without locks.
    pub(super) fn mourn(&self, node: Option<Arc<Node<S>>>) {
        if let Some(node) = node {
            self.settle(&node);
        }
    }

    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let dir = self.dir(parent)?;
        let encoded = self.encode_existing(&dir, name)?;
        let node = {
            let _exclusive = dir.node.entries.write();
            let (victim, st) = self.doom(&dir, &encoded.name)?.ok_or(FsError::Errno(libc::ENOENT))?;
            if st.kind == Kind::Directory {
                self.spare(victim);
                return Err(FsError::Errno(libc::EISDIR));
            }
            if let Err(e) = self.store.unlink(&dir.handle, &encoded.name) {
                self.spare(victim);
                return Err(e.into());
            }
            self.drop_companion(&dir, &encoded);
            self.bury(victim)
        };
        self.mourn(node);
        Ok(())
    }
}
