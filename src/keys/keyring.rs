//! The key tree of one volume at run time: CMKs → branch keys → file keys, with the branch cache.
//! The file engine asks it for keys at create and first open only; no I/O of data comes here.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use parking_lot::{Mutex, RwLock};

use super::{
    CmkProvider, EncryptionContext, KeyError,
    branches::{Branches, Flight, abandoned},
    slots, unix_now,
};
use crate::crypto::{file_keys::FileKeys, kdf::mac_eq, random, secret::Secret32};
use crate::format::{
    BranchId, FileId, VolumeId,
    header::{CmkSlot, FileHeader, SUITE_AES256_GCM, Unverified, WrappedDek},
    volume::{BranchRecord, KeyMode},
};

/// After a branch could not be replaced, creates go on under the old one for this long before it is tried again.
const REPLACE_RETRY: Duration = Duration::from_secs(60);

/// Identity and keys of a file that is about to get its first header.
pub struct NewFileKeys {
    pub file_id: FileId,
    pub keys: FileKeys,
    pub wrapped_dek: Option<WrappedDek>,
    pub slots: Vec<CmkSlot>,
}

impl NewFileKeys {
    /// A first header: generation 1, floor 0, no flags.
    pub fn header(&self, volume_id: VolumeId) -> FileHeader {
        FileHeader {
            volume_id,
            file_id: self.file_id,
            suite: SUITE_AES256_GCM,
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

type BranchHook = Arc<dyn Fn(&BranchRecord) + Send + Sync>;

/// Locks: `current`, the hook and the cache's own are never held together, nor across a provider call.
pub struct Keyring {
    volume_id: VolumeId,
    /// The allow-list: nobody else is ever asked.
    cmks: Vec<Arc<dyn CmkProvider>>,
    policy: KeyPolicy,
    origin: Option<Secret32>,
    branches: Branches,
    current: Mutex<Current>,
    hook: RwLock<Option<BranchHook>>,
}

/// The branch that new files hang on.
struct Current {
    /// The last branch known, unwrapped or not.
    record: Option<BranchRecord>,
    live: Option<Live>,
    /// Somebody is unwrapping the recorded branch or making a new one.
    making: Option<Arc<Flight<Live>>>,
    retry_at: Option<Instant>,
    /// The operator was told that the branch is overdue.
    warned: bool,
}

/// A branch with its key. `files` counts those that this mount created under it.
#[derive(Clone)]
struct Live {
    record: Arc<BranchRecord>,
    key: Arc<Secret32>,
    files: u64,
}

impl Keyring {
    /// `origin`: the volume's origin key, `None` when the volume file is lost (origin is then unverified).
    /// `branch`: the branch in use when the volume was last written; unwrapped on first need.
    pub fn new(
        volume_id: VolumeId,
        cmks: Vec<Arc<dyn CmkProvider>>,
        policy: KeyPolicy,
        origin: Option<Secret32>,
        branch: Option<BranchRecord>,
    ) -> Self {
        Self {
            volume_id,
            cmks,
            policy,
            origin,
            branches: Branches::default(),
            current: Mutex::new(Current { record: branch, live: None, making: None, retry_at: None, warned: false }),
            hook: RwLock::new(None),
        }
    }

    pub fn volume_id(&self) -> VolumeId {
        self.volume_id
    }

    pub fn origin(&self) -> Option<&Secret32> {
        self.origin.as_ref()
    }

    /// Fresh identity and keys; no provider call while the current branch lasts.
    pub fn create(&self) -> Result<NewFileKeys, KeyError> {
        let file_id: FileId = random::array();
        match self.policy.mode {
            KeyMode::PerFile => {
                let context = EncryptionContext::for_file(&self.volume_id, &file_id);
                let (dek, slots) = slots::generate(&self.cmks, &context)?;
                Ok(NewFileKeys { file_id, keys: FileKeys::derive(&file_id, &dek), wrapped_dek: None, slots })
            }
            KeyMode::Branch => {
                let branch = self.branch_for_new_file()?;
                let dek = Secret32::random();
                let parent = (branch.record.id, &*branch.key);
                let wrapped =
                    WrappedDek::seal(parent, &self.volume_id, &file_id, &dek, random::array(), random::array());
                Ok(NewFileKeys {
                    file_id,
                    keys: FileKeys::derive(&file_id, &dek),
                    wrapped_dek: Some(wrapped),
                    slots: branch.record.slots.clone(),
                })
            }
        }
    }

    /// The keys that a parsed header leads to: key references are checked against the configured CMKs before any call,
    /// each slot's commitment after it; single-flight per branch. A header of another volume is `BadBlob`.
    pub fn open(&self, header: &Unverified) -> Result<FileKeys, KeyError> {
        let header = header.claims();
        if header.volume_id != self.volume_id {
            return Err(KeyError::BadBlob {
                key: format!("volume {}", HEXLOWER.encode(&self.volume_id)),
                reason: format!("the file belongs to volume {}", HEXLOWER.encode(&header.volume_id)),
            });
        }
        match &header.wrapped_dek {
            Some(wrapped) => self.with_branch_key(&wrapped.branch_id, &header.slots, |branch_key| {
                let under = || format!("branch {}", HEXLOWER.encode(&wrapped.branch_id));
                let dek =
                    wrapped.open(branch_key, &self.volume_id, &header.file_id).map_err(|_| KeyError::BadBlob {
                        key: under(),
                        reason: "the file's key was altered, or belongs to another file".into(),
                    })?;
                file_keys(header, &dek, under)
            }),
            None => {
                let context = EncryptionContext::for_file(&self.volume_id, &header.file_id);
                slots::first_that_opens(&self.cmks, &header.slots, |cmk, slot| {
                    let dek = slots::unwrap(cmk, slot, &context)?;
                    file_keys(header, &dek, || cmk.key_ref().to_string())
                })
            }
        }
    }

    /// The branch that new files hang on, for the volume file; `None` before the first one was needed.
    pub fn current_branch(&self) -> Option<BranchRecord> {
        self.current.lock().record.clone()
    }

    /// Called whenever a new branch came into being, so that the owner can persist it before files depend on it.
    pub fn on_new_branch(&self, hook: Box<dyn Fn(&BranchRecord) + Send + Sync>) {
        *self.hook.write() = Some(Arc::from(hook));
    }

    /// Gives `attempt` the branch keys that the slots lead to until one does: first those in memory, then by calls.
    fn with_branch_key<T>(
        &self,
        branch: &BranchId,
        slots: &[CmkSlot],
        mut attempt: impl FnMut(&Arc<Secret32>) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let allowed = |slot: &&CmkSlot| self.cmks.iter().any(|cmk| slots::belongs(slot, cmk.as_ref()));
        for slot in slots.iter().filter(allowed) {
            if let Some(key) = self.branches.get(branch, &slot.commitment)
                && let Ok(value) = attempt(&key)
            {
                return Ok(value);
            }
        }
        let context = EncryptionContext::for_branch(&self.volume_id, branch);
        slots::first_that_opens(&self.cmks, slots, |cmk, slot| {
            let unwrap = || slots::unwrap(cmk, slot, &context);
            attempt(&self.branches.get_or_unwrap(branch, slot, unwrap)?)
        })
    }

    /// The current branch, counted for one more file. Where it is due for replacement, one thread sees to that while
    /// the others go on under the old one; where there is none yet, they wait for that thread.
    fn branch_for_new_file(&self) -> Result<Live, KeyError> {
        let (flight, previous, record) = {
            let mut current = self.current.lock();
            let due = current.live.as_ref().is_some_and(|live| self.is_due(&live.record, live.files));
            let wait_with_it = current.making.is_some() || current.retry_at.is_some_and(|at| Instant::now() < at);
            if let Some(live) = &mut current.live
                && (!due || wait_with_it)
            {
                live.files = live.files.saturating_add(1);
                return Ok(live.clone());
            }
            if let Some(flight) = current.making.clone() {
                drop(current);
                return flight.wait();
            }
            let flight = Arc::new(Flight::default());
            current.making = Some(flight.clone());
            (flight, current.live.clone(), current.record.clone())
        };
        let landing = Landing { keyring: self, flight: &flight };
        let outcome = self.next_branch(previous, record);
        let answer = {
            let mut current = self.current.lock();
            match outcome {
                Ok((mut live, overdue)) => {
                    let retry = overdue.is_some();
                    if let Some(why) = overdue
                        && !current.warned
                    {
                        log::warn!(
                            "branch {} is due for replacement but stays in use, since a new one cannot be made: {why}",
                            HEXLOWER.encode(&live.record.id),
                        );
                    }
                    current.warned = retry;
                    current.retry_at = retry.then(|| Instant::now() + REPLACE_RETRY);
                    live.files = match &current.live {
                        Some(before) if before.record.id == live.record.id => before.files.saturating_add(1),
                        _ => 1,
                    };
                    current.record = Some(BranchRecord::clone(&live.record));
                    current.live = Some(live.clone());
                    Ok(live)
                }
                Err(e) => Err(e),
            }
        };
        flight.land(match &answer {
            Ok(live) => Ok(live.clone()),
            Err(e) => Err(e.repeat()),
        });
        drop(landing);
        answer
    }

    /// What new files hang on from now: a new branch where the last one is due (or there is none), else the last one.
    /// With an old branch that had to stay comes the reason.
    fn next_branch(
        &self,
        previous: Option<Live>,
        record: Option<BranchRecord>,
    ) -> Result<(Live, Option<KeyError>), KeyError> {
        let Some(record) = record else { return Ok((self.make_branch(None)?, None)) };
        if !self.is_due(&record, previous.as_ref().map_or(0, |live| live.files)) {
            match self.revive(&record) {
                Ok(live) => return Ok((live, None)),
                // Nobody can use this branch any more: new files get one of their own.
                Err(e @ (KeyError::BadBlob { .. } | KeyError::NoCmk { .. })) => {
                    log::warn!("the volume's recorded branch is replaced: {e}");
                    return Ok((self.make_branch(None)?, None));
                }
                Err(e) => return Err(e),
            }
        }
        match self.make_branch(Some(&record)) {
            Ok(live) => Ok((live, None)),
            Err(why) => match previous.map_or_else(|| self.revive(&record), Ok) {
                Ok(live) => Ok((live, Some(why))),
                Err(_) => Err(why),
            },
        }
    }

    /// Too old, too many files, from the future, or not wrapped by every configured CMK.
    fn is_due(&self, record: &BranchRecord, files: u64) -> bool {
        const CLOCK_SLACK: i64 = 24 * 3600;
        let age = unix_now().saturating_sub(record.created);
        let too_old = match u64::try_from(age) {
            Ok(age) => age >= self.policy.branch_max_age,
            Err(_) => age < -CLOCK_SLACK,
        };
        let lacks = |cmk: &Arc<dyn CmkProvider>| !record.slots.iter().any(|slot| slots::belongs(slot, cmk.as_ref()));
        too_old || files >= self.policy.branch_max_files || self.cmks.iter().any(lacks)
    }

    /// The recorded branch with its key.
    fn revive(&self, record: &BranchRecord) -> Result<Live, KeyError> {
        let key = self.with_branch_key(&record.id, &record.slots, |key| Ok(key.clone()))?;
        Ok(Live { record: Arc::new(record.clone()), key, files: 0 })
    }

    /// A new branch under all CMKs. It must not be open to fewer of them than the one it replaces: a mount that was
    /// given only some of a volume's CMKs would otherwise lock the others out of every new file.
    fn make_branch(&self, replaces: Option<&BranchRecord>) -> Result<Live, KeyError> {
        let slots_before = replaces.map_or(&[][..], |record| &record.slots);
        let known = |slot: &&CmkSlot| self.cmks.iter().any(|cmk| slots::belongs(slot, cmk.as_ref()));
        let missing: Vec<CmkSlot> = slots_before.iter().filter(|slot| !known(slot)).cloned().collect();
        if !missing.is_empty() && missing.len() < slots_before.len() {
            let names = slots::names(&missing);
            return Err(KeyError::Config(format!(
                "the branch in use is also wrapped under {names}, and this mount was not given that CMK"
            )));
        }
        let id: BranchId = random::array();
        let (key, slots) = slots::generate(&self.cmks, &EncryptionContext::for_branch(&self.volume_id, &id))?;
        let record = BranchRecord { id, created: unix_now(), slots };
        let key = Arc::new(key);
        // All slots hold the same key, so the same commitment.
        if let Some(slot) = record.slots.first() {
            self.branches.insert(&id, &slot.commitment, key.clone());
        }
        let hook = self.hook.read().clone();
        if let Some(hook) = hook {
            hook(&record);
        }
        Ok(Live { record: Arc::new(record), key, files: 0 })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("volume", &HEXLOWER.encode(&self.volume_id)).finish_non_exhaustive()
    }
}

/// Ends the making of a branch also when a provider or the hook panics.
struct Landing<'a> {
    keyring: &'a Keyring,
    flight: &'a Arc<Flight<Live>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.keyring.current.lock().making = None;
        self.flight.land(Err(abandoned()));
    }
}

/// A DEK's file keys, if they are the ones that the header committed to. `under`: what the DEK was wrapped by.
fn file_keys(header: &FileHeader, dek: &Secret32, under: impl Fn() -> String) -> Result<FileKeys, KeyError> {
    let keys = FileKeys::derive(&header.file_id, dek);
    if !mac_eq(&keys.commitment(), &header.commitment) {
        return Err(KeyError::BadBlob {
            key: under(),
            reason: "it gives another key than the file's header commits to".into(),
        });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests;
