//! What `cat` and `export` read from: an unlocked volume, or (without its volume file) the raw tree. Knows no output.

use std::sync::Arc;

use super::raw_tree::RawTree;
use super::{Failure, PassphraseArgs, note};
use crate::config::MountOptions;
use crate::file::Seek;
use crate::format::volume::UnverifiedVolume;
use crate::fs::{Fs, FsError, Ino, OpenMode, ROOT};
use crate::keys::guard::{Guard, OutagePolicy};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{KMS_DEADLINE, Opening, open_cmks};
use crate::mount::cipher_dir::CipherDir;
use crate::mount::trust::{self, Request, Unlocked};
use crate::mount::waiting::Patience;
use crate::mount::{Access, MountError, open_fs, serve};
use crate::store::Stat;
use crate::store::disk::DiskStore;

pub type Result<T> = std::result::Result<T, FsError>;
/// An extended attribute: full name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// An object with its name in the directory that was listed. `stat.size` is the plaintext's.
pub struct Item<N> {
    pub name: Vec<u8>,
    pub node: N,
    pub stat: Stat,
}

/// A tree that can be read.
pub trait Source {
    type Node: Clone;
    /// An open file; closed when dropped.
    type Content;

    fn root(&self) -> Result<(Self::Node, Stat)>;
    fn lookup(&self, dir: &Self::Node, name: &[u8]) -> Result<(Self::Node, Stat)>;
    fn list(&self, dir: &Self::Node) -> Result<Vec<Item<Self::Node>>>;
    fn readlink(&self, node: &Self::Node) -> Result<Vec<u8>>;
    fn xattrs(&self, node: &Self::Node) -> Result<Vec<Xattr>>;
    /// Authenticates what open(2) would.
    fn open(&self, node: &Self::Node) -> Result<Self::Content>;
    fn read(&self, content: &Self::Content, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// Where the next data at or after `offset` begins; `None` past the last.
    fn next_data(&self, content: &Self::Content, offset: u64) -> Result<Option<u64>>;
}

/// Runs one of the two closures on what `open` found. (The trait has associated types, so this is not an object.)
pub enum Opened {
    Volume(VolumeTree),
    Raw(RawTree),
}

/// Opens a CIPHERDIR for reading, shared with other readers. Without a volume file but with `--cmk`: its raw tree.
pub fn open(
    cipherdir: &std::path::Path,
    trust: &TrustArgs,
    command: (&str, &str),
) -> std::result::Result<Opened, Failure> {
    let descriptors = serve::harden();
    let dir = CipherDir::open(cipherdir)?;
    dir.lock(false, std::time::Duration::ZERO)?;
    let named = trust.named()?;
    let passphrase = trust.passphrase.source();
    let Some(volume) = dir.read_volume()? else {
        if named.cmks.is_empty() {
            return Err(match dir.require_volume() {
                Err(e) => e.into(),
                Ok(_) => Failure::new(super::exit::VOLUME, "the volume file appeared just now; try again"),
            });
        }
        note(
            "the volume file is missing: recovering content by the files' own headers; names stay as they are on disk, \
              and that the files belong to one volume is unverified",
        );
        let uris = trust::parse_uris(&named.cmks)?;
        let cmks = open_cmks(&uris, &mut Opening::new(&passphrase, KMS_DEADLINE))?;
        let cmks = Guard::all(&uris, cmks, OutagePolicy::default());
        return Ok(Opened::Raw(RawTree::open(dir, cmks)?));
    };
    let unlocked = unlock(&dir, volume, &named, &passphrase, command)?;
    let budget = usize::try_from(descriptors / 4).unwrap_or(usize::MAX).clamp(64, 4096);
    let access = Access { read_only: true, exclusive: true, noatime: true, descriptor_budget: budget };
    let volume = open_fs(&dir, unlocked, access)?;
    Ok(Opened::Volume(VolumeTree { fs: volume.fs, _dir: dir }))
}

/// Unlocks a volume for reading.
pub fn unlock(
    dir: &CipherDir,
    volume: UnverifiedVolume,
    named: &MountOptions,
    passphrase: &PassphraseSource,
    command: (&str, &str),
) -> std::result::Result<Unlocked, MountError> {
    let request = Request {
        cmks: &named.cmks,
        trust_first_use: named.trust_first_use,
        passphrase,
        outage: OutagePolicy::default(),
        patience: Patience::none(KMS_DEADLINE),
        every_cmk: false,
        record: named.trust_first_use,
        command,
    };
    trust::unlock(dir, volume, &request)
}

/// The options that say whom to trust, as `mount` has them.
#[derive(clap::Args)]
pub struct TrustArgs {
    /// A CMK to trust for this volume; may be repeated
    #[arg(long = "cmk", value_name = "URI")]
    cmks: Vec<String>,
    /// Trust the CMKs that the volume itself names, and record them
    #[arg(long, alias = "trust_first_use")]
    trust_first_use: bool,
    /// The same as options of mount: cmk=URI, trust_first_use
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<String>,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

impl TrustArgs {
    pub fn named(&self) -> std::result::Result<MountOptions, Failure> {
        let mut options = MountOptions::default();
        for list in &self.options {
            options.parse(list).map_err(|e| Failure::new(super::exit::USAGE, e.to_string()))?;
        }
        options.cmks.extend(self.cmks.iter().cloned());
        options.trust_first_use |= self.trust_first_use;
        Ok(options)
    }
}

/// An unlocked volume.
pub struct VolumeTree {
    fs: Arc<Fs<DiskStore>>,
    /// Holds the lock.
    _dir: CipherDir,
}

/// One lookup, given back when dropped.
pub struct Known {
    fs: Arc<Fs<DiskStore>>,
    ino: Ino,
}

impl Drop for Known {
    fn drop(&mut self) {
        if self.ino != ROOT {
            self.fs.forget(self.ino, 1);
        }
    }
}

pub struct OpenFile(Arc<Known>);

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.0.fs.release(self.0.ino);
    }
}

impl VolumeTree {
    fn known(&self, ino: Ino) -> Arc<Known> {
        Arc::new(Known { fs: self.fs.clone(), ino })
    }
}

impl Source for VolumeTree {
    type Node = Arc<Known>;
    type Content = OpenFile;

    fn root(&self) -> Result<(Self::Node, Stat)> {
        Ok((self.known(ROOT), self.fs.getattr(ROOT)?.stat))
    }

    fn lookup(&self, dir: &Self::Node, name: &[u8]) -> Result<(Self::Node, Stat)> {
        let attr = self.fs.lookup(dir.ino, name)?;
        Ok((self.known(attr.ino), attr.stat))
    }

    fn list(&self, dir: &Self::Node) -> Result<Vec<Item<Self::Node>>> {
        let handle = self.fs.opendir(dir.ino)?;
        let mut items = Vec::new();
        let listed = self.fs.readdirplus(dir.ino, handle, 0, &mut |entry, attr| {
            if entry.name != b"." && entry.name != b".." {
                items.push(Item { name: entry.name.clone(), node: self.known(attr.ino), stat: attr.stat });
            }
            true
        });
        self.fs.releasedir(handle);
        listed.map(|()| items)
    }

    fn readlink(&self, node: &Self::Node) -> Result<Vec<u8>> {
        self.fs.readlink(node.ino)
    }

    fn xattrs(&self, node: &Self::Node) -> Result<Vec<Xattr>> {
        let names = self.fs.patiently(|fs| fs.listxattr(node.ino))?;
        let value = |name: &[u8]| self.fs.patiently(|fs| fs.getxattr(node.ino, name));
        names.into_iter().map(|name| Ok((name.clone(), value(&name)?))).collect()
    }

    fn open(&self, node: &Self::Node) -> Result<Self::Content> {
        let mode = OpenMode { read: true, write: false, truncate: false, drop_privileges: false };
        self.fs.patiently(|fs| fs.open(node.ino, mode))?;
        Ok(OpenFile(node.clone()))
    }

    fn read(&self, content: &Self::Content, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.fs.patiently(|fs| fs.read(content.0.ino, offset, buf))
    }

    fn next_data(&self, content: &Self::Content, offset: u64) -> Result<Option<u64>> {
        match self.fs.patiently(|fs| fs.seek(content.0.ino, Seek::Data, offset)) {
            Ok(at) => Ok(Some(at)),
            Err(e) if e.errno() == libc::ENXIO => Ok(None),
            Err(e) => Err(e),
        }
    }
}
