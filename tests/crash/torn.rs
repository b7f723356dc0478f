//! Disks that break the assumption of the format: a page of the last writes is torn at 512-byte sectors, or old and new bytes
//! are mixed in it. Each torn block is EIO, that block alone; a torn header is its file alone; everything else is as promised.

use std::time::Instant;

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::ROOT;

use crate::app::{App, Plan, Tally, block_of, crash, programs, samples};
use crate::disk::{Cut, History, PAGE, Rng, Torn};
use crate::logs::random_call;
use crate::oracle::TornBlocks;

const SECTOR: usize = 512;
const WORD: u64 = 8;

/// Some sectors of the page are new.
fn sectors(rng: &mut Rng) -> Vec<std::ops::Range<usize>> {
    let mask = 1 + rng.below(254);
    (0..8).filter(|i| mask >> i & 1 == 1).map(|i| i * SECTOR..(i + 1) * SECTOR).collect()
}

/// Some bytes of the page are new, in units of a memory word: what re-dirtying a page under write-back may leave.
fn mixture(rng: &mut Rng) -> Vec<std::ops::Range<usize>> {
    let mut edges: Vec<usize> = (0..4).map(|_| rng.below(PAGE / WORD) as usize * WORD as usize).collect();
    edges.sort_unstable();
    edges.chunks(2).map(|pair| pair[0]..pair[1]).filter(|range| !range.is_empty()).collect()
}

fn tear(header_pages: u32, history: &History, cut: &mut Cut, rng: &mut Rng) -> TornBlocks {
    let mut torn = TornBlocks::default();
    let candidates = history.last_page_writes(cut);
    if candidates.is_empty() {
        return torn;
    }
    for _ in 0..1 + rng.below(2) {
        let (file, write) = *rng.pick(&candidates);
        if cut.torn.iter().any(|t| t.write == write) {
            continue;
        }
        let new = if rng.below(3) == 0 { mixture(rng) } else { sectors(rng) };
        if new.is_empty() {
            continue;
        }
        cut.torn.push(Torn { write, new });
        match block_of(write.1, header_pages) {
            Some(block) => drop(torn.blocks.insert((file, block))),
            None => drop(torn.headers.insert(file)),
        }
    }
    torn
}

fn explore_torn(name: &str, program: u64, header_pages: u32, work: impl Fn(&mut App)) -> Tally {
    let tear = |history: &History, cut: &mut Cut, rng: &mut Rng| tear(header_pages, history, cut, rng);
    crash(&Plan { name, header_pages, program, samples: samples(), verdict: None, tear: Some(&tear) }, work)
}

fn report(name: &str, start: Instant, tally: Tally) {
    tally.report(name, start);
    assert!(
        std::env::var("ENVELOPEFS_CRASH_ONLY").is_ok() || tally.bad_blocks > 10,
        "{name}: nothing was torn: {tally:?}"
    );
}

#[test]
fn torn_pages_of_a_log() {
    let start = Instant::now();
    let mut tally = Tally::default();
    for header_pages in [1, 2] {
        tally += explore_torn("torn_pages_of_a_log", 0, header_pages, |app| {
            let log = app.create(ROOT, b"log");
            for (i, len) in [3000, 900, 4000, 7000, 50].into_iter().enumerate() {
                app.append(log, len);
                app.fdatasync(log);
                if i == 2 {
                    app.commit();
                }
            }
            app.append(log, 2 * PLAIN);
        });
    }
    report("torn_pages_of_a_log", start, tally);
}

#[test]
fn torn_pages_of_a_database() {
    let start = Instant::now();
    let mut tally = Tally::default();
    for header_pages in [1, 2] {
        tally += explore_torn("torn_pages_of_a_database", 0, header_pages, |app| {
            let (db, other) = (app.create(ROOT, b"db"), app.create(ROOT, b"other"));
            app.append(db, 6 * PLAIN);
            app.append(other, 2 * PLAIN + 5);
            app.commit();
            for _ in 0..4 {
                let offset = app.rng.below(5 * PLAIN as u64) as usize;
                app.scribble(db, offset, PLAIN);
                app.scribble(other, 100, 10);
                app.fdatasync(db);
            }
        });
    }
    report("torn_pages_of_a_database", start, tally);
}

#[test]
fn torn_pages_of_random_programs() {
    let start = Instant::now();
    let mut tally = Tally::default();
    for program in 0..programs(60) {
        tally += explore_torn("torn_pages_of_random_programs", program, 1 + (program % 3 == 0) as u32, |app| {
            let files = [app.create(ROOT, b"one"), app.create(ROOT, b"two")];
            for _ in 0..3 + app.rng.below(9) {
                random_call(app, &files);
            }
        });
    }
    report("torn_pages_of_random_programs", start, tally);
}

/// A header of two pages goes to the other slot: the file opens from the old one, whatever becomes of the new one.
#[test]
fn a_torn_rewrite_of_a_long_header_costs_nothing() {
    let start = Instant::now();
    let tear = |history: &History, cut: &mut Cut, rng: &mut Rng| {
        let headers: Vec<_> = history.last_page_writes(cut).into_iter().filter(|(_, w)| w.1 < 4).collect();
        if !headers.is_empty() {
            cut.torn.push(Torn { write: rng.pick(&headers).1, new: sectors(rng) });
        }
        // Nothing is excused.
        TornBlocks::default()
    };
    let name = "a_torn_rewrite_of_a_long_header_costs_nothing";
    let plan = Plan { name, header_pages: 2, program: 0, samples: 20 * samples(), verdict: None, tear: Some(&tear) };
    let tally = crash(&plan, |app| {
        let file = app.durable_file(3 * PLAIN);
        app.truncate(file, 2 * PLAIN);
        app.append(file, 10);
        app.commit();
        app.punch(file, 0, PLAIN);
    });
    tally.report(name, start);
    assert!(std::env::var("ENVELOPEFS_CRASH_ONLY").is_ok() || tally.images > 10);
}
