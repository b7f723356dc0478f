//! What may be seen of a tampered volume: the true bytes, names, targets and attributes, or an error, or one of the accepted
//! cases of doc/SEMANTICS.md. Asks through a `View`, so that the library and a real mount are held to the same.

use std::collections::BTreeSet;

use envelopefs::format::geometry::PLAIN;
use envelopefs::fs::ROOT;
use envelopefs::store::Kind;

use crate::attack::Touched;
use crate::world::{Model, Object};

const P: u64 = PLAIN as u64;

/// An errno.
pub type Errno = i32;

/// What a look at one name gives.
#[derive(Debug, Clone)]
pub struct Seen<N> {
    pub node: N,
    pub ino: u64,
    pub kind: Kind,
    pub size: u64,
}

/// A way to look at a volume.
pub trait View {
    type Node: Clone;
    fn root(&self) -> Self::Node;
    fn list(&self, dir: &Self::Node) -> Result<Vec<Vec<u8>>, Errno>;
    fn lookup(&self, dir: &Self::Node, name: &[u8]) -> Result<Seen<Self::Node>, Errno>;
    /// The outer error is open's. Each piece is (offset, length).
    #[allow(clippy::type_complexity)]
    fn read(&self, node: &Self::Node, pieces: &[(u64, usize)]) -> Result<Vec<Result<Vec<u8>, Errno>>, Errno>;
    fn readlink(&self, node: &Self::Node) -> Result<Vec<u8>, Errno>;
    fn xattr(&self, node: &Self::Node, name: &str) -> Result<Vec<u8>, Errno>;
    fn xattrs(&self, node: &Self::Node) -> Result<Vec<String>, Errno>;
}

/// Errors that tampering may cause: damage, no key, and names that lead nowhere or elsewhere.
const ALLOWED: [Errno; 4] = [libc::EIO, libc::ENOKEY, libc::ENOENT, libc::ESTALE];

/// What was written after the tampering, by inode: reads have to show it.
#[derive(Default)]
pub struct Written {
    /// Range and bytes; later ones win.
    pub parts: Vec<(u64, u64, Vec<u8>)>,
    /// Whole contents that replaced what was there.
    pub wholes: Vec<(u64, Vec<u8>)>,
    pub touched: BTreeSet<u64>,
}

impl Written {
    pub fn told(&self) -> Vec<String> {
        let parts = self.parts.iter().map(|(ino, offset, data)| format!("wrote {} to {ino} at {offset}", data.len()));
        parts.chain(self.wholes.iter().map(|(ino, data)| format!("{ino} was rewritten, {}", data.len()))).collect()
    }
}

pub struct Oracle<'a> {
    pub model: &'a Model,
    pub touched: &'a Touched,
    pub written: &'a Written,
    /// Counts what was compared, so that an oracle that looks at nothing is noticed.
    pub served: u64,
    pub refused: u64,
    /// The store below never gives a number twice.
    pub keeps_numbers: bool,
}

type Verdict = Result<(), String>;

impl<'a> Oracle<'a> {
    pub fn new(model: &'a Model, touched: &'a Touched, written: &'a Written) -> Self {
        Self { model, touched, written, served: 0, refused: 0, keeps_numbers: true }
    }

    /// Walks the whole tree as it is seen.
    pub fn check<V: View>(&mut self, view: &V) -> Verdict {
        self.directory(view, &view.root(), ROOT, "", 0)
    }

    /// The object that this inode number stands for since before the tampering.
    fn own(&self, ino: u64) -> Option<&'a Object> {
        let index = self.model.by_ino.get(&ino).filter(|_| !self.touched.gone.contains(&ino) || self.keeps_numbers)?;
        Some(&self.model.objects[*index])
    }

    fn error(&mut self, what: &str, errno: Errno, untouched: bool) -> Verdict {
        self.refused += 1;
        if untouched {
            return Err(format!("{what}: errno {errno}, and nobody touched it"));
        }
        if ALLOWED.contains(&errno) { Ok(()) } else { Err(format!("{what}: unexpected errno {errno}")) }
    }

    fn directory<V: View>(&mut self, view: &V, node: &V::Node, ino: u64, path: &str, depth: usize) -> Verdict {
        if depth > 64 {
            return Err(format!("{path}: no end of directories"));
        }
        let untouched = !self.touched.directories.contains(&ino);
        let own = self.own(ino);
        let names: BTreeSet<Vec<u8>> = match view.list(node) {
            Ok(names) => {
                let unique: BTreeSet<_> = names.iter().cloned().collect();
                if unique.len() != names.len() {
                    return Err(format!("{path}: a name is listed twice"));
                }
                unique
            }
            Err(errno) => return self.error(&format!("{path}/"), errno, untouched && own.is_some()),
        };
        // All names are true ones of one directory of this volume: they open under its id alone.
        let of_one = |object: &&Object| names.iter().all(|name| object.entries.contains_key(name));
        if !names.is_empty() && !self.model.objects.iter().any(|object| of_one(&object)) {
            return Err(format!("{path}: names that belong to no directory: {names:?}"));
        }
        if untouched && let Some(own) = own {
            let want: BTreeSet<Vec<u8>> = own.entries.keys().cloned().collect();
            if names != want {
                return Err(format!("{path}: lists {names:?}, want {want:?}"));
            }
        }
        // Hidden names may still lead somewhere: they are held to the same.
        let mut all = names;
        all.extend(own.iter().flat_map(|own| own.entries.keys().cloned()));
        for name in all {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            let expected = own.and_then(|own| own.entries.get(&name)).filter(|_| untouched);
            match view.lookup(node, &name) {
                Err(errno) => self.error(&path, errno, expected.is_some())?,
                Ok(seen) => {
                    if let Some(expected) = expected
                        && self.model.by_ino.get(&seen.ino) != Some(expected)
                    {
                        return Err(format!(
                            "{path}: another object than the name's own, and nobody touched the directory"
                        ));
                    }
                    self.object(view, &seen, &path, depth)?;
                }
            }
        }
        self.attributes(view, node, ino, path)
    }

    fn object<V: View>(&mut self, view: &V, seen: &Seen<V::Node>, path: &str, depth: usize) -> Verdict {
        match seen.kind {
            Kind::Directory => self.directory(view, &seen.node, seen.ino, path, depth + 1),
            Kind::File => {
                self.file(view, seen, path)?;
                self.attributes(view, &seen.node, seen.ino, path)
            }
            Kind::Symlink => self.link(view, seen, path),
            _ => Ok(()),
        }
    }

    fn link<V: View>(&mut self, view: &V, seen: &Seen<V::Node>, path: &str) -> Verdict {
        let own = self.own(seen.ino);
        let own = own.filter(|object| object.kind == Kind::Symlink);
        match view.readlink(&seen.node) {
            Err(errno) => self.error(path, errno, own.is_some() && !self.touched.overflow),
            Ok(target) => {
                self.served += 1;
                let known = |object: &Object| object.kind == Kind::Symlink && object.content() == target;
                let fine = match own {
                    Some(own) => own.content() == target,
                    None => self.model.objects.iter().any(known),
                };
                if fine { Ok(()) } else { Err(format!("{path}: a target that is not its own: {}", text(&target))) }
            }
        }
    }

    fn attributes<V: View>(&mut self, view: &V, node: &V::Node, ino: u64, path: &str) -> Verdict {
        if self.written.touched.contains(&ino) {
            return Ok(());
        }
        let touched = self.touched.xattrs.contains(&ino) || self.touched.anything(ino);
        let own = self.own(ino);
        // A directory may be given all attributes of another object; a file's hang on its key.
        let directory = own.is_none_or(|own| own.kind == Kind::Directory);
        let allowed: Vec<&Object> = match self.touched.identity.get(&ino) {
            Some(of) if !directory => of.iter().map(|index| &self.model.objects[*index]).collect(),
            _ => self.model.objects.iter().collect(),
        };
        let names = match view.xattrs(node) {
            Ok(names) => names,
            Err(errno) => return self.error(&format!("{path}: listxattr"), errno, !touched && own.is_some()),
        };
        for name in names.iter().filter(|name| name.starts_with("user.")) {
            if !allowed.iter().any(|object| object.xattrs.contains_key(name)) {
                return Err(format!("{path}: an attribute that it never had: {name}"));
            }
        }
        let asked: BTreeSet<&String> = allowed.iter().flat_map(|object| object.xattrs.keys()).collect();
        for name in asked {
            let mine = own.and_then(|own| own.xattrs.get(name)).and_then(|all| all.last()).cloned().flatten();
            match view.xattr(node, name) {
                Ok(value) => {
                    self.served += 1;
                    let fine = match touched || own.is_none() {
                        false => mine.as_ref() == Some(&value),
                        true => allowed
                            .iter()
                            .any(|o| o.xattrs.get(name).is_some_and(|all| all.contains(&Some(value.clone())))),
                    };
                    if !fine {
                        return Err(format!("{path}: {name} has a value that is not its own: {}", text(&value)));
                    }
                }
                Err(libc::ENODATA) if touched || mine.is_none() => {}
                Err(errno) => self.error(&format!("{path}: {name}"), errno, !touched && own.is_some())?,
            }
        }
        Ok(())
    }

    fn file<V: View>(&mut self, view: &V, seen: &Seen<V::Node>, path: &str) -> Verdict {
        if let Some((_, want)) = self.written.wholes.iter().rev().find(|(ino, _)| *ino == seen.ino) {
            let got =
                view.read(&seen.node, &[(0, want.len() + 1)]).map_err(|e| format!("{path}: {e}, though rewritten"))?;
            return match &got[0] {
                Ok(got) if got == want && seen.size == want.len() as u64 => Ok(()),
                other => Err(format!("{path}: rewritten as a whole, and now {:?}", other.as_ref().map(Vec::len))),
            };
        }
        let candidates: Vec<&Object> = match self.touched.identity.get(&seen.ino) {
            Some(of) => of.iter().map(|index| &self.model.objects[*index]).filter(|o| o.kind == Kind::File).collect(),
            None => Vec::new(),
        };
        let own = self.own(seen.ino);
        let own = own.filter(|own| own.kind == Kind::File);
        let whole = self.touched.whole.contains(&seen.ino) || own.is_none();
        let size = seen.size;
        let rewritten = self.written.parts.iter().any(|(ino, ..)| *ino == seen.ino);
        if !whole
            && !rewritten
            && let Some(own) = own
            && size != own.content().len() as u64
        {
            return Err(format!("{path}: size {size}, want {}", own.content().len()));
        }
        if size == 0 {
            return Ok(());
        }
        let count = size.div_ceil(P);
        let mut wanted: BTreeSet<u64> = (0..count.min(24)).collect();
        wanted.extend([count / 2, count - 1, count.saturating_sub(2)]);
        let blocks: Vec<u64> = wanted.into_iter().collect();
        let mut pieces: Vec<(u64, usize)> =
            blocks.iter().map(|block| (block * P, P.min(size - block * P) as usize)).collect();
        // The whole as one read too.
        pieces.push((0, size.min(24 * P) as usize));
        let mut results = match view.read(&seen.node, &pieces) {
            Err(errno) => return self.error(path, errno, !whole),
            Ok(results) => results,
        };
        let run = results.pop().expect("a result a piece");
        let mut shown: Vec<(u64, Vec<u8>)> = Vec::new();
        for (block, result) in blocks.iter().zip(results) {
            let damaged =
                self.touched.pages.get(&seen.ino).is_some_and(|pages| pages.contains(&(block + self.data_pages())));
            match result {
                Err(errno) => self.error(&format!("{path}: block {block}"), errno, !whole && !damaged)?,
                Ok(bytes) => {
                    self.served += 1;
                    if bytes.len() as u64 != P.min(size - block * P) {
                        return Err(format!("{path}: block {block} is short: {}", bytes.len()));
                    }
                    if !whole
                        && !damaged
                        && let Some(own) = own
                    {
                        let start = (block * P) as usize;
                        let mut want = own.content()[start.min(own.content().len())..].to_vec();
                        want.resize(want.len().max(bytes.len()), 0);
                        self.overlay(seen.ino, *block, &mut want);
                        if want[..bytes.len()] != bytes[..] {
                            return Err(format!("{path}: block {block} differs, and nobody touched it"));
                        }
                    }
                    shown.push((*block, bytes));
                }
            }
        }
        if let Ok(run) = run {
            for (block, bytes) in run.chunks(PLAIN).enumerate() {
                shown.push((block as u64, bytes.to_vec()));
            }
        }
        let fits = |object: &&Object| {
            // One that is not empty is not shorter than its least floor.
            (size >= object.least_floor() || rewritten)
                && shown.iter().all(|(block, bytes)| self.is_true(seen.ino, object, *block, bytes))
        };
        if shown.is_empty() || candidates.iter().any(fits) {
            return Ok(());
        }
        let bad: Vec<_> = shown
            .iter()
            .filter(|(block, bytes)| !candidates.iter().any(|object| self.is_true(seen.ino, object, *block, bytes)))
            .map(|(block, bytes)| format!("block {block}: {}", text(bytes)))
            .collect();
        Err(format!("{path}: size {size}: bytes that no file of the volume had there: {bad:?}"))
    }

    fn data_pages(&self) -> u64 {
        self.model.data_pages
    }

    /// Puts what was written after the tampering over a block's bytes.
    fn overlay(&self, ino: u64, block: u64, bytes: &mut [u8]) {
        for (of, offset, data) in &self.written.parts {
            if *of != ino {
                continue;
            }
            for (n, byte) in data.iter().enumerate() {
                let at = offset + n as u64;
                if at / P == block && ((at % P) as usize) < bytes.len() {
                    bytes[(at % P) as usize] = *byte;
                }
            }
        }
    }

    fn is_true(&self, ino: u64, object: &Object, block: u64, bytes: &[u8]) -> bool {
        let matches = |mut version: Vec<u8>| {
            self.overlay(ino, block, &mut version);
            version[..bytes.len()] == *bytes
        };
        let beyond = block * P >= object.content().len() as u64;
        ((object.may_be_zero(block) || beyond && self.covers(ino, block)) && matches(vec![0; PLAIN]))
            || object.blocks(block).any(matches)
    }
    /// A block that came into being by writing after the tampering.
    fn covers(&self, ino: u64, block: u64) -> bool {
        self.written
            .parts
            .iter()
            .any(|(of, offset, data)| *of == ino && offset / P <= block && block <= (offset + data.len() as u64) / P)
    }
}

fn text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(24)];
    format!("{} bytes, {}", bytes.len(), shown.escape_ascii())
}
