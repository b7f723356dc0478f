//! The harness of the mount tests: volumes, mounts that clean up after themselves, other users, deterministic data.
//! Drives the command alone, as a user would; must not know the library.
//!
//! Environment: `ENVELOPEFS_TEST_DIR` where backing directories are made (default: the system's temporary directory);
//! `ENVELOPEFS_TEST_SKIP_FUSE=1`, `..._SKIP_ROOT=1`, `..._SKIP_LOOP=1` turn what this host cannot run into loud skips;
//! `ENVELOPEFS_TEST_BASELINE=1` runs the POSIX tests on a plain directory instead of a mount, to test the tests.

pub mod sys;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

/// Plaintext bytes of one block, and the page of the backing file that holds it.
pub const PLAIN: u64 = 4048;
pub const PAGE: u64 = 4096;
/// Backing offset of block 0 with one header page per slot.
pub const DATA_START: u64 = 2 * PAGE;

/// How long anything may take before the harness calls it a hang.
const HANG: Duration = Duration::from_secs(300);

/// The command under test. `ENVELOPEFS_TEST_BINARY`: a copy of it that another user can reach.
pub fn binary() -> PathBuf {
    std::env::var_os("ENVELOPEFS_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_envelopefs").into(), PathBuf::from)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
pub fn baseline() -> bool {
    flag("ENVELOPEFS_TEST_BASELINE")
}
fn flag(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|v| v == "1")
}

/// False (and a loud line) where a test may be skipped on this host; panics where a missing need is a failure.
fn available(have: bool, need: &str, skip: &str) -> bool {
    if have {
        return true;
    }
    assert!(flag(skip), "this test needs {need}; set {skip}=1 to skip such tests on this host");
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    // Straight to the descriptor: a skip must show even though the test harness captures output of passing tests.
    let _ = writeln!(io::stderr().lock(), "SKIPPED {name}: needs {need}");
    false
}
pub fn have_fuse() -> bool {
    available(baseline() || Path::new("/dev/fuse").exists(), "/dev/fuse", "ENVELOPEFS_TEST_SKIP_FUSE")
}
pub fn have_root() -> bool {
    available(is_root(), "root", "ENVELOPEFS_TEST_SKIP_ROOT")
}
pub fn have_loop() -> bool {
    available(!flag("ENVELOPEFS_TEST_SKIP_LOOP"), "loop devices", "ENVELOPEFS_TEST_SKIP_LOOP")
}
/// For tests of what only an encrypted mount has; they say nothing about a plain directory.
pub fn have_mount() -> bool {
    available(!baseline(), "an encrypted mount, not the baseline", "ENVELOPEFS_TEST_BASELINE") && have_fuse()
}

/// Leaves the calling test where the host lacks what it needs: `needs!(have_fuse, have_root)`.
#[macro_export]
macro_rules! needs {
    ($($check:ident),+) => {
        $(if !$crate::common::$check() { return; })+
    };
}

/// Runs an external tool and returns its standard output; panics with both streams where it fails.
pub fn tool<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
/// Both streams of a finished command, for messages.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A scratch directory that every user may traverse.
pub fn scratch() -> tempfile::TempDir {
    let base = std::env::var_os("ENVELOPEFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("envelopefs-test-").tempdir_in(base).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// One encrypted directory with its own keyfile and configuration, in a scratch directory of its own.
pub struct Volume {
    scratch: Arc<tempfile::TempDir>,
    pub cipher: PathBuf,
    pub config: PathBuf,
    pub keyfile: PathBuf,
    pub mountpoint: PathBuf,
}

impl Volume {
    pub fn new() -> Self {
        Self::with_options(&[])
    }
    /// `options`: further arguments of `init`.
    pub fn with_options(options: &[&str]) -> Self {
        let volume = Self::unmade(None);
        volume.init(options);
        volume
    }
    /// The CIPHERDIR in `directory` (a loop mount, say); everything else in the scratch directory.
    pub fn on(directory: &Path) -> Self {
        let volume = Self::unmade(Some(directory));
        volume.init(&[]);
        volume
    }
    /// Paths only: no keyfile, no CIPHERDIR yet. The mountpoint exists.
    pub fn unmade(backing: Option<&Path>) -> Self {
        let scratch = Arc::new(scratch());
        let at = |name: &str| scratch.path().join(name);
        let volume = Self {
            cipher: backing.unwrap_or(scratch.path()).join("cipher"),
            config: at("config"),
            keyfile: at("config").join("cmk.json"),
            mountpoint: at("mnt"),
            scratch: scratch.clone(),
        };
        fs::create_dir(&volume.config).unwrap();
        fs::create_dir(&volume.mountpoint).unwrap();
        volume
    }
    fn init(&self, options: &[&str]) {
        if baseline() {
            fs::create_dir_all(self.cipher.join("tree")).unwrap();
            return;
        }
        self.ok(["keygen".as_ref(), self.keyfile.as_os_str()]);
        let mut arguments = vec![OsString::from("init"), "--cmk".into(), self.cmk().into()];
        arguments.extend(options.iter().map(OsString::from));
        arguments.push(self.cipher.clone().into());
        self.ok(arguments);
    }
    /// Where its mounts have their control sockets; made by the first one.
    pub fn runtime(&self) -> PathBuf {
        self.scratch().join("run")
    }
    /// The URI of this volume's CMK.
    pub fn cmk(&self) -> String {
        format!("keyfile://{}", self.keyfile.display())
    }
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }
    /// `envelopefs` with this volume's configuration directory and without the caller's environment of that kind.
    pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).env("ENVELOPEFS_CONFIG_DIR", &self.config).stdin(Stdio::null());
        command.env("ENVELOPEFS_RUNTIME_DIR", self.runtime());
        command
    }
    /// Runs to the end with output in files (a daemon that kept a pipe would hang us), whatever the exit code.
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Output {
        assert!(!baseline(), "BASELINE: this test needs the command");
        finish(&mut self.command(arguments))
    }
    /// Runs and insists on success; returns standard output.
    pub fn ok<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}\n{}", output.status, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }
    /// Runs and insists on exit code `code`; returns standard error.
    pub fn fails<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, code: i32, arguments: I) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!message.contains("panicked"), "{message}");
        assert!(!message.trim().is_empty(), "a failure must say why");
        message
    }
    /// Unmounts by the command. Children that other tests fork hold copies of our descriptors until they exec: busy then
    /// means "in a moment".
    pub fn umount(&self) {
        self.umount_at(&self.mountpoint);
    }
    pub fn umount_at(&self, mountpoint: &Path) {
        let done = eventually_some(Duration::from_secs(10), || {
            let output = self.run(["umount".as_ref(), mountpoint.as_os_str()]);
            (output.status.code() != Some(6)).then_some(output)
        });
        let output = done.expect("the mount stays busy");
        assert!(output.status.success(), "{}", text(&output));
    }
    pub fn mount(&self) -> Mount {
        self.mount_with(&[])
    }
    /// Mounts with `-o` words at this volume's mountpoint.
    pub fn mount_with(&self, options: &[&str]) -> Mount {
        self.mount_at(&self.mountpoint, options)
    }
    pub fn mount_at(&self, mountpoint: &Path, options: &[&str]) -> Mount {
        if baseline() {
            return Mount::plain(self, options);
        }
        Mount::start(self, &self.cipher, mountpoint, options)
    }
    /// Mounts another CIPHERDIR with this volume's configuration: a copy of it, say.
    pub fn mount_other(&self, cipher: &Path, mountpoint: &Path) -> Mount {
        Mount::start(self, cipher, mountpoint, &[])
    }
    /// The backing path of the object with this inode number (mounts show the backing inode's own).
    pub fn backing_of(&self, ino: u64) -> PathBuf {
        let found = walk(&self.cipher).into_iter().find(|path| fs::symlink_metadata(path).unwrap().ino() == ino);
        found.unwrap_or_else(|| panic!("no backing object has inode {ino}"))
    }
}

/// Runs a command to its end within the hang limit, with its output in files.
pub fn finish(command: &mut Command) -> Output {
    let stdout = tempfile::NamedTempFile::new().unwrap();
    let stderr = tempfile::NamedTempFile::new().unwrap();
    command.stdout(stdout.reopen().unwrap()).stderr(stderr.reopen().unwrap());
    // ETXTBSY: a child that another test forked may hold a program that was just copied open for a moment.
    let started = eventually_some(Duration::from_secs(10), || match command.spawn() {
        Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => None,
        other => Some(other),
    });
    let mut child =
        started.expect("the program stays busy").unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let status = wait_for(&mut child).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{command:?} hangs:\n{}", fs::read_to_string(stderr.path()).unwrap_or_default())
    });
    Output { status, stdout: fs::read(stdout.path()).unwrap(), stderr: fs::read(stderr.path()).unwrap() }
}
fn wait_for(child: &mut Child) -> Option<ExitStatus> {
    eventually_some(HANG, || child.try_wait().unwrap())
}

/// Polls until `check` gives a value; `None` after `limit`.
pub fn eventually_some<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
/// Polls until `check` holds; a limit this long is only reached by a bug.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let done = eventually_some(Duration::from_secs(60), || check().then_some(()));
    assert!(done.is_some(), "never happened: {what}");
}

/// A mounted volume: a foreground daemon whose log is kept and must not show a panic. Unmounts when dropped.
pub struct Mount {
    pub path: PathBuf,
    daemon: Option<Child>,
    log: PathBuf,
    /// Dropping the sender ends the watchdog.
    watchdog: Option<mpsc::Sender<()>>,
    _scratch: Arc<tempfile::TempDir>,
}

impl Mount {
    fn plain(volume: &Volume, options: &[&str]) -> Self {
        assert!(!options.contains(&"ro"), "BASELINE: no read-only mounts");
        Self {
            path: volume.cipher.join("tree"),
            daemon: None,
            log: volume.scratch().join("daemon.log"),
            watchdog: None,
            _scratch: volume.scratch.clone(),
        }
    }
    fn start(volume: &Volume, cipher: &Path, mountpoint: &Path, options: &[&str]) -> Self {
        let mut words = options.to_vec();
        if is_root() {
            words.push("allow_other");
        }
        let mut arguments = vec![OsString::from("mount"), "--foreground".into()];
        if !words.is_empty() {
            arguments.extend(["-o".into(), words.join(",").into()]);
        }
        arguments.extend([cipher.to_owned().into(), mountpoint.to_owned().into()]);
        Self::wait_until_up(volume, mountpoint, volume.command(arguments))
    }
    /// Starts a prepared foreground mount command (another user's, say) and waits until it answers.
    pub fn wait_until_up(volume: &Volume, mountpoint: &Path, mut command: Command) -> Self {
        let log = volume.scratch().join(format!("{}.log", mountpoint.file_name().unwrap().display()));
        let output = File::options().create(true).append(true).open(&log).unwrap();
        let written = output.metadata().unwrap().len() as usize;
        command.env("ENVELOPEFS_LOG", "info");
        let before = fs::metadata(mountpoint).unwrap().dev();
        let mut daemon =
            command.stdout(output.try_clone().unwrap()).stderr(output).spawn().expect("cannot start envelopefs");
        let up = eventually_some(HANG, || {
            if let Some(status) = daemon.try_wait().unwrap() {
                panic!("mount ended with {status}:\n{}", fs::read_to_string(&log).unwrap_or_default());
            }
            // A mount of another user denies stat to us: that it denies is answer enough.
            let answers = fs::metadata(mountpoint).map_or(true, |root| root.dev() != before);
            // The daemon's own word that it is ready; before it, an unmount would look to it like a failed start.
            let ready =
                || fs::read(&log).is_ok_and(|text| String::from_utf8_lossy(&text[written..]).contains("info: mounted"));
            (answers && ready()).then_some(())
        });
        let watchdog = watch(daemon.id());
        let mount = Self {
            path: mountpoint.to_owned(),
            daemon: Some(daemon),
            log,
            watchdog: Some(watchdog),
            _scratch: volume.scratch.clone(),
        };
        assert!(up.is_some(), "mount does not answer:\n{}", mount.log());
        mount
    }
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
    /// The daemon's pid as this harness started it.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("BASELINE: no daemon").id()
    }
    /// Unmounts by umount(2) (fusermount3 for other users) and waits for the daemon's clean end.
    pub fn unmount(mut self) {
        self.unmount_by(|path| {
            if is_root() {
                rustix::mount::unmount(path, UnmountFlags::empty()).map_err(io::Error::from)
            } else {
                let status = Command::new("fusermount3").arg("-u").arg(path).status()?;
                if status.success() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::ResourceBusy)) }
            }
        });
    }
    /// Unmounts by `how`, then waits for the daemon's clean end.
    pub fn unmount_with(mut self, how: impl FnMut(&Path) -> io::Result<()>) {
        self.unmount_by(how);
    }
    fn unmount_by(&mut self, mut how: impl FnMut(&Path) -> io::Result<()>) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let mut last = None;
        let unmounted = eventually_some(Duration::from_secs(10), || how(&self.path).map_err(|e| last = Some(e)).ok());
        let status = unmounted.and_then(|()| wait_for(&mut daemon));
        self.watchdog = None;
        if status.is_none() {
            let _ = daemon.kill();
            let _ = daemon.wait();
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
        match (status, last) {
            (Some(status), _) => assert!(status.success(), "the daemon ended with {status}:\n{}", self.log()),
            (None, Some(error)) => panic!("cannot unmount: {error}\n{}", self.log()),
            (None, None) => panic!("the daemon does not end after unmounting:\n{}", self.log()),
        }
        assert!(!self.log().contains("panicked"), "the daemon panicked:\n{}", self.log());
    }
    /// kill -9 of the daemon, then removal of the dead mount.
    pub fn kill(mut self) {
        let Some(mut daemon) = self.daemon.take() else { panic!("BASELINE: no daemon to kill") };
        self.watchdog = None;
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        if is_root() {
            rustix::mount::unmount(&self.path, UnmountFlags::DETACH).unwrap();
        } else {
            tool("fusermount3", &[OsStr::new("-uz"), self.path.as_os_str()]);
        }
        assert!(!self.log().contains("panicked"), "the daemon panicked:\n{}", self.log());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(mut daemon) = self.daemon.take() {
                eprintln!("--- daemon log ---\n{}", self.log());
                let _ = daemon.kill();
                let _ = daemon.wait();
                let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH).or_else(|_| {
                    Command::new("fusermount3")
                        .arg("-uz")
                        .arg(&self.path)
                        .status()
                        .map(drop)
                        .map_err(|_| rustix::io::Errno::IO)
                });
            }
            return;
        }
        // A test's descriptors and threads may outlive its mount by a moment: detach where it stays busy.
        self.unmount_by(|path| {
            if is_root() {
                rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(io::Error::from)
            } else {
                Command::new("fusermount3").arg("-uz").arg(path).status().map(drop)
            }
        });
    }
}

/// Kills a daemon that outlives the hang limit, so that a deadlock fails one test instead of stopping the run.
fn watch(pid: u32) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(2 * HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("HANG: killing daemon {pid}");
            let _ = rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
        }
    });
    alive
}

/// A user of the tests: ids that exist in no password file, with the umask that its calls use.
#[derive(Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
    pub umask: u32,
}
pub const ALICE: User = User { uid: 54_321, gid: 54_321, groups: &[], umask: 0o022 };
pub const BOB: User = User { uid: 54_322, gid: 54_322, groups: &[], umask: 0o022 };

impl User {
    pub const fn groups(mut self, groups: &'static [u32]) -> Self {
        self.groups = groups;
        self
    }
    pub const fn umask(mut self, umask: u32) -> Self {
        self.umask = umask;
        self
    }
    /// Runs `body` as this user, on a thread of its own that has these credentials alone and no capability.
    pub fn run<T: Send>(self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                private_umask(self.umask);
                let ids = |raw: &[u32]| raw.iter().map(|&g| rustix::fs::Gid::from_raw(g)).collect::<Vec<_>>();
                rustix::thread::set_thread_groups(&ids(self.groups)).unwrap();
                let (uid, gid) = (rustix::fs::Uid::from_raw(self.uid), rustix::fs::Gid::from_raw(self.gid));
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
    /// A command that runs as this user.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.uid(self.uid).gid(self.gid).stdin(Stdio::null());
        command
    }
}

/// Sets the umask of the calling thread alone, so that tests in other threads keep theirs. Needs a fresh thread.
pub fn private_umask(umask: u32) {
    sys::unshare_fs().unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
}
/// Runs `body` on a thread with its own umask.
pub fn with_umask<T: Send>(umask: u32, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            private_umask(umask);
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The errno of a failed call; 0 where it succeeded.
pub fn errno<T, E: Into<io::Error>>(result: Result<T, E>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.into().raw_os_error().expect("an error without errno"),
    }
}
/// Insists that a call failed with `expected`.
#[track_caller]
pub fn assert_errno<T, E: Into<io::Error>>(result: Result<T, E>, expected: i32) {
    let got = errno(result);
    assert!(
        got == expected,
        "expected {}, got {}",
        io::Error::from_raw_os_error(expected),
        if got == 0 { "success".to_owned() } else { io::Error::from_raw_os_error(got).to_string() }
    );
}

/// Deterministic bytes that repeat nowhere soon and hold no zero page.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
/// Compares contents and names the first difference instead of printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], want: &[u8], what: &str) {
    if got != want {
        let first = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
        panic!("{what}: {} bytes, want {}; first difference at {first}", got.len(), want.len());
    }
}
#[track_caller]
pub fn assert_file(path: &Path, want: &[u8]) {
    let got = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_same(&got, want, &path.display().to_string());
    assert_eq!(fs::metadata(path).unwrap().len(), want.len() as u64, "st_size of {}", path.display());
}

/// A small generator (splitmix64): the same sequence for the same seed on every host.
pub struct Random(u64);
impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Every object below `root` (not `root` itself), links not followed, in sorted order.
pub fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
/// Sorted names of a directory.
pub fn names(directory: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// An ext4 image of some megabytes on a loop device, mounted in a scratch directory. Unmounts when dropped.
pub struct LoopFs {
    pub path: PathBuf,
    image: PathBuf,
    _scratch: tempfile::TempDir,
}
impl LoopFs {
    /// `options`: further arguments of mkfs.ext4.
    pub fn ext4(megabytes: u64, options: &[&str]) -> Self {
        let scratch = scratch();
        let (image, path) = (scratch.path().join("image"), scratch.path().join("fs"));
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        fs::create_dir(&path).unwrap();
        let mut arguments: Vec<&OsStr> = ["-q", "-F", "-b", "4096"].map(OsStr::new).to_vec();
        arguments.extend(options.iter().map(OsStr::new));
        arguments.push(image.as_os_str());
        tool("mkfs.ext4", &arguments);
        let disk = Self { path, image, _scratch: scratch };
        disk.attach();
        disk
    }
    fn attach(&self) {
        tool("mount", &[OsStr::new("-o"), OsStr::new("loop"), self.image.as_os_str(), self.path.as_os_str()]);
    }
    /// Stops the file system without writing its journal, as a power cut would.
    pub fn cut_power(&self) {
        sys::shut_down_ext4(File::open(&self.path).unwrap()).unwrap();
    }
    /// Unmounts and mounts again: the journal is replayed.
    pub fn remount(&mut self) {
        eventually("the loop mount is free", || {
            Command::new("umount").arg(&self.path).output().unwrap().status.success()
        });
        self.attach();
    }
}
impl Drop for LoopFs {
    fn drop(&mut self) {
        let unmount = |option: &[&str]| {
            Command::new("umount").args(option).arg(&self.path).output().is_ok_and(|output| output.status.success())
        };
        let _ = unmount(&[]) || unmount(&["-l"]);
    }
}
