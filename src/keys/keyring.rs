//! The key tree of one volume at run time: CMKs → branch keys → file keys, with the caches. The file engine asks it for keys
//! at create and first open only and never waits here: who may wait fetches (`fetch`). No I/O of data comes here.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;

use super::{
    EncryptionContext, KeyError, KeyRef,
    cache::{Flight, Held, KeyCache, abandoned},
    guard::{Bell, Deadline, Guard, OutagePolicy, Revoke},
    slots, unix_now,
    wanted::{KeyGroup, Wanted},
};
use crate::crypto::{file_keys::FileKeys, kdf::mac_eq, random, secret::Secret32};
use crate::format::{
    BranchId, FileId, SUITE, VolumeId,
    header::{CmkSlot, FileHeader, Unverified, WrappedDek},
    volume::{BranchRecord, KeyMode, key_commitment},
};
use crate::sync::{Mutex, RwLock};

pub use super::cache::KeySource;

mod branch;
mod outage;

pub use branch::{BranchHook, hangs_on};
pub use outage::{KeyringStatus, Loss};

/// Branch keys kept at most: a volume has one a month or per million files, so only forged headers reach it.
const BRANCHES_MAX: usize = 1024;
/// Keys of single files that were fetched and not taken yet (per-file mode).
const FILES_MAX: usize = 256;
/// A failed attempt to make a key answers for this long for those who ask again.
const FAILURE_HOLDS: Duration = Duration::from_secs(1);
/// How often something is tried again after a fetch: more than a header has slots that could each need one.
const FETCHES_MAX: usize = 16;

/// Identity and keys of a file that is about to get its first header.
pub struct NewFileKeys {
    pub file_id: FileId,
    pub keys: FileKeys,
    pub source: Arc<KeySource>,
    pub wrapped_dek: Option<WrappedDek>,
    pub slots: Vec<CmkSlot>,
}

/// A file's keys, and where they came from.
pub struct OpenKeys {
    pub keys: FileKeys,
    pub source: Arc<KeySource>,
}

impl NewFileKeys {
    /// A first header: generation 1, floor 0, no flags.
    pub fn header(&self, volume_id: VolumeId) -> FileHeader {
        FileHeader {
            volume_id,
            file_id: self.file_id,
            suite: SUITE,
            generation: 1,
            size_floor: 0,
            sealed_size: 0,
            flags: 0,
            commitment: self.keys.commitment(),
            previous_commitment: [0; 32],
            wrapped_dek: self.wrapped_dek.clone(),
            slots: self.slots.clone(),
        }
    }
}

/// How branch keys are made and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPolicy {
    pub mode: KeyMode,
    /// Seconds.
    pub branch_max_age: u64,
    pub branch_max_files: u64,
}

/// An error that may say that a key has to be fetched first.
pub trait Waits {
    fn wanted(&self) -> Option<&Wanted>;
}

impl Waits for KeyError {
    fn wanted(&self) -> Option<&Wanted> {
        match self {
            KeyError::Pending(wanted) => Some(wanted),
            _ => None,
        }
    }
}

/// Locks: each is held for a look-up or a change only, none together with another, none across a provider call.
pub struct Keyring {
    volume_id: VolumeId,
    /// The allow-list: nobody else is ever asked. Grows only; keys are known by their index.
    cmks: RwLock<Vec<Arc<Guard>>>,
    /// So many of them, from the first, are the volume's own.
    own: usize,
    policy: KeyPolicy,
    outage: OutagePolicy,
    origin: Option<Secret32>,
    branches: KeyCache<BranchId>,
    /// Per-file mode: fetched, and taken by the next open.
    files: KeyCache<FileId>,
    /// Per-file mode: made, and taken by the next create.
    fresh: Mutex<Vec<Fresh>>,
    file_key_failed: Mutex<HashMap<KeyGroup, (KeyError, Instant)>>,
    growing: Mutex<branch::Growing>,
    hook: RwLock<Option<Arc<BranchHook>>>,
    bell: Arc<Bell>,
}

/// A key for one new file.
struct Fresh {
    group: KeyGroup,
    file_id: FileId,
    dek: Secret32,
    slots: Vec<CmkSlot>,
    source: Arc<KeySource>,
}

/// CMKs with their indexes.
type Members = Vec<(usize, Arc<Guard>)>;

impl Keyring {
    /// `cmks`: the volume's own, in its order. `origin`: the volume's origin key, `None` when the volume file is lost (origin
    /// is then unverified). `branch`: the branch in use when the volume was last written; unwrapped on first need.
    pub fn new(
        volume_id: VolumeId,
        cmks: Vec<Arc<Guard>>,
        policy: KeyPolicy,
        origin: Option<Secret32>,
        branch: Option<BranchRecord>,
    ) -> Self {
        let bell = Arc::new(Bell::default());
        for cmk in &cmks {
            cmk.report_to(&bell);
        }
        Self {
            volume_id,
            own: cmks.len(),
            outage: cmks.first().map(|cmk| cmk.policy()).unwrap_or_default(),
            cmks: RwLock::new(cmks),
            policy,
            origin,
            branches: KeyCache::new(BRANCHES_MAX),
            files: KeyCache::new(FILES_MAX),
            fresh: Mutex::default(),
            file_key_failed: Mutex::default(),
            growing: Mutex::new(branch::Growing::starting_with(branch)),
            hook: RwLock::new(None),
            bell,
        }
    }

    pub fn volume_id(&self) -> VolumeId {
        self.volume_id
    }

    pub fn origin(&self) -> Option<&Secret32> {
        self.origin.as_ref()
    }

    pub fn cmks(&self) -> Vec<Arc<Guard>> {
        self.cmks.read().clone()
    }

    /// The volume's own.
    pub fn own_cmks(&self) -> Vec<Arc<Guard>> {
        self.cmks.read().iter().take(self.own).cloned().collect()
    }

    /// A CMK that directories hang on beside the volume's own. One that is there already stays as it is.
    pub fn add_cmk(&self, cmk: Arc<Guard>) {
        let mut cmks = self.cmks.write();
        if !cmks.iter().any(|other| other.key_ref() == cmk.key_ref()) {
            cmk.report_to(&self.bell);
            cmks.push(cmk);
        }
    }

    /// `NoCmk` where this mount was not given every CMK of a group.
    pub fn knows(&self, group: &KeyGroup) -> Result<(), KeyError> {
        match group {
            None => Ok(()),
            Some(_) => self.members(group).map(drop),
        }
    }

    /// Whether these CMKs work together for new files of this volume: a key that is thrown away is made, wrapped under each
    /// and opened by each, as a branch's would be. Gives the slots that a header would carry. Asks the providers, and waits.
    pub fn prove(&self, cmks: &[Arc<Guard>]) -> Result<Vec<CmkSlot>, KeyError> {
        let context = EncryptionContext::for_branch(&self.volume_id, &random::array());
        let until = Deadline::after(self.outage.deadline.saturating_mul(2));
        let (_, slots) = slots::generate(cmks, &context, until.share(2))?;
        for (n, cmk) in cmks.iter().enumerate() {
            let slot = slots.iter().find(|slot| slots::belongs(slot, cmk.key_ref())).ok_or_else(|| {
                KeyError::Config(format!("CMK {} is an optional one and cannot be had at the moment", cmk.key_ref()))
            })?;
            slots::unwrap(cmk, slot, &context, until.share(cmks.len() - n))?;
        }
        Ok(slots)
    }

    /// Fresh identity and keys for a file in a directory of `group`; no provider call while the current branch lasts.
    pub fn create(&self, group: &KeyGroup) -> Result<NewFileKeys, KeyError> {
        let members = self.members(group)?;
        self.permitted(&members)?;
        match self.policy.mode {
            KeyMode::PerFile => {
                let made = if all_local(&members) {
                    Some(self.make_file_key(group, &members)?)
                } else {
                    let mut fresh = self.fresh.lock();
                    let at = fresh.iter().position(|f| f.group == *group);
                    at.map(|at| fresh.swap_remove(at))
                };
                let Some(Fresh { file_id, dek, slots, source, .. }) = made else {
                    return Err(self.lacking_file_key(group));
                };
                Ok(NewFileKeys { file_id, keys: FileKeys::derive(&file_id, &dek), source, wrapped_dek: None, slots })
            }
            KeyMode::Branch => {
                let branch = self.branch_for_new_file(group, &members)?;
                let (file_id, dek): (FileId, _) = (random::array(), Secret32::random());
                let parent = (branch.record.id, &*branch.key);
                let wrapped =
                    WrappedDek::seal(parent, &self.volume_id, &file_id, &dek, random::array(), random::array());
                Ok(NewFileKeys {
                    file_id,
                    keys: FileKeys::derive(&file_id, &dek),
                    source: branch.source,
                    wrapped_dek: Some(wrapped),
                    slots: branch.record.slots.clone(),
                })
            }
        }
    }

    /// Whether `create` would succeed now: `Pending` or the error that it would meet. For those who are about to make a file,
    /// so that they hear it before anything is written to it.
    pub fn ready(&self, group: &KeyGroup) -> Result<(), KeyError> {
        let members = self.members(group)?;
        self.permitted(&members)?;
        match self.policy.mode {
            // Each has to wrap the key of each file.
            KeyMode::PerFile if all_local(&members) => {
                let mut needed = members.iter().filter(|(_, cmk)| !cmk.is_optional());
                needed.find_map(|(_, cmk)| cmk.loss()).map_or(Ok(()), Err)
            }
            // A branch that is there goes on through any of them.
            KeyMode::Branch if all_local(&members) => match members.iter().map(|(_, cmk)| cmk.loss()).collect() {
                Some(losses) => Vec::<KeyError>::into_iter(losses).next().map_or(Ok(()), Err),
                None => Ok(()),
            },
            KeyMode::PerFile if self.fresh.lock().iter().any(|fresh| fresh.group == *group) => Ok(()),
            KeyMode::PerFile => Err(self.lacking_file_key(group)),
            KeyMode::Branch => self.branch_is_there(group),
        }
    }

    /// The keys that a parsed header leads to: key references are checked against the configured CMKs before any call,
    /// each slot's commitment after it; single-flight per branch. A header of another volume is `BadBlob`.
    pub fn open(&self, header: &Unverified) -> Result<OpenKeys, KeyError> {
        let header = header.claims();
        if header.volume_id != self.volume_id {
            return Err(KeyError::BadBlob {
                key: format!("volume {}", HEXLOWER.encode(&self.volume_id)),
                reason: format!("the file belongs to volume {}", HEXLOWER.encode(&header.volume_id)),
            });
        }
        match &header.wrapped_dek {
            Some(wrapped) => {
                let context = EncryptionContext::for_branch(&self.volume_id, &wrapped.branch_id);
                let pending = |slots| Wanted::Branch { branch: wrapped.branch_id, slots };
                self.with_key(&self.branches, &wrapped.branch_id, &header.slots, &context, pending, |held| {
                    let under = || format!("branch {}", HEXLOWER.encode(&wrapped.branch_id));
                    let dek =
                        wrapped.open(&held.key, &self.volume_id, &header.file_id).map_err(|_| KeyError::BadBlob {
                            key: under(),
                            reason: "the file's key was altered, or belongs to another file".into(),
                        })?;
                    file_keys(header, &dek, held, under)
                })
            }
            None => {
                let context = EncryptionContext::for_file(&self.volume_id, &header.file_id);
                let pending = |slots| Wanted::File { file: header.file_id, slots };
                let opened = self.with_key(&self.files, &header.file_id, &header.slots, &context, pending, |held| {
                    file_keys(header, &held.key, held, || "one of the file's CMKs".into())
                });
                if opened.is_ok() {
                    // Each open asks the CMK: that is what this mode is for.
                    header.slots.iter().for_each(|slot| self.files.remove(&header.file_id, &slot.commitment));
                }
                opened
            }
        }
    }

    /// Asks the slot's CMK for the key that the slot itself holds, whatever is in memory, and forgets it. `None` where that CMK is
    /// not configured. Blocks up to the deadline, while no lock of the caller's may be held.
    pub fn prove_slot(&self, header: &FileHeader, slot: &CmkSlot) -> Option<Result<(), KeyError>> {
        let context = match &header.wrapped_dek {
            Some(wrapped) => EncryptionContext::for_branch(&self.volume_id, &wrapped.branch_id),
            None => EncryptionContext::for_file(&self.volume_id, &header.file_id),
        };
        let (_, cmk, _) = self.allowed(std::slice::from_ref(slot)).pop()?;
        Some(match cmk.loss() {
            Some(loss) => Err(loss),
            None => slots::unwrap(&cmk, slot, &context, self.deadline()).map(drop),
        })
    }

    /// Asks the providers for what `open` or `create` lacked: blocks up to the deadline, while no lock of the caller's may be
    /// held. What comes of it, also a failure, is what the next `open` or `create` meets.
    pub fn fetch(&self, wanted: &Wanted) {
        let until = Deadline::after(self.outage.deadline);
        let outcome = match wanted {
            Wanted::Branch { branch, slots } => {
                let context = EncryptionContext::for_branch(&self.volume_id, branch);
                self.fetch_key(&self.branches, branch, slots, &context, until)
            }
            Wanted::File { file, slots } => {
                let context = EncryptionContext::for_file(&self.volume_id, file);
                self.fetch_key(&self.files, file, slots, &context, until)
            }
            Wanted::NewBranch(group) => self.fetch_branch_for_new_files(group),
            Wanted::NewFile(group) => self.fetch_file_key(group),
        };
        if let Err(e) = outcome {
            log::debug!("fetching a key: {e}");
        }
    }

    /// `op`, with the keys fetched that it lacks. For threads that may wait and hold no lock.
    pub fn patiently<T, E: Waits>(&self, mut op: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        let mut outcome = op();
        for _ in 0..FETCHES_MAX {
            match &outcome {
                Err(e) => match e.wanted() {
                    Some(wanted) => self.fetch(wanted),
                    None => break,
                },
                Ok(_) => break,
            }
            outcome = op();
        }
        outcome
    }

    /// The CMKs of a group, with their indexes.
    fn members(&self, group: &KeyGroup) -> Result<Members, KeyError> {
        let cmks = self.cmks.read();
        let numbered = || cmks.iter().cloned().enumerate();
        match group {
            None => Ok(numbered().take(self.own).collect()),
            Some(names) => names
                .iter()
                .map(|name| {
                    numbered()
                        .find(|(_, cmk)| cmk.key_ref() == name)
                        .ok_or_else(|| KeyError::NoCmk { named: name.to_string() })
                })
                .collect(),
        }
    }

    /// The configured CMKs that slots name, each slot with its CMK, in the order of the slots.
    fn allowed<'s>(&self, slots: &'s [CmkSlot]) -> Vec<(usize, Arc<Guard>, &'s CmkSlot)> {
        let cmks = self.cmks.read();
        let find = |slot: &'s CmkSlot| {
            let at = cmks.iter().position(|cmk| slots::belongs(slot, cmk.key_ref()))?;
            Some((at, cmks[at].clone(), slot))
        };
        slots.iter().filter_map(find).take(slots::ATTEMPTS_PER_CMK * cmks.len()).collect()
    }

    /// The error where policy forbids keys that hang on these CMKs, the first-listed among them deciding for `primary`.
    fn permitted(&self, members: &[(usize, Arc<Guard>)]) -> Result<(), KeyError> {
        if self.outage.revoke == Revoke::Primary
            && let Some((_, first)) = members.iter().min_by_key(|(index, _)| *index)
            && let Some(refused @ KeyError::Refused { .. }) = first.loss()
        {
            return Err(refused);
        }
        Ok(())
    }

    /// Gives `attempt` the keys that the slots lead to until one does: first those in memory, then those that local providers
    /// open; what only others could open is `Pending`.
    fn with_key<Id: Copy + Eq + std::hash::Hash, T>(
        &self,
        cache: &KeyCache<Id>,
        id: &Id,
        slots: &[CmkSlot],
        context: &EncryptionContext,
        pending: impl FnOnce(Vec<CmkSlot>) -> Wanted,
        mut attempt: impl FnMut(&Held) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let allowed = self.allowed(slots);
        let members: Members = allowed.iter().map(|(at, cmk, _)| (*at, cmk.clone())).collect();
        self.permitted(&members)?;
        let mut worst = slots::Worst::default();
        let mut tried: HashSet<[u8; 32]> = HashSet::new();
        for (_, _, slot) in &allowed {
            if !tried.contains(&slot.commitment)
                && let Some(held) = cache.get(id, &slot.commitment)
            {
                tried.insert(slot.commitment);
                match attempt(&held) {
                    Ok(value) => return Ok(value),
                    Err(e) => worst.note(e),
                }
            }
        }
        let mut lacking = Vec::new();
        let shared: Arc<[CmkSlot]> = slots.into();
        let primary = members.iter().map(|(at, _)| *at).min().unwrap_or(0);
        for (at, cmk, slot) in &allowed {
            if tried.contains(&slot.commitment) {
                continue;
            }
            if let Some(loss) = cmk.loss() {
                worst.note(loss);
            } else if cmk.is_local() {
                let unwrap = || self.unwrap(cmk, (*at, primary), slot, &shared, context, self.deadline());
                let held = cache.get_or_unwrap(id, slot, unwrap).and_then(|held| self.unless_lost(held));
                match held.and_then(|held| attempt(&held)) {
                    Ok(value) => return Ok(value),
                    Err(e) => worst.note(e),
                }
            } else if let Some(error) = cache.recent_failure(id, slot) {
                worst.note(error);
            } else {
                lacking.push(CmkSlot::clone(slot));
            }
        }
        if !lacking.is_empty() {
            return Err(KeyError::Pending(Box::new(pending(lacking))));
        }
        Err(worst.into_error().unwrap_or_else(|| slots::no_cmk(slots)))
    }

    /// The first of these slots that opens, into the cache; each failure is noted there.
    fn fetch_key<Id: Copy + Eq + std::hash::Hash>(
        &self,
        cache: &KeyCache<Id>,
        id: &Id,
        slots: &[CmkSlot],
        context: &EncryptionContext,
        until: Deadline,
    ) -> Result<(), KeyError> {
        let allowed = self.allowed(slots);
        let shared: Arc<[CmkSlot]> = slots.into();
        let primary = allowed.iter().map(|(at, ..)| *at).min().unwrap_or(0);
        let mut worst = slots::Worst::default();
        for (n, (at, cmk, slot)) in allowed.iter().enumerate() {
            let share = until.share(allowed.len() - n);
            let unwrap = || self.unwrap(cmk, (*at, primary), slot, &shared, context, share);
            match cache.get_or_unwrap(id, slot, unwrap).and_then(|held| self.unless_lost(held)) {
                Ok(_) => return Ok(()),
                Err(e) => {
                    cache.note_failure(id, slot, &e);
                    worst.note(e);
                }
            }
        }
        Err(worst.into_error().unwrap_or_else(|| slots::no_cmk(slots)))
    }

    fn unless_lost(&self, held: Held) -> Result<Held, KeyError> {
        self.check_source(&held.source).map(|()| held)
    }

    fn unwrap(
        &self,
        cmk: &Guard,
        (via, primary): (usize, usize),
        slot: &CmkSlot,
        slots: &Arc<[CmkSlot]>,
        context: &EncryptionContext,
        until: Deadline,
    ) -> Result<Held, KeyError> {
        let key = Arc::new(slots::unwrap(cmk, slot, context, until)?);
        Ok(Held { key, source: KeySource::new(via, primary), slots: slots.clone(), since: Instant::now() })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.outage.deadline)
    }

    /// `Pending`, unless the last attempt failed a moment ago.
    fn lacking_file_key(&self, group: &KeyGroup) -> KeyError {
        match self.file_key_failed.lock().get(group) {
            Some((error, at)) if at.elapsed() < FAILURE_HOLDS => error.repeat(),
            _ => KeyError::Pending(Box::new(Wanted::NewFile(group.clone()))),
        }
    }

    fn fetch_file_key(&self, group: &KeyGroup) -> Result<(), KeyError> {
        let made = self.members(group).and_then(|members| self.make_file_key(group, &members));
        match made {
            Ok(made) => {
                self.file_key_failed.lock().remove(group);
                let source = made.source.clone();
                self.fresh.lock().push(made);
                self.check_source(&source)
            }
            Err(e) => {
                self.file_key_failed.lock().insert(group.clone(), (e.repeat(), Instant::now()));
                Err(e)
            }
        }
    }

    fn make_file_key(&self, group: &KeyGroup, members: &Members) -> Result<Fresh, KeyError> {
        let file_id: FileId = random::array();
        let context = EncryptionContext::for_file(&self.volume_id, &file_id);
        let cmks: Vec<_> = members.iter().map(|(_, cmk)| cmk.clone()).collect();
        let (dek, slots) = slots::generate(&cmks, &context, self.deadline())?;
        Ok(Fresh { group: group.clone(), file_id, dek, slots, source: made_by(members) })
    }
}

/// The source of a key that the first of these CMKs made.
fn made_by(members: &Members) -> Arc<KeySource> {
    let primary = members.iter().map(|(at, _)| *at).min().unwrap_or(0);
    let maker = members.iter().find(|(_, cmk)| !cmk.is_optional()).or(members.first());
    KeySource::new(maker.map_or(primary, |(at, _)| *at), primary)
}

fn all_local(members: &Members) -> bool {
    members.iter().all(|(_, cmk)| cmk.is_local())
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("volume", &HEXLOWER.encode(&self.volume_id)).finish_non_exhaustive()
    }
}

/// A DEK's file keys, if they are the ones that the header committed to. `under`: what the DEK was wrapped by.
fn file_keys(
    header: &FileHeader,
    dek: &Secret32,
    held: &Held,
    under: impl Fn() -> String,
) -> Result<OpenKeys, KeyError> {
    let keys = FileKeys::derive(&header.file_id, dek);
    if !mac_eq(&keys.commitment(), &header.commitment) {
        return Err(KeyError::BadBlob {
            key: under(),
            reason: "it gives another key than the file's header commits to".into(),
        });
    }
    Ok(OpenKeys { keys, source: held.source.clone() })
}

#[cfg(test)]
mod tests;
