//! What a check changes where it may: moves into quarantine, settles sizes, rewrites slots and id records. Callers have decided
//! that it is right. Nothing is deleted, whatever it is; times that applications see stay as they are.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::Ordering;

use data_encoding::HEXLOWER;
use serde::Serialize;

use super::header::Name;
use super::place::{Directory, Spot};
use super::problem::{self, Code};
use super::{About, Check, QUARANTINE_DIR, is};
use crate::crypto::random;
use crate::file::{EncryptedFile, FileError, probe_size};
use crate::format::block::is_hole;
use crate::format::dir_id::DirRecord;
use crate::format::geometry::Geometry;
use crate::format::names::{DIR_ID_NAME, RESERVED_PREFIX, TEMP_PREFIX, temp_name};
use crate::store::{Access, BackingFile, Creator, Kind, Place, RenameMode, SetTime, Stat, Store};

/// What was moved, one JSON object a line.
pub(super) const MANIFEST: &[u8] = b"manifest.jsonl";
/// Bytes of one read in search of something that is not zero.
const BLANK_RUN: usize = 256 * 1024;
/// Leftover directories inside leftover directories: no crash makes more.
const LEFTOVER_DEPTH: usize = 32;

/// The open quarantine.
pub(super) struct Quarantine<S: Store> {
    dir: S::Handle,
    manifest: S::File,
}

/// A line of the manifest. It holds no plaintext name: it lies beside the ciphertext.
#[derive(Serialize)]
struct Moved<'a> {
    object: &'a str,
    code: &'a str,
    from: String,
    /// Seconds since the epoch.
    time: u64,
}

impl<S: Store> Check<'_, S> {
    /// Reports something that is moved away where repairs are wanted.
    pub(super) fn mend_by_quarantine(&self, code: &'static Code, spot: &Spot<S::Handle>, detail: String) {
        self.quarantined(code, spot, detail);
    }

    /// The same; true where it has been moved.
    pub(super) fn quarantined(&self, code: &'static Code, spot: &Spot<S::Handle>, detail: String) -> bool {
        // An overflow object that only this leads to is not an orphan.
        self.incomplete.store(true, Ordering::Relaxed);
        self.moved(code, spot, detail.into())
    }

    /// Reports what a crash left, which nothing needs.
    pub(super) fn tidied(&self, code: &'static Code, spot: &Spot<S::Handle>, detail: &'static str) {
        self.moved(code, spot, detail.into());
    }

    fn moved(&self, code: &'static Code, spot: &Spot<S::Handle>, detail: Cow<'static, str>) -> bool {
        self.mend(code, About::Spot(spot), detail, "move it to quarantine", || {
            let from = spot.backing();
            self.keeping_times(&spot.handle, || self.to_quarantine(&spot.handle, &spot.raw, &from, code))
        })
    }

    /// First the line in the manifest, then the move: nothing is ever there without a line.
    pub(super) fn to_quarantine(&self, dir: &S::Handle, name: &[u8], from: &[u8], code: &Code) -> io::Result<()> {
        let mut quarantine = self.quarantine.lock();
        let quarantine = match &mut *quarantine {
            Some(open) => open,
            none => none.insert(self.open_quarantine()?),
        };
        let object = HEXLOWER.encode(&random::array::<8>());
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let from = from.escape_ascii().to_string();
        let mut line = serde_json::to_vec(&Moved { object: &object, code: code.word, from, time })?;
        line.push(b'\n');
        quarantine.manifest.write_at(&line, quarantine.manifest.stat()?.size)?;
        quarantine.manifest.sync_all()?;
        self.top.rename((dir, name), (&quarantine.dir, object.as_bytes()), RenameMode::NoReplace)?;
        self.top.sync_dir(&quarantine.dir)?;
        self.top.sync_dir(dir)
    }

    fn open_quarantine(&self) -> io::Result<Quarantine<S>> {
        match self.make_room(QUARANTINE_DIR) {
            Err(e) if !is(&e, libc::EEXIST) => return Err(e),
            _ => {}
        }
        let dir = self.top.pin(self.top.root(), QUARANTINE_DIR.as_bytes())?;
        if self.top.stat(Place::Pinned(&dir))?.kind != Kind::Directory {
            return Err(io::Error::other("quarantine is not a directory"));
        }
        let manifest = match self.top.create_file(&dir, MANIFEST, 0o600, self.owner()?) {
            Err(e) if is(&e, libc::EEXIST) => {
                // Pinned: a device that was put here is not even opened.
                let manifest = self.top.pin(&dir, MANIFEST)?;
                self.top.open_file(Place::Pinned(&manifest), Access::ReadWrite)?
            }
            other => other?,
        };
        if manifest.stat()?.nlink != 1 {
            return Err(io::Error::other("quarantine/manifest.jsonl has further names"));
        }
        Ok(Quarantine { dir, manifest })
    }

    /// An empty directory of mode 0700 in the CIPHERDIR.
    pub(super) fn make_room(&self, name: &str) -> io::Result<()> {
        self.top.mkdir(self.top.root(), name.as_bytes(), 0o700, self.owner()?)?;
        self.top.sync_dir(self.top.root())
    }

    /// Whoever owns the CIPHERDIR owns what is made in it.
    fn owner(&self) -> io::Result<Creator> {
        let stat = self.top.stat(Place::Pinned(self.top.root()))?;
        Ok(Creator { uid: stat.uid, gid: stat.gid, umask: 0 })
    }

    fn keeping_times(&self, dir: &S::Handle, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let place = Place::Pinned(dir);
        let times = self.top.stat(place)?;
        let changed = change();
        let kept = self.top.set_times(place, SetTime::Omit, SetTime::At(times.mtime));
        changed.and(kept)
    }

    /// Whether a temporary directory holds nothing but what envelopefs itself makes inside one.
    pub(super) fn holds_only_leftovers(&self, spot: &Spot<S::Handle>) -> io::Result<bool> {
        self.only_leftovers(&self.top.pin(&spot.handle, &spot.raw)?, LEFTOVER_DEPTH)
    }

    fn only_leftovers(&self, dir: &S::Handle, depth: usize) -> io::Result<bool> {
        for entry in self.top.list(dir)? {
            let ours = match (entry.kind, depth.checked_sub(1)) {
                (Kind::Symlink, _) => entry.name.starts_with(RESERVED_PREFIX),
                (Kind::Directory, Some(depth)) if entry.name.starts_with(TEMP_PREFIX) => {
                    self.only_leftovers(&self.top.pin(dir, &entry.name)?, depth)?
                }
                _ => false,
            };
            if !ours {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A new link under a temporary name, renamed into place. What stood there goes to quarantine.
    pub(super) fn write_record(&self, here: &Directory, dir: &S::Handle, record: DirRecord) -> io::Result<()> {
        let Some(keys) = &self.keys else { return Err(io::Error::other("no keys")) };
        let target = record.encode(&keys.volume.dir_id).map_err(io::Error::other)?;
        let stat = self.top.stat(Place::Pinned(dir))?;
        let by = Creator { uid: stat.uid, gid: stat.gid, umask: 0 };
        let temp = temp_name(random::array());
        self.keeping_times(dir, || {
            self.top.symlink(dir, &temp, &target, by)?;
            let own = (dir, DIR_ID_NAME);
            match self.top.rename((dir, &temp), own, RenameMode::NoReplace) {
                Err(e) if is(&e, libc::EEXIST) => {
                    self.top.rename((dir, &temp), own, RenameMode::Exchange)?;
                    self.to_quarantine(dir, &temp, &here.backing(Some(DIR_ID_NAME)), &problem::DIR_ID)
                }
                other => other,
            }
        })?;
        self.top.sync_dir(dir)
    }

    /// The very file that was looked at, for writing.
    fn reopen_to_write(&self, spot: &Spot<S::Handle>, seen: &Stat) -> io::Result<S::File> {
        let file = self.top.open_file(spot.place(), Access::ReadWrite)?;
        let now = file.stat()?;
        if (now.dev, now.ino, now.size, now.mtime) != (seen.dev, seen.ino, seen.size, seen.mtime) {
            return Err(io::Error::other("it changed meanwhile"));
        }
        self.top.charge_to(now.uid, now.gid);
        Ok(file)
    }

    /// Whether every byte of a file is zero. Holes are not read.
    pub(super) fn is_blank(&self, file: &S::File, size: u64) -> io::Result<bool> {
        let mut bytes = vec![0; BLANK_RUN];
        let mut at = 0;
        while let Some(from) = file.seek_data(at)?.filter(|from| *from < size) {
            let read = file.read_at(&mut bytes, from)?;
            if read == 0 {
                break;
            }
            if !is_hole(&bytes[..read]) {
                return Ok(false);
            }
            at = from + read as u64;
        }
        Ok(true)
    }

    /// For a file that was never synced, and that is zero throughout.
    pub(super) fn empty(&self, spot: &Spot<S::Handle>, seen: &Stat) -> io::Result<()> {
        let file = self.reopen_to_write(spot, seen)?;
        file.set_len(0)?;
        file.set_mtime(seen.mtime)?;
        file.sync_all()
    }

    /// The good slot as it is, over the other one.
    pub(super) fn copy_slot(
        &self,
        spot: &Spot<S::Handle>,
        seen: &Stat,
        geometry: Geometry,
        good: Name,
    ) -> io::Result<()> {
        let file = self.reopen_to_write(spot, seen)?;
        let len = geometry.slot_len();
        let mut bytes = vec![0; len];
        if file.read_at(&mut bytes, good.index() * len as u64)? != len {
            return Err(io::Error::other("the file became shorter"));
        }
        file.write_at(&bytes, good.other().index() * len as u64)?;
        file.set_mtime(seen.mtime)?;
        file.sync_all()
    }

    /// What the next open for writing and the commit after it would do.
    pub(super) fn settle(&self, spot: &Spot<S::Handle>, seen: &Stat) -> io::Result<()> {
        let Some(keys) = &self.keys else { return Err(io::Error::other("no keys")) };
        let backing = self.reopen_to_write(spot, seen)?;
        let size = probe_size(&backing, keys.files.geometry)?;
        let file = EncryptedFile::new(keys.files.clone(), backing, true, size);
        let settled = keys.files.keyring.patiently(|| file.authenticate()).and_then(|()| {
            // A tail stands only where the header is durable.
            file.sync(false)?;
            file.commit(None).map(drop)
        });
        settled.map_err(|e| match e {
            FileError::Io(e) => e,
            other => io::Error::other(other.to_string()),
        })?;
        file.with_backing(|backing| backing.set_mtime(seen.mtime).and_then(|()| backing.sync_all()))
    }
}
