//! Applications on a recorded volume, and the loop that crashes them everywhere. Knows the engine by its public interface.

use std::collections::HashSet;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use envelopefs::fs::{Ino, ROOT, SetAttr};
use envelopefs::store::memory::MemoryStore;
use envelopefs::store::{Kind, RenameMode};

use crate::checked::{agrees, repaired};
use crate::disk::{Cut, History, PAGE, Rng};
use crate::examine::{Seen, absent_is_absent, examine, second_crash, use_and_empty};
use crate::oracle::{Oracle, TornBlocks};
use crate::volume::{BY, EMPTY, Engine, WRITE, format, mount};

/// A workload while it runs. Each call is one system call of an application, and panics where the engine refuses it.
pub struct App {
    disk: MemoryStore,
    pub header_pages: u32,
    fs: Option<Engine>,
    pub oracle: Oracle,
    pub rng: Rng,
    /// No crash comes before this operation.
    first_crash: usize,
    /// (operation number, transaction): begun and acknowledged.
    begun: Vec<(usize, u64)>,
    acknowledged: Vec<(usize, u64)>,
    calls: Vec<(usize, String)>,
}

/// What a workload's own check is told: transactions acknowledged before the crash, and begun before it.
#[derive(Debug, Clone, Copy)]
pub struct Transactions {
    pub acknowledged: u64,
    pub begun: u64,
}

impl App {
    fn new(header_pages: u32, seed: u64) -> (Self, MemoryStore) {
        let disk = format();
        let base = disk.snapshot();
        disk.start_recording();
        let fs = Some(mount(&disk, header_pages).expect("a fresh volume mounts"));
        let app = Self {
            disk,
            header_pages,
            fs,
            oracle: Oracle::new(),
            rng: Rng::new(seed),
            first_crash: 0,
            begun: Vec::new(),
            acknowledged: Vec::new(),
            calls: Vec::new(),
        };
        (app, base)
    }

    /// Operations so far; what failed (and harmed nobody) does not count.
    fn now(&self) -> usize {
        self.disk.recorded()
    }

    fn fs(&self) -> &Engine {
        self.fs.as_ref().expect("the volume is mounted")
    }

    fn call(&mut self, what: String) -> usize {
        let at = self.now();
        self.calls.push((at, what));
        at
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.rng.bytes(len)
    }

    pub fn create(&mut self, dir: Ino, name: &[u8]) -> Ino {
        let at = self.call(format!("create {}", short(name)));
        let ino = self.fs().create(&BY, dir, name, 0o644).expect("create").ino;
        self.oracle.add(at, dir, name, ino, Kind::File);
        ino
    }

    pub fn open(&mut self, ino: Ino) {
        self.fs().open(ino, WRITE).expect("open");
    }

    pub fn close(&mut self, ino: Ino) {
        self.call(format!("close {ino}"));
        self.fs().release(ino);
    }

    pub fn write(&mut self, ino: Ino, offset: usize, data: &[u8]) {
        let at = self.call(format!("write {ino} {offset}+{}", data.len()));
        self.fs().write(ino, offset as u64, data).expect("write");
        self.oracle.change(at, ino, |content| {
            let end = offset + data.len();
            content.resize(content.len().max(end), 0);
            content[offset..end].copy_from_slice(data);
        });
    }

    /// A file of random bytes as it was before the workload began: committed, in no crash's reach.
    pub fn durable_file(&mut self, len: usize) -> Ino {
        let file = self.create(ROOT, b"file");
        self.append(file, len);
        self.fsync(file);
        self.commit();
        self.fs().fsync(file, false).expect("fsync");
        self.first_crash = self.now();
        file
    }

    /// Random bytes at the end.
    pub fn append(&mut self, ino: Ino, len: usize) {
        let data = self.bytes(len);
        let end = self.size(ino);
        self.write(ino, end, &data);
    }

    pub fn scribble(&mut self, ino: Ino, offset: usize, len: usize) {
        let data = self.bytes(len);
        self.write(ino, offset, &data);
    }

    pub fn size(&self, ino: Ino) -> usize {
        self.oracle.content(ino).len()
    }

    pub fn truncate(&mut self, ino: Ino, size: usize) {
        let at = self.call(format!("truncate {ino} to {size}"));
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        self.fs().setattr(ino, &set).expect("truncate");
        self.oracle.change(at, ino, |content| content.resize(size, 0));
    }

    /// Opens with O_TRUNC.
    pub fn open_empty(&mut self, ino: Ino) {
        let at = self.call(format!("open {ino} with O_TRUNC"));
        self.fs().open(ino, EMPTY).expect("open");
        self.oracle.change(at, ino, Vec::clear);
    }

    fn fallocate(&mut self, what: &str, mode: i32, ino: Ino, offset: usize, len: usize) {
        let at = self.call(format!("{what} {ino} {offset}+{len}"));
        self.fs().fallocate(ino, mode, offset as u64, len as u64).expect("fallocate");
        let zeroes = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        let extends = mode & libc::FALLOC_FL_KEEP_SIZE == 0;
        self.oracle.change(at, ino, |content| {
            let end = offset + len;
            if zeroes {
                let (from, to) = (offset.min(content.len()), end.min(content.len()));
                content[from..to].fill(0);
            }
            if extends {
                content.resize(content.len().max(end), 0);
            }
        });
    }

    pub fn punch(&mut self, ino: Ino, offset: usize, len: usize) {
        self.fallocate("punch", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, ino, offset, len);
    }

    pub fn zero_range(&mut self, ino: Ino, offset: usize, len: usize) {
        self.fallocate("zero range", libc::FALLOC_FL_ZERO_RANGE, ino, offset, len);
    }

    pub fn allocate(&mut self, ino: Ino, offset: usize, len: usize) {
        self.fallocate("allocate", 0, ino, offset, len);
    }

    pub fn fsync(&mut self, ino: Ino) {
        self.call(format!("fsync {ino}"));
        self.fs().fsync(ino, false).expect("fsync");
        self.oracle.synced(self.now(), ino, false);
    }

    pub fn fdatasync(&mut self, ino: Ino) {
        self.call(format!("fdatasync {ino}"));
        self.fs().fsync(ino, true).expect("fdatasync");
        self.oracle.synced(self.now(), ino, true);
    }

    pub fn fsync_dir(&mut self, dir: Ino) {
        self.call(format!("fsync of directory {dir}"));
        self.fs().fsyncdir(dir).expect("fsync of a directory");
        self.oracle.directory_synced(self.now(), dir);
    }

    /// The background commit: makes content durable that has changed since the last one.
    pub fn commit(&mut self) {
        self.call("commit".into());
        self.fs().commit().expect("commit");
        let now = self.now();
        // Files without a name are left out: nobody will ever open them.
        for ino in self.oracle.named_files() {
            self.oracle.content_synced(now, ino);
        }
    }

    /// Unmount with its last commit, and a mount that knows nothing. Names are looked up again; nothing is open then.
    pub fn remount(&mut self) {
        self.commit();
        self.fs = None;
        let fs = mount(&self.disk, self.header_pages).expect("the volume mounts again");
        crate::examine::examine(&fs).expect("the tree is whole");
        self.fs = Some(fs);
    }

    /// The daemon is killed and started again: what it has written is there, and nothing of it is known to be durable.
    pub fn kill(&mut self) {
        self.call("kill and mount".into());
        self.fs = None;
        let fs = mount(&self.disk, self.header_pages).expect("the volume mounts again");
        crate::examine::examine(&fs).expect("the tree is whole");
        self.fs = Some(fs);
    }

    /// Killed in the middle of a truncation, which has done `n - 1` operations by then.
    pub fn truncate_and_kill(&mut self, ino: Ino, size: usize, n: u64) {
        let at = self.call(format!("truncate {ino} to {size}, killed in front of its operation {n}"));
        self.disk.fail_from(n, libc::EIO);
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        let done = self.fs().setattr(ino, &set).is_ok();
        self.disk.heal();
        if done {
            self.oracle.change(at, ino, |content| content.resize(size, 0));
        }
        self.kill();
    }

    pub fn mkdir(&mut self, dir: Ino, name: &[u8]) -> Ino {
        let at = self.call(format!("mkdir {}", short(name)));
        let ino = self.fs().mkdir(&BY, dir, name, 0o755).expect("mkdir").ino;
        self.oracle.add(at, dir, name, ino, Kind::Directory);
        ino
    }

    pub fn symlink(&mut self, dir: Ino, name: &[u8], target: &[u8]) -> Ino {
        let at = self.call(format!("symlink {}", short(name)));
        let ino = self.fs().symlink(&BY, dir, name, target).expect("symlink").ino;
        self.oracle.add(at, dir, name, ino, Kind::Symlink);
        self.oracle.add_target(ino, target);
        ino
    }

    pub fn link(&mut self, ino: Ino, dir: Ino, name: &[u8]) {
        let at = self.call(format!("link {ino} {}", short(name)));
        let kind = self.fs().link(ino, dir, name).expect("link").stat.kind;
        self.oracle.add(at, dir, name, ino, kind);
    }

    pub fn unlink(&mut self, dir: Ino, name: &[u8]) {
        let at = self.call(format!("unlink {}", short(name)));
        self.fs().unlink(dir, name).expect("unlink");
        self.oracle.rename(at, &[dir], |names| {
            names.remove(&(dir, name.to_vec()));
        });
    }

    pub fn rmdir(&mut self, dir: Ino, name: &[u8]) {
        let at = self.call(format!("rmdir {}", short(name)));
        self.fs().rmdir(dir, name).expect("rmdir");
        self.oracle.rename(at, &[dir], |names| {
            names.remove(&(dir, name.to_vec()));
        });
    }

    pub fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        let at = self.call(format!("rename {} to {}", short(from.1), short(to.1)));
        self.fs().rename(from, to, RenameMode::Replace).expect("rename");
        let (source, target) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        let replaced = self.oracle.find(to.0, to.1);
        if let Some((victim, Kind::Directory)) = replaced {
            // Documented: a crash in the middle can leave the empty directory under the old name.
            self.oracle.rename(at, &[from.0, to.0], |names| {
                let moved = names.insert(source.clone(), (victim, Kind::Directory)).expect("it was there");
                names.insert(target.clone(), moved);
            });
            self.oracle.rename(at, &[from.0], |names| {
                names.remove(&source);
            });
        } else {
            self.oracle.rename(at, &[from.0, to.0], |names| {
                let moved = names.remove(&source).expect("it was there");
                names.insert(target, moved);
            });
        }
    }

    pub fn exchange(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        let at = self.call(format!("exchange {} and {}", short(from.1), short(to.1)));
        self.fs().rename(from, to, RenameMode::Exchange).expect("exchange");
        let (a, b) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        self.oracle.rename(at, &[from.0, to.0], |names| {
            let (moved, other) = (names[&a], names[&b]);
            names.insert(a, other);
            names.insert(b, moved);
        });
    }

    pub fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) {
        let at = self.call(format!("setxattr {ino} {}", short(name)));
        self.fs().setxattr(&BY, ino, name, value, 0).expect("setxattr");
        self.oracle.change_attributes(at, ino, |all| drop(all.insert(name.to_vec(), value.to_vec())));
    }

    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8]) {
        let at = self.call(format!("removexattr {ino} {}", short(name)));
        self.fs().removexattr(ino, name).expect("removexattr");
        self.oracle.change_attributes(at, ino, |all| drop(all.remove(name)));
    }

    pub fn begin(&mut self, transaction: u64) {
        let at = self.call(format!("transaction {transaction} begins"));
        self.begun.push((at, transaction));
    }

    pub fn acknowledge(&mut self, transaction: u64) {
        let at = self.call(format!("transaction {transaction} is acknowledged"));
        self.acknowledged.push((at, transaction));
    }

    fn transactions(&self, crash: usize) -> Transactions {
        let newest =
            |of: &[(usize, u64)], until: usize| of.iter().filter(|(at, _)| *at <= until).map(|(_, t)| *t).max();
        Transactions {
            acknowledged: newest(&self.acknowledged, crash).unwrap_or(0),
            begun: newest(&self.begun, crash).unwrap_or(0),
        }
    }

    fn calls_until(&self, crash: usize) -> String {
        let made = self.calls.iter().filter(|(at, _)| *at < crash);
        made.map(|(at, what)| format!("  from operation {at:4}: {what}\n")).collect()
    }
}

fn short(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(16).collect();
    if name.len() > 16 { format!("{text}… ({} bytes)", name.len()) } else { text }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    match env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text}")),
        Err(_) => otherwise,
    }
}

/// So that the whole run takes well under a minute in the dev profile on two cores.
const DEFAULT_SAMPLES: u64 = 16;

/// Images sampled at each operation where not all can be looked at.
pub fn samples() -> usize {
    number("ENVELOPEFS_CRASH_SAMPLES", DEFAULT_SAMPLES) as usize
}

/// Programs that a random workload makes: a figure of the default run grows with the samples.
pub fn programs(default: u64) -> u64 {
    (default * samples() as u64).div_ceil(DEFAULT_SAMPLES)
}

fn seed() -> u64 {
    number("ENVELOPEFS_CRASH_SEED", 1)
}

/// `ENVELOPEFS_CRASH_ONLY=WORKLOAD/PROGRAM/OPERATION.IMAGE` runs one image of one workload, as its failure names it.
fn is_wanted(image: &str) -> bool {
    env::var("ENVELOPEFS_CRASH_ONLY").map_or(true, |only| image == only)
}

/// What a workload's own recovery makes of what is left.
pub type Verdict<'a> = dyn Fn(&Seen, Transactions) -> Result<(), String> + 'a;

/// Tears pages of a cut, and tells which.
pub type Tear<'a> = dyn Fn(&History, &mut Cut, &mut Rng) -> TornBlocks + 'a;

/// What to do with a workload.
pub struct Plan<'a> {
    pub name: &'a str,
    pub header_pages: u32,
    /// Tell apart runs of one workload with different random numbers.
    pub program: u64,
    /// Images at each operation, where not all can be looked at.
    pub samples: usize,
    /// The workload's own check, beside the promises.
    pub verdict: Option<&'a Verdict<'a>>,
    /// Tears pages: outside of what the format assumes of a disk.
    pub tear: Option<&'a Tear<'a>>,
}

/// What a run came to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub images: u64,
    pub second_crashes: u64,
    /// Blocks that could not be read, and files that could not be opened, where pages were torn.
    pub bad_blocks: u64,
    pub bad_files: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.second_crashes += other.second_crashes;
        self.bad_blocks += other.bad_blocks;
        self.bad_files += other.bad_files;
    }
}

impl Tally {
    pub fn report(&self, name: &str, since: Instant) {
        println!(
            "crash images: {name}: {} images, {} second crashes, {} blocks and {} files EIO, {:.1} s, seed {}, {} samples",
            self.images,
            self.second_crashes,
            self.bad_blocks,
            self.bad_files,
            since.elapsed().as_secs_f64(),
            seed(),
            samples()
        );
    }
}

/// Every how many images the disk is also worked with and crashed again.
const DEEP: u64 = 7;

/// Runs a workload once, and looks at what crashes leave of it.
pub fn crash(plan: &Plan<'_>, work: impl FnOnce(&mut App)) -> Tally {
    let mut hasher = DefaultHasher::new();
    (seed(), plan.name, plan.program).hash(&mut hasher);
    let run = hasher.finish();
    let (mut app, base) = App::new(plan.header_pages, run);
    work(&mut app);
    let history = History::new(base, app.disk.take_recording());
    let mut tally = Tally::default();
    let mut known = HashSet::new();
    for crash in app.first_crash..=history.ops.len() {
        let mut rng = Rng::new(run ^ (crash as u64) << 20);
        for (image, mut cut) in history.cuts(crash, plan.samples, &mut rng).into_iter().enumerate() {
            let mut rng = Rng::new(run ^ (crash as u64) << 20 ^ (image as u64 + 1));
            let torn = plan.tear.map(|tear| tear(&history, &mut cut, &mut rng)).unwrap_or_default();
            if plan.tear.is_some() && cut.torn.is_empty() {
                continue;
            }
            // The same image is judged anew only where more has been acknowledged since.
            let mut same = DefaultHasher::new();
            let written = history.ops[..crash].iter().enumerate().filter(|(_, op)| !op.is_sync());
            let kept: Vec<usize> = written.map(|(at, _)| at).collect();
            let journal = history.ops[..cut.journal].iter().filter(|op| !op.is_sync()).count();
            (history.syncs_before(crash), kept.len(), journal, &cut.lost, &cut.lengths).hash(&mut same);
            if plan.tear.is_none() && !known.insert(same.finish()) {
                continue;
            }
            let name = format!("{}/{}/{crash}.{image}", plan.name, plan.program);
            if !is_wanted(&name) {
                continue;
            }
            if let Err(e) = look(plan, &app, &history, &cut, &torn, &mut tally, &mut rng) {
                panic!(
                    "workload {}, seed {}, image {name}: {e}\n{}calls:\n{}replay it alone: ENVELOPEFS_CRASH_SEED={} \
                     ENVELOPEFS_CRASH_SAMPLES={} ENVELOPEFS_CRASH_ONLY={name}",
                    plan.name,
                    seed(),
                    history.describe(&cut),
                    app.calls_until(crash),
                    seed(),
                    samples(),
                );
            }
        }
    }
    tally
}

fn look(
    plan: &Plan<'_>,
    app: &App,
    history: &History,
    cut: &Cut,
    torn: &TornBlocks,
    tally: &mut Tally,
    rng: &mut Rng,
) -> Result<(), String> {
    let disk = history.image(cut);
    let fs = mount(&disk, plan.header_pages).map_err(|e| format!("mount: {e}"))?;
    let seen = examine(&fs)?;
    absent_is_absent(&fs, &seen, &app.oracle.ever_named())?;
    drop(fs);
    app.oracle.judge(cut.crash, &seen, torn)?;
    tally.bad_blocks += seen.files.values().map(|f| f.bad.len() as u64).sum::<u64>();
    tally.bad_files += seen.files.values().filter(|f| f.open.is_err()).count() as u64;
    if let Some(verdict) = plan.verdict {
        verdict(&seen, app.transactions(cut.crash))?;
    }
    agrees(&disk, plan.header_pages, &seen, torn)?;
    tally.images += 1;
    if tally.images.is_multiple_of(DEEP) {
        if plan.tear.is_none() {
            repaired(&disk, plan.header_pages, &seen)?;
        }
        tally.second_crashes += second_crash(&disk, plan.header_pages, &seen, 1, rng)?;
        use_and_empty(&disk, plan.header_pages, &seen, rng)?;
    }
    Ok(())
}

/// Runs a workload with one and with two header pages, and tells what was looked at.
pub fn explore(name: &str, work: impl Fn(&mut App)) {
    explore_judged(name, None, work);
}

pub fn explore_judged(name: &str, verdict: Option<&Verdict<'_>>, work: impl Fn(&mut App)) {
    run(name, samples(), verdict, work);
}

/// For short workloads that aim at one thing: nearly every image is looked at.
pub fn explore_thoroughly(name: &str, work: impl Fn(&mut App)) {
    run(name, 40 * samples(), None, work);
}

fn run(name: &str, samples: usize, verdict: Option<&Verdict<'_>>, work: impl Fn(&mut App)) {
    let start = Instant::now();
    let mut tally = Tally::default();
    for header_pages in [1, 2] {
        let plan = Plan { name, header_pages, program: u64::from(header_pages), samples, verdict, tear: None };
        tally += crash(&plan, &work);
    }
    tally.report(name, start);
    assert!(env::var("ENVELOPEFS_CRASH_ONLY").is_ok() || tally.images > 10, "{name}: {tally:?}");
}

/// Page of a backing file as what stands in it.
pub fn block_of(page: u64, header_pages: u32) -> Option<u64> {
    page.checked_sub(2 * u64::from(header_pages))
}

const _: () = assert!(PAGE == envelopefs::format::geometry::PAGE as u64);
const _: () = assert!(ROOT == 1);
