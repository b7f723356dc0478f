//! The two header slots of a file: what each is, which one counts, and the keys behind it. Reads no content.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::problem::{self, Code};
use super::{About, Check, Keys};
use crate::crypto::file_keys::FileKeys;
use crate::format::geometry::Geometry;
use crate::format::header::CmkSlot;
use crate::format::header::{FileHeader, HeaderError, Unverified, was_never_durable};
use crate::format::{BranchId, KeyRef};
use crate::keys::KeyError;
use crate::keys::guard::Guard;
use crate::store::Store;

/// Wrapped keys that are remembered; there are as many as branches, times CMKs, unless somebody has made more.
const WRAPPED_MAX: usize = 1 << 16;

/// What the header area of a file is.
pub(super) enum Headers {
    /// None was ever durable, as far as the area itself tells.
    Blank,
    Open(Box<Opened>),
    Closed {
        code: &'static Code,
        detail: String,
        /// Another version of the program may open it.
        later: bool,
    },
}

/// The header that counts.
pub(super) struct Opened {
    pub header: FileHeader,
    /// `None` in a check without keys: nothing of the header is verified then.
    pub keys: Option<FileKeys>,
    pub slot: Name,
    pub other: Other,
}

/// The slot that does not count.
pub(super) enum Other {
    Fine,
    /// Proven bad, not for want of a key.
    Bad(String),
    /// Its keys do not open; it is left alone.
    Unopened(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    A,
    B,
}

impl Name {
    pub fn index(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
    pub fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
        }
    }
}

enum Slot {
    Empty,
    Good(Box<(FileHeader, Option<FileKeys>)>),
    Bad(String),
    /// Of a version or suite that this program does not know.
    Later(String),
    Unopened(&'static Code, String),
}

impl Slot {
    fn generation(&self) -> Option<u64> {
        match self {
            Self::Good(good) => Some(good.0.generation),
            _ => None,
        }
    }
}

impl<S: Store> Check<'_, S> {
    /// `bytes`: both slots.
    pub(super) fn headers(&self, bytes: &[u8], geometry: Geometry) -> Headers {
        if was_never_durable(bytes, geometry) {
            return Headers::Blank;
        }
        let (a, b) = bytes.split_at(bytes.len() / 2);
        let (a, b) = (self.slot(a, geometry), self.slot(b, geometry));
        // At equal generations A counts.
        let (name, good, other) = match (a, b) {
            (Slot::Good(a), b) if b.generation() <= Some(a.0.generation) => (Name::A, a, b),
            (a, Slot::Good(b)) => (Name::B, b, a),
            (a, b) => return closed(a, b),
        };
        let other = match other {
            Slot::Empty | Slot::Good(_) => Other::Fine,
            Slot::Bad(why) => Other::Bad(why),
            Slot::Later(detail) | Slot::Unopened(_, detail) => Other::Unopened(detail),
        };
        let (header, keys) = *good;
        Headers::Open(Box::new(Opened { header, keys, slot: name, other }))
    }

    fn slot(&self, bytes: &[u8], geometry: Geometry) -> Slot {
        let unverified = match Unverified::parse(bytes, geometry) {
            Ok(unverified) => unverified,
            Err(HeaderError::Empty) => return Slot::Empty,
            Err(e @ (HeaderError::Version(_) | HeaderError::Suite(_))) => return Slot::Later(e.to_string()),
            Err(e) => return Slot::Bad(e.to_string()),
        };
        let volume = unverified.claims().volume_id;
        if self.config.as_ref().is_some_and(|config| config.volume_id != volume) {
            return Slot::Bad(format!("it belongs to volume {}", HEXLOWER.encode(&volume)));
        }
        let Some(Keys { files, .. }) = &self.keys else {
            return Slot::Good(Box::new((unverified.claims().clone(), None)));
        };
        match files.keyring.patiently(|| files.keyring.open(&unverified)) {
            Ok(open) => match unverified.verify(&open.keys, files.keyring.origin()) {
                Ok(header) => Slot::Good(Box::new((header, Some(open.keys)))),
                Err(e) => Slot::Bad(e.to_string()),
            },
            Err(e @ KeyError::BadBlob { .. }) => Slot::Unopened(&problem::WRAPPED_KEY, e.to_string()),
            Err(e) => Slot::Unopened(&problem::KEY, e.to_string()),
        }
    }

    /// Whether each copy of the key in a header opens under its CMK. That the file opened does not tell: the key may have been in
    /// memory from another file of its branch. A copy that many headers share is asked for once.
    pub(super) fn prove_wrapped_keys(&self, header: &FileHeader, about: About<'_, S::Handle>) {
        let Some(Keys { files, .. }) = &self.keys else { return };
        let shared = header.wrapped_dek.as_ref().map(|wrapped| wrapped.branch_id);
        if shared.is_none() && self.settings.quick {
            return;
        }
        let (mut good, mut unknown, mut bad) = (0u32, 0u32, Vec::new());
        for slot in &header.slots {
            let digest = shared.map(|branch| wrapped_digest(&branch, slot));
            if digest.is_some_and(|digest| self.seen.lock().wrapped.contains(&digest)) {
                good += 1;
                continue;
            }
            match files.keyring.prove_slot(header, slot) {
                // A file of another CMK alone; without it nobody can tell.
                None => {}
                Some(Ok(())) => {
                    good += 1;
                    let mut seen = self.seen.lock();
                    if let Some(digest) = digest.filter(|_| seen.wrapped.len() < WRAPPED_MAX) {
                        seen.wrapped.insert(digest);
                    }
                }
                Some(Err(e @ KeyError::BadBlob { .. })) => bad.push(e.to_string()),
                Some(Err(_)) => {
                    unknown += 1;
                    let key = KeyRef { provider: slot.provider.clone(), key: slot.key_ref.clone() };
                    self.counts.lock().cmk(&key, |count| count.unproven += 1);
                }
            }
        }
        if bad.is_empty() {
            return;
        }
        let detail = bad.join("; ");
        if good + unknown == 0 {
            self.report(&problem::WRAPPED_KEY, about, detail);
        } else {
            self.report(&problem::CMK_SLOT, about, detail);
        }
    }

    /// Counts the CMKs of one file, and tells where none of them is one that the volume lists.
    pub(super) fn count_cmks(&self, header: &FileHeader, about: About<'_, S::Handle>) {
        let of_header: Vec<KeyRef> =
            header.slots.iter().map(|s| KeyRef { provider: s.provider.clone(), key: s.key_ref.clone() }).collect();
        {
            let mut counts = self.counts.lock();
            for (at, key) in of_header.iter().enumerate() {
                if !of_header[..at].contains(key) {
                    counts.cmk(key, |count| count.files += 1);
                }
            }
            // A file of a directory with CMKs of its own hangs on those instead.
            if of_header.iter().all(|key| self.own_cmks.contains(key)) {
                for own in self.own_cmks.iter().filter(|own| !of_header.contains(own)) {
                    counts.cmk(own, |count| count.missing += 1);
                }
            }
        }
        let known = |key: &KeyRef| {
            let given = |cmk: &std::sync::Arc<Guard>| cmk.key_ref() == key;
            self.listed_cmks.contains(key)
                || self.keys.as_ref().is_some_and(|k| k.files.keyring.cmks().iter().any(given))
        };
        if self.config.is_some() && !of_header.iter().any(known) {
            let names: Vec<String> = of_header.iter().take(4).map(KeyRef::to_string).collect();
            self.report(&problem::UNKNOWN_CMK, about, format!("it names {}", names.join(", ")));
        }
    }
}

/// Everything that decides whether a wrapped branch key opens.
fn wrapped_digest(branch: &BranchId, slot: &CmkSlot) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in [&branch[..], slot.provider.as_bytes(), slot.key_ref.as_bytes(), &slot.commitment, &slot.blob] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// Neither slot is good. A key that is wanting comes first: with it, the file may be good.
fn closed(a: Slot, b: Slot) -> Headers {
    let later = matches!(a, Slot::Later(_)) || matches!(b, Slot::Later(_));
    let mut told: Vec<(u8, &'static Code, String)> = Vec::new();
    for (slot, name) in [(a, Name::A), (b, Name::B)] {
        let letter = name.letter();
        match slot {
            Slot::Unopened(code, why) => {
                told.push((u8::from(*code != problem::KEY), code, format!("slot {letter}: {why}")));
            }
            Slot::Bad(why) | Slot::Later(why) => told.push((2, &problem::HEADER, format!("slot {letter}: {why}"))),
            Slot::Empty | Slot::Good(_) => {}
        }
    }
    told.sort_by_key(|(rank, ..)| *rank);
    let code = told.first().map_or(&problem::HEADER, |(_, code, _)| *code);
    let details: Vec<String> = told.into_iter().map(|(.., detail)| detail).collect();
    Headers::Closed { code, detail: details.join("; "), later }
}
