//! A mount from its first request to its last commit: session, readiness, background commit, signals.
//! Knows the kernel's side and the filesystem; nothing of keys but their branch record on disk.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};

use super::cipher_dir::CipherDir;
use super::control::Server;
use super::kernel::{self, KernelMount};
use super::mounted::{Hanging, Mounted};
use super::trust::Unlocked;
use super::volume_file::VolumeFile;
use super::watch::Watcher;
use super::{Access, MountError, OpenVolume, open_fs};
use crate::config::MountOptions;
use crate::format::NULL_CIPHER;
use crate::fs::Fs;
use crate::fuse::session::{self, Loops};
use crate::fuse::{Behaviour, FOREVER};
use crate::store::disk::DiskStore;
use crate::sys::{limits, notify};

/// How long the first answer through the mount may take.
const READINESS: Duration = Duration::from_secs(30);
/// How long a terminated daemon waits for open files to be closed before it goes all the same.
const GRACE: Duration = Duration::from_secs(10);
/// How long a mount that is gone from its place may need to end its session.
const UNMOUNTED_ALREADY: Duration = Duration::from_secs(2);
/// Least pause after a failed commit.
const COMMIT_RETRY: Duration = Duration::from_secs(1);
/// What a privileged mount sets for its own device (Documentation/ABI/testing/sysfs-class-bdi): read-ahead in KiB, so that large
/// sequential reads arrive in requests of 1 MiB; and the share in percent of the machine's limit of dirty pages, of which FUSE
/// gets 1 by default, so that a burst of writes does not wait for us one request after the other.
const KERNEL_LIMITS: [(&str, &str); 2] = [("read_ahead_kb", "1024"), ("max_ratio", "25")];

fn ending_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

/// Before any key is in memory: no core dumps, no tracing, no swap, all the descriptors we may have. Returns their number.
pub fn harden() -> u64 {
    if let Err(e) = limits::forbid_dumps() {
        log::warn!("core dumps cannot be forbidden: {e}");
    }
    match limits::keep_out_of_swap() {
        Ok(true) => {}
        // Keys have locked memory of their own.
        Ok(false) => log::debug!("memory other than keys may be swapped: locking it takes CAP_IPC_LOCK"),
        Err(e) => log::warn!("memory other than keys may be swapped: mlockall: {e}"),
    }
    if let Err(e) = limits::raise_file_size_limit() {
        log::warn!("the limit of file sizes cannot be raised: {e}");
    }
    limits::raise_descriptor_limit().unwrap_or_else(|e| {
        log::warn!("the limit of open files cannot be raised: {e}");
        1024
    })
}

/// Closes descriptors that the caller happened to have open (a lock of his, the pipe to his log), which a daemon would hold
/// for as long as the mount lasts. Only before this program has opened any of its own; `keep` is one that was meant for us.
pub fn close_inherited(keep: Option<i32>) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let inherited: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in inherited.into_iter().filter(|fd| *fd > 2 && Some(*fd) != keep) {
        // EBADF: the listing itself.
        let _ = nix::unistd::close(fd);
    }
}

/// A mount that answers.
pub struct Running {
    mounted: Arc<Mounted>,
    session: JoinHandle<io::Result<()>>,
    helpers: Helpers,
    /// Keeps fusermount3 waiting, with `auto_unmount`.
    _keeper: Option<OwnedFd>,
}

/// The threads beside the session.
#[derive(Default)]
struct Helpers {
    committer: Option<Committer>,
    watcher: Option<Watcher>,
    control: Option<Server>,
}

impl Helpers {
    fn stop(self) {
        // The socket first: its name may soon belong to another mount.
        if let Some(control) = self.control {
            control.stop();
        }
        if let Some(watcher) = self.watcher {
            watcher.stop();
        }
        if let Some(committer) = self.committer {
            committer.stop();
        }
    }
}

/// Mounts an unlocked volume, whose CIPHERDIR is locked, at `mountpoint` (canonical). Returns when the mount answers.
/// Blocks the signals that end it in the calling thread and all that it starts.
pub fn start(
    dir: CipherDir,
    unlocked: Unlocked,
    options: &MountOptions,
    mountpoint: &Path,
    descriptors: u64,
) -> Result<Running, MountError> {
    if NULL_CIPHER {
        log::warn!("INSECURE-NULL-CIPHER: content is written WITHOUT ENCRYPTION");
    }
    refuse_overlap(dir.path(), mountpoint)?;
    ending_signals().thread_block().map_err(|e| MountError::Other(format!("cannot block signals: {e}")))?;
    if !options.read_only {
        // What an earlier owner wrote and did not sync, is durable before anything builds on it.
        rustix::fs::syncfs(&dir).map_err(|e| {
            MountError::Volume(format!("{}: cannot sync the backing file system: {e}", dir.path().display()))
        })?;
    }
    let budget = usize::try_from(descriptors / 4).unwrap_or(usize::MAX).clamp(64, 65536);
    let access = Access {
        read_only: options.read_only,
        exclusive: options.metadata_timeout.is_none(),
        noatime: options.noatime || options.read_only,
        descriptor_budget: budget,
    };
    let OpenVolume { fs, files, config, keys } = open_fs(&dir, unlocked, access)?;
    let dir = Arc::new(dir);
    let volume_file = if options.read_only {
        None
    } else {
        let file = VolumeFile::start(dir.clone(), config, keys).map_err(|e| MountError::Other(e.to_string()))?;
        let hook = file.clone();
        files.keyring.on_new_branch(Box::new(move |group, branch| hook.put_branch(group, branch)));
        Some(file)
    };

    let behaviour = Behaviour {
        timeout: options.metadata_timeout.unwrap_or(FOREVER),
        read_only: options.read_only,
        dirsync: options.dirsync,
        owner: rustix::process::getuid().as_raw(),
    };
    let allow_other = options.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root());
    if options.auto_unmount && !allow_other && !rustix::process::geteuid().is_root() {
        // fusermount3 looks at the dead mount as root, whom such a mount refuses before it says that it is dead.
        return Err(MountError::Mountpoint("auto_unmount needs allow_other".into()));
    }
    let failed = |e: io::Error| MountError::Mountpoint(format!("cannot serve {}: {e}", mountpoint.display()));
    let KernelMount { device, keeper } =
        kernel::mount(dir.path(), mountpoint, options, allow_other).map_err(MountError::Mountpoint)?;
    // Gone unless everything below succeeds.
    let undo = Undo { mountpoint, device: kernel::device_of(dir.path(), mountpoint) };

    let loops = Loops { count: event_loops(), own_queues: kernel::can_clone_device() };
    let serving = session::serve(fs.clone(), behaviour, device, loops).map_err(failed)?;
    let Some(device) = undo.device else {
        return Err(MountError::Mountpoint(format!("{}: the mount is not to be found there", mountpoint.display())));
    };
    undo.keep();

    let mounted = Arc::new(Mounted {
        fs,
        files,
        dir,
        page_cache: serving.page_cache,
        mountpoint: mountpoint.to_path_buf(),
        device,
        options: options.clone(),
        volume_file,
        since: (Instant::now(), SystemTime::now()),
        hanging: Hanging::default(),
    });
    let mut running = Running { mounted, session: serving.thread, helpers: Helpers::default(), _keeper: keeper };
    match running.settle() {
        Ok(()) => Ok(running),
        // Somebody who was quick may have written already.
        Err(e) => Err(running.abandon(e)),
    }
}

impl Running {
    /// The first answer through the kernel, then everything that a mount needs beside its session. A mount that was used and
    /// unmounted again before this looked is no failure.
    fn settle(&mut self) -> Result<(), MountError> {
        let mounted = &self.mounted;
        match await_answer(&mounted.mountpoint, mounted.device) {
            Ok(()) => {}
            Err(e) if !self.ended_within(UNMOUNTED_ALREADY) => return Err(e),
            Err(_) => return Ok(()),
        }
        let failed =
            |e: io::Error| MountError::Mountpoint(format!("cannot serve {}: {e}", mounted.mountpoint.display()));
        if rustix::process::geteuid().is_root() {
            for (name, value) in KERNEL_LIMITS {
                let path = format!("/sys/class/bdi/{}:{}/{name}", mounted.device.0, mounted.device.1);
                if let Err(e) = fs::write(&path, value) {
                    log::info!("{path}: {e}");
                }
            }
        }
        if !mounted.options.read_only {
            self.helpers.committer =
                Some(Committer::start(mounted.fs.clone(), mounted.options.commit).map_err(failed)?);
        }
        self.helpers.watcher = Some(Watcher::start(mounted).map_err(failed)?);
        match Server::start(mounted) {
            Ok(server) => self.helpers.control = Some(server),
            Err(why) => {
                log::warn!(
                    "no control socket, so that envelopefs status and forget-keys do not reach this mount: {why}"
                );
            }
        }
        let terminator = Terminator { mounted: mounted.clone() };
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || terminator.run(&ending_signals()))
            .map_err(failed)?;
        Ok(())
    }

    fn ended_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while !self.session.is_finished() {
            if start.elapsed() >= limit {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Takes a mount back that nobody can use, or nobody waits for; gives the error back.
    pub fn abandon<E>(self, error: E) -> E {
        unmount_own(&self.mounted.mountpoint, self.mounted.device);
        self.ended_within(GRACE);
        self.helpers.stop();
        if !self.mounted.options.read_only
            && let Err(e) = last_commit(&self.mounted.fs)
        {
            log::error!("code=commit the last commit failed: {e}");
        }
        error
    }

    /// Serves until the mount is gone, then commits for the last time. An error means that written data may be lost.
    pub fn serve(self) -> Result<(), MountError> {
        log::info!("mounted");
        tell_systemd("READY=1\nSTATUS=mounted");
        let ended = self.session.join();
        tell_systemd("STOPPING=1\nSTATUS=committing");
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::error!("code=session the kernel connection failed: {e}"),
            // The panic hook has told where.
            Err(_) => log::error!("code=session the session ended by a panic"),
        }
        self.helpers.stop();
        if !self.mounted.options.read_only {
            last_commit(&self.mounted.fs).map_err(|e| {
                log::error!("code=commit the last commit failed: {e}");
                MountError::Other(format!(
                    "{}: the last commit failed: {e}; what was written and not synced since the one before may be lost",
                    self.mounted.mountpoint.display()
                ))
            })?;
        }
        log::info!("unmounted");
        Ok(())
    }
}

fn tell_systemd(state: &str) {
    if let Err(e) = notify::notify(state) {
        log::info!("{}: {e}", notify::VARIABLE);
    }
}

/// Nothing writes any more; a second round settles files that were busy in the first.
fn last_commit(fs: &Fs<DiskStore>) -> crate::fs::Result<()> {
    fs.commit()?;
    if fs.needs_commit() { fs.commit() } else { Ok(()) }
}

/// Unmounts when start fails halfway.
struct Undo<'a> {
    mountpoint: &'a Path,
    /// `None`: not to be found any more.
    device: Option<(u32, u32)>,
}

impl Undo<'_> {
    fn keep(mut self) {
        self.device = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(device) = self.device {
            unmount_own(self.mountpoint, device);
        }
    }
}

/// Another mount may have come to lie over ours.
fn unmount_own(mountpoint: &Path, device: (u32, u32)) {
    match kernel::unmount_own(mountpoint, device) {
        Ok(true) => {}
        Ok(false) => log::warn!("{} is not on top at its place any more and is left to its user", mountpoint.display()),
        Err(e) => log::warn!("cannot unmount {}: {e}", mountpoint.display()),
    }
}

/// Loops wait for the disk inside requests (fsync most of all), so there are more of them than processors.
fn event_loops() -> usize {
    thread::available_parallelism().map_or(4, |n| n.get() * 2).clamp(4, 16)
}

/// Neither may lie inside the other: the mount would hide or contain what it is made of.
fn refuse_overlap(cipher: &Path, mountpoint: &Path) -> Result<(), MountError> {
    if mountpoint.starts_with(cipher) || cipher.starts_with(mountpoint) {
        return Err(MountError::Mountpoint(format!(
            "the mountpoint {} and the encrypted directory {} must not contain each other",
            mountpoint.display(),
            cipher.display()
        )));
    }
    Ok(())
}

/// Asks through the kernel, from a thread of its own, until an answer of this mount's device comes.
fn await_answer(mountpoint: &Path, device: (u32, u32)) -> Result<(), MountError> {
    let (answer, answered) = mpsc::channel();
    let path = mountpoint.to_path_buf();
    let failed = |text: String| MountError::Mountpoint(format!("{} does not answer: {text}", mountpoint.display()));
    thread::Builder::new()
        .name("readiness".into())
        .spawn(move || {
            // Where nobody listens any more, the time was over.
            let _ = answer.send(rustix::fs::stat(&path));
        })
        .map_err(|e| failed(e.to_string()))?;
    let stat = match answered.recv_timeout(READINESS) {
        Ok(Ok(stat)) => stat,
        Ok(Err(e)) => return Err(failed(e.to_string())),
        Err(_) => return Err(failed(format!("no answer within {} seconds", READINESS.as_secs()))),
    };
    if (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) == device {
        return Ok(());
    }
    Err(failed("another mount is in its place".into()))
}

/// The thread that commits in the background.
struct Committer {
    fs: Arc<Fs<DiskStore>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Committer {
    fn start(fs: Arc<Fs<DiskStore>>, interval: Duration) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (worker_fs, worker_stop) = (fs.clone(), stop.clone());
        let thread = thread::Builder::new().name("commit".into()).spawn(move || {
            let stopped = || worker_stop.load(Ordering::Acquire);
            while !stopped() {
                worker_fs.wait_commit_wanted(interval);
                if stopped() || !worker_fs.needs_commit() {
                    continue;
                }
                // The filesystem has logged what failed, and keeps it for the next round.
                if worker_fs.commit().is_err() && !stopped() {
                    thread::park_timeout(COMMIT_RETRY.max(interval / 4));
                }
            }
        })?;
        Ok(Self { fs, stop, thread })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.fs.want_commit();
        self.thread.thread().unpark();
        // A panic has been logged by its hook.
        let _ = self.thread.join();
    }
}

/// Ends the mount when a signal asks for it.
struct Terminator {
    mounted: Arc<Mounted>,
}

impl Terminator {
    fn run(&self, signals: &SigSet) {
        while let Ok(signal) = signals.wait() {
            log::info!("{signal}: unmounting");
            self.save(self.mounted.root());
            let start = Instant::now();
            let mut told = false;
            loop {
                if !self.mounted.is_in_place() {
                    // The session ends, and with it the process.
                    break;
                }
                match kernel::unmount(&self.mounted.mountpoint, false) {
                    Ok(()) => break,
                    Err(e) if start.elapsed() < GRACE => {
                        if !told {
                            log::warn!("{e}; waiting up to {} seconds for its users", GRACE.as_secs());
                            told = true;
                        }
                        thread::sleep(Duration::from_millis(200));
                    }
                    Err(_) => self.leave(),
                }
            }
        }
    }

    fn save(&self, root: Option<OwnedFd>) {
        if let Err(e) = self.mounted.save(root.as_ref()) {
            log::error!("code=commit {e}");
        }
    }

    /// Its users do not go: nothing new may begin, what they have written is saved, and their open files die with us.
    fn leave(&self) -> ! {
        let root = self.mounted.root();
        unmount_own(&self.mounted.mountpoint, self.mounted.device);
        self.save(root);
        log::error!("code=busy terminated while files were open; they answer ENOTCONN from now on");
        std::process::exit(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoint_and_cipher_dir_are_apart() {
        let refused = |a: &str, b: &str| refuse_overlap(Path::new(a), Path::new(b)).is_err();
        assert!(refused("/a", "/a"));
        assert!(refused("/a", "/a/b"));
        assert!(refused("/a/b", "/a"));
        assert!(!refused("/a", "/ab"));
        assert!(!refused("/a/b", "/a/c"));
    }
}
