//! Symbolic links: sealed targets, inline or in an overflow object. Knows no directories beyond the entry it is given.

use super::names::Dir;
use super::nodes::Node;
use super::{Fs, FsError, Ino, Result, random16};
use crate::format::small::{
    INLINE_TARGET_MAX, open_overflow_target, open_target, overflow_link, parse_overflow_link, seal_target,
};
use crate::store::{Access, BackingFile, Creator, Kind, Place, Stat, Store};

/// Longest target that Linux allows: PATH_MAX without its NUL, in bytes.
const TARGET_MAX: usize = 4095;
/// What sealing adds: id and synthetic IV, in bytes, before base64url.
const SEAL_OVERHEAD: u64 = 32;
/// Length of an overflow link: `@` and base64url of 32 bytes. A sealed target of one byte is as long.
const OVERFLOW_LINK_LEN: u64 = 44;
/// Longest sealed target, in bytes: base64url of 32 + 4095.
const SEALED_MAX: u64 = base64_len(SEAL_OVERHEAD + TARGET_MAX as u64);

const fn base64_len(bytes: u64) -> u64 {
    (bytes * 4).div_ceil(3)
}

/// Length of the target in a sealed one of `sealed` base64url characters, without opening it.
fn target_len(sealed: u64) -> u64 {
    (sealed.min(SEALED_MAX) * 3 / 4).saturating_sub(SEAL_OVERHEAD)
}

/// Name of an overflow object: the id in lowercase hex.
fn overflow_name(id: &[u8; 16]) -> Vec<u8> {
    data_encoding::HEXLOWER.encode(id).into_bytes()
}

/// What a new link is to hold.
pub(super) struct SealedTarget {
    pub content: Vec<u8>,
    /// The object that holds the target, already durable.
    pub overflow: Option<[u8; 16]>,
}

impl<S: Store> Fs<S> {
    pub(super) fn seal_symlink(&self, target: &[u8], by: Creator) -> Result<SealedTarget> {
        if target.is_empty() {
            return Err(FsError::Errno(libc::ENOENT));
        }
        if target.len() > TARGET_MAX {
            return Err(FsError::Errno(libc::ENAMETOOLONG));
        }
        let (key, id) = (&self.config.keys.targets, random16());
        let sealed = seal_target(key, id, target);
        if sealed.len() <= INLINE_TARGET_MAX {
            return Ok(SealedTarget { content: sealed, overflow: None });
        }
        // Durable before a link leads to it: a link never outlives a crash without its target.
        let written = self
            .overflow
            .create_file(self.overflow.root(), &overflow_name(&id), 0o600, by)
            .and_then(|file| {
                file.write_at(&sealed, 0)?;
                file.sync_all()
            })
            .and_then(|()| self.overflow.sync_dir(self.overflow.root()));
        if let Err(e) = written {
            self.drop_overflow(id);
            return Err(e.into());
        }
        Ok(SealedTarget { content: overflow_link(key, id), overflow: Some(id) })
    }

    /// Removes an overflow object. What stays behind is a leftover that harms nobody.
    pub(super) fn drop_overflow(&self, id: [u8; 16]) {
        if let Err(e) = self.overflow.unlink(self.overflow.root(), &overflow_name(&id)) {
            log::warn!("overflow object {} stays behind: {e}", data_encoding::HEXLOWER.encode(&id));
        }
    }

    fn open_symlink(&self, content: &[u8]) -> Result<Vec<u8>> {
        const DAMAGED: FsError = FsError::Corrupt { code: "symlink-auth" };
        let key = &self.config.keys.targets;
        match parse_overflow_link(key, content).map_err(|_| DAMAGED)? {
            None => open_target(key, content).map_err(|_| DAMAGED),
            Some(id) => open_overflow_target(key, id, &self.read_overflow(&id)?).map_err(|_| DAMAGED),
        }
    }

    fn read_overflow(&self, id: &[u8; 16]) -> Result<Vec<u8>> {
        let name = overflow_name(id);
        let place = Place::Entry { dir: self.overflow.root(), name: &name };
        let missing = |_| FsError::Corrupt { code: "overflow-missing" };
        let file = self.overflow.open_file(place, Access::Read).map_err(missing)?;
        // One byte more than is legal, so that a longer object does not open.
        let mut sealed = vec![0; SEALED_MAX as usize + 1];
        let len = file.read_at(&mut sealed, 0)?;
        sealed.truncate(len);
        Ok(sealed)
    }

    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        if node.kind != Kind::Symlink {
            return Err(FsError::Errno(libc::EINVAL));
        }
        if let Some(target) = node.with(|state| state.target.clone()) {
            return Ok(target.into());
        }
        let content = self.with_place(&node, |place| self.store.readlink(place))?;
        let target = self.open_symlink(&content).map_err(|e| self.noted(&node, e))?;
        self.check_length(&node, &target);
        Ok(target)
    }

    /// The length was derived without opening the target; a difference would be a mistake of ours or a swapped link.
    fn check_length(&self, node: &Node<S>, target: &[u8]) {
        if node.size().is_some_and(|size| size != target.len() as u64) {
            log::debug!("symlink {} changed its length", self.backing_path(node));
        }
    }

    /// Length of a symlink's target from lengths alone, as far as that goes; 0 where the link is damaged.
    pub(super) fn symlink_size(&self, dir: &Dir<'_, S>, raw: &[u8], st: &Stat) -> u64 {
        if st.size != OVERFLOW_LINK_LEN {
            return target_len(st.size);
        }
        let Ok(content) = self.store.readlink(dir.entry(raw)) else { return 0 };
        match parse_overflow_link(&self.config.keys.targets, &content) {
            Ok(None) => target_len(st.size),
            Ok(Some(id)) => {
                let name = overflow_name(&id);
                let object = self.overflow.stat(Place::Entry { dir: self.overflow.root(), name: &name });
                object.map_or(0, |st| target_len(st.size))
            }
            Err(_) => 0,
        }
    }

    /// The overflow object behind a pinned symlink that is about to go, and its target for those who still hold the link.
    pub(super) fn overflow_of(&self, pin: &S::Handle) -> Option<([u8; 16], Option<Vec<u8>>)> {
        let content = self.store.readlink(Place::Pinned(pin)).ok()?;
        let id = parse_overflow_link(&self.config.keys.targets, &content).ok()??;
        Some((id, self.open_symlink(&content).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_derived_exactly() {
        for len in 0..=TARGET_MAX as u64 {
            assert_eq!(target_len(base64_len(SEAL_OVERHEAD + len)), len);
        }
        assert_eq!(target_len(0), 0);
        assert_eq!(target_len(u64::MAX), TARGET_MAX as u64);
        assert_eq!(base64_len(32) + 1, OVERFLOW_LINK_LEN);
        assert_eq!(base64_len(33), OVERFLOW_LINK_LEN);
    }
}
