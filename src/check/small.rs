//! Sealed small things: targets of symbolic links with their overflow objects, extended attributes. Changes nothing.

use super::place::Spot;
use super::problem;
use super::{About, Check, Keys, is, kind_text};
use crate::crypto::file_keys::FileKeys;
use crate::format::small::{
    OBJECT_ID_XATTR, OVERFLOW_NAME_LEN, TRUSTED_OBJECT_ID_XATTR, XattrCodec, claimed_target, open_overflow_target,
    open_target, parse_overflow_link,
};
use crate::format::volume::OVERFLOW_DIR;
use crate::store::{Access, BackingFile, Kind, Place, Store};

/// More than the longest sealed target has: bytes.
const OVERFLOW_READ_MAX: usize = 8 * 1024;

/// What an object's attributes are sealed by.
pub(super) enum SealedBy<'a> {
    File(&'a FileKeys),
    /// A file without header has no sealed attributes.
    Nothing,
    /// A random id in this attribute.
    ObjectId(&'static [u8]),
    /// There are no keys.
    Unknown,
}

impl SealedBy<'_> {
    pub fn directory() -> Self {
        Self::ObjectId(OBJECT_ID_XATTR)
    }
    pub fn object() -> Self {
        Self::ObjectId(TRUSTED_OBJECT_ID_XATTR)
    }
}

impl<S: Store> Check<'_, S> {
    pub(super) fn symlink(&self, spot: &Spot<S::Handle>) {
        let place = spot.place();
        let about = About::Spot(spot);
        self.counts.lock().symlinks += 1;
        let content = match self.top.readlink(place) {
            Ok(content) => content,
            Err(e) => return self.io_trouble(about, "reading the link", &e),
        };
        self.xattrs(place, about, &SealedBy::object());
        let Some(Keys { volume, .. }) = &self.keys else {
            match claimed_target(&content) {
                Some(None) => {}
                Some(Some(id)) => {
                    self.seen.lock().overflow.insert(id);
                    self.overflow_of(spot, id);
                }
                None if spot.stranger => {}
                None => self.report(&problem::SYMLINK_AUTH, about, "it is not a sealed target"),
            }
            return;
        };
        match parse_overflow_link(&volume.targets, &content) {
            Ok(None) if open_target(&volume.targets, &content).is_ok() => {}
            Ok(Some(id)) => {
                self.seen.lock().overflow.insert(id);
                if let Some(sealed) = self.overflow_of(spot, id)
                    && open_overflow_target(&volume.targets, id, &sealed).is_err()
                {
                    self.report(&problem::SYMLINK_AUTH, about, format!("{} does not open", overflow_path(&id)));
                }
            }
            _ if spot.stranger => {}
            _ => self.mend_by_quarantine(&problem::SYMLINK_AUTH, spot, "its target does not open".into()),
        }
    }

    /// The content of a link's overflow object; what is wrong with it is reported.
    fn overflow_of(&self, spot: &Spot<S::Handle>, id: [u8; 16]) -> Option<Vec<u8>> {
        let about = About::Spot(spot);
        let name = overflow_name(&id);
        let read = self.top.pin(self.top.root(), OVERFLOW_DIR.as_bytes()).and_then(|dir| {
            let place = Place::Entry { dir: &dir, name: &name };
            let kind = self.top.stat(place)?.kind;
            if kind != Kind::File {
                return Ok(Err(kind));
            }
            let file = self.top.open_file(place, Access::Read)?;
            let mut sealed = vec![0; OVERFLOW_READ_MAX];
            let len = file.read_at(&mut sealed, 0)?;
            sealed.truncate(len);
            Ok(Ok(sealed))
        });
        match read {
            Ok(Ok(sealed)) => return Some(sealed),
            Ok(Err(kind)) => {
                let detail = format!("{} is {}", overflow_path(&id), kind_text(kind));
                self.report(&problem::OVERFLOW_MISSING, about, detail);
            }
            Err(e) if is(&e, libc::ENOENT) => {
                self.report(&problem::OVERFLOW_MISSING, about, format!("{} is not there", overflow_path(&id)));
            }
            Err(e) => self.io_trouble(about, &format!("reading {}", overflow_path(&id)), &e),
        }
        None
    }

    pub(super) fn xattrs(&self, place: Place<'_, S::Handle>, about: About<'_, S::Handle>, by: &SealedBy<'_>) {
        let names = match self.top.list_xattrs(place) {
            Ok(names) => names,
            Err(e) if is(&e, libc::EOPNOTSUPP) => return,
            Err(e) => return self.io_trouble(about, "listing its extended attributes", &e),
        };
        let (sealed, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| XattrCodec::is_encoded(name));
        for name in others.iter().filter(|name| name.starts_with(b"user.") && **name != OBJECT_ID_XATTR) {
            self.report(&problem::XATTR_FOREIGN, about, format!("attribute {}", name.escape_ascii()));
        }
        if sealed.is_empty() {
            return;
        }
        self.counts.lock().xattrs += sealed.len() as u64;
        let codec = match by {
            SealedBy::File(keys) => Some(XattrCodec::new(&keys.xattr_key())),
            SealedBy::Nothing => None,
            SealedBy::Unknown => return,
            SealedBy::ObjectId(attribute) => {
                let id = match self.top.get_xattr(place, attribute) {
                    Ok(id) => <[u8; 16]>::try_from(id).ok(),
                    Err(e) if is(&e, libc::ENODATA) => None,
                    Err(e) => return self.io_trouble(about, "reading its extended attributes", &e),
                };
                let Some(id) = id else {
                    let detail = format!("attribute {}", attribute.escape_ascii());
                    return self.report(&problem::XATTR_ID, about, detail);
                };
                match &self.keys {
                    Some(keys) => Some(XattrCodec::for_object(&keys.volume.xattrs, id)),
                    None => return,
                }
            }
        };
        for name in sealed {
            let value = match self.top.get_xattr(place, &name) {
                Ok(value) => value,
                Err(e) => {
                    self.io_trouble(about, "reading its extended attributes", &e);
                    continue;
                }
            };
            if codec.as_ref().is_none_or(|codec| codec.open(&name, &value).is_err()) {
                let why = match by {
                    SealedBy::Nothing => ": the file has no header and so no key; emptied below, or never synced",
                    _ => "",
                };
                self.report(&problem::XATTR_AUTH, about, format!("attribute {}{why}", name.escape_ascii()));
            }
        }
    }
}

pub(super) fn overflow_name(id: &[u8; 16]) -> Vec<u8> {
    data_encoding::HEXLOWER.encode(id).into_bytes()
}

/// `None`: not the name of an overflow object.
pub(super) fn overflow_id(name: &[u8]) -> Option<[u8; 16]> {
    if name.len() != OVERFLOW_NAME_LEN {
        return None;
    }
    data_encoding::HEXLOWER.decode(name).ok()?.try_into().ok()
}

fn overflow_path(id: &[u8; 16]) -> String {
    format!("{OVERFLOW_DIR}/{}", data_encoding::HEXLOWER.encode(id))
}
