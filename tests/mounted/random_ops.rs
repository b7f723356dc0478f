//! Seeded random operations on a mount and on a plain directory side by side: same results, same trees, also after remounts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};

use super::content::read_write;
use super::xattr_acl;
use crate::common::*;
use crate::needs;

/// One operation, drawn once and run on both trees.
#[derive(Debug, Clone)]
enum Op {
    Create(PathBuf, u32),
    Write(PathBuf, u64, usize, u64),
    Append(PathBuf, usize, u64),
    Truncate(PathBuf, u64),
    Empty(PathBuf),
    Allocate(PathBuf, u32, u64, u64),
    Copy(PathBuf, PathBuf),
    Sync(PathBuf),
    Read(PathBuf, u64, usize),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u32),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, usize),
    Chmod(PathBuf, u32),
    SetTime(PathBuf, i64),
    SetXattr(PathBuf, u64, usize),
    RemoveXattr(PathBuf, u64),
    List(PathBuf),
}

fn name(random: &mut Random) -> String {
    let base = format!("n{}", random.below(6));
    // Some names are long enough for a companion below.
    if random.below(4) == 0 { format!("{base}{}", "L".repeat(240)) } else { base }
}
fn path(random: &mut Random) -> PathBuf {
    let depth = [0, 0, 1, 1, 2][random.below(5) as usize];
    let mut path: PathBuf = (0..depth).map(|_| format!("d{}", random.below(3))).collect();
    path.push(if random.below(5) == 0 { format!("d{}", random.below(3)) } else { name(random) });
    path
}
fn draw(random: &mut Random) -> Op {
    let offset =
        |random: &mut Random| *random.pick(&[0, 1, 100, 4000, 4047, 4048, 4096, 8096, 10_000, 50_000, 300_000]);
    let len = |random: &mut Random| *random.pick(&[1, 10, 48, 4047, 4048, 4096, 5000, 20_000, 140_000]) as usize;
    match random.below(40) {
        0..4 => Op::Create(path(random), *random.pick(&[0o644, 0o600, 0o755])),
        4..11 => Op::Write(path(random), offset(random), len(random), random.next()),
        11..14 => Op::Append(path(random), len(random), random.next()),
        14..16 => Op::Truncate(path(random), offset(random) + random.below(3)),
        16 => Op::Empty(path(random)),
        17 => Op::Allocate(path(random), *random.pick(&[0, 1, 3, 3]), offset(random), len(random) as u64),
        18 => Op::Copy(path(random), path(random)),
        19 => Op::Sync(path(random)),
        20..23 => Op::Read(path(random), offset(random), len(random)),
        23..26 => Op::Mkdir(path(random)),
        26 => Op::Rmdir(path(random)),
        27 | 28 => Op::Unlink(path(random)),
        29..32 => Op::Rename(path(random), path(random), *random.pick(&[0, 0, 0, 1, 2])),
        32 => Op::Link(path(random), path(random)),
        33 => Op::Symlink(path(random), *random.pick(&[1, 50, 700, 1500, 4000])),
        34 => Op::Chmod(path(random), *random.pick(&[0o644, 0o600, 0o755, 0o4711, 0o400])),
        35 => Op::SetTime(path(random), random.below(2_000_000_000) as i64),
        36 | 37 => Op::SetXattr(path(random), random.below(3), *random.pick(&[0, 1, 100, 600])),
        38 => Op::RemoveXattr(path(random), random.below(3)),
        _ => Op::List(path(random).parent().unwrap().to_owned()),
    }
}

/// Runs an operation below `root`; what it answers must be the same everywhere.
fn run(op: &Op, root: &Path) -> io::Result<Vec<u8>> {
    let at = |path: &PathBuf| root.join(path);
    let open = |path: &PathBuf| OpenOptions::new().read(true).write(true).open(root.join(path));
    match op {
        Op::Create(path, mode) => {
            let file = File::create_new(at(path))?;
            file.set_permissions(fs::Permissions::from_mode(*mode))?;
        }
        Op::Write(path, offset, len, seed) => open(path)?.write_all_at(&pattern(*seed, *len), *offset)?,
        Op::Append(path, len, seed) => {
            let mut file = OpenOptions::new().append(true).open(at(path))?;
            io::Write::write_all(&mut file, &pattern(*seed, *len))?;
        }
        Op::Truncate(path, len) => open(path)?.set_len(*len)?,
        Op::Empty(path) => drop(OpenOptions::new().write(true).truncate(true).open(at(path))?),
        Op::Allocate(path, mode, offset, len) => {
            fallocate(open(path)?, FallocateFlags::from_bits_retain(*mode), *offset, *len)?;
        }
        Op::Copy(from, to) => {
            if from != to {
                let (mut source, mut target) = (File::open(at(from))?, open(to)?);
                if source.metadata()?.ino() != target.metadata()?.ino() && source.metadata()?.is_file() {
                    io::copy(&mut source, &mut target)?;
                }
            }
        }
        Op::Sync(path) => File::open(at(path))?.sync_all()?,
        Op::Read(path, offset, len) => {
            let file = File::open(at(path))?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            let mut buffer = vec![0; *len];
            let got = super::content::read_up_to(&file, &mut buffer, *offset);
            buffer.truncate(got);
            return Ok(buffer);
        }
        Op::Mkdir(path) => fs::create_dir(at(path))?,
        Op::Rmdir(path) => fs::remove_dir(at(path))?,
        Op::Unlink(path) => fs::remove_file(at(path))?,
        Op::Rename(from, to, flags) => {
            renameat_with(CWD, at(from), CWD, at(to), RenameFlags::from_bits_retain(*flags))?;
        }
        Op::Link(from, to) => fs::hard_link(at(from), at(to))?,
        Op::Symlink(path, len) => symlink("t".repeat(*len), at(path))?,
        Op::Chmod(path, mode) => {
            // Not through a symlink, and no directory is closed.
            if fs::symlink_metadata(at(path))?.is_file() {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?;
            }
        }
        Op::SetTime(path, seconds) => super::metadata::set_times_result(&at(path), *seconds)?,
        Op::SetXattr(path, number, len) => {
            xattr_acl::set(&at(path), &format!("user.x{number}"), &pattern(*number, *len))?
        }
        Op::RemoveXattr(path, number) => rustix::fs::removexattr(at(path), format!("user.x{number}"))?,
        Op::List(path) => {
            let mut names: Vec<_> = fs::read_dir(at(path))?.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            return Ok(format!("{names:?}").into_bytes());
        }
    }
    Ok(Vec::new())
}

/// Everything that both trees must agree on.
fn describe(root: &Path) -> Vec<String> {
    let describe_one = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let mut text = format!(
            "{name:?} mode {:o} nlink {}",
            metadata.mode(),
            if metadata.is_dir() { 0 } else { metadata.nlink() }
        );
        if metadata.is_symlink() {
            return format!("{text} -> {}", fs::read_link(&path).unwrap().display());
        }
        let attributes: Vec<_> = xattr_acl::list(&path)
            .into_iter()
            .map(|name| (name.clone(), xattr_acl::get(&path, &name).unwrap()))
            .collect();
        if metadata.is_file() {
            let content = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(content.len() as u64, metadata.len());
            // Times that were set by hand are in the past; others differ between the trees.
            let set =
                if metadata.mtime() < 2_000_000_000 && metadata.mtime_nsec() == 5 { metadata.mtime() } else { -1 };
            text = format!("{text} size {} mtime {set} {:016x}", content.len(), digest(&content));
        }
        format!("{text} {attributes:?}")
    };
    walk(root).into_iter().map(describe_one).collect()
}
fn digest(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn compare_trees(seed: u64, operations: usize) {
    let volume = Volume::new();
    let mut mount = volume.mount_with(&["commit=1"]);
    let plain = tempfile::Builder::new().prefix("envelopefs-model-").tempdir_in("/dev/shm").unwrap();
    let mut random = Random::new(seed);
    let mut recent = std::collections::VecDeque::new();
    for step in 0..operations {
        let op = draw(&mut random);
        recent.push_back(op.clone());
        if recent.len() > 12 {
            recent.pop_front();
        }
        let (ours, theirs) = (run(&op, &mount.path), run(&op, plain.path()));
        let same = match (&ours, &theirs) {
            (Ok(a), Ok(b)) => a == b,
            (Err(a), Err(b)) => a.raw_os_error() == b.raw_os_error(),
            _ => false,
        };
        assert!(same, "seed {seed} step {step}: {} against {}\n{recent:#?}", show(&ours), show(&theirs));
        if step % 400 == 399 {
            let (a, b) = (describe(&mount.path), describe(plain.path()));
            assert_eq!(a, b, "seed {seed} step {step}");
            mount.unmount();
            mount = volume.mount_with(&["commit=1"]);
            assert_eq!(describe(&mount.path), b, "seed {seed} step {step} after a remount");
        }
    }
    for name in names(&mount.path) {
        tool("rm", &["-rf".as_ref(), mount.join(name).as_os_str()]);
    }
    let before = if baseline() { 0 } else { 4 };
    eventually("nothing is left below", || baseline() || walk(&volume.cipher).len() == before);
}
fn show(result: &io::Result<Vec<u8>>) -> String {
    match result {
        Ok(bytes) if bytes.len() < 300 => format!("Ok({})", String::from_utf8_lossy(bytes)),
        Ok(bytes) => format!("Ok({} bytes, {:016x})", bytes.len(), digest(bytes)),
        Err(error) => error.to_string(),
    }
}

/// `ENVELOPEFS_TEST_SEEDS=first..last` runs others than these.
#[test]
fn random_operations_equal_a_plain_directory() {
    needs!(have_fuse);
    let seeds = std::env::var("ENVELOPEFS_TEST_SEEDS").unwrap_or_else(|_| "1..5".to_owned());
    let (first, last) = seeds.split_once("..").expect("first..last");
    for seed in first.parse().unwrap()..last.parse().unwrap() {
        compare_trees(seed, 2000);
    }
}

/// One file under random reads, writes, mappings of size and remounts, held open by two handles throughout.
#[test]
fn random_operations_on_one_open_file() {
    needs!(have_fuse);
    for seed in 100..104 {
        let volume = Volume::new();
        let mut random = Random::new(seed);
        let mut model: Vec<u8> = Vec::new();
        for _ in 0..4 {
            let mount = volume.mount_with(&["commit=1"]);
            let path = mount.join("file");
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            let other = read_write(&path);
            for step in 0..400 {
                let (offset, len) = (random.below(60_000), 1 + random.below(9000) as usize);
                let handle = if random.below(2) == 0 { &file } else { &other };
                match random.below(10) {
                    0..4 => {
                        let bytes = pattern(random.next(), len);
                        handle.write_all_at(&bytes, offset).unwrap();
                        super::content::put(&mut model, offset, &bytes);
                    }
                    4 => {
                        handle.set_len(offset).unwrap();
                        model.resize(offset as usize, 0);
                    }
                    5 => {
                        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        fallocate(handle, flags, offset, len as u64).unwrap();
                        let end = model.len();
                        model[(offset as usize).min(end)..(offset as usize + len).min(end)].fill(0);
                    }
                    6 if step % 7 == 0 => handle.sync_data().unwrap(),
                    _ => {
                        let mut buffer = vec![1; len];
                        let got = super::content::read_up_to(handle, &mut buffer, offset);
                        let start = (offset as usize).min(model.len());
                        let want = &model[start..(start + len).min(model.len())];
                        assert_same(&buffer[..got], want, &format!("seed {seed} step {step}: {len} at {offset}"));
                    }
                }
            }
            assert_file(&path, &model);
            drop((file, other));
            mount.unmount();
        }
        let mount = volume.mount();
        assert_file(&mount.join("file"), &model);
    }
}
