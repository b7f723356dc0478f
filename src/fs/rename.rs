//! Rename in all its modes, with the bookkeeping of names and companions. Knows no content.

use std::sync::Arc;

use super::handles::OWNER_ALL;
use super::names::Dir;
use super::nodes::Node;
use super::unlink::Victim;
use super::{Fs, FsError, Ino, Result};
use crate::format::names::Encoded;
use crate::store::{Creator, Kind, Place, RenameMode, Stat, Store};
use crate::sync::RwLockWriteGuard;

/// One side of a rename.
struct Side<'a, S: Store> {
    dir: Dir<'a, S>,
    name: Encoded,
}

/// What an attempt came to.
enum Outcome<S: Store> {
    Done(Option<Arc<Node<S>>>),
    /// Somebody works inside the directory to be replaced: wait for it without locks, and look again.
    Wait(Arc<Node<S>>),
}

/// Exclusive locks of one or two directories, in the order that all take them.
fn lock_both<'a, S: Store>(
    a: &'a Node<S>,
    b: &'a Node<S>,
) -> (RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>) {
    match a.ino.cmp(&b.ino) {
        std::cmp::Ordering::Less => (a.entries.write(), Some(b.entries.write())),
        std::cmp::Ordering::Equal => (a.entries.write(), None),
        std::cmp::Ordering::Greater => (b.entries.write(), Some(a.entries.write())),
    }
}

impl<S: Store> Fs<S> {
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        self.writable()?;
        let dir = self.dir(from.0)?;
        let source = Side { name: self.encode_existing(&dir, from.1)?, dir };
        let dir = self.dir(to.0)?;
        let name = match mode {
            RenameMode::Exchange => self.encode_existing(&dir, to.1)?,
            RenameMode::Replace | RenameMode::NoReplace => self.encode_new(&dir, to.1)?,
        };
        let target = Side { dir, name };
        loop {
            let outcome = {
                let _exclusive = lock_both(&source.dir.node, &target.dir.node);
                self.rename_locked(&source, &target, mode)?
            };
            match outcome {
                Outcome::Done(victim) => {
                    self.mourn(victim);
                    return Ok(());
                }
                Outcome::Wait(inside) => drop(inside.entries.write()),
            }
        }
    }

    fn rename_locked(&self, source: &Side<'_, S>, target: &Side<'_, S>, mode: RenameMode) -> Result<Outcome<S>> {
        let moved = self.stat_entry(&source.dir, &source.name.name)?.ok_or(FsError::Errno(libc::ENOENT))?;
        let other = self.stat_entry(&target.dir, &target.name.name)?;
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => Err(FsError::Errno(libc::EEXIST)),
            (RenameMode::Exchange, None) => Err(FsError::Errno(libc::ENOENT)),
            // Two names of one object: nothing happens (rename(2)).
            (_, Some(other)) if (other.dev, other.ino) == (moved.dev, moved.ino) => Ok(Outcome::Done(None)),
            (RenameMode::Exchange, Some(other)) => self.exchange(source, &moved, target, &other),
            (RenameMode::Replace, Some(other)) => match (moved.kind, other.kind) {
                (Kind::Directory, Kind::Directory) => self.replace_directory(source, &moved, target),
                (Kind::Directory, _) => Err(FsError::Errno(libc::ENOTDIR)),
                (_, Kind::Directory) => Err(FsError::Errno(libc::EISDIR)),
                _ => {
                    let victim = self.doom(&target.dir, &target.name.name)?.map(|(victim, _)| victim);
                    self.move_entry(source, &moved, target, mode, victim)
                }
            },
            (RenameMode::Replace | RenameMode::NoReplace, None) => self.move_entry(source, &moved, target, mode, None),
        }
    }

    /// The node of a renamed object, where it has one.
    fn moved_node(&self, st: &Stat) -> Option<Arc<Node<S>>> {
        self.nodes.find(self.ino_of(st.ino)).filter(|n| self.is_node(n, st))
    }

    fn move_entry(
        &self,
        source: &Side<'_, S>,
        moved: &Stat,
        target: &Side<'_, S>,
        mode: RenameMode,
        victim: Option<Victim<S>>,
    ) -> Result<Outcome<S>> {
        let owner = Creator { uid: moved.uid, gid: moved.gid, umask: 0 };
        let renamed = self.place_companion(&target.dir, &target.name, owner).and_then(|placed| {
            let from = (&*source.dir.handle, &*source.name.name);
            let to = (&*target.dir.handle, &*target.name.name);
            let renamed = self.store.rename(from, to, mode);
            if renamed.is_err() && placed && victim.is_none() {
                self.drop_companion(&target.dir, &target.name);
            }
            renamed
        });
        if let Err(e) = renamed {
            if let Some(victim) = victim {
                self.spare(victim);
            }
            return Err(e.into());
        }
        // First the name that is gone, then the one that came in its place.
        let buried = victim.and_then(|v| self.bury(v));
        if let Some(node) = self.moved_node(moved) {
            node.move_link(&source.dir.link(&source.name.name), target.dir.link(&target.name.name));
            node.inherit(&target.dir.node);
        }
        self.drop_companion(&source.dir, &source.name);
        Ok(Outcome::Done(buried))
    }

    fn exchange(&self, source: &Side<'_, S>, moved: &Stat, target: &Side<'_, S>, other: &Stat) -> Result<Outcome<S>> {
        // Both names exist before and after, and so do their companions.
        let (from, to) = (&*source.name.name, &*target.name.name);
        self.store.rename((&source.dir.handle, from), (&target.dir.handle, to), RenameMode::Exchange)?;
        self.swap_links(source, moved, target, other);
        Ok(Outcome::Done(None))
    }

    fn swap_links(&self, source: &Side<'_, S>, moved: &Stat, target: &Side<'_, S>, other: &Stat) {
        let (from, to) = (source.dir.link(&source.name.name), target.dir.link(&target.name.name));
        if let Some(node) = self.moved_node(moved) {
            node.move_link(&from, to.clone());
            node.inherit(&target.dir.node);
        }
        if let Some(node) = self.moved_node(other) {
            node.move_link(&to, from);
            node.inherit(&source.dir.node);
        }
    }

    /// A directory over an empty one: the two change places, then the empty one is removed, so that no crash shows a
    /// directory without its id.
    fn replace_directory(&self, source: &Side<'_, S>, moved: &Stat, target: &Side<'_, S>) -> Result<Outcome<S>> {
        let (from, to) = (&*source.name.name, &*target.name.name);
        let handle = Arc::new(self.store.pin(&target.dir.handle, to)?);
        let st = self.store.stat(Place::Pinned(&handle))?;
        let node = self.removable(&st)?;
        if node.as_ref().is_some_and(|n| n.ino == source.dir.node.ino) {
            // It holds the source.
            return Err(FsError::Errno(libc::ENOTEMPTY));
        }
        let inside = node.as_ref().map(|n| n.entries.try_write());
        if let (Some(None), Some(node)) = (&inside, &node) {
            return Ok(Outcome::Wait(node.clone()));
        }
        self.must_be_empty(&handle)?;
        let exchange = || self.store.rename((&source.dir.handle, from), (&target.dir.handle, to), RenameMode::Exchange);
        self.as_owner(Place::Pinned(&handle), OWNER_ALL, exchange)?;
        if let Err(e) = self.dispose(&source.dir, from, &handle) {
            if let Err(e) = exchange() {
                // The rename has happened, and an empty directory stands at the old name.
                self.swap_links(source, moved, target, &st);
                self.reports.error("rename", &self.entry_path(&source.dir, from), &format!("half done: {e}"));
            }
            return Err(e.into());
        }
        if let Some(node) = self.moved_node(moved) {
            node.add_link(target.dir.link(to));
        }
        self.drop_companion(&source.dir, &source.name);
        if let Some(node) = &node {
            self.directory_gone(node, handle);
        }
        Ok(Outcome::Done(None))
    }
}
