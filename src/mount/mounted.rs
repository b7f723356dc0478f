//! What stands behind a mount while it runs, for those who act on it from outside the session: saving what is dirty, dropping
//! keys together with the plaintext that the kernel has cached. Knows no socket and not why keys have to go.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::cipher_dir::CipherDir;
use super::volume_file::VolumeFile;
use super::{MountError, kernel};
use crate::config::MountOptions;
use crate::file::FileContext;
use crate::fs::Fs;
use crate::fuse::session::PageCache;
use crate::keys::keyring::{KeySource, Keyring};
use crate::store::disk::DiskStore;

/// How long one waits for dirty data to be saved before keys go all the same, and for the keys of open files to be dropped.
/// Only a backing store that hangs needs so long.
const SAVE: Duration = Duration::from_secs(30);
const DROP: Duration = Duration::from_secs(30);
/// Threads of either kind that a hanging store may keep.
const SAVES_MAX: usize = 2;
const DROPS_MAX: usize = 8;

/// A mount and all that it is made of.
pub struct Mounted {
    pub fs: Arc<Fs<DiskStore>>,
    pub files: Arc<FileContext>,
    /// Holds the lock.
    pub dir: Arc<CipherDir>,
    pub page_cache: PageCache,
    /// Canonical.
    pub mountpoint: PathBuf,
    /// `major, minor` of the mount's st_dev.
    pub device: (u32, u32),
    pub options: MountOptions,
    /// `None` where the mount is read-only.
    pub volume_file: Option<VolumeFile>,
    pub since: (Instant, SystemTime),
    pub hanging: Hanging,
}

/// Threads that save or drop at the moment, or that a hanging store keeps.
#[derive(Default)]
pub struct Hanging {
    saves: Arc<AtomicUsize>,
    drops: Arc<AtomicUsize>,
}

/// What came of something that was not waited for without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropping {
    /// So many files had keys.
    Done(usize),
    /// It goes on.
    Hangs,
    /// It has to be tried again.
    NotBegun,
}

/// What `forget-keys` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Branch keys that were in memory.
    pub branch_keys: usize,
    /// Files whose keys were in memory.
    pub files: usize,
    /// Why written data could not be saved before, where it was forced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsaved: Option<String>,
    /// CMKs that do not answer now: what hangs on them stays closed until they do.
    pub unusable_cmks: Vec<String>,
}

impl Mounted {
    pub fn keyring(&self) -> &Keyring {
        &self.files.keyring
    }

    /// Whether this mount, and not another that covers it, is at its place.
    pub fn is_in_place(&self) -> bool {
        matches!(kernel::mount_at(&self.mountpoint), Ok(Some(entry)) if entry.device == self.device)
    }

    /// Keeps the mount busy while it lives.
    pub fn root(&self) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.mountpoint, flags, Mode::empty()).ok().filter(|_| self.is_in_place())
    }

    /// The kernel's dirty pages to us where `root` is open, then a commit. The error tells all that failed.
    pub fn save(&self, root: Option<&OwnedFd>) -> Result<(), String> {
        if self.options.read_only {
            return Ok(());
        }
        let flushed = root.map_or(Ok(()), |root| rustix::fs::syncfs(root).map_err(|e| format!("flushing failed: {e}")));
        let committed = self.fs.commit().map_err(|e| format!("committing failed: {e}"));
        match (flushed, committed) {
            (Err(flush), Err(commit)) => Err(format!("{flush}; {commit}")),
            (flushed, committed) => flushed.and(committed),
        }
    }

    /// `save` without keeping the mount busy for longer than that, and given up after a while.
    pub fn save_now(self: &Arc<Self>) -> Result<(), String> {
        let saved = self.within("save", SAVE, (&self.hanging.saves, SAVES_MAX), |mounted| {
            let root = if mounted.options.read_only { None } else { mounted.root() };
            let saved = mounted.save(root.as_ref());
            if root.is_none() && !mounted.options.read_only {
                let why = "flushing failed: the mount is not at its place, or does not let us in";
                return Err(saved.map_or_else(|e| format!("{why}; {e}"), |()| why.into()));
            }
            saved
        });
        match saved {
            Some(Some(saved)) => saved,
            Some(None) => Err(format!("not done after {} seconds: the storage below hangs", SAVE.as_secs())),
            None => Err("not tried: earlier attempts still hang in the storage below".into()),
        }
    }

    /// Drops the keys of files for which `which` says so, and their pages from the kernel's cache.
    pub fn drop_keys(self: &Arc<Self>, which: impl Fn(&Keyring, &KeySource) -> bool + Send + 'static) -> Dropping {
        let start = Instant::now();
        let dropped = self.within("drop-keys", DROP, (&self.hanging.drops, DROPS_MAX), move |mounted| {
            let inodes = mounted.fs.drop_keys(&|source| which(mounted.keyring(), source));
            for ino in &inodes {
                match mounted.page_cache.invalidate(*ino) {
                    // The kernel has forgotten it, or the mount is gone.
                    Err(e) if !is_absence(&e) => {
                        log::error!("code=page-cache cached plaintext of inode {ino} could not be dropped: {e}");
                    }
                    _ => {}
                }
            }
            if start.elapsed() > DROP {
                log::warn!(
                    "code=keys-dropped the keys of {} files are out of memory, now that the storage answers",
                    inodes.len()
                );
            }
            inodes.len()
        });
        match dropped {
            Some(Some(files)) => Dropping::Done(files),
            Some(None) => Dropping::Hangs,
            None => Dropping::NotBegun,
        }
    }

    /// Every key that can be fetched again goes; the volume's own stays, since names hang on it.
    pub fn forget_keys(self: &Arc<Self>, force: bool) -> Result<Forgotten, MountError> {
        let unsaved = match self.save_now() {
            Ok(()) => None,
            Err(why) if force => Some(why),
            Err(why) => {
                return Err(MountError::Other(format!(
                    "{}: no key was dropped, since written data could not be saved: {why}. --force drops them all the same",
                    self.mountpoint.display()
                )));
            }
        };
        let keys = self.keyring().status();
        self.keyring().forget();
        let Dropping::Done(files) = self.drop_keys(|_, _| true) else {
            return Err(MountError::Other(format!(
                "{}: branch keys are dropped, those of open files not all, since the storage below hangs; they go as it answers",
                self.mountpoint.display(),
            )));
        };
        let branch_keys = keys.cached_keys.len();
        log::warn!(
            "code=keys-forgotten on request: {branch_keys} branch keys and the keys of {files} files are dropped"
        );
        let unusable = keys.cmks.iter().filter(|cmk| cmk.state != "usable");
        Ok(Forgotten {
            branch_keys,
            files,
            unsaved,
            unusable_cmks: unusable.map(|cmk| format!("{}:{}", cmk.provider, cmk.key)).collect(),
        })
    }

    /// Runs `job` on a thread of its own and waits so long for it. `None`: not begun, since too many are counted already or no
    /// thread could be had; `Some(None)`: it still runs. No hanging store may stop the caller.
    fn within<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        limit: Duration,
        (count, max): (&Arc<AtomicUsize>, usize),
        job: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<Option<T>> {
        let running = Running::count(count);
        if running.0.load(Ordering::Acquire) > max {
            return None;
        }
        let mounted = self.clone();
        let (done, outcome) = mpsc::sync_channel(1);
        let spawned = thread::Builder::new().name(name.into()).spawn(move || {
            let _running = running;
            // Where nobody waits any more, nobody is told.
            let _ = done.send(job(&mounted));
        });
        match spawned {
            Ok(_) => Some(outcome.recv_timeout(limit).ok()),
            Err(e) => {
                log::error!("code=threads cannot start a thread: {e}");
                None
            }
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTCONN | libc::ENODEV))
}

/// Counts a thread until it ends, also by a panic.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn count(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
