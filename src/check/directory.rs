//! One directory: its id, its names, companions of long names, what crashes left in it. Hands objects on to be read.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::content::Work;
use super::place::{Directory, Spot};
use super::problem;
use super::small::SealedBy;
use super::{About, Check, Keys, is, kind_text};
use crate::format::DirId;
use crate::format::dir_id::{DirRecord, NO_PARENT, claimed_ids};
use crate::format::names::{
    DIR_ID_NAME, Decoded, LONG_PREFIX, LONG_SUFFIX, NameCodec, RESERVED_PREFIX, TEMP_PREFIX, has_name_form,
    is_companion_of,
};
use crate::store::{Entry, Kind, Place, Store};

/// Subdirectories that are asked for a lost id, and names that are tried under each answer.
const WITNESSES_MAX: usize = 64;
const NAMES_TRIED_MAX: usize = 256;

/// A subdirectory that is still to be entered.
pub(super) struct Child {
    pub raw: Box<[u8]>,
    pub plain: Option<Box<[u8]>>,
    pub stranger: bool,
}

/// What an entry's name is.
enum Named {
    Plain(Vec<u8>),
    /// Well-formed, as far as that can be told without a key or an id.
    Formed,
    /// The full form of a long name is missing or wrong.
    NoCompanion(&'static str),
    Stranger,
}

/// The directory's own record.
enum Record {
    Authentic(DirRecord),
    /// Without keys.
    Formed,
    /// With the id that is claimed, where one can be read.
    Bad(String, Option<DirId>),
    Unread,
}

/// A directory while it is looked at.
struct Here<'a, H> {
    dir: &'a Arc<Directory>,
    handle: &'a Arc<H>,
    entries: &'a [Entry],
}

impl<H> Here<'_, H> {
    fn spot(&self, entry: &Entry, plain: Option<&[u8]>) -> Spot<H> {
        Spot {
            dir: self.dir.clone(),
            handle: self.handle.clone(),
            raw: entry.name.clone(),
            plain: plain.map(Into::into),
            kind: entry.kind,
            stranger: false,
        }
    }
    fn place<'b>(&'b self, raw: &'b [u8]) -> Place<'b, H> {
        Place::Entry { dir: self.handle, name: raw }
    }
}

/// Whether an entry stands for an object of the mount.
fn is_object(name: &[u8]) -> bool {
    !name.starts_with(RESERVED_PREFIX) || (name.starts_with(LONG_PREFIX) && !name.ends_with(LONG_SUFFIX))
}

impl<S: Store> Check<'_, S> {
    /// Looks at a directory and hands its objects on. `None` where it cannot be read. `itself`: as an entry of its parent.
    pub(super) fn scan(
        &self,
        dir: &Arc<Directory>,
        handle: &Arc<S::Handle>,
        parent: Option<DirId>,
        itself: Option<&Spot<S::Handle>>,
        work: &Work<S>,
    ) -> Option<(Option<DirId>, Vec<Child>)> {
        let about = About::Directory(dir);
        self.counts.lock().directories += 1;
        self.sink.progress(&|| dir.backing(None), 0);
        let entries = match self.top.list(handle) {
            Ok(entries) => entries,
            Err(e) => {
                self.io_trouble(about, "listing the directory", &e);
                return None;
            }
        };
        let here = Here { dir, handle, entries: &entries };
        self.xattrs(Place::Pinned(handle), about, &SealedBy::directory());
        // The root's parent is nobody.
        let parent = if itself.is_none() { Some(NO_PARENT) } else { parent };
        let record = self.record(&here);
        if let (Some(Spot { stranger: true, .. }), Record::Bad(..)) = (itself, &record) {
            // No directory of this volume: told by its name.
            self.incomplete.store(true, Ordering::Relaxed);
            return None;
        }
        let id = self.identify(&here, &record, parent, itself);
        let children = self.names(&here, id, !matches!(record, Record::Bad(..) | Record::Unread), work);
        Some((id, children))
    }

    /// The id under which the names of a directory are sealed; what is wrong with it is reported.
    fn identify(
        &self,
        here: &Here<'_, S::Handle>,
        record: &Record,
        parent: Option<DirId>,
        itself: Option<&Spot<S::Handle>>,
    ) -> Option<DirId> {
        let about = About::Directory(here.dir);
        let (why, claimed) = match record {
            Record::Unread => return None,
            Record::Formed => return None,
            Record::Authentic(record) => {
                let named = here.entries.iter().any(|e| is_object(&e.name));
                let elsewhere = named && !self.plaintext_names() && !self.confirms(here, record.id);
                // Names that open under another id: either is in the wrong place, and which one would be a guess.
                let Some(own) = elsewhere.then(|| self.lost_id(here, None)).flatten() else {
                    self.authentic(here, record, parent);
                    return Some(record.id);
                };
                let why = "no name opens under its id, but under another one: the record was exchanged, or the entries were moved here";
                self.report(&problem::DIR_ID, about, why);
                return Some(own);
            }
            Record::Bad(why, claimed) => (why.clone(), *claimed),
        };
        if let Some(own) = self.lost_id(here, claimed) {
            self.mend_record(here, own, parent, why);
            return Some(own);
        }
        if let Some(itself) = itself
            && self.keys.is_some()
            && !here.entries.iter().any(|entry| is_object(&entry.name))
        {
            self.mend_by_quarantine(&problem::DIR_ID, itself, format!("{why}; the directory is empty"));
        } else {
            self.report(&problem::DIR_ID, about, why);
        }
        None
    }

    fn record(&self, here: &Here<'_, S::Handle>) -> Record {
        let about = About::Directory(here.dir);
        let target = match self.top.readlink(here.place(DIR_ID_NAME)) {
            Ok(target) => target,
            Err(e) if is(&e, libc::ENOENT) => return Record::Bad(".envelopefs.dir is missing".into(), None),
            Err(e) if is(&e, libc::EINVAL) => {
                return Record::Bad(".envelopefs.dir is not a symbolic link".into(), None);
            }
            Err(e) => {
                self.io_trouble(about, "reading its id", &e);
                return Record::Unread;
            }
        };
        let claimed = claimed_ids(&target).map(|(id, _)| id);
        match (&self.keys, claimed) {
            (Some(keys), _) => match DirRecord::decode(&target, &keys.volume.dir_id) {
                Ok(record) => Record::Authentic(record),
                Err(_) => Record::Bad("its id record is not authentic".into(), claimed),
            },
            (None, Some(_)) => Record::Formed,
            (None, None) => Record::Bad("its id record is malformed".into(), None),
        }
    }

    fn authentic(&self, here: &Here<'_, S::Handle>, record: &DirRecord, parent: Option<DirId>) {
        let about = About::Directory(here.dir);
        if parent.is_some_and(|parent| parent != record.parent) {
            self.counts.lock().moved_directories += 1;
        }
        let first = *self.seen.lock().ids.entry(record.id).or_insert(here.dir.ino);
        if first != here.dir.ino {
            let detail = format!("the other one has inode {first}: find CIPHERDIR/tree -inum {first}");
            self.report(&problem::DIR_ID_TWICE, about, detail);
        }
        for key in record.keys.iter().flat_map(|keys| keys.iter()).filter(|key| !self.listed_cmks.contains(key)) {
            self.report(&problem::UNKNOWN_CMK, about, format!("new files here hang on {key}"));
        }
    }

    /// Whether one of the names opens under `id`.
    fn confirms(&self, here: &Here<'_, S::Handle>, id: DirId) -> bool {
        self.tried(here, id).any(|opens| opens)
    }

    fn tried<'b>(&'b self, here: &'b Here<'_, S::Handle>, id: DirId) -> impl Iterator<Item = bool> + 'b {
        let objects = here.entries.iter().filter(|entry| is_object(&entry.name)).take(NAMES_TRIED_MAX);
        objects.map(move |entry| matches!(self.name(here, &entry.name, Some(id)), Named::Plain(_)))
    }

    /// The id of a directory whose record is gone or wrong: what is left of the record, or what subdirectories recorded of their
    /// parent at their making, where a name proves it.
    fn lost_id(&self, here: &Here<'_, S::Handle>, claimed: Option<DirId>) -> Option<DirId> {
        let keys = self.keys.as_ref().filter(|keys| matches!(keys.names, NameCodec::Encrypted(_)))?;
        let mut candidates: Vec<DirId> = claimed.into_iter().collect();
        let subdirectories = here.entries.iter().filter(|e| e.kind == Kind::Directory && is_object(&e.name));
        for entry in subdirectories.take(WITNESSES_MAX) {
            let Ok(child) = self.top.pin(here.handle, &entry.name) else { continue };
            let Ok(target) = self.top.readlink(Place::Entry { dir: &child, name: DIR_ID_NAME }) else { continue };
            if let Ok(record) = DirRecord::decode(&target, &keys.volume.dir_id)
                && !candidates.contains(&record.parent)
            {
                candidates.push(record.parent);
            }
        }
        candidates.into_iter().find(|id| self.confirms(here, *id))
    }

    /// Reports a lost record whose id is known again.
    fn mend_record(&self, here: &Here<'_, S::Handle>, id: DirId, parent: Option<DirId>, why: String) {
        let about = About::Directory(here.dir);
        let with_cmks = self.config.as_ref().is_none_or(|config| !config.directory_cmks.is_empty());
        match parent {
            Some(_) if !self.tried(here, id).all(|opens| opens) => {
                let more = "an id is known that opens some of its names, not all";
                self.report(&problem::DIR_ID, about, format!("{why}; {more}"));
            }
            Some(parent) if !with_cmks => {
                let detail = format!("{why}; its id is known again, and its names prove it");
                self.mend(&problem::DIR_ID, about, detail, "write its id record anew", || {
                    self.write_record(here.dir, here.handle, DirRecord { id, parent, keys: None })
                });
            }
            // Which CMKs the directory had would be a guess.
            Some(_) => {
                let more =
                    "its id is known again, but this volume has CMKs of directories, and which this one had is not";
                self.report(&problem::DIR_ID, about, format!("{why}; {more}"));
            }
            None => self.report(&problem::DIR_ID, about, format!("{why}; the id of its parent has to come first")),
        }
    }

    fn name(&self, here: &Here<'_, S::Handle>, raw: &[u8], id: Option<DirId>) -> Named {
        let codec = match &self.keys {
            Some(Keys { names, .. }) => names,
            None if self.plaintext_names() => &NameCodec::Plain,
            None => return self.form(here, raw),
        };
        let decoded = match (codec, id) {
            (NameCodec::Plain, _) => codec.decode(&[0; 16], raw),
            (_, Some(id)) => codec.decode(&id, raw),
            (_, None) => return self.form(here, raw),
        };
        match (decoded, id) {
            (Ok(Decoded::Name(name)), _) => Named::Plain(name),
            (Ok(Decoded::Long { companion }), Some(id)) => match self.top.readlink(here.place(&companion)) {
                Ok(target) => match codec.decode_long(&id, raw, &target) {
                    Ok(name) => Named::Plain(name),
                    Err(_) if is_companion_of(raw, &target) => Named::Stranger,
                    Err(_) => Named::NoCompanion("its companion has another name's full form"),
                },
                Err(e) if is(&e, libc::ENOENT) => Named::NoCompanion("its companion is missing"),
                Err(e) if is(&e, libc::EINVAL) => Named::NoCompanion("its companion is not a link"),
                Err(_) => Named::NoCompanion("its companion cannot be read"),
            },
            _ => Named::Stranger,
        }
    }

    /// All that can be told without keys or id.
    fn form(&self, here: &Here<'_, S::Handle>, raw: &[u8]) -> Named {
        if !raw.starts_with(LONG_PREFIX) {
            // Without a volume file it may be one with plaintext names.
            return if self.config.is_none() || has_name_form(raw) { Named::Formed } else { Named::Stranger };
        }
        match self.top.readlink(here.place(&[raw, LONG_SUFFIX].concat())) {
            Ok(target) if is_companion_of(raw, &target) => Named::Formed,
            Ok(_) => Named::NoCompanion("its companion has another name's full form"),
            Err(e) if is(&e, libc::ENOENT) => Named::NoCompanion("its companion is missing"),
            Err(_) => Named::NoCompanion("its companion cannot be read"),
        }
    }

    /// `recorded`: the directory's own record is in order.
    fn names(&self, here: &Here<'_, S::Handle>, id: Option<DirId>, recorded: bool, work: &Work<S>) -> Vec<Child> {
        let long: HashSet<&[u8]> =
            here.entries.iter().map(|e| &*e.name).filter(|n| n.starts_with(LONG_PREFIX)).collect();
        // Whether the id is proven to be this directory's.
        let proven = id.is_some_and(|id| self.confirms(here, id));
        let mut children = Vec::new();
        let (mut special, mut first_special) = (0u64, None);
        for entry in here.entries {
            let raw = &*entry.name;
            if raw == DIR_ID_NAME {
                continue;
            }
            if raw.starts_with(TEMP_PREFIX) {
                self.temporary(here, entry, recorded);
                continue;
            }
            if !is_object(raw) {
                self.internal(here, entry, &long);
                continue;
            }
            let mut stranger = false;
            let plain = match self.name(here, raw, id) {
                Named::Plain(name) => Some(name),
                Named::Formed => None,
                Named::NoCompanion(why) => {
                    self.report(&problem::COMPANION, About::Spot(&here.spot(entry, None)), why);
                    None
                }
                Named::Stranger => {
                    stranger = true;
                    let spot = here.spot(entry, None);
                    let detail = "its name does not open in this directory";
                    if proven {
                        if self.quarantined(&problem::NAME_AUTH, &spot, detail.into()) {
                            continue;
                        }
                    } else {
                        self.report(&problem::NAME_AUTH, About::Spot(&spot), detail);
                    }
                    None
                }
            };
            let spot = Spot { stranger, ..here.spot(entry, plain.as_deref()) };
            match entry.kind {
                Kind::Directory => children.push(Child { raw: spot.raw, plain: spot.plain, stranger }),
                Kind::File | Kind::Symlink => self.hand_on(spot, work),
                _ => {
                    special += 1;
                    first_special.get_or_insert_with(|| spot.clone());
                    self.hand_on(spot, work);
                }
            }
        }
        if let Some(spot) = first_special {
            self.counts.lock().special += special;
            let more =
                if special > 1 { format!(", and {} more in this directory", special - 1) } else { String::new() };
            self.report(&problem::SPECIAL, About::Spot(&spot), format!("{}{more}", kind_text(spot.kind)));
        }
        // The last one is entered first.
        children.sort_by(|a, b| b.raw.cmp(&a.raw));
        children
    }

    /// An entry with a reserved name that stands for no object.
    fn internal(&self, here: &Here<'_, S::Handle>, entry: &Entry, long: &HashSet<&[u8]>) {
        let spot = here.spot(entry, None);
        let about = About::Spot(&spot);
        let companion_of = entry.name.strip_suffix(LONG_SUFFIX).filter(|_| entry.name.starts_with(LONG_PREFIX));
        match companion_of {
            // What is wrong with it is told with its entry.
            Some(owner) if long.contains(owner) && !self.plaintext_names() => {}
            Some(_) if entry.kind == Kind::Symlink && !self.plaintext_names() => {
                self.tidied(&problem::COMPANION_ORPHAN, &spot, "its entry is gone");
            }
            _ => {
                self.incomplete.store(true, Ordering::Relaxed);
                self.report(&problem::FOREIGN, about, "a reserved name that envelopefs does not use");
            }
        }
    }

    /// What `mkdir`, `rmdir` and a change of a record leave where a crash comes between.
    fn temporary(&self, here: &Here<'_, S::Handle>, entry: &Entry, recorded: bool) {
        let spot = here.spot(entry, None);
        let about = About::Spot(&spot);
        let leftovers = match entry.kind {
            Kind::Directory => match self.holds_only_leftovers(&spot) {
                Ok(leftovers) => leftovers,
                Err(e) => return self.io_trouble(about, "listing a temporary directory", &e),
            },
            _ => false,
        };
        match entry.kind {
            // Another record of this directory may be in it.
            Kind::Symlink if !recorded => {
                self.report(&problem::TEMPORARY, about, "a record of the directory, whose own is not in order");
            }
            Kind::Symlink => {
                self.tidied(&problem::TEMPORARY, &spot, "a record of the directory that was to be put in place");
            }
            Kind::Directory if leftovers => {
                self.tidied(&problem::TEMPORARY, &spot, "a directory that was being made or removed");
            }
            Kind::Directory => {
                self.incomplete.store(true, Ordering::Relaxed);
                self.report(&problem::NAME_AUTH, about, "a directory under a temporary name, with something inside");
            }
            _ => {
                self.report(&problem::FOREIGN, about, "a temporary name, but no kind that envelopefs makes under one");
            }
        }
    }
}
