//! Files that grow and are overwritten, and what is cut from them: logs, random overwriting, every size around block edges.

use std::time::Instant;

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::{Ino, ROOT};

use crate::app::{App, Plan, Tally, crash, explore, programs, samples};

#[test]
fn append_log_with_fsync() {
    explore("append_log_with_fsync", |app| {
        let log = app.create(ROOT, b"log");
        for (i, len) in [10, 500, 4000, 1, 9000, 47, 4048].into_iter().enumerate() {
            app.append(log, len);
            if i % 2 == 1 {
                app.fdatasync(log);
            }
            if i == 4 {
                app.commit();
            }
        }
        app.fsync(log);
        app.append(log, 3 * PLAIN);
        app.close(log);
        app.remount();
        app.open(log);
        app.append(log, 100);
        app.fdatasync(log);
        app.append(log, 5000);
        app.close(log);
    });
}

#[test]
fn random_overwrite_with_fsync() {
    explore("random_overwrite_with_fsync", |app| {
        let file = app.create(ROOT, b"data");
        app.append(file, 6 * PLAIN);
        app.fsync(file);
        for i in 0..8 {
            let (offset, len) = (app.rng.below(5 * PLAIN as u64) as usize, 1 + app.rng.below(PLAIN as u64) as usize);
            app.scribble(file, offset, len);
            if i % 3 == 2 {
                app.fdatasync(file);
            }
        }
        app.commit();
        app.scribble(file, 100, 3 * PLAIN);
        app.close(file);
    });
}

/// Small files at every size around block edges: written, synced, appended to, overwritten, emptied.
#[test]
fn small_files_at_every_size_around_block_edges() {
    let sizes = [0, 1, 4047, 4048, 4049, 2 * PLAIN - 1, 2 * PLAIN, 2 * PLAIN + 1];
    explore("small_files_at_every_size_around_block_edges", |app| {
        for (i, size) in sizes.into_iter().enumerate() {
            let file = app.create(ROOT, &[b'f', b'0' + i as u8]);
            if size > 0 {
                app.append(file, size);
            }
            match i % 3 {
                0 => app.fsync(file),
                1 => app.commit(),
                _ => {}
            }
            app.append(file, 1);
            app.fdatasync(file);
            app.append(file, PLAIN - 1);
            app.close(file);
            app.commit();
            app.open(file);
            app.scribble(file, size / 2, 2);
            app.truncate(file, size);
            app.fdatasync(file);
            app.close(file);
            app.unlink(ROOT, &[b'f', b'0' + i as u8]);
        }
    });
}

#[test]
fn truncate_up_and_down() {
    explore("truncate_up_and_down", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 3 * PLAIN + 10);
        app.truncate(file, 2 * PLAIN + 7);
        app.fsync(file);
        app.truncate(file, 100);
        app.append(file, 50);
        app.commit();
        app.truncate(file, 5 * PLAIN);
        app.append(file, 9);
        app.fdatasync(file);
        app.truncate(file, PLAIN);
        app.truncate(file, PLAIN + 1);
        app.scribble(file, PLAIN / 2, PLAIN);
        app.commit();
        app.truncate(file, 0);
        app.append(file, 33);
        app.truncate(file, 2 * PLAIN);
        app.fsync(file);
        app.truncate(file, 1);
        app.close(file);
    });
}

#[test]
fn punched_and_zeroed_ranges() {
    explore("punched_and_zeroed_ranges", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 6 * PLAIN - 5);
        app.commit();
        app.punch(file, PLAIN - 10, PLAIN + 20);
        app.fdatasync(file);
        app.zero_range(file, 3 * PLAIN + 1, 10);
        app.punch(file, 4 * PLAIN, 2 * PLAIN);
        app.fdatasync(file);
        app.append(file, 20);
        app.zero_range(file, 5 * PLAIN, 2 * PLAIN);
        app.allocate(file, 0, 8 * PLAIN);
        app.commit();
        app.scribble(file, 4 * PLAIN + 5, PLAIN);
        app.fsync(file);
        app.punch(file, 0, 20 * PLAIN);
        app.close(file);
    });
}

/// The floor is raised by each commit while the file stays open, and lowered before a shrink.
#[test]
fn header_updates_of_a_live_file() {
    explore("header_updates_of_a_live_file", |app| {
        let file = app.create(ROOT, b"file");
        for size in [10, PLAIN, 2 * PLAIN] {
            app.append(file, size);
            app.commit();
            app.scribble(file, 3, 5);
        }
        app.fdatasync(file);
        app.truncate(file, PLAIN + 5);
        app.append(file, 3);
        app.commit();
        app.punch(file, 0, PLAIN);
        app.write(file, 5 * PLAIN, b"beyond a hole");
        app.commit();
        app.set_xattr(file, b"user.k", b"keeps the header");
        app.fsync(file);
        app.truncate(file, 0);
        app.append(file, 100);
        app.commit();
        app.close(file);
    });
}

#[test]
fn files_left_growing() {
    explore("files_left_growing", |app| {
        let files: Vec<Ino> = [&b"a"[..], b"b", b"c"].iter().map(|name| app.create(ROOT, name)).collect();
        for round in 0..3 {
            for (i, file) in files.iter().enumerate() {
                app.append(*file, [1500, PLAIN, 2 * PLAIN - 1][i]);
                if round == i {
                    app.fdatasync(*file);
                }
            }
        }
        for file in files {
            app.close(file);
        }
    });
}

#[test]
fn rewriting_with_o_trunc() {
    explore("rewriting_with_o_trunc", |app| {
        let file = app.create(ROOT, b"config");
        app.append(file, 2 * PLAIN + 100);
        app.fsync(file);
        app.close(file);
        for size in [PLAIN, 3 * PLAIN, 20] {
            app.open_empty(file);
            app.append(file, size);
            if size == 3 * PLAIN {
                app.fsync(file);
            }
            app.close(file);
            if size == PLAIN {
                app.commit();
            }
        }
    });
}

/// One random call on one of two files, sizes and offsets near block edges.
pub fn random_call(app: &mut App, files: &[Ino]) {
    let file = files[app.rng.below(files.len() as u64) as usize];
    let near = |app: &mut App, blocks: u64| {
        let edge = app.rng.below(blocks + 1) as usize * PLAIN;
        match app.rng.below(4) {
            0 => edge,
            1 => edge.saturating_sub(1 + app.rng.below(3) as usize),
            2 => edge + 1 + app.rng.below(3) as usize,
            _ => app.rng.below(blocks * PLAIN as u64) as usize,
        }
    };
    match app.rng.below(16) {
        0..=2 => {
            let len = 1 + near(app, 1);
            app.append(file, len);
        }
        3..=5 => {
            let (offset, len) = (near(app, 3), 1 + near(app, 2));
            app.scribble(file, offset, len);
        }
        6 | 7 => {
            let size = near(app, 3);
            app.truncate(file, size);
        }
        8 => app.truncate(file, 0),
        9 => {
            let (offset, len) = (near(app, 3), 1 + near(app, 2));
            app.punch(file, offset, len);
        }
        10 => {
            let (offset, len) = (near(app, 3), 1 + near(app, 2));
            match app.rng.below(2) {
                0 => app.zero_range(file, offset, len),
                _ => app.allocate(file, offset, len),
            }
        }
        11 => app.fsync(file),
        12 => app.fdatasync(file),
        13 => {
            let value = app.bytes(20);
            app.set_xattr(file, b"user.random", &value);
        }
        _ => app.commit(),
    }
}

/// What the size protocol's model does on four-byte blocks, on the real engine: short random programs.
#[test]
fn random_programs() {
    let start = Instant::now();
    let mut tally = Tally::default();
    for program in 0..programs(150) {
        let header_pages = if program % 4 == 3 { 2 } else { 1 };
        let plan =
            Plan { name: "random_programs", header_pages, program, samples: samples(), verdict: None, tear: None };
        tally += crash(&plan, |app| {
            let files = [app.create(ROOT, b"one"), app.create(ROOT, b"two")];
            for _ in 0..3 + app.rng.below(9) {
                random_call(app, &files[..if program % 2 == 0 { 1 } else { 2 }]);
            }
            if program % 3 != 2 {
                if program % 3 == 0 {
                    app.remount()
                } else {
                    app.kill()
                }
                for file in files {
                    app.open(file);
                }
                for _ in 0..1 + app.rng.below(6) {
                    random_call(app, &files);
                }
            }
        });
    }
    tally.report("random_programs", start);
}
