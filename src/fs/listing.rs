//! Directory listings: one snapshot per handle, names decoded as they are shown. Knows no changes of directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::handles::{OWNER_SEARCH, is};
use super::names::Dir;
use super::{Attr, DirEntry, Fs, FsError, Ino, Result};
use crate::format::names::Decoded;
use crate::store::{Entry, Kind, Place, Store};

type Snapshot = Arc<Vec<Entry>>;
/// Takes an entry and, unless it is `.` or `..`, its raw name; says whether to go on.
type Visit<'a> = dyn FnMut(DirEntry, Option<&[u8]>) -> Result<bool> + 'a;

/// Open directory handles and their snapshots.
pub(super) struct Listings {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Listing>>>,
}

struct Listing {
    ino: Ino,
    snapshot: Mutex<Option<Snapshot>>,
}

/// Positions: 0 is `.`, 1 is `..`, then the entries. The offset after a position is one more.
const DOTS: u64 = 2;

impl Listings {
    pub fn new() -> Self {
        Self { next: AtomicU64::new(1), open: Mutex::new(HashMap::new()) }
    }
}

impl<S: Store> Fs<S> {
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        let node = self.node(ino)?;
        if node.kind != Kind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let handle = self.listings.next.fetch_add(1, Ordering::Relaxed);
        let listing = Listing { ino, snapshot: Mutex::new(None) };
        self.listings.open.lock().insert(handle, Arc::new(listing));
        Ok(handle)
    }

    pub fn releasedir(&self, handle: u64) {
        let gone = self.listings.open.lock().remove(&handle);
        drop(gone);
    }

    /// The handle's snapshot: taken at its first read and at each rewind.
    fn snapshot(&self, dir: &Dir<'_, S>, handle: u64, offset: u64) -> Result<Snapshot> {
        let listing = self.listings.open.lock().get(&handle).cloned();
        let listing = listing.filter(|l| l.ino == dir.node.ino).ok_or(FsError::Errno(libc::EBADF))?;
        if offset > 0
            && let Some(snapshot) = listing.snapshot.lock().clone()
        {
            return Ok(snapshot);
        }
        let entries = {
            let _shared = dir.node.entries.read();
            // The kernel asked for permission at opendir; modes may have changed since.
            self.as_owner(Place::Pinned(&*dir.handle), 0o500, || self.store.list(&dir.handle))?
        };
        let snapshot = Arc::new(entries);
        let old = listing.snapshot.lock().replace(snapshot.clone());
        drop(old);
        Ok(snapshot)
    }

    /// The plain name of a raw entry; `None` for what is ours or does not open.
    fn shown_name(&self, dir: &Dir<'_, S>, raw: &[u8]) -> Option<Vec<u8>> {
        let name = match self.config.names.decode(&dir.id, raw) {
            Ok(Decoded::Name(name)) => Some(name),
            Ok(Decoded::Internal) => return None,
            Ok(Decoded::Long { companion }) => match self.store.readlink(dir.entry(&companion)) {
                Ok(target) => self.config.names.decode_long(&dir.id, raw, &target).ok(),
                Err(e) if is(&e, libc::ENOENT) && !self.still_there(dir, raw) => return None,
                Err(_) => None,
            },
            Err(_) => None,
        };
        if name.is_none() {
            let path = || self.entry_path(dir, raw);
            self.reports.error_once("name-auth", raw, path, "an entry does not belong here and is not shown");
        }
        name
    }

    fn still_there(&self, dir: &Dir<'_, S>, raw: &[u8]) -> bool {
        self.stat_entry(dir, raw).is_ok_and(|st| st.is_some())
    }

    fn parent_of(&self, dir: &Dir<'_, S>) -> Ino {
        dir.node.first_link().map_or(dir.node.ino, |link| link.parent)
    }

    /// Calls `visit` for each shown entry from `offset` on until it returns false.
    fn walk(&self, dir: &Dir<'_, S>, handle: u64, offset: u64, visit: &mut Visit<'_>) -> Result<()> {
        let snapshot = self.snapshot(dir, handle, offset)?;
        let dots = [(&b"."[..], dir.node.ino), (b"..", self.parent_of(dir))];
        for (position, (name, ino)) in (0u64..).zip(dots).skip(offset.min(DOTS) as usize) {
            let entry = DirEntry { ino, kind: Kind::Directory, name: name.to_vec(), next: position + 1 };
            if !visit(entry, None)? {
                return Ok(());
            }
        }
        let first = usize::try_from(offset.saturating_sub(DOTS)).unwrap_or(usize::MAX);
        for (position, raw) in snapshot.iter().enumerate().skip(first) {
            let Some(name) = self.shown_name(dir, &raw.name) else { continue };
            let next = position as u64 + DOTS + 1;
            let entry = DirEntry { ino: self.ino_of(raw.ino), kind: raw.kind, name, next };
            if !visit(entry, Some(&raw.name))? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Calls `emit` for entries from `offset` on until it returns false, which says that the entry was not taken.
    /// `.` and `..` are included.
    pub fn readdir(&self, ino: Ino, handle: u64, offset: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let dir = self.dir(ino)?;
        self.walk(&dir, handle, offset, &mut |entry, _| Ok(emit(&entry)))
    }

    /// Like `readdir`, with attributes; each accepted entry other than `.` and `..` counts one lookup.
    pub fn readdirplus(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry, &Attr) -> bool,
    ) -> Result<()> {
        let dir = self.dir(ino)?;
        let mut own = None;
        self.walk(&dir, handle, offset, &mut |mut entry, raw| {
            let Some(raw) = raw else {
                // The kernel takes only number and type of these two.
                let mut attr = match own {
                    Some(attr) => attr,
                    None => *own.insert(self.getattr(dir.node.ino)?),
                };
                (attr.ino, attr.stat.ino) = (entry.ino, entry.ino);
                return Ok(emit(&entry, &attr));
            };
            let attr = {
                let _shared = dir.node.entries.read();
                // A directory that may be read but not searched shows its names all the same.
                let search = Place::Pinned(&*dir.handle);
                let st = self.as_owner(search, OWNER_SEARCH, || self.store.stat(dir.entry(raw)));
                match st.map_err(FsError::from).and_then(|st| self.attach(&dir, raw, st)) {
                    Ok(attr) => attr,
                    // Gone since the snapshot, or not ours to show; a lookup says what it is.
                    Err(_) => return Ok(true),
                }
            };
            (entry.ino, entry.kind) = (attr.ino, attr.stat.kind);
            let taken = emit(&entry, &attr);
            if !taken {
                self.forget(attr.ino, 1);
            }
            Ok(taken)
        })
    }
}
