//! Directories as objects: their ids, making and removing them, what a crash may have left inside. Knows no content.

use std::io;
use std::sync::Arc;

use super::handles::{HandleRef, OWNER_ALL, is};
use super::names::Dir;
use super::nodes::Node;
use super::{Attr, Caller, Fs, FsError, Ino, Result, random16};
use crate::format::DirId;
use crate::format::dir_id::DirRecord;
use crate::format::names::{DIR_ID_NAME, Decoded, temp_name};
use crate::store::{Creator, Kind, Place, RenameMode, Stat, Store};

/// Leftover directories inside leftover directories: no crash makes more.
const LEFTOVER_DEPTH: usize = 32;

impl<S: Store> Fs<S> {
    /// The directory's id, read once per node. EIO where it is missing or not authentic: it is never made anew.
    pub(super) fn dir_id(&self, node: &Node<S>, handle: &HandleRef<'_, S::Handle>) -> Result<DirId> {
        if let Some(id) = node.dir_id() {
            return Ok(id);
        }
        let place = Place::Entry { dir: &**handle, name: DIR_ID_NAME };
        let found = match self.as_owner(Place::Pinned(&**handle), OWNER_ALL, || self.store.readlink(place)) {
            Ok(target) => DirRecord::decode(&target, &self.config.keys.dir_id).ok(),
            // A removed directory that somebody still has open.
            Err(e) if is(&e, libc::ENOENT) && node.with(|s| s.pin.is_some()) => return Err(e.into()),
            Err(e) if is(&e, libc::ENOENT) || is(&e, libc::EINVAL) => None,
            Err(e) => return Err(e.into()),
        };
        let record = found.ok_or_else(|| self.damaged(node, "dir-id"))?;
        node.learn_dir(record.id, record.keys);
        Ok(record.id)
    }

    /// A directory comes into being under a temporary name and gets its real one when it has its id.
    pub fn mkdir(&self, by: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        self.writable()?;
        let creator = by.creator();
        let dir = self.dir(parent)?;
        let encoded = self.encode_new(&dir, name)?;
        let _exclusive = dir.node.entries.write();
        if self.stat_entry(&dir, &encoded.name)?.is_some() {
            return Err(FsError::Errno(libc::EEXIST));
        }
        let temp = temp_name(random16());
        self.store.mkdir(&dir.handle, &temp, mode & 0o7777, creator)?;
        let record = DirRecord { id: random16(), parent: dir.id, keys: dir.node.keys() };
        let made = self.finish_directory(&dir, &temp, &record, creator).and_then(|handle| {
            let placed = self.place_companion(&dir, &encoded, creator)?;
            let renamed = self.store.rename((&dir.handle, &temp), (&dir.handle, &encoded.name), RenameMode::NoReplace);
            if renamed.is_err() && placed {
                self.drop_companion(&dir, &encoded);
            }
            renamed.map(|()| handle)
        });
        let handle = match made {
            Ok(handle) => Arc::new(handle),
            Err(e) => {
                self.abandon_directory(&dir, &temp);
                return Err(e.into());
            }
        };
        let st = self.store.stat(Place::Pinned(&handle))?;
        let attr = self.attach(&dir, &encoded.name, st)?;
        if let Some(node) = self.nodes.find(attr.ino) {
            node.learn_dir(record.id, record.keys);
        }
        self.handles.insert(attr.ino, handle);
        Ok(attr)
    }

    fn finish_directory(&self, dir: &Dir<'_, S>, temp: &[u8], id: &DirRecord, by: Creator) -> io::Result<S::Handle> {
        let handle = self.store.pin(&dir.handle, temp)?;
        let target = id.encode(&self.config.keys.dir_id).map_err(io::Error::other)?;
        self.as_owner(Place::Pinned(&handle), OWNER_ALL, || self.store.symlink(&handle, DIR_ID_NAME, &target, by))?;
        Ok(handle)
    }

    fn abandon_directory(&self, dir: &Dir<'_, S>, temp: &[u8]) {
        let removed = self.store.pin(&dir.handle, temp).and_then(|h| self.clear_and_remove(dir, temp, &h));
        if let Err(e) = removed {
            log::warn!("temporary directory {} stays behind: {e}", self.entry_path(dir, temp));
        }
    }

    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let dir = self.dir(parent)?;
        let encoded = self.encode_existing(&dir, name)?;
        loop {
            let exclusive = dir.node.entries.write();
            let handle = Arc::new(self.store.pin(&dir.handle, &encoded.name)?);
            let st = self.store.stat(Place::Pinned(&handle))?;
            let node = self.removable(&st)?;
            let inside = node.as_ref().map(|n| n.entries.try_write());
            if matches!(inside, Some(None)) {
                // Somebody works inside: wait without holding the parent.
                drop(inside);
                drop(exclusive);
                if let Some(node) = &node {
                    drop(node.entries.write());
                }
                continue;
            }
            self.must_be_empty(&handle)?;
            self.dispose(&dir, &encoded.name, &handle)?;
            self.drop_companion(&dir, &encoded);
            if let Some(node) = &node {
                self.directory_gone(node, handle);
            }
            return Ok(());
        }
    }

    /// The node of a directory that is to be removed, where it has one.
    pub(super) fn removable(&self, st: &Stat) -> Result<Option<Arc<Node<S>>>> {
        if st.kind != Kind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        if st.dev != self.root_dev {
            return Err(FsError::Errno(libc::EBUSY));
        }
        Ok(self.nodes.find(self.ino_of(st.ino)))
    }

    /// A removed directory has no name; whoever has it open keeps its inode by the pin.
    pub(super) fn directory_gone(&self, node: &Node<S>, handle: Arc<S::Handle>) {
        node.with(|state| {
            state.links.clear();
            state.pin = Some(handle);
        });
        self.handles.remove(node.ino);
        self.nodes.reap(node.ino);
    }

    /// ENOTEMPTY where the directory holds anything but leftovers of our own. What cannot be decoded counts as an entry:
    /// it is never deleted.
    pub(super) fn must_be_empty(&self, handle: &S::Handle) -> Result<()> {
        let empty = self.as_owner(Place::Pinned(handle), OWNER_ALL, || self.only_leftovers(handle, LEFTOVER_DEPTH))?;
        if empty { Ok(()) } else { Err(FsError::Errno(libc::ENOTEMPTY)) }
    }

    fn is_internal(&self, raw: &[u8]) -> bool {
        // Internal names are the same in every directory.
        matches!(self.config.names.decode(&[0; 16], raw), Ok(Decoded::Internal))
    }

    fn only_leftovers(&self, handle: &S::Handle, depth: usize) -> io::Result<bool> {
        for entry in self.store.list(handle)? {
            if !self.is_internal(&entry.name) {
                return Ok(false);
            }
            if entry.kind == Kind::Directory {
                if depth == 0 {
                    return Ok(false);
                }
                let inner = self.store.pin(handle, &entry.name)?;
                let place = Place::Pinned(&inner);
                if !self.as_owner(place, OWNER_ALL, || self.only_leftovers(&inner, depth - 1))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes an empty directory: first out of sight, so that no crash shows one without its id. On failure it is back.
    pub(super) fn dispose(&self, dir: &Dir<'_, S>, raw: &[u8], victim: &S::Handle) -> io::Result<()> {
        let temp = temp_name(random16());
        self.store.rename((&dir.handle, raw), (&dir.handle, &temp), RenameMode::NoReplace)?;
        let removed = self.clear_and_remove(dir, &temp, victim);
        if removed.is_err()
            && let Err(e) = self.store.rename((&dir.handle, &temp), (&dir.handle, raw), RenameMode::NoReplace)
        {
            self.reports.error("rmdir", &self.entry_path(dir, raw), &format!("could not be put back: {e}"));
        }
        removed
    }

    fn clear_and_remove(&self, dir: &Dir<'_, S>, temp: &[u8], victim: &S::Handle) -> io::Result<()> {
        let id_place = Place::Entry { dir: victim, name: DIR_ID_NAME };
        let id = self.as_owner(Place::Pinned(victim), OWNER_ALL, || {
            self.clear(victim, LEFTOVER_DEPTH)?;
            let id = match self.store.readlink(id_place) {
                Ok(target) => Some((target, self.store.stat(id_place)?)),
                // Not a link, and so no id.
                Err(e) if is(&e, libc::EINVAL) => None,
                Err(e) if is(&e, libc::ENOENT) => return Ok(None),
                Err(e) => return Err(e),
            };
            self.store.unlink(victim, DIR_ID_NAME)?;
            Ok(id)
        })?;
        let removed = self.store.rmdir(&dir.handle, temp);
        if removed.is_err()
            && let Some((target, st)) = id
        {
            let by = Creator { uid: st.uid, gid: st.gid, umask: 0 };
            self.as_owner(Place::Pinned(victim), OWNER_ALL, || self.store.symlink(victim, DIR_ID_NAME, &target, by))?;
        }
        removed
    }

    /// Deletes what a crash left in a directory, all but its id.
    fn clear(&self, handle: &S::Handle, depth: usize) -> io::Result<()> {
        for entry in self.store.list(handle)? {
            if *entry.name == *DIR_ID_NAME {
                continue;
            }
            if !self.is_internal(&entry.name) {
                return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
            }
            if entry.kind != Kind::Directory {
                self.store.unlink(handle, &entry.name)?;
                continue;
            }
            let depth = depth.checked_sub(1).ok_or(io::Error::from_raw_os_error(libc::ENOTEMPTY))?;
            let inner = self.store.pin(handle, &entry.name)?;
            self.as_owner(Place::Pinned(&inner), OWNER_ALL, || {
                self.clear(&inner, depth)?;
                match self.store.unlink(&inner, DIR_ID_NAME) {
                    Err(e) if !is(&e, libc::ENOENT) => Err(e),
                    _ => Ok(()),
                }
            })?;
            self.store.rmdir(handle, &entry.name)?;
        }
        Ok(())
    }

    pub fn fsyncdir(&self, ino: Ino) -> Result<()> {
        let node = self.node(ino)?;
        if node.kind != Kind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let handle = self.handle(&node)?;
        Ok(self.as_owner(Place::Pinned(&*handle), 0o400, || self.store.sync_dir(&handle))?)
    }
}
