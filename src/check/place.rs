//! Where a check stands: directories on the way down, and paths for reports. Holds names; does no I/O.

use std::sync::Arc;

use crate::format::volume::TREE_DIR;
use crate::store::{Kind, Place};

/// Longest path that a report shows, in bytes; of a longer one the end.
const PATH_MAX: usize = 16 * 1024;

/// A directory of the tree, known by its way down.
#[derive(Debug)]
pub struct Directory {
    /// `None`: the root.
    parent: Option<Arc<Directory>>,
    raw: Box<[u8]>,
    /// Its name as the mount shows it; `None` where it does not open.
    plain: Option<Box<[u8]>>,
    pub ino: u64,
}

impl Directory {
    pub fn root(ino: u64) -> Self {
        Self { parent: None, raw: TREE_DIR.as_bytes().into(), plain: Some([].into()), ino }
    }

    pub fn below(parent: &Arc<Self>, raw: &[u8], plain: Option<&[u8]>, ino: u64) -> Self {
        Self { parent: Some(parent.clone()), raw: raw.into(), plain: plain.map(Into::into), ino }
    }

    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// `tree/…`, with a further entry where one is given.
    pub fn backing(&self, entry: Option<&[u8]>) -> Vec<u8> {
        self.collect(entry, |dir| Some(&dir.raw)).unwrap_or_default()
    }

    /// `/…` as the mount shows it. `None` where one of the names on the way does not open.
    pub fn path(&self, entry: Option<&[u8]>) -> Option<Vec<u8>> {
        let path = self.collect(entry, |dir| dir.plain.as_deref())?;
        Some(if path.is_empty() { b"/".to_vec() } else { path })
    }

    fn collect<'a>(&'a self, entry: Option<&'a [u8]>, name: impl Fn(&'a Self) -> Option<&'a [u8]>) -> Option<Vec<u8>> {
        let mut names: Vec<&[u8]> = entry.into_iter().collect();
        let mut len = 0;
        let mut at = Some(self);
        while let Some(dir) = at {
            let name = name(dir)?;
            len += name.len() + 1;
            if len <= PATH_MAX {
                names.push(name);
            } else if names.last() != Some(&&b"[...]"[..]) {
                // What lies above is left out, but still has to be known.
                names.push(b"[...]");
            }
            at = dir.parent.as_deref();
        }
        names.reverse();
        Some(names.join(&b'/'))
    }
}

/// A tree may be deeper than the stack.
impl Drop for Directory {
    fn drop(&mut self) {
        let mut above = self.parent.take();
        while let Some(mut dir) = above.and_then(Arc::into_inner) {
            above = dir.parent.take();
        }
    }
}

/// An entry that is to be looked at, in an open directory.
pub struct Spot<H> {
    pub dir: Arc<Directory>,
    pub handle: Arc<H>,
    pub raw: Box<[u8]>,
    pub plain: Option<Box<[u8]>>,
    /// As the directory's listing says.
    pub kind: Kind,
    /// Its name does not belong here, which has been told: what it is itself is of interest only where it is ours.
    pub stranger: bool,
}

impl<H> Clone for Spot<H> {
    fn clone(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            handle: self.handle.clone(),
            raw: self.raw.clone(),
            plain: self.plain.clone(),
            kind: self.kind,
            stranger: self.stranger,
        }
    }
}

impl<H> Spot<H> {
    pub fn place(&self) -> Place<'_, H> {
        Place::Entry { dir: &self.handle, name: &self.raw }
    }

    pub fn backing(&self) -> Vec<u8> {
        self.dir.backing(Some(&self.raw))
    }

    pub fn path(&self) -> Option<Vec<u8>> {
        self.dir.path(Some(self.plain.as_deref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_sides() {
        let root = Arc::new(Directory::root(2));
        assert_eq!((root.backing(None), root.path(None)), (b"tree".to_vec(), Some(b"/".to_vec())));
        assert_eq!(root.path(Some(b"f")), Some(b"/f".to_vec()));
        let a = Arc::new(Directory::below(&root, b"AAA", Some(b"a"), 3));
        let b = Directory::below(&a, b"BBB", None, 4);
        assert_eq!((a.backing(Some(b"X")), a.path(Some(b"x"))), (b"tree/AAA/X".to_vec(), Some(b"/a/x".to_vec())));
        assert_eq!((b.backing(None), b.path(None)), (b"tree/AAA/BBB".to_vec(), None));
    }

    #[test]
    fn deep_trees_are_dropped_and_named_in_bounded_space() {
        let mut dir = Arc::new(Directory::root(1));
        for n in 0..200_000 {
            dir = Arc::new(Directory::below(&dir, &[b'x'; 200], Some(b"y"), n));
        }
        let path = dir.backing(Some(b"end"));
        assert!(path.len() < PATH_MAX + 1000 && path.starts_with(b"[...]/") && path.ends_with(b"/end"));
        assert!(dir.path(None).is_some());
        drop(dir);
    }
}
