//! The rooms of a CIPHERDIR: what stands in it, what does not belong, and overflow objects that nobody needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::small::overflow_id;
use super::{About, Check, kind_text, problem};
use crate::format::names::TEMP_PREFIX;
use crate::format::volume::{OVERFLOW_DIR, TREE_DIR, VOLUME_FILE};
use crate::store::{Entry, Kind, Place, Stat, Store};

/// Where repairs put what they take away, inside the CIPHERDIR.
pub const QUARANTINE_DIR: &str = "quarantine";
/// What file systems put into their own root.
const LOST_AND_FOUND: &[u8] = b"lost+found";

impl<S: Store> Check<'_, S> {
    pub(super) fn rooms(&self) {
        for (about_volume_file, text) in &self.remarks {
            if *about_volume_file {
                self.report(&problem::VOLUME_FILE, About::Room(VOLUME_FILE.as_bytes()), text.clone());
            } else {
                self.report(&problem::PLACE, About::Room(b"."), text.clone());
            }
        }
        let entries = match self.top.list(self.top.root()) {
            Ok(entries) => entries,
            Err(e) => return self.io_trouble(About::Room(b"."), "listing the encrypted directory", &e),
        };
        entries.iter().for_each(|entry| self.room(entry));
        let overflow = self.open_room(OVERFLOW_DIR);
        if let Some((tree, stat)) = self.open_room(TREE_DIR) {
            self.dev.store(stat.dev, Ordering::Relaxed);
            self.walk(tree, stat.ino);
        }
        if let Some((overflow, _)) = overflow {
            self.overflow(&overflow);
        }
    }

    fn room(&self, entry: &Entry) {
        let name = &*entry.name;
        let about = About::Room(name);
        match (name, entry.kind) {
            (b"envelopefs.toml", Kind::File) | (LOST_AND_FOUND, Kind::Directory) => {}
            (b"envelopefs.toml", _) => self.report(&problem::WRONG_KIND, about, kind_text(entry.kind)),
            // Opened below.
            _ if name == TREE_DIR.as_bytes() || name == OVERFLOW_DIR.as_bytes() => {}
            _ if name == QUARANTINE_DIR.as_bytes() && entry.kind == Kind::Directory => self.count_quarantine(),
            (_, Kind::File) if name.starts_with(TEMP_PREFIX) => {
                let detail = "a volume file that was being written";
                if self.config.is_some() {
                    self.mend(&problem::TEMPORARY, about, detail, "move it to quarantine", || {
                        self.to_quarantine(self.top.root(), name, name, &problem::TEMPORARY)
                    });
                } else {
                    self.report(&problem::TEMPORARY, about, format!("{detail}; the volume file may be in it"));
                }
            }
            _ => self.report(&problem::FOREIGN, about, kind_text(entry.kind)),
        }
    }

    fn count_quarantine(&self) {
        let held = self.top.pin(self.top.root(), QUARANTINE_DIR.as_bytes()).and_then(|dir| self.top.list(&dir));
        let objects = held.map_or(0, |held| held.iter().filter(|e| &*e.name != super::repair::MANIFEST).count());
        self.counts.lock().quarantined += objects as u64;
    }

    fn open_room(&self, name: &str) -> Option<(Arc<S::Handle>, Stat)> {
        let about = About::Room(name.as_bytes());
        let opened = self
            .top
            .pin(self.top.root(), name.as_bytes())
            .and_then(|room| Ok((self.top.stat(Place::Pinned(&room))?, Arc::new(room))));
        match opened {
            Ok((stat, room)) if stat.kind == Kind::Directory => return Some((room, stat)),
            Ok((stat, _)) => {
                self.incomplete.store(true, Ordering::Relaxed);
                self.report(&problem::WRONG_KIND, about, kind_text(stat.kind));
            }
            Err(e) if super::is(&e, libc::ENOENT) => {
                if name == OVERFLOW_DIR {
                    let what = "make an empty one (mode 0700)";
                    self.mend(&problem::LAYOUT, about, "it is missing", what, || self.make_room(name));
                } else {
                    self.report(&problem::LAYOUT, about, "it is missing, and all content with it");
                }
            }
            Err(e) => self.io_trouble(about, "opening it", &e),
        }
        None
    }

    /// After the walk: what no link leads to.
    fn overflow(&self, room: &Arc<S::Handle>) {
        let path = |name: &[u8]| [OVERFLOW_DIR.as_bytes(), b"/", name].concat();
        let entries = match self.top.list(room) {
            Ok(entries) => entries,
            Err(e) => return self.io_trouble(About::Room(OVERFLOW_DIR.as_bytes()), "listing it", &e),
        };
        let incomplete = self.incomplete.load(Ordering::Relaxed);
        for entry in entries {
            let path = path(&entry.name);
            let about = About::Room(&path);
            let Some(id) = overflow_id(&entry.name) else {
                self.report(&problem::FOREIGN, about, kind_text(entry.kind));
                continue;
            };
            if entry.kind != Kind::File {
                self.report(&problem::WRONG_KIND, about, kind_text(entry.kind));
                continue;
            }
            self.counts.lock().overflow_objects += 1;
            if self.seen.lock().overflow.contains(&id) {
                continue;
            }
            if incomplete {
                // Somebody who was not looked at may need it.
                continue;
            }
            let detail = "no symbolic link leads to it";
            self.mend(&problem::OVERFLOW_ORPHAN, about, detail, "move it to quarantine", || {
                self.to_quarantine(room, &entry.name, &path, &problem::OVERFLOW_ORPHAN)
            });
        }
    }
}
