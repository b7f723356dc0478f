//! What the memory of a running mount gives away: to a core dump, to a reader of /proc/PID/mem, and after keys are dropped.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use envelopefs::crypto::{aead::AeadKey, file_keys::FileKeys, secret::Secret32};
use envelopefs::sys::locked;

use super::secrecy_keys::{PASSPHRASE, Sealed};
use super::secrecy_search::{Memory, Needles, mappings};
use super::{content, xattr_acl};
use crate::common::*;
use crate::needs;

const PLAINTEXT: &[u8] = b"plaintext-Wombat-6519-in-a-read-buffer ";

/// A core of a running process, as an administrator takes one: gcore (of gdb), which leaves out what MADV_DONTDUMP says.
fn core_of(pid: u32, directory: &Path) -> PathBuf {
    let prefix = directory.join("core");
    tool("gcore", &["-o", prefix.to_str().unwrap(), &pid.to_string()]);
    directory.join(format!("core.{pid}"))
}

/// A mount that has done everything with keys: opened a file of an earlier mount, created one, renamed, set attributes, made
/// links. Both files are open.
struct Busy {
    old: File,
    new: File,
    /// Last: it is unmounted once the files are closed.
    mount: Mount,
}

fn work(sealed: &Sealed, wrapper: &[&str]) -> Busy {
    let first = sealed.mount_by(&["env"], "info");
    fs::write(first.join("old"), PLAINTEXT.repeat(1000)).unwrap();
    first.unmount();
    let mount = sealed.mount_by(wrapper, "info");
    let old = content::read_write(&mount.join("old"));
    let mut text = vec![0; 30_000];
    old.read_exact_at(&mut text, 0).unwrap();
    assert_same(&text, &PLAINTEXT.repeat(1000)[..30_000], "old");
    let new = content::create(&mount.join("new"));
    new.write_all_at(&PLAINTEXT.repeat(1000), 0).unwrap();
    xattr_acl::set(&mount.join("new"), "user.Aardvark", b"value").unwrap();
    std::os::unix::fs::symlink("target", mount.join("link")).unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    fs::rename(mount.join("new"), mount.join("directory/new")).unwrap();
    new.sync_all().unwrap();
    old.write_all_at(PLAINTEXT, 100).unwrap();
    old.sync_all().unwrap();
    Busy { old, new, mount }
}

impl Busy {
    fn secrets(&self, sealed: &Sealed) -> Needles {
        let mut needles = Needles::default();
        sealed.volume_secrets(&mut needles);
        for (name, file) in [("old", &self.old), ("new", &self.new)] {
            sealed.file_secrets(name, file.metadata().unwrap().ino(), &mut needles);
        }
        needles
    }
}

/// Things that do lie in ordinary memory, so that a search which finds no key has searched the right thing.
fn controls(sealed: &Sealed) -> Needles {
    let mut controls = Needles::default();
    controls.add("plaintext", PLAINTEXT);
    controls.add("mountpoint", sealed.volume.mountpoint.as_os_str().as_encoded_bytes());
    controls
}
#[track_caller]
fn assert_controls(found: &BTreeSet<&str>) {
    assert_eq!(*found, BTreeSet::from(["mountpoint", "plaintext"]), "what does lie in memory is found");
}
fn raw(found: &BTreeSet<String>) -> BTreeSet<&str> {
    found.iter().filter_map(|what| what.strip_suffix(" (raw)")).collect()
}

/// Whether this kernel has memfd_secret(2).
fn hidden_memory() -> bool {
    let _key = Secret32::random();
    locked::usage().hidden
}
/// What is found lies in memory that no dump shows; where memory can be hidden, nothing is found at all.
#[track_caller]
fn assert_kept(memory: &Memory, hidden: bool) {
    let outside: Vec<_> = memory.found.iter().filter(|(_, place)| !place.undumped).collect();
    assert!(outside.is_empty(), "secrets in ordinary memory: {outside:#?}");
    if hidden {
        assert!(memory.found.is_empty(), "secrets that can be read: {:#?}", memory.found);
        assert!(memory.unreadable.iter().any(|name| name.contains("secretmem")), "{:?}", memory.unreadable);
    }
}

fn no_secret_leaves_a_mount(sealed: &Sealed) {
    let busy = work(sealed, &["env"]);
    let (secrets, controls) = (busy.secrets(sealed), controls(sealed));
    let pid = busy.mount.pid();
    let core = core_of(pid, sealed.volume.scratch());
    assert_controls(&raw(&controls.within_file(&core)));
    let found = secrets.within_file(&core);
    assert!(found.is_empty(), "in the core: {found:#?}");
    assert_controls(&controls.within_process(pid).raw());
    assert_kept(&secrets.within_process(pid), hidden_memory());
}

#[test]
fn no_core_and_no_reader_of_memory_sees_a_key() {
    needs!(have_mount, have_root);
    no_secret_leaves_a_mount(&Sealed::new(false));
}

#[test]
fn nor_a_passphrase_or_what_it_opens() {
    needs!(have_mount, have_root);
    no_secret_leaves_a_mount(&Sealed::new(true));
}

/// Where memory can neither be hidden nor locked, keys are where the search can find them, so it is seen to find them on a
/// real mount; still no core has them. What is not needed any more is nowhere.
#[test]
fn without_locked_memory_cores_have_no_keys_and_one_warning_tells() {
    needs!(have_mount, have_root);
    let sealed = Sealed::new(true);
    let busy = work(&sealed, &["prlimit", "--memlock=0:0", "setpriv", "--bounding-set=-ipc_lock"]);
    let (secrets, pid) = (busy.secrets(&sealed), busy.mount.pid());
    let memory = secrets.within_process(pid);
    assert_kept(&memory, false);
    let held = memory.raw();
    let kept = ["file PRK", "header key", "block key", "branch key"];
    for what in kept.into_iter().flat_map(|key| ["old", "new"].map(|file| format!("{file}: {key}"))) {
        assert!(held.contains(what.as_str()), "{what} is not found where it must be: {held:?}");
    }
    for what in ["CMK", "origin", "names s2v"] {
        assert!(held.contains(what), "{what} is not found where it must be: {held:?}");
    }
    for what in ["passphrase", "passphrase key", "volume key", "volume PRK", "old: DEK", "new: DEK"] {
        assert!(!held.contains(what), "{what} was not wiped");
    }
    let found = secrets.within_file(&core_of(pid, sealed.volume.scratch()));
    assert!(found.is_empty(), "in the core: {found:#?}");
    let log = busy.mount.log();
    assert_eq!(log.matches("keys cannot be locked in memory").count(), 1, "{log}");
    assert!(log.contains("LimitMEMLOCK="), "{log}");
}

/// A closed file's keys are wiped, in the only place where this can be seen: memory that is not hidden.
#[test]
fn keys_of_closed_files_are_gone() {
    needs!(have_mount, have_root);
    let sealed = Sealed::new(false);
    let busy = work(&sealed, &["prlimit", "--memlock=0:0", "setpriv", "--bounding-set=-ipc_lock"]);
    let (secrets, pid) = (busy.secrets(&sealed), busy.mount.pid());
    let Busy { old, new, mount } = busy;
    assert!(secrets.within_process(pid).raw().contains("old: file PRK"));
    drop((old, new));
    let gone =
        |what: &str| ["file PRK", "header key", "block key", "xattr key", "DEK"].iter().any(|key| what.ends_with(key));
    eventually("the keys of closed files are wiped", || {
        // Their inodes are forgotten, and with them what a commit still needed.
        rustix::fs::syncfs(File::open(&mount.path).unwrap()).unwrap();
        !secrets.within_process(pid).raw().iter().any(|what| gone(what))
    });
    assert_controls(&controls(&sealed).within_process(pid).raw());
}

/// `envelopefs forget-keys MOUNTPOINT`, where this build has it: open files lose their keys too.
#[test]
fn forgotten_keys_are_gone_while_files_are_open() {
    needs!(have_mount, have_root);
    let sealed = Sealed::new(false);
    let busy = work(&sealed, &["prlimit", "--memlock=0:0", "setpriv", "--bounding-set=-ipc_lock"]);
    let (secrets, pid) = (busy.secrets(&sealed), busy.mount.pid());
    assert!(secrets.within_process(pid).raw().contains("old: file PRK"));
    sealed.volume.ok(["forget-keys".as_ref(), sealed.volume.mountpoint.as_os_str()]);
    let left = secrets.within_process(pid);
    let of_files: Vec<_> = left.found.keys().filter(|what| what.contains(": ")).collect();
    assert!(of_files.is_empty(), "{of_files:#?}");
}
const HOLDER: &str = "ENVELOPEFS_TEST_KEY_HOLDER";

/// A process of its own that reads 32 bytes and keeps them, in ordinary memory or as the library does.
struct Holder {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Holder {
    fn start(how: &str, key: &[u8; 32]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "secrecy_memory::holder", "--nocapture"]).env(HOLDER, how);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        process.stdin.as_mut().unwrap().write_all(key).unwrap();
        let mut holder = Self { output: BufReader::new(process.stdout.take().unwrap()), process };
        holder.wait_for("HOLDING");
        holder
    }
    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the holder ended without {word}");
        }
    }
    fn tell(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"d").unwrap();
        self.wait_for("DROPPED");
    }
}
impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.output.read_to_string(&mut String::new());
        let _ = self.process.wait();
    }
}

/// Does nothing but in a process that [`Holder`] starts.
#[test]
fn holder() {
    let Ok(how) = std::env::var(HOLDER) else { return };
    let stdin = || std::io::stdin();
    // Straight into its place: std's own buffer would keep a copy.
    let fill = |place: &mut [u8; 32]| {
        let mut filled = 0;
        while filled < 32 {
            match rustix::io::read(stdin(), &mut place[filled..]).unwrap() {
                0 => panic!("no key came"),
                n => filled += n,
            }
        }
        Ok::<(), ()>(())
    };
    let wait = |word: &str| {
        println!("{word}");
        rustix::io::read(stdin(), &mut [0; 1]).unwrap();
    };
    if how == "ordinary" {
        let mut key = Box::new([0; 32]);
        fill(&mut key).unwrap();
        wait("\nHOLDING");
        drop(std::hint::black_box(key));
        wait("DROPPED");
        return;
    }
    let key = Secret32::written_by(fill).unwrap();
    let schedule = AeadKey::new(&key);
    let file = FileKeys::derive(&[7; 32], &key);
    let block = file.block_key([1, 2, 3, 4]);
    wait("\nHOLDING");
    drop(std::hint::black_box((key, schedule, file, block)));
    wait("DROPPED");
}

/// The same search on the same program: it sees a key in ordinary memory, in core and memory, and not one that the library keeps.
#[test]
fn a_key_in_ordinary_memory_is_found_and_one_of_the_library_is_not() {
    needs!(have_root);
    let directory = scratch();
    let key: [u8; 32] = pattern(77, 32).try_into().unwrap();
    let mut needles = Needles::default();
    needles.add("key", &key);

    let ordinary = Holder::start("ordinary", &key);
    let pid = ordinary.process.id();
    assert!(needles.within_process(pid).raw().contains("key"));
    assert!(needles.within_file(&core_of(pid, directory.path())).contains("key (raw)"));
    drop(ordinary);

    let file = FileKeys::derive(&[7; 32], &Secret32::from_bytes(key));
    needles.add("xattr key", file.xattr_key().expose());
    let mut library = Holder::start("library", &key);
    let pid = library.process.id();
    let core = core_of(pid, directory.path());
    assert!(needles.within_file(&core).is_empty(), "{:?}", needles.within_file(&core));
    assert_kept(&needles.within_process(pid), hidden_memory());
    library.tell();
    assert!(needles.within_process(pid).found.is_empty());
}

/// Locked pages, not only hidden ones: the kernel says so, and the daemon has no other key memory.
#[test]
fn the_daemons_key_memory_is_locked() {
    needs!(have_mount, have_root);
    let sealed = Sealed::new(false);
    let busy = work(&sealed, &["env"]);
    let pid = busy.mount.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
    assert!(!locked.starts_with("0 "), "nothing is locked");
    if hidden_memory() {
        assert!(mappings(pid).iter().any(|m| m.name.contains("secretmem") && m.undumped && m.permissions == "rw-s"));
    }
}

/// A passphrase that is typed: not shown, and not left behind in the daemon that asked for it.
#[test]
fn a_typed_passphrase_leaves_nothing_behind() {
    needs!(have_mount, have_root);
    let sealed = Sealed::new(true);
    let volume = &sealed.volume;
    let shell = |path: &Path| path.display().to_string();
    let mount = format!("{} mount {} {}", shell(&binary()), shell(&volume.cipher), shell(&volume.mountpoint));
    // script(1) gives the command a terminal of its own and types what it reads.
    let mut typing = Command::new("script")
        .args(["-qec", &mount, "/dev/null"])
        .env("ENVELOPEFS_CONFIG_DIR", &volume.config)
        .env("ENVELOPEFS_RUNTIME_DIR", volume.runtime())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = typing.stdin.take().unwrap();
    let mut shown = Vec::new();
    let mut screen = typing.stdout.take().unwrap();
    while !shown.ends_with(b": ") {
        let mut byte = [0];
        assert_eq!(screen.read(&mut byte).unwrap(), 1, "no prompt: {}", String::from_utf8_lossy(&shown));
        shown.push(byte[0]);
    }
    // Wrong first, then mistyped and corrected.
    keyboard.write_all(format!("Basilisk-7733 wrong\r{PASSPHRASE}x\x7f\r").as_bytes()).unwrap();
    screen.read_to_end(&mut shown).unwrap();
    assert!(typing.wait().unwrap().success(), "{}", String::from_utf8_lossy(&shown));
    let mut needles = Needles::default();
    sealed.volume_secrets(&mut needles);
    needles.add("wrong passphrase", b"Basilisk-7733 wrong");
    // Its beginning is enough: pieces count.
    needles.add("a piece", &PASSPHRASE.as_bytes()[..14]);
    let found = needles.within(&shown);
    assert!(found.is_empty(), "on the screen: {found:#?}");
    let pid = xattr_acl::get(&volume.mountpoint, "user.envelopefs.pid").unwrap();
    let pid: u32 = String::from_utf8(pid).unwrap().trim().parse().unwrap();
    let memory = needles.within_process(pid);
    volume.umount();
    assert_kept(&memory, hidden_memory());
    assert!(memory.found.keys().all(|what| !what.contains("pass") && !what.contains("piece")), "{:#?}", memory.found);
}
