//! What crashes leave of a file beyond what the format assumes of a disk, or short of it.

use super::*;

/// A header of several pages is no atomic write: a file that was never synced may have a part of it.
#[test]
fn a_long_header_of_which_a_crash_left_a_part_means_never_synced() {
    for lost in 0..2 {
        let bench = Bench::with(2, KeyMode::Branch);
        bench.open().write(0, b"lost").unwrap();
        bench.raw().write_at(&[0; PAGE], lost * PAGE as u64).unwrap();
        assert_eq!(bench.probed(), 0, "without page {lost}");
        let file = bench.open();
        file.authenticate().unwrap();
        file.write(0, b"fresh").unwrap();
        assert_eq!(read_all(&bench.open()).unwrap(), b"fresh");

        // Damage of another kind is no excuse, nor is it where the file was committed.
        let bench = Bench::with(2, KeyMode::Branch);
        bench.open().write(0, b"there").unwrap();
        bench.raw().write_at(&[1; 8], lost * PAGE as u64 + 100).unwrap();
        assert_eq!(bench.probed(), 5);
        assert!(bench.open().authenticate().is_err());
        let bench = Bench::with(2, KeyMode::Branch);
        let file = bench.open();
        file.write(0, b"there").unwrap();
        bench.raw().set_len(bench.context.geometry.quiet_len(5)).unwrap();
        bench.raw().write_at(&[0; PAGE], lost * PAGE as u64).unwrap();
        assert_eq!(code(bench.open().authenticate().unwrap_err()).0, "header-missing");
    }
}

/// A torn last block, written or not followed by a page that never was, costs itself: the rest is read, and goes on living.
#[test]
fn a_torn_last_block_of_a_growing_file_costs_that_block_only() {
    for page_behind in [false, true] {
        let content = pattern(2 * PLAIN, 3);
        let bench = Bench::new();
        bench.open().write(0, &content).unwrap();
        let mut page = bench.page(1);
        page[512..1024].fill(0);
        bench.put_page(1, &page);
        if page_behind {
            bench.raw().set_len(bench.context.geometry.growing_len(3)).unwrap();
        }
        let file = bench.open();
        assert_eq!(file.size(), 2 * P);
        file.authenticate().unwrap();
        let mut first = vec![0; PLAIN];
        file.read(0, &mut first).unwrap();
        assert_eq!(first, content[..PLAIN]);
        assert_eq!(code(file.read(P, &mut first).unwrap_err()), ("block-auth", Some(1)));
        file.commit(None).unwrap();
        let file = bench.open();
        file.write(P, &content[PLAIN..]).unwrap();
        file.write(2 * P, b"more").unwrap();
        file.commit(None).unwrap();
        assert_eq!(read_all(&bench.open()).unwrap(), [&content, &b"more"[..]].concat());
    }
}

/// Opening what a crash left growing, and settling it, is internal work: no application sees another mtime for it.
#[test]
fn adopting_what_a_crash_left_keeps_the_mtime() {
    let mtime = crate::store::Timestamp { sec: 1_000_000, nsec: 42 };
    let leave = |prepare: &dyn Fn(&Bench)| {
        let bench = Bench::new();
        bench.open().write(0, &pattern(2 * PLAIN - 9, 3)).unwrap();
        prepare(&bench);
        bench.raw().set_mtime(mtime).unwrap();
        bench
    };
    let growing_len = |bench: &Bench, blocks| bench.raw().set_len(bench.context.geometry.growing_len(blocks)).unwrap();
    let torn = |bench: &Bench| {
        let mut page = bench.page(1);
        page[512..1024].fill(0);
        bench.put_page(1, &page);
    };
    type State<'a> = (&'a str, &'a dyn Fn(&Bench));
    let states: [State<'_>; 5] = [
        ("left growing", &|_| {}),
        ("a page behind the last one", &|bench| growing_len(bench, 3)),
        ("a page behind a damaged one", &|bench| {
            torn(bench);
            growing_len(bench, 3);
        }),
        ("one page that was never written", &|bench| {
            bench.put_page(0, &[0; PAGE]);
            growing_len(bench, 1);
        }),
        ("never synced", &|bench| bench.raw().write_at(&[0; PAGE], 0).unwrap()),
    ];
    for (what, prepare) in states {
        let bench = leave(prepare);
        let file = bench.open();
        file.authenticate().unwrap();
        assert_eq!(bench.raw().stat().unwrap().mtime, mtime, "{what}: opened");
        file.commit(None).unwrap();
        assert_eq!(bench.raw().stat().unwrap().mtime, mtime, "{what}: committed");
    }
}
