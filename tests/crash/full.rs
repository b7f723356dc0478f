//! A store that runs full or fails in the middle of anything: the caller is told by fsync or close at the latest, what was there
//! stays, nothing half made survives a power cut as an error, and the same call works once there is space again.

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::{Ino, ROOT, Result, SetAttr};
use envelopefs::store::RenameMode;
use envelopefs::store::memory::Operation;

use crate::disk::{History, Rng};
use crate::examine::{Seen, examine, examine_disk};
use crate::volume::{BY, Engine, WRITE, format, mount};

/// What an application does, again from its start where it failed before.
struct Scene {
    name: &'static str,
    before: fn(&Engine) -> Result<()>,
    /// Everything up to the sync after which the application believes that it is done.
    act: fn(&Engine) -> Result<()>,
    /// Whether `act` ends with a sync, so that its success is durable.
    syncs: bool,
    /// Whether all of it is there; an error where something is neither before nor after.
    shows: fn(&Seen) -> std::result::Result<bool, String>,
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    Rng::new(seed).bytes(len)
}

fn old() -> Vec<u8> {
    bytes(1, 2 * PLAIN + 500)
}

fn nothing(_: &Engine) -> Result<()> {
    Ok(())
}

fn find_or_create(fs: &Engine, name: &[u8]) -> Result<Ino> {
    match fs.lookup(ROOT, name) {
        Ok(attr) => fs.open(attr.ino, WRITE).map(|()| attr.ino),
        Err(e) if e.errno() == libc::ENOENT => fs.create(&BY, ROOT, name, 0o644).map(|attr| attr.ino),
        Err(e) => Err(e),
    }
}

/// Opens, changes, syncs and closes a file; closes it whatever happens.
fn on_file(fs: &Engine, name: &[u8], change: impl FnOnce(Ino) -> Result<()>) -> Result<()> {
    let ino = find_or_create(fs, name)?;
    let done = change(ino).and_then(|()| fs.fsync(ino, false));
    fs.release(ino);
    done
}

fn old_file(fs: &Engine) -> Result<()> {
    on_file(fs, b"file", |ino| fs.write(ino, 0, &old()))
}

fn overwritten() -> Vec<u8> {
    let mut content = old();
    content[100..PLAIN + 200].copy_from_slice(&bytes(2, PLAIN + 100));
    content
}

fn extended() -> Vec<u8> {
    [old(), bytes(3, 3 * PLAIN)].concat()
}

/// Content that is new, old, or in each block one of them; absent only where it was before.
fn file(seen: &Seen, name: &[u8], before: Option<&[u8]>, after: &[u8]) -> std::result::Result<bool, String> {
    let Some(ino) = seen.at(&[name]) else {
        return if before.is_none() { Ok(false) } else { Err("the file is gone".into()) };
    };
    let found = &seen.files[&ino];
    if found.open.is_err() || !found.bad.is_empty() {
        return Err(format!("the file cannot be read: {:?}, {:?}", found.open, found.bad));
    }
    let before = before.unwrap_or(&[]);
    let legal = [before.len(), after.len()];
    let partial = found.size.is_multiple_of(PLAIN) && (before.len()..=after.len()).contains(&found.size);
    if !legal.contains(&found.size) && !partial {
        return Err(format!("size {}, neither {legal:?} nor between", found.size));
    }
    for (i, block) in found.content.chunks(PLAIN).enumerate() {
        let shown = |of: &[u8]| {
            let mut part = of.iter().copied().skip(i * PLAIN).take(block.len()).collect::<Vec<u8>>();
            part.resize(block.len(), 0);
            part == block
        };
        // What the file did not have before may be missing.
        let absent = i * PLAIN >= before.len() && block.iter().all(|b| *b == 0);
        if !shown(before) && !shown(after) && !absent {
            return Err(format!("block {i} is neither old nor new"));
        }
    }
    Ok(found.content == after)
}

fn whole(seen: &Seen, name: &[u8], before: Option<&[u8]>, after: &[u8]) -> std::result::Result<bool, String> {
    match seen.content(&[name]) {
        found if found == before => Ok(false),
        Some(found) if found == after => Ok(true),
        found => Err(format!("neither the old nor the new file: {:?} bytes", found.map(<[u8]>::len))),
    }
}

const LONG: [u8; 255] = [b'l'; 255];

fn scenes() -> Vec<Scene> {
    vec![
        Scene {
            name: "create",
            before: nothing,
            syncs: true,
            act: |fs| {
                on_file(fs, &LONG, |ino| fs.write(ino, 0, &old()))?;
                fs.fsyncdir(ROOT)
            },
            shows: |seen| file(seen, &LONG, None, &old()),
        },
        Scene {
            name: "overwrite",
            before: old_file,
            syncs: true,
            act: |fs| on_file(fs, b"file", |ino| fs.write(ino, 100, &overwritten()[100..PLAIN + 200])),
            shows: |seen| file(seen, b"file", Some(&old()), &overwritten()),
        },
        Scene {
            name: "extend",
            before: old_file,
            syncs: true,
            act: |fs| on_file(fs, b"file", |ino| fs.write(ino, old().len() as u64, &extended()[old().len()..])),
            shows: |seen| file(seen, b"file", Some(&old()), &extended()),
        },
        Scene {
            name: "extend by truncate",
            before: old_file,
            syncs: true,
            act: |fs| {
                on_file(fs, b"file", |ino| {
                    let size = Some(4 * PLAIN as u64 + 9);
                    fs.setattr(ino, &SetAttr { size, ..SetAttr::default() }).map(drop)
                })
            },
            shows: |seen| {
                let mut content = old();
                content.resize(4 * PLAIN + 9, 0);
                file(seen, b"file", Some(&old()), &content)
            },
        },
        Scene {
            name: "shrink",
            before: old_file,
            syncs: true,
            act: |fs| {
                on_file(fs, b"file", |ino| {
                    fs.setattr(ino, &SetAttr { size: Some(700), ..SetAttr::default() }).map(drop)
                })
            },
            shows: |seen| file(seen, b"file", Some(&old()), &old()[..700]),
        },
        Scene {
            name: "shrink below the floor",
            before: |fs| {
                old_file(fs)?;
                fs.commit()
            },
            syncs: false,
            act: |fs| {
                let ino = find_or_create(fs, b"file")?;
                let done = fs.setattr(ino, &SetAttr { size: Some(700), ..SetAttr::default() });
                fs.release(ino);
                done.map(drop)
            },
            // Nothing is synced by the application: what a power cut leaves opens, whichever size it has.
            shows: |seen| file(seen, b"file", Some(&old()), &old()[..700]),
        },
        Scene {
            name: "reserve",
            before: old_file,
            syncs: true,
            act: |fs| on_file(fs, b"file", |ino| fs.fallocate(ino, 0, 0, 5 * PLAIN as u64)),
            shows: |seen| {
                let mut content = old();
                content.resize(5 * PLAIN, 0);
                file(seen, b"file", Some(&old()), &content)
            },
        },
        Scene {
            name: "punch",
            before: |fs| {
                old_file(fs)?;
                fs.commit()
            },
            syncs: true,
            act: |fs| {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                on_file(fs, b"file", |ino| fs.fallocate(ino, mode, 10, 2 * PLAIN as u64))
            },
            shows: |seen| {
                let mut content = old();
                content[10..10 + 2 * PLAIN].fill(0);
                file(seen, b"file", Some(&old()), &content)
            },
        },
        Scene {
            name: "replace by rename",
            before: old_file,
            syncs: true,
            act: |fs| {
                if fs.lookup(ROOT, b"new").is_ok() || !is_replaced(fs) {
                    on_file(fs, b"new", |ino| fs.write(ino, 0, &extended()))?;
                    fs.rename((ROOT, b"new"), (ROOT, b"file"), RenameMode::Replace)?;
                }
                fs.fsyncdir(ROOT)
            },
            shows: |seen| whole(seen, b"file", Some(&old()), &extended()),
        },
        Scene {
            name: "header update and commit",
            before: old_file,
            syncs: true,
            act: |fs| {
                on_file(fs, b"file", |ino| fs.write(ino, old().len() as u64, &extended()[old().len()..]))?;
                fs.commit()
            },
            shows: |seen| file(seen, b"file", Some(&old()), &extended()),
        },
        Scene {
            name: "commit of a closed file",
            before: old_file,
            syncs: true,
            act: |fs| {
                let ino = find_or_create(fs, b"file")?;
                let written = fs.write(ino, 100, &overwritten()[100..PLAIN + 200]);
                fs.release(ino);
                written?;
                fs.commit()
            },
            shows: |seen| file(seen, b"file", Some(&old()), &overwritten()),
        },
        Scene {
            name: "shrink below the floor and write again",
            before: |fs| {
                old_file(fs)?;
                fs.commit()
            },
            syncs: true,
            act: |fs| {
                on_file(fs, b"file", |ino| {
                    fs.setattr(ino, &SetAttr { size: Some(0), ..SetAttr::default() })?;
                    fs.write(ino, 0, b"short")
                })
            },
            // Emptying it was asked for.
            shows: |seen| match seen.content(&[b"file"]) {
                Some(found) if found == old() || found.is_empty() || found == [0; 5] => Ok(false),
                Some(found) => whole(seen, b"file", Some(found), b"short").map(|_| found == b"short"),
                None => Err("the file is gone".into()),
            },
        },
        Scene {
            name: "attribute",
            before: old_file,
            syncs: true,
            act: |fs| {
                on_file(fs, b"file", |ino| fs.setxattr(&BY, ino, b"user.k", &[7; 900], 0))?;
                on_file(fs, b"empty", |ino| fs.setxattr(&BY, ino, b"user.k", b"needs a header", 0))
            },
            shows: |seen| {
                whole(seen, b"file", Some(&old()), &old())?;
                let value = |name: &[u8]| {
                    let ino = seen.at(&[name])?;
                    seen.attributes[&ino].clone().ok()?.get(&b"user.k"[..]).cloned()
                };
                match (value(b"file"), value(b"empty")) {
                    (Some(a), Some(b)) if a == [7; 900] && b == b"needs a header" => Ok(true),
                    (None, None) => Ok(false),
                    (Some(a), None) if a == [7; 900] => Ok(false),
                    other => Err(format!("attributes {other:?}")),
                }
            },
        },
        Scene {
            name: "long symlink",
            before: nothing,
            syncs: true,
            act: |fs| {
                if fs.lookup(ROOT, b"link").is_err() {
                    fs.symlink(&BY, ROOT, b"link", &[b't'; 3000])?;
                }
                fs.fsyncdir(ROOT)
            },
            shows: |seen| match seen.at(&[b"link"]).map(|ino| seen.targets[&ino].clone()) {
                None => Ok(false),
                Some(Ok(target)) if target == [b't'; 3000] => Ok(true),
                Some(other) => Err(format!("target {other:?}")),
            },
        },
        Scene {
            name: "mkdir and a file in it",
            before: nothing,
            syncs: true,
            act: |fs| {
                let dir = match fs.lookup(ROOT, &LONG) {
                    Ok(attr) => attr.ino,
                    Err(_) => fs.mkdir(&BY, ROOT, &LONG, 0o755)?.ino,
                };
                fs.fsyncdir(ROOT)?;
                if fs.lookup(dir, b"inner").is_err() {
                    let ino = fs.create(&BY, dir, b"inner", 0o644)?.ino;
                    fs.release(ino);
                }
                fs.fsyncdir(dir)
            },
            shows: |seen| Ok(seen.at(&[&LONG, b"inner"]).is_some()),
        },
    ]
}

/// Whether "file" is the new one already.
fn is_replaced(fs: &Engine) -> bool {
    fs.lookup(ROOT, b"file").is_ok_and(|attr| attr.stat.size == extended().len() as u64)
}

/// How the store fails.
#[derive(Debug, Clone, Copy)]
enum Failure {
    /// The operation of this number, once.
    Once(u64, i32),
    /// From the operation of this number on, until somebody makes room.
    Lasting(u64, i32),
    /// Every write beyond this many bytes.
    Budget(u64),
}

impl Failure {
    fn next(self) -> Self {
        match self {
            Self::Once(n, errno) => Self::Once(n + 1, errno),
            Self::Lasting(n, errno) => Self::Lasting(n + 1, errno),
            Self::Budget(bytes) => Self::Budget(bytes + 3000),
        }
    }
    fn errno(self) -> i32 {
        match self {
            Self::Once(_, errno) | Self::Lasting(_, errno) => errno,
            Self::Budget(_) => libc::ENOSPC,
        }
    }
}

/// Both ends of what a power cut may leave, and everything in between that is drawn.
fn after_a_power_cut(
    scene: &Scene,
    history: &History,
    header_pages: u32,
    done: bool,
) -> std::result::Result<(), String> {
    let crash = history.ops.len();
    for cut in history.cuts(crash, 4, &mut Rng::new(crash as u64)) {
        let seen = examine_disk(&history.image(&cut), header_pages)?;
        let after = (scene.shows)(&seen).map_err(|e| format!("{e} after a power cut\n{}", history.describe(&cut)))?;
        if done && scene.syncs && !after {
            return Err(format!("reported as done and lost by a power cut\n{}", history.describe(&cut)));
        }
    }
    Ok(())
}

/// Returns whether the failure came to pass.
fn play(scene: &Scene, failure: Failure, header_pages: u32) -> std::result::Result<bool, String> {
    let disk = format();
    let fs = mount(&disk, header_pages).map_err(|e| e.to_string())?;
    (scene.before)(&fs).map_err(|e| format!("preparation: {e}"))?;
    let base = disk.snapshot();
    disk.start_recording();
    let already = disk.operations();
    match failure {
        Failure::Once(n, errno) => disk.fail_after(n, errno),
        Failure::Lasting(n, errno) => disk.fail_from(n, errno),
        Failure::Budget(bytes) => disk.write_budget(bytes),
    }
    let result = (scene.act)(&fs);
    let came_to_pass = match failure {
        Failure::Once(n, _) | Failure::Lasting(n, _) => disk.operations() - already >= n,
        Failure::Budget(_) => result.is_err(),
    };
    disk.heal();
    let ops: Vec<Operation> = disk.take_recording();
    disk.start_recording();
    if let Err(e) = &result
        && e.errno() != failure.errno()
    {
        return Err(format!("the wrong error: {e}"));
    }
    let after = (scene.shows)(&examine(&fs)?)?;
    if result.is_ok() && !after {
        return Err("reported as done and not there".into());
    }
    after_a_power_cut(scene, &History::new(base.snapshot(), ops.clone()), header_pages, result.is_ok())?;
    // There is space again.
    let again = match (scene.act)(&fs) {
        // A commit that failed in the background is told to the next fsync, once.
        Err(e) if result.is_err() && e.errno() == failure.errno() && scene.name.contains("commit") => (scene.act)(&fs),
        again => again,
    };
    again.map_err(|e| format!("not repeatable: {e}"))?;
    if !(scene.shows)(&examine(&fs)?)? {
        return Err("repeated, reported as done and not there".into());
    }
    let all = [ops, disk.take_recording()].concat();
    after_a_power_cut(scene, &History::new(base, all), header_pages, true).map_err(|e| format!("repeated: {e}"))?;
    fs.commit().map_err(|e| format!("last commit: {e}"))?;
    drop(fs);
    match (scene.shows)(&examine_disk(&disk, header_pages)?) {
        Ok(true) => Ok(came_to_pass),
        other => Err(format!("the next mount finds {other:?}")),
    }
}

fn play_all(first: impl Fn() -> Failure) {
    for header_pages in [1, 2] {
        for scene in scenes() {
            let mut failure = first();
            let mut count = 0;
            loop {
                match play(&scene, failure, header_pages) {
                    Ok(true) => count += 1,
                    Ok(false) => break,
                    Err(e) => panic!("{}, {failure:?}, {header_pages} header pages: {e}", scene.name),
                }
                failure = failure.next();
                assert!(count < 100, "{}, {failure:?}: never succeeds", scene.name);
            }
            // Extending by truncation and the like write nothing that a budget counts.
            assert!(count > 0 || matches!(failure, Failure::Budget(_)), "{}: nothing failed", scene.name);
        }
    }
}

#[test]
fn enospc_at_every_operation() {
    play_all(|| Failure::Once(1, libc::ENOSPC));
    play_all(|| Failure::Lasting(1, libc::ENOSPC));
}

#[test]
fn edquot_at_every_operation() {
    play_all(|| Failure::Once(1, libc::EDQUOT));
    play_all(|| Failure::Lasting(1, libc::EDQUOT));
}

#[test]
fn eio_at_every_operation() {
    play_all(|| Failure::Once(1, libc::EIO));
    play_all(|| Failure::Lasting(1, libc::EIO));
}

#[test]
fn a_disk_that_runs_full_in_the_middle_of_a_write() {
    play_all(|| Failure::Budget(0));
}
