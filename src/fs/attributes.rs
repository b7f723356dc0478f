//! Attributes of inodes: what stat shows, what setattr changes, the size that is decided once. Knows no directories' content.

use std::sync::Arc;

use super::names::Dir;
use super::nodes::Node;
use super::xattr::CAPABILITY;
use super::{Attr, Fs, FsError, Ino, Result, SetAttr};
use crate::file::probe_size;
use crate::format::geometry::{Length, PAGE, PLAIN};
use crate::store::{Access, Kind, SetTime, Stat, StatFs, Store};

impl<S: Store> Fs<S> {
    /// The store's attributes as we show them: our number, the plaintext size.
    pub(super) fn attr(&self, node: &Node<S>, mut st: Stat) -> Attr {
        st.ino = node.ino;
        if matches!(node.kind, Kind::File | Kind::Symlink) {
            st.size = node.size().unwrap_or(st.size);
        }
        Attr { ino: node.ino, stat: st }
    }

    /// The plaintext size of an object that the kernel learns of now. It stays until the kernel forgets the inode.
    /// Never fails: what cannot be read now is refused at open.
    pub(super) fn first_size(&self, dir: &Dir<'_, S>, raw: &[u8], st: &Stat) -> u64 {
        match st.kind {
            Kind::File => self.file_size(dir, raw, st),
            Kind::Symlink => self.symlink_size(dir, raw, st),
            _ => st.size,
        }
    }

    fn file_size(&self, dir: &Dir<'_, S>, raw: &[u8], st: &Stat) -> u64 {
        let geometry = self.config.files.geometry;
        match geometry.decode(st.size) {
            Ok(Length::Empty { .. }) => 0,
            Ok(Length::Quiet { size }) => size,
            Ok(Length::Growing { blocks }) => {
                let place = dir.entry(raw);
                let probed = self
                    .as_owner(place, 0o400, || self.store.open_file(place, Access::Read))
                    .and_then(|file| probe_size(&file, geometry));
                probed.unwrap_or_else(|e| {
                    self.reports.error("probe-size", &self.entry_path(dir, raw), &format!("size is a guess: {e}"));
                    (blocks - 1).saturating_mul(PLAIN as u64)
                })
            }
            Err(bad) => {
                self.reports.error("impossible-length", &self.entry_path(dir, raw), &bad.to_string());
                geometry.clamp(bad)
            }
        }
    }

    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let node = self.node(ino)?;
        let st = self.stat_node(&node)?;
        Ok(self.attr(&node, st))
    }

    /// Owner first (the kernel clears set-id bits with it), then mode, then size, then times.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let node = self.node(ino)?;
        if set.uid.is_some() || set.gid.is_some() {
            self.with_place(&node, |place| self.store.chown(place, set.uid, set.gid))?;
            node.forget_mode();
            if let Some((uid, gid)) = node.owner() {
                node.set_owner(set.uid.unwrap_or(uid), set.gid.unwrap_or(gid));
            }
        }
        if let Some(mode) = set.mode {
            self.with_place(&node, |place| self.store.chmod(place, mode & 0o7777))?;
            // Some bits may have been refused silently.
            node.forget_mode();
        }
        if let Some(size) = set.size {
            self.set_size(&node, size)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let (atime, mtime) = (set.atime.unwrap_or(SetTime::Omit), set.mtime.unwrap_or(SetTime::Omit));
            // A commit restores the mtime it found: never an older one over this.
            let _times = node.times.lock();
            self.with_place(&node, |place| self.store.set_times(place, atime, mtime))?;
        }
        if set.drop_set_id {
            self.drop_set_id(ino)?;
        }
        let st = self.stat_node(&node)?;
        Ok(self.attr(&node, st))
    }

    fn set_size(&self, node: &Arc<Node<S>>, size: u64) -> Result<()> {
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::Errno(libc::EISDIR)),
            _ => return Err(FsError::Errno(libc::EINVAL)),
        }
        let used = self.content_of(node, true)?;
        self.resize(node, &used.content, size)
    }

    /// Takes the set-id bits that a change of content by somebody without CAP_FSETID costs: set-user-id, and set-group-id
    /// where the group may execute. True where the mode is another one now.
    pub fn drop_set_id(&self, ino: Ino) -> Result<bool> {
        let node = self.node(ino)?;
        if node.kind == Kind::File && node.may_have_set_id() { self.strip_set_id(&node) } else { Ok(false) }
    }

    fn strip_set_id(&self, node: &Arc<Node<S>>) -> Result<bool> {
        const S_ISUID: u32 = 0o4000;
        const S_ISGID: u32 = 0o2000;
        const S_IXGRP: u32 = 0o0010;
        let mode = self.stat_node(node)?.mode;
        let gone = S_ISUID | if mode & S_IXGRP != 0 { S_ISGID } else { 0 };
        node.set_mode(mode & !gone);
        if mode & gone != 0 {
            self.with_place(node, |place| self.store.chmod(place, mode & !gone))?;
        }
        Ok(mode & gone != 0)
    }

    /// What the kernel's own removal of privileges at a truncation does: set-id bits and `security.capability`.
    pub(super) fn drop_privileges(&self, node: &Arc<Node<S>>) -> Result<()> {
        self.strip_set_id(node)?;
        // Without privileges the removal of what is not there is EPERM, too.
        match self.passed_xattr(node, CAPABILITY) {
            Ok(_) => self.with_place(node, |place| self.store.remove_xattr(place, CAPABILITY)),
            Err(e) if [libc::ENODATA, libc::EOPNOTSUPP].contains(&e.errno()) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// After our own work on a file: set-id bits that the backing kernel has stripped because of it come back. When a
    /// user's write has to clear them, our kernel says so (`drop_set_id`). Root's work strips nothing.
    pub(super) fn keep_set_id(&self, node: &Arc<Node<S>>) {
        let bits = node.set_id();
        if bits == 0 {
            return;
        }
        let kept = self.with_place(node, |place| {
            let mode = self.store.stat(place)?.mode;
            if mode & bits == bits { Ok(()) } else { self.store.chmod(place, mode | bits) }
        });
        if let Err(e) = kept {
            self.reports.error("mode-restore", &self.backing_path(node), &format!("set-id bits are lost: {e}"));
        }
    }

    /// Space in terms of plaintext: of each block, `PLAIN` bytes of `PAGE` are the user's.
    pub fn statfs(&self) -> Result<StatFs> {
        let mut st = self.store.statfs()?;
        let plain = |count: u64| (u128::from(count) * PLAIN as u128 / PAGE as u128) as u64;
        st.blocks = plain(st.blocks);
        st.blocks_free = plain(st.blocks_free);
        st.blocks_available = plain(st.blocks_available);
        st.name_max = crate::format::names::NAME_MAX as u64;
        Ok(st)
    }
}
