//! Changing a file's size and its holes: truncate, fallocate, punch. All under the exclusive lock.

use std::sync::atomic::Ordering;

use super::state::{Phase, State, open_page};
use super::{EncryptedFile, Fallocate, FileError};
use crate::format::block;
use crate::format::geometry::{PAGE, PLAIN, blocks_for};
use crate::format::header::FLAG_HOLES_OK;
use crate::store::BackingFile;

const P: u64 = PLAIN as u64;

impl<F: BackingFile> EncryptedFile<F> {
    pub fn truncate(&self, size: u64) -> Result<(), FileError> {
        if size > self.context.geometry.max_size() {
            return Err(FileError::TooLarge);
        }
        let mut st = self.state.write();
        if !st.writable {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL).into());
        }
        if size == 0 {
            // Asks for no key and reads no header: a broken file can be emptied.
            return Ok(self.drop_content(&mut st)?);
        }
        self.load(&mut st)?;
        match size.cmp(&self.size()) {
            std::cmp::Ordering::Less => self.shrink(&mut st, size),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => self.extend(&mut st, size),
        }
    }

    /// Size 0 in the backing length; the header goes unless extended attributes hang on it.
    pub(super) fn drop_content(&self, st: &mut State<F>) -> std::io::Result<()> {
        let keep = self.keep_header.load(Ordering::Acquire);
        if keep {
            let len = st.backing.stat()?.size;
            st.backing.set_len(len.min(self.context.geometry.data_start()))?;
        } else {
            st.backing.set_len(0)?;
            (st.open, st.loaded) = (None, true);
            *self.writer.lock() = None;
        }
        self.size.store(0, Ordering::Release);
        st.phase = Phase::Empty;
        st.floor_known = true;
        (st.tail_agrees, st.tail_settled) = (false, false);
        self.edges.clear();
        self.written.lock().clear();
        self.changed();
        Ok(())
    }

    fn shrink(&self, st: &mut State<F>, size: u64) -> Result<(), FileError> {
        let geometry = self.context.geometry;
        let blocks = blocks_for(size);
        if st.keys()?.header.size_floor > size {
            self.update_header_durably(st, |h| h.size_floor = size)?;
        }
        self.edges.clear();
        self.written.lock().remove(blocks..u64::MAX);
        if self.header_is_durable() {
            let cut = self.clear_cut_page(st, blocks)?;
            if let Err(e) = st.backing.set_len(geometry.quiet_len(size)) {
                if let Some(page) = cut {
                    st.backing.write_at(&page, geometry.block_offset(blocks))?;
                }
                return Err(e.into());
            }
            self.size.store(size, Ordering::Release);
            st.phase = Phase::Quiet;
            (st.tail_agrees, st.tail_settled, st.resized) = (false, false, true);
            self.last_says_size.store(false, Ordering::Release);
            self.changed();
            // The file is right already; what cannot be tidied now is tidied before it could show.
            if let Err(e) = self.tidy_shrunk(st, size) {
                log::warn!("code=tidy-after-truncate: {e}");
            }
            Ok(())
        } else {
            let mut before = [0; PLAIN];
            self.read_block(st, blocks - 1, &mut before)?;
            self.rewrite_last(st, size, size)?;
            if let Err(e) = st.backing.set_len(geometry.growing_len(blocks)) {
                let valid = (self.size() - (blocks - 1) * P).min(P) as u16;
                self.write_block(st, blocks - 1, valid, &before)?;
                return Err(e.into());
            }
            self.size.store(size, Ordering::Release);
            self.changed();
            Ok(())
        }
    }

    /// Rule 4 where the new end lies inside the page of a block that goes. A file system zeroes the rest of that page on its own
    /// time, maybe before the new length is durable, and half a block is an error: so the page becomes zeros whole before.
    /// Returns what it held. A growing file gets its tail first, since its last page alone tells the size.
    fn clear_cut_page(&self, st: &mut State<F>, blocks: u64) -> Result<Option<[u8; PAGE]>, FileError> {
        let geometry = self.context.geometry;
        let old = self.size();
        if blocks == blocks_for(old) {
            return Ok(None);
        }
        let mut page = [0; PAGE];
        let n = st.backing.read_at(&mut page, geometry.block_offset(blocks))?;
        page[n..].fill(0);
        if block::is_hole(&page) {
            return Ok(None);
        }
        if st.phase == Phase::Growing {
            self.fix_length(st)?;
            st.backing.set_len(geometry.quiet_len(old))?;
            st.phase = Phase::Quiet;
            (st.tail_agrees, st.tail_settled, st.resized) = (false, true, true);
            self.changed();
        }
        st.backing.punch_hole(geometry.block_offset(blocks), PAGE as u64)?;
        Ok(Some(page))
    }

    /// Rule 4, second half: zero the last block past the end, free the bytes that the tail covers.
    fn tidy_shrunk(&self, st: &mut State<F>, size: u64) -> Result<(), FileError> {
        let geometry = self.context.geometry;
        let blocks = blocks_for(size);
        let valid = size - (blocks - 1) * P;
        st.backing.punch_hole(geometry.block_offset(blocks), valid)?;
        let mut page = [0; PAGE];
        st.backing.read_at(&mut page, geometry.block_offset(blocks - 1))?;
        if let Some(peek) = block::peek(&page) {
            if u64::from(peek.valid_len) != valid {
                self.rewrite_last(st, size, size)?;
            }
            self.last_says_size.store(true, Ordering::Release);
        }
        st.tail_settled = true;
        Ok(())
    }

    fn extend(&self, st: &mut State<F>, size: u64) -> Result<(), FileError> {
        let geometry = self.context.geometry;
        let old = self.size();
        if st.phase == Phase::Empty {
            self.start_from_empty(st)?;
        }
        let result = if self.header_is_durable() {
            self.settle_tail(st)?;
            st.backing.set_len(geometry.quiet_len(size)).map_err(FileError::from).map(|()| {
                st.phase = Phase::Quiet;
                (st.tail_agrees, st.tail_settled, st.resized) = (false, true, true);
                self.last_says_size.store(false, Ordering::Release);
            })
        } else {
            let last = blocks_for(size) - 1;
            if old > 0 && last == blocks_for(old) - 1 {
                self.rewrite_last(st, size, old)
            } else {
                self.write_block(st, last, (size - last * P) as u16, &[0; PLAIN])
            }
        };
        self.edges.clear();
        match result {
            Ok(()) => {
                self.size.store(size, Ordering::Release);
                self.changed();
                Ok(())
            }
            Err(e) => {
                if old == 0 && st.phase == Phase::Growing {
                    let _ = self.drop_content(st);
                }
                Err(e)
            }
        }
    }

    pub fn fallocate(&self, mode: Fallocate, offset: u64, len: u64) -> Result<(), FileError> {
        let end = offset.checked_add(len).filter(|e| *e <= self.context.geometry.max_size());
        let end = end.ok_or(FileError::TooLarge)?;
        if len == 0 {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL).into());
        }
        let mut st = self.state.write();
        if !st.writable {
            return Err(std::io::Error::from_raw_os_error(libc::EBADF).into());
        }
        self.load(&mut st)?;
        match mode {
            Fallocate::PunchHole => self.zero(&mut st, offset, end),
            Fallocate::ZeroRange { keep_size } => {
                self.zero(&mut st, offset, end)?;
                self.allocate(&mut st, offset, end, keep_size)
            }
            Fallocate::Allocate { keep_size } => self.allocate(&mut st, offset, end, keep_size),
        }
    }

    fn allocate(&self, st: &mut State<F>, offset: u64, end: u64, keep_size: bool) -> Result<(), FileError> {
        if st.phase == Phase::Empty && st.open.is_none() {
            self.create_header(st)?;
            self.changed();
        }
        let geometry = self.context.geometry;
        let first = offset / P;
        let reserved = st.backing.allocate(geometry.block_offset(first), (blocks_for(end) - first) * PAGE as u64);
        if let Err(e) = reserved {
            if self.size() == 0 && !self.keep_header.load(Ordering::Acquire) {
                let _ = self.drop_content(st);
            }
            return Err(e.into());
        }
        self.changed();
        if !keep_size && end > self.size() {
            self.extend(st, end)?;
        }
        Ok(())
    }

    /// Makes `offset..end` read as zeros, freeing whole blocks. The size does not change.
    fn zero(&self, st: &mut State<F>, offset: u64, end: u64) -> Result<(), FileError> {
        let geometry = self.context.geometry;
        let size = self.size();
        let end = end.min(size);
        if offset >= end {
            return Ok(());
        }
        // The last block counts as whole when it is zeroed up to the size.
        let first = offset.div_ceil(P);
        let past = if end == size { blocks_for(size) } else { end / P };
        let last = blocks_for(size) - 1;
        let touches_floor = first < past && first * P < st.keys()?.header.size_floor;
        if touches_floor && st.keys()?.header.flags & FLAG_HOLES_OK == 0 {
            self.update_header_durably(st, |h| h.flags |= FLAG_HOLES_OK)?;
        } else if touches_floor {
            // A commit may have set the flag, and flushes no header.
            self.settle_header(st)?;
        }
        self.edges.clear();
        let head = (offset / P, (offset % P) as usize);
        if head.1 != 0 {
            let to = if head.0 == end / P { (end % P) as usize } else { PLAIN };
            self.zero_within(st, head.0, head.1, to)?;
        }
        if end < size && !end.is_multiple_of(P) && (end / P != head.0 || head.1 == 0) {
            self.zero_within(st, end / P, 0, (end % P) as usize)?;
        }
        if first < past {
            let keep_last = past > last && st.phase == Phase::Growing;
            if keep_last {
                self.write_block(st, last, (size - last * P) as u16, &[0; PLAIN])?;
            }
            let past = if keep_last { last } else { past };
            if first < past {
                self.fix_length(st)?;
                let from = geometry.block_offset(first);
                st.backing.punch_hole(from, geometry.block_offset(past) - from)?;
                self.written.lock().remove(first..past);
            }
            if past > last {
                st.tail_agrees = false;
                self.last_says_size.store(false, Ordering::Release);
            }
        }
        self.changed();
        Ok(())
    }

    /// While a file grows, a crash may leave any length since the last sync. None of them may end in a block that is about
    /// to become a hole: the size would stand nowhere.
    fn fix_length(&self, st: &State<F>) -> Result<(), FileError> {
        let token = self.sync_token();
        if st.phase == Phase::Growing && self.synced.load(Ordering::Acquire) < token {
            st.backing.sync_data()?;
            self.synced.fetch_max(token, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Zeroes part of one block that stays; a hole stays a hole.
    fn zero_within(&self, st: &State<F>, index: u64, from: usize, to: usize) -> Result<(), FileError> {
        let mut page = [0; PAGE];
        st.backing.read_at(&mut page, self.context.geometry.block_offset(index))?;
        let mut plain = [0; PLAIN];
        open_page(st.keys()?, index, &page, &mut plain)?;
        let Some(peek) = block::peek(&page) else { return Ok(()) };
        plain[from..to].fill(0);
        self.write_block(st, index, peek.valid_len, &plain)
    }
}
