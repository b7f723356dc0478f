//! One worker's durable operations: drawn from a seed, run with every fsync that makes them durable, applied to a model.
//! The sequence follows from seed and model alone, so a log needs numbers only. Must not know who cuts what, or how.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, XattrFlags};

use crate::common::{Random, pattern};

/// Names of files and of directories that one worker uses.
pub const FILES: u8 = 6;
pub const DIRECTORIES: u8 = 4;
/// Bytes above which a file is not grown further.
const LARGE: usize = 400_000;
/// The mode of files when they are made; the umask is 022.
const NEW_MODE: u32 = 0o644;

#[derive(Clone, PartialEq, Eq, Default)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub mode: u32,
    pub attributes: BTreeMap<u8, Vec<u8>>,
}
impl Content {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, mode: NEW_MODE, attributes: BTreeMap::new() }
    }
    fn put(&mut self, offset: usize, new: &[u8]) {
        let end = offset + new.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(new);
    }
}

/// What a worker's directory holds. A subdirectory holds one file or none.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Model {
    pub files: BTreeMap<u8, Content>,
    pub directories: BTreeMap<u8, Option<Vec<u8>>>,
}

#[derive(Clone, Debug)]
pub enum Op {
    Write {
        name: u8,
        offset: usize,
        len: usize,
        seed: u64,
    },
    Truncate {
        name: u8,
        len: usize,
    },
    /// KEEP_SIZE; ends within the file.
    Punch {
        name: u8,
        offset: usize,
        len: usize,
    },
    /// fallocate(2) of mode 0 past the end.
    Extend {
        name: u8,
        len: usize,
    },
    /// A new file under its own name, as editors and logs make them.
    Create {
        name: u8,
        len: usize,
        seed: u64,
    },
    /// A new file beside it, synced, renamed over the old one.
    Replace {
        name: u8,
        len: usize,
        seed: u64,
    },
    Rename {
        from: u8,
        to: u8,
    },
    Unlink {
        name: u8,
    },
    SetAttribute {
        name: u8,
        key: u8,
        len: usize,
        seed: u64,
    },
    RemoveAttribute {
        name: u8,
        key: u8,
    },
    Chmod {
        name: u8,
        mode: u32,
    },
    Mkdir {
        name: u8,
        len: usize,
        seed: u64,
    },
    Rmdir {
        name: u8,
    },
    /// To a name that is free.
    MoveDirectory {
        from: u8,
        to: u8,
    },
}

/// Every second name is long, so that it has a companion below.
pub fn file_path(directory: &Path, name: u8) -> PathBuf {
    directory.join(format!("f{name}{}", long(name)))
}
pub fn directory_path(directory: &Path, name: u8) -> PathBuf {
    directory.join(format!("d{name}{}", long(name)))
}
fn long(name: u8) -> String {
    if name.is_multiple_of(2) { String::new() } else { "L".repeat(240) }
}
/// The one file of a subdirectory.
pub const INNER: &str = "inner";
pub const TEMPORARY: &str = ".new";
pub fn attribute_name(key: u8) -> String {
    format!("user.attribute{key}")
}

impl Op {
    pub fn random(random: &mut Random, model: &Model) -> Self {
        let seed = random.next();
        if random.below(8) == 0 {
            return Self::on_directories(random, model, seed);
        }
        let name = random.below(u64::from(FILES)) as u8;
        let some_len = |random: &mut Random| *random.pick(&[0, 1, 4048, 5000, 40_000, 130_000]);
        let Some(content) = model.files.get(&name) else {
            let len = some_len(random);
            return if random.below(2) == 0 { Op::Create { name, len, seed } } else { Op::Replace { name, len, seed } };
        };
        let size = content.bytes.len();
        let within = |random: &mut Random| random.below(size as u64 + 1) as usize;
        match random.below(32) {
            draw @ 0..16 if size < LARGE => {
                let len = *random.pick(&[1, 17, 90, 300, 4048, 4096, 5000, 12_288, 70_000]);
                let offset = if draw < 8 { size } else { within(random) };
                Op::Write { name, offset, len, seed }
            }
            16..19 => Op::Truncate { name, len: random.below(size as u64 + 5000) as usize },
            19 | 20 if size > 0 => {
                let offset = random.below(size as u64) as usize;
                Op::Punch { name, offset, len: 1 + random.below((size - offset) as u64) as usize }
            }
            21 if size < LARGE => Op::Extend { name, len: size + 1 + random.below(20_000) as usize },
            22 | 23 => {
                let to = (name + 1 + random.below(u64::from(FILES) - 1) as u8) % FILES;
                Op::Rename { from: name, to }
            }
            24 => Op::Unlink { name },
            25 | 26 => {
                let key = random.below(3) as u8;
                Op::SetAttribute { name, key, len: random.below(300) as usize, seed }
            }
            27 => match content.attributes.keys().next() {
                Some(key) => Op::RemoveAttribute { name, key: *key },
                None => Op::Unlink { name },
            },
            28 => Op::Chmod { name, mode: *random.pick(&[0o600, 0o640, 0o644, 0o755]) },
            _ => Op::Replace { name, len: some_len(random), seed },
        }
    }
    fn on_directories(random: &mut Random, model: &Model, seed: u64) -> Self {
        let name = random.below(u64::from(DIRECTORIES)) as u8;
        if !model.directories.contains_key(&name) {
            return Op::Mkdir { name, len: random.below(9000) as usize, seed };
        }
        let to = (name + 1 + random.below(u64::from(DIRECTORIES) - 1) as u8) % DIRECTORIES;
        if model.directories.contains_key(&to) { Op::Rmdir { name } } else { Op::MoveDirectory { from: name, to } }
    }

    /// The operation with every fsync that makes it durable.
    pub fn run(&self, directory: &Path) -> io::Result<()> {
        let at = |name: &u8| file_path(directory, *name);
        let open = |name: &u8| OpenOptions::new().write(true).open(at(name));
        match self {
            Op::Write { name, offset, len, seed } => {
                let bytes = pattern(*seed, *len);
                match seed % 4 {
                    0 => {
                        let file = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(at(name))?;
                        file.write_all_at(&bytes, *offset as u64)
                    }
                    // In pieces: several requests before one sync.
                    1 => {
                        let file = open(name)?;
                        for (index, piece) in bytes.chunks(3000).enumerate() {
                            file.write_all_at(piece, (*offset + index * 3000) as u64)?;
                        }
                        file.sync_data()
                    }
                    _ => {
                        let file = open(name)?;
                        file.write_all_at(&bytes, *offset as u64)?;
                        if seed % 4 == 2 { file.sync_all() } else { file.sync_data() }
                    }
                }
            }
            Op::Truncate { name, len } => {
                let file = open(name)?;
                file.set_len(*len as u64)?;
                file.sync_all()
            }
            Op::Punch { name, offset, len } => {
                let file = open(name)?;
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, *offset as u64, *len as u64)?;
                file.sync_all()
            }
            Op::Extend { name, len } => {
                let file = open(name)?;
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, *len as u64)?;
                file.sync_all()
            }
            Op::Create { name, len, seed } => {
                write_new(&at(name), &pattern(*seed, *len))?;
                sync(directory)
            }
            Op::Replace { name, len, seed } => {
                let temporary = directory.join(format!("f{name}{TEMPORARY}"));
                let _ = fs::remove_file(&temporary);
                write_new(&temporary, &pattern(*seed, *len))?;
                fs::rename(&temporary, at(name))?;
                sync(directory)
            }
            Op::Rename { from, to } => {
                fs::rename(at(from), at(to))?;
                sync(directory)
            }
            Op::Unlink { name } => {
                fs::remove_file(at(name))?;
                sync(directory)
            }
            Op::SetAttribute { name, key, len, seed } => {
                let file = File::open(at(name))?;
                rustix::fs::fsetxattr(&file, attribute_name(*key), &pattern(*seed, *len), XattrFlags::empty())?;
                file.sync_all()
            }
            Op::RemoveAttribute { name, key } => {
                let file = File::open(at(name))?;
                rustix::fs::fremovexattr(&file, attribute_name(*key))?;
                file.sync_all()
            }
            Op::Chmod { name, mode } => {
                let file = File::open(at(name))?;
                file.set_permissions(fs::Permissions::from_mode(*mode))?;
                file.sync_all()
            }
            Op::Mkdir { name, len, seed } => {
                let path = directory_path(directory, *name);
                fs::create_dir(&path)?;
                write_new(&path.join(INNER), &pattern(*seed, *len))?;
                sync(&path)?;
                sync(directory)
            }
            Op::Rmdir { name } => {
                let path = directory_path(directory, *name);
                match fs::remove_file(path.join(INNER)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => fs::remove_dir(&path)?,
                }
                sync(directory)
            }
            Op::MoveDirectory { from, to } => {
                fs::rename(directory_path(directory, *from), directory_path(directory, *to))?;
                sync(directory)
            }
        }
    }

    pub fn apply(&self, model: &mut Model) {
        let files = &mut model.files;
        match self {
            Op::Write { name, offset, len, seed } => {
                files.get_mut(name).expect("drawn for it").put(*offset, &pattern(*seed, *len));
            }
            Op::Truncate { name, len } | Op::Extend { name, len } => {
                files.get_mut(name).expect("drawn for it").bytes.resize(*len, 0);
            }
            Op::Punch { name, offset, len } => {
                files.get_mut(name).expect("drawn for it").bytes[*offset..*offset + *len].fill(0);
            }
            Op::Create { name, len, seed } | Op::Replace { name, len, seed } => {
                files.insert(*name, Content::new(pattern(*seed, *len)));
            }
            Op::Rename { from, to } => {
                let content = files.remove(from).expect("drawn for it");
                files.insert(*to, content);
            }
            Op::Unlink { name } => drop(files.remove(name)),
            Op::SetAttribute { name, key, len, seed } => {
                files.get_mut(name).expect("drawn for it").attributes.insert(*key, pattern(*seed, *len));
            }
            Op::RemoveAttribute { name, key } => {
                files.get_mut(name).expect("drawn for it").attributes.remove(key);
            }
            Op::Chmod { name, mode } => files.get_mut(name).expect("drawn for it").mode = *mode,
            Op::Mkdir { name, len, seed } => drop(model.directories.insert(*name, Some(pattern(*seed, *len)))),
            Op::Rmdir { name } => drop(model.directories.remove(name)),
            Op::MoveDirectory { from, to } => {
                let inner = model.directories.remove(from).expect("drawn for it");
                model.directories.insert(*to, inner);
            }
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(NEW_MODE).open(path)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
