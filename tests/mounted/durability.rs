//! What survives: kill -9 under load, a power cut under the backing store, sync and the commit interval, databases.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::*;
use crate::needs;

/// One durable operation; content comes from its seed, so that a record of it is small.
#[derive(Clone, Debug)]
enum Op {
    Write { name: usize, offset: u64, len: usize, seed: u64 },
    Truncate { name: usize, len: u64 },
    Replace { name: usize, len: usize, seed: u64 },
    Rename { from: usize, to: usize },
    Unlink { name: usize },
}
const NAMES: usize = 5;
type Files = BTreeMap<usize, Vec<u8>>;

/// Every second name is long, so that it has a companion below.
fn path_of(directory: &Path, name: usize) -> PathBuf {
    directory.join(format!("f{name}{}", if name.is_multiple_of(2) { String::new() } else { "L".repeat(240) }))
}

impl Op {
    fn random(random: &mut Random, files: &Files) -> Self {
        let name = random.below(NAMES as u64) as usize;
        let seed = random.next();
        let Some(content) = files.get(&name) else {
            return Op::Replace { name, len: random.below(20_000) as usize, seed };
        };
        let size = content.len() as u64;
        match random.below(16) {
            0..5 => {
                let len = *random.pick(&[1, 17, 100, 4048, 4096, 5000, 12_288, 70_000]);
                Op::Write { name, offset: random.below(size + 1), len, seed }
            }
            5..9 => Op::Write { name, offset: size, len: *random.pick(&[1, 50, 300, 4048, 4096, 9000]), seed },
            9 => Op::Truncate { name, len: random.below(size + 5000) },
            10..13 => Op::Replace { name, len: *random.pick(&[0, 1, 4048, 5000, 40_000, 130_000]), seed },
            13 | 14 if files.len() > 1 => {
                let to = (name + 1 + random.below(NAMES as u64 - 1) as usize) % NAMES;
                Op::Rename { from: name, to }
            }
            _ => Op::Unlink { name },
        }
    }
    /// The operation with every fsync that makes it durable.
    fn run(&self, directory: &Path) -> std::io::Result<()> {
        let at = |name: &usize| path_of(directory, *name);
        let sync_directory = || File::open(directory)?.sync_all();
        match self {
            Op::Write { name, offset, len, seed } => {
                let file = OpenOptions::new().write(true).open(at(name))?;
                file.write_all_at(&pattern(*seed, *len), *offset)?;
                if seed % 2 == 0 { file.sync_all() } else { file.sync_data() }
            }
            Op::Truncate { name, len } => {
                let file = OpenOptions::new().write(true).open(at(name))?;
                file.set_len(*len)?;
                file.sync_all()
            }
            Op::Replace { name, len, seed } => {
                let temporary = directory.join(format!("f{name}.new"));
                let mut file = File::create(&temporary)?;
                file.write_all(&pattern(*seed, *len))?;
                file.sync_all()?;
                fs::rename(&temporary, at(name))?;
                sync_directory()
            }
            Op::Rename { from, to } => {
                fs::rename(at(from), at(to))?;
                sync_directory()
            }
            Op::Unlink { name } => {
                fs::remove_file(at(name))?;
                sync_directory()
            }
        }
    }
    fn apply(&self, files: &mut Files) {
        match self {
            Op::Write { name, offset, len, seed } => {
                super::content::put(files.get_mut(name).unwrap(), *offset, &pattern(*seed, *len));
            }
            Op::Truncate { name, len } => files.get_mut(name).unwrap().resize(*len as usize, 0),
            Op::Replace { name, len, seed } => drop(files.insert(*name, pattern(*seed, *len))),
            Op::Rename { from, to } => {
                let content = files.remove(from).unwrap();
                files.insert(*to, content);
            }
            Op::Unlink { name } => drop(files.remove(name)),
        }
    }
}

/// What one worker knows at the crash: the acknowledged state, and the operation that may or may not have happened.
struct Journal {
    directory: PathBuf,
    acknowledged: Files,
    pending: Option<Op>,
}

/// Runs operations until one fails because the mount is gone. `alive` says whether an acknowledgement still counts.
fn work(directory: PathBuf, seed: u64, alive: &(dyn Fn() -> bool + Sync)) -> Journal {
    let mut journal = Journal { directory, acknowledged: Files::new(), pending: None };
    let mut random = Random::new(seed);
    loop {
        let op = Op::random(&mut random, &journal.acknowledged);
        journal.pending = Some(op.clone());
        if op.run(&journal.directory).is_err() || !alive() {
            return journal;
        }
        op.apply(&mut journal.acknowledged);
        journal.pending = None;
    }
}

impl Journal {
    fn check(&self, directory: &Path) {
        let mut next = self.acknowledged.clone();
        if let Some(op) = &self.pending {
            op.apply(&mut next);
        }
        for name in 0..NAMES {
            let path = path_of(directory, name);
            let (old, new) = (self.acknowledged.get(&name), next.get(&name));
            // Every byte must be readable in any case: what was never synced is never EIO.
            let got = match fs::read(&path) {
                Ok(got) => Some(got),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => panic!("{}: {error}; pending {:?}", path.display(), self.pending),
            };
            if got.as_ref() == old || got.as_ref() == new {
                continue;
            }
            let (Some(got), Some(old), Some(new)) = (&got, old, new) else {
                panic!("f{name} is {:?}, pending {:?}", got.map(|g| g.len()), self.pending);
            };
            self.check_mixture(name, got, old, new);
        }
    }
    /// An interrupted write or truncation may be there in part; everything else must be untouched.
    fn check_mixture(&self, name: usize, got: &[u8], old: &[u8], new: &[u8]) {
        let start = match &self.pending {
            Some(Op::Write { offset, .. }) => *offset as usize,
            Some(Op::Truncate { len, .. }) => (*len as usize).min(old.len()),
            pending => panic!("f{name}: {} bytes, want {}; pending {pending:?}", got.len(), old.len()),
        };
        let (shortest, longest) = (old.len().min(new.len()), old.len().max(new.len()));
        assert!((shortest..=longest).contains(&got.len()), "f{name}: {} of {shortest}..={longest}", got.len());
        for (index, byte) in got.iter().enumerate() {
            let allowed = [old.get(index), new.get(index)];
            let zero = *byte == 0
                && (index >= old.len() || matches!(self.pending, Some(Op::Truncate { .. })) && index >= start);
            assert!(
                zero || allowed.contains(&Some(byte)),
                "f{name}: byte {index} is neither old nor new: {:?}",
                self.pending
            );
        }
    }
}

/// Starts workers and background noise on `root`, lets them run, calls `crash`, and returns what they know.
fn load_until(root: &Path, seed: u64, alive: &(dyn Fn() -> bool + Sync), crash: impl FnOnce()) -> Vec<Journal> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for worker in 0..3 {
            let directory = root.join(format!("w{worker}"));
            fs::create_dir(&directory).unwrap();
            File::open(root).unwrap().sync_all().unwrap();
            workers.push(scope.spawn(move || work(directory, seed * 10 + worker, alive)));
        }
        let ended = &ended;
        scope.spawn(move || {
            // Never synced: its content is not checked, but it must stay readable.
            let mut random = Random::new(seed);
            while !ended.load(Ordering::Acquire) {
                let path = root.join(format!("noise{}", random.below(10)));
                let written = OpenOptions::new().append(true).create(true).open(path).and_then(|mut file| {
                    file.write_all(&pattern(random.next(), *random.pick(&[10, 5000, 60_000])))?;
                    if random.below(5) == 0 { file.set_len(random.below(50_000)) } else { Ok(()) }
                });
                if written.is_err() {
                    break;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(500 + Random::new(seed).below(1500)));
        crash();
        ended.store(true, Ordering::Release);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    })
}

fn check_all(mount: &Mount, journals: &[Journal]) {
    let operations: usize = journals.iter().map(|journal| journal.acknowledged.len()).sum();
    assert!(operations > 0, "the load did nothing");
    for journal in journals {
        journal.check(&mount.join(journal.directory.file_name().unwrap()));
    }
    for path in walk(&mount.path) {
        if fs::symlink_metadata(&path).unwrap().is_file() {
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
fn remove_all(mount: &Mount) {
    for path in names(&mount.path) {
        tool("rm", &["-rf".as_ref(), mount.join(path).as_os_str()]);
    }
    assert_eq!(names(&mount.path).len(), 0);
}
fn rounds() -> u64 {
    std::env::var("ENVELOPEFS_TEST_CRASH_ROUNDS").map_or(3, |text| text.parse().expect("a number"))
}

/// The log of what was acknowledged is kept in this process, outside the mount.
#[test]
fn kill_9_loses_nothing_that_was_synced() {
    needs!(have_mount);
    let volume = Volume::new();
    let mut mount = volume.mount_with(&["commit=1"]);
    for seed in 1..=rounds() {
        let root = mount.path.clone();
        let journals = load_until(&root, seed, &|| true, || mount.kill());
        mount = volume.mount_with(&["commit=1"]);
        check_all(&mount, &journals);
        remove_all(&mount);
    }
    mount.unmount();
}

/// `EXT4_IOC_SHUTDOWN` without flushing the journal: what a power cut leaves, on a real file system.
#[test]
fn a_power_cut_loses_nothing_that_was_synced() {
    needs!(have_mount, have_root, have_loop);
    for seed in 1..=rounds() {
        let mut disk = LoopFs::ext4(300, &[]);
        let volume = Volume::on(&disk.path);
        let probe = disk.path.join("probe");
        File::create(&probe).unwrap();
        rustix::fs::sync();
        let mount = volume.mount_with(&["commit=1"]);
        let root = mount.path.clone();
        // An acknowledgement counts if the backing store was still up after it.
        let alive = || File::open(&probe).and_then(|file| file.set_modified(std::time::SystemTime::now())).is_ok();
        let journals = load_until(&root, seed, &alive, || {
            disk.cut_power();
            mount.kill();
        });
        disk.remount();
        let mount = volume.mount();
        check_all(&mount, &journals);
        remove_all(&mount);
        mount.unmount();
    }
}

/// sync(1) does not reach a FUSE daemon; the commit interval bounds what it leaves open.
#[test]
fn sync_is_bounded_by_the_commit_interval() {
    needs!(have_mount, have_root, have_loop);
    let mut disk = LoopFs::ext4(100, &[]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount_with(&["commit=1"]);
    fs::create_dir(mount.join("d")).unwrap();
    for index in 0..20 {
        fs::write(mount.join(format!("d/f{index}")), pattern(index, 10_000)).unwrap();
    }
    rustix::fs::sync();
    std::thread::sleep(Duration::from_secs(4));
    disk.cut_power();
    mount.kill();
    disk.remount();
    let mount = volume.mount();
    for index in 0..20 {
        assert_file(&mount.join(format!("d/f{index}")), &pattern(index, 10_000));
    }
    mount.unmount();
}

/// A directory made and synced through its parent must be whole: usable, and removable, after a power cut.
#[test]
fn new_directories_survive_a_power_cut_whole() {
    needs!(have_mount, have_root, have_loop);
    let mut disk = LoopFs::ext4(100, &[]);
    let volume = Volume::on(&disk.path);
    let mount = volume.mount();
    let made = |index: usize| format!("{}{index:03}", "d".repeat(if index.is_multiple_of(2) { 250 } else { 20 }));
    for index in 0..40 {
        fs::create_dir(mount.join(made(index))).unwrap();
        File::open(&mount.path).unwrap().sync_all().unwrap();
    }
    // These are never synced: they may be gone, but not broken.
    for index in 40..80 {
        fs::create_dir(mount.join(made(index))).unwrap();
        fs::write(mount.join(made(index)).join("file"), b"x").unwrap();
    }
    disk.cut_power();
    mount.kill();
    disk.remount();
    let mount = volume.mount();
    for index in 0..80 {
        let path = mount.join(made(index));
        if index < 40 || path.exists() {
            fs::write(path.join("new"), b"works").unwrap_or_else(|e| panic!("{index}: {e}"));
        }
    }
    remove_all(&mount);
    mount.unmount();
}

#[test]
fn o_sync_writes_are_durable_when_they_return() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let mut model = Vec::new();
    let open = |flag| OpenOptions::new().append(true).create(true).custom_flags(flag).open(mount.join("log")).unwrap();
    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let mut file = open(flag);
        for round in 0..50 {
            let line = pattern(round, 77);
            file.write_all(&line).unwrap();
            model.extend(line);
        }
    }
    mount.kill();
    let mount = volume.mount();
    assert_file(&mount.join("log"), &model);
}

/// A log that is appended to and synced for long: every record that was acknowledged is there, in every phase of commits.
#[test]
fn appended_records_survive_kill_9() {
    needs!(have_mount);
    let volume = Volume::new();
    let mut model = Vec::new();
    for round in 0..6_u64 {
        let mount = volume.mount_with(&["commit=1"]);
        let path = mount.join("log");
        if round > 0 {
            let got = fs::read(&path).unwrap();
            assert!(got.len() >= model.len());
            assert_same(&got[..model.len()], &model, "synced records");
            model = got;
        }
        let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        for record in 0..120 {
            let line = pattern(round * 1000 + record, 90);
            file.write_all(&line).unwrap();
            file.sync_data().unwrap();
            model.extend(line);
        }
        // The last one is never synced.
        file.write_all(b"unsynced tail").unwrap();
        if round % 2 == 0 {
            // Let a background commit run between the last sync and the crash.
            std::thread::sleep(Duration::from_millis(1500));
        }
        mount.kill();
    }
    let mount = volume.mount();
    assert_same(&fs::read(mount.join("log")).unwrap()[..model.len()], &model, "synced records");
}

#[test]
fn sync_calls_work_on_every_kind_of_handle() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("file"), b"content").unwrap();
    for path in [&mount.path, &mount.join("d"), &mount.join("file")] {
        let handle = File::open(path).unwrap();
        handle.sync_all().unwrap();
        handle.sync_data().unwrap();
        rustix::fs::syncfs(&handle).unwrap();
    }
    let both = rustix::fs::open(mount.join("file"), rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap();
    rustix::fs::fsync(&both).unwrap();
    rustix::fs::fdatasync(&both).unwrap();
}

/// SQLite in both journal modes, killed in the middle of transactions: integrity holds and every commit is there.
#[test]
fn sqlite_survives_kill_9() {
    needs!(have_mount);
    let volume = Volume::new();
    let mut committed = BTreeMap::new();
    for round in 0..2 {
        let mount = volume.mount_with(&["commit=1"]);
        let mut readers = Vec::new();
        for mode in ["wal", "delete"] {
            let path = mount.join(format!("{mode}.db"));
            if round > 0 {
                check_database(&path, committed[mode]);
            }
            let first = committed.get(mode).map_or(1, |last| last + 100_000);
            readers.push((mode, first, std::thread::spawn(move || insert_until_killed(&path, mode, first))));
        }
        std::thread::sleep(Duration::from_millis(1500));
        mount.kill();
        for (mode, first, reader) in readers {
            let last = reader.join().unwrap();
            assert!(last.is_some_and(|last| last >= first), "{mode}: no transaction was committed");
            committed.insert(mode, last.unwrap());
        }
    }
    let mount = volume.mount();
    for mode in ["wal", "delete"] {
        check_database(&mount.join(format!("{mode}.db")), committed[mode]);
    }
}
/// Inserts rows, one transaction each, until the mount goes; returns the last row that SQLite acknowledged.
fn insert_until_killed(path: &Path, mode: &str, first: u64) -> Option<u64> {
    let mut shell = Command::new("sqlite3")
        .args(["-bail".as_ref(), path.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = shell.stdin.take().unwrap();
    let setup = format!(
        "pragma journal_mode={mode};\npragma synchronous=extra;\ncreate table if not exists t(i integer primary key, b blob);\n"
    );
    let feeder = std::thread::spawn(move || {
        let _ = input.write_all(setup.as_bytes());
        for row in first..first + 50_000 {
            let statement = format!("insert into t values({row}, randomblob({}));\nselect 'done {row}';\n", row % 3000);
            if input.write_all(statement.as_bytes()).is_err() {
                break;
            }
        }
    });
    let mut last = None;
    for line in std::io::BufReader::new(shell.stdout.take().unwrap()).lines() {
        if let Some(row) = line.unwrap().strip_prefix("done ") {
            last = Some(row.parse().unwrap());
        }
    }
    shell.wait().unwrap();
    feeder.join().unwrap();
    last
}
fn check_database(path: &Path, committed: u64) {
    let answer = tool("sqlite3", &[path.as_os_str(), "pragma integrity_check; select max(i) from t;".as_ref()]);
    let mut lines = answer.lines();
    assert_eq!(lines.next(), Some("ok"), "{answer}");
    let last: u64 = lines.next().unwrap().parse().unwrap();
    assert!(last >= committed, "{last} rows survive, {committed} were committed");
}

#[test]
fn msync_and_direct_writes_survive_kill_9() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let mapped = super::content::create(&mount.join("mapped"));
    mapped.set_len(20_000).unwrap();
    let mut mapping = crate::common::sys::Mapping::shared(&mapped, 20_000).unwrap();
    mapping.store(0, &pattern(1, 20_000));
    mapping.sync().unwrap();
    let open = |name: &str| {
        let flags = libc::O_DIRECT | libc::O_DSYNC;
        OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(mount.join(name)).unwrap()
    };
    open("direct").write_all_at(&pattern(2, 12_345), 0).unwrap();
    drop(mapping);
    mount.kill();
    let mount = volume.mount();
    assert_file(&mount.join("mapped"), &pattern(1, 20_000));
    assert_file(&mount.join("direct"), &pattern(2, 12_345));
}

/// Thousands of files that nobody syncs, on a daemon that may hold few descriptors: it commits early instead of failing.
#[test]
fn few_descriptors_are_enough() {
    needs!(have_mount);
    let volume = Volume::new();
    let start = || {
        let mut command = Command::new("prlimit");
        command.args([
            "--nofile=256:256",
            env!("CARGO_BIN_EXE_envelopefs"),
            "mount",
            "--foreground",
            "-o",
            "commit=300",
        ]);
        command.args([&volume.cipher, &volume.mountpoint]).env("ENVELOPEFS_CONFIG_DIR", &volume.config);
        Mount::wait_until_up(&volume, &volume.mountpoint, command)
    };
    let mount = start();
    for directory in 0..20 {
        fs::create_dir(mount.join(format!("d{directory}"))).unwrap();
    }
    let path = |mount: &Mount, index: usize| mount.join(format!("d{}/f{index}", index % 20));
    for index in 0..2000 {
        fs::write(path(&mount, index), pattern(index as u64, 100 + index * 3)).unwrap();
    }
    // As many open at once as the limit leaves room for, in every second of them more is written.
    let open: Vec<File> = (0..100).map(|index| super::content::read_write(&path(&mount, index))).collect();
    for (index, file) in open.iter().enumerate().step_by(2) {
        file.write_all_at(b"more", (100 + index * 3) as u64).unwrap();
    }
    drop(open);
    mount.unmount();
    let mount = start();
    for index in 0..2000 {
        let mut model = pattern(index as u64, 100 + index * 3);
        if index < 100 && index.is_multiple_of(2) {
            model.extend(b"more");
        }
        assert_file(&path(&mount, index), &model);
    }
    mount.unmount();
}
