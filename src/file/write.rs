//! Writing content: seal whole blocks, read-modify-write the edges, one backing write a run. Resizes only by growing.

use std::sync::atomic::Ordering;

use super::edges::EdgeGuard;
use super::pages::{self, MAX_RUN, body, with_pages};
use super::state::{OpenHeader, Phase, State, open_page};
use super::{EncryptedFile, FileError};
use crate::crypto::random;
use crate::format::block;
use crate::format::geometry::{BLOCK_HEADER, PAGE, PLAIN, blocks_for, locate};
use crate::store::BackingFile;
use crate::sync::{RwLockReadGuard, RwLockWriteGuard};

const P: u64 = PLAIN as u64;

/// One run as seen from one of its blocks: what of the block it writes.
struct Part {
    index: u64,
    from: usize,
    to: usize,
}

impl Part {
    fn is_whole(&self) -> bool {
        self.from == 0 && self.to == PLAIN
    }

    /// Bytes of the block that a file of `size` bytes has.
    fn old_len(&self, size: u64) -> usize {
        size.saturating_sub(self.index * P).min(P) as usize
    }

    /// Whether bytes that stand in the block already have to survive.
    fn needs_old(&self, size: u64) -> bool {
        let old = self.old_len(size);
        !self.is_whole() && old > 0 && (self.from > 0 || old > self.to)
    }
}

/// What a page buffer holds of a block that the run writes in part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Old {
    Unneeded,
    /// Plaintext, in the page's body.
    Plain,
    Sealed,
}

/// Builds the new content of a block that the run writes in part; returns its `valid_len`.
fn merge_edge(
    open: &OpenHeader,
    p: &Part,
    (offset, data): (u64, &[u8]),
    size: u64,
    (old_kind, old_page): (Old, &mut [u8; PAGE]),
    body: &mut [u8; PLAIN],
) -> Result<u16, FileError> {
    let old = p.old_len(size);
    match old_kind {
        Old::Unneeded => {}
        Old::Plain => *body = *pages::body(old_page),
        Old::Sealed => open_page(open, p.index, old_page, body)?,
    }
    if old_kind != Old::Unneeded {
        body[old..].fill(0);
    } else {
        body[..p.from].fill(0);
        body[p.to..].fill(0);
    }
    let start = (p.index * P + p.from as u64 - offset) as usize;
    body[p.from..p.to].copy_from_slice(&data[start..start + p.to - p.from]);
    Ok(old.max(p.to) as u16)
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
            self.rewrite_last(st, size, size)?;
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
        with_pages(count + 2, |buffer| {
            let (pages, old_pages) = buffer.split_at_mut(count);
            // Blocks that the run covers whole need nobody's leave until they are written.
            for (i, page) in pages.iter_mut().enumerate() {
                let p = part(first + i as u64);
                if p.is_whole() {
                    let start = (p.index * P - offset) as usize;
                    page[BLOCK_HEADER..].copy_from_slice(&data[start..start + PLAIN]);
                    block::seal(&key, salt, &nonces[i], p.index, PLAIN as u16, page);
                }
            }
            let edges = self.edges.lock(first, last);
            let size = self.size();
            let ends = [part(first), part(last)];
            let ends = &ends[if count == 1 { 1 } else { 0 }..];
            let old = self.read_old_edges(st, &edges, ends, size, old_pages)?;
            // Both ends are merged before either is cached: one that does not open leaves the cache as it was.
            let mut valid = [0; 2];
            for (k, p) in ends.iter().enumerate().filter(|(_, p)| !p.is_whole()) {
                let body = body(&mut pages[(p.index - first) as usize]);
                valid[k] = merge_edge(open, p, (offset, data), size, (old[k], &mut old_pages[k]), body)?;
            }
            for (k, p) in ends.iter().enumerate().filter(|(_, p)| !p.is_whole()) {
                let i = (p.index - first) as usize;
                edges.put(p.index, body(&mut pages[i]));
                block::seal(&key, salt, &nonces[i], p.index, valid[k], &mut pages[i]);
            }
            if let Err(e) = st.backing.write_at(pages.as_flattened(), self.context.geometry.block_offset(first)) {
                edges.forget(first, last);
                return Err(e.into());
            }
            edges.forget_whole(first, last, ends.iter().filter(|p| !p.is_whole()).map(|p| p.index));
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

    /// Fetches what the edges have to be merged with, from the cache or with one read where both lie together.
    fn read_old_edges(
        &self,
        st: &State<F>,
        edges: &EdgeGuard<'_>,
        ends: &[Part],
        size: u64,
        pages: &mut [[u8; PAGE]],
    ) -> Result<[Old; 2], FileError> {
        let geometry = self.context.geometry;
        let read = |from: u64, pages: &mut [[u8; PAGE]]| -> Result<(), FileError> {
            let bytes = pages.as_flattened_mut();
            let n = st.backing.read_at(bytes, geometry.block_offset(from))?;
            bytes[n..].fill(0);
            Ok(())
        };
        let mut old = [Old::Unneeded; 2];
        for ((old, p), page) in old.iter_mut().zip(ends).zip(&mut *pages) {
            if p.needs_old(size) {
                *old = if edges.get(p.index, body(page)) { Old::Plain } else { Old::Sealed };
            }
        }
        match ends {
            [a, b] if old == [Old::Sealed; 2] && a.index + 1 == b.index => read(a.index, &mut pages[..2])?,
            _ => {
                for (k, p) in ends.iter().enumerate().filter(|(k, _)| old[*k] == Old::Sealed) {
                    read(p.index, &mut pages[k..=k])?;
                }
            }
        }
        Ok(old)
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
                    self.rewrite_last(st, size, size)?;
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
