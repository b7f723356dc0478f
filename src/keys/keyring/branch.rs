//! The branches that new files hang on: one per group of CMKs, replaced when due. Nothing of opening files.

use super::*;

/// After a branch could not be replaced, creates go on under the old one for this long before it is tried again.
const REPLACE_RETRY: Duration = Duration::from_secs(60);

/// Told which group has which new branch.
pub type BranchHook = dyn Fn(&KeyGroup, &BranchRecord) + Send + Sync;

/// The branches in use.
#[derive(Default)]
pub(super) struct Growing {
    groups: HashMap<KeyGroup, Current>,
    /// Recorded branches that no group has claimed yet.
    recorded: Vec<BranchRecord>,
}

/// The branch that new files of one group hang on.
#[derive(Default)]
pub(super) struct Current {
    /// The last branch known, unwrapped or not.
    record: Option<BranchRecord>,
    live: Option<Live>,
    /// Somebody is unwrapping the recorded branch or making a new one.
    making: Option<Arc<Flight<Live>>>,
    /// Why the last making failed, for those who come within a moment.
    failed: Option<(KeyError, Instant)>,
    pub(super) retry_at: Option<Instant>,
    /// The operator was told that the branch is overdue.
    pub(super) warned: bool,
    /// It is due, and somebody who may wait should see to it.
    renew: bool,
}

/// A branch with its key. `files` counts those that this mount created under it.
#[derive(Clone)]
pub(super) struct Live {
    pub record: Arc<BranchRecord>,
    pub key: Arc<Secret32>,
    pub source: Arc<KeySource>,
    files: u64,
}

impl Growing {
    pub fn starting_with(own: Option<BranchRecord>) -> Self {
        let current = Current { record: own, ..Current::default() };
        Self { groups: HashMap::from([(None, current)]), recorded: Vec::new() }
    }

    /// The state of one group; at its first use it takes the recorded branch that hangs on the same CMKs.
    pub fn of(&mut self, group: &KeyGroup) -> &mut Current {
        let recorded = &mut self.recorded;
        self.groups.entry(group.clone()).or_insert_with(|| {
            let same = |record: &BranchRecord| group.as_ref().is_some_and(|names| hangs_on(record, names));
            let record = recorded.iter().position(same).map(|at| recorded.swap_remove(at));
            Current { record, ..Current::default() }
        })
    }

    /// Forgets unwrapped branches for whose keys `lost` says so.
    pub fn drop_keys(&mut self, lost: impl Fn(&KeySource) -> bool) {
        for current in self.groups.values_mut() {
            current.live.take_if(|live| lost(&live.source));
        }
    }

    fn due(&self) -> Vec<KeyGroup> {
        self.groups.iter().filter(|(_, current)| current.renew).map(|(group, _)| group.clone()).collect()
    }
}

impl Current {
    #[cfg(all(test, feature = "shuttle"))]
    pub fn has_key(&self) -> bool {
        self.live.is_some()
    }

    /// `Pending`, unless the last attempt failed a moment ago.
    fn lacking(&self, group: &KeyGroup) -> KeyError {
        match &self.failed {
            Some((error, at)) if at.elapsed() < FAILURE_HOLDS => error.repeat(),
            _ => KeyError::Pending(Box::new(Wanted::NewBranch(group.clone()))),
        }
    }
}

/// Whether a branch is wrapped under exactly these CMKs.
pub fn hangs_on(record: &BranchRecord, names: &[KeyRef]) -> bool {
    let names_it = |slot: &CmkSlot| names.iter().any(|name| slots::belongs(slot, name));
    let wrapped_by = |name: &KeyRef| record.slots.iter().any(|slot| slots::belongs(slot, name));
    record.slots.iter().all(names_it) && names.iter().all(wrapped_by)
}

impl Keyring {
    /// Further recorded branches, of directories with CMKs of their own.
    pub fn with_branches(self, records: Vec<BranchRecord>) -> Self {
        self.growing.lock().recorded = records;
        self
    }

    /// The branch of the volume's own CMKs, for the volume file; `None` before the first one was needed.
    pub fn current_branch(&self) -> Option<BranchRecord> {
        self.growing.lock().of(&None).record.clone()
    }

    /// Called whenever a group got a new branch, so that the owner can persist it before files depend on it.
    pub fn on_new_branch(&self, hook: Box<BranchHook>) {
        *self.hook.write() = Some(Arc::from(hook));
    }

    /// The current branch, counted for one more file. Where it is due for replacement, one thread sees to that while
    /// the others go on under the old one; where there is none yet, they wait for that thread. Nobody waits here for a
    /// remote provider: `Pending`.
    pub(super) fn branch_for_new_file(&self, group: &KeyGroup, members: &Members) -> Result<Live, KeyError> {
        let local = all_local(members);
        {
            let mut growing = self.growing.lock();
            let current = growing.of(group);
            let due = current.live.as_ref().is_some_and(|live| self.is_due(&live.record, live.files, members));
            let others = current.making.is_some() || current.retry_at.is_some_and(|at| Instant::now() < at);
            if let Some(live) = &mut current.live
                && (!due || others || !local)
            {
                live.files = live.files.saturating_add(1);
                let live = live.clone();
                if due && !others && !current.renew {
                    current.renew = true;
                    drop(growing);
                    self.bell.ring();
                }
                return Ok(live);
            }
            if !local {
                return Err(current.lacking(group));
            }
        }
        self.make_or_await(group, members)
    }

    /// Whether new files of the group have a branch to hang on.
    pub(super) fn branch_is_there(&self, group: &KeyGroup) -> Result<(), KeyError> {
        let mut growing = self.growing.lock();
        let current = growing.of(group);
        if current.live.is_some() { Ok(()) } else { Err(current.lacking(group)) }
    }

    pub(super) fn fetch_branch_for_new_files(&self, group: &KeyGroup) -> Result<(), KeyError> {
        let members = self.members(group)?;
        {
            let mut growing = self.growing.lock();
            let current = growing.of(group);
            let still_good = |live: &Live| !self.is_due(&live.record, live.files, &members);
            if current.making.is_none() && current.live.as_ref().is_some_and(still_good) {
                return Ok(());
            }
        }
        self.make_or_await(group, &members).map(drop)
    }

    /// Replaces the branches that were found due. For the watcher.
    pub(super) fn renew_due_branches(&self) {
        let due = self.growing.lock().due();
        for group in due {
            self.growing.lock().of(&group).renew = false;
            if let Ok(members) = self.members(&group)
                && let Err(e) = self.make_or_await(&group, &members)
            {
                log::debug!("renewing a branch: {e}");
            }
        }
    }

    /// Calls the providers, or waits for who does.
    fn make_or_await(&self, group: &KeyGroup, members: &Members) -> Result<Live, KeyError> {
        let (flight, previous, record) = {
            let mut growing = self.growing.lock();
            let current = growing.of(group);
            if let Some(flight) = current.making.clone() {
                drop(growing);
                return flight.wait();
            }
            let flight = Arc::new(Flight::default());
            current.making = Some(flight.clone());
            (flight, current.live.clone(), current.record.clone())
        };
        let landing = Landing { keyring: self, group, flight: &flight };
        let outcome = self.next_branch(group, previous, record, members);
        let answer = {
            let mut growing = self.growing.lock();
            let current = growing.of(group);
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
                    current.failed = None;
                    current.record = Some(BranchRecord::clone(&live.record));
                    current.live = Some(live.clone());
                    Ok(live)
                }
                Err(e) => {
                    current.failed = Some((e.repeat(), Instant::now()));
                    Err(e)
                }
            }
        };
        let answer = answer.and_then(|live| self.check_source(&live.source).map(|()| live));
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
        group: &KeyGroup,
        previous: Option<Live>,
        record: Option<BranchRecord>,
        members: &Members,
    ) -> Result<(Live, Option<KeyError>), KeyError> {
        let Some(record) = record else { return Ok((self.make_branch(group, None, members)?, None)) };
        if !self.is_due(&record, previous.as_ref().map_or(0, |live| live.files), members) {
            match self.revive(&record) {
                Ok(live) => return Ok((live, None)),
                // Nobody can use this branch any more: new files get one of their own.
                Err(e @ (KeyError::BadBlob { .. } | KeyError::NoCmk { .. })) => {
                    log::warn!("the volume's recorded branch is replaced: {e}");
                    return Ok((self.make_branch(group, None, members)?, None));
                }
                Err(e) => return Err(e),
            }
        }
        match self.make_branch(group, Some(&record), members) {
            Ok(live) => Ok((live, None)),
            Err(why) => match previous.map_or_else(|| self.revive(&record), Ok) {
                Ok(live) => Ok((live, Some(why))),
                Err(_) => Err(why),
            },
        }
    }

    /// Too old, too many files, from the future, or not wrapped by every CMK of its group.
    fn is_due(&self, record: &BranchRecord, files: u64, members: &Members) -> bool {
        const CLOCK_SLACK: i64 = 24 * 3600;
        let age = unix_now().saturating_sub(record.created);
        let too_old = match u64::try_from(age) {
            Ok(age) => age >= self.policy.branch_max_age,
            Err(_) => age < -CLOCK_SLACK,
        };
        let lacks = |(_, cmk): &(usize, Arc<Guard>)| {
            !cmk.is_optional() && !record.slots.iter().any(|slot| slots::belongs(slot, cmk.key_ref()))
        };
        too_old || files >= self.policy.branch_max_files || members.iter().any(lacks)
    }

    /// The recorded branch with its key.
    fn revive(&self, record: &BranchRecord) -> Result<Live, KeyError> {
        let context = EncryptionContext::for_branch(&self.volume_id, &record.id);
        let pending = |slots| Wanted::Branch { branch: record.id, slots };
        let take =
            || self.with_key(&self.branches, &record.id, &record.slots, &context, pending, |held| Ok(held.clone()));
        let held = self.patiently(take)?;
        Ok(Live { record: Arc::new(record.clone()), key: held.key, source: held.source, files: 0 })
    }

    /// A new branch under all CMKs of its group. It must not be open to fewer of them than the one it replaces: a mount that
    /// was given only some of a volume's CMKs would otherwise lock the others out of every new file.
    fn make_branch(
        &self,
        group: &KeyGroup,
        replaces: Option<&BranchRecord>,
        members: &Members,
    ) -> Result<Live, KeyError> {
        let slots_before = replaces.map_or(&[][..], |record| &record.slots);
        let known = |slot: &&CmkSlot| members.iter().any(|(_, cmk)| slots::belongs(slot, cmk.key_ref()));
        let missing: Vec<CmkSlot> = slots_before.iter().filter(|slot| !known(slot)).cloned().collect();
        if !missing.is_empty() && missing.len() < slots_before.len() {
            let names = slots::names(&missing);
            return Err(KeyError::Config(format!(
                "the branch in use is also wrapped under {names}, and this mount was not given that CMK"
            )));
        }
        let id: BranchId = random::array();
        let cmks: Vec<_> = members.iter().map(|(_, cmk)| cmk.clone()).collect();
        let context = EncryptionContext::for_branch(&self.volume_id, &id);
        let (key, slots) = slots::generate(&cmks, &context, self.deadline())?;
        let record = BranchRecord { id, created: unix_now(), slots };
        let (key, source) = (Arc::new(key), made_by(members));
        let held = Held {
            key: key.clone(),
            source: source.clone(),
            slots: record.slots.as_slice().into(),
            since: Instant::now(),
        };
        // All slots hold the same key, so the same commitment.
        self.branches.insert(&id, &key_commitment(&key), held);
        let hook = self.hook.read().clone();
        if let Some(hook) = hook {
            hook(group, &record);
        }
        Ok(Live { record: Arc::new(record), key, source, files: 0 })
    }
}

/// Ends the making of a branch also when a provider or the hook panics.
struct Landing<'a> {
    keyring: &'a Keyring,
    group: &'a KeyGroup,
    flight: &'a Arc<Flight<Live>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.keyring.growing.lock().of(self.group).making = None;
        self.flight.land(Err(abandoned()));
    }
}
