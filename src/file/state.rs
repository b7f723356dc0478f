//! What a file's lock protects: phase of the size protocol, header and keys; loading, creating and rewriting the header.
//! Knows the backing file and the keyring; plans no I/O of content beyond the last block.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{EncryptedFile, FileError};
use crate::crypto::{aead::AeadKey, file_keys::FileKeys, random};
use crate::format::block;
use crate::format::geometry::{Length, PAGE, PLAIN, blocks_for};
use crate::format::header::{self, FLAG_HOLES_OK, FLAG_SEALED, FileHeader, HeaderError, Unverified};
use crate::keys::KeyError;
use crate::keys::keyring::{KeySource, OpenKeys};
use crate::store::BackingFile;

/// Where a file stands in the size protocol (`doc/FORMAT.md`, "Size").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Size 0 and no block; a header may be there.
    Empty,
    /// The size stands in the backing length.
    Quiet,
    /// The size stands in the last block, which is then a written page with the right `valid_len`.
    Growing,
}

/// A verified header, its place and its keys.
pub(super) struct OpenHeader {
    pub header: FileHeader,
    /// 0 for slot A, 1 for slot B.
    pub slot: u8,
    pub keys: FileKeys,
    /// Whether `keys` may still be used, the keyring tells by this.
    pub source: Arc<KeySource>,
}

impl OpenHeader {
    /// Whether an all-zero page at `block` is legal.
    pub fn may_be_hole(&self, block: u64) -> bool {
        self.header.flags & FLAG_HOLES_OK != 0 || block.saturating_mul(PLAIN as u64) >= self.header.size_floor
    }
}

pub(super) struct State<F> {
    pub backing: F,
    pub writable: bool,
    /// Whether `phase` and `open` say what the backing file holds.
    pub loaded: bool,
    pub phase: Phase,
    pub open: Option<OpenHeader>,
    /// No older header that a crash could bring back lacks a flag of this one.
    pub header_settled: bool,
    /// Every version of the last block that a crash could leave says the quiet size (rule 3).
    pub tail_agrees: bool,
    /// The last block is zero past the size and nothing stands under the tail (rules 4 and 5).
    pub tail_settled: bool,
    /// The size has been changed since everything was last durable.
    pub resized: bool,
    /// Whether every block between the floor and the size was written by this mount.
    pub floor_known: bool,
}

/// The key that new blocks are sealed with; replaced after `SALT_BLOCKS` blocks.
pub(super) struct Writer {
    salt: [u8; 4],
    key: Arc<AeadKey>,
    left: u64,
}

/// Random 96-bit nonces allow 2^32 messages under one key; stay far below.
const SALT_BLOCKS: u64 = 1 << 20;

impl<F> State<F> {
    pub fn new(backing: F, writable: bool) -> Self {
        Self {
            backing,
            writable,
            loaded: false,
            phase: Phase::Empty,
            open: None,
            header_settled: false,
            tail_agrees: false,
            tail_settled: false,
            resized: false,
            floor_known: false,
        }
    }

    pub fn keys(&self) -> Result<&OpenHeader, FileError> {
        self.open.as_ref().ok_or(FileError::Corrupt { code: "header-missing", block: None })
    }

    /// Whether a write up to `end` needs no change of phase.
    pub fn accepts_write(&self, end: u64, size: u64) -> bool {
        self.writable
            && self.loaded
            && self.open.is_some()
            && (self.phase == Phase::Growing || (self.phase == Phase::Quiet && end <= size))
    }
}

impl<F: BackingFile> EncryptedFile<F> {
    /// Reads length and header once and authenticates both. Idempotent.
    pub(super) fn load(&self, st: &mut State<F>) -> Result<(), FileError> {
        if !st.loaded {
            self.load_anew(st)?;
            self.keys_dropped.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn load_anew(&self, st: &mut State<F>) -> Result<(), FileError> {
        let geometry = self.context.geometry;
        let stat = st.backing.stat()?;
        let length =
            geometry.decode(stat.size).map_err(|_| FileError::Corrupt { code: "impossible-length", block: None })?;
        if length == (Length::Empty { header: false }) {
            self.expect_size(0)?;
            (st.phase, st.open, st.floor_known, st.loaded) = (Phase::Empty, None, true, true);
            return Ok(());
        }
        let open = match self.read_header(&st.backing) {
            Ok(open) => open,
            // Never synced: the file is empty, whatever its length says.
            Err(FileError::Header(HeaderError::Empty)) if !matches!(length, Length::Quiet { .. }) => {
                self.expect_size(0)?;
                if st.writable {
                    st.backing.set_len(0)?;
                    st.backing.set_mtime(stat.mtime)?;
                }
                (st.phase, st.open, st.floor_known, st.loaded) = (Phase::Empty, None, true, true);
                return Ok(());
            }
            Err(FileError::Header(HeaderError::Empty)) => {
                return Err(FileError::Corrupt { code: "header-missing", block: None });
            }
            Err(e) => return Err(e),
        };
        let (phase, size) = match length {
            Length::Empty { .. } => (Phase::Empty, 0),
            Length::Quiet { size } => (Phase::Quiet, size),
            Length::Growing { blocks } => (Phase::Growing, self.growing_size(&st.backing, blocks)?),
        };
        self.expect_size(size)?;
        if size > 0 && open.header.size_floor > size {
            return Err(FileError::Corrupt { code: "truncated-below-floor", block: None });
        }
        if open.header.flags & FLAG_SEALED != 0 && open.header.sealed_size != size {
            return Err(FileError::Corrupt { code: "sealed-size", block: None });
        }
        st.floor_known = size == 0 || open.header.size_floor == size;
        (st.phase, st.open, st.header_settled) = (phase, Some(open), false);
        // Loaded before, the file may have changes that are not durable: older versions of its last block may come back.
        let durable = self.synced.load(Ordering::Acquire) >= self.sync_token();
        (st.tail_agrees, st.tail_settled, st.resized) = (false, false, !durable);
        self.last_says_size.store(false, Ordering::Release);
        if let Length::Growing { blocks } = length
            && st.writable
        {
            self.uncommitted();
            if blocks_for(size) != blocks {
                let adopted = self.adopt_growing(st);
                st.backing.set_mtime(stat.mtime)?;
                adopted?;
            }
        }
        st.loaded = true;
        Ok(())
    }

    /// The size was decided at lookup; the kernel would ignore another one now.
    fn expect_size(&self, size: u64) -> Result<(), FileError> {
        if self.size() == size { Ok(()) } else { Err(FileError::Corrupt { code: "size-mismatch", block: None }) }
    }

    /// Size of a growing file, from the clear bytes of its last block. Whoever reads that block authenticates them: one that
    /// is torn or forged costs itself and nothing else.
    fn growing_size(&self, backing: &F, blocks: u64) -> Result<u64, FileError> {
        let last = blocks - 1;
        let mut page = [0; PAGE];
        backing.read_at(&mut page, self.context.geometry.block_offset(last))?;
        Ok(last * PLAIN as u64 + block::peek(&page).map_or(0, |peek| u64::from(peek.valid_len)))
    }

    /// Brings a file that a crash left growing, with a last page that was never written, back to the invariant of
    /// `Phase::Growing`: the block before it becomes the last one and has to say so first.
    fn adopt_growing(&self, st: &mut State<F>) -> Result<(), FileError> {
        let size = self.size();
        let geometry = self.context.geometry;
        if size > 0 {
            match self.rewrite_last(st, size, size) {
                Ok(()) => {
                    st.backing.sync_data()?;
                    st.backing.set_len(geometry.growing_len(blocks_for(size)))?;
                }
                // It is damaged and cannot say so: the length will.
                Err(FileError::Corrupt { .. }) => {
                    st.backing.sync_data()?;
                    st.backing.set_len(geometry.quiet_len(size))?;
                    st.phase = Phase::Quiet;
                }
                Err(e) => return Err(e),
            }
        } else {
            st.backing.set_len(geometry.data_start())?;
            st.phase = Phase::Empty;
        }
        Ok(())
    }

    /// The newest slot that parses, whose keys can be had and which verifies. `Empty` only where none was ever durable.
    fn read_header(&self, backing: &F) -> Result<OpenHeader, FileError> {
        let geometry = self.context.geometry;
        let slot_len = geometry.slot_len();
        let mut bytes = vec![0; 2 * slot_len];
        backing.read_at(&mut bytes, 0)?;
        if header::was_never_durable(&bytes, geometry) {
            return Err(FileError::Header(HeaderError::Empty));
        }
        let mut failure = None;
        let mut found = Vec::with_capacity(2);
        for (slot, bytes) in (0u8..).zip(bytes.chunks_exact(slot_len)) {
            match Unverified::parse(bytes, geometry) {
                Ok(u) if u.claims().volume_id != self.context.keyring.volume_id() => {
                    failure = Some(FileError::Header(HeaderError::Origin));
                }
                Ok(unverified) => found.push((slot, unverified)),
                Err(HeaderError::Empty) => {}
                Err(e) => failure = Some(FileError::Header(e)),
            }
        }
        found.sort_by_key(|(_, u)| std::cmp::Reverse(u.claims().generation));
        for (slot, unverified) in found {
            let OpenKeys { keys, source } = match self.context.keyring.open(&unverified) {
                Ok(open) => open,
                // The older header must not be taken for want of a moment.
                Err(e @ KeyError::Pending(_)) => return Err(e.into()),
                Err(e) => {
                    failure = Some(e.into());
                    continue;
                }
            };
            match unverified.verify(&keys, self.context.keyring.origin()) {
                Ok(header) => {
                    *self.unused_slot.lock() = failure;
                    return Ok(OpenHeader { header, slot, keys, source });
                }
                Err(e) => failure = Some(FileError::Header(e)),
            }
        }
        Err(failure.unwrap_or(FileError::Header(HeaderError::Auth)))
    }

    /// Gives the file its first header. Not durable until the next sync.
    pub(super) fn create_header(&self, st: &mut State<F>) -> Result<(), FileError> {
        let keyring = &self.context.keyring;
        let fresh = keyring.create(&self.group.group())?;
        let header = fresh.header(keyring.volume_id());
        let open = OpenHeader { header, slot: 0, keys: fresh.keys, source: fresh.source };
        if let Err(e) = self.write_header(st, &open) {
            let _ = st.backing.set_len(0);
            return Err(e);
        }
        (st.open, st.header_settled) = (Some(open), true);
        st.floor_known = true;
        self.header_written();
        Ok(())
    }

    fn write_header(&self, st: &State<F>, open: &OpenHeader) -> Result<(), FileError> {
        let geometry = self.context.geometry;
        let bytes = open.header.encode(&open.keys, self.context.keyring.origin(), geometry)?;
        Ok(st.backing.write_at(&bytes, u64::from(open.slot) * geometry.slot_len() as u64)?)
    }

    /// Changes floor and flags. A one-page slot is rewritten in place (a page is atomic); a longer one goes to the other slot.
    pub(super) fn update_header(
        &self,
        st: &mut State<F>,
        change: impl FnOnce(&mut FileHeader),
    ) -> Result<(), FileError> {
        let Some(mut open) = st.open.take() else {
            return Err(FileError::Corrupt { code: "header-missing", block: None });
        };
        let (before, slot) = (open.header.clone(), open.slot);
        change(&mut open.header);
        let several_pages = self.context.geometry.header_pages > 1;
        if several_pages {
            open.header.generation += 1;
            open.slot ^= 1;
        }
        let mut done = self.write_header(st, &open);
        if done.is_ok() && several_pages {
            done = st.backing.sync_data().map_err(FileError::from);
        }
        if done.is_err() {
            (open.header, open.slot) = (before, slot);
            // It may stand in the file all the same: nobody may find it there before a sync.
            self.changed();
        }
        st.open = Some(open);
        st.header_settled = several_pages && done.is_ok();
        done
    }

    /// Like `update_header`, durable before it returns. Where that fails, the next attempt starts from the header before.
    pub(super) fn update_header_durably(
        &self,
        st: &mut State<F>,
        change: impl FnOnce(&mut FileHeader),
    ) -> Result<(), FileError> {
        let before = st.open.as_ref().map(|open| open.header.clone());
        self.update_header(st, change)?;
        let settled = self.settle_header(st);
        if let (Err(_), Some(open), Some(before)) = (&settled, &mut st.open, before) {
            open.header = before;
            self.changed();
        }
        settled
    }

    /// Makes the header durable as it is, unless it is known to be.
    pub(super) fn settle_header(&self, st: &mut State<F>) -> Result<(), FileError> {
        if !st.header_settled {
            st.backing.sync_data()?;
            st.header_settled = true;
        }
        Ok(())
    }

    /// Reads one block for rewriting. The caller excludes other writers of the block.
    pub(super) fn read_block(&self, st: &State<F>, index: u64, plain: &mut [u8; PLAIN]) -> Result<(), FileError> {
        let mut page = [0; PAGE];
        let n = st.backing.read_at(&mut page, self.context.geometry.block_offset(index))?;
        page[n..].fill(0);
        open_page(st.keys()?, index, &page, plain)
    }

    /// Writes the block that holds byte `size - 1` anew with the `valid_len` of that size, zero from offset `kept` on, which
    /// lies in the block. A hole becomes a block.
    pub(super) fn rewrite_last(&self, st: &State<F>, size: u64, kept: u64) -> Result<(), FileError> {
        let last = blocks_for(size) - 1;
        let within = |offset: u64| (offset - last * PLAIN as u64) as usize;
        let mut plain = [0; PLAIN];
        self.read_block(st, last, &mut plain)?;
        plain[within(kept)..].fill(0);
        self.write_block(st, last, within(size) as u16, &plain)
    }

    /// Seals and writes one block. The caller excludes other writers of the block.
    pub(super) fn write_block(
        &self,
        st: &State<F>,
        index: u64,
        valid: u16,
        plain: &[u8; PLAIN],
    ) -> Result<(), FileError> {
        let (salt, key) = self.writer_key(st.keys()?, 1);
        let mut page = [0; PAGE];
        page[PAGE - PLAIN..].copy_from_slice(plain);
        block::seal(&key, salt, &random::array(), index, valid, &mut page);
        Ok(st.backing.write_at(&page, self.context.geometry.block_offset(index))?)
    }

    /// The salt and key for the next `blocks` blocks.
    pub(super) fn writer_key(&self, open: &OpenHeader, blocks: u64) -> ([u8; 4], Arc<AeadKey>) {
        let mut writer = self.writer.lock();
        if writer.as_ref().is_none_or(|w| w.left < blocks) {
            let salt = random::array();
            *writer = Some(Writer { salt, key: open.keys.block_key(salt), left: SALT_BLOCKS });
        }
        match writer.as_mut() {
            Some(w) => {
                w.left = w.left.saturating_sub(blocks);
                (w.salt, w.key.clone())
            }
            None => unreachable!("set just above"),
        }
    }
}

/// Opens one page as block `index`; a legal hole gives zeros.
pub(super) fn open_page(
    open: &OpenHeader,
    index: u64,
    page: &[u8; PAGE],
    plain: &mut [u8; PLAIN],
) -> Result<(), FileError> {
    match block::peek(page) {
        None if open.may_be_hole(index) => {
            plain.fill(0);
            Ok(())
        }
        None => Err(FileError::Corrupt { code: "hole-below-floor", block: Some(index) }),
        Some(peek) => block::open(&open.keys.block_key(peek.key_salt), index, page, plain)
            .map(|_| ())
            .map_err(|_| FileError::Corrupt { code: "block-auth", block: Some(index) }),
    }
}
