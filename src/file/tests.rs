//! Tests of the file engine on the memory store: a model, the size protocol's rules, tampering, full disks.

mod truncation;

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::crypto::secret::Secret32;
use crate::format::geometry::{blocks_for, locate};
use crate::format::header::HeaderError;
use crate::format::volume::KeyMode;
use crate::keys::guard::{Guard, OutagePolicy};
use crate::keys::keyring::KeyPolicy;
use crate::keys::test_cmk::TestCmk;
use crate::store::memory::MemoryStore;
use crate::store::{Access, Creator, Place, Store};

mod keys;
#[cfg(feature = "shuttle")]
mod model;

type MemoryFile = <MemoryStore as Store>::File;
const P: u64 = PLAIN as u64;

/// One file on a memory store, with the keys to reopen it as a later mount would.
struct Bench {
    store: MemoryStore,
    context: Arc<FileContext>,
    cmk: Arc<TestCmk>,
}

impl Bench {
    fn new() -> Self {
        Self::with(1, KeyMode::Branch)
    }

    fn with(header_pages: u32, mode: KeyMode) -> Self {
        let cmk = Arc::new(TestCmk::new("one"));
        let policy = KeyPolicy { mode, branch_max_age: 1 << 30, branch_max_files: 1 << 20 };
        let keyring = Keyring::new(
            [5; 16],
            vec![Guard::new(cmk.clone(), OutagePolicy::default())],
            policy,
            Some(Secret32::from_bytes([6; 32])),
            None,
        );
        let context = Arc::new(FileContext { keyring, geometry: Geometry { header_pages } });
        let store = MemoryStore::new();
        let by = Creator { uid: 0, gid: 0, umask: 0 };
        store.create_file(store.root(), b"f", 0o600, by).unwrap();
        Self { store, context, cmk }
    }

    fn raw(&self) -> MemoryFile {
        let place = Place::Entry { dir: self.store.root(), name: b"f" };
        self.store.open_file(place, Access::ReadWrite).unwrap()
    }

    fn probed(&self) -> u64 {
        probe_size(&self.raw(), self.context.geometry).unwrap()
    }

    fn open(&self) -> EncryptedFile<MemoryFile> {
        EncryptedFile::new(self.context.clone(), self.raw(), true, self.probed())
    }

    fn len(&self) -> u64 {
        self.raw().stat().unwrap().size
    }

    fn page(&self, block: u64) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        self.raw().read_at(&mut page, self.context.geometry.block_offset(block)).unwrap();
        page
    }

    fn put_page(&self, block: u64, page: &[u8]) {
        self.raw().write_at(page, self.context.geometry.block_offset(block)).unwrap();
    }

    /// A committed file of `content`, closed.
    fn committed(content: &[u8]) -> Self {
        let bench = Self::new();
        let file = bench.open();
        file.write(0, content).unwrap();
        assert_eq!(file.commit(None).unwrap(), Commit::Quiet);
        bench
    }
}

fn read_all<F: BackingFile>(file: &EncryptedFile<F>) -> Result<Vec<u8>, FileError> {
    let mut out = vec![0xaa; file.size() as usize];
    let n = file.read(0, &mut out)?;
    assert_eq!(n as u64, file.size());
    Ok(out)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(31).wrapping_add(i as u64 / 251) as u8 ^ seed).collect()
}

fn code(e: FileError) -> (&'static str, Option<u64>) {
    match e {
        FileError::Corrupt { code, block } => (code, block),
        other => panic!("not a corruption: {other}"),
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Truncate(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
    Sync,
    Commit,
    /// Closed and opened again after a commit, as by a later mount.
    Remount,
    /// Closed without a commit: the daemon was killed, the machine lives.
    Kill,
    DropKeys,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0..5 * P, 0..20 * P, (0..20u64, -2i64..3).prop_map(|(b, d)| (b * P).saturating_add_signed(d))]
}

fn op() -> impl Strategy<Value = Op> {
    // Longer than the eight stripes, so that both ends of a run meet on one.
    let len = prop_oneof![3 => 1..100u64, 3 => 1..3 * P, 1 => 1..20 * P];
    prop_oneof![
        6 => (offset(), len.clone(), any::<u8>()).prop_map(|(o, l, s)| Op::Write(o, l as usize, s)),
        2 => offset().prop_map(Op::Truncate),
        1 => Just(Op::Truncate(0)),
        1 => (offset(), len.clone()).prop_map(|(o, l)| Op::Punch(o, l)),
        1 => (offset(), len.clone(), any::<bool>()).prop_map(|(o, l, k)| Op::Zero(o, l, k)),
        1 => (offset(), len, any::<bool>()).prop_map(|(o, l, k)| Op::Allocate(o, l, k)),
        1 => Just(Op::Sync),
        2 => Just(Op::Commit),
        1 => Just(Op::Remount),
        1 => Just(Op::Kill),
        2 => Just(Op::DropKeys),
    ]
}

fn run_against_model(header_pages: u32, mode: KeyMode, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let bench = Bench::with(header_pages, mode);
    let mut file = bench.open();
    let mut model: Vec<u8> = Vec::new();
    for op in ops {
        match op {
            Op::Write(o, len, seed) => {
                let data = pattern(len, seed);
                file.write(o, &data).unwrap();
                let end = o as usize + len;
                model.resize(model.len().max(end), 0);
                model[o as usize..end].copy_from_slice(&data);
            }
            Op::Truncate(n) => {
                file.truncate(n).unwrap();
                model.resize(n as usize, 0);
            }
            Op::Punch(o, len) => {
                file.fallocate(Fallocate::PunchHole, o, len).unwrap();
                let end = model.len().min((o + len) as usize);
                if (o as usize) < end {
                    model[o as usize..end].fill(0);
                }
            }
            Op::Zero(o, len, keep_size) => {
                file.fallocate(Fallocate::ZeroRange { keep_size }, o, len).unwrap();
                let end = (o + len) as usize;
                if !keep_size {
                    model.resize(model.len().max(end), 0);
                }
                let end = model.len().min(end);
                if (o as usize) < end {
                    model[o as usize..end].fill(0);
                }
            }
            Op::Allocate(o, len, keep_size) => {
                file.fallocate(Fallocate::Allocate { keep_size }, o, len).unwrap();
                if !keep_size {
                    model.resize(model.len().max((o + len) as usize), 0);
                }
            }
            Op::Sync => file.sync(false).unwrap(),
            Op::Commit => {
                file.commit(None).unwrap();
                prop_assert!(!file.needs_commit());
            }
            Op::Remount => {
                prop_assert_eq!(file.commit(None).unwrap(), Commit::Quiet);
                let len = bench.len();
                if !model.is_empty() {
                    prop_assert_eq!(len, bench.context.geometry.quiet_len(model.len() as u64));
                }
                file = bench.open();
            }
            Op::Kill => file = bench.open(),
            // They are there again when the next operation asks.
            Op::DropKeys => {
                if let Some(settled) = file.drop_keys(&|_| true) {
                    settled.unwrap();
                    assert!(file.keys_are_dropped() && file.key_source().is_none());
                }
            }
        }
        prop_assert_eq!(file.size(), model.len() as u64);
        prop_assert_eq!(bench.probed(), model.len() as u64);
        prop_assert!(read_all(&file).unwrap() == model, "content differs");
        let mut at = 0;
        while let Ok(data) = file.seek(Seek::Data, at) {
            prop_assert!(model[at as usize..data as usize].iter().all(|b| *b == 0), "SEEK_DATA skipped data");
            at = file.seek(Seek::Hole, data).unwrap();
            prop_assert!(at > data);
        }
        prop_assert!(model[(at as usize).min(model.len())..].iter().all(|b| *b == 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_a_plain_file(ops in prop::collection::vec(op(), 1..30)) {
        run_against_model(1, KeyMode::Branch, ops)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_a_plain_file_with_long_headers(ops in prop::collection::vec(op(), 1..20)) {
        run_against_model(2, KeyMode::PerFile, ops)?;
    }
}

#[test]
fn an_empty_file_has_no_header_and_costs_no_key() {
    let bench = Bench::new();
    let file = bench.open();
    file.truncate(0).unwrap();
    file.sync(false).unwrap();
    file.commit(None).unwrap();
    assert_eq!(bench.len(), 0);
    assert!(bench.context.keyring.current_branch().is_none(), "no branch key was needed");
}

#[test]
fn fsync_needs_no_tail_and_commit_sets_it() {
    let bench = Bench::new();
    let file = bench.open();
    file.write(0, b"synced").unwrap();
    file.sync(true).unwrap();
    assert_eq!(bench.len(), bench.context.geometry.growing_len(1));
    assert_eq!(bench.probed(), 6);
    file.commit(None).unwrap();
    assert_eq!(bench.len(), bench.context.geometry.quiet_len(6));
}

#[test]
fn commit_restores_the_modification_time() {
    let bench = Bench::new();
    let file = bench.open();
    file.write(0, &pattern(10_000, 1)).unwrap();
    let mtime = crate::store::Timestamp { sec: 1_000_000, nsec: 42 };
    bench.raw().set_mtime(mtime).unwrap();
    file.commit(None).unwrap();
    assert_eq!(bench.raw().stat().unwrap().mtime, mtime);
}

#[test]
fn a_file_extended_by_truncate_is_materialised_before_it_grows() {
    let bench = Bench::committed(b"short");
    let file = bench.open();
    file.truncate(3000).unwrap();
    assert_eq!(block::peek(&bench.page(0)).unwrap().valid_len, 5);
    file.write(5000, b"far").unwrap();
    assert_eq!(block::peek(&bench.page(0)).unwrap().valid_len, 3000);
}

#[test]
fn a_hole_at_the_end_becomes_a_block_before_the_file_grows() {
    let bench = Bench::committed(b"x");
    let file = bench.open();
    file.truncate(3 * P + 7).unwrap();
    assert!(block::is_hole(&bench.page(3)));
    file.write(3 * P + 7, b"y").unwrap();
    assert_eq!(block::peek(&bench.page(3)).unwrap().valid_len, 8);
    assert_eq!(bench.probed(), 3 * P + 8);
}

#[test]
fn bytes_cut_off_never_come_back() {
    let bench = Bench::committed(&pattern(3 * PLAIN, 7));
    let file = bench.open();
    file.truncate(10).unwrap();
    file.truncate(3 * P).unwrap();
    let content = read_all(&file).unwrap();
    assert_eq!(content[..10], pattern(10, 7));
    assert!(content[10..].iter().all(|b| *b == 0));
}

#[test]
fn a_terabyte_hole_costs_nothing() {
    let bench = Bench::new();
    let file = bench.open();
    file.write(1 << 40, b"end").unwrap();
    file.truncate(1 << 41).unwrap();
    file.commit(None).unwrap();
    let file = bench.open();
    assert_eq!(file.size(), 1 << 41);
    let mut buf = [1; 3];
    file.read(1 << 40, &mut buf).unwrap();
    assert_eq!(&buf, b"end");
    assert_eq!(file.seek(Seek::Data, 0).unwrap(), locate(1 << 40).0 * P);
}

#[test]
fn two_mounts_lives_use_different_block_keys() {
    let bench = Bench::committed(&pattern(PLAIN, 1));
    let before = block::peek(&bench.page(0)).unwrap().key_salt;
    bench.open().write(0, b"again").unwrap();
    assert_ne!(before, block::peek(&bench.page(0)).unwrap().key_salt);
}

#[test]
fn tamper_01_02_any_flipped_byte_of_a_block_is_an_error_for_that_block_only() {
    let content = pattern(3 * PLAIN, 3);
    let bench = Bench::committed(&content);
    let good = bench.page(1);
    for at in (0..48).chain([48, 1000, PAGE - 1]) {
        let mut bad = good;
        bad[at] ^= 1;
        bench.put_page(1, &bad);
        let file = bench.open();
        let mut buf = vec![0; PLAIN];
        assert_eq!(code(file.read(P, &mut buf).unwrap_err()), ("block-auth", Some(1)), "byte {at}");
        file.read(0, &mut buf).unwrap();
        assert_eq!(buf, content[..PLAIN]);
        file.read(2 * P, &mut buf).unwrap();
        assert_eq!(buf, content[2 * PLAIN..]);
        // A whole overwrite heals it.
        file.write(P, &content[PLAIN..2 * PLAIN]).unwrap();
        assert_eq!(read_all(&file).unwrap(), content);
        bench.put_page(1, &good);
    }
}

#[test]
fn tamper_03_04_blocks_are_bound_to_their_place_and_file() {
    let bench = Bench::committed(&pattern(2 * PLAIN, 3));
    let (a, b) = (bench.page(0), bench.page(1));
    bench.put_page(0, &b);
    bench.put_page(1, &a);
    let mut buf = [0; 10];
    let file = bench.open();
    assert_eq!(code(file.read(0, &mut buf).unwrap_err()), ("block-auth", Some(0)));
    assert_eq!(code(file.read(P, &mut buf).unwrap_err()), ("block-auth", Some(1)));
    let other = Bench::committed(&pattern(2 * PLAIN, 3));
    bench.put_page(0, &other.page(0));
    assert_eq!(code(bench.open().read(0, &mut buf).unwrap_err()), ("block-auth", Some(0)));
}

#[test]
fn tamper_06_a_zeroed_block_is_an_error_below_the_floor_and_a_hole_above_it() {
    let bench = Bench::committed(&pattern(2 * PLAIN, 3));
    let mut buf = [0xaa; 10];
    bench.put_page(0, &[0; PAGE]);
    assert_eq!(code(bench.open().read(0, &mut buf).unwrap_err()), ("hole-below-floor", Some(0)));
    // Never committed: the floor is 0.
    let bench = Bench::new();
    let file = bench.open();
    file.write(0, &pattern(2 * PLAIN, 3)).unwrap();
    bench.put_page(0, &[0; PAGE]);
    bench.open().read(0, &mut buf).unwrap();
    assert_eq!(buf, [0; 10]);
    // With holes allowed.
    let bench = Bench::committed(&pattern(2 * PLAIN, 3));
    bench.open().fallocate(Fallocate::PunchHole, 0, P).unwrap();
    bench.put_page(1, &[0; PAGE]);
    bench.open().read(P, &mut buf).unwrap();
    assert_eq!(buf, [0; 10]);
}

#[test]
fn tamper_07_truncation_below_the_floor_is_an_error_at_open() {
    let bench = Bench::committed(&pattern(3 * PLAIN, 3));
    bench.raw().set_len(bench.context.geometry.quiet_len(P)).unwrap();
    assert_eq!(code(bench.open().authenticate().unwrap_err()).0, "truncated-below-floor");
}

#[test]
fn tamper_08_an_impossible_length_is_an_error_at_open_and_clamps_in_stat() {
    let bench = Bench::committed(&pattern(3 * PLAIN, 3));
    bench.raw().set_len(bench.context.geometry.data_start() + 2 * PAGE as u64 + P + 1).unwrap();
    assert_eq!(bench.probed(), 2 * P);
    let file = bench.open();
    assert_eq!(code(file.authenticate().unwrap_err()).0, "impossible-length");
    file.truncate(0).unwrap();
    file.write(0, b"usable again").unwrap();
    assert_eq!(read_all(&file).unwrap(), b"usable again");
}

#[test]
fn tamper_09_a_growing_file_has_the_size_of_its_last_block_and_a_forged_one_is_an_error() {
    let bench = Bench::new();
    let file = bench.open();
    file.write(0, &pattern(PLAIN + 100, 3)).unwrap();
    file.sync(true).unwrap();
    assert_eq!(read_all(&bench.open()).unwrap(), pattern(PLAIN + 100, 3));
    let mut page = bench.page(1);
    page[32..34].copy_from_slice(&50u16.to_le_bytes());
    bench.put_page(1, &page);
    let file = bench.open();
    assert_eq!(code(read_all(&file).unwrap_err()), ("block-auth", Some(1)));
    assert_eq!(code(file.write(P + 50, b"more").unwrap_err()), ("block-auth", Some(1)));
    let mut rest = [0; PLAIN];
    file.read(0, &mut rest).unwrap();
    assert_eq!(rest, pattern(PLAIN + 100, 3)[..PLAIN]);
}

#[test]
fn tamper_10_an_extended_file_reads_as_zeros() {
    let bench = Bench::committed(b"small");
    bench.raw().set_len(bench.context.geometry.quiet_len(1 << 40)).unwrap();
    let file = bench.open();
    let mut buf = [1; 16];
    file.read((1 << 40) - 16, &mut buf).unwrap();
    assert_eq!(buf, [0; 16]);
}

#[test]
fn tamper_11_a_broken_header_is_an_error_but_the_file_can_be_emptied() {
    let bench = Bench::committed(&pattern(100, 3));
    let mut byte = [0];
    bench.raw().read_at(&mut byte, 60).unwrap();
    bench.raw().write_at(&[byte[0] ^ 1], 60).unwrap();
    let file = bench.open();
    assert!(matches!(file.authenticate().unwrap_err(), FileError::Header(_)));
    file.truncate(0).unwrap();
    file.write(0, b"new").unwrap();
    assert_eq!(read_all(&file).unwrap(), b"new");
}

#[test]
fn tamper_11_the_other_slot_serves_when_the_newest_is_broken() {
    let bench = Bench::with(2, KeyMode::Branch);
    let file = bench.open();
    file.write(0, b"kept").unwrap();
    file.commit(None).unwrap();
    // The floor's raise went to slot B; slot A still holds the first header.
    bench.raw().write_at(&[0xff; 64], bench.context.geometry.slot_len() as u64).unwrap();
    assert_eq!(read_all(&bench.open()).unwrap(), b"kept");
}

#[test]
fn tamper_13_swapped_headers_open_no_block() {
    let (a, b) = (Bench::new(), Bench::new());
    for bench in [&a, &b] {
        let file = bench.open();
        file.write(0, &pattern(PLAIN, 3)).unwrap();
        file.commit(None).unwrap();
    }
    // The same keys and volume: only the files differ.
    let b = Bench { store: b.store, context: a.context.clone(), cmk: a.cmk.clone() };
    b.raw().set_len(0).unwrap();
    let file = b.open();
    file.write(0, &pattern(PLAIN, 3)).unwrap();
    file.commit(None).unwrap();
    let mut header = vec![0; PAGE];
    b.raw().read_at(&mut header, 0).unwrap();
    a.raw().write_at(&header, 0).unwrap();
    let file = a.open();
    file.authenticate().unwrap();
    assert_eq!(code(file.read(0, &mut [0; 4]).unwrap_err()), ("block-auth", Some(0)));
}

#[test]
fn an_all_zero_header_means_never_synced_while_growing_and_tampering_when_quiet() {
    let bench = Bench::new();
    bench.open().write(0, b"lost").unwrap();
    bench.raw().write_at(&[0; PAGE], 0).unwrap();
    assert_eq!(bench.probed(), 0);
    let file = bench.open();
    file.authenticate().unwrap();
    file.write(0, b"fresh").unwrap();
    assert_eq!(read_all(&bench.open()).unwrap(), b"fresh");

    let bench = Bench::committed(b"there");
    bench.raw().write_at(&[0; PAGE], 0).unwrap();
    assert_eq!(code(bench.open().authenticate().unwrap_err()).0, "header-missing");
}

#[test]
fn a_growing_file_whose_last_page_was_lost_keeps_everything_before_it() {
    let content = pattern(2 * PLAIN + 50, 3);
    let bench = Bench::new();
    let file = bench.open();
    file.write(0, &content).unwrap();
    bench.put_page(2, &[0; PAGE]);
    assert_eq!(bench.probed(), 2 * P);
    let file = bench.open();
    assert_eq!(read_all(&file).unwrap(), content[..2 * PLAIN]);
    file.write(2 * P, b"more").unwrap();
    file.commit(None).unwrap();
    let content = [&content[..2 * PLAIN], b"more"].concat();
    assert_eq!(read_all(&bench.open()).unwrap(), content);
}

#[test]
fn xattrs_keep_the_header_of_an_emptied_file() {
    let bench = Bench::committed(&pattern(5000, 3));
    let file = bench.open();
    let sealed = file.xattrs(true).unwrap().unwrap().seal(b"user.a", b"v", [1; 12]);
    file.keep_header(true);
    file.truncate(0).unwrap();
    assert_eq!(bench.probed(), 0);
    file.write(0, b"new data").unwrap();
    file.commit(None).unwrap();
    let file = bench.open();
    assert_eq!(read_all(&file).unwrap(), b"new data");
    let codec = file.xattrs(false).unwrap().unwrap();
    assert_eq!(codec.open(&codec.name(b"user.a"), &sealed).unwrap(), (b"user.a".to_vec(), b"v".to_vec()));
}

#[test]
fn concurrent_writers_of_one_block_lose_nothing() {
    let bench = Bench::new();
    let file = bench.open();
    let len = 20 * PLAIN;
    let content = pattern(len, 9);
    std::thread::scope(|s| {
        for t in 0..4 {
            let (file, content) = (&file, &content);
            s.spawn(move || {
                // Pages of 4096 in an interleaved order, as two event loops send them.
                for start in (t * PAGE..len).step_by(4 * PAGE) {
                    let end = (start + PAGE).min(len);
                    file.write(start as u64, &content[start..end]).unwrap();
                    let mut back = vec![0; end - start];
                    file.read(start as u64, &mut back).unwrap();
                    assert_eq!(back, content[start..end]);
                }
            });
        }
        s.spawn(|| {
            for _ in 0..50 {
                file.commit(None).unwrap();
            }
        });
    });
    assert_eq!(read_all(&file).unwrap(), content);
    file.commit(None).unwrap();
    assert_eq!(read_all(&bench.open()).unwrap(), content);
}

#[test]
fn the_last_block_is_the_only_short_one() {
    for size in [1, P - 1, P, P + 1, 2 * P] {
        let bench = Bench::committed(&pattern(size as usize, 1));
        assert_eq!(bench.len(), bench.context.geometry.quiet_len(size));
        assert_eq!(blocks_for(size), size.div_ceil(P));
        assert_eq!(read_all(&bench.open()).unwrap(), pattern(size as usize, 1));
    }
}

/// A failing backing operation at every point of an operation: the caller gets the error, and what was there stays readable.
#[test]
fn a_failed_operation_leaves_old_or_new_content_and_a_usable_file() {
    type Change = fn(&EncryptedFile<MemoryFile>) -> Result<(), FileError>;
    type Start = fn(&EncryptedFile<MemoryFile>);
    let changes: [(&str, Change); 8] = [
        ("append", |f| f.write(P + 100, &pattern(2 * PLAIN, 8))),
        ("overwrite", |f| f.write(10, &pattern(PLAIN, 8))),
        ("far write", |f| f.write(9 * P, b"far")),
        ("shrink", |f| f.truncate(7)),
        ("extend", |f| f.truncate(5 * P)),
        ("empty", |f| f.truncate(0)),
        ("punch", |f| f.fallocate(Fallocate::PunchHole, 5, P)),
        ("allocate", |f| f.fallocate(Fallocate::Allocate { keep_size: false }, 0, 6 * P)),
    ];
    let starts: [(&str, Start); 4] = [
        ("empty", |_| ()),
        ("unsynced", |f| f.write(0, &pattern(PLAIN + 100, 1)).unwrap()),
        ("synced", |f| {
            f.write(0, &pattern(PLAIN + 100, 1)).unwrap();
            f.sync(false).unwrap();
        }),
        ("committed", |f| {
            f.write(0, &pattern(PLAIN + 100, 1)).unwrap();
            f.commit(None).unwrap();
        }),
    ];
    for (start, prepare) in starts {
        for (name, change) in changes {
            for nth in 1.. {
                let bench = Bench::new();
                let file = bench.open();
                prepare(&file);
                let before = read_all(&file).unwrap();
                bench.store.fail_after(nth, libc::ENOSPC);
                let failed = change(&file).and_then(|()| file.commit(None).map(|_| ()));
                bench.store.heal();
                let context = format!("{name} of {start}, operation {nth}");
                let after = read_all(&file).unwrap_or_else(|e| panic!("{context}: {e}"));
                match failed {
                    Ok(()) => break,
                    Err(FileError::Io(e)) => assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{context}"),
                    Err(e) => panic!("{context}: {e}"),
                }
                // Either nothing happened, or the change did; a write or a punch may have stopped between two blocks.
                if !["append", "overwrite", "punch"].contains(&name) {
                    let reference = Bench::new();
                    let whole = reference.open();
                    prepare(&whole);
                    change(&whole).unwrap();
                    assert!(after == before || after == read_all(&whole).unwrap(), "{context}: neither old nor new");
                }
                assert_eq!(bench.probed(), file.size(), "{context}");
                // It works again, and a later mount agrees.
                file.write(3, b"again").unwrap_or_else(|e| panic!("{context}: {e}"));
                file.commit(None).unwrap();
                let content = read_all(&file).unwrap();
                assert_eq!(read_all(&bench.open()).unwrap_or_else(|e| panic!("{context}: {e}")), content);
                assert!(nth < 40, "{context}: never succeeds");
            }
        }
    }
}

#[test]
fn tamper_16_a_file_of_another_volume_under_the_same_cmk_is_refused() {
    let bench = Bench::committed(b"ours");
    for (volume, origin) in [([4; 16], [6; 32]), ([5; 16], [7; 32])] {
        // First another volume id, then the same id forged without the volume's origin key.
        let policy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 1 << 30, branch_max_files: 1 << 20 };
        let keyring = Keyring::new(
            volume,
            vec![Guard::new(bench.cmk.clone(), OutagePolicy::default())],
            policy,
            Some(Secret32::from_bytes(origin)),
            None,
        );
        let geometry = bench.context.geometry;
        let context = Arc::new(FileContext { keyring, geometry });
        let foreign = Bench { store: MemoryStore::new(), context, cmk: bench.cmk.clone() };
        let by = Creator { uid: 0, gid: 0, umask: 0 };
        foreign.store.create_file(foreign.store.root(), b"f", 0o600, by).unwrap();
        foreign.open().write(0, b"forged").unwrap();
        let planted = Bench { store: foreign.store, context: bench.context.clone(), cmk: bench.cmk.clone() };
        let refused = planted.open().authenticate().unwrap_err();
        assert!(matches!(refused, FileError::Header(HeaderError::Origin)), "{refused}");
    }
}

#[test]
fn both_ends_of_a_run_on_one_stripe_are_merged_from_their_own_blocks() {
    let mut content = pattern(12 * PLAIN, 1);
    let bench = Bench::committed(&content);
    let file = bench.open();
    // Block 10 is now cached on the stripe that block 2 uses too.
    file.write(10 * P + 2000, b"cached").unwrap();
    content[10 * PLAIN + 2000..10 * PLAIN + 2006].copy_from_slice(b"cached");
    let run = pattern(8 * PLAIN, 2);
    file.write(2 * P + 100, &run).unwrap();
    content[2 * PLAIN + 100..10 * PLAIN + 100].copy_from_slice(&run);
    assert!(read_all(&file).unwrap() == content);
}

#[test]
fn a_long_header_raises_its_floor_in_the_other_slot() {
    let bench = Bench::with(2, KeyMode::Branch);
    let file = bench.open();
    file.write(0, &pattern(2 * PLAIN, 1)).unwrap();
    file.commit(None).unwrap();
    bench.raw().set_len(bench.context.geometry.quiet_len(10)).unwrap();
    assert_eq!(code(bench.open().authenticate().unwrap_err()).0, "truncated-below-floor");
}

mod leftovers;
