//! What `check` says of a crash image: nothing but leftovers, where no page was torn, and then exactly what is torn. A repair leaves
//! nothing to be told, deletes nothing and changes nothing that a mount shows. Knows nothing of what should be there.

use std::sync::Mutex;

use envelopefs::check::{Mended, Problem, Repair, Settings, Severity, Sink, run};
use envelopefs::fs::{Ino, ROOT};
use envelopefs::store::memory::MemoryStore;

use crate::examine::{Seen, difference, examine_disk};
use crate::oracle::TornBlocks;
use crate::volume::subject;

/// Leftovers of a crash (doc/CHECK.md).
const LEFTOVERS: [&str; 5] = ["temporary", "companion-orphan", "overflow-orphan", "never-synced", "size-not-settled"];

#[derive(Default)]
struct Heard(Mutex<Vec<Problem>>);

impl Sink for Heard {
    fn problem(&self, problem: &Problem) {
        self.0.lock().expect("nobody panics here").push(problem.clone());
    }
    fn progress(&self, _: &dyn Fn() -> Vec<u8>, _: u64) {}
}

fn check(disk: &MemoryStore, header_pages: u32, repair: Repair) -> Vec<Problem> {
    let heard = Heard::default();
    run(subject(disk, header_pages), Settings { quick: false, jobs: 0, repair }, &heard);
    heard.0.into_inner().expect("nobody panics here")
}

fn ino_of(seen: &Seen, path: &[u8]) -> Option<Ino> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.into_iter().try_fold(ROOT, |dir, name| seen.names.get(&(dir, name.to_vec())).map(|(ino, _)| *ino))
}

fn told(problems: &[Problem]) -> String {
    let line = |p: &Problem| {
        let path =
            String::from_utf8_lossy(p.path.as_deref().unwrap_or(&p.backing)).chars().take(40).collect::<String>();
        format!("  {} {path} {:?} {} {:?}\n", p.code.word, p.blocks, p.detail, p.mended)
    };
    problems.iter().map(line).collect()
}

/// Whether `check` and the mount agree on an image.
pub fn agrees(disk: &MemoryStore, header_pages: u32, seen: &Seen, torn: &TornBlocks) -> Result<(), String> {
    let problems = check(disk, header_pages, Repair::No);
    let wrong = |what: &str| Err(format!("check: {what}:\n{}", told(&problems)));
    for problem in &problems {
        let word = problem.code.word;
        // A header of one page is replaced whole; a longer one is written beside the old one.
        if LEFTOVERS.contains(&word) || (word == "header-slot" && header_pages > 1) {
            continue;
        }
        let ino = problem.path.as_ref().and_then(|path| ino_of(seen, path));
        let is_torn = ino.is_some_and(|ino| match problem.blocks {
            Some((first, last)) => (first..=last).all(|block| torn.blocks.contains(&(ino, block))),
            None => torn.headers.contains(&ino),
        });
        if !is_torn || problem.code.severity != Severity::Damage {
            return wrong(&format!("{word}, which no crash leaves"));
        }
    }
    let covers = |ino: Ino, block: Option<u64>| {
        problems.iter().any(|problem| {
            let same = problem.path.as_ref().and_then(|path| ino_of(seen, path)) == Some(ino);
            let there = match (problem.blocks, block) {
                (Some((first, last)), Some(block)) => (first..=last).contains(&block),
                (blocks, block) => blocks.is_none() && block.is_none(),
            };
            same && there && problem.code.severity == Severity::Damage
        })
    };
    for (ino, file) in &seen.files {
        if file.open.is_err() && !covers(*ino, None) && first_name(seen, *ino) {
            return wrong(&format!("file {ino} does not open"));
        }
        if let Some(block) = file.bad.keys().find(|block| !covers(*ino, Some(**block))) {
            return wrong(&format!("block {block} of file {ino} does not read"));
        }
    }
    Ok(())
}

/// Whether a file has one name only: of several, `check` tells one.
fn first_name(seen: &Seen, ino: Ino) -> bool {
    seen.names.values().filter(|(of, _)| *of == ino).count() == 1
}

/// Repairs an image in which nothing is torn.
pub fn repaired(disk: &MemoryStore, header_pages: u32, seen: &Seen) -> Result<(), String> {
    let disk = disk.snapshot();
    let found = check(&disk, header_pages, Repair::Do);
    if let Some(problem) = found.iter().find(|p| matches!(p.mended, Mended::Failed(_))) {
        return Err(format!("check: a repair failed: {:?}", problem.mended));
    }
    let left = check(&disk, header_pages, Repair::DryRun);
    // What was never synced, and has blocks, stays: it reads as empty.
    if left.iter().any(|problem| problem.code.word != "never-synced" || problem.mended != Mended::No) {
        return Err(format!("check: left after a repair:\n{}repaired before:\n{}", told(&left), told(&found)));
    }
    let now = examine_disk(&disk, header_pages)?;
    if now == *seen { Ok(()) } else { Err(format!("check: a repair changed what is seen: {}", difference(seen, &now))) }
}
