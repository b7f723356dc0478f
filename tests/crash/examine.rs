//! Looks at a disk through the real engine: everything that an application can see, and whether it can be worked with.
//! Knows nothing of what should be there.

use std::collections::{BTreeMap, BTreeSet};

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::{Ino, ROOT, SetAttr};
use envelopefs::store::Kind;
use envelopefs::store::memory::MemoryStore;

use crate::disk::{History, Rng};
use crate::oracle::{Attributes, Names};
use crate::volume::{BY, Engine, READ, WRITE, mount};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSeen {
    /// Errno of open(2).
    pub open: Result<(), i32>,
    /// As stat shows it.
    pub size: usize,
    pub content: Vec<u8>,
    /// Blocks that cannot be read, with their errno.
    pub bad: BTreeMap<u64, i32>,
}

/// All that a mount shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub names: Names,
    pub files: BTreeMap<Ino, FileSeen>,
    pub attributes: BTreeMap<Ino, Result<Attributes, i32>>,
    pub targets: BTreeMap<Ino, Result<Vec<u8>, i32>>,
}

impl Seen {
    pub fn at(&self, path: &[&[u8]]) -> Option<Ino> {
        path.iter().try_fold(ROOT, |dir, name| self.names.get(&(dir, name.to_vec())).map(|(ino, _)| *ino))
    }
    /// Content of a file that opens and reads.
    pub fn content(&self, path: &[&[u8]]) -> Option<&[u8]> {
        self.files.get(&self.at(path)?).map(|file| &file.content[..])
    }
}

/// Names and kinds in a directory, without dots.
pub fn list(fs: &Engine, dir: Ino) -> Result<Vec<(Vec<u8>, Ino, Kind)>, String> {
    let handle = fs.opendir(dir).map_err(|e| format!("opendir {dir}: {e}"))?;
    let mut entries = Vec::new();
    let listed = fs.readdir(dir, handle, 2, &mut |e| {
        entries.push((e.name.clone(), e.ino, e.kind));
        true
    });
    fs.releasedir(handle);
    listed.map_err(|e| format!("listing of {dir}: {e}"))?;
    Ok(entries)
}

fn read_file(fs: &Engine, ino: Ino, size: usize) -> FileSeen {
    let mut seen = FileSeen { open: Ok(()), size, content: vec![0; size], bad: BTreeMap::new() };
    if let Err(e) = fs.open(ino, READ) {
        seen.open = Err(e.errno());
        return seen;
    }
    // One byte more than there should be.
    let mut buffer = vec![0xa5; size + 1];
    match fs.read(ino, 0, &mut buffer) {
        Ok(n) if n == size => seen.content.copy_from_slice(&buffer[..size]),
        Ok(n) => seen.open = Err(-(n as i32) - 1),
        Err(_) => {
            for (block, part) in seen.content.chunks_mut(PLAIN).enumerate() {
                if let Err(e) = fs.read(ino, (block * PLAIN) as u64, part) {
                    seen.bad.insert(block as u64, e.errno());
                }
            }
        }
    }
    fs.release(ino);
    seen
}

fn read_attributes(fs: &Engine, ino: Ino) -> Result<Attributes, i32> {
    let names = fs.listxattr(ino).map_err(|e| e.errno())?;
    names.into_iter().map(|name| fs.getxattr(ino, &name).map(|value| (name, value)).map_err(|e| e.errno())).collect()
}

/// Walks the whole tree. An error here is one that nothing excuses: a directory that cannot be listed, an entry that
/// is listed and not found.
pub fn examine(fs: &Engine) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let mut pending = vec![ROOT];
    while let Some(dir) = pending.pop() {
        for (name, ino, kind) in list(fs, dir)? {
            let shown = String::from_utf8_lossy(&name).into_owned();
            let attr = fs.lookup(dir, &name).map_err(|e| format!("listed and not found: {shown}: {e}"))?;
            if (attr.ino, attr.stat.kind) != (ino, kind) {
                return Err(format!(
                    "{shown} is listed as {ino} {kind:?} and found as {} {:?}",
                    attr.ino, attr.stat.kind
                ));
            }
            seen.names.insert((dir, name), (ino, kind));
            if kind != Kind::Symlink {
                seen.attributes.insert(ino, read_attributes(fs, ino));
            }
            match kind {
                Kind::Directory => pending.push(ino),
                Kind::File => {
                    seen.files.entry(ino).or_insert_with(|| read_file(fs, ino, attr.stat.size as usize));
                }
                Kind::Symlink => drop(seen.targets.insert(ino, fs.readlink(ino).map_err(|e| e.errno()))),
                _ => {}
            }
        }
    }
    Ok(seen)
}

/// A name that is not listed is not found either.
pub fn absent_is_absent(fs: &Engine, seen: &Seen, names: &BTreeSet<(Ino, Vec<u8>)>) -> Result<(), String> {
    let is_there = |dir: Ino| dir == ROOT || seen.names.values().any(|found| *found == (dir, Kind::Directory));
    for (dir, name) in
        names.iter().filter(|(dir, name)| is_there(*dir) && !seen.names.contains_key(&(*dir, name.clone())))
    {
        match fs.lookup(*dir, name) {
            Err(e) if e.errno() == libc::ENOENT => {}
            found => {
                let found = found.map(|attr| attr.ino).map_err(|e| e.to_string());
                return Err(format!("{} is not listed and looked up as {found:?}", String::from_utf8_lossy(name)));
            }
        }
    }
    Ok(())
}

pub fn examine_disk(disk: &MemoryStore, header_pages: u32) -> Result<Seen, String> {
    examine(&mount(disk, header_pages).map_err(|e| format!("mount: {e}"))?)
}

/// What recovery writes (files opened for writing, their commit) may be cut by a second crash anywhere: nothing that was seen
/// after the first one changes. Returns how many second crashes were looked at.
pub fn second_crash(
    disk: &MemoryStore,
    header_pages: u32,
    first: &Seen,
    samples: usize,
    rng: &mut Rng,
) -> Result<u64, String> {
    let worked = disk.snapshot();
    worked.start_recording();
    {
        let fs = mount(&worked, header_pages).map_err(|e| format!("second mount: {e}"))?;
        // Looks every object up, as a kernel has before it opens one.
        let again = examine(&fs)?;
        if again != *first {
            return Err("a second look shows something else".into());
        }
        for (ino, file) in &first.files {
            if file.open.is_ok() {
                fs.open(*ino, WRITE).map_err(|e| format!("file {ino}, opened for writing: {e}"))?;
                fs.release(*ino);
            }
        }
        fs.commit().map_err(|e| format!("commit after recovery: {e}"))?;
    }
    let history = History::new(disk.snapshot(), worked.take_recording());
    let mut looked = 0;
    for crash in 0..=history.ops.len() {
        for cut in history.cuts(crash, samples, rng) {
            let seen = examine_disk(&history.image(&cut), header_pages);
            if seen.as_ref().ok() != Some(first) {
                let what = match seen {
                    Err(e) => e,
                    Ok(seen) => difference(first, &seen),
                };
                return Err(format!("a second crash during recovery: {what}\nrecovery:\n{}", history.describe(&cut)));
            }
            looked += 1;
        }
    }
    Ok(looked)
}

pub fn difference(first: &Seen, second: &Seen) -> String {
    if first.names != second.names {
        return format!("names {:?} became {:?}", first.names, second.names);
    }
    for (ino, file) in &first.files {
        match second.files.get(ino) {
            Some(other) if other != file => {
                return format!(
                    "file {ino}: open {:?}, size {}, bad {:?} became open {:?}, size {}, bad {:?}; content is {}",
                    file.open,
                    file.size,
                    file.bad,
                    other.open,
                    other.size,
                    other.bad,
                    if file.content == other.content { "equal" } else { "different" }
                );
            }
            _ => {}
        }
    }
    format!("attributes or targets: {:?} became {:?}", first.attributes, second.attributes)
}

/// Everything that a crash left can be worked with: extended, appended to, synced, found again after the next mount, and removed.
pub fn use_and_empty(disk: &MemoryStore, header_pages: u32, first: &Seen, rng: &mut Rng) -> Result<(), String> {
    let mut expected: BTreeMap<Ino, Vec<u8>> = BTreeMap::new();
    {
        let fs = mount(disk, header_pages).map_err(|e| format!("mount: {e}"))?;
        examine(&fs)?;
        for (ino, file) in first.files.iter().filter(|(_, f)| f.open.is_ok() && f.bad.is_empty()) {
            let at = |what: &str| format!("file {ino} of {} bytes after the crash: {what}", file.size);
            let (mut content, end) = (file.content.clone(), file.size as u64);
            fs.open(*ino, WRITE).map_err(|e| at(&format!("open: {e}")))?;
            if rng.below(2) == 0 {
                // What was cut off before the crash does not come back.
                content.resize(file.size + 5000, 0);
                let set = SetAttr { size: Some(end + 5000), ..SetAttr::default() };
                fs.setattr(*ino, &set).map_err(|e| at(&format!("extension: {e}")))?;
            }
            if rng.below(2) == 0 {
                fs.write(*ino, content.len() as u64, b"appended").map_err(|e| at(&format!("append: {e}")))?;
                content.extend(b"appended");
            }
            if rng.below(2) == 0 {
                fs.fsync(*ino, true).map_err(|e| at(&format!("fsync: {e}")))?;
            }
            fs.release(*ino);
            expected.insert(*ino, content);
        }
        fs.commit().map_err(|e| format!("commit: {e}"))?;
    }
    let fs = mount(disk, header_pages).map_err(|e| format!("mount: {e}"))?;
    let seen = examine(&fs)?;
    for (ino, content) in &expected {
        let file = &seen.files[ino];
        if file.open.is_err() || file.content != *content {
            return Err(format!("file {ino}: what was added after the crash is not what the next mount finds"));
        }
    }
    empty(&fs, ROOT)?;
    let left = list(&fs, ROOT)?;
    if left.is_empty() { Ok(()) } else { Err(format!("cannot be removed: {left:?}")) }
}

fn empty(fs: &Engine, dir: Ino) -> Result<(), String> {
    let probe = fs.create(&BY, dir, b"probe", 0o600).map_err(|e| format!("create in {dir}: {e}"))?;
    fs.release(probe.ino);
    for (name, ino, kind) in list(fs, dir)? {
        let what = |e| format!("{}: cannot be removed: {e}", String::from_utf8_lossy(&name));
        if kind == Kind::Directory {
            empty(fs, ino)?;
            fs.rmdir(dir, &name).map_err(what)?;
        } else {
            fs.unlink(dir, &name).map_err(what)?;
        }
    }
    Ok(())
}
