//! The crash model: which states of the disk a recorded history may leave behind. Knows no encryption and no engine.
//!
//! What is modelled, after ext4 (data=ordered, delayed allocation) and XFS:
//! - *Metadata* (names, truncations, punched holes, attributes) go through a journal: a crash leaves a prefix of them, across
//!   all objects, in the order in which they were made.
//! - *Content* is written back page by page, in any order: each page that no sync has covered holds any version written since
//!   the last one that was durable; where none was, it is a hole that reads as zeros. A page is old or new, never both,
//!   unless a cut tears it on purpose (`Torn`).
//! - *Lengths* that grow by writing follow the write-back: a length is any that the file has had since its last truncation in
//!   the journal, growing page by page, and not below the one at its last sync. Lengths and pages are independent of each other
//!   (delayed allocation: a length may cover pages that were never written, and pages beyond the length are gone).
//! - A page written after a truncation or a punch that freed it lives in new blocks: without that operation in the journal it
//!   cannot be seen.
//! - fsync makes pages and length durable, and the journal up to the last operation that names the file; fdatasync up to
//!   the last that concerns content (creation, truncation, punch, reservation); fsync of a directory up to the last that
//!   names it; syncfs everything. Real journals commit more than that: this model is the weaker one.
//! - Objects without a name are gone, whoever had them open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::ops::Range;

use envelopefs::store::memory::{MemoryStore, Operation};
use envelopefs::store::{Kind, Place, Store};

pub const PAGE: u64 = 4096;

/// Deterministic numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// One page of one write: the operation's number and the page's number in the file.
pub type PageWrite = (usize, u64);

/// A page that reached the disk in parts: these ranges of it are new, the rest is what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    pub write: PageWrite,
    pub new: Vec<Range<usize>>,
}

/// One state of the disk after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// Operations before this one were made.
    pub crash: usize,
    /// Metadata operations before this one are in the journal.
    pub journal: usize,
    /// Page writes that did not reach the disk.
    pub lost: BTreeSet<PageWrite>,
    /// Lengths of files whose content changed.
    pub lengths: BTreeMap<u64, u64>,
    pub torn: Vec<Torn>,
}

/// A disk and what was done to it.
pub struct History {
    base: MemoryStore,
    base_lengths: HashMap<u64, u64>,
    pub ops: Vec<Operation>,
}

fn ino_of(op: &Operation) -> Option<u64> {
    match op {
        Operation::Create { ino, .. }
        | Operation::Link { ino, .. }
        | Operation::Write { ino, .. }
        | Operation::SetLen { ino, .. }
        | Operation::PunchHole { ino, .. }
        | Operation::Allocate { ino, .. }
        | Operation::Chmod { ino, .. }
        | Operation::Chown { ino, .. }
        | Operation::SetTimes { ino, .. }
        | Operation::SetMtime { ino, .. }
        | Operation::SetXattr { ino, .. }
        | Operation::RemoveXattr { ino, .. }
        | Operation::SyncData { ino }
        | Operation::SyncAll { ino }
        | Operation::SyncDir { ino } => Some(*ino),
        Operation::Unlink { .. } | Operation::Rmdir { .. } | Operation::Rename { .. } | Operation::SyncFs => None,
    }
}

fn names_directory(op: &Operation, wanted: u64) -> bool {
    match op {
        Operation::Create { dir, .. }
        | Operation::Link { dir, .. }
        | Operation::Unlink { dir, .. }
        | Operation::Rmdir { dir, .. } => *dir == wanted,
        Operation::Rename { from, to, .. } => from.0 == wanted || to.0 == wanted,
        _ => false,
    }
}

fn concerns_content(op: &Operation) -> bool {
    matches!(
        op,
        Operation::Create { .. } | Operation::SetLen { .. } | Operation::PunchHole { .. } | Operation::Allocate { .. }
    )
}

fn is_journaled(op: &Operation) -> bool {
    !op.is_sync() && !matches!(op, Operation::Write { .. })
}

/// The pages of a write: page number, offset in the page, range in the data.
pub fn pages(offset: u64, len: usize) -> impl Iterator<Item = (u64, u64, Range<usize>)> {
    let end = offset + len as u64;
    (offset / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let (from, to) = (offset.max(page * PAGE), end.min((page + 1) * PAGE));
        (page, from - page * PAGE, (from - offset) as usize..(to - offset) as usize)
    })
}

fn lengths_in(disk: &MemoryStore) -> HashMap<u64, u64> {
    let mut lengths = HashMap::new();
    let mut pending = vec![disk.root().clone()];
    while let Some(dir) = pending.pop() {
        for entry in disk.list(&dir).expect("a directory is listed") {
            match entry.kind {
                Kind::Directory => pending.push(disk.pin(&dir, &entry.name).expect("a directory is found")),
                Kind::File => {
                    let place = Place::Entry { dir: &dir, name: &entry.name };
                    lengths.insert(entry.ino, disk.stat(place).expect("a file has attributes").size);
                }
                _ => {}
            }
        }
    }
    lengths
}

/// What a crash may do at one point of a history.
struct Freedom {
    /// The journal reaches at least here.
    journal: usize,
    /// Page writes that no sync has covered, with their file.
    pending: Vec<(u64, PageWrite)>,
    /// Files with content operations.
    files: BTreeSet<u64>,
}

impl History {
    /// `base`: durable as a whole.
    pub fn new(base: MemoryStore, ops: Vec<Operation>) -> Self {
        let base_lengths = lengths_in(&base);
        Self { base, base_lengths, ops }
    }

    pub fn syncs_before(&self, crash: usize) -> usize {
        self.ops[..crash].iter().filter(|op| op.is_sync()).count()
    }

    fn freedom(&self, crash: usize) -> Freedom {
        let ops = &self.ops[..crash];
        let last = |wanted: &dyn Fn(&Operation) -> bool, before: usize| {
            ops[..before].iter().rposition(wanted).map_or(0, |at| at + 1)
        };
        let mut journal = 0;
        let mut synced: HashMap<u64, usize> = HashMap::new();
        let mut all_synced = 0;
        for (at, op) in ops.iter().enumerate() {
            let reaches = match op {
                Operation::SyncData { ino } => {
                    synced.insert(*ino, at + 1);
                    last(&|op| concerns_content(op) && ino_of(op) == Some(*ino), at)
                }
                Operation::SyncAll { ino } => {
                    synced.insert(*ino, at + 1);
                    last(&|op| is_journaled(op) && ino_of(op) == Some(*ino), at)
                }
                Operation::SyncDir { ino } => {
                    last(&|op| is_journaled(op) && (names_directory(op, *ino) || ino_of(op) == Some(*ino)), at)
                }
                Operation::SyncFs => {
                    all_synced = at + 1;
                    at
                }
                _ => 0,
            };
            journal = journal.max(reaches);
        }
        let mut pending = Vec::new();
        let mut files = BTreeSet::new();
        for (at, op) in ops.iter().enumerate() {
            if let Operation::Write { ino, offset, data } = op {
                files.insert(*ino);
                if at >= synced.get(ino).copied().unwrap_or(0).max(all_synced) {
                    pending.extend(pages(*offset, data.len()).map(|(page, _, _)| (*ino, (at, page))));
                }
            }
            if let Operation::SetLen { ino, .. } = op {
                files.insert(*ino);
            }
        }
        Freedom { journal, pending, files }
    }

    /// Lengths that a file may have.
    fn lengths(&self, crash: usize, journal: usize, file: u64) -> Vec<u64> {
        let mut length = self.base_lengths.get(&file).copied().unwrap_or(0);
        let mut possible = vec![length];
        for (at, op) in self.ops[..crash].iter().enumerate() {
            match op {
                Operation::SetLen { ino, len } if *ino == file => {
                    if at >= journal {
                        break;
                    }
                    length = *len;
                    possible = vec![length];
                }
                Operation::Write { ino, offset, data } if *ino == file => {
                    for (page, from, range) in pages(*offset, data.len()) {
                        let end = page * PAGE + from + range.len() as u64;
                        if end > length {
                            length = end;
                            possible.push(length);
                        }
                    }
                }
                Operation::SyncData { ino } | Operation::SyncAll { ino } if *ino == file => possible = vec![length],
                Operation::SyncFs => possible = vec![length],
                _ => {}
            }
        }
        possible
    }

    /// Whether a page write lives in blocks that no operation of the journal has given the file.
    fn is_unreachable(&self, journal: usize, file: u64, write: PageWrite) -> bool {
        let start = write.1 * PAGE;
        journal < write.0
            && self.ops[journal..write.0].iter().any(|op| match op {
                Operation::SetLen { ino, len } => *ino == file && *len <= start,
                Operation::PunchHole { ino, offset, len } => {
                    *ino == file && *offset <= start && offset.saturating_add(*len) >= start + PAGE
                }
                _ => false,
            })
    }

    fn journal_positions(&self, crash: usize, from: usize) -> Vec<usize> {
        let later = (from..crash).filter(|at| is_journaled(&self.ops[*at])).map(|at| at + 1);
        std::iter::once(from).chain(later).collect()
    }

    /// A cut with this choice of pages and lengths; what cannot be on the disk is lost in any case.
    fn cut(
        &self,
        freedom: &Freedom,
        crash: usize,
        journal: usize,
        mut loses: impl FnMut(PageWrite) -> bool,
        mut length: impl FnMut(&[u64]) -> u64,
    ) -> Cut {
        let lost = freedom.pending.iter().filter(|(file, w)| self.is_unreachable(journal, *file, *w) || loses(*w));
        let lengths = freedom.files.iter().map(|file| (*file, length(&self.lengths(crash, journal, *file))));
        Cut {
            crash,
            journal,
            lost: lost.map(|(_, write)| *write).collect(),
            lengths: lengths.collect(),
            torn: Vec::new(),
        }
    }

    /// States of the disk after a crash in front of operation `crash`: first that where everything made it, then that where
    /// nothing did that did not have to; then all of them where they are few, else `samples` of them.
    pub fn cuts(&self, crash: usize, samples: usize, rng: &mut Rng) -> Vec<Cut> {
        let freedom = self.freedom(crash);
        let last = |of: &[u64]| of.last().copied().unwrap_or(0);
        let first = |of: &[u64]| of.first().copied().unwrap_or(0);
        let mut cuts = vec![
            self.cut(&freedom, crash, crash, |_| false, last),
            self.cut(&freedom, crash, freedom.journal, |_| true, first),
        ];
        let positions = self.journal_positions(crash, freedom.journal);
        let few = (4 * samples) as u128;
        let mut count: u128 = 0;
        for journal in &positions {
            let free = freedom.pending.iter().filter(|(f, w)| !self.is_unreachable(*journal, *f, *w)).count();
            let choices = 1u128.checked_shl(free as u32).filter(|_| free < 100).unwrap_or(u128::MAX);
            let lengths = freedom.files.iter().map(|f| self.lengths(crash, *journal, *f).len() as u128);
            count = count.saturating_add(lengths.fold(choices, u128::saturating_mul));
        }
        if count <= few {
            for journal in positions {
                self.enumerate(&freedom, crash, journal, &mut cuts);
            }
        } else {
            for _ in 0..samples {
                cuts.push(self.sample(&freedom, crash, &positions, rng));
            }
        }
        let mut distinct: Vec<Cut> = Vec::with_capacity(cuts.len());
        for cut in cuts {
            if !distinct.contains(&cut) {
                distinct.push(cut);
            }
        }
        distinct
    }

    fn enumerate(&self, freedom: &Freedom, crash: usize, journal: usize, cuts: &mut Vec<Cut>) {
        let free: Vec<PageWrite> = freedom.pending.iter().map(|(_, w)| *w).collect();
        let reachable: Vec<usize> = (0..free.len())
            .filter(|i| !self.is_unreachable(journal, freedom.pending[*i].0, freedom.pending[*i].1))
            .collect();
        let counts: Vec<usize> = freedom.files.iter().map(|f| self.lengths(crash, journal, *f).len()).collect();
        let all_lengths: usize = counts.iter().product();
        for subset in 0..1u64 << reachable.len() {
            let lost =
                |w: PageWrite| reachable.iter().enumerate().any(|(bit, i)| free[*i] == w && subset >> bit & 1 == 1);
            for mut which in 0..all_lengths {
                cuts.push(self.cut(freedom, crash, journal, lost, |of| {
                    let length = of[which % of.len()];
                    which /= of.len();
                    length
                }));
            }
        }
    }

    fn sample(&self, freedom: &Freedom, crash: usize, positions: &[usize], rng: &mut Rng) -> Cut {
        let journal = match rng.below(3) {
            0 => crash,
            1 => freedom.journal,
            _ => *rng.pick(positions),
        };
        let loss = *rng.pick(&[0, 10, 50, 90, 100]);
        let mut lengths = rng.clone();
        lengths.next();
        let cut = self.cut(
            freedom,
            crash,
            journal,
            |_| rng.below(100) < loss,
            |of| if lengths.below(2) == 0 { of[of.len() - 1] } else { *lengths.pick(of) },
        );
        rng.next();
        cut
    }

    /// Page writes that this cut keeps and that nothing replaces in it: what was on its way when the power went.
    pub fn last_page_writes(&self, cut: &Cut) -> Vec<(u64, PageWrite)> {
        let freedom = self.freedom(cut.crash);
        let kept: Vec<_> = freedom.pending.into_iter().filter(|(_, w)| !cut.lost.contains(w)).collect();
        let newest = |(file, write): &(u64, PageWrite)| {
            !kept.iter().any(|(f, w)| f == file && w.1 == write.1 && w.0 > write.0)
                && !self.ops[write.0..cut.journal.max(write.0)].iter().any(
                    |op| matches!(op, Operation::SetLen { ino, .. } | Operation::PunchHole { ino, .. } if ino == file),
                )
                && cut.lengths.get(file).is_none_or(|length| *length > write.1 * PAGE)
        };
        kept.iter().filter(|w| newest(w)).copied().collect()
    }

    /// The disk as the crash leaves it.
    pub fn image(&self, cut: &Cut) -> MemoryStore {
        let disk = self.base.snapshot();
        let apply = |op: &Operation| match disk.replay(op) {
            Ok(()) => {}
            // Of an object that has no name (any more).
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) => {}
            Err(e) => panic!("a recorded operation does not apply: {e}: {op:?}"),
        };
        for (at, op) in self.ops[..cut.crash].iter().enumerate() {
            if let Operation::Write { ino, offset, data } = op {
                for (page, from, range) in pages(*offset, data.len()) {
                    let write = (at, page);
                    if cut.lost.contains(&write) {
                        continue;
                    }
                    let (start, data) = (page * PAGE + from, &data[range]);
                    let piece = |part: Range<usize>| Operation::Write {
                        ino: *ino,
                        offset: start + part.start as u64,
                        data: data[part].to_vec(),
                    };
                    match cut.torn.iter().find(|torn| torn.write == write) {
                        None => apply(&piece(0..data.len())),
                        Some(torn) => torn.new.iter().for_each(|part| apply(&piece(part.clone()))),
                    }
                }
            } else if is_journaled(op) && at < cut.journal {
                apply(op);
            }
        }
        for (ino, len) in &cut.lengths {
            apply(&Operation::SetLen { ino: *ino, len: *len });
        }
        disk
    }

    /// What a cut leaves out, for people.
    pub fn describe(&self, cut: &Cut) -> String {
        let mut text = format!("crash in front of operation {}, journal up to {}\n", cut.crash, cut.journal);
        for (at, op) in self.ops[..cut.crash].iter().enumerate() {
            let fate = match op {
                op if is_journaled(op) && at >= cut.journal => "  not in the journal".to_owned(),
                Operation::Write { offset, data, .. } => {
                    let lost: Vec<u64> = pages(*offset, data.len())
                        .map(|(page, _, _)| page)
                        .filter(|page| cut.lost.contains(&(at, *page)))
                        .collect();
                    if lost.is_empty() { String::new() } else { format!("  dropped pages {lost:?}") }
                }
                _ => String::new(),
            };
            let _ = writeln!(text, "  {at:4} {}{fate}", brief(op));
        }
        let _ = writeln!(text, "  lengths by inode {:?}", cut.lengths);
        for torn in &cut.torn {
            let _ = writeln!(
                text,
                "  torn: page {} of operation {}: only {:?} is new",
                torn.write.1, torn.write.0, torn.new
            );
        }
        text
    }
}

fn brief(op: &Operation) -> String {
    match op {
        Operation::Write { ino, offset, data } => format!("Write ino {ino} {offset}+{}", data.len()),
        Operation::Create { dir, ino, object, .. } => format!("Create {:?} ino {ino} in {dir}", object.kind),
        Operation::SetXattr { ino, .. } => format!("SetXattr ino {ino}"),
        Operation::Rename { from, to, mode } => {
            let name = |n: &[u8]| String::from_utf8_lossy(n).chars().take(24).collect::<String>();
            format!("Rename {mode:?} {}/{} -> {}/{}", from.0, name(&from.1), to.0, name(&to.1))
        }
        other => format!("{other:?}").chars().take(100).collect(),
    }
}
