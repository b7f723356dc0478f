//! `envelopefs check`: verifies a CIPHERDIR that nobody has mounted, and mends what can be mended without guessing.
//! Reads the bytes on disk by the format alone, so that it finds what a mount would never touch. Knows keys, no providers;
//! prints nothing. What is mended is moved or rewritten, and only where it does not authenticate; nothing of content is deleted.
//!
//! Memory: one listing at a time, the names of directories still to be entered, and 16 to 64 bytes for each directory, each
//! file with several names and each long link target.

mod content;
mod counts;
mod directory;
mod header;
mod measure;
mod place;
mod problem;
mod queue;
mod repair;
mod rooms;
mod small;
mod walk;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::file::FileContext;
use crate::format::geometry::Geometry;
use crate::format::names::NameCodec;
use crate::format::volume::{VolumeConfig, VolumeKeys};
use crate::format::{DirId, KeyRef};
use crate::store::disk::DiskStore;
use crate::store::{Kind, Store};
use crate::sys::descriptor;
pub use counts::{CmkCount, Counts};
pub use measure::measure;
use place::{Directory, Spot};
use problem::UNREADABLE;
pub use problem::{CODES, Code, Mended, Problem, Severity};
use repair::Quarantine;
pub use rooms::QUARANTINE_DIR;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Headers and last blocks only.
    pub quick: bool,
    /// Threads that read beside the one that walks; 0: all in the calling thread.
    pub jobs: usize,
    pub repair: Repair,
}

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    No,
    /// Say what would be done.
    DryRun,
    Do,
}

/// Told what is found and how far it is, from several threads.
pub trait Sink: Sync {
    fn problem(&self, problem: &Problem);
    /// At this object now (as `Problem::backing`), `bytes` of backing files further.
    fn progress(&self, at: &dyn Fn() -> Vec<u8>, bytes: u64);
}

/// The keys of an unlocked volume.
pub struct Keys {
    pub files: Arc<FileContext>,
    pub names: NameCodec,
    pub volume: VolumeKeys,
}

/// What is checked.
pub struct Subject<S> {
    /// The CIPHERDIR.
    pub top: S,
    /// What the volume file says; authentic where there are keys. `None`: missing or malformed.
    pub config: Option<VolumeConfig>,
    pub keys: Option<Keys>,
    /// Findings of the caller: about the volume file (`true`) or the place.
    pub remarks: Vec<(bool, String)>,
}

/// The CIPHERDIR as a store, by an open descriptor of it.
pub fn open_top(dir: impl AsFd) -> io::Result<DiskStore> {
    Ok(DiskStore::open(descriptor::path(dir.as_fd()))?.noatime(true))
}

/// Checks all of it, and mends where that is wanted.
pub fn run<S: Store>(subject: Subject<S>, settings: Settings, sink: &dyn Sink) -> Counts {
    let check = Check::new(subject, settings, sink);
    check.rooms();
    check.counts.into_inner()
}

/// One check under way.
struct Check<'a, S: Store> {
    top: S,
    config: Option<VolumeConfig>,
    /// Where no volume file tells, each file's header does.
    geometry: Option<Geometry>,
    keys: Option<Keys>,
    /// CMKs that the volume file lists: the volume's own, then those of directories.
    own_cmks: Vec<KeyRef>,
    listed_cmks: HashSet<KeyRef>,
    remarks: Vec<(bool, String)>,
    settings: Settings,
    sink: &'a dyn Sink,
    counts: Mutex<Counts>,
    seen: Mutex<Seen>,
    /// Of the file system that the tree is on.
    dev: AtomicU64,
    /// Something could not be looked at, so what nobody refers to may be referred to from there.
    incomplete: AtomicBool,
    quarantine: Mutex<Option<Quarantine<S>>>,
}

/// What has to be remembered.
#[derive(Default)]
struct Seen {
    /// Directories by inode number: one has one place.
    directories: HashSet<u64>,
    /// The first directory with an id.
    ids: HashMap<DirId, u64>,
    /// Files that have several names.
    linked: HashSet<u64>,
    /// Overflow objects that a link leads to.
    overflow: HashSet<[u8; 16]>,
    /// Digests of wrapped keys that open.
    wrapped: HashSet<[u8; 32]>,
}

/// What a finding is about.
enum About<'a, H> {
    /// A part of the CIPHERDIR, by its path below.
    Room(&'a [u8]),
    Directory(&'a Directory),
    Spot(&'a Spot<H>),
}

impl<H> Clone for About<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H> Copy for About<'_, H> {}

impl<'a, S: Store> Check<'a, S> {
    fn new(subject: Subject<S>, settings: Settings, sink: &'a dyn Sink) -> Self {
        let Subject { top, config, keys, remarks } = subject;
        let slots = config.iter().flat_map(|config| &config.volume_key);
        let own_cmks: Vec<KeyRef> =
            slots.map(|slot| KeyRef { provider: slot.provider.clone(), key: slot.key_ref.clone() }).collect();
        let of_directories = config.iter().flat_map(|config| &config.directory_cmks).map(|cmk| cmk.key.clone());
        Self {
            top,
            geometry: config.as_ref().map(|config| Geometry { header_pages: config.header_pages }),
            listed_cmks: own_cmks.iter().cloned().chain(of_directories).collect(),
            own_cmks,
            config,
            keys,
            remarks,
            settings,
            sink,
            counts: Mutex::default(),
            seen: Mutex::default(),
            dev: AtomicU64::new(0),
            incomplete: AtomicBool::new(false),
            quarantine: Mutex::new(None),
        }
    }

    fn plaintext_names(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.plaintext_names)
    }

    fn report(&self, code: &'static Code, about: About<'_, S::Handle>, detail: impl Into<Cow<'static, str>>) {
        self.tell(code, about, None, detail.into(), Mended::No);
    }

    /// With what `mend` makes of it, in the mode that is wanted. True where it has been done.
    fn mend(
        &self,
        code: &'static Code,
        about: About<'_, S::Handle>,
        detail: impl Into<Cow<'static, str>>,
        what: &str,
        mend: impl FnOnce() -> io::Result<()>,
    ) -> bool {
        let mended = match self.settings.repair {
            Repair::No => Mended::No,
            Repair::DryRun => Mended::Would(what.to_owned()),
            Repair::Do => match mend() {
                Ok(()) => Mended::Done(what.to_owned()),
                Err(why) => Mended::Failed(format!("{what}: {why}")),
            },
        };
        let done = matches!(mended, Mended::Done(_));
        self.tell(code, about, None, detail.into(), mended);
        done
    }

    fn tell(
        &self,
        code: &'static Code,
        about: About<'_, S::Handle>,
        blocks: Option<(u64, u64)>,
        detail: Cow<'static, str>,
        mended: Mended,
    ) {
        let (backing, path) = match about {
            About::Room(backing) => (backing.to_vec(), None),
            About::Directory(dir) => (dir.backing(None), dir.path(None)),
            About::Spot(spot) => (spot.backing(), spot.path()),
        };
        // Without keys a name that is not encrypted is all that is known; on other volumes there is none.
        let path = path.filter(|_| self.keys.is_some() || self.plaintext_names());
        {
            let mut counts = self.counts.lock();
            counts.problem(code);
            match &mended {
                Mended::No => {}
                Mended::Would(_) => counts.mendable += 1,
                Mended::Done(_) => counts.mended += 1,
                Mended::Failed(_) => counts.not_mended += 1,
            }
        }
        self.sink.problem(&Problem { code, path, backing, blocks, detail, mended });
    }

    /// An error of the store on the way to an object. What is gone or of another kind now has changed meanwhile.
    fn io_trouble(&self, about: About<'_, S::Handle>, doing: &str, error: &io::Error) {
        self.incomplete.store(true, Ordering::Relaxed);
        let code = match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => &UNREADABLE,
            Some(libc::ENOENT | libc::ELOOP | libc::ENOTDIR | libc::EINVAL | libc::ESTALE) => &problem::CHANGED,
            _ => &problem::BACKING_IO,
        };
        self.report(code, about, format!("{doing}: {error}"));
    }
}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// The kind of an object in words.
fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "a file",
        Kind::Directory => "a directory",
        Kind::Symlink => "a symbolic link",
        Kind::Fifo => "a FIFO",
        Kind::Socket => "a socket",
        Kind::CharDevice => "a character device",
        Kind::BlockDevice => "a block device",
    }
}

#[cfg(test)]
mod tests;
