//! The reference: a tree in plain maps, with the errors that Linux gives.

use std::collections::BTreeMap;

use envelopefs::store::RenameMode;

pub type Id = usize;

#[derive(Debug, Clone)]
pub enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Id>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Debug, Clone)]
pub struct Object {
    pub body: Body,
    pub mode: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub objects: Vec<Object>,
}

pub type Errno = i32;

impl Model {
    pub fn new() -> Self {
        let root = Object { body: Body::Directory(BTreeMap::new()), mode: 0o755, xattrs: BTreeMap::new() };
        Self { objects: vec![root] }
    }
    pub fn entries(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.objects[dir].body {
            Body::Directory(entries) => entries,
            other => panic!("not a directory: {other:?}"),
        }
    }
    pub fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.objects[dir].body {
            Body::Directory(entries) => entries,
            other => panic!("not a directory: {other:?}"),
        }
    }
    pub fn content_mut(&mut self, file: Id) -> &mut Vec<u8> {
        match &mut self.objects[file].body {
            Body::File(content) => content,
            other => panic!("not a file: {other:?}"),
        }
    }
    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.objects[id].body, Body::Directory(_))
    }
    pub fn find(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.entries(dir).get(name).copied()
    }
    /// All reachable directories with their paths, the root first.
    pub fn directories(&self) -> Vec<(Id, Vec<Vec<u8>>)> {
        let mut found = vec![(0, Vec::new())];
        let mut next = 0;
        while next < found.len() {
            let (dir, path) = found[next].clone();
            for (name, id) in self.entries(dir) {
                if self.is_dir(*id) {
                    found.push((*id, path.iter().cloned().chain([name.clone()]).collect()));
                }
            }
            next += 1;
        }
        found
    }
    pub fn links(&self, id: Id) -> u64 {
        let all = self.directories();
        all.iter().map(|(d, _)| self.entries(*d).values().filter(|i| **i == id).count() as u64).sum()
    }
    /// Whether `inner` is `outer` or lies below it.
    pub fn contains(&self, outer: Id, inner: Id) -> bool {
        outer == inner || self.is_dir(outer) && self.entries(outer).values().any(|id| self.contains(*id, inner))
    }
    pub fn add(&mut self, dir: Id, name: &[u8], body: Body, mode: u32) -> Result<Id, Errno> {
        if self.find(dir, name).is_some() {
            return Err(libc::EEXIST);
        }
        self.objects.push(Object { body, mode, xattrs: BTreeMap::new() });
        let id = self.objects.len() - 1;
        self.entries_mut(dir).insert(name.to_vec(), id);
        Ok(id)
    }
    pub fn link(&mut self, id: Id, dir: Id, name: &[u8]) -> Result<(), Errno> {
        if self.find(dir, name).is_some() {
            return Err(libc::EEXIST);
        }
        self.entries_mut(dir).insert(name.to_vec(), id);
        Ok(())
    }
    pub fn unlink(&mut self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        let id = self.find(dir, name).ok_or(libc::ENOENT)?;
        if self.is_dir(id) {
            return Err(libc::EISDIR);
        }
        self.entries_mut(dir).remove(name);
        Ok(())
    }
    pub fn rmdir(&mut self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        let id = self.find(dir, name).ok_or(libc::ENOENT)?;
        if !self.is_dir(id) {
            return Err(libc::ENOTDIR);
        }
        if !self.entries(id).is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.entries_mut(dir).remove(name);
        Ok(())
    }
    pub fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), mode: RenameMode) -> Result<(), Errno> {
        let moved = self.find(from.0, from.1).ok_or(libc::ENOENT)?;
        let other = self.find(to.0, to.1);
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameMode::Exchange, None) => return Err(libc::ENOENT),
            (_, Some(other)) if other == moved => return Ok(()),
            _ => {}
        }
        if self.is_dir(moved) && self.contains(moved, to.0) {
            return Err(libc::EINVAL);
        }
        if let Some(other) = other {
            if mode == RenameMode::Exchange {
                if self.is_dir(other) && self.contains(other, from.0) {
                    return Err(libc::EINVAL);
                }
                self.entries_mut(from.0).insert(from.1.to_vec(), other);
                self.entries_mut(to.0).insert(to.1.to_vec(), moved);
                return Ok(());
            }
            match (self.is_dir(moved), self.is_dir(other)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.entries(other).is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            }
        }
        self.entries_mut(from.0).remove(from.1);
        self.entries_mut(to.0).insert(to.1.to_vec(), moved);
        Ok(())
    }
}
