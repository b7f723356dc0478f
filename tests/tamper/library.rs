//! The differential fuzz on the library and a store in memory: thousands of tampered trees, each looked at whole, then worked
//! on and looked at again. And fuzzed headers, with every call to a provider counted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use envelopefs::format::header::Unverified;
use envelopefs::format::volume::KeyMode;
use envelopefs::fs::{Fs, FsError, Ino, ROOT};
use envelopefs::keys::CmkProvider;
use envelopefs::store::memory::MemoryStore;
use envelopefs::store::{Access, BackingFile, Creator, Kind, Place, Store};

use crate::attack::{Attack, Touched};
use crate::common::{Random, pattern};
use crate::forge::fuzz_tlvs;
use crate::oracle::{Errno, Oracle, Seen, View, Written};
use crate::world::{CountingCmk, EMPTY, Host, Model, READ, WRITE, build, caller};

/// About twenty seconds of the development profile.
const ROUNDS: u64 = 2000;

pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}
/// A seed of this run's own, unless one is given.
pub fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    setting("ENVELOPEFS_TAMPER_SEED", now.as_nanos() as u64 ^ u64::from(std::process::id()))
}

pub struct LibraryView<'a, S: Store>(pub &'a Fs<S>);

impl<S: Store> LibraryView<'_, S> {
    fn held<R>(&self, ino: Ino, body: impl FnOnce() -> R) -> Result<R, Errno> {
        self.0.open(ino, READ).map_err(|e| e.errno())?;
        let result = body();
        self.0.release(ino);
        Ok(result)
    }
}

impl<S: Store> View for LibraryView<'_, S> {
    type Node = Ino;
    fn root(&self) -> Ino {
        ROOT
    }
    fn list(&self, dir: &Ino) -> Result<Vec<Vec<u8>>, Errno> {
        let handle = self.0.opendir(*dir).map_err(|e| e.errno())?;
        let mut names = Vec::new();
        let listed = self.0.readdir(*dir, handle, 0, &mut |entry| {
            names.push(entry.name.clone());
            true
        });
        self.0.releasedir(handle);
        listed.map_err(|e| e.errno())?;
        names.retain(|name| !matches!(&name[..], b"." | b".."));
        Ok(names)
    }
    fn lookup(&self, dir: &Ino, name: &[u8]) -> Result<Seen<Ino>, Errno> {
        let attr = self.0.lookup(*dir, name).map_err(|e| e.errno())?;
        Ok(Seen { node: attr.ino, ino: attr.ino, kind: attr.stat.kind, size: attr.stat.size })
    }
    fn read(&self, ino: &Ino, pieces: &[(u64, usize)]) -> Result<Vec<Result<Vec<u8>, Errno>>, Errno> {
        self.held(*ino, || {
            let read = |(offset, len): &(u64, usize)| {
                let mut bytes = vec![0xEE; *len];
                let n = self.0.read(*ino, *offset, &mut bytes).map_err(|e| e.errno())?;
                bytes.truncate(n);
                Ok(bytes)
            };
            pieces.iter().map(read).collect()
        })
    }
    fn readlink(&self, ino: &Ino) -> Result<Vec<u8>, Errno> {
        self.0.readlink(*ino).map_err(|e| e.errno())
    }
    fn xattr(&self, ino: &Ino, name: &str) -> Result<Vec<u8>, Errno> {
        self.0.getxattr(*ino, name.as_bytes()).map_err(|e| e.errno())
    }
    fn xattrs(&self, ino: &Ino) -> Result<Vec<String>, Errno> {
        let names = self.0.listxattr(*ino).map_err(|e| e.errno())?;
        Ok(names.into_iter().map(|name| String::from_utf8_lossy(&name).into_owned()).collect())
    }
}

/// One kind of volume, built once and copied for each round.
pub struct Ground {
    pub host: Host,
    /// The CIPHERDIR, without its volume file.
    pub disk: MemoryStore,
    model: Model,
}

/// One of the directories of a CIPHERDIR.
pub fn part(disk: &MemoryStore, name: &[u8]) -> MemoryStore {
    disk.rooted_at(&disk.pin(disk.root(), name).unwrap())
}

impl Ground {
    fn new(host: Host) -> Self {
        let disk = MemoryStore::new();
        for name in [&b"tree"[..], b"overflow"] {
            disk.mkdir(disk.root(), name, 0o755, Creator { uid: 0, gid: 0, umask: 0 }).unwrap();
        }
        let parts = || (part(&disk, b"tree"), part(&disk, b"overflow"));
        Fs::format(&parts().0, &(host.keys)()).unwrap();
        let model = build(&host, &parts);
        Self { host, disk, model }
    }
    pub fn all() -> Vec<Self> {
        let kinds = [(KeyMode::Branch, 1), (KeyMode::Branch, 2), (KeyMode::PerFile, 1)];
        kinds.into_iter().map(|(mode, header_pages)| Self::new(Host::new(mode, header_pages))).collect()
    }
    /// Without CMKs of directories.
    pub fn plain() -> Self {
        let mut host = Host::new(KeyMode::Branch, 1);
        host.further = None;
        Self::new(host)
    }

    /// What the store refuses has not happened.
    pub fn tamper(&self, disk: &MemoryStore, steps: &[u64]) -> Touched {
        let (tree, overflow) = (part(disk, b"tree"), part(disk, b"overflow"));
        let mut attack = Attack::on(&tree, &overflow, &self.model, self.host.geometry);
        for step in steps {
            let _ = attack.step(*step);
        }
        attack.touched
    }

    /// Tampers by these steps, looks, works, looks again. The error says what was wrong.
    fn round(&self, steps: &[u64], work: u64) -> Outcome {
        let disk = self.disk.snapshot();
        let mut touched = self.tamper(&disk, steps);
        let mut written = Written::default();
        let mount = || self.host.mount(part(&disk, b"tree"), part(&disk, b"overflow"));
        let fs = match mount() {
            Ok(fs) => fs,
            Err(FsError::Corrupt { code: "dir-id" }) if touched.directories.contains(&ROOT) => return Ok((0, 1)),
            Err(e) => return Err(format!("the mount: {e}")),
        };
        let mut counts = self.look(&fs, &touched, &written)?;
        self.work(&fs, &mut Random::new(work), &mut touched, &mut written);
        let seen = self.look(&fs, &touched, &written).map_err(|e| format!("after work: {e}"))?;
        counts = (counts.0 + seen.0, counts.1 + seen.1);
        // What is broken may fail to commit; what works has to be there in the next mount.
        let _ = fs.commit();
        drop(fs);
        let fs = mount().map_err(|e| format!("the second mount: {e}"))?;
        let seen = self.look(&fs, &touched, &written).map_err(|e| format!("after work and a remount: {e}"))?;
        Ok((counts.0 + seen.0, counts.1 + seen.1))
    }

    fn look(&self, fs: &Fs<MemoryStore>, touched: &Touched, written: &Written) -> Outcome {
        let mut oracle = Oracle::new(&self.model, touched, written);
        oracle.check(&LibraryView(fs)).map_err(|e| format!("{e}\n  {:#?}\n  {:?}", touched.told, written.told()))?;
        Ok((oracle.served, oracle.refused))
    }

    /// A few changes through the mount of the tampered tree, where they succeed.
    fn work(&self, fs: &Fs<MemoryStore>, random: &mut Random, touched: &mut Touched, written: &mut Written) {
        let view = LibraryView(fs);
        let mut files = Vec::new();
        reachable(&view, ROOT, 0, &mut files);
        files.sort_by_key(|(_, _, seen)| seen.ino);
        for _ in 0..4 {
            if files.is_empty() {
                return;
            }
            let at = random.below(files.len() as u64) as usize;
            let (dir, name, seen) = files[at].clone();
            let data = pattern(random.next(), 1 + random.below(9000) as usize);
            match random.below(5) {
                0 | 1 => {
                    let size = view.lookup(&dir, &name).map_or(0, |seen| seen.size).min(200_000);
                    let offset = random.below(size + 1);
                    if written.wholes.iter().any(|(ino, _)| *ino == seen.ino) || fs.open(seen.ino, WRITE).is_err() {
                        continue;
                    }
                    if fs.write(seen.ino, offset, &data).is_ok() {
                        if size == 0 {
                            written.wholes.push((seen.ino, data.clone()));
                        }
                        written.parts.push((seen.ino, offset, data));
                        written.touched.insert(seen.ino);
                    } else {
                        // A run of several blocks may be stored in part.
                        touched.whole.insert(seen.ino);
                    }
                    fs.release(seen.ino);
                }
                2 => {
                    // Whatever it is: emptying works, and what is written then is there.
                    if fs.open(seen.ino, EMPTY).is_ok() {
                        let wrote = fs.write(seen.ino, 0, &data);
                        fs.release(seen.ino);
                        if wrote.is_ok() {
                            written.wholes.push((seen.ino, data));
                            written.touched.insert(seen.ino);
                        }
                    }
                }
                3 => {
                    if fs.unlink(dir, &name).is_ok() {
                        touched.directories.insert(dir);
                        files.remove(at);
                    }
                }
                _ => {
                    if fs.setxattr(&caller(), seen.ino, b"user.later", b"value", 0).is_ok() {
                        assert_eq!(fs.getxattr(seen.ino, b"user.later").ok().as_deref(), Some(&b"value"[..]));
                        written.touched.insert(seen.ino);
                    }
                }
            }
        }
    }
}

/// How many answers were true, and how many refused; or what was wrong.
pub type Outcome = Result<(u64, u64), String>;
type Found = (Ino, Vec<u8>, Seen<Ino>);

fn reachable<V: View<Node = Ino>>(view: &V, dir: Ino, depth: usize, found: &mut Vec<Found>) {
    for name in view.list(&dir).unwrap_or_default() {
        match view.lookup(&dir, &name) {
            Ok(seen) if seen.kind == Kind::Directory && depth < 20 => reachable(view, seen.node, depth + 1, found),
            Ok(seen) if seen.kind == Kind::File => found.push((dir, name, seen)),
            _ => {}
        }
    }
}

/// Runs a round, and where it fails finds the fewest steps that make it fail.
fn narrowed(run: &dyn Fn(&[u64]) -> Outcome, steps: &[u64]) -> Outcome {
    let attempt = |steps: &[u64]| {
        catch_unwind(AssertUnwindSafe(|| run(steps))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        })
    };
    let mut failure = match attempt(steps) {
        Ok(counts) => return Ok(counts),
        Err(failure) => failure,
    };
    let mut steps = steps.to_vec();
    let mut at = 0;
    while at < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(at);
        match attempt(&fewer) {
            Err(same) => (steps, failure) = (fewer, same),
            Ok(_) => at += 1,
        }
    }
    Err(format!("{failure}\n  by the steps {steps:?}"))
}

#[test]
fn random_tampering() {
    in_rounds(ROUNDS, &Ground::all(), Ground::round);
}

/// Runs many rounds, each with steps of its own, on these grounds. `rounds`: of the default run.
pub fn in_rounds(rounds: u64, grounds: &[Ground], run: impl Fn(&Ground, &[u64], u64) -> Outcome) {
    let (seed, rounds) = (seed(), setting("ENVELOPEFS_TAMPER_ROUNDS", rounds));
    println!("ENVELOPEFS_TAMPER_SEED={seed} ENVELOPEFS_TAMPER_ROUNDS={rounds}");
    for (n, ground) in grounds.iter().enumerate() {
        let untouched = narrowed(&|steps| run(ground, steps, 1), &[]);
        untouched.unwrap_or_else(|e| panic!("ground {n}, not tampered with: {e}"));
    }
    let before = peak();
    let (mut served, mut refused) = (0, 0);
    for round in 0..rounds {
        // A round is known by its own seed alone, whatever came before it.
        let mut random = Random::new(seed.wrapping_add(round.wrapping_mul(0x1234_5678_9abc_def1)));
        let ground = &grounds[random.below(grounds.len() as u64) as usize];
        let steps: Vec<u64> = (0..=random.below(7)).map(|_| random.next()).collect();
        let work = random.next();
        let started = Instant::now();
        match narrowed(&|steps| run(ground, steps, work), &steps) {
            Ok((good, bad)) => (served, refused) = (served + good, refused + bad),
            Err(e) => panic!("ENVELOPEFS_TAMPER_SEED={seed}, round {round}: {e}"),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "round {round} hangs");
    }
    println!("{rounds} tampered trees: {served} answers were true, {refused} refused");
    assert!(rounds < 100 || (served > rounds * 100 && refused > rounds), "the oracle looks at nothing");
    let grown = peak().saturating_sub(before);
    assert!(grown < 512 << 10, "{grown} KiB more at peak");
}

/// Peak resident memory of this process in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Corpus 18: whatever a header's TLVs say, a provider is asked only for one that parses and names a CMK of this mount, and
/// then a bounded number of times.
#[test]
fn fuzzed_headers() {
    const HEADERS: u64 = 4000;
    let seed = seed();
    println!("ENVELOPEFS_TAMPER_SEED={seed}");
    let cmk = CountingCmk::new("one");
    let mut host = Host::new(KeyMode::Branch, 1);
    host.own = vec![cmk.clone() as Arc<dyn CmkProvider>];
    host.further = None;
    let (tree, overflow) = (MemoryStore::new(), MemoryStore::new());
    Fs::format(&tree, &(host.keys)()).unwrap();
    let open = || host.mount(tree.rooted_at(tree.root()), overflow.rooted_at(overflow.root())).unwrap();
    let fs = open();
    let attr = fs.create(&caller(), ROOT, b"file", 0o644).unwrap();
    fs.write(attr.ino, 0, &pattern(1, 5000)).unwrap();
    fs.release(attr.ino);
    fs.commit().unwrap();
    drop(fs);
    let raw = tree.list(tree.root()).unwrap().into_iter().find(|entry| entry.kind == Kind::File).unwrap();
    let place = Place::Entry { dir: tree.root(), name: &raw.name };
    let backing = tree.open_file(place, Access::ReadWrite).unwrap();
    let mut good = vec![0; host.geometry.slot_len()];
    backing.read_at(&mut good, 0).unwrap();
    let mut random = Random::new(seed);
    let (mut parsed, mut called, mut opened) = (0, 0, 0);
    for n in 0..HEADERS {
        let mut header = good.clone();
        fuzz_tlvs(&mut header, &mut random);
        backing.write_at(&header, 0).unwrap();
        let before = cmk.calls.load(Ordering::Relaxed);
        // A mount of its own, so that no key is there yet.
        let fs = open();
        let ino = fs.lookup(ROOT, b"file").unwrap().ino;
        let result = fs.open(ino, READ);
        let calls = cmk.calls.load(Ordering::Relaxed) - before;
        let claims = Unverified::parse(&header, host.geometry).ok();
        let names_ours = claims.as_ref().is_some_and(|header| {
            header.claims().slots.iter().any(|slot| slot.provider == "test" && slot.key_ref == "one")
        });
        assert!(names_ours || calls == 0, "header {n}: a provider was asked");
        assert!(calls <= 4, "header {n}: {calls} calls");
        match result.map_err(|e| e.errno()) {
            Ok(()) => {
                let mut content = vec![0; 5000];
                assert_eq!(fs.read(ino, 0, &mut content).ok(), Some(5000), "header {n}");
                assert!(content == pattern(1, 5000), "header {n}: other bytes");
                opened += 1;
            }
            Err(libc::EIO) => {}
            Err(libc::ENOKEY) => assert!(claims.is_some(), "header {n} does not parse"),
            Err(other) => panic!("header {n}: errno {other}"),
        }
        parsed += u64::from(claims.is_some());
        called += u64::from(calls > 0);
    }
    println!("{HEADERS} headers: {parsed} parse, {called} lead to a provider, {opened} open the true file");
    assert!(parsed > HEADERS / 20 && parsed < HEADERS && called > 0, "both kinds are there");
}
