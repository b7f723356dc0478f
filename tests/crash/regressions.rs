//! Crashes that have lost files somewhere, by name: in other file systems, in designs that were given up, in this one.

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::ROOT;

use crate::app::{Transactions, explore_judged, explore_thoroughly};
use crate::examine::Seen;

/// gocryptfs #1033: after mkdir and fsync of the parent, a crash left the file with the directory's id empty, and the directory
/// lost. Here a synced directory takes files at once, and one that was not synced is whole or absent.
#[test]
fn zero_length_directory_id_after_mkdir() {
    let verdict = |seen: &Seen, t: Transactions| match seen.at(&[b"dir"]) {
        None if t.acknowledged == 1 => Err("the synced directory is gone".to_owned()),
        // That it can be listed and takes files is looked at everywhere.
        _ => Ok(()),
    };
    explore_judged("zero_length_directory_id_after_mkdir", Some(&verdict), |app| {
        app.mkdir(ROOT, b"dir");
        app.fsync_dir(ROOT);
        app.acknowledge(1);
        app.mkdir(ROOT, b"not synced");
        app.mkdir(ROOT, &[b'l'; 255]);
    });
}

/// The length covers the header and nothing else, or a part of it; the header was written or was not.
#[test]
fn header_only_file() {
    explore_thoroughly("header_only_file", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 10);
        app.fdatasync(file);
        let keyed = app.create(ROOT, b"keyed");
        app.set_xattr(keyed, b"user.a", b"a header without a block");
        app.truncate(file, 0);
        app.append(file, 1);
        app.fsync(keyed);
        app.append(keyed, 1);
    });
}

/// A block that was allocated and never written: zeros, where it was never synced, and no error.
#[test]
fn all_zero_block() {
    explore_thoroughly("all_zero_block", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, PLAIN + 9);
        app.fdatasync(file);
        app.append(file, 3 * PLAIN);
        app.scribble(file, 5 * PLAIN + 1, 20);
        app.commit();
        app.append(file, PLAIN);
    });
}

/// Truncations and appends close together: a length never meets a last block that says another size, nor the bytes under an
/// old tail.
#[test]
fn truncate_race() {
    explore_thoroughly("truncate_race", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, PLAIN + 100);
        app.commit();
        app.truncate(file, PLAIN + 50);
        app.append(file, 10);
        app.truncate(file, 30);
        app.append(file, PLAIN);
        app.fdatasync(file);
    });
    explore_thoroughly("truncate_race_upwards", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 100);
        app.commit();
        app.truncate(file, PLAIN - 1);
        app.append(file, 2);
        app.truncate(file, 3 * PLAIN);
        app.append(file, 1);
    });
}

/// A header of two pages of which the crash kept one: the file was never synced, and is empty.
#[test]
fn half_of_a_first_header() {
    explore_thoroughly("half_of_a_first_header", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 10);
        app.append(file, PLAIN);
    });
}

/// A punch right behind an unsynced append: the length of the append is lost, the hole stays, and the file ended in it.
#[test]
fn a_punch_behind_an_unsynced_append() {
    explore_thoroughly("a_punch_behind_an_unsynced_append", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 2 * PLAIN - 5);
        app.fsync(file);
        app.append(file, 20);
        app.punch(file, PLAIN, PLAIN);
    });
    explore_thoroughly("a_zeroed_range_behind_an_unsynced_append", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 2 * PLAIN - 5);
        app.fsync(file);
        app.append(file, 2 * PLAIN);
        app.zero_range(file, PLAIN - 7, 2 * PLAIN);
        app.append(file, 1);
    });
}

/// A commit has set HOLES_OK and its header is not durable yet; then a block below the older, durable floor is punched.
#[test]
fn a_punch_behind_an_unsynced_header() {
    explore_thoroughly("a_punch_behind_an_unsynced_header", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 100);
        app.commit();
        app.scribble(file, 2 * PLAIN, 1);
        app.commit();
        app.punch(file, 0, PLAIN);
    });
}

// The daemon is killed, the machine lives: what the killed one wrote is in the page cache, and the next one believes it. Then
// the power goes.

#[test]
fn a_commit_after_a_kill() {
    explore_thoroughly("a_commit_after_a_kill", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 10);
        app.kill();
        app.open(file);
        app.set_xattr(file, b"user.a", b"changes no content");
        app.commit();
    });
}

#[test]
fn a_truncation_after_a_kill() {
    explore_thoroughly("a_truncation_after_a_kill", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, PLAIN + 9);
        app.kill();
        app.open(file);
        app.truncate(file, 10);
    });
}

#[test]
fn an_append_after_a_kill() {
    explore_thoroughly("an_append_after_a_kill", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, 10);
        app.commit();
        app.truncate(file, 3000);
        app.fsync(file);
        app.scribble(file, 20, 20);
        app.kill();
        app.open(file);
        app.append(file, 10);
    });
}

#[test]
fn a_truncation_after_a_killed_one() {
    explore_thoroughly("a_truncation_after_a_killed_one", |app| {
        let file = app.create(ROOT, b"file");
        app.append(file, PLAIN + 9);
        app.commit();
        app.fsync(file);
        app.truncate_and_kill(file, 10, 2);
        app.open(file);
        app.truncate(file, 10);
    });
}
