//! The load: workers whose durable operations are acknowledged in a log, and threads that change much and sync nothing.
//! Runs until its mount is gone. Must not know how that comes about.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Random, pattern};
use crate::operations::{Model, Op, sync};
use crate::state::{self, Log};

pub const WORKERS: u8 = 6;
const NOISE: u8 = 2;

/// Where and how the load runs.
pub struct Load {
    pub directory: PathBuf,
    pub state: PathBuf,
    pub log: PathBuf,
    pub seed: u64,
    /// Errors are expected once this file exists; one before it fails the run.
    pub until: Option<PathBuf>,
    /// A file of the backing store: an acknowledgement counts where it could still be touched afterwards, or else the
    /// sync may have raced with the cut.
    pub probe: Option<PathBuf>,
    /// Operations a worker, for runs that end by themselves.
    pub limit: u64,
}

pub fn worker_directory(root: &Path, worker: u8) -> PathBuf {
    root.join(format!("w{worker}"))
}
/// The operations of one worker in one round.
pub fn sequence(seed: u64, worker: u8) -> Random {
    Random::new(seed * 1000 + u64::from(worker))
}

impl Load {
    /// True where every error came after the crash was announced.
    pub fn run(&self) -> io::Result<bool> {
        let log = Log::open(&self.log)?;
        let ended = AtomicBool::new(false);
        let good = std::thread::scope(|scope| {
            for noise in 0..NOISE {
                let (log, ended) = (&log, &ended);
                scope.spawn(move || {
                    if let Err(error) = noise_until(&self.directory.join(format!("noise{noise}")), self.seed, ended) {
                        self.unexpected(&error).then(|| log.failed(&format!("noise{noise}"), 0, &error.to_string()));
                    }
                });
            }
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    scope.spawn({
                        let log = &log;
                        move || self.work(worker, log)
                    })
                })
                .collect();
            let ends: Vec<bool> = workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
            ended.store(true, Ordering::Release);
            ends.into_iter().all(|end| end)
        });
        Ok(good)
    }
    fn unexpected(&self, error: &io::Error) -> bool {
        // Where a crash takes the machine with it nothing is left to announce.
        let expected = self.until.as_ref().is_some_and(|mark| mark.exists());
        if !expected {
            eprintln!("before the crash: {error}");
        }
        !expected
    }
    fn work(&self, worker: u8, log: &Log) -> bool {
        let mut number = 0;
        match self.operations(worker, log, &mut number) {
            Ok(()) => true,
            Err(error) if self.unexpected(&error) => {
                log.failed(&worker.to_string(), number, &error.to_string());
                false
            }
            Err(_) => true,
        }
    }
    fn operations(&self, worker: u8, log: &Log, number: &mut u64) -> io::Result<()> {
        let directory = worker_directory(&self.directory, worker);
        let mut model = state::load(&self.state, worker)?.unwrap_or_default();
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync(&self.directory)?,
        }
        self.acknowledge(worker, 0, log)?;
        let mut random = sequence(self.seed, worker);
        for next in 1..=self.limit {
            *number = next;
            let op = Op::random(&mut random, &model);
            op.run(&directory).map_err(|error| io::Error::new(error.kind(), format!("{error} in {op:?}")))?;
            self.acknowledge(worker, next, log)?;
            op.apply(&mut model);
        }
        Ok(())
    }
    fn acknowledge(&self, worker: u8, number: u64, log: &Log) -> io::Result<()> {
        if let Some(probe) = &self.probe {
            File::open(probe)?.set_modified(std::time::SystemTime::now())?;
        }
        log.acknowledge(worker, number)
    }
}

/// The state that a worker got acknowledged, and the operation that was under way.
pub fn replay(base: Model, seed: u64, worker: u8, acknowledged: u64) -> (Model, Op) {
    let (mut model, mut random) = (base, sequence(seed, worker));
    for _ in 0..acknowledged {
        Op::random(&mut random, &model).apply(&mut model);
    }
    let pending = Op::random(&mut random, &model);
    (model, pending)
}

/// Threads of noise, several to a directory, until `end`. Any error but those of names is one of the mount.
pub fn storm(directory: &Path, seed: u64, end: Instant, threads: u64) -> io::Result<()> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let noises: Vec<_> = (0..threads)
            .map(|thread| {
                let ended = &ended;
                let shared = directory.join(format!("noise{}", thread % 8));
                scope.spawn(move || noise_until(&shared, seed * 1000 + thread, ended))
            })
            .collect();
        while Instant::now() < end && !noises.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(100));
        }
        ended.store(true, Ordering::Release);
        noises.into_iter().try_for_each(|noise| noise.join().expect("no panic"))
    })
}

pub fn many(directory: &Path, count: u64) -> io::Result<()> {
    for first in (0..count).step_by(1000) {
        let below = directory.join(format!("d{first}"));
        fs::create_dir(&below)?;
        for index in first..(first + 1000).min(count) {
            File::create_new(below.join(format!("file number {index}")))?;
        }
    }
    Ok(())
}

/// Never synced, so that the content is not checked; but it must list and read after the crash.
fn noise_until(directory: &Path, seed: u64, ended: &AtomicBool) -> io::Result<()> {
    let mut random = Random::new(!seed);
    allow(fs::create_dir(directory))?;
    while !ended.load(Ordering::Acquire) {
        let long = if random.below(4) == 0 { "n".repeat(230) } else { String::new() };
        let path = directory.join(format!("n{}{long}", random.below(12)));
        let other = directory.join(format!("m{}", random.below(12)));
        let seed = random.next();
        allow(match random.below(20) {
            0..8 => append(&path, &pattern(seed, *random.pick(&[10, 5000, 60_000]))),
            8..11 => OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(seed % 50_000)),
            11 | 12 => fs::rename(&path, &other),
            13 => fs::hard_link(&path, &other),
            14 => fs::remove_file(&other),
            15 => symlink("t".repeat(1 + (seed % 900) as usize), &other),
            16 => {
                let name = directory.join(format!("dir{}", seed % 5));
                fs::create_dir(&name).and_then(|()| append(&name.join("file"), b"in a directory that nobody synced"))
            }
            17 => fs::rename(directory.join(format!("dir{}", seed % 5)), directory.join(format!("dir{}", seed % 4))),
            18 => fs::remove_dir_all(directory.join(format!("dir{}", seed % 5))),
            _ => fs::copy(&path, directory.join("copy")).map(drop),
        })?;
    }
    Ok(())
}
fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).open(path)?.write_all(bytes)
}
/// Names that are taken, missing or of another kind are part of the game.
fn allow(result: io::Result<()>) -> io::Result<()> {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound};
    match result {
        Err(error)
            if [AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound].contains(&error.kind()) =>
        {
            Ok(())
        }
        // Paths that lead through an odd symbolic link of the noise itself; hard links to directories.
        Err(error)
            if [Some(libc::ENAMETOOLONG), Some(libc::EPERM), Some(libc::EINVAL)].contains(&error.raw_os_error()) =>
        {
            Ok(())
        }
        other => other,
    }
}
