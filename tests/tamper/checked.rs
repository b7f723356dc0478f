//! `check` against the mount, on tampered trees: what it calls damaged cannot be read, what cannot be read it reports, and a
//! repair takes nothing away that could be read. Knows what a mount shows; must not know what was done to the tree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use envelopefs::check::{self, Counts, Keys, Mended, Problem, Repair, Settings, Severity, Sink, Subject};
use envelopefs::format::geometry::PLAIN;
use envelopefs::format::header::CmkSlot;
use envelopefs::format::volume::{DirectoryCmk, VolumeConfig};
use envelopefs::fs::{Fs, FsError, Ino, ROOT};
use envelopefs::store::memory::MemoryStore;
use envelopefs::store::{Kind, Store};

use crate::common::Random;
use crate::library::{Ground, LibraryView, Outcome, in_rounds};
use crate::oracle::{Errno, View};
use crate::world::Host;

/// Blocks of a file that are looked at, from the front; those of the model have fewer.
const BLOCKS_MAX: u64 = 64;
const P: u64 = PLAIN as u64;

#[derive(Default)]
struct Heard(Mutex<Vec<Problem>>);

impl Sink for Heard {
    fn problem(&self, problem: &Problem) {
        self.0.lock().unwrap().push(problem.clone());
    }
    fn progress(&self, at: &dyn Fn() -> Vec<u8>, _: u64) {
        drop(at());
    }
}

fn config(host: &Host) -> VolumeConfig {
    let slot = |cmk: &std::sync::Arc<dyn envelopefs::keys::CmkProvider>| CmkSlot {
        provider: cmk.key_ref().provider.clone(),
        key_ref: cmk.key_ref().key.clone(),
        blob: Vec::new(),
        commitment: [0; 32],
    };
    VolumeConfig {
        volume_id: host.volume_id,
        created: 0,
        plaintext_names: false,
        header_pages: host.geometry.header_pages,
        key_mode: host.policy.mode,
        branch_max_age: host.policy.branch_max_age,
        branch_max_files: host.policy.branch_max_files,
        cmks: Vec::new(),
        volume_key: host.own.iter().map(slot).collect(),
        branch: None,
        directory_cmks: host
            .further
            .iter()
            .map(|cmk| DirectoryCmk { key: cmk.key_ref().clone(), uri: String::new() })
            .collect(),
        directory_branches: Vec::new(),
    }
}

/// A full check of a CIPHERDIR in memory, as a host with all keys makes it.
fn checked(host: &Host, disk: &MemoryStore, repair: Repair, jobs: usize) -> (Vec<Problem>, Counts) {
    let (files, names) = host.files();
    let keys = Keys { files: std::sync::Arc::new(files), names, volume: (host.keys)() };
    let top = disk.rooted_at(disk.root());
    let subject = Subject { top, config: Some(config(host)), keys: Some(keys), remarks: Vec::new() };
    let heard = Heard::default();
    let counts = check::run(subject, Settings { quick: false, jobs, repair }, &heard);
    let problems = heard.0.into_inner().unwrap();
    assert_eq!(problems.len() as u64, counts.damage + counts.unchecked + counts.leftovers + counts.warnings);
    (problems, counts)
}

/// Without keys: no question but that it ends and does not panic.
fn checked_without_keys(host: &Host, disk: &MemoryStore) {
    for config in [None, Some(config(host))] {
        let top = disk.rooted_at(disk.root());
        let subject = Subject { top, config, keys: None, remarks: Vec::new() };
        let _ = check::run(subject, Settings { quick: false, jobs: 0, repair: Repair::No }, &Heard::default());
    }
}

/// One object as a mount shows it.
struct Shown {
    ino: Ino,
    kind: Kind,
    size: u64,
    /// What it answers to everything one may ask of it, by the question.
    answers: BTreeMap<Question, Result<Vec<u8>, Errno>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    List,
    Open,
    Block(u64),
    Target,
    Attributes,
    Attribute(String),
}

impl Shown {
    fn troubles(&self) -> impl Iterator<Item = &Question> {
        self.answers.iter().filter(|(_, answer)| answer.is_err()).map(|(question, _)| question)
    }
}

type Tree = BTreeMap<Vec<u8>, Shown>;

fn show(fs: &Fs<MemoryStore>) -> Tree {
    let view = LibraryView(fs);
    let mut tree = Tree::new();
    let mut pending: Vec<(Vec<u8>, Ino)> = Vec::new();
    let mut root = Shown { ino: ROOT, kind: Kind::Directory, size: 0, answers: BTreeMap::new() };
    directory(&view, &b"/"[..], &mut root, &mut pending);
    tree.insert(b"/".to_vec(), root);
    while let Some((path, parent)) = pending.pop() {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
        let Ok(seen) = view.lookup(&parent, name) else { continue };
        let mut shown = Shown { ino: seen.ino, kind: seen.kind, size: seen.size, answers: BTreeMap::new() };
        match seen.kind {
            Kind::Directory => directory(&view, &path, &mut shown, &mut pending),
            Kind::File => {
                let blocks = seen.size.div_ceil(P).min(BLOCKS_MAX);
                let pieces: Vec<_> = (0..blocks).map(|n| (n * P, P.min(seen.size - n * P) as usize)).collect();
                match view.read(&seen.node, &pieces) {
                    Err(errno) => drop(shown.answers.insert(Question::Open, Err(errno))),
                    Ok(results) => {
                        shown.answers.insert(Question::Open, Ok(Vec::new()));
                        (0..)
                            .zip(results)
                            .for_each(|(n, result)| drop(shown.answers.insert(Question::Block(n), result)));
                    }
                }
            }
            Kind::Symlink => drop(shown.answers.insert(Question::Target, view.readlink(&seen.node))),
            _ => {}
        }
        match view.xattrs(&seen.node) {
            Err(errno) => drop(shown.answers.insert(Question::Attributes, Err(errno))),
            Ok(names) => {
                for name in names {
                    let value = view.xattr(&seen.node, &name);
                    shown.answers.insert(Question::Attribute(name), value);
                }
            }
        }
        tree.insert(path, shown);
    }
    tree
}

fn directory(view: &LibraryView<'_, MemoryStore>, path: &[u8], shown: &mut Shown, pending: &mut Vec<(Vec<u8>, Ino)>) {
    match view.list(&shown.ino) {
        Err(errno) => drop(shown.answers.insert(Question::List, Err(errno))),
        Ok(names) => {
            let base = if path == b"/" { &b""[..] } else { path };
            // Loops that an attacker made end here.
            if base.iter().filter(|byte| **byte == b'/').count() < 20 {
                pending.extend(names.iter().map(|name| ([base, b"/", name].concat(), shown.ino)));
            }
            shown.answers.insert(Question::List, Ok(Vec::new()));
        }
    }
}

fn text(path: &[u8]) -> String {
    path.escape_ascii().to_string().chars().take(60).collect()
}
fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    if end == 0 { b"/" } else { &path[..end] }
}
fn is_bad(problem: &Problem) -> bool {
    matches!(problem.code.severity, Severity::Damage | Severity::Unchecked)
}

/// What cannot be read is reported, at one of its names.
fn told(tree: &Tree, problems: &[Problem]) -> Result<u64, String> {
    let mut names: HashMap<Ino, Vec<&[u8]>> = HashMap::new();
    tree.iter().for_each(|(path, shown)| names.entry(shown.ino).or_default().push(path));
    let mut count = 0;
    for (path, shown) in tree {
        for question in shown.troubles() {
            count += 1;
            let about = |problem: &&Problem| {
                is_bad(problem) && problem.path.as_deref().is_some_and(|p| names[&shown.ino].contains(&p))
            };
            let fits = |problem: &Problem| match (question, problem.blocks) {
                (Question::Block(n), Some((first, last))) => (first..=last).contains(n),
                (Question::Block(_), None) => false,
                (_, blocks) => blocks.is_none(),
            };
            if !problems.iter().filter(about).any(fits) {
                let errno = shown.answers[question].as_ref().unwrap_err();
                return Err(format!("{}: {question:?} gives errno {errno}, and check says nothing", text(path)));
            }
        }
    }
    Ok(count)
}

/// What is reported as damaged cannot be read. Not looked at: names that a mount hides, and what lies below a directory that a
/// mount cannot list.
fn true_damage(tree: &Tree, problems: &[Problem]) -> Result<(), String> {
    for problem in problems.iter().filter(|problem| is_bad(problem)) {
        let Some(shown) = problem.path.as_deref().and_then(|path| tree.get(path)) else { continue };
        let refused = |question: Question| shown.answers.get(&question).is_some_and(Result::is_err);
        let ok = match (problem.code.word, problem.blocks) {
            (_, Some((first, last))) => {
                refused(Question::Open) || (first..=last.min(BLOCKS_MAX - 1)).all(|n| refused(Question::Block(n)))
            }
            // Under another directory's record a directory lists nothing.
            ("dir-id", None) => {
                let children =
                    || tree.keys().any(|path| path.len() > 1 && parent(path) == problem.path.as_deref().unwrap());
                refused(Question::List) || !children()
            }
            ("symlink-auth" | "overflow-missing", None) => refused(Question::Target),
            // A mount opens it while it has the key from another file of the branch.
            ("wrapped-key", None) => true,
            // A mount leaves out what it cannot open.
            ("xattr-auth" | "xattr-id", None) => true,
            (_, None) => refused(Question::Open),
        };
        if !ok {
            let path = text(problem.path.as_deref().unwrap());
            return Err(format!("{path}: {} {:?} {}, and it reads", problem.code.word, problem.blocks, problem.detail));
        }
    }
    Ok(())
}

/// Whatever could be read before can be read now, and is the same.
fn nothing_lost(before: &Tree, after: &Tree) -> Result<(), String> {
    for (path, was) in before {
        let Some(is) = after.get(path) else {
            let readable = was.answers.iter().any(|(q, a)| a.is_ok() && !matches!(q, Question::Attribute(_)));
            // Of an object of which nothing could be had, but its attributes, nothing is lost.
            if readable {
                return Err(format!("{} is gone", text(path)));
            }
            continue;
        };
        for (question, answer) in was.answers.iter().filter(|(_, answer)| answer.is_ok()) {
            if is.answers.get(question) != Some(answer) {
                let now = is.answers.get(question).map(|now| now.as_ref().map(Vec::len));
                return Err(format!("{}: {question:?} was there, and is {now:?}", text(path)));
            }
        }
        if was.kind == Kind::File && was.answers.get(&Question::Open).is_some_and(Result::is_ok) && was.size != is.size
        {
            return Err(format!("{}: {} bytes became {}", text(path), was.size, is.size));
        }
    }
    Ok(())
}

fn words(problems: &[Problem]) -> Vec<String> {
    let word =
        |p: &Problem| format!("{} {} {:?}", p.code.word, text(p.path.as_deref().unwrap_or(&p.backing)), p.mended);
    problems.iter().map(word).collect()
}

impl Ground {
    /// Tampers by these steps, checks, compares with a mount, repairs, and checks and compares again.
    fn check_round(&self, steps: &[u64], jobs: usize) -> Outcome {
        let disk = self.disk.snapshot();
        self.tamper(&disk, steps);
        let pristine = disk.snapshot();
        let mount = |disk: &MemoryStore| {
            let part = |name| crate::library::part(disk, name);
            self.host.mount(part(b"tree"), part(b"overflow"))
        };
        checked_without_keys(&self.host, &disk);
        let (problems, _) = checked(&self.host, &disk, Repair::No, jobs);
        let say = |e: String, problems: &[Problem]| format!("{e}\n  check: {:#?}", words(problems));
        let at_root = |p: &Problem| p.code.word == "dir-id" && p.path.as_deref() == Some(b"/");
        // On a copy: a mount that meets what crashes left changes nothing by looking, but shall not be relied on for that.
        let before = match mount(&disk.snapshot()) {
            Ok(fs) => show(&fs),
            Err(FsError::Corrupt { code: "dir-id" }) if problems.iter().any(at_root) => Tree::new(),
            Err(e) => return Err(say(format!("not mounted: {e}"), &problems)),
        };
        let refused = told(&before, &problems).map_err(|e| say(e, &problems))?;
        true_damage(&before, &problems).map_err(|e| say(e, &problems))?;
        if !problems.iter().any(is_bad) && refused > 0 {
            return Err("clean, and not all can be read".into());
        }
        let (dry, _) = checked(&self.host, &disk, Repair::DryRun, jobs);
        if jobs == 0 && dry.len() != problems.len() {
            return Err(say("a dry run finds something else".into(), &dry));
        }
        let (repaired, counts) = checked(&self.host, &disk, Repair::Do, 0);
        if counts.not_mended > 0 {
            return Err(say("a repair failed".into(), &repaired));
        }
        let (left, counts) = checked(&self.host, &disk, Repair::Do, 0);
        // A first repair may have taken the only link to an overflow object away.
        let again: Vec<Problem> =
            left.iter().filter(|p| matches!(p.mended, Mended::Done(_)) && !follows(p)).cloned().collect();
        if !again.is_empty() || counts.not_mended > 0 {
            return Err(say(say("a second repair has work left".into(), &again), &repaired));
        }
        let after = match mount(&disk) {
            Ok(fs) => show(&fs),
            Err(_) if before.is_empty() => Tree::new(),
            Err(e) => return Err(say(format!("not mounted after the repair: {e}"), &repaired)),
        };
        nothing_lost(&before, &after).map_err(|e| say(e, &repaired))?;
        told(&after, &left).map_err(|e| say(format!("after the repair: {e}"), &left))?;
        if objects(&pristine) > objects(&disk) {
            return Err(say("objects have been deleted".into(), &repaired));
        }
        let served = before.values().flat_map(|shown| shown.answers.values()).filter(|answer| answer.is_ok()).count();
        Ok((served as u64, refused))
    }
}

/// What only a repair brings to light: objects whose link went to quarantine, and what the names of a directory tell now that its
/// id is known.
fn follows(problem: &Problem) -> bool {
    matches!(problem.code.word, "overflow-orphan" | "dir-id" | "name-auth" | "temporary" | "companion-orphan")
}

/// Names of everything but the quarantine itself and its manifest; records that were written anew come on top.
fn objects(disk: &MemoryStore) -> usize {
    let mut found = BTreeSet::new();
    let mut count = 0;
    let mut pending = vec![disk.root().clone()];
    while let Some(dir) = pending.pop() {
        for entry in disk.list(&dir).unwrap() {
            count += usize::from(&*entry.name != b"manifest.jsonl" && &*entry.name != b"quarantine");
            if entry.kind == Kind::Directory && found.insert(entry.ino) {
                pending.push(disk.pin(&dir, &entry.name).unwrap());
            }
        }
    }
    count
}

const ROUNDS: u64 = 500;

#[test]
fn check_agrees_with_the_mount_and_repairs_lose_nothing() {
    let mut grounds = Ground::all();
    // Without CMKs of directories, so that lost records are written anew.
    grounds.push(Ground::plain());
    in_rounds(ROUNDS, &grounds, |ground, steps, work| {
        ground.check_round(steps, (Random::new(work).next() % 3) as usize)
    });
}
