//! The load of the crash suites and its oracle, as a program: a mount is crashed under it, again and again, and what was
//! acknowledged must be there. Without arguments it tests itself on a plain directory: that the oracle sees what it must.
//!
//!   crash_load load DIRECTORY STATE LOG SEED [until=FILE] [probe=FILE] [limit=N]   until the mount is gone
//!   crash_load verify DIRECTORY STATE LOG SEED       compares; STATE becomes what was found
//!   crash_load disk SOCKET IMAGE                     a disk with a volatile write cache, over NBD
//!   crash_load storm DIRECTORY SEED SECONDS THREADS  changes without syncs, in directories that threads share
//!   crash_load many DIRECTORY COUNT                  empty files, a thousand a directory
//!   crash_load cut DIRECTORY                         shuts the file system down (ext4, XFS) without writing its journal

// The harness is shared with other test binaries; this one needs its generator and its system calls.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod load;
mod operations;
mod self_test;
mod state;
mod verify;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use load::Load;

fn main() -> ExitCode {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["load", directory, state, log, seed, ref options @ ..] => number(seed)
            .and_then(|seed| load_of(directory, state, log, seed, options).run())
            .map(|good| if good { ExitCode::SUCCESS } else { ExitCode::from(3) }),
        ["verify", directory, state, log, seed] => {
            number(seed).and_then(|seed| verified(Path::new(directory), Path::new(state), Path::new(log), seed))
        }
        ["storm", directory, seed, seconds, threads] => {
            let end = number(seconds).map(|seconds| Instant::now() + Duration::from_secs(seconds));
            end.and_then(|end| load::storm(Path::new(directory), number(seed)?, end, number(threads)?))
                .map(|()| ExitCode::SUCCESS)
        }
        ["many", directory, count] => {
            number(count).and_then(|count| load::many(Path::new(directory), count)).map(|()| ExitCode::SUCCESS)
        }
        ["disk", socket, image] => disk::serve(Path::new(socket), Path::new(image)).map(|()| ExitCode::SUCCESS),
        ["cut", directory] => File::open(directory).and_then(common::sys::shut_down_ext4).map(|()| ExitCode::SUCCESS),
        // The test runner's own words: filters and options.
        _ => {
            self_test::run();
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("crash_load: {error}");
        ExitCode::from(2)
    })
}
fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::Error::other(format!("{text}: not a number")))
}
fn load_of(directory: &str, state: &str, log: &str, seed: u64, options: &[&str]) -> Load {
    let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
    Load {
        directory: directory.into(),
        state: state.into(),
        log: log.into(),
        seed,
        until: value("until=").map(PathBuf::from),
        probe: value("probe=").map(PathBuf::from),
        limit: value("limit=").and_then(|limit| limit.parse().ok()).unwrap_or(u64::MAX),
    }
}

/// Exit code 1, and a line for each problem, where the tree is not what it must be.
fn verified(directory: &Path, state: &Path, log: &Path, seed: u64) -> io::Result<ExitCode> {
    let (problems, summary) = check(directory, state, log, seed)?;
    println!("{summary}, {} problems", problems.len());
    for problem in &problems {
        println!("BAD {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is wrong, and a line that says how much was looked at. Where nothing is, the state is what was found.
fn check(directory: &Path, state: &Path, log: &Path, seed: u64) -> io::Result<(verify::Problems, String)> {
    let (acknowledged, mut problems) = (state::acknowledged(log)?, verify::Problems::new());
    let (mut operations, mut found) = (0, Vec::new());
    for worker in 0..load::WORKERS {
        let path = load::worker_directory(directory, worker);
        let known = state::load(state, worker)?;
        let Some(last) = acknowledged.get(&worker).copied().or_else(|| known.as_ref().map(|_| 0)) else {
            // Nothing was promised: its directory may be missing, or be there again after its removal.
            if path.exists() {
                found.push((worker, verify::observe(&path, &mut problems)));
            }
            continue;
        };
        operations += last;
        let (old, pending) = load::replay(known.unwrap_or_default(), seed, worker, last);
        let (got, mut wrong) = (verify::observe(&path, &mut problems), verify::Problems::new());
        verify::compare(&old, Some(&pending), &got, &mut wrong);
        problems.extend(wrong.into_iter().map(|problem| format!("w{worker} after {last}: {problem}")));
        found.push((worker, got));
    }
    let objects = verify::read_everything(directory, &mut problems);
    if problems.is_empty() {
        for (worker, got) in found {
            state::save(state, worker, &got)?;
        }
    }
    Ok((problems, format!("{operations} operations acknowledged, {objects} objects read")))
}
