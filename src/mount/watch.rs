//! The thread "keys": asks the CMKs whether they may still be used, renews branches, and carries out a loss: dirty data is
//! saved while the keys are still there, then they go, and the plaintext in the page cache with them. Decides nothing itself.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::mounted::{Dropping, Mounted};
use crate::keys::keyring::Loss;

/// The longest pause between two looks.
const LOOK: Duration = Duration::from_secs(60);
/// The same while keys have to be dropped for which there was no thread.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long an unmount waits for a look that is under way: it may be a call to a KMS.
const FAREWELL: Duration = Duration::from_secs(1);

pub struct Watcher {
    mounted: Arc<Mounted>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watcher {
    pub fn start(mounted: &Arc<Mounted>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (watched, stopped) = (mounted.clone(), stop.clone());
        let thread = thread::Builder::new().name("keys".into()).spawn(move || run(&watched, &stopped))?;
        Ok(Self { mounted: mounted.clone(), stop, thread })
    }

    /// A look that takes longer is left to the end of the process.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.mounted.keyring().wake();
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < FAREWELL {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn run(mounted: &Arc<Mounted>, stopped: &AtomicBool) {
    let mut unfinished = false;
    while !stopped.load(Ordering::Acquire) {
        let at_most = if unfinished { LOOK_AGAIN } else { LOOK };
        // A revocation must reach this mount also after a bug in some provider.
        let looked = catch_unwind(AssertUnwindSafe(|| {
            let losses = mounted.keyring().watch(at_most);
            if stopped.load(Ordering::Acquire) || losses.is_empty() && !unfinished {
                return false;
            }
            !carry_out(mounted, &losses)
        }));
        unfinished = looked.unwrap_or_else(|_| {
            log::error!("code=keys-watcher looking after the keys failed, which is a bug; it goes on");
            thread::sleep(Duration::from_secs(1));
            true
        });
    }
}

/// Tells whether keys are dropped, or being dropped.
fn carry_out(mounted: &Arc<Mounted>, losses: &[Loss]) -> bool {
    let start = Instant::now();
    let keyring = mounted.keyring();
    let saved = if losses.is_empty() { Ok(()) } else { mounted.save_now() };
    let before = keyring.status().cached_keys.len();
    for loss in losses {
        keyring.enforce(loss);
    }
    let branch_keys = before.saturating_sub(keyring.status().cached_keys.len());
    // Also those of an earlier loss for which there was no thread.
    let dropping = mounted.drop_keys(|keyring, source| keyring.lost(source));
    let took = start.elapsed().as_secs_f64();
    let why: Vec<String> = losses.iter().map(|loss| keyring.describe(loss)).collect();
    let why = if why.is_empty() { "a CMK was lost".into() } else { why.join("; ") };
    if let Err(e) = &saved {
        log::error!("code=keys-unsaved {why}: written data could not all be saved before its keys went: {e}");
    }
    match dropping {
        Dropping::Done(files) => log::warn!(
            "code=keys-dropped {why}: {branch_keys} branch keys and the keys of {files} files are out of memory, their \
             plaintext out of the page cache, after {took:.1} s"
        ),
        Dropping::Hangs => log::error!(
            "code=keys-dropping {why}: {branch_keys} branch keys are out of memory, those of files not all after {took:.1} s, \
             since the storage below hangs; they go as it answers"
        ),
        // Told once, then tried until it succeeds.
        Dropping::NotBegun if losses.is_empty() => {}
        Dropping::NotBegun => {
            log::error!("code=keys-dropping {why}: too many attempts hang; the next follows in a moment")
        }
    }
    dropping != Dropping::NotBegun
}
