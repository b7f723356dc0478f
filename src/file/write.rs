//! Writing content: seal whole blocks, read-modify-write the edges, one backing write a run. Resizes only by growing.

use std::sync::atomic::Ordering;

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::edges::EdgeGuard;
use super::pages::{MAX_RUN, with_pages};
use super::state::{Phase, State, open_page};
use super::{EncryptedFile, FileError};
use crate::crypto::random;
use crate::format::block;
use crate::format::geometry::{BLOCK_HEADER, PAGE, PLAIN, blocks_for, locate};
use crate::store::BackingFile;

const P: u64 = PLAIN as u64;

/// One run as seen from one of its blocks: what of the block it writes.
struct Part {
    index: u64,
    from: usize,
    to: usize,
}

impl<F: BackingFile> EncryptedFile<F> {
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let end = offset.checked_add(data.len() as u64).ok_or(FileError::TooLarge)?;
        if end > self.context.geometry.max_size() {
            return Err(FileError::TooLarge);
        }
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (run, tail) = rest.split_at((MAX_RUN * PLAIN - locate(at).1).min(rest.len()));
            self.write_run(at, run)?;
            at += run.len() as u64;
            rest = tail;
        }
        Ok(())
    }

    fn write_run(&self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let st = self.ready_to_write(offset + data.len() as u64)?;
        let done = self.store_run(&st, offset, data);
        drop(st);
        if done.is_err() {
            self.restore_length();
        }
        done
    }

    /// The shared lock, in a phase in which a write up to `end` may go straight to the backing file.
    fn ready_to_write(&self, end: u64) -> Result<RwLockReadGuard<'_, State<F>>, FileError> {
        loop {
            let st = self.state.read();
            if st.accepts_write(end, self.size()) {
                return Ok(st);
            }
            drop(st);
            let mut st = self.state.write();
            self.prepare_write(&mut st, end)?;
            let st = RwLockWriteGuard::downgrade(st);
            if st.accepts_write(end, self.size()) {
                return Ok(st);
            }
        }
    }

    fn prepare_write(&self, st: &mut State<F>, end: u64) -> Result<(), FileError> {
        if !st.writable {
            return Err(std::io::Error::from_raw_os_error(libc::EBADF).into());
        }
        self.load(st)?;
        match st.phase {
            Phase::Empty => self.start_from_empty(st),
            Phase::Quiet if end > self.size() => self.start_growing(st),
            Phase::Quiet | Phase::Growing => Ok(()),
        }
    }

    /// First data of an empty file: a header, with a floor that the size 0 has voided.
    pub(super) fn start_from_empty(&self, st: &mut State<F>) -> Result<(), FileError> {
        match &st.open {
            None => self.create_header(st)?,
            Some(open) if open.header.size_floor > 0 => self.update_header_durably(st, |h| h.size_floor = 0)?,
            Some(_) => {}
        }
        st.floor_known = true;
        st.phase = Phase::Growing;
        self.changed();
        Ok(())
    }

    /// Rules 2 and 3: drop the tail, once every version of the last block that may be on disk says the size.
    fn start_growing(&self, st: &mut State<F>) -> Result<(), FileError> {
        let size = self.size();
        self.settle_tail(st)?;
        if !st.tail_agrees {
            self.rewrite_last(st, size)?;
            st.backing.sync_data()?;
        }
        st.backing.set_len(self.context.geometry.growing_len(blocks_for(size)))?;
        st.phase = Phase::Growing;
        self.changed();
        Ok(())
    }

    fn store_run(&self, st: &State<F>, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let open = st.keys()?;
        let end = offset + data.len() as u64;
        let (first, last) = (locate(offset).0, (end - 1) / P);
        let count = (last - first + 1) as usize;
        let part = |index: u64| Part {
            index,
            from: offset.saturating_sub(index * P) as usize,
            to: (end - index * P).min(P) as usize,
        };
        let (salt, key) = self.writer_key(open, count as u64);
        let mut nonces = [[0u8; 12]; MAX_RUN];
        random::fill(nonces[..count].as_flattened_mut());
        with_pages(count, |pages| {
            // Blocks that the run covers whole need nobody's leave until they are written.
            for (i, page) in pages.iter_mut().enumerate() {
                let p = part(first + i as u64);
                if p.from == 0 && p.to == PLAIN {
                    let start = (p.index * P - offset) as usize;
                    page[BLOCK_HEADER..].copy_from_slice(&data[start..start + PLAIN]);
                    block::seal(&key, salt, &nonces[i], p.index, PLAIN as u16, page);
                }
            }
            let mut edges = self.edges.lock(first, last);
            let size = self.size();
            let mut kept = None;
            let ends = [0, count - 1];
            for &i in &ends[..count.min(2)] {
                let p = part(first + i as u64);
                if p.from == 0 && p.to == PLAIN {
                    continue;
                }
                let mut plain = [0u8; PLAIN];
                let valid = self.merge_edge(st, &edges, &p, offset, data, size, &mut plain)?;
                let page = &mut pages[i];
                page[BLOCK_HEADER..].copy_from_slice(&plain);
                block::seal(&key, salt, &nonces[i], p.index, valid, page);
                kept = Some((p.index, plain));
            }
            edges.forget(first, last);
            st.backing.write_at(pages.as_flattened(), self.context.geometry.block_offset(first))?;
            if let Some((index, plain)) = &kept {
                edges.put(*index, plain);
            }
            self.size.fetch_max(end, Ordering::AcqRel);
            if blocks_for(self.size()) == last + 1 {
                self.last_says_size.store(true, Ordering::Release);
            }
            if end > open.header.size_floor {
                self.written.lock().insert(first..last + 1);
            }
            self.changed();
            Ok(())
        })
    }

    /// The new content of a block that the run writes in part, and its `valid_len`.
    #[allow(clippy::too_many_arguments)]
    fn merge_edge(
        &self,
        st: &State<F>,
        edges: &EdgeGuard<'_>,
        p: &Part,
        offset: u64,
        data: &[u8],
        size: u64,
        plain: &mut [u8; PLAIN],
    ) -> Result<u16, FileError> {
        let old = size.saturating_sub(p.index * P).min(P) as usize;
        if old > 0 && (p.from > 0 || old > p.to) {
            match edges.get(p.index) {
                Some(cached) => *plain = *cached,
                None => self.read_block(st, p.index, plain)?,
            }
            plain[old..].fill(0);
        }
        let start = (p.index * P + p.from as u64 - offset) as usize;
        plain[p.from..p.to].copy_from_slice(&data[start..start + p.to - p.from]);
        Ok(old.max(p.to) as u16)
    }

    /// After a failed write: a growing file's length is whole blocks again, and an empty one has no half-made header.
    fn restore_length(&self) {
        let mut st = self.state.write();
        if st.phase != Phase::Growing {
            return;
        }
        let size = self.size();
        let geometry = self.context.geometry;
        let result = if size > 0 {
            st.backing.set_len(geometry.growing_len(blocks_for(size)))
        } else {
            st.phase = Phase::Empty;
            self.drop_content(&mut st)
        };
        self.edges.clear();
        if let Err(e) = result {
            log::error!("code=restore-length: the backing length after a failed write could not be set: {e}");
        }
    }

    /// Rules 4 and 5 before anything past the size becomes visible. Cheap when the last block already agrees.
    pub(super) fn settle_tail(&self, st: &mut State<F>) -> Result<(), FileError> {
        if st.tail_settled || st.phase != Phase::Quiet {
            return Ok(());
        }
        let geometry = self.context.geometry;
        let size = self.size();
        let blocks = blocks_for(size);
        let last = blocks - 1;
        let valid = (size - last * P) as usize;
        let mut pages = [[0u8; PAGE]; 2];
        let n = st.backing.read_at(pages.as_flattened_mut(), geometry.block_offset(last))?;
        pages.as_flattened_mut()[n..].fill(0);
        if !block::is_hole(&pages[1]) {
            st.backing.punch_hole(geometry.block_offset(blocks), valid as u64)?;
        }
        match block::peek(&pages[0]) {
            None => st.tail_agrees = false,
            Some(_) => {
                let mut plain = [0; PLAIN];
                open_page(st.keys()?, last, &pages[0], &mut plain)?;
                let says = block::peek(&pages[0]).map_or(0, |p| usize::from(p.valid_len));
                if plain[valid..].iter().any(|b| *b != 0) {
                    self.rewrite_last(st, size)?;
                    st.tail_agrees = false;
                } else if !st.resized && !self.last_says_size.load(Ordering::Acquire) {
                    // Neither resized nor rewritten since everything was durable: this is the block's only version.
                    st.tail_agrees = says == valid;
                }
            }
        }
        st.tail_settled = true;
        Ok(())
    }
}
