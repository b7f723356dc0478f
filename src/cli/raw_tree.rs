//! A volume whose volume file is lost: raw names, content by each file's own header. Knows keys and headers; no names.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Failure;
use super::exit;
use super::source::{Item, Result, Source, Xattr};
use crate::file::{EncryptedFile, FileContext, FileError, Seek, probe_size};
use crate::format::VolumeId;
use crate::format::geometry::{Geometry, Length, PAGE};
use crate::format::header::{Unverified, claimed_pages};
use crate::format::names::{DIR_ID_NAME, LONG_PREFIX, LONG_SUFFIX, TEMP_PREFIX};
use crate::format::small::{OBJECT_ID_XATTR, XattrCodec};
use crate::format::volume::KeyMode;
use crate::fs::FsError;
use crate::keys::KeyError;
use crate::keys::guard::Guard;
use crate::keys::keyring::{KeyPolicy, Keyring};
use crate::mount::cipher_dir::CipherDir;
use crate::store::disk::{DiskFile, DiskStore};
use crate::store::{Access, BackingFile, Kind, Place, Stat, Store};

/// Files that are tried before the search for a header gives up: a tree of empty files has none.
const TRIED_MAX: usize = 100_000;

pub struct RawTree {
    store: DiskStore,
    context: Arc<FileContext>,
    /// Holds the lock.
    _dir: CipherDir,
}

/// An object by its place. Directories are pinned only while they are listed.
#[derive(Clone)]
pub enum RawNode {
    Root,
    Entry { dir: Arc<OwnedFd>, name: Arc<[u8]> },
}

/// What the first header that verifies tells about the volume.
struct Found {
    volume_id: VolumeId,
    geometry: Geometry,
}

/// Nothing is written: new keys are never made.
const POLICY: KeyPolicy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: u64::MAX, branch_max_files: u64::MAX };

impl RawTree {
    pub fn open(dir: CipherDir, cmks: Vec<Arc<Guard>>) -> std::result::Result<Self, Failure> {
        let store = dir.tree()?.noatime(true);
        let found = search(&store, &cmks)?;
        let keyring = Keyring::new(found.volume_id, cmks, POLICY, None, None);
        Ok(Self { store, context: Arc::new(FileContext { keyring, geometry: found.geometry }), _dir: dir })
    }

    fn place<'a>(&'a self, node: &'a RawNode) -> Place<'a, OwnedFd> {
        match node {
            RawNode::Root => Place::Pinned(self.store.root()),
            RawNode::Entry { dir, name } => Place::Entry { dir, name },
        }
    }

    fn pin(&self, node: &RawNode) -> Result<Arc<OwnedFd>> {
        match node {
            // `.` names the root itself, so that the handle is ours to share.
            RawNode::Root => Ok(Arc::new(rustix::io::dup(self.store.root()).map_err(std::io::Error::from)?)),
            RawNode::Entry { dir, name } => Ok(Arc::new(self.store.pin(dir, name)?)),
        }
    }

    /// With the keys fetched that `op` lacks.
    fn patiently<T>(&self, op: impl FnMut() -> std::result::Result<T, FileError>) -> std::result::Result<T, FileError> {
        self.context.keyring.patiently(op)
    }

    /// The store's attributes with the plaintext size.
    fn stat(&self, node: &RawNode) -> Result<Stat> {
        let mut stat = self.store.stat(self.place(node))?;
        if stat.kind == Kind::File {
            stat.size = match self.context.geometry.decode(stat.size) {
                Ok(Length::Empty { .. }) => 0,
                Ok(Length::Quiet { size }) => size,
                _ => probe_size(&self.store.open_file(self.place(node), Access::Read)?, self.context.geometry)?,
            };
        }
        Ok(stat)
    }

    fn file(&self, node: &RawNode) -> Result<EncryptedFile<DiskFile>> {
        let backing = self.store.open_file(self.place(node), Access::Read)?;
        let size = probe_size(&backing, self.context.geometry)?;
        Ok(EncryptedFile::new(self.context.clone(), backing, false, size))
    }
}

fn is_internal(name: &[u8]) -> bool {
    name == DIR_ID_NAME
        || name.starts_with(TEMP_PREFIX)
        || (name.starts_with(LONG_PREFIX) && name.ends_with(LONG_SUFFIX))
}

/// Walks the tree until a header verifies under one of the CMKs.
fn search(store: &DiskStore, cmks: &[Arc<Guard>]) -> std::result::Result<Found, Failure> {
    let failed = |e: std::io::Error| Failure::new(exit::VOLUME, format!("cannot read the tree: {e}"));
    let mut refused: Option<KeyError> = None;
    let mut tried = 0;
    let mut dirs = vec![Arc::new(rustix::io::dup(store.root()).map_err(|e| failed(e.into()))?)];
    while let Some(dir) = dirs.pop() {
        // A directory that cannot be read may not hide the others.
        for entry in store.list(&dir).unwrap_or_default() {
            match entry.kind {
                Kind::Directory => dirs.extend(store.pin(&dir, &entry.name).ok().map(Arc::new)),
                Kind::File => {
                    tried += 1;
                    let Ok(file) = store.open_file(Place::Entry { dir: &dir, name: &entry.name }, Access::Read) else {
                        continue;
                    };
                    match examine(&file, cmks) {
                        Ok(Some(found)) => return Ok(found),
                        Ok(None) => {}
                        Err(e) => refused = Some(e),
                    }
                }
                _ => {}
            }
            if tried >= TRIED_MAX {
                break;
            }
        }
        if tried >= TRIED_MAX {
            break;
        }
    }
    Err(match refused {
        Some(e) => e.into(),
        None => {
            Failure::new(exit::VOLUME, "no file in the tree has a header that verifies: there is nothing to recover")
        }
    })
}

/// The headers of one file: which volume they belong to, where one verifies.
fn examine(file: &DiskFile, cmks: &[Arc<Guard>]) -> std::result::Result<Option<Found>, KeyError> {
    let mut refused = None;
    let mut first_page = vec![0; PAGE];
    let Ok(PAGE) = file.read_at(&mut first_page, 0) else { return Ok(None) };
    let geometries = match claimed_pages(&first_page) {
        Some(pages) => vec![Geometry { header_pages: pages }],
        // Slot A is gone; slot B's place depends on a number that it tells itself.
        None => (1..=crate::format::geometry::MAX_HEADER_PAGES).map(|header_pages| Geometry { header_pages }).collect(),
    };
    for geometry in geometries {
        for slot in 0..2u64 {
            let mut bytes = vec![0; geometry.slot_len()];
            if !file.read_at(&mut bytes, slot * geometry.slot_len() as u64).is_ok_and(|n| n == bytes.len()) {
                continue;
            }
            let Ok(header) = Unverified::parse(&bytes, geometry) else { continue };
            let volume_id = header.claims().volume_id;
            let keyring = Keyring::new(volume_id, cmks.to_vec(), POLICY, None, None);
            match keyring.patiently(|| keyring.open(&header)) {
                Ok(open) if header.verify(&open.keys, None).is_ok() => return Ok(Some(Found { volume_id, geometry })),
                Ok(_) => {}
                Err(e) => refused = Some(e),
            }
        }
    }
    refused.map_or(Ok(None), Err)
}

impl Source for RawTree {
    type Node = RawNode;
    type Content = EncryptedFile<DiskFile>;

    fn root(&self) -> Result<(RawNode, Stat)> {
        Ok((RawNode::Root, self.stat(&RawNode::Root)?))
    }

    fn lookup(&self, dir: &RawNode, name: &[u8]) -> Result<(RawNode, Stat)> {
        if is_internal(name) {
            return Err(FsError::Errno(libc::ENOENT));
        }
        let node = RawNode::Entry { dir: self.pin(dir)?, name: name.into() };
        let stat = self.stat(&node)?;
        Ok((node, stat))
    }

    fn list(&self, dir: &RawNode) -> Result<Vec<Item<RawNode>>> {
        let dir = self.pin(dir)?;
        let mut items = Vec::new();
        for entry in self.store.list(&dir)? {
            if !is_internal(&entry.name) {
                let node = RawNode::Entry { dir: dir.clone(), name: entry.name.as_ref().into() };
                // What cannot be read is told when it is opened; what is gone is gone.
                let Ok(stat) = self.stat(&node).or_else(|_| self.store.stat(self.place(&node))) else { continue };
                items.push(Item { name: entry.name.into_vec(), node, stat });
            }
        }
        Ok(items)
    }

    /// As it stands on disk: targets were sealed under the volume's key.
    fn readlink(&self, node: &RawNode) -> Result<Vec<u8>> {
        Ok(self.store.readlink(self.place(node))?)
    }

    /// Those of files carry their key; those of other objects were sealed under the volume's key and are left out.
    fn xattrs(&self, node: &RawNode) -> Result<Vec<Xattr>> {
        let place = self.place(node);
        let names = self.store.list_xattrs(place)?;
        let is_file = self.store.stat(place)?.kind == Kind::File;
        let sealed = names.iter().any(|name| XattrCodec::is_encoded(name));
        let codec = if is_file && sealed {
            let file = self.file(node)?;
            self.patiently(|| file.xattrs(false))?
        } else {
            None
        };
        let mut xattrs = Vec::new();
        for name in names {
            if name == OBJECT_ID_XATTR {
                continue;
            }
            let value = self.store.get_xattr(place, &name)?;
            match (&codec, XattrCodec::is_encoded(&name)) {
                (_, false) => xattrs.push((name, value)),
                (Some(codec), true) => {
                    xattrs.push(codec.open(&name, &value).map_err(|_| FsError::Corrupt { code: "xattr" })?);
                }
                (None, true) => {}
            }
        }
        Ok(xattrs)
    }

    fn open(&self, node: &RawNode) -> Result<Self::Content> {
        let file = self.file(node)?;
        self.patiently(|| file.authenticate())?;
        Ok(file)
    }

    fn read(&self, content: &Self::Content, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(self.patiently(|| content.read(offset, buf))?)
    }

    fn next_data(&self, content: &Self::Content, offset: u64) -> Result<Option<u64>> {
        match self.patiently(|| content.seek(Seek::Data, offset)) {
            Ok(at) => Ok(Some(at)),
            Err(FileError::NoOffset) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}
