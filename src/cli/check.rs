//! `envelopefs check`: verifies an encrypted directory without a mount, and prints what is found. Decides nothing about it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::mount::shell_word;
use super::progress::Progress;
use super::source::{self, TrustArgs};
use super::{Failure, exit, printable, say};
use crate::check::{self, Counts, Keys, Mended, Problem, QUARANTINE_DIR, Repair, Settings, Sink, Subject};
use crate::mount::cipher_dir::CipherDir;
use crate::mount::{files_of, serve};
use crate::store::disk::DiskStore;

/// Of the form of `--json`.
const JSON_VERSION: u64 = 1;

const AFTER_HELP: &str = "\
What is found is damage (exit code 7), unchecked (no key: 4; no permission, or changed meanwhile: 1), leftover (of a crash; the
next mount copes with it) or warning (both: 0). Each finding has a code word; doc/CHECK.md lists them with what to do.

--repair changes nothing and says what it would do; --repair --yes does it: sizes are settled, a bad header slot is rewritten from the
good one, a lost directory id that subdirectories and names prove is written anew. Leftovers, and what does not authenticate at all,
are moved to quarantine/ in the encrypted directory, with a line in quarantine/manifest.jsonl. Nothing that authenticates is touched,
nothing is deleted, and blocks that are lost stay lost: those come from a backup.";

/// Verify an encrypted directory that is not mounted, and repair what can be repaired
///
/// Without options every name, header, block, link and attribute is authenticated; the directory is only read.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Check {
    #[command(flatten)]
    trust: TrustArgs,
    /// Authenticate headers and the last block of each file only
    #[arg(long)]
    quick: bool,
    /// Ask for no key: check the structure alone
    #[arg(long, conflicts_with = "repair")]
    no_keys: bool,
    /// Say what could be repaired; with --yes, do it
    #[arg(long)]
    repair: bool,
    /// Repair, and not only say what would be done
    #[arg(long, requires = "repair")]
    yes: bool,
    /// Threads that read and verify (default: one a core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// The encrypted directory
    cipherdir: PathBuf,
}

impl Check {
    pub fn run(self) -> Result<(), Failure> {
        serve::harden();
        let dir = CipherDir::open(&self.cipherdir)?;
        let changes = self.repair && self.yes;
        dir.lock(changes, Duration::ZERO)?;
        let subject = self.subject(&dir)?;
        let settings = Settings {
            quick: self.quick,
            jobs: self.jobs.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from),
            repair: match (self.repair, self.yes) {
                (false, _) => Repair::No,
                (true, false) => Repair::DryRun,
                (true, true) => Repair::Do,
            },
        };
        let printer = Printer { json: self.json, progress: Progress::new(Some(0)), printed: Mutex::new(0) };
        if self.json {
            let head = json!({ "version": JSON_VERSION, "mode": self.mode(), "repair": self.repair_word() });
            let head = head.to_string();
            // The findings follow as they come, so that their number needs no memory.
            print(format_args!("{},\"problems\":[", head.trim_end_matches('}')));
        }
        // What there is to read is counted meanwhile.
        let measured = super::progress::visible().then(|| check::open_top(&dir).ok()).flatten();
        let pages = subject.config.as_ref().map_or(1, |config| config.header_pages);
        let done = AtomicBool::new(false);
        let counts = thread::scope(|scope| {
            if let Some(top) = &measured {
                let count = || check::measure(top, pages, self.quick, &done, &|bytes| printer.progress.expect(bytes));
                // Without it the bar has no end; nothing else is lost.
                let _ = thread::Builder::new().name("check-measure".into()).spawn_scoped(scope, count);
            }
            let counts = check::run(subject, settings, &printer);
            done.store(true, Ordering::Relaxed);
            counts
        });
        drop(printer);
        if self.json {
            say(format_args!("\n],\"counts\":{}}}", json_counts(&counts)));
        } else {
            say(self.summary(&counts));
        }
        outcome(&counts)
    }

    fn subject(&self, dir: &CipherDir) -> Result<Subject<DiskStore>, Failure> {
        let failed = |e: std::io::Error| Failure::new(exit::VOLUME, format!("{}: {e}", dir.path().display()));
        let top = check::open_top(dir).map_err(failed)?;
        let mut remarks: Vec<(bool, String)> = dir.remarks().into_iter().map(|text| (false, text)).collect();
        if self.no_keys {
            let config = match dir.read_volume() {
                Ok(Some(volume)) => Some(volume.claims().clone()),
                Ok(None) => {
                    remarks.push((true, "it is missing".into()));
                    None
                }
                Err(e) => {
                    remarks.push((true, e.to_string()));
                    None
                }
            };
            return Ok(Subject { top, config, keys: None, remarks });
        }
        let volume = match dir.read_volume()? {
            Some(volume) => volume,
            None => dir.require_volume().map_err(|e| {
                Failure::new(exit::VOLUME, format!("{e}. What is left can be checked with: envelopefs check --no-keys"))
            })?,
        };
        let after = shell_word(&self.cipherdir);
        let (named, passphrase) = (self.trust.named()?, self.trust.passphrase.source());
        let unlocked = source::unlock(dir, volume, &named, &passphrase, ("envelopefs check", &after))?;
        let (files, names) = files_of(&unlocked.config, &unlocked.keys, unlocked.cmks, unlocked.directory_cmks);
        let keys = Keys { files, names, volume: unlocked.keys };
        Ok(Subject { top, config: Some(unlocked.config), keys: Some(keys), remarks })
    }

    fn mode(&self) -> &'static str {
        match (self.no_keys, self.quick) {
            (true, true) => "quick-no-keys",
            (true, false) => "no-keys",
            (false, true) => "quick",
            (false, false) => "full",
        }
    }

    fn repair_word(&self) -> &'static str {
        match (self.repair, self.yes) {
            (false, _) => "no",
            (true, false) => "dry-run",
            (true, true) => "yes",
        }
    }

    fn summary(&self, counts: &Counts) -> String {
        let mut text = String::new();
        let mut cmks: Vec<_> = counts.cmks.iter().collect();
        cmks.sort_by_key(|(key, _)| (&key.provider, &key.key));
        for (key, count) in cmks {
            text.push_str(&format!("CMK {}: opens {} files", printable(key.to_string().as_bytes()), count.files));
            if count.missing > 0 {
                text.push_str(&format!("; {} files of the volume's CMKs lack it", count.missing));
            }
            if count.unproven > 0 {
                text.push_str(&format!("; {} of those could not be asked for", count.unproven));
            }
            text.push('\n');
        }
        let kind = match (self.no_keys, self.quick) {
            (true, _) => "Structure",
            (false, true) => "Quick check",
            (false, false) => "Full check",
        };
        let verdict = if counts.damage > 0 {
            format!("{} DAMAGED", counts.damage)
        } else if counts.unchecked > 0 {
            "no damage in what could be checked".to_string()
        } else {
            "no damage".to_string()
        };
        text.push_str(&format!(
            "{kind}: {verdict}, {} unchecked, {} leftovers, {} warnings. {} files ({} bytes, {} blocks verified), \
             {} directories, {} symbolic links, {} special files.",
            counts.unchecked,
            counts.leftovers,
            counts.warnings,
            counts.files,
            counts.bytes,
            if self.no_keys { 0 } else { counts.blocks },
            counts.directories,
            counts.symlinks,
            counts.special,
        ));
        if counts.quarantined > 0 {
            text.push_str(&format!("\n{} objects lie in {QUARANTINE_DIR}/ from earlier.", counts.quarantined));
        }
        let found = counts.damage + counts.unchecked + counts.leftovers + counts.warnings;
        if counts.mendable > 0 {
            text.push_str(&format!(
                "\nNothing was changed. {} of {found} findings can be repaired: add --yes.",
                counts.mendable
            ));
        } else if self.yes && found > 0 {
            text.push_str(&format!("\n{} of {found} findings repaired", counts.mended));
            if counts.not_mended > 0 {
                text.push_str(&format!(", {} failed", counts.not_mended));
            }
            text.push_str(&format!("; {} remain.", found - counts.mended));
        }
        text
    }
}

/// Damage comes first; then what could not be looked at, by its reason.
fn outcome(counts: &Counts) -> Result<(), Failure> {
    if counts.damage > 0 {
        return Err(Failure::new(exit::DAMAGE, format!("damaged: {}", counts.damage)));
    }
    if counts.keys > 0 {
        return Err(Failure::new(exit::KEY, format!("keys that could not be had: {}", counts.keys)));
    }
    if counts.unchecked > 0 {
        return Err(Failure::new(exit::FAILURE, format!("not checked: {}", counts.unchecked)));
    }
    if counts.not_mended > 0 {
        return Err(Failure::new(exit::FAILURE, format!("repairs that failed: {}", counts.not_mended)));
    }
    Ok(())
}

/// Without a line's end; where standard output is closed there is nobody to tell.
fn print(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = write!(std::io::stdout(), "{text}");
}

struct Printer {
    json: bool,
    progress: Progress,
    /// Findings so far.
    printed: Mutex<u64>,
}

impl Sink for Printer {
    fn problem(&self, problem: &Problem) {
        let mut printed = self.printed.lock();
        *printed += 1;
        let first = *printed == 1;
        self.progress.above(|| {
            if self.json {
                print(format_args!("{}\n{}", if first { "" } else { "," }, json_problem(problem)));
            } else {
                say(human(problem));
            }
        });
    }

    fn progress(&self, at: &dyn Fn() -> Vec<u8>, bytes: u64) {
        if super::progress::visible() {
            self.progress.at(&at());
            self.progress.add(bytes);
        }
    }
}

fn mended(mended: &Mended) -> (&'static str, Option<&str>) {
    match mended {
        Mended::No => ("no", None),
        Mended::Would(what) => ("would", Some(what)),
        Mended::Done(what) => ("done", Some(what)),
        Mended::Failed(what) => ("failed", Some(what)),
    }
}

fn json_problem(problem: &Problem) -> Value {
    let (state, what) = mended(&problem.mended);
    json!({
        "code": problem.code.word,
        "severity": problem.code.severity.word(),
        "path": problem.path.as_ref().map(|path| printable(path)),
        "backing_path": printable(&problem.backing),
        "first_block": problem.blocks.map(|(first, _)| first),
        "last_block": problem.blocks.map(|(_, last)| last),
        "detail": printable(problem.detail.as_bytes()),
        "meaning": problem.code.meaning,
        "advice": problem.code.advice,
        "repair": state,
        "repair_action": what.map(|what| printable(what.as_bytes())),
    })
}

fn json_counts(counts: &Counts) -> Value {
    let mut cmks: Vec<_> = counts.cmks.iter().collect();
    cmks.sort_by_key(|(key, _)| (&key.provider, &key.key));
    let cmks: Vec<Value> = cmks
        .into_iter()
        .map(|(key, count)| {
            json!({ "provider": key.provider, "key": key.key, "files": count.files, "missing": count.missing, "unproven": count.unproven })
        })
        .collect();
    json!({
        "damage": counts.damage,
        "unchecked": counts.unchecked,
        "leftover": counts.leftovers,
        "warning": counts.warnings,
        "codes": counts.codes,
        "files": counts.files,
        "empty_files": counts.empty_files,
        "directories": counts.directories,
        "symlinks": counts.symlinks,
        "special": counts.special,
        "overflow_objects": counts.overflow_objects,
        "quarantined": counts.quarantined,
        "moved_directories": counts.moved_directories,
        "xattrs": counts.xattrs,
        "bytes": counts.bytes,
        "blocks": counts.blocks,
        "hole_blocks": counts.hole_blocks,
        "cmks": cmks,
        "cmks_left_out": counts.cmks_left_out,
        "repairable": counts.mendable,
        "repaired": counts.mended,
        "repairs_failed": counts.not_mended,
    })
}

/// A finding for people: what and where on the first line, then what it means and what to do.
fn human(problem: &Problem) -> String {
    let blocks = match problem.blocks {
        None => String::new(),
        Some((first, last)) if first == last => format!(" block {first}"),
        Some((first, last)) => format!(" blocks {first} to {last}"),
    };
    let backing = printable(&problem.backing);
    let place = problem.path.as_ref().map_or_else(|| backing.clone(), |path| printable(path));
    let mut text = format!(
        "{}: code={} {place}{blocks}\n  below:   {backing}\n  found:   {}\n  meaning: {}\n",
        problem.code.severity.word().to_uppercase(),
        problem.code.word,
        printable(problem.detail.as_bytes()),
        problem.code.meaning,
    );
    match &problem.mended {
        Mended::No => text.push_str(&format!("  do:      {}", problem.code.advice)),
        Mended::Would(what) => text.push_str(&format!("  would:   {}", printable(what.as_bytes()))),
        Mended::Done(what) => text.push_str(&format!("  DONE:    {}", printable(what.as_bytes()))),
        Mended::Failed(what) => {
            text.push_str(&format!("  FAILED:  {}\n  do:      {}", printable(what.as_bytes()), problem.code.advice));
        }
    }
    text
}
