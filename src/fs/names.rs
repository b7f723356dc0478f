//! Names in directories: lookup, creation of everything but directories, hard links, companions of long names.
//! Knows encoded names and the node table; no content.

use std::io;
use std::sync::Arc;

use super::handles::{HandleRef, is};
use super::nodes::{AbsentXattrs, Link, Node};
use super::{Attr, Caller, Fs, FsError, Ino, Result};
use crate::file::EncryptedFile;
use crate::format::DirId;
use crate::format::names::{Encoded, NameError};
use crate::store::{BackingFile, Creator, Kind, Place, Stat, Store};

/// A directory ready for operations on its entries.
pub(super) struct Dir<'a, S: Store> {
    pub node: Arc<Node<S>>,
    pub handle: HandleRef<'a, S::Handle>,
    pub id: DirId,
}

impl<S: Store> Dir<'_, S> {
    pub fn link(&self, raw: &[u8]) -> Link {
        Link { parent: self.node.ino, name: raw.into() }
    }
    pub fn entry<'b>(&'b self, raw: &'b [u8]) -> Place<'b, S::Handle> {
        Place::Entry { dir: &*self.handle, name: raw }
    }
}

impl<S: Store> Fs<S> {
    /// Callers take `entries` of the directory afterwards, never before.
    pub(super) fn dir(&self, ino: Ino) -> Result<Dir<'_, S>> {
        let node = self.node(ino)?;
        if node.kind != Kind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let handle = self.handle(&node)?;
        let id = self.dir_id(&node, &handle)?;
        Ok(Dir { node, handle, id })
    }

    /// Of a name that should exist: a reserved one never does.
    pub(super) fn encode_existing(&self, dir: &Dir<'_, S>, name: &[u8]) -> Result<Encoded> {
        match self.config.names.encode(&dir.id, name) {
            Err(NameError::Reserved) => Err(FsError::Errno(libc::ENOENT)),
            result => Ok(result?),
        }
    }
    pub(super) fn encode_new(&self, dir: &Dir<'_, S>, name: &[u8]) -> Result<Encoded> {
        Ok(self.config.names.encode(&dir.id, name)?)
    }

    /// Attributes of an entry, `None` where there is none.
    pub(super) fn stat_entry(&self, dir: &Dir<'_, S>, raw: &[u8]) -> Result<Option<Stat>> {
        match self.store.stat(dir.entry(raw)) {
            Ok(st) => Ok(Some(st)),
            Err(e) if is(&e, libc::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Counts one lookup of the object that stands at `raw`, under the directory's `entries` lock.
    /// EIO for an object of another backing filesystem: its inode number means nothing here.
    pub(super) fn attach(&self, dir: &Dir<'_, S>, raw: &[u8], st: Stat) -> Result<Attr> {
        if st.dev != self.root_dev {
            let path = || self.entry_path(dir, raw);
            self.reports.error_once("other-filesystem", raw, path, "another filesystem is mounted inside the tree");
            return Err(FsError::Errno(libc::EIO));
        }
        let ino = self.ino_of(st.ino);
        let size = match self.nodes.find(ino).and_then(|n| n.size()) {
            Some(size) => size,
            None => self.first_size(dir, raw, &st),
        };
        let node = match self.nodes.attach(ino, st.kind, &dir.node, dir.link(raw)) {
            Err(FsError::Corrupt { code }) => {
                self.reports.error(code, &self.entry_path(dir, raw), "its inode number was of another kind before");
                return Err(FsError::Corrupt { code });
            }
            result => result?,
        };
        node.learn_size(size);
        node.set_owner(st.uid, st.gid);
        node.learn_mode(st.mode);
        Ok(self.attr(&node, st))
    }

    pub(super) fn entry_path(&self, dir: &Dir<'_, S>, raw: &[u8]) -> String {
        format!("{}/{}", self.backing_path(&dir.node), String::from_utf8_lossy(raw))
    }

    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let dir = self.dir(parent)?;
        let encoded = self.encode_existing(&dir, name)?;
        let _shared = dir.node.entries.read();
        let st = self.store.stat(dir.entry(&encoded.name))?;
        self.attach(&dir, &encoded.name, st)
    }

    pub fn forget(&self, ino: Ino, count: u64) {
        self.nodes.forget(ino, count);
    }

    /// Puts the companion of a long name in place. True where there was none before.
    /// Callers hold `entries` exclusively.
    pub(super) fn place_companion(&self, dir: &Dir<'_, S>, name: &Encoded, by: Creator) -> io::Result<bool> {
        let Some((companion, target)) = &name.companion else { return Ok(false) };
        match self.store.symlink(&dir.handle, companion, target, by) {
            Err(e) if is(&e, libc::EEXIST) => {}
            result => return result.map(|()| true),
        }
        // A name has one encoding: another target is damage, and this name's entry is about to be made anew.
        if self.store.readlink(dir.entry(companion)).ok().as_deref() != Some(&**target) {
            self.store.unlink(&dir.handle, companion)?;
            self.store.symlink(&dir.handle, companion, target, by)?;
        }
        Ok(false)
    }

    /// Removes the companion of a long name whose entry is gone. What stays behind is a leftover that harms nobody.
    pub(super) fn drop_companion(&self, dir: &Dir<'_, S>, name: &Encoded) {
        if let Some((companion, _)) = &name.companion
            && let Err(e) = self.store.unlink(&dir.handle, companion)
            && !is(&e, libc::ENOENT)
        {
            log::warn!("companion {} stays behind: {e}", self.entry_path(dir, companion));
        }
    }

    /// Makes one entry with its companion: `make` runs between them, under the exclusive lock. `keyed`: the entry is a new
    /// file, which is not made where nothing could be written to it.
    fn enter<R>(
        &self,
        parent: Ino,
        name: &[u8],
        keyed: bool,
        by: Creator,
        make: impl FnOnce(&Dir<'_, S>, &[u8]) -> Result<R>,
    ) -> Result<R> {
        self.writable()?;
        let dir = self.dir(parent)?;
        let encoded = self.encode_new(&dir, name)?;
        let _exclusive = dir.node.entries.write();
        if keyed && let Err(e) = self.keys_for_new_files(&dir.node) {
            // What is there already is another matter.
            let taken = self.stat_entry(&dir, &encoded.name).is_ok_and(|st| st.is_some());
            return Err(if taken { FsError::Errno(libc::EEXIST) } else { e });
        }
        let placed = self.place_companion(&dir, &encoded, by)?;
        let result = make(&dir, &encoded.name);
        // Without a new entry the companion serves nobody, unless an entry was there already.
        if result.is_err() && placed && !self.stat_entry(&dir, &encoded.name).is_ok_and(|st| st.is_some()) {
            self.drop_companion(&dir, &encoded);
        }
        result
    }

    pub fn create(&self, by: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let (creator, mode) = (by.creator(), mode & 0o7777);
        self.enter(parent, name, true, creator, |dir, raw| {
            let file = self.store.create_file(&dir.handle, raw, mode, creator)?;
            let st = file.stat()?;
            let attr = self.attach(dir, raw, st)?;
            let node = self.node(attr.ino)?;
            // Nothing hands a file capability down.
            node.absent_xattrs.learn(0, AbsentXattrs::CAPABILITY);
            let content = EncryptedFile::new(self.config.files.clone(), file, true, 0).inheriting(node.group.clone());
            let content = Arc::new(content);
            node.with(|state| {
                state.size = Some(0);
                state.content = Some(content);
                state.writable = true;
                state.opens += 1;
            });
            Ok(attr)
        })
    }

    pub fn mknod(&self, by: &Caller, parent: Ino, name: &[u8], kind: Kind, mode: u32, rdev: u64) -> Result<Attr> {
        let (creator, mode) = (by.creator(), mode & 0o7777);
        self.enter(parent, name, kind == Kind::File, creator, |dir, raw| {
            match kind {
                Kind::File => drop(self.store.create_file(&dir.handle, raw, mode, creator)?),
                Kind::Directory | Kind::Symlink => return Err(FsError::Errno(libc::EINVAL)),
                Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                    self.store.mknod(&dir.handle, raw, kind, mode, rdev, creator)?;
                }
            }
            let st = self.store.stat(dir.entry(raw))?;
            self.attach(dir, raw, st)
        })
    }

    pub fn symlink(&self, by: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.writable()?;
        let creator = by.creator();
        let sealed = self.seal_symlink(target, creator)?;
        let result = self.enter(parent, name, false, creator, |dir, raw| {
            self.store.symlink(&dir.handle, raw, &sealed.content, creator)?;
            let st = self.store.stat(dir.entry(raw))?;
            self.attach(dir, raw, st)
        });
        if result.is_err()
            && let Some(id) = sealed.overflow
        {
            self.drop_overflow(id);
        }
        result
    }

    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.writable()?;
        let node = self.node(ino)?;
        if node.kind == Kind::Directory {
            return Err(FsError::Errno(libc::EPERM));
        }
        let pin = self.pin_of(&node)?;
        let st = self.store.stat(Place::Pinned(&*pin))?;
        let owner = Creator { uid: st.uid, gid: st.gid, umask: 0 };
        self.enter(parent, name, false, owner, |dir, raw| {
            self.store.link(Place::Pinned(&*pin), &dir.handle, raw)?;
            let st = self.store.stat(Place::Pinned(&*pin))?;
            self.attach(dir, raw, st)
        })
    }
}
