//! Unwrapped keys in memory: a bounded cache, and one provider call for all who wait for the same key. Calls no provider
//! itself and holds no lock while one is called.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::KeyError;
use crate::crypto::secret::Secret32;
use crate::format::header::CmkSlot;
use crate::sync::{Condvar, Mutex};

/// A failed call answers for this long for those who ask again for the same blob.
const FAILURE_HOLDS: Duration = Duration::from_secs(1);
/// Remembered failures at most.
const FAILURES_MAX: usize = 1024;

/// What a key is known by: the id of its branch or file and its commitment. A forged header may claim the id of another,
/// but not with the commitment of a key that it does not have; so neither can stand in for the other.
pub type Name<Id> = (Id, [u8; 32]);

/// Through which CMK a key came into memory: it goes when that CMK says no. Shared by the keys that hang on it.
#[derive(Debug)]
pub struct KeySource {
    /// Index of the CMK that opened or made the key.
    via: AtomicUsize,
    /// Index of the first-listed CMK that its slots name.
    primary: usize,
}

impl KeySource {
    pub(super) fn new(via: usize, primary: usize) -> Arc<Self> {
        Arc::new(Self { via: AtomicUsize::new(via), primary })
    }
    pub(super) fn via(&self) -> usize {
        self.via.load(Ordering::Acquire)
    }
    pub(super) fn now_via(&self, cmk: usize) {
        self.via.store(cmk, Ordering::Release);
    }
    pub(super) fn primary(&self) -> usize {
        self.primary
    }
}

/// A key in memory.
#[derive(Clone)]
pub struct Held {
    pub key: Arc<Secret32>,
    pub source: Arc<KeySource>,
    /// All slots that are said to hold it.
    pub slots: Arc<[CmkSlot]>,
    pub since: Instant,
}

pub struct KeyCache<Id> {
    state: Mutex<State<Id>>,
    capacity: usize,
}

struct State<Id> {
    keys: HashMap<Name<Id>, (Held, u64)>,
    clock: u64,
    flights: Vec<InFlight<Id>>,
    failures: HashMap<(Id, Vec<u8>), (KeyError, Instant)>,
}

/// The slot is part of the name: blobs are not covered by the header's MAC, and a damaged copy must not fail those who
/// hold a good one.
struct InFlight<Id> {
    id: Id,
    slot: CmkSlot,
    flight: Arc<Flight<Held>>,
}

impl<Id: Copy + Eq + std::hash::Hash> KeyCache<Id> {
    pub fn new(capacity: usize) -> Self {
        let state = State { keys: HashMap::new(), clock: 0, flights: Vec::new(), failures: HashMap::new() };
        Self { state: Mutex::new(state), capacity }
    }

    pub fn get(&self, id: &Id, commitment: &[u8; 32]) -> Option<Held> {
        self.state.lock().get(&(*id, *commitment))
    }

    /// The key has been checked against `commitment`.
    pub fn insert(&self, id: &Id, commitment: &[u8; 32], held: Held) {
        self.state.lock().insert((*id, *commitment), held, self.capacity);
    }

    pub fn remove(&self, id: &Id, commitment: &[u8; 32]) {
        self.state.lock().keys.remove(&(*id, *commitment));
    }

    /// Drops the keys for which `lost` says so.
    pub fn drop_keys(&self, lost: impl Fn(&KeySource) -> bool) {
        let mut state = self.state.lock();
        state.keys.retain(|_, (held, _)| !lost(&held.source));
        state.failures.clear();
    }

    pub fn all(&self) -> Vec<(Name<Id>, Held)> {
        self.state.lock().keys.iter().map(|(name, (held, _))| (*name, held.clone())).collect()
    }

    /// What a call for this slot answered a moment ago, if it failed.
    pub fn recent_failure(&self, id: &Id, slot: &CmkSlot) -> Option<KeyError> {
        let state = self.state.lock();
        let (error, at) = state.failures.get(&(*id, slot.blob.clone()))?;
        (at.elapsed() < FAILURE_HOLDS).then(|| error.repeat())
    }

    pub fn note_failure(&self, id: &Id, slot: &CmkSlot, error: &KeyError) {
        let mut state = self.state.lock();
        if state.failures.len() >= FAILURES_MAX {
            state.failures.retain(|_, (_, at)| at.elapsed() < FAILURE_HOLDS);
        }
        if state.failures.len() < FAILURES_MAX {
            state.failures.insert((*id, slot.blob.clone()), (error.repeat(), Instant::now()));
        }
    }

    /// The cached key, or what `unwrap` gives for `slot`: called once, however many threads ask at the same time.
    /// `unwrap` checks the slot's commitment.
    pub fn get_or_unwrap(
        &self,
        id: &Id,
        slot: &CmkSlot,
        unwrap: impl FnOnce() -> Result<Held, KeyError>,
    ) -> Result<Held, KeyError> {
        let flight = {
            let mut state = self.state.lock();
            if let Some(held) = state.get(&(*id, slot.commitment)) {
                return Ok(held);
            }
            let same = state.flights.iter().find(|f| f.id == *id && f.slot == *slot);
            if let Some(waiting) = same.map(|f| f.flight.clone()) {
                drop(state);
                return waiting.wait();
            }
            let flight = Arc::new(Flight::default());
            state.flights.push(InFlight { id: *id, slot: slot.clone(), flight: flight.clone() });
            flight
        };
        let landing = Landing { cache: self, flight: &flight };
        let outcome = unwrap();
        if let Ok(held) = &outcome {
            self.insert(id, &slot.commitment, held.clone());
        }
        let answer = match &outcome {
            Ok(held) => Ok(held.clone()),
            Err(e) => Err(e.repeat()),
        };
        flight.land(answer);
        drop(landing);
        outcome
    }
}

impl<Id: Copy + Eq + std::hash::Hash> State<Id> {
    fn get(&mut self, name: &Name<Id>) -> Option<Held> {
        self.clock += 1;
        let (held, used) = self.keys.get_mut(name)?;
        *used = self.clock;
        Some(held.clone())
    }

    fn insert(&mut self, name: Name<Id>, held: Held, capacity: usize) {
        self.clock += 1;
        if self.keys.len() >= capacity && !self.keys.contains_key(&name) {
            let oldest = self.keys.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| *name);
            oldest.and_then(|name| self.keys.remove(&name));
        }
        self.keys.insert(name, (held, self.clock));
    }
}

/// Takes a flight off the list, also when its provider call panics: the key is cached before that, so that nobody
/// finds neither.
struct Landing<'a, Id> {
    cache: &'a KeyCache<Id>,
    flight: &'a Arc<Flight<Held>>,
}

impl<Id> Drop for Landing<'_, Id> {
    fn drop(&mut self) {
        self.cache.state.lock().flights.retain(|f| !Arc::ptr_eq(&f.flight, self.flight));
        self.flight.land(Err(abandoned()));
    }
}

/// What waiters get if the thread that they wait for died.
pub fn abandoned() -> KeyError {
    KeyError::Unreachable { key: "in use".into(), reason: "the call was abandoned".into() }
}

/// One result that several threads wait for.
pub struct Flight<T> {
    outcome: Mutex<Option<Result<T, KeyError>>>,
    landed: Condvar,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self { outcome: Mutex::new(None), landed: Condvar::new() }
    }
}

impl<T: Clone> Flight<T> {
    /// The first outcome stays.
    pub fn land(&self, outcome: Result<T, KeyError>) {
        self.outcome.lock().get_or_insert(outcome);
        self.landed.notify_all();
    }

    pub fn wait(&self) -> Result<T, KeyError> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Some(Ok(value)) => return Ok(value.clone()),
                Some(Err(e)) => return Err(e.repeat()),
                None => self.landed.wait(&mut outcome),
            }
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod model;
#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 8;

    fn slot(blob: u8, commitment: u8) -> CmkSlot {
        CmkSlot { provider: "test".into(), key_ref: "key".into(), blob: vec![blob], commitment: [commitment; 32] }
    }
    fn held(n: u8, via: usize) -> Held {
        let key = Arc::new(Secret32::from_bytes([n; 32]));
        Held { key, source: KeySource::new(via, 0), slots: Arc::new([]), since: Instant::now() }
    }

    #[test]
    fn keys_are_told_apart_by_id_and_commitment() {
        let cache = KeyCache::<u8>::new(CAPACITY);
        cache.insert(&1, &[10; 32], held(1, 0));
        cache.insert(&1, &[20; 32], held(2, 0));
        let found = |commitment: u8| cache.get(&1, &[commitment; 32]).map(|h| h.key.expose()[0]);
        assert_eq!((found(10), found(20), found(30)), (Some(1), Some(2), None));
        assert!(cache.get(&2, &[10; 32]).is_none());
    }

    #[test]
    fn the_least_recently_used_key_goes_first() {
        let cache = KeyCache::<usize>::new(CAPACITY);
        for n in 0..CAPACITY {
            cache.insert(&n, &[0; 32], held(0, 0));
        }
        assert!(cache.get(&0, &[0; 32]).is_some());
        cache.insert(&CAPACITY, &[0; 32], held(0, 0));
        assert!(cache.get(&0, &[0; 32]).is_some());
        assert!(cache.get(&1, &[0; 32]).is_none());
        assert_eq!(cache.all().len(), CAPACITY);
    }

    #[test]
    fn lost_keys_go_and_the_others_stay() {
        let cache = KeyCache::<u8>::new(CAPACITY);
        let moved = held(3, 0);
        moved.source.now_via(1);
        for (id, held) in [(1, held(1, 0)), (2, held(2, 1)), (3, moved)] {
            cache.insert(&id, &[0; 32], held);
        }
        cache.drop_keys(|source| source.via() == 0);
        let mut left: Vec<u8> = cache.all().into_iter().map(|((id, _), _)| id).collect();
        left.sort_unstable();
        assert_eq!(left, [2, 3]);
    }

    #[test]
    fn a_failure_is_remembered_for_its_blob_alone() {
        let cache = KeyCache::<u8>::new(CAPACITY);
        let error = KeyError::BadBlob { key: "k".into(), reason: "r".into() };
        cache.note_failure(&1, &slot(1, 7), &error);
        assert!(matches!(cache.recent_failure(&1, &slot(1, 7)), Some(KeyError::BadBlob { .. })));
        assert!(cache.recent_failure(&1, &slot(2, 7)).is_none());
        assert!(cache.recent_failure(&2, &slot(1, 7)).is_none());
        cache.drop_keys(|_| false);
        assert!(cache.recent_failure(&1, &slot(1, 7)).is_none());
    }

    #[test]
    fn a_damaged_copy_of_a_blob_does_not_fail_those_with_a_good_one() {
        let cache = KeyCache::<u8>::new(CAPACITY);
        let bad = || Err(KeyError::BadBlob { key: "k".into(), reason: "r".into() });
        // The good one opens while the bad one is in flight.
        let outcome = cache.get_or_unwrap(&1, &slot(0, 7), || {
            let good = cache.get_or_unwrap(&1, &slot(1, 7), || Ok(held(9, 0)));
            assert_eq!(good.unwrap().key.expose(), &[9; 32]);
            bad()
        });
        assert!(matches!(outcome, Err(KeyError::BadBlob { .. })));
        assert!(cache.state.lock().flights.is_empty());
    }

    #[test]
    fn a_panicking_call_leaves_no_flight_behind() {
        let cache = KeyCache::<u8>::new(CAPACITY);
        let calls = AtomicUsize::new(0);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cache.get_or_unwrap(&1, &slot(0, 7), || panic!("provider"))
        }));
        assert!(panicked.is_err());
        let second = cache.get_or_unwrap(&1, &slot(0, 7), || {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(held(9, 0))
        });
        assert_eq!((second.is_ok(), calls.into_inner()), (true, 1));
    }
}
