//! Keys that are taken from an open file in every state it can be in, also on a store that fails meanwhile.

use super::*;
use crate::store::memory::Operation;

type Start = fn(&Bench, &EncryptedFile<MemoryFile>);

/// States of a file with keys.
const STARTS: &[(&str, Start)] = &[
    ("header alone", |_, f| drop(f.xattrs(true).unwrap())),
    ("growing, never synced", |_, f| f.write(0, &pattern(2 * PLAIN + 100, 1)).unwrap()),
    ("growing, header durable", |_, f| {
        f.write(0, &pattern(PLAIN + 100, 1)).unwrap();
        f.sync(false).unwrap();
        f.write(P + 50, &pattern(3 * PLAIN, 2)).unwrap();
    }),
    ("growing, with a gap", |_, f| f.write(5 * P + 7, b"far").unwrap()),
    ("quiet", |_, f| {
        f.write(0, &pattern(3 * PLAIN - 5, 1)).unwrap();
        f.commit(None).unwrap();
    }),
    ("quiet, rewritten inside", |_, f| {
        f.write(0, &pattern(3 * PLAIN - 5, 1)).unwrap();
        f.commit(None).unwrap();
        f.write(10, b"inside").unwrap();
        f.write(3 * P - 20, b"last").unwrap();
    }),
    ("growing again", |_, f| {
        f.write(0, &pattern(PLAIN + 9, 1)).unwrap();
        f.commit(None).unwrap();
        f.write(P + 9, &pattern(200, 3)).unwrap();
    }),
    ("extended", |_, f| {
        f.write(0, &pattern(100, 1)).unwrap();
        f.commit(None).unwrap();
        f.truncate(9 * P + 1).unwrap();
    }),
    ("shortened", |_, f| {
        f.write(0, &pattern(4 * PLAIN, 1)).unwrap();
        f.commit(None).unwrap();
        f.truncate(P + 40).unwrap();
    }),
    ("punched", |_, f| {
        f.write(0, &pattern(4 * PLAIN, 1)).unwrap();
        f.commit(None).unwrap();
        f.fallocate(Fallocate::PunchHole, P - 1, P + 2).unwrap();
    }),
    ("reserved", |_, f| f.fallocate(Fallocate::Allocate { keep_size: true }, 0, 3 * P).unwrap()),
];

/// Content as it was, then more of it, and all of that for a later mount.
fn is_whole(bench: &Bench, file: &EncryptedFile<MemoryFile>, mut model: Vec<u8>, context: &str) {
    assert_eq!(file.size(), model.len() as u64, "{context}");
    assert!(read_all(file).unwrap_or_else(|e| panic!("{context}: {e}")) == model, "{context}");
    let end = model.len();
    model.extend(pattern(300, 9));
    file.write(end as u64, &pattern(300, 9)).unwrap_or_else(|e| panic!("{context}: {e}"));
    assert!(!file.keys_are_dropped(), "{context}: the keys are back");
    if end > 20 {
        model[5..9].copy_from_slice(b"more");
        file.write(5, b"more").unwrap();
    }
    assert!(read_all(file).unwrap() == model, "{context}");
    while file.commit(None).unwrap() != Commit::Quiet {}
    let later = bench.open();
    assert!(read_all(&later).unwrap_or_else(|e| panic!("{context}, later mount: {e}")) == model, "{context}");
}

#[test]
fn a_file_loses_its_keys_in_every_state_and_is_whole_when_they_are_back() {
    for header_pages in [1, 2] {
        for (name, start) in STARTS {
            let bench = Bench::with(header_pages, KeyMode::Branch);
            let file = bench.open();
            start(&bench, &file);
            let model = read_all(&file).unwrap();
            let block_key = {
                let st = file.state.read();
                Arc::downgrade(&st.keys().unwrap().keys.block_key([1; 4]))
            };
            assert!(file.drop_keys(&|_| false).is_none());
            file.drop_keys(&|_| true).expect("it has keys").expect("the store works");
            assert!(block_key.upgrade().is_none(), "{name}: somebody holds a block key");
            assert!(file.key_source().is_none() && file.writer.lock().is_none(), "{name}");
            assert!((0..40).all(|b| !file.edges.lock(b, b).get(b, &mut [0; PLAIN])), "{name}: plaintext of an edge");
            assert!(file.drop_keys(&|_| true).is_none(), "{name}: once");
            // Settled: nothing is left for a commit, and a mount that comes now finds everything.
            assert!(!file.needs_commit(), "{name}");
            assert_eq!(bench.probed(), model.len() as u64, "{name}");
            assert!(read_all(&bench.open()).unwrap() == model, "{name}");
            is_whole(&bench, &file, model, name);
        }
    }
}

#[test]
fn a_store_that_fails_while_a_file_is_settled_costs_no_content() {
    for header_pages in [1, 2] {
        for (name, start) in STARTS {
            for (lasting, nth) in (1..).map(|n| (false, n)).take(12).chain((1..=6).map(|n| (true, n))) {
                let bench = Bench::with(header_pages, KeyMode::Branch);
                let file = bench.open();
                start(&bench, &file);
                let model = read_all(&file).unwrap();
                if lasting {
                    bench.store.fail_from(nth, libc::EIO)
                } else {
                    bench.store.fail_after(nth, libc::EIO)
                }
                let settled = file.drop_keys(&|_| true).expect("it has keys");
                bench.store.heal();
                let context = format!("{name}, operation {nth} {}", if lasting { "and later" } else { "alone" });
                assert!(file.key_source().is_none(), "{context}: the keys go all the same");
                if settled.is_err() {
                    assert!(file.needs_commit(), "{context}: it is left to a later commit");
                }
                is_whole(&bench, &file, model, &context);
            }
        }
    }
}

/// Rule 3: where older versions of the last block may still be on disk, the file may not grow before one that says the size
/// is durable. Losing the keys must not lose that knowledge.
#[test]
fn what_was_not_durable_when_the_keys_went_is_not_taken_for_durable_later() {
    let bench = Bench::committed(&pattern(100, 1));
    let file = bench.open();
    file.truncate(50).unwrap();
    bench.store.fail_from(1, libc::EIO);
    assert!(file.drop_keys(&|_| true).is_some_and(|settled| settled.is_err()));
    bench.store.heal();
    read_all(&file).unwrap();
    bench.store.start_recording();
    file.write(50, b"grows").unwrap();
    let done = bench.store.take_recording();
    let grows = done.iter().position(|op| matches!(op, Operation::SetLen { .. })).expect("the tail is dropped");
    assert!(done[..grows].iter().any(Operation::is_sync), "it grew after {grows} operations and no sync");
}

/// The first write of a file fails halfway, and a commit or a loss of keys comes before the length is put right.
#[test]
fn half_a_first_write_is_cleared_by_whoever_settles_the_file() {
    type Settle = fn(&EncryptedFile<MemoryFile>);
    let settles: [(&str, Settle); 2] = [
        ("commit", |f| assert_eq!(f.commit(None).unwrap(), Commit::Quiet)),
        ("drop", |f| f.drop_keys(&|_| true).unwrap().unwrap()),
    ];
    for (name, settle) in settles {
        let bench = Bench::new();
        let file = bench.open();
        {
            let mut st = file.state.write();
            file.load(&mut st).unwrap();
            file.start_from_empty(&mut st).unwrap();
            st.backing.write_at(&[0xaa; 1000], bench.context.geometry.block_offset(0)).unwrap();
        }
        settle(&file);
        assert_eq!((file.size(), bench.probed()), (0, 0), "{name}");
        is_whole(&bench, &file, Vec::new(), name);
    }
}

#[test]
fn readers_and_writers_meet_no_half_dropped_file() {
    let bench = Bench::new();
    let file = bench.open();
    file.write(0, &vec![0; 8 * PLAIN]).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4u8)
            .map(|t| {
                let (file, over) = (&file, &over);
                scope.spawn(move || {
                    // Unaligned, so that neighbours share blocks; each grows its own end last.
                    let (at, mut round) = (u64::from(t) * 6000, 0u8);
                    while !over.load(Ordering::Acquire) {
                        round = round.wrapping_add(1);
                        file.write(at, &[round; 6000]).unwrap();
                        let mut buf = [0; 6000];
                        assert_eq!(file.read(at, &mut buf).unwrap(), 6000);
                        assert!(buf == [round; 6000]);
                    }
                })
            })
            .collect();
        for _ in 0..300 {
            if let Some(settled) = file.drop_keys(&|_| true) {
                settled.unwrap();
            }
            std::thread::yield_now();
        }
        over.store(true, Ordering::Release);
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
}
