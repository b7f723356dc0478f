//! The CMKs of directories: what new files inside will hang on. Changes one directory's record; knows no providers.

use super::handles::OWNER_ALL;
use super::names::Dir;
use super::nodes::Node;
use super::{Fs, FsError, Ino, Result, random16};
use crate::format::dir_id::DirRecord;
use crate::format::names::{DIR_ID_NAME, temp_name};
use crate::format::{KeyGroup, dir_id::check_keys};
use crate::keys::KeyError;
use crate::store::{Creator, Place, RenameMode, SetTime, Store};

impl<S: Store> Fs<S> {
    /// What new files of a directory hang on; `None`: the volume's own CMKs.
    pub fn directory_keys(&self, ino: Ino) -> Result<KeyGroup> {
        Ok(self.dir(ino)?.node.keys())
    }

    /// New files of the directory, and directories made in it, hang on these CMKs from now on; what exists keeps its keys.
    /// The keyring must know them all. Durable when this returns; after a crash before that the old group or the new one
    /// holds. Acts with the identity of the record's owner: for a thread that does nothing else.
    pub fn set_directory_keys(&self, ino: Ino, keys: KeyGroup) -> Result<()> {
        self.writable()?;
        if let Some(keys) = &keys {
            check_keys(keys).map_err(|e| KeyError::Config(e.to_string()))?;
        }
        self.config.files.keyring.knows(&keys)?;
        let dir = self.dir(ino)?;
        let _exclusive = dir.node.entries.write();
        if dir.node.with(|state| state.pin.is_some()) {
            return Err(FsError::Errno(libc::ENOENT));
        }
        let here = Place::Pinned(&*dir.handle);
        let replaced = self.as_owner(here, OWNER_ALL, || {
            let times = self.store.stat(here)?;
            let place = dir.entry(DIR_ID_NAME);
            let link = self.store.stat(place)?;
            let old = DirRecord::decode(&self.store.readlink(place)?, &self.config.keys.dir_id);
            // Somebody changed it below since this mount read it: left as it is.
            let Some(old) = old.ok().filter(|old| old.id == dir.id) else { return Ok(false) };
            let new = DirRecord { keys: keys.clone(), ..old };
            let placed = self.replace_record(&dir, &new, Creator { uid: link.uid, gid: link.gid, umask: 0 });
            if placed.is_ok() {
                dir.node.set_keys(keys.clone());
            }
            let timed = self.store.set_times(here, SetTime::Omit, SetTime::At(times.mtime));
            placed.and(timed)?;
            self.store.sync_dir(&dir.handle)?;
            Ok(true)
        })?;
        if replaced { Ok(()) } else { Err(self.damaged(&dir.node, "dir-id")) }
    }

    fn replace_record(&self, dir: &Dir<'_, S>, record: &DirRecord, by: Creator) -> std::io::Result<()> {
        let target = record.encode(&self.config.keys.dir_id).map_err(std::io::Error::other)?;
        let temp = temp_name(random16());
        self.store.symlink(&dir.handle, &temp, &target, by)?;
        let renamed = self.store.rename((&dir.handle, &temp), (&dir.handle, DIR_ID_NAME), RenameMode::Replace);
        if renamed.is_err()
            && let Err(e) = self.store.unlink(&dir.handle, &temp)
        {
            log::warn!("a temporary record stays behind in {}: {e}", self.backing_path(&dir.node));
        }
        renamed
    }

    /// The error where a file that needs keys could not get them in the end. Said early, because the kernel takes writes
    /// long before they reach us.
    pub(super) fn keys_for_new_files(&self, node: &Node<S>) -> Result<()> {
        let group = node.group.group();
        self.config.files.keyring.ready(&group).map_err(|e| {
            if let KeyError::NoCmk { .. } = e {
                let detail = "new files here hang on a CMK that this mount was not given, and get no other";
                self.reports.error("key", &self.backing_path(node), &format!("{e}: {detail}"));
            }
            FsError::Key(e)
        })
    }
}
