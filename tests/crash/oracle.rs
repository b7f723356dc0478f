//! What applications did and were told, and so what they may find after a crash: the promises of doc/FORMAT.md and
//! doc/SEMANTICS.md as a judge. Knows neither the backing store nor how blocks are stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::{Ino, ROOT};
use envelopefs::store::Kind;

use crate::examine::{FileSeen, Seen};

pub type Names = BTreeMap<(Ino, Vec<u8>), (Ino, Kind)>;
pub type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// States in time order; each begins with the backing operation of that number.
#[derive(Debug)]
struct Versions<T> {
    states: Vec<(usize, T)>,
    /// (number of the operation after which it holds, state): from there on, that state or a later one.
    durable: Vec<(usize, usize)>,
}

impl<T> Versions<T> {
    fn new(at: usize, first: T) -> Self {
        Self { states: vec![(at, first)], durable: Vec::new() }
    }
    fn newest(&self) -> &T {
        &self.states[self.states.len() - 1].1
    }
    fn push(&mut self, at: usize, state: T) -> usize {
        self.states.push((at, state));
        self.states.len() - 1
    }
    fn durable(&mut self, at: usize, state: usize) {
        self.durable.push((at, state));
    }
    fn all_durable(&mut self, at: usize) {
        self.durable(at, self.states.len() - 1);
    }
    /// What may be found after a crash in front of operation `crash`, the oldest first.
    fn possible(&self, crash: usize) -> &[(usize, T)] {
        let from = self.durable.iter().filter(|(at, _)| *at <= crash).map(|(_, state)| *state).max().unwrap_or(0);
        let to = self.states.iter().rposition(|(at, _)| *at < crash).unwrap_or(0).max(from);
        &self.states[from..=to]
    }
}

/// Everything that was done through the mount.
#[derive(Debug)]
pub struct Oracle {
    names: Versions<Names>,
    /// The last state of the names that concerned a directory.
    touched: HashMap<Ino, usize>,
    /// The state of the names in which a file got its first one.
    created: HashMap<Ino, usize>,
    files: HashMap<Ino, Versions<Vec<u8>>>,
    attributes: HashMap<Ino, Versions<Attributes>>,
    targets: HashMap<Ino, Vec<u8>>,
}

/// Pages that were torn on purpose, by file: blocks, or the header.
#[derive(Debug, Default)]
pub struct TornBlocks {
    pub blocks: BTreeSet<(Ino, u64)>,
    pub headers: BTreeSet<Ino>,
}

impl Oracle {
    pub fn new() -> Self {
        Self {
            names: Versions::new(0, Names::new()),
            touched: HashMap::new(),
            created: HashMap::new(),
            files: HashMap::new(),
            attributes: HashMap::new(),
            targets: HashMap::new(),
        }
    }

    pub fn content(&self, ino: Ino) -> &[u8] {
        self.files[&ino].newest()
    }

    pub fn find(&self, dir: Ino, name: &[u8]) -> Option<(Ino, Kind)> {
        self.names.newest().get(&(dir, name.to_vec())).copied()
    }

    /// A new state of the names in these directories.
    pub fn rename(&mut self, at: usize, dirs: &[Ino], change: impl FnOnce(&mut Names)) {
        let mut names = self.names.newest().clone();
        change(&mut names);
        let state = self.names.push(at, names);
        for dir in dirs {
            self.touched.insert(*dir, state);
        }
    }

    pub fn add(&mut self, at: usize, dir: Ino, name: &[u8], ino: Ino, kind: Kind) {
        self.rename(at, &[dir], |names| {
            names.insert((dir, name.to_vec()), (ino, kind));
        });
        let state = self.names.states.len() - 1;
        self.created.entry(ino).or_insert(state);
        if kind == Kind::File {
            self.files.entry(ino).or_insert_with(|| Versions::new(at, Vec::new()));
        }
        if kind != Kind::Symlink {
            self.attributes.entry(ino).or_insert_with(|| Versions::new(at, Attributes::new()));
        }
    }

    pub fn add_target(&mut self, ino: Ino, target: &[u8]) {
        self.targets.insert(ino, target.to_vec());
    }

    pub fn change(&mut self, at: usize, ino: Ino, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.files.get_mut(&ino).expect("a file of the workload");
        let mut content = file.newest().clone();
        change(&mut content);
        file.push(at, content);
    }

    pub fn change_attributes(&mut self, at: usize, ino: Ino, change: impl FnOnce(&mut Attributes)) {
        let versions = self.attributes.get_mut(&ino).expect("an object of the workload");
        let mut attributes = versions.newest().clone();
        change(&mut attributes);
        versions.push(at, attributes);
    }

    /// Content of a file is durable, whatever its names.
    pub fn content_synced(&mut self, at: usize, ino: Ino) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.all_durable(at);
        }
    }

    /// A sync of a file has returned: its content stays, and so does a name of it. Attributes need fsync, not fdatasync.
    pub fn synced(&mut self, at: usize, ino: Ino, data_only: bool) {
        self.content_synced(at, ino);
        if !data_only && let Some(attributes) = self.attributes.get_mut(&ino) {
            attributes.all_durable(at);
        }
        if let Some(created) = self.created.get(&ino) {
            self.names.durable(at, *created);
        }
    }

    /// A sync of a directory has returned.
    pub fn directory_synced(&mut self, at: usize, ino: Ino) {
        if let Some(state) = self.touched.get(&ino) {
            self.names.durable(at, *state);
        }
        if let Some(attributes) = self.attributes.get_mut(&ino) {
            attributes.all_durable(at);
        }
    }

    /// All names that ever stood somewhere, with their directories.
    pub fn ever_named(&self) -> BTreeSet<(Ino, Vec<u8>)> {
        self.names.states.iter().flat_map(|(_, names)| names.keys().cloned()).collect()
    }

    pub fn named_files(&self) -> BTreeSet<Ino> {
        self.names.newest().values().filter(|(_, kind)| *kind == Kind::File).map(|(ino, _)| *ino).collect()
    }

    /// Judges what was found after a crash in front of operation `crash`.
    pub fn judge(&self, crash: usize, seen: &Seen, torn: &TornBlocks) -> Result<(), String> {
        let possible = self.names.possible(crash);
        if !possible.iter().any(|(_, names)| *names == seen.names) {
            let possible: String =
                possible.iter().map(|(at, names)| format!("  since {at}: {}\n", shown_names(names))).collect();
            return Err(format!(
                "names that never stood together: {}\npossible:\n{possible}",
                shown_names(&seen.names)
            ));
        }
        for (ino, file) in &seen.files {
            let versions = self.files.get(ino).ok_or_else(|| format!("file {ino} was never made"))?;
            if torn.headers.contains(ino) {
                // One page stands for the whole file here: EIO, or what it should be.
                if file.open.is_err() {
                    continue;
                }
            }
            let possible: Vec<&[u8]> = versions.possible(crash).iter().map(|(_, v)| &v[..]).collect();
            judge_file(*ino, file, &possible, torn).map_err(|e| format!("file {ino}: {e}"))?;
        }
        for (ino, attributes) in &seen.attributes {
            let found = attributes.as_ref().map_err(|errno| format!("attributes of {ino}: errno {errno}"));
            let found = match found {
                Err(_) if torn.headers.contains(ino) => continue,
                found => found?,
            };
            let none = Attributes::new();
            let ok = match self.attributes.get(ino) {
                None => *found == none,
                Some(versions) => {
                    let possible = versions.possible(crash);
                    // Those that are sealed hang on the file's key: without any sync they may all be lost with it.
                    let keyless = possible.first().is_some_and(|(_, a)| a.is_empty());
                    let passed = |a: &Attributes| -> Attributes {
                        a.clone().into_iter().filter(|(name, _)| name.starts_with(b"security.")).collect()
                    };
                    possible.iter().any(|(_, a)| a == found || (keyless && passed(a) == *found))
                }
            };
            if !ok && *ino != ROOT && !torn.headers.contains(ino) {
                return Err(format!("attributes of {ino} that it never had: {found:?}"));
            }
        }
        for (ino, target) in &seen.targets {
            if target.as_ref().ok() != self.targets.get(ino) {
                return Err(format!("target of symlink {ino}: {target:?}"));
            }
        }
        Ok(())
    }
}

fn shown_names(names: &Names) -> String {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).chars().take(16).collect::<String>();
    names.iter().map(|((dir, name), (ino, _))| format!("{dir}/{}={ino} ", shown(name))).collect()
}

/// The part of a version that a file of `size` bytes shows in a block; zeros where the version was shorter.
fn shown(version: &[u8], block: usize, size: usize) -> Vec<u8> {
    let (from, to) = (block * PLAIN, ((block + 1) * PLAIN).min(size));
    let mut bytes = version[from.min(version.len())..to.min(version.len())].to_vec();
    bytes.resize(to - from, 0);
    bytes
}

fn judge_file(ino: Ino, file: &FileSeen, possible: &[&[u8]], torn: &TornBlocks) -> Result<(), String> {
    file.open.map_err(|errno| format!("open: errno {errno}"))?;
    let sizes: BTreeSet<usize> = possible.iter().map(|v| v.len()).collect();
    let (least, most) = (sizes.first().copied().unwrap_or(0), sizes.last().copied().unwrap_or(0));
    if file.size < least || file.size > most {
        return Err(format!("size {} is not within {least}..={most}", file.size));
    }
    let last_is_torn = file.size > 0 && torn.blocks.contains(&(ino, ((file.size - 1) / PLAIN) as u64));
    if !sizes.contains(&file.size) && !file.size.is_multiple_of(PLAIN) && !last_is_torn {
        return Err(format!("size {} that it never had: {sizes:?}", file.size));
    }
    for block in 0..file.size.div_ceil(PLAIN) {
        let is_torn = torn.blocks.contains(&(ino, block as u64));
        if let Some(errno) = file.bad.get(&(block as u64)) {
            if is_torn && *errno == libc::EIO {
                continue;
            }
            return Err(format!("block {block} of {} bytes: errno {errno}", file.size));
        }
        let found = &file.content[block * PLAIN..((block + 1) * PLAIN).min(file.size)];
        // A block that some version did not have yet may never have been written.
        let may_be_absent = possible.iter().any(|v| v.len() <= block * PLAIN);
        let ok = possible.iter().any(|v| shown(v, block, file.size) == found)
            || (may_be_absent && found.iter().all(|b| *b == 0));
        if !ok {
            let differs = |v: &&[u8]| {
                let wanted = shown(v, block, file.size);
                let first = wanted.iter().zip(found).position(|(a, b)| a != b);
                (v.len(), first)
            };
            let near: Vec<_> = possible.iter().map(differs).collect();
            return Err(format!(
                "block {block} of {} bytes reads as neither old nor new; (size of version, first byte that differs): {near:?}",
                file.size
            ));
        }
    }
    Ok(())
}
