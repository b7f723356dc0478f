//! Single steps of tampering with a backing tree, each small enough to be left out when a failure is narrowed down, and the
//! record of what they touched. Works on any store as whoever can write the CIPHERDIR would: without keys.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use envelopefs::format::geometry::{Geometry, PAGE};
use envelopefs::fs::ROOT;
use envelopefs::store::{Access, BackingFile, Creator, Kind, Place, RenameMode, Store};

use crate::common::Random;
use crate::forge::{fix_crc, fuzz_tlvs};
use crate::world::Model;

const PAGE_U64: u64 = PAGE as u64;
/// Keeps the numbers of the overflow directory apart, which may be a store of its own.
const OVERFLOW: u64 = 1 << 63;

/// What may be expected of the tampered tree, by inode number as the mount shows it.
#[derive(Default)]
pub struct Touched {
    /// Objects whose content an inode may have: its own, unless header or file came from elsewhere.
    pub identity: HashMap<u64, BTreeSet<usize>>,
    /// Changed pages, by number in the backing file.
    pub pages: HashMap<u64, BTreeSet<u64>>,
    /// Inodes whose length or header changed: all that is promised of them is that no false byte is shown.
    pub whole: HashSet<u64>,
    pub xattrs: HashSet<u64>,
    /// Directories whose entries, companions or id changed.
    pub directories: HashSet<u64>,
    pub overflow: bool,
    /// Unlinked ones: another object may have their number now.
    pub gone: HashSet<u64>,
    /// The steps in words.
    pub told: Vec<String>,
}

impl Touched {
    pub fn anything(&self, ino: u64) -> bool {
        self.whole.contains(&ino) || self.pages.contains_key(&ino)
    }
    fn page(&mut self, ino: u64, at: u64, geometry: Geometry) {
        if at < geometry.data_start() {
            self.whole.insert(ino);
        }
        self.pages.entry(ino).or_default().insert(at / PAGE_U64);
    }
    fn becomes(&mut self, ino: u64, from: u64) {
        let theirs = self.identity.get(&from).cloned().unwrap_or_default();
        self.identity.entry(ino).or_default().extend(theirs);
        self.whole.insert(ino);
        self.xattrs.insert(ino);
    }
}

/// A directory below, by its handle.
enum Dir<'a, H> {
    Root(&'a H),
    Inner(Arc<H>),
}

impl<H> Clone for Dir<'_, H> {
    fn clone(&self) -> Self {
        match self {
            Dir::Root(handle) => Dir::Root(handle),
            Dir::Inner(handle) => Dir::Inner(handle.clone()),
        }
    }
}

impl<H> Deref for Dir<'_, H> {
    type Target = H;
    fn deref(&self) -> &H {
        match self {
            Dir::Root(handle) => handle,
            Dir::Inner(handle) => handle,
        }
    }
}

/// One object below.
struct Raw<'a, H> {
    parent: Dir<'a, H>,
    parent_ino: u64,
    name: Box<[u8]>,
    ino: u64,
    kind: Kind,
    /// In the tree, not in the overflow directory.
    tree: bool,
}

/// A volume's two stores in the hands of an attacker.
pub struct Attack<'a, S: Store> {
    pub tree: &'a S,
    pub overflow: &'a S,
    pub model: &'a Model,
    pub geometry: Geometry,
    pub touched: Touched,
}

const BY: Creator = Creator { uid: 0, gid: 0, umask: 0o022 };

fn by() -> Creator {
    let caller = crate::world::caller();
    Creator { uid: caller.uid, gid: caller.gid, ..BY }
}

impl<'a, S: Store> Attack<'a, S> {
    pub fn on(tree: &'a S, overflow: &'a S, model: &'a Model, geometry: Geometry) -> Self {
        let mut touched = Touched::default();
        for (ino, index) in &model.by_ino {
            touched.identity.insert(*ino, BTreeSet::from([*index]));
        }
        Self { tree, overflow, model, geometry, touched }
    }

    /// Every object in a fixed order: that in which they were made.
    fn objects(&self) -> io::Result<Vec<Raw<'a, S::Handle>>> {
        let mut found = Vec::new();
        for (store, tree) in [(self.tree, true), (self.overflow, false)] {
            let root = store.stat(Place::Pinned(store.root()))?.ino;
            let mut pending: Vec<(Dir<'a, S::Handle>, u64)> = Vec::new();
            let visit =
                |dir: Dir<'a, S::Handle>, ino: u64, pending: &mut Vec<_>, found: &mut Vec<_>| -> io::Result<()> {
                    for entry in store.list(&dir)? {
                        if entry.kind == Kind::Directory {
                            pending.push((Dir::Inner(Arc::new(store.pin(&dir, &entry.name)?)), entry.ino));
                        }
                        let (name, kind) = (entry.name, entry.kind);
                        let number = if tree { entry.ino } else { entry.ino | OVERFLOW };
                        found.push(Raw { parent: dir.clone(), parent_ino: ino, name, ino: number, kind, tree });
                    }
                    Ok(())
                };
            visit(Dir::Root(store.root()), if tree { ROOT } else { root }, &mut pending, &mut found)?;
            while let Some((dir, ino)) = pending.pop() {
                visit(dir, ino, &mut pending, &mut found)?;
            }
        }
        found.sort_by(|a, b| (!a.tree, a.ino, a.parent_ino, &a.name).cmp(&(!b.tree, b.ino, b.parent_ino, &b.name)));
        Ok(found)
    }
    fn store(&self, raw: &Raw<'a, S::Handle>) -> &'a S {
        if raw.tree { self.tree } else { self.overflow }
    }
    fn place<'b>(&self, raw: &'b Raw<'_, S::Handle>) -> Place<'b, S::Handle> {
        Place::Entry { dir: &raw.parent, name: &raw.name }
    }
    fn open(&self, raw: &Raw<'a, S::Handle>) -> io::Result<S::File> {
        self.store(raw).open_file(self.place(raw), Access::ReadWrite)
    }
    fn bytes(&self, raw: &Raw<'a, S::Handle>) -> io::Result<Vec<u8>> {
        let file = self.open(raw)?;
        // Extended files are as good as their first megabyte.
        let mut bytes = vec![0; (file.stat()?.size as usize).min(1 << 20)];
        let len = file.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        Ok(bytes)
    }
    fn put_page(&mut self, raw: &Raw<'a, S::Handle>, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.open(raw)?;
        let size = file.stat()?.size;
        let bytes = &bytes[..bytes.len().min(size.saturating_sub(at) as usize)];
        if !raw.tree {
            self.touched.overflow = true;
        }
        if !bytes.is_empty() {
            self.touched.page(raw.ino, at, self.geometry);
            self.ends_in(raw, at + bytes.len() as u64, size);
            file.write_at(bytes, at)?;
        }
        Ok(())
    }
    /// The last block of a growing file says its size.
    fn ends_in(&mut self, raw: &Raw<'a, S::Handle>, end: u64, size: u64) {
        if size.is_multiple_of(PAGE_U64) && end + PAGE_U64 > size {
            self.touched.whole.insert(raw.ino);
        }
    }

    /// One step, all of it decided by `seed`. What does not apply to the tree as it is now does nothing.
    pub fn step(&mut self, seed: u64) -> io::Result<()> {
        let mut random = Random::new(seed);
        let objects = self.objects()?;
        let files: Vec<_> = objects.iter().filter(|raw| raw.kind == Kind::File).collect();
        let links: Vec<_> = objects.iter().filter(|raw| raw.kind == Kind::Symlink).collect();
        let directories: Vec<_> = objects.iter().filter(|raw| raw.kind == Kind::Directory).collect();
        if files.is_empty() || links.is_empty() || directories.is_empty() {
            return Ok(());
        }
        let file = *random.pick(&files);
        let other = *random.pick(&files);
        let any = random.pick(&objects);
        let kind = random.below(100);
        let show = |raw: &Raw<'a, S::Handle>| {
            let known = self.model.by_ino.get(&raw.ino).map(|index| self.model.objects[*index].path.as_str());
            format!("{} ({:?}, {})", known.unwrap_or("?"), raw.kind, String::from_utf8_lossy(&raw.name))
        };
        let told = match kind {
            0..=36 => format!("step {kind} on {}", show(file)),
            37..=46 => format!("pages of {} and {}", show(file), show(other)),
            47..=56 => format!("older state of {}", show(file)),
            57..=66 => format!("header of {}", show(file)),
            75..=80 => format!("copy of {} over {}", show(file), show(other)),
            _ => format!("step {kind} on {}", show(any)),
        };
        self.touched.told.push(told);
        match kind {
            0..=17 => self.flip(file, &mut random),
            18..=23 => self.overwrite(file, &mut random),
            24..=31 => self.resize(file, &mut random),
            32..=36 => self.zero(file, &mut random),
            37..=46 => self.move_page(file, if random.below(2) == 0 { file } else { other }, &mut random),
            47..=56 => self.go_back(file, &mut random),
            57..=66 => self.header(file, &mut random),
            67..=74 => self.move_entry(any, &objects, &directories, &mut random),
            75..=80 => self.copy(file, other, &directories, &mut random),
            81..=84 => self.delete(any),
            85..=89 => self.relink(*random.pick(&links), *random.pick(&links), &mut random),
            90..=96 => self.attributes(any, random.pick(&objects), &mut random),
            _ => self.replace(any, &mut random),
        }
    }

    /// Where a page or a byte of interest starts.
    fn somewhere(&self, len: u64, random: &mut Random) -> u64 {
        let start = self.geometry.data_start();
        let pages = (len / PAGE_U64).max(1);
        match random.below(4) {
            // A header's fields; a block's clear bytes; the last block; anywhere.
            0 => random.below(400),
            1 if len > start => (start + random.below((len - start).div_ceil(PAGE_U64)) * PAGE_U64) + random.below(48),
            2 => (pages - 1) * PAGE_U64 + random.below(PAGE_U64),
            _ => random.below(len.max(1)),
        }
    }
    fn flip(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let len = self.open(raw)?.stat()?.size;
        let at = self.somewhere(len, random);
        let mut byte = [0];
        self.open(raw)?.read_at(&mut byte, at)?;
        self.put_page(raw, at, &[byte[0] ^ (1 << random.below(8))])
    }
    fn overwrite(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let len = self.open(raw)?.stat()?.size;
        let at = self.somewhere(len, random);
        // Within one page.
        let room = (PAGE_U64 - at % PAGE_U64).min(1 + random.below(64));
        let bytes: Vec<u8> = (0..room).map(|_| random.next() as u8).collect();
        self.put_page(raw, at, &bytes)
    }
    fn resize(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let file = self.open(raw)?;
        let len = file.stat()?.size;
        let to = match random.below(9) {
            0 => 0,
            1 => random.below(len + 1),
            2 => random.below(len / PAGE_U64 + 1) * PAGE_U64,
            3 => random.below(len / PAGE_U64 + 1) * PAGE_U64 + random.below(PAGE_U64),
            4 => len + random.below(10) * PAGE_U64,
            5 => len + random.below(3 * PAGE_U64),
            6 => len - len % PAGE_U64,
            7 => len + (1 << 40),
            _ => (len.saturating_sub(1)).max(1),
        };
        self.touched.whole.insert(raw.ino);
        self.touched.overflow |= !raw.tree;
        file.set_len(to)
    }
    fn zero(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let len = self.open(raw)?.stat()?.size;
        let at = self.somewhere(len, random) / PAGE_U64 * PAGE_U64;
        self.put_page(raw, at, &[0; PAGE])
    }
    /// Copies or swaps pages, mostly at the same place.
    fn move_page(&mut self, from: &Raw<'a, S::Handle>, to: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let (mine, theirs) = (self.bytes(to)?, self.bytes(from)?);
        let pages = |bytes: &[u8]| (bytes.len() / PAGE).max(1) as u64;
        let a = random.below(pages(&theirs));
        let b = if random.below(2) == 0 { a } else { random.below(pages(&mine)) };
        let page = |bytes: &[u8], n: u64| {
            let at = (n as usize * PAGE).min(bytes.len());
            bytes[at..bytes.len().min(at + PAGE)].to_vec()
        };
        let (moved, displaced) = (page(&theirs, a), page(&mine, b));
        if b * PAGE_U64 < self.geometry.data_start() && from.ino != to.ino {
            self.touched.becomes(to.ino, from.ino);
        }
        self.put_page(to, b * PAGE_U64, &moved)?;
        if random.below(2) == 0 {
            if a * PAGE_U64 < self.geometry.data_start() && from.ino != to.ino {
                self.touched.becomes(from.ino, to.ino);
            }
            self.put_page(from, a * PAGE_U64, &displaced)?;
        }
        Ok(())
    }
    /// Older states of the same file: one page, the header, everything.
    fn go_back(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        // Whatever stands in this inode now, its own past is what the attacker kept.
        let Some(index) = self.model.by_ino.get(&raw.ino) else { return Ok(()) };
        let older = self.model.objects[*index].older.clone();
        if older.is_empty() {
            return Ok(());
        }
        self.touched.identity.entry(raw.ino).or_default().insert(*index);
        let data = self.geometry.data_start();
        match random.below(4) {
            0 => {
                self.touched.whole.insert(raw.ino);
                let file = self.open(raw)?;
                file.set_len(0)?;
                file.write_at(&older, 0)
            }
            1 => {
                let header = &older[..older.len().min(data as usize)];
                let mut done = Ok(());
                for (n, page) in header.chunks(PAGE).enumerate() {
                    done = done.and(self.put_page(raw, n as u64 * PAGE_U64, page));
                }
                done
            }
            _ => {
                let page = random.below((older.len() / PAGE).max(1) as u64);
                let at = page as usize * PAGE;
                self.put_page(raw, page * PAGE_U64, &older[at.min(older.len())..older.len().min(at + PAGE)])
            }
        }
    }
    /// Headers that pass the checksum: fields as the attacker wants them.
    fn header(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let len = self.geometry.slot_len();
        let which = random.below(4).min(1) as usize ^ 1;
        let bytes = self.bytes(raw)?;
        let Some(slot) = bytes.chunks_exact(len).nth(which).or(bytes.chunks_exact(len).next()) else { return Ok(()) };
        let mut slot = slot.to_vec();
        match random.below(7) {
            // No floor, holes allowed, a higher generation, another file or volume.
            0 => slot[32..40].fill(0),
            1 => slot[16] |= 1,
            2 => slot[24..32].copy_from_slice(&u64::from(random.next() as u32).to_le_bytes()),
            3 => slot[48 + random.below(80) as usize] ^= 1,
            4 => slot[32..40].copy_from_slice(&(random.next() >> random.below(60)).to_le_bytes()),
            5 if slot.starts_with(b"ENVLPFS\0") => fuzz_tlvs(&mut slot, random),
            _ => slot.fill(0),
        }
        if slot.iter().any(|byte| *byte != 0) {
            fix_crc(&mut slot);
        }
        for (n, page) in slot.chunks(PAGE).enumerate() {
            self.put_page(raw, (which * len + n * PAGE) as u64, page)?;
        }
        Ok(())
    }
    fn entry_changed(&mut self, raw: &Raw<'a, S::Handle>) {
        self.touched.gone.insert(raw.ino);
        if raw.tree {
            self.touched.directories.insert(raw.parent_ino);
        } else {
            self.touched.overflow = true;
        }
    }
    /// Renames within a directory or to another one, exchanges two entries, makes hard links.
    fn move_entry(
        &mut self,
        raw: &Raw<'a, S::Handle>,
        objects: &[Raw<'a, S::Handle>],
        directories: &[&Raw<'a, S::Handle>],
        random: &mut Random,
    ) -> io::Result<()> {
        let partner = random.pick(objects);
        if raw.tree != partner.tree {
            return Ok(());
        }
        let (from, to) = ((&*raw.parent, &*raw.name), (&*partner.parent, &*partner.name));
        let store = self.store(raw);
        let directory = *random.pick(directories);
        self.entry_changed(raw);
        match random.below(5) {
            0 | 1 => {
                self.entry_changed(partner);
                ignore(store.rename(from, to, RenameMode::Exchange))
            }
            2 => {
                self.entry_changed(partner);
                ignore(store.rename(from, to, RenameMode::Replace))
            }
            3 if raw.tree && directory.tree => {
                self.touched.directories.insert(directory.ino);
                let into = store.pin(&directory.parent, &directory.name)?;
                ignore(store.rename(from, (&into, &raw.name), RenameMode::Replace))
            }
            _ if raw.kind == Kind::Directory => Ok(()),
            _ => {
                self.entry_changed(partner);
                let _ = store.unlink(&partner.parent, &partner.name);
                ignore(store.link(self.place(raw), &partner.parent, &partner.name))
            }
        }
    }
    /// A copy under a new inode: in another's place, or beside it.
    fn copy(
        &mut self,
        from: &Raw<'a, S::Handle>,
        over: &Raw<'a, S::Handle>,
        directories: &[&Raw<'a, S::Handle>],
        random: &mut Random,
    ) -> io::Result<()> {
        let bytes = self.bytes(from)?;
        let store = self.store(over);
        let directory = *random.pick(directories);
        let in_place = random.below(3) > 0 || !directory.tree || !over.tree;
        let parent = if in_place {
            over.parent.clone()
        } else {
            Dir::Inner(Arc::new(store.pin(&directory.parent, &directory.name)?))
        };
        self.entry_changed(over);
        if !in_place {
            self.touched.directories.insert(directory.ino);
        }
        let _ = store.unlink(&parent, &over.name);
        let Ok(file) = store.create_file(&parent, &over.name, 0o644, by()) else { return Ok(()) };
        file.write_at(&bytes, 0)?;
        let ino = file.stat()?.ino;
        self.touched.becomes(if over.tree { ino } else { ino | OVERFLOW }, from.ino);
        let place = Place::Entry { dir: &*parent, name: &over.name };
        for name in self.store(from).list_xattrs(self.place(from)).unwrap_or_default() {
            if let Ok(value) = self.store(from).get_xattr(self.place(from), &name) {
                ignore(store.set_xattr(place, &name, &value, 0))?;
            }
        }
        Ok(())
    }
    fn delete(&mut self, raw: &Raw<'a, S::Handle>) -> io::Result<()> {
        self.entry_changed(raw);
        let store = self.store(raw);
        ignore(match raw.kind {
            Kind::Directory => store.rmdir(&raw.parent, &raw.name),
            _ => store.unlink(&raw.parent, &raw.name),
        })
    }
    /// Another target for a link: that of another one, or its own with a change. Directory ids and companions are links too.
    fn relink(&mut self, raw: &Raw<'a, S::Handle>, from: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        let target = match random.below(3) {
            0 => self.store(from).readlink(self.place(from))?,
            1 => {
                let mut target = self.store(raw).readlink(self.place(raw))?;
                let at = random.below(target.len() as u64) as usize;
                target[at] = b"ABCDEFGHabcdefgh0123456789-_@"[random.below(29) as usize];
                target
            }
            _ => {
                let mut target = self.store(raw).readlink(self.place(raw))?;
                target.truncate(1 + random.below(target.len() as u64) as usize);
                target
            }
        };
        self.entry_changed(raw);
        let store = self.store(raw);
        ignore(store.unlink(&raw.parent, &raw.name))?;
        ignore(store.symlink(&raw.parent, &raw.name, &target, by()))
    }
    fn attributes(
        &mut self,
        raw: &Raw<'a, S::Handle>,
        from: &Raw<'a, S::Handle>,
        random: &mut Random,
    ) -> io::Result<()> {
        let (mine, theirs) = (self.place(raw), self.place(from));
        let (store, source) = (self.store(raw), self.store(from));
        let names = source.list_xattrs(theirs).unwrap_or_default();
        let own = store.list_xattrs(mine).unwrap_or_default();
        self.touched.xattrs.insert(raw.ino);
        match random.below(5) {
            // All of another object, ids of directories included; one under another's name; a flipped bit; removed.
            0 | 1 => {
                for name in names {
                    let value = source.get_xattr(theirs, &name)?;
                    ignore(store.set_xattr(mine, &name, &value, 0))?;
                }
                self.entry_changed(raw);
                Ok(())
            }
            2 if own.len() > 1 => {
                let (a, b) = (random.pick(&own).clone(), random.pick(&own).clone());
                let value = store.get_xattr(mine, &a)?;
                ignore(store.set_xattr(mine, &b, &value, 0))
            }
            3 if !own.is_empty() => {
                let name = random.pick(&own).clone();
                let mut value = store.get_xattr(mine, &name)?;
                if !value.is_empty() {
                    let at = random.below(value.len() as u64) as usize;
                    value[at] ^= 1 << random.below(8);
                }
                ignore(store.set_xattr(mine, &name, &value, 0))
            }
            _ if !own.is_empty() => ignore(store.remove_xattr(mine, &random.pick(&own).clone())),
            _ => ignore(store.set_xattr(mine, b"user.e.AAAAAAAAAAAAAAAAAAAAAA", b"no such attribute", 0)),
        }
    }
    /// Something of another kind, or empty, or foreign, in an object's place.
    fn replace(&mut self, raw: &Raw<'a, S::Handle>, random: &mut Random) -> io::Result<()> {
        self.entry_changed(raw);
        let store = self.store(raw);
        let gone = match raw.kind {
            Kind::Directory => {
                // Out of the way, whole, so that what is inside is not lost to later steps.
                store.rename((&raw.parent, &raw.name), (&raw.parent, b"moved away"), RenameMode::NoReplace)
            }
            _ => store.unlink(&raw.parent, &raw.name),
        };
        if gone.is_err() {
            return Ok(());
        }
        ignore(match random.below(5) {
            0 => store.mknod(&raw.parent, &raw.name, Kind::Fifo, 0o644, 0, by()),
            1 => store.mkdir(&raw.parent, &raw.name, 0o755, by()),
            2 => store.symlink(&raw.parent, &raw.name, b"/etc/passwd", by()),
            3 => store.create_file(&raw.parent, &raw.name, 0o644, by()).map(drop),
            _ => store
                .create_file(&raw.parent, &raw.name, 0o644, by())
                .and_then(|file| file.write_at(&crate::common::pattern(random.next(), 20_000), 0)),
        })
    }
}

/// Tampering that the file system refuses is no tampering.
fn ignore(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error().is_none() => Err(e),
        _ => Ok(()),
    }
}
