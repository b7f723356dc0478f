//! What databases do to be safe, and their own recovery after a crash: rollback journals, write-ahead logs, atomic replacement.

use envelopefs::fs::{Ino, ROOT};

use crate::app::{App, Transactions, explore_judged};
use crate::disk::Rng;
use crate::examine::Seen;

/// Pages of the databases here: as SQLite's, they straddle the blocks below.
const DB_PAGE: usize = 4096;
const DB_PAGES: usize = 5;

/// A page as transaction `t` leaves it; 0 is the first version of all pages.
fn page(number: usize, t: u64) -> Vec<u8> {
    let mut bytes = Rng::new((number as u64) << 32 | t).bytes(DB_PAGE);
    bytes[..8].copy_from_slice(&t.to_le_bytes());
    bytes
}

/// Which pages transaction `t` writes.
fn written_by(t: u64) -> Vec<usize> {
    (0..DB_PAGES).filter(|n| t > 0 && (t as usize + n).is_multiple_of(2)).collect()
}

fn state_after(t: u64) -> Vec<u8> {
    let newest = |n: usize| (0..=t).rev().find(|t| *t == 0 || written_by(*t).contains(&n)).unwrap_or(0);
    (0..DB_PAGES).flat_map(|n| page(n, newest(n))).collect()
}

fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed ^ 0x811c_9dc5, |sum, b| (sum ^ u32::from(*b)).wrapping_mul(16_777_619))
}

/// The database shows one of the transactions that may be there.
fn must_be_a_state(database: &[u8], t: Transactions) -> Result<(), String> {
    if (t.acknowledged..=t.begun).any(|t| database == state_after(t)) {
        return Ok(());
    }
    let versions: Vec<u64> =
        database.chunks(DB_PAGE).map(|p| p.iter().take(8).rfold(0, |v, b| v << 8 | u64::from(*b))).collect();
    Err(format!("the database is in no state of {t:?}: page versions {versions:?}, {} bytes", database.len()))
}

fn new_database(app: &mut App) -> Ino {
    let db = app.create(ROOT, b"db");
    app.write(db, 0, &state_after(0));
    app.fsync(db);
    app.fsync_dir(ROOT);
    db
}

const MAGIC: &[u8; 8] = b"journal\n";
const RECORDS: usize = 16;

/// One transaction with a rollback journal: old pages to the journal, sync, count into its header, sync, new pages, sync,
/// delete the journal.
fn with_rollback_journal(app: &mut App, db: Ino, t: u64) {
    app.begin(t);
    let journal = app.create(ROOT, b"db-journal");
    let before = state_after(t - 1);
    let pages = written_by(t);
    let mut at = RECORDS;
    for n in &pages {
        let old = &before[n * DB_PAGE..][..DB_PAGE];
        let record = [&(*n as u32).to_le_bytes()[..], old, &checksum(*n as u32, old).to_le_bytes()].concat();
        app.write(journal, at, &record);
        at += record.len();
    }
    app.fdatasync(journal);
    app.write(journal, 0, &[&MAGIC[..], &(pages.len() as u64).to_le_bytes()].concat());
    app.fsync(journal);
    app.fsync_dir(ROOT);
    for n in &pages {
        app.write(db, n * DB_PAGE, &page(*n, t));
    }
    app.fdatasync(db);
    app.close(journal);
    app.unlink(ROOT, b"db-journal");
    app.fsync_dir(ROOT);
    app.acknowledge(t);
}

fn roll_back(seen: &Seen) -> Option<Vec<u8>> {
    let mut database = seen.content(&[b"db"])?.to_vec();
    if let Some(journal) = seen.content(&[b"db-journal"])
        && journal.starts_with(MAGIC)
    {
        let count = journal[8..RECORDS].iter().rfold(0usize, |v, b| v << 8 | usize::from(*b));
        for record in journal[RECORDS..].chunks_exact(8 + DB_PAGE).take(count) {
            let (number, rest) = record.split_at(4);
            let (old, sum) = rest.split_at(DB_PAGE);
            let number = u32::from_le_bytes(number.try_into().ok()?);
            if checksum(number, old).to_le_bytes() == sum {
                database[number as usize * DB_PAGE..][..DB_PAGE].copy_from_slice(old);
            }
        }
    }
    Some(database)
}

#[test]
fn sqlite_like_rollback_journal() {
    let verdict = |seen: &Seen, t: Transactions| match roll_back(seen) {
        Some(database) => must_be_a_state(&database, t),
        None if t.acknowledged == 0 => Ok(()),
        None => Err("the database is gone".into()),
    };
    // Nothing is promised of a database that is being made.
    let verdict = |seen: &Seen, t: Transactions| if t.begun == 0 { Ok(()) } else { verdict(seen, t) };
    explore_judged("sqlite_like_rollback_journal", Some(&verdict), |app| {
        let db = new_database(app);
        for t in 1..4 {
            with_rollback_journal(app, db, t);
            if t == 2 {
                app.commit();
            }
        }
    });
}

const FRAME: usize = 16 + DB_PAGE;
const WAL_HEADER: usize = 32;

/// Frames of one transaction: page number, commit flag, salt, running checksum, page.
fn frames(t: u64, salt: u32, mut sum: u32) -> (Vec<u8>, u32) {
    let pages = written_by(t);
    let mut bytes = Vec::new();
    for (i, n) in pages.iter().enumerate() {
        let content = page(*n, t);
        let commits = u32::from(i + 1 == pages.len());
        let head = [*n as u32, commits, salt].map(u32::to_le_bytes).concat();
        sum = checksum(checksum(sum, &head), &content);
        bytes.extend([&head[..], &sum.to_le_bytes(), &content].concat());
    }
    (bytes, sum)
}

/// What SQLite's recovery does: every frame up to the first that does not belong, committed transactions only.
fn replay_wal(seen: &Seen) -> Option<Vec<u8>> {
    let mut database = seen.content(&[b"db"])?.to_vec();
    let Some(wal) = seen.content(&[b"db-wal"]).filter(|wal| wal.len() >= WAL_HEADER && wal.starts_with(b"wal\n"))
    else {
        return Some(database);
    };
    let salt = &wal[4..8];
    let (mut sum, mut pending) = (u32::from_le_bytes(salt.try_into().ok()?), Vec::new());
    for frame in wal[WAL_HEADER..].chunks_exact(FRAME) {
        let (head, content) = (&frame[..12], &frame[16..]);
        sum = checksum(checksum(sum, head), content);
        if &head[8..] != salt || frame[12..16] != sum.to_le_bytes() {
            break;
        }
        pending.push((u32::from(head[0]) as usize, content));
        if head[4] == 1 {
            for (number, content) in pending.drain(..) {
                database[number * DB_PAGE..][..DB_PAGE].copy_from_slice(content);
            }
        }
    }
    Some(database)
}

fn start_wal(app: &mut App, wal: Ino, salt: u32) {
    let mut header = [0; WAL_HEADER];
    header[..4].copy_from_slice(b"wal\n");
    header[4..8].copy_from_slice(&salt.to_le_bytes());
    app.write(wal, 0, &header);
}

fn judge_wal(seen: &Seen, t: Transactions) -> Result<(), String> {
    match replay_wal(seen) {
        _ if t.begun == 0 => Ok(()),
        Some(database) => must_be_a_state(&database, t),
        None => Err("the database is gone".into()),
    }
}

#[test]
fn sqlite_like_write_ahead_log() {
    explore_judged("sqlite_like_write_ahead_log", Some(&judge_wal), |app| {
        let db = new_database(app);
        let wal = app.create(ROOT, b"db-wal");
        let (mut salt, mut sum, mut at) = (77, 77, WAL_HEADER);
        start_wal(app, wal, salt);
        app.fsync(wal);
        app.fsync_dir(ROOT);
        for t in 1..7 {
            app.begin(t);
            let (bytes, next) = frames(t, salt, sum);
            for frame in bytes.chunks(FRAME) {
                app.write(wal, at, frame);
                at += FRAME;
            }
            sum = next;
            app.fdatasync(wal);
            app.acknowledge(t);
            if t == 3 {
                // A checkpoint: pages to the database, then the log begins anew in the same file.
                app.write(db, 0, &state_after(t));
                app.fdatasync(db);
                (salt, sum, at) = (78, 78, WAL_HEADER);
                start_wal(app, wal, salt);
                app.fdatasync(wal);
            }
            if t == 4 {
                app.commit();
            }
        }
    });
}

/// The log comes into being just before the power goes, unsynced: the database opens in its last state all the same, and no
/// byte of the log is an error.
#[test]
fn a_wal_created_just_before_the_cut() {
    explore_judged("a_wal_created_just_before_the_cut", Some(&judge_wal), |app| {
        let db = new_database(app);
        app.close(db);
        app.remount();
        app.open(db);
        let wal = app.create(ROOT, b"db-wal");
        start_wal(app, wal, 5);
        app.begin(1);
        let (bytes, _) = frames(1, 5, 5);
        for (i, part) in bytes.chunks(1000).enumerate() {
            app.write(wal, WAL_HEADER + i * 1000, part);
        }
    });
}

/// Write to a new file, fsync it, rename it over the old one, fsync the directory: there is always one whole version.
#[test]
fn atomic_replace() {
    let version = |v: u64| Rng::new(v).bytes(3000 * v as usize + 1);
    let verdict = |seen: &Seen, t: Transactions| match seen.content(&[b"config"]) {
        Some(content) if (t.acknowledged.max(1)..=t.begun).any(|v| content == version(v)) => Ok(()),
        None if t.acknowledged == 0 => Ok(()),
        found => Err(format!("{:?} bytes are no whole version of {t:?}", found.map(<[u8]>::len))),
    };
    explore_judged("atomic_replace", Some(&verdict), |app| {
        for v in 1..5 {
            app.begin(v);
            let new = app.create(ROOT, b"config.new");
            app.write(new, 0, &version(v));
            app.fsync(new);
            app.close(new);
            app.rename((ROOT, b"config.new"), (ROOT, b"config"));
            app.fsync_dir(ROOT);
            app.acknowledge(v);
            if v == 2 {
                app.commit();
            }
        }
    });
}
