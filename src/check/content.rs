//! Content files: length, header, every block. Large ones are read by several threads. Changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::header::{Headers, Opened, Other};
use super::place::Spot;
use super::problem::{self, Code};
use super::queue::{Queue, Shared};
use super::small::SealedBy;
use super::{About, Check, Mended};
use crate::crypto::aead::AeadKey;
use crate::format::block;
use crate::format::geometry::{BLOCK_HEADER, Geometry, Length, PAGE, PLAIN, blocks_for, growing_size};
use crate::format::header::{FLAG_HOLES_OK, FLAG_SEALED, claimed_pages};
use crate::store::{Access, BackingFile, Stat, Store};

/// Blocks of one read: 1 MiB.
const RUN: u64 = 256;
/// Blocks that one thread takes of a large file at once, at least: 16 MiB.
const SEGMENT: u64 = 16 * RUN;
/// Segments of one file at most: an empty one costs a look, and a file may claim 2^51 blocks.
const SEGMENTS_MAX: u64 = 1024;
/// Bad ranges of one file that are told one by one.
const RANGES_MAX: usize = 256;

pub(super) type Work<S> = Queue<Spot<<S as Store>::Handle>, FileWork<S>>;

/// A file whose blocks are being read.
pub(super) struct FileWork<S: Store> {
    spot: Spot<S::Handle>,
    file: S::File,
    stat: Stat,
    geometry: Geometry,
    opened: Box<Opened>,
    /// Blocks to be read.
    first: u64,
    end: u64,
    per_segment: u64,
    growing: bool,
    /// Nothing but blocks could still be wrong.
    clean: bool,
    bad: Mutex<Bad>,
}

/// Bad blocks as ranges, first and last.
#[derive(Default)]
struct Bad {
    ranges: Vec<(&'static Code, u64, u64)>,
    /// Blocks in ranges that are not told one by one.
    more: u64,
    good: u64,
    holes: u64,
}

impl Bad {
    fn note(&mut self, code: &'static Code, first: u64, last: u64) {
        if let Some((known, _, end)) = self.ranges.last_mut()
            && *known == code
            && *end + 1 == first
        {
            *end = last;
        } else if self.ranges.len() < RANGES_MAX {
            self.ranges.push((code, first, last));
        } else {
            self.more = self.more.saturating_add(last - first + 1);
        }
    }

    fn add(&mut self, other: Self) {
        for (code, first, last) in other.ranges {
            self.note(code, first, last);
        }
        self.more = self.more.saturating_add(other.more);
        self.good += other.good;
        self.holes = self.holes.saturating_add(other.holes);
    }

    /// In order, neighbours joined.
    fn settled(&mut self) -> Vec<(&'static Code, u64, u64)> {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.sort_by_key(|(_, first, _)| *first);
        ranges.into_iter().for_each(|(code, first, last)| self.note(code, first, last));
        std::mem::take(&mut self.ranges)
    }
}

impl<S: Store> FileWork<S> {
    fn may_be_hole(&self, block: u64) -> bool {
        let header = &self.opened.header;
        header.flags & FLAG_HOLES_OK != 0 || block.saturating_mul(PLAIN as u64) >= header.size_floor
    }
}

impl<S: Store> Check<'_, S> {
    pub(super) fn file(&self, spot: Spot<S::Handle>, work: &Work<S>) {
        let place = spot.place();
        let about = About::Spot(&spot);
        let opened = self.top.open_file(place, Access::Read).and_then(|file| Ok((file.stat()?, file)));
        let (stat, file) = match opened {
            Ok(opened) => opened,
            Err(e) => return self.io_trouble(about, "opening it", &e),
        };
        if !self.is_first_name(&spot, &stat) {
            return;
        }
        self.sink.progress(&|| spot.backing(), 0);
        let geometry = match self.geometry {
            Some(geometry) => geometry,
            None => claimed_geometry(&file),
        };
        let length = match geometry.decode(stat.size) {
            Ok(length) => length,
            Err(_) if spot.stranger => return,
            Err(bad) => {
                // The header may still tell whose file it is; nothing is moved that might be wanted.
                return self.report(&problem::IMPOSSIBLE_LENGTH, about, format!("{bad} bytes"));
            }
        };
        if length == (Length::Empty { header: false }) {
            self.counts.lock().empty_files += 1;
            return self.xattrs(place, about, &SealedBy::Nothing);
        }
        let mut bytes = vec![0; 2 * geometry.slot_len()];
        // What is missing of a short file is zero, and no header fits in it then.
        if let Err(e) = file.read_at(&mut bytes, 0) {
            return self.io_trouble(about, "reading its header", &e);
        }
        let opened = match self.headers(&bytes, geometry) {
            Headers::Open(opened) => opened,
            Headers::Blank | Headers::Closed { .. } if spot.stranger => return,
            Headers::Blank => return self.blank(&spot, &file, &stat, length),
            Headers::Closed { code, detail, later } => {
                if *code == problem::HEADER && self.keys.is_some() && !later {
                    self.forget_link(&stat);
                    self.mend_by_quarantine(code, &spot, detail);
                } else {
                    if *code == problem::KEY {
                        self.counts.lock().keys += 1;
                    }
                    self.report(code, about, detail);
                }
                return;
            }
        };
        self.count_cmks(&opened.header, about);
        self.prove_wrapped_keys(&opened.header, about);
        match &opened.keys {
            Some(keys) => self.xattrs(place, about, &SealedBy::File(keys)),
            None => self.xattrs(place, about, &SealedBy::Unknown),
        }
        self.blocks(spot, file, stat, geometry, opened, length, work);
    }

    /// One object has one place in the numbers; another file system has no place at all.
    fn is_first_name(&self, spot: &Spot<S::Handle>, stat: &Stat) -> bool {
        if stat.dev != self.dev.load(Ordering::Relaxed) {
            self.incomplete.store(true, Ordering::Relaxed);
            self.report(&problem::OTHER_FILESYSTEM, About::Spot(spot), "the file is on another file system");
            return false;
        }
        self.counts.lock().files += 1;
        stat.nlink <= 1 || self.seen.lock().linked.insert(stat.ino)
    }

    /// Each further name of a file that is moved away is one more finding.
    fn forget_link(&self, stat: &Stat) {
        self.seen.lock().linked.remove(&stat.ino);
    }

    fn blank(&self, spot: &Spot<S::Handle>, file: &S::File, stat: &Stat, length: Length) {
        if matches!(length, Length::Quiet { .. }) {
            self.forget_link(stat);
            return self.mend_by_quarantine(&problem::HEADER_MISSING, spot, "there is no header".into());
        }
        self.xattrs(spot.place(), About::Spot(spot), &SealedBy::Nothing);
        let about = About::Spot(spot);
        let detail = format!("{} bytes, and no header", stat.size);
        match self.is_blank(file, stat.size) {
            Ok(true) => {
                self.mend(&problem::NEVER_SYNCED, about, detail, "set its length to 0", || self.empty(spot, stat));
            }
            // Somebody may have its header from a backup.
            Ok(false) => {
                self.report(&problem::NEVER_SYNCED, about, format!("{detail}, but blocks; they are left alone"))
            }
            Err(e) => self.io_trouble(about, "reading it", &e),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn blocks(
        &self,
        spot: Spot<S::Handle>,
        file: S::File,
        stat: Stat,
        geometry: Geometry,
        opened: Box<Opened>,
        length: Length,
        work: &Work<S>,
    ) {
        let about = About::Spot(&spot);
        let mut bad = Bad::default();
        let (size, growing) = match length {
            Length::Empty { .. } => (0, false),
            Length::Quiet { size } => (size, false),
            // From clear bytes, as a mount takes it; they are authenticated with their block.
            Length::Growing { blocks } => {
                let mut page = [0; PAGE];
                let valid = match file.read_at(&mut page, geometry.block_offset(blocks - 1)) {
                    Ok(_) => block::peek(&page).map_or(0, |peek| peek.valid_len),
                    Err(_) => {
                        bad.note(&problem::BACKING_IO, blocks - 1, blocks - 1);
                        0
                    }
                };
                (growing_size(blocks, valid), true)
            }
        };
        let header = &opened.header;
        let mut clean = bad.ranges.is_empty();
        if size > 0 && header.size_floor > size {
            let detail = format!("{size} bytes, and at least {} were there", header.size_floor);
            self.report(&problem::TRUNCATED, about, detail);
            clean = false;
        }
        if header.flags & FLAG_SEALED != 0 && header.sealed_size != size {
            let detail = format!("{size} bytes, sealed with {}", header.sealed_size);
            self.report(&problem::SEALED_SIZE, about, detail);
            clean = false;
        }
        {
            let mut counts = self.counts.lock();
            counts.bytes = counts.bytes.saturating_add(size);
            counts.empty_files += u64::from(size == 0);
        }
        let end = blocks_for(size);
        let first = if self.settings.quick { end.saturating_sub(1) } else { 0 };
        let per_segment = SEGMENT.max((end - first).div_ceil(SEGMENTS_MAX));
        let segments = (end - first).div_ceil(per_segment);
        let file_work = FileWork {
            spot,
            file,
            stat,
            geometry,
            opened,
            first,
            end,
            per_segment,
            growing,
            clean,
            bad: Mutex::new(bad),
        };
        let shared = Arc::new(Shared::new(file_work, segments.max(1)));
        if segments > 1 {
            work.share(&shared);
        }
        self.help(&shared);
    }

    /// Works on a file's segments until all are given out.
    pub(super) fn help(&self, shared: &Shared<FileWork<S>>) {
        while let Some(segment) = shared.claim() {
            let work = &shared.work;
            let first = work.first.saturating_add(segment.saturating_mul(work.per_segment));
            let found = self.segment(work, first.min(work.end), first.saturating_add(work.per_segment).min(work.end));
            work.bad.lock().add(found);
            if shared.done() {
                self.finish(work);
            }
        }
    }

    fn finish(&self, work: &FileWork<S>) {
        let mut bad = work.bad.lock();
        let ranges = bad.settled();
        let more = bad.more;
        {
            let mut counts = self.counts.lock();
            counts.blocks += bad.good;
            counts.hole_blocks = counts.hole_blocks.saturating_add(bad.holes);
        }
        drop(bad);
        let about = About::Spot(&work.spot);
        for (at, (code, first, last)) in ranges.iter().enumerate() {
            let mut detail = format!("{} of {} blocks", last - first + 1, work.end.max(last + 1));
            if more > 0 && at + 1 == ranges.len() {
                detail = format!("{detail}; {more} more bad blocks of this file are not listed");
            }
            self.tell(code, about, Some((*first, *last)), detail.into(), Mended::No);
        }
        let letter = work.opened.slot.other().letter();
        match &work.opened.other {
            Other::Fine => {}
            Other::Bad(why) if self.keys.is_some() => {
                let detail = format!("slot {letter}: {why}");
                let what = format!("copy slot {} over slot {letter}", work.opened.slot.letter());
                self.mend(&problem::HEADER_SLOT, about, detail, &what, || {
                    self.copy_slot(&work.spot, &work.stat, work.geometry, work.opened.slot)
                });
            }
            Other::Bad(why) => self.report(&problem::HEADER_SLOT, about, format!("slot {letter}: {why}")),
            Other::Unopened(detail) => {
                let detail = format!("slot {letter} is left alone: {detail}");
                self.report(&problem::HEADER_SLOT, about, detail);
            }
        }
        if work.growing {
            let detail = "its length does not tell its size yet";
            if work.clean && ranges.is_empty() && self.keys.is_some() {
                let what = "settle its size in its length";
                self.mend(&problem::NOT_SETTLED, about, detail, what, || self.settle(&work.spot, &work.stat));
            } else {
                self.report(&problem::NOT_SETTLED, about, detail);
            }
        }
    }

    fn segment(&self, work: &FileWork<S>, first: u64, end: u64) -> Bad {
        let mut bad = Bad::default();
        let mut buffer = Vec::new();
        let mut reader = Reader { work, plain: Zeroizing::new([0; PLAIN]), key: None };
        let mut at = first;
        while at < end {
            // Holes are not read.
            let offset = work.geometry.block_offset(at);
            let data = match work.file.seek_data(offset) {
                Ok(Some(found)) => (found.saturating_sub(work.geometry.data_start()) / PAGE as u64).clamp(at, end),
                Ok(None) => end,
                Err(_) => at,
            };
            reader.hole(at, data, &mut bad);
            let count = RUN.min(end - data);
            at = data + count;
            if count == 0 {
                continue;
            }
            buffer.resize(count as usize * PAGE, 0);
            let pages = &mut buffer[..];
            match work.file.read_at(pages, work.geometry.block_offset(data)) {
                Ok(read) => {
                    pages[read..].fill(0);
                    for (index, page) in (data..).zip(pages.as_chunks().0) {
                        reader.page(index, page, &mut bad);
                    }
                }
                // Which pages is it?
                Err(_) => {
                    for index in data..at {
                        let mut page = [0; PAGE];
                        match work.file.read_at(&mut page, work.geometry.block_offset(index)) {
                            Ok(_) => reader.page(index, &page, &mut bad),
                            Err(_) => bad.note(&problem::BACKING_IO, index, index),
                        }
                    }
                }
            }
            self.sink.progress(&|| work.spot.backing(), count * PAGE as u64);
        }
        bad
    }
}

/// Blocks of one file, one after the other.
struct Reader<'a, S: Store> {
    work: &'a FileWork<S>,
    plain: Zeroizing<[u8; PLAIN]>,
    /// The last key used: neighbours mostly share it.
    key: Option<([u8; 4], Arc<AeadKey>)>,
}

impl<S: Store> Reader<'_, S> {
    fn page(&mut self, index: u64, page: &[u8; PAGE], bad: &mut Bad) {
        let Some(peek) = block::peek(page) else { return self.hole(index, index + 1, bad) };
        let good = match &self.work.opened.keys {
            None => has_form(page),
            Some(keys) => {
                let key = match &self.key {
                    Some((salt, key)) if *salt == peek.key_salt => key.clone(),
                    _ => {
                        let key = keys.block_key(peek.key_salt);
                        self.key = Some((peek.key_salt, key.clone()));
                        key
                    }
                };
                block::open(&key, index, page, &mut self.plain).is_ok()
            }
        };
        if good { bad.good += 1 } else { bad.note(&problem::BLOCK_AUTH, index, index) }
    }

    /// All-zero pages `first` to before `end`. Where the floor is, is computed, since there may be 2^50 of them.
    fn hole(&self, first: u64, end: u64, bad: &mut Bad) {
        if first >= end {
            return;
        }
        let legal_from = if self.work.may_be_hole(first) {
            first
        } else {
            blocks_for(self.work.opened.header.size_floor).clamp(first, end)
        };
        bad.holes = bad.holes.saturating_add(end - legal_from);
        if legal_from > first {
            bad.note(&problem::HOLE, first, legal_from - 1);
        }
    }
}

/// Whether a block's clear part is one that a writer makes; all that can be told without a key.
fn has_form(page: &[u8; PAGE]) -> bool {
    const VALID_LEN: usize = 32;
    let valid = usize::from(u16::from_le_bytes([page[VALID_LEN], page[VALID_LEN + 1]]));
    (1..=PLAIN).contains(&valid) && block::is_hole(&page[VALID_LEN + 2..BLOCK_HEADER])
}

/// What the first header page says, else one page.
fn claimed_geometry(file: &impl BackingFile) -> Geometry {
    let mut page = vec![0; PAGE];
    let pages = file.read_at(&mut page, 0).ok().and_then(|_| claimed_pages(&page));
    Geometry { header_pages: pages.unwrap_or(1) }
}
