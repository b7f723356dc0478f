//! What a crash may leave of a truncation, on a file system that zeroes the rest of a cut page on its own time.

use super::*;
use crate::store::memory::Operation;

/// One step of a truncation on its way to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lost,
    /// Of a shortening: the rest of its last page is zeroed, the length is the old one.
    Zeroed,
    Done,
}

fn page_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(PAGE as u64)
}
/// Lengths and whole pages freed are metadata, which a journal keeps in order; bytes are not.
fn is_metadata(operation: &Operation) -> bool {
    match operation {
        Operation::SetLen { .. } => true,
        Operation::PunchHole { offset, len, .. } => page_aligned(*offset) && page_aligned(*len),
        _ => false,
    }
}

/// The page at `from`, as programs see it then, zeroed from there to `to`; not past the end of what is on disk.
/// A file system zeroes no hole.
fn zeroed_page(seen: &MemoryStore, disk: &MemoryStore, from: u64, to: u64) -> Option<(u64, Vec<u8>)> {
    let open = |store: &MemoryStore| {
        let place = Place::Entry { dir: store.root(), name: b"f" };
        store.open_file(place, Access::ReadWrite).unwrap()
    };
    let offset = from / PAGE as u64 * PAGE as u64;
    let mut page = vec![0; PAGE];
    let n = open(seen).read_at(&mut page, offset).unwrap();
    page[n..].fill(0);
    if page.iter().all(|byte| *byte == 0) {
        return None;
    }
    page[(from - offset) as usize..(to - offset) as usize].fill(0);
    page.truncate(open(disk).stat().unwrap().size.saturating_sub(offset).min(PAGE as u64) as usize);
    Some((offset, page))
}

/// Every image that a crash may leave: what was synced is there; of the rest, metadata up to some point, any of the bytes.
fn images(before: &MemoryStore, operations: &[Operation]) -> Vec<MemoryStore> {
    let mut images = Vec::new();
    let barriers = operations.iter().enumerate().filter(|(_, o)| o.is_sync()).map(|(i, _)| i + 1);
    for from in std::iter::once(0).chain(barriers) {
        let to = operations[from..].iter().position(Operation::is_sync).map_or(operations.len(), |at| from + at);
        let open = &operations[from..to];
        assert!(open.len() < 10);
        for choice in 0..3_u32.pow(open.len() as u32) {
            let fate = |index: usize| match choice / 3_u32.pow(index as u32) % 3 {
                0 => Fate::Lost,
                1 => Fate::Zeroed,
                _ => Fate::Done,
            };
            let metadata: Vec<Fate> = (0..open.len()).filter(|i| is_metadata(&open[*i])).map(fate).collect();
            let in_order = metadata.windows(2).all(|two| two[1] != Fate::Done || two[0] == Fate::Done);
            let only_lengths_zero =
                (0..open.len()).all(|i| fate(i) != Fate::Zeroed || matches!(open[i], Operation::SetLen { .. }));
            if !in_order || !only_lengths_zero {
                continue;
            }
            let (image, seen) = (before.snapshot(), before.snapshot());
            for operation in &operations[..from] {
                image.replay(operation).unwrap();
                seen.replay(operation).unwrap();
            }
            for (index, operation) in open.iter().enumerate() {
                let zeroed = match (fate(index), operation) {
                    (Fate::Lost, _) => None,
                    (Fate::Zeroed, Operation::SetLen { ino, len }) => {
                        Some((*ino, zeroed_page(&seen, &image, *len, len.next_multiple_of(PAGE as u64))))
                    }
                    (_, Operation::PunchHole { ino, offset, len }) if !is_metadata(operation) => {
                        Some((*ino, zeroed_page(&seen, &image, *offset, offset + len)))
                    }
                    _ => {
                        image.replay(operation).unwrap();
                        None
                    }
                };
                if let Some((ino, Some((offset, data)))) = zeroed {
                    image.replay(&Operation::Write { ino, offset, data }).unwrap();
                }
                seen.replay(operation).unwrap();
            }
            images.push(image);
        }
    }
    images
}

/// The size is the old or the new one; what stays is untouched, what is cut off may be zeros, nothing is an error.
#[test]
fn an_interrupted_truncation_is_the_old_or_the_new_size() {
    let sizes = [1, 100, P - 1, P, P + 1, 2 * P, 2 * P + 700, 3 * P, 4 * P + 1500];
    for (old, new) in sizes.iter().flat_map(|old| sizes.iter().map(move |new| (*old, *new))).filter(|(o, n)| n < o) {
        for growing in [false, true] {
            let content = pattern(old as usize, 9);
            let bench = Bench::new();
            let file = bench.open();
            file.write(0, &content).unwrap();
            if growing {
                file.sync(true).unwrap();
            } else {
                assert_eq!(file.commit(None).unwrap(), Commit::Quiet);
            }
            let before = bench.store.snapshot();
            bench.store.start_recording();
            file.truncate(new).unwrap();
            assert_eq!(read_all(&file).unwrap(), content[..new as usize]);
            file.commit(None).unwrap();
            let operations = bench.store.take_recording();
            let images = images(&before, &operations);
            assert!(images.len() > 2);
            for store in images {
                let crashed = Bench { store, context: bench.context.clone(), cmk: bench.cmk.clone() };
                let what = format!("{old} to {new}, growing: {growing}");
                let size = crashed.probed();
                assert!(size == old || size == new, "{what}: size {size}");
                let got = read_all(&crashed.open()).unwrap_or_else(|e| panic!("{what}: {e}"));
                for (at, byte) in got.iter().enumerate() {
                    let zero = *byte == 0 && at as u64 >= new;
                    assert!(zero || *byte == content[at], "{what}: byte {at}");
                }
            }
        }
    }
}

/// A truncation that fails has changed nothing.
#[test]
fn a_failed_truncation_keeps_the_content() {
    let content = pattern(4 * P as usize + 1500, 3);
    for growing in [false, true] {
        for failing in 1..8 {
            let bench = Bench::new();
            let file = bench.open();
            file.write(0, &content).unwrap();
            if growing {
                file.sync(true).unwrap();
            } else {
                file.commit(None).unwrap();
            }
            bench.store.fail_after(failing, libc::EIO);
            let done = file.truncate(2 * P + 700);
            bench.store.heal();
            let size = if done.is_ok() { 2 * P as usize + 700 } else { content.len() };
            assert_eq!(read_all(&file).unwrap(), content[..size], "operation {failing}, growing: {growing}");
            file.commit(None).unwrap();
            assert_eq!(bench.probed(), size as u64);
            assert_eq!(read_all(&bench.open()).unwrap(), content[..size], "operation {failing}, growing: {growing}");
        }
    }
}
