//! Names: directories made, removed, replaced, long names with their companions, links, files without names.

use envelopefs::fs::ROOT;

use crate::app::{Transactions, explore, explore_judged};
use crate::examine::Seen;

const LONG: [u8; 255] = [b'l'; 255];
const OTHER: [u8; 200] = [b'o'; 200];

/// A directory that was synced through its parent is there and whole; files in it come and go with theirs.
#[test]
fn mkdir_and_fsync_of_the_parent() {
    let verdict = |seen: &Seen, t: Transactions| match seen.at(&[b"dir"]) {
        None if t.acknowledged >= 1 => Err("a synced directory is gone".to_owned()),
        _ if t.acknowledged >= 2 && seen.at(&[b"dir", b"inner", b"file"]).is_none() => Err("its file is gone".into()),
        _ => Ok(()),
    };
    explore_judged("mkdir_and_fsync_of_the_parent", Some(&verdict), |app| {
        let dir = app.mkdir(ROOT, b"dir");
        app.fsync_dir(ROOT);
        app.acknowledge(1);
        let inner = app.mkdir(dir, b"inner");
        let file = app.create(inner, b"file");
        app.append(file, 5000);
        app.fsync(file);
        app.fsync_dir(inner);
        app.fsync_dir(dir);
        app.acknowledge(2);
        app.mkdir(inner, b"never synced");
        app.create(inner, &LONG);
    });
}

#[test]
fn rmdir() {
    explore("rmdir", |app| {
        for name in [&b"a"[..], &LONG, b"c"] {
            let dir = app.mkdir(ROOT, name);
            app.create(dir, b"file");
            app.unlink(dir, b"file");
        }
        app.fsync_dir(ROOT);
        app.rmdir(ROOT, b"a");
        app.rmdir(ROOT, &LONG);
        app.fsync_dir(ROOT);
        app.rmdir(ROOT, b"c");
        app.mkdir(ROOT, b"c");
    });
}

#[test]
fn rename_over_an_empty_directory() {
    explore("rename_over_an_empty_directory", |app| {
        let (full, empty) = (app.mkdir(ROOT, b"full"), app.mkdir(ROOT, b"empty"));
        let deep = app.mkdir(full, b"deep");
        let file = app.create(deep, b"file");
        app.append(file, 100);
        app.fsync(file);
        app.rename((ROOT, b"full"), (ROOT, b"empty"));
        app.fsync_dir(ROOT);
        app.mkdir(ROOT, &LONG);
        app.rename((ROOT, b"empty"), (ROOT, &LONG));
        let side = app.mkdir(ROOT, b"side");
        app.mkdir(side, &OTHER);
        app.rename((ROOT, &LONG), (side, &OTHER));
        app.fsync_dir(side);
        assert_eq!(app.oracle.find(side, &OTHER).map(|(ino, _)| ino), Some(full));
        assert_ne!(empty, full);
    });
}

#[test]
fn long_names_and_their_companions() {
    explore("long_names_and_their_companions", |app| {
        let file = app.create(ROOT, &LONG);
        app.append(file, 10);
        app.fsync(file);
        app.link(file, ROOT, &OTHER);
        app.fsync_dir(ROOT);
        app.rename((ROOT, &LONG), (ROOT, b"short"));
        let other = app.create(ROOT, &LONG);
        app.append(other, 20);
        app.rename((ROOT, &LONG), (ROOT, &OTHER));
        app.rename((ROOT, b"short"), (ROOT, &LONG));
        app.exchange((ROOT, &LONG), (ROOT, &OTHER));
        app.fsync_dir(ROOT);
        app.unlink(ROOT, &LONG);
        app.symlink(ROOT, &LONG, &[b't'; 2000]);
        app.unlink(ROOT, &OTHER);
    });
}

#[test]
fn moves_between_directories() {
    explore("moves_between_directories", |app| {
        let (a, b) = (app.mkdir(ROOT, b"a"), app.mkdir(ROOT, b"b"));
        let file = app.create(a, b"file");
        app.append(file, 6000);
        app.fsync(file);
        app.rename((a, b"file"), (b, b"file"));
        app.fsync_dir(b);
        let sub = app.mkdir(a, b"sub");
        app.create(sub, b"x");
        app.rename((a, b"sub"), (b, b"sub"));
        app.exchange((ROOT, b"a"), (b, b"file"));
        app.append(file, 10);
        app.fsync_dir(ROOT);
        app.rename((b, b"sub"), (ROOT, b"top"));
    });
}

#[test]
fn symbolic_links_of_every_length() {
    explore("symbolic_links_of_every_length", |app| {
        for (i, len) in [1, 700, 736, 4095].into_iter().enumerate() {
            let name = [b's', b'0' + i as u8];
            app.symlink(ROOT, &name, &vec![b't'; len]);
            if i == 2 {
                app.fsync_dir(ROOT);
            }
        }
        app.unlink(ROOT, b"s2");
        app.rename((ROOT, b"s0"), (ROOT, b"s3"));
    });
}

#[test]
fn hard_links() {
    explore("hard_links", |app| {
        let dir = app.mkdir(ROOT, b"dir");
        let file = app.create(ROOT, b"first");
        app.append(file, 5000);
        app.link(file, dir, b"second");
        app.fsync(file);
        app.fsync_dir(dir);
        app.scribble(file, 4000, 100);
        app.unlink(ROOT, b"first");
        app.fdatasync(file);
        app.link(file, ROOT, &LONG);
        app.append(file, 10);
        app.commit();
        app.unlink(dir, b"second");
    });
}

/// Unlinked files that somebody has open work on, and are gone after a crash; nobody else is touched.
#[test]
fn orphaned_files() {
    explore("orphaned_files", |app| {
        let (kept, orphan) = (app.create(ROOT, b"kept"), app.create(ROOT, b"orphan"));
        app.append(kept, 100);
        app.append(orphan, 5000);
        app.fsync(orphan);
        app.unlink(ROOT, b"orphan");
        app.append(orphan, 5000);
        app.fdatasync(orphan);
        app.truncate(orphan, 7);
        app.set_xattr(orphan, b"user.a", b"b");
        app.fsync(kept);
        app.commit();
        app.create(ROOT, b"orphan");
        app.close(orphan);
        app.append(kept, 100);
    });
}

#[test]
fn extended_attributes() {
    explore("extended_attributes", |app| {
        let (dir, file) = (app.mkdir(ROOT, b"dir"), app.create(ROOT, b"file"));
        app.set_xattr(file, b"user.first", b"makes a header");
        app.set_xattr(dir, b"user.d", b"1");
        app.fsync(file);
        app.append(file, 100);
        app.set_xattr(file, b"user.first", &[b'x'; 1000]);
        app.set_xattr(file, &[&b"user."[..], &[b'n'; 250]].concat(), b"long name");
        app.fsync_dir(dir);
        app.fsync(file);
        app.truncate(file, 0);
        app.remove_xattr(file, b"user.first");
        app.append(file, 50);
        app.commit();
        app.remove_xattr(dir, b"user.d");
        let other = app.create(ROOT, b"other");
        app.append(other, 10);
        app.set_xattr(other, b"user.never", b"synced");
        app.set_xattr(other, b"security.plain", b"passed through");
    });
}
