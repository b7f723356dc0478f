//! Content of regular files: open state shared per inode, reads and writes through the engine. Knows no names.

use std::sync::Arc;

use super::nodes::{Content, Node};
use super::{Fs, FsError, Ino, OpenMode, Result};
use crate::file::{EncryptedFile, Fallocate, FileError, Seek};
use crate::format::small::XattrCodec;
use crate::store::{Access, Kind, Store};

/// Largest piece that `copy_range` moves at once, in bytes.
const COPY_BUFFER: usize = 1 << 20;

/// Content state in use; holds the node open where nobody else does.
pub(super) struct Use<'a, S: Store> {
    fs: &'a Fs<S>,
    pub node: Arc<Node<S>>,
    pub content: Content<S>,
    held: bool,
}

impl<S: Store> Drop for Use<'_, S> {
    fn drop(&mut self) {
        if self.held {
            self.fs.let_go(&self.node);
        }
    }
}

impl<S: Store> Fs<S> {
    fn file_node(&self, ino: Ino) -> Result<Arc<Node<S>>> {
        let node = self.node(ino)?;
        match node.kind {
            Kind::File => Ok(node),
            Kind::Directory => Err(FsError::Errno(libc::EISDIR)),
            _ => Err(FsError::Errno(libc::EINVAL)),
        }
    }

    /// Counts one open, with a descriptor that can write where that is wanted. Does no key work.
    fn hold(&self, node: &Arc<Node<S>>, write: bool) -> Result<Content<S>> {
        let _opening = node.opening.lock();
        let access = if write { Access::ReadWrite } else { Access::Read };
        let (content, writable) = node.with(|state| (state.content.clone(), state.writable));
        let content = match content {
            Some(content) => {
                if write && !writable {
                    content.upgrade(self.open_backing(node, access)?);
                }
                content
            }
            None => {
                let size = node.size().ok_or(FsError::Errno(libc::ESTALE))?;
                let backing = self.open_backing(node, access)?;
                let file = EncryptedFile::new(self.config.files.clone(), backing, write, size);
                Arc::new(file.inheriting(node.group.clone()))
            }
        };
        self.dirty.set_lingering(node, false);
        node.with(|state| {
            state.content = Some(content.clone());
            state.writable |= write;
            state.opens += 1;
        });
        Ok(content)
    }

    fn let_go(&self, node: &Arc<Node<S>>) {
        let last = node.with(|state| {
            state.opens = state.opens.saturating_sub(1);
            state.opens == 0
        });
        if last {
            self.settle(node);
        }
    }

    /// The content state of a file, opened for the time of one operation where it is not open.
    pub(super) fn content_of(&self, node: &Arc<Node<S>>, write: bool) -> Result<Use<'_, S>> {
        let open = node.with(|state| {
            let usable = state.opens > 0 && (state.writable || !write);
            if usable { state.content.clone() } else { None }
        });
        let (content, held) = match open {
            Some(content) => (content, false),
            None => (self.hold(node, write)?, true),
        };
        Ok(Use { fs: self, node: node.clone(), content, held })
    }

    /// Data written now counts against the file's owner.
    pub(super) fn charge(&self, node: &Node<S>) {
        if let Some((uid, gid)) = node.owner() {
            self.store.charge_to(uid, gid);
        }
    }

    pub fn open(&self, ino: Ino, mode: OpenMode) -> Result<()> {
        if mode.write || mode.truncate {
            self.writable()?;
        }
        let node = self.file_node(ino)?;
        let content = self.hold(&node, mode.write || mode.truncate)?;
        // The open is counted, so that keys are looked for under no lock of ours.
        let ready = if mode.truncate {
            self.empty(&node, &content).and_then(|()| match mode.drop_privileges {
                true => self.drop_privileges(&node),
                false => Ok(()),
            })
        } else {
            content.authenticate().map_err(|e| self.noted(&node, e)).and_then(|()| match mode.write {
                true if content.lacks_keys() => self.keys_for_new_files(&node),
                _ => Ok(()),
            })
        };
        if let Some(why) = content.take_unused_slot() {
            let detail = format!("one of its two header slots cannot be used ({why}); it is served from the other");
            self.reports.error("header-slot", &self.backing_path(&node), &detail);
        }
        if ready.is_err() {
            self.let_go(&node);
        }
        ready
    }

    pub fn release(&self, ino: Ino) {
        if let Some(node) = self.nodes.find(ino) {
            self.let_go(&node);
        }
    }

    /// O_TRUNC. Emptying needs no key, but what is written next does: refused before the old content is gone.
    fn empty(&self, node: &Arc<Node<S>>, content: &Content<S>) -> Result<()> {
        if self.keeps_header(node, content)? {
            match content.authenticate() {
                Err(FileError::Key(e)) if e.may_pass() => return Err(self.noted(node, e)),
                // A broken file can be emptied.
                _ => {}
            }
        } else {
            self.keys_for_new_files(node)?;
        }
        self.cut(node, content, 0)
    }

    /// Truncates content that is open for writing.
    pub(super) fn resize(&self, node: &Arc<Node<S>>, content: &Content<S>, size: u64) -> Result<()> {
        if size == 0 {
            self.keeps_header(node, content)?;
        }
        self.cut(node, content, size)
    }

    /// Whether the header stays when the file is emptied, which the content is told.
    fn keeps_header(&self, node: &Arc<Node<S>>, content: &Content<S>) -> Result<bool> {
        let sealed = self.has_sealed_xattrs(node)?;
        if sealed {
            content.keep_header(true);
        }
        Ok(sealed)
    }

    fn cut(&self, node: &Arc<Node<S>>, content: &Content<S>, size: u64) -> Result<()> {
        self.charge(node);
        let result = content.truncate(size);
        self.keep_set_id(node);
        self.changed(node, content);
        result.map_err(|e| self.noted(node, e))
    }

    fn has_sealed_xattrs(&self, node: &Arc<Node<S>>) -> Result<bool> {
        match self.stored_names(node) {
            Ok(names) => Ok(names.iter().any(|n| XattrCodec::is_encoded(n))),
            Err(FsError::Errno(libc::EOPNOTSUPP)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.file_node(ino)?;
        let used = self.content_of(&node, false)?;
        used.content.read(offset, buf).map_err(|e| self.noted(&node, e))
    }

    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<()> {
        self.writable()?;
        let node = self.file_node(ino)?;
        let used = self.content_of(&node, true)?;
        self.write_used(&used, offset, data)
    }

    fn write_used(&self, used: &Use<'_, S>, offset: u64, data: &[u8]) -> Result<()> {
        self.charge(&used.node);
        let result = used.content.write(offset, data);
        self.keep_set_id(&used.node);
        // A failed write may have changed something.
        self.changed(&used.node, &used.content);
        result.map_err(|e| self.noted(&used.node, e))
    }

    /// Reports a commit that failed since the last fsync, too.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        let node = self.node(ino)?;
        if node.kind == Kind::Directory {
            return self.fsyncdir(ino);
        }
        let node = self.file_node(ino)?;
        let used = self.content_of(&node, false)?;
        if used.content.keys_are_dropped() {
            // Whoever syncs a file whose key is gone wants to know.
            used.content.authenticate().map_err(|e| self.noted(&node, e))?;
        }
        let result = used.content.sync(data_only).map_err(|e| self.noted(&node, e));
        let failed = node.with(|state| state.failed.take());
        result?;
        failed.map_or(Ok(()), |errno| Err(FsError::Errno(errno)))
    }

    /// `mode` as fallocate(2).
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        let node = self.file_node(ino)?;
        let mode = fallocate_mode(mode)?;
        if len == 0 {
            return Err(FsError::Errno(libc::EINVAL));
        }
        let used = self.content_of(&node, true)?;
        self.charge(&node);
        let result = used.content.fallocate(mode, offset, len);
        self.keep_set_id(&node);
        self.changed(&node, &used.content);
        result.map_err(|e| self.noted(&node, e))
    }

    pub fn seek(&self, ino: Ino, whence: Seek, offset: u64) -> Result<u64> {
        let node = self.file_node(ino)?;
        let used = self.content_of(&node, false)?;
        used.content.seek(whence, offset).map_err(|e| self.noted(&node, e))
    }

    /// Copies up to `len` bytes through the engine; returns what was copied (short at the source's end).
    /// EINVAL for overlapping ranges of one file.
    pub fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        self.writable()?;
        let (source, target) = (self.file_node(from.0)?, self.file_node(to.0)?);
        let end = |start: u64| start.checked_add(len).ok_or(FsError::Errno(libc::EFBIG));
        let (from_end, to_end) = (end(from.1)?, end(to.1)?);
        if from.0 == to.0 && from.1 < to_end && to.1 < from_end {
            return Err(FsError::Errno(libc::EINVAL));
        }
        let reader = self.content_of(&source, false)?;
        let writer = self.content_of(&target, true)?;
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(COPY_BUFFER).min(COPY_BUFFER)];
        let mut done = 0;
        while done < len {
            let piece = buffer.len().min(usize::try_from(len - done).unwrap_or(COPY_BUFFER));
            let moved = reader.content.read(from.1 + done, &mut buffer[..piece]).map_err(|e| self.noted(&source, e));
            let moved = moved.and_then(|n| {
                self.write_used(&writer, to.1 + done, &buffer[..n])?;
                Ok(n)
            });
            match moved {
                Ok(0) => break,
                Ok(n) => done += n as u64,
                // What was copied before counts; the next call meets the error again.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

fn fallocate_mode(mode: i32) -> Result<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Fallocate::Allocate { keep_size: false }),
        KEEP => Ok(Fallocate::Allocate { keep_size: true }),
        PUNCH => Ok(Fallocate::PunchHole),
        ZERO => Ok(Fallocate::ZeroRange { keep_size: false }),
        ZERO_KEEP => Ok(Fallocate::ZeroRange { keep_size: true }),
        _ => Err(FsError::Errno(libc::EOPNOTSUPP)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallocate_modes_that_the_format_has() {
        assert_eq!(fallocate_mode(0).ok(), Some(Fallocate::Allocate { keep_size: false }));
        assert_eq!(fallocate_mode(1).ok(), Some(Fallocate::Allocate { keep_size: true }));
        assert_eq!(fallocate_mode(3).ok(), Some(Fallocate::PunchHole));
        assert_eq!(fallocate_mode(16).ok(), Some(Fallocate::ZeroRange { keep_size: false }));
        assert_eq!(fallocate_mode(17).ok(), Some(Fallocate::ZeroRange { keep_size: true }));
        // Punch without KEEP_SIZE, collapse, insert, unshare, and nonsense.
        for mode in [2, 8, 0x20, 0x40, 0x80, -1] {
            assert_eq!(fallocate_mode(mode).unwrap_err().errno(), libc::EOPNOTSUPP, "{mode:#x}");
        }
    }
}
