//! The filesystem and the reference side by side, and the kernel's view of the former.

use std::collections::{BTreeMap, HashMap};

use envelopefs::fs::{Attr, Fs, FsError, Ino, OpenMode, ROOT, SetAttr};
use envelopefs::store::{Kind, Place, RenameMode, Store};

use crate::operations::{Op, Resize, XATTRS, names};
use crate::reference::{Body, Errno, Id, Model};
use crate::volume::{Backing, caller, mount, volume_keys};

pub struct World<S: Store> {
    backing: Backing<S>,
    plain_names: bool,
    /// How many of `XATTRS` the backing store takes.
    xattrs: usize,
    fs: Fs<S>,
    model: Model,
    names: Vec<Vec<u8>>,
    /// Lookups that the kernel would have to give back.
    lookups: HashMap<Ino, u64>,
    /// What the kernel knows of objects, by reference id.
    inos: HashMap<Id, Ino>,
    open: Vec<Id>,
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

impl<S: Store> World<S> {
    pub fn new(backing: Backing<S>, plain_names: bool) -> Self {
        let tree = (backing.tree)();
        Fs::format(&tree, &volume_keys()).expect("the tree is made");
        let takes = |name: &&&str| tree.set_xattr(Place::Pinned(tree.root()), name.as_bytes(), b"", 0).is_ok();
        let xattrs = XATTRS.iter().take_while(takes).count();
        for name in &XATTRS[..xattrs] {
            tree.remove_xattr(Place::Pinned(tree.root()), name.as_bytes()).expect("the probe goes away");
        }
        let fs = mount(tree, (backing.overflow)(), plain_names);
        Self {
            backing,
            plain_names,
            xattrs,
            fs,
            model: Model::new(),
            names: names(),
            lookups: HashMap::new(),
            inos: HashMap::from([(0, ROOT)]),
            open: Vec::new(),
        }
    }

    pub fn count(&mut self, id: Id, attr: Attr) -> Ino {
        *self.lookups.entry(attr.ino).or_default() += 1;
        let before = self.inos.insert(id, attr.ino);
        assert!(before.is_none_or(|ino| ino == attr.ino), "the inode number of a known object changed");
        attr.ino
    }

    /// A reachable directory, chosen by number, looked up on the way.
    pub fn dir(&mut self, which: usize) -> (Id, Ino) {
        let all = self.model.directories();
        let (id, path) = all[which % all.len()].clone();
        let (mut at, mut ino) = (0, ROOT);
        for name in path {
            at = self.model.find(at, &name).expect("the path exists");
            let attr = self.fs.lookup(ino, &name).expect("the path is found");
            ino = self.count(at, attr);
        }
        assert_eq!(at, id);
        (id, ino)
    }

    /// A reachable object other than the root, looked up.
    pub fn object(&mut self, which: usize, wanted: impl Fn(&Body) -> bool) -> Option<(Id, Ino)> {
        let mut all = Vec::new();
        for (number, (dir, _)) in self.model.directories().into_iter().enumerate() {
            for (name, id) in self.model.entries(dir) {
                if wanted(&self.model.objects[*id].body) {
                    all.push((number, name.clone(), *id));
                }
            }
        }
        let (number, name, id) = all.get(which % all.len().max(1))?.clone();
        let (_, parent) = self.dir(number);
        let attr = self.fs.lookup(parent, &name).expect("the object is found");
        Some((id, self.count(id, attr)))
    }

    pub fn opened(&self, which: usize) -> Option<(Id, Ino)> {
        let id = *self.open.get(which % self.open.len().max(1))?;
        Some((id, self.inos[&id]))
    }

    pub fn agree<T>(&self, what: &Op, got: &Result<T, FsError>, expected: Result<(), Errno>) {
        let got = got.as_ref().map(|_| ()).map_err(|e| e.errno());
        assert_eq!(got, expected, "{what:?}");
    }

    pub fn attach(&mut self, op: &Op, got: Result<Attr, FsError>, expected: Result<Id, Errno>) {
        self.agree(op, &got, expected.map(|_| ()));
        if let (Ok(attr), Ok(id)) = (got, expected) {
            self.count(id, attr);
        }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { dir, name, keep_open } => {
                let (id, ino) = self.dir(*dir);
                let name = self.names[*name].clone();
                let expected = self.model.add(id, &name, Body::File(Vec::new()), 0o644);
                let got = self.fs.create(&caller(), ino, &name, 0o644);
                let made = got.as_ref().ok().map(|a| a.ino);
                self.attach(op, got, expected);
                if let (Some(ino), Ok(id)) = (made, expected) {
                    if *keep_open {
                        self.open.push(id);
                    } else {
                        self.fs.release(ino);
                    }
                }
            }
            Op::Mkdir { dir, name } => {
                let (id, ino) = self.dir(*dir);
                let name = self.names[*name].clone();
                let expected = self.model.add(id, &name, Body::Directory(BTreeMap::new()), 0o755);
                let got = self.fs.mkdir(&caller(), ino, &name, 0o777);
                self.attach(op, got, expected);
            }
            Op::Symlink { dir, name, len } => {
                let (id, ino) = self.dir(*dir);
                let (name, target) = (self.names[*name].clone(), vec![b't'; *len]);
                let expected = self.model.add(id, &name, Body::Symlink(target.clone()), 0o777);
                let got = self.fs.symlink(&caller(), ino, &name, &target);
                self.attach(op, got, expected);
            }
            Op::Fifo { dir, name } => {
                let (id, ino) = self.dir(*dir);
                let name = self.names[*name].clone();
                let expected = self.model.add(id, &name, Body::Fifo, 0o600);
                let got = self.fs.mknod(&caller(), ino, &name, Kind::Fifo, 0o600, 0);
                self.attach(op, got, expected);
            }
            Op::Link { object, dir, name } => {
                let Some((object, ino)) = self.object(*object, |b| !matches!(b, Body::Directory(_))) else { return };
                let (id, parent) = self.dir(*dir);
                let name = self.names[*name].clone();
                let expected = self.model.link(object, id, &name);
                let got = self.fs.link(ino, parent, &name);
                self.attach(op, got, expected.map(|()| object));
            }
            Op::Unlink { dir, name } => {
                let (id, ino) = self.dir(*dir);
                let name = self.names[*name].clone();
                let expected = self.model.unlink(id, &name);
                self.agree(op, &self.fs.unlink(ino, &name), expected);
            }
            Op::Rmdir { dir, name } => {
                let (id, ino) = self.dir(*dir);
                let name = self.names[*name].clone();
                let expected = self.model.rmdir(id, &name);
                self.agree(op, &self.fs.rmdir(ino, &name), expected);
            }
            Op::Rename { from, to, mode } => {
                let (source, target) = (self.dir(from.0), self.dir(to.0));
                let (old, new) = (self.names[from.1].clone(), self.names[to.1].clone());
                let mode = match mode {
                    0 => RenameMode::NoReplace,
                    1 => RenameMode::Exchange,
                    _ => RenameMode::Replace,
                };
                let expected = self.model.rename((source.0, &old), (target.0, &new), mode);
                let got = self.fs.rename((source.1, &old), (target.1, &new), mode);
                if expected == Err(libc::EINVAL) {
                    // Into its own subtree: the kernel refuses that before anybody asks us, and before any other error.
                    assert!(got.is_err(), "{op:?}");
                } else {
                    self.agree(op, &got, expected);
                }
            }
            Op::Open { object, write, truncate } => {
                let Some((id, ino)) = self.object(*object, |b| matches!(b, Body::File(_))) else { return };
                let mode = OpenMode { read: true, write: *write, truncate: *truncate, drop_privileges: false };
                self.fs.open(ino, mode).expect("the file opens");
                if *truncate {
                    self.model.content_mut(id).clear();
                }
                self.open.push(id);
            }
            Op::Close { open } => {
                if let Some((_, ino)) = self.opened(*open) {
                    let at = open % self.open.len();
                    self.open.swap_remove(at);
                    self.fs.release(ino);
                }
            }
            Op::Write { open, offset, len, seed } => {
                let Some((id, ino)) = self.opened(*open) else { return };
                let data = pattern(*len, *seed);
                self.fs.write(ino, *offset, &data).expect("the write succeeds");
                put(self.model.content_mut(id), *offset as usize, &data);
            }
            Op::Read { open, offset, len } => {
                let Some((id, ino)) = self.opened(*open) else { return };
                let mut buf = vec![0xee; *len];
                let n = self.fs.read(ino, *offset, &mut buf).expect("the read succeeds");
                let content = self.model.content_mut(id);
                let start = (*offset as usize).min(content.len());
                assert_eq!(&buf[..n], &content[start..(start + len).min(content.len())], "{op:?}");
            }
            Op::Resize { object, how, offset, len } => self.resize(op, *object, *how, *offset, *len),
            Op::Copy { from, to, offset, len } => {
                let (Some(from), Some(to)) = (self.opened(*from), self.opened(*to)) else { return };
                if from.0 == to.0 {
                    return;
                }
                let source = self.model.content_mut(from.0).clone();
                let start = (*offset as usize).min(source.len());
                let piece = source[start..source.len().min(start + *len as usize)].to_vec();
                let copied = self.fs.copy_range((from.1, *offset), (to.1, *offset), *len).expect("the copy succeeds");
                assert_eq!(copied, piece.len() as u64);
                put(self.model.content_mut(to.0), *offset as usize, &piece);
            }
            Op::Chmod { object, mode } => {
                let Some((id, ino)) = self.object(*object, |b| !matches!(b, Body::Symlink(_))) else { return };
                let attr = self.fs.setattr(ino, &SetAttr { mode: Some(*mode), ..SetAttr::default() });
                assert_eq!(attr.expect("the mode changes").stat.mode, *mode);
                self.model.objects[id].mode = *mode;
            }
            Op::SetXattr { object, name, len, seed } => {
                let Some((id, ino)) = self.xattr_object(*object, *name) else { return };
                let (name, value) = (XATTRS[*name].as_bytes(), pattern(*len, *seed));
                self.fs.setxattr(&caller(), ino, name, &value, 0).expect("the attribute is set");
                self.model.objects[id].xattrs.insert(name.to_vec(), value);
            }
            Op::RemoveXattr { object, name } => {
                let Some((id, ino)) = self.xattr_object(*object, *name) else { return };
                let name = XATTRS[*name].as_bytes();
                let expected = self.model.objects[id].xattrs.remove(name).map(drop).ok_or(libc::ENODATA);
                self.agree(op, &self.fs.removexattr(ino, name), expected);
            }
            Op::Fsync { open } => {
                if let Some((_, ino)) = self.opened(*open) {
                    self.fs.fsync(ino, true).expect("the file syncs");
                }
            }
            Op::Commit => self.fs.commit().expect("the commit succeeds"),
            Op::Forget => self.forget(),
            Op::DropKeys => drop(self.fs.drop_keys(&|_| true)),
            Op::Remount => self.remount(true),
            Op::Kill => self.remount(false),
            Op::Compare => self.compare(),
        }
    }

    /// Files and directories: what `user.` attributes are for.
    pub fn xattr_object(&mut self, which: usize, name: usize) -> Option<(Id, Ino)> {
        if name >= self.xattrs {
            return None;
        }
        self.object(which, |b| matches!(b, Body::File(_) | Body::Directory(_)))
    }

    pub fn resize(&mut self, op: &Op, object: usize, how: Resize, offset: u64, len: u64) {
        let Some((id, ino)) = self.object(object, |b| matches!(b, Body::File(_))) else { return };
        let (start, end) = (offset as usize, (offset + len) as usize);
        match how {
            Resize::Truncate => {
                let attr = self.fs.setattr(ino, &SetAttr { size: Some(offset), ..SetAttr::default() });
                assert_eq!(attr.expect("the size changes").stat.size, offset, "{op:?}");
                self.model.content_mut(id).resize(start, 0);
            }
            Resize::Punch => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.fs.fallocate(ino, mode, offset, len).expect("the hole is punched");
                let content = self.model.content_mut(id);
                let end = end.min(content.len());
                if start < end {
                    content[start..end].fill(0);
                }
            }
            Resize::Zero => {
                self.fs.fallocate(ino, libc::FALLOC_FL_ZERO_RANGE, offset, len).expect("the range is zeroed");
                let content = self.model.content_mut(id);
                put(content, start, &vec![0; end - start]);
            }
            Resize::Allocate => {
                self.fs.fallocate(ino, 0, offset, len).expect("the range is allocated");
                let content = self.model.content_mut(id);
                let len = content.len().max(end);
                content.resize(len, 0);
            }
        }
    }

    /// Gives back every lookup except those of open files and of the way to them.
    pub fn forget(&mut self) {
        let open: Vec<Ino> = self.open.iter().map(|id| self.inos[id]).collect();
        let gone: Vec<Ino> = self.lookups.keys().copied().filter(|ino| !open.contains(ino)).collect();
        for ino in gone {
            let count = self.lookups.remove(&ino).unwrap_or(0);
            self.fs.forget(ino, count);
            self.inos.retain(|_, known| *known != ino);
        }
        // The kernel keeps the parents of what is open.
        for which in 0..self.model.directories().len() {
            self.dir(which);
        }
    }

    pub fn remount(&mut self, clean: bool) {
        if clean {
            for id in std::mem::take(&mut self.open) {
                self.fs.release(self.inos[&id]);
            }
            self.fs.commit().expect("the last commit succeeds");
            assert!(!self.fs.needs_commit(), "nothing is left to commit");
        }
        self.open.clear();
        self.lookups.clear();
        self.inos = HashMap::from([(0, ROOT)]);
        self.fs = mount((self.backing.tree)(), (self.backing.overflow)(), self.plain_names);
    }

    pub fn compare(&mut self) {
        let mut inos = HashMap::new();
        self.compare_dir(0, ROOT, ROOT, &mut inos);
    }

    pub fn compare_dir(&mut self, dir: Id, ino: Ino, parent: Ino, inos: &mut HashMap<Id, Ino>) {
        let handle = self.fs.opendir(ino).expect("the directory opens");
        let mut plain = Vec::new();
        // In small pieces, as a kernel with small buffers would.
        let mut offset = 0;
        loop {
            let mut room = 3;
            let before = plain.len();
            self.fs
                .readdir(ino, handle, offset, &mut |e| {
                    if room == 0 {
                        return false;
                    }
                    room -= 1;
                    plain.push((e.name.clone(), e.ino));
                    offset = e.next;
                    true
                })
                .expect("the directory lists");
            if plain.len() == before {
                break;
            }
        }
        let mut full = Vec::new();
        self.fs
            .readdirplus(ino, handle, 0, &mut |e, attr| {
                full.push((e.name.clone(), *attr));
                true
            })
            .expect("the directory lists with attributes");
        self.fs.releasedir(handle);
        assert_eq!(plain[0], (b".".to_vec(), ino));
        assert_eq!(plain[1], (b"..".to_vec(), parent));
        let numbers: Vec<_> = full.iter().map(|(name, attr)| (name.clone(), attr.ino)).collect();
        assert_eq!(plain, numbers);
        let found: BTreeMap<Vec<u8>, Attr> = full.into_iter().skip(2).collect();
        let expected = self.model.entries(dir).clone();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, id) in expected {
            let attr = found[&name];
            *self.lookups.entry(attr.ino).or_default() += 1;
            self.inos.insert(id, attr.ino);
            assert_eq!(*inos.entry(id).or_insert(attr.ino), attr.ino, "one object, one number");
            self.compare_object(id, &attr);
            if self.model.is_dir(id) {
                self.compare_dir(id, attr.ino, ino, inos);
            }
        }
        let numbers: std::collections::HashSet<_> = inos.values().collect();
        assert_eq!(numbers.len(), inos.len(), "one number, one object");
    }

    pub fn compare_object(&self, id: Id, attr: &Attr) {
        let object = &self.model.objects[id];
        let (st, ino) = (&attr.stat, attr.ino);
        assert_eq!(self.fs.getattr(ino).expect("attributes").stat.size, st.size);
        let expected_kind = match &object.body {
            Body::File(content) => {
                assert_eq!(st.size, content.len() as u64, "size of object {id}");
                let was_open = self.open.contains(&id);
                if !was_open {
                    self.fs
                        .open(ino, OpenMode { read: true, write: false, truncate: false, drop_privileges: false })
                        .expect("it opens");
                }
                let mut got = vec![0xee; content.len() + 10];
                let n = self.fs.read(ino, 0, &mut got).expect("it reads");
                assert!(got[..n] == content[..], "content of object {id}");
                if !was_open {
                    self.fs.release(ino);
                }
                Kind::File
            }
            Body::Directory(_) => Kind::Directory,
            Body::Symlink(target) => {
                assert_eq!(&self.fs.readlink(ino).expect("a target"), target);
                assert_eq!(st.size, target.len() as u64);
                Kind::Symlink
            }
            Body::Fifo => Kind::Fifo,
        };
        assert_eq!(st.kind, expected_kind);
        if !matches!(object.body, Body::Symlink(_)) {
            assert_eq!(st.mode, object.mode);
        }
        if expected_kind != Kind::Directory {
            assert_eq!(st.nlink, self.model.links(id));
        }
        let mut listed = self.fs.listxattr(ino).expect("attributes list");
        listed.sort();
        assert_eq!(listed, object.xattrs.keys().cloned().collect::<Vec<_>>());
        for (name, value) in &object.xattrs {
            assert_eq!(&self.fs.getxattr(ino, name).expect("an attribute"), value);
        }
    }

    /// Nothing of ours stays behind: per directory its id, per entry its companion at most; per long symlink one object.
    pub fn check_leftovers(&self) {
        let (tree, overflow) = ((self.backing.tree)(), (self.backing.overflow)());
        let raw = count_raw(&tree, tree.root());
        // A ciphertext has 16 bytes more, base64url makes 4 characters of 3 bytes.
        let is_long = |name: &[u8]| !self.plain_names && (name.len() + 16) * 4 > 255 * 3;
        let directories = self.model.directories();
        let mut expected = directories.len();
        let mut long_targets = std::collections::HashSet::new();
        for (dir, _) in &directories {
            for (name, id) in self.model.entries(*dir) {
                expected += 1 + usize::from(is_long(name));
                if matches!(&self.model.objects[*id].body, Body::Symlink(t) if (t.len() + 32) * 4 > 1023 * 3) {
                    long_targets.insert(*id);
                }
            }
        }
        assert_eq!(raw, expected, "entries in the backing tree");
        let objects = overflow.list(overflow.root()).expect("the overflow directory lists").len();
        assert_eq!(objects, long_targets.len(), "overflow objects");
    }
}

/// All entries below `dir`.
pub fn count_raw<S: Store>(store: &S, dir: &S::Handle) -> usize {
    let entries = store.list(dir).expect("a directory lists");
    let inside = entries.iter().filter(|e| e.kind == Kind::Directory).map(|entry| {
        let handle = store.pin(dir, &entry.name).expect("a directory is pinned");
        count_raw(store, &handle)
    });
    entries.len() + inside.sum::<usize>()
}

pub fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}
