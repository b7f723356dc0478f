//! Branch keys in memory: a bounded cache, and one provider call for all who wait for the same key. Calls no provider
//! itself and holds no lock while one is called.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Condvar, Mutex};

use super::KeyError;
use crate::crypto::secret::Secret32;
use crate::format::{BranchId, header::CmkSlot};

/// Branch keys kept at most: a volume has one a month or per million files, so only forged headers reach it.
const CACHE_MAX: usize = 1024;

/// What a branch key is known by: its id and its commitment. A forged header may claim the id of another branch, but
/// not with the commitment of a key that it does not have; so neither can stand in for the other.
type Name = (BranchId, [u8; 32]);

#[derive(Default)]
pub struct Branches {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: HashMap<Name, Cached>,
    clock: u64,
    flights: Vec<InFlight>,
}

struct Cached {
    key: Arc<Secret32>,
    used: u64,
}

/// The slot is part of the name: blobs are not covered by the header's MAC, and a damaged copy must not fail those who
/// hold a good one.
struct InFlight {
    branch: BranchId,
    slot: CmkSlot,
    flight: Arc<Flight<Arc<Secret32>>>,
}

impl Branches {
    pub fn get(&self, branch: &BranchId, commitment: &[u8; 32]) -> Option<Arc<Secret32>> {
        self.state.lock().get(&(*branch, *commitment))
    }

    /// `key` has been checked against `commitment`.
    pub fn insert(&self, branch: &BranchId, commitment: &[u8; 32], key: Arc<Secret32>) {
        self.state.lock().insert((*branch, *commitment), key);
    }

    /// The cached key, or what `unwrap` gives for `slot`: called once, however many threads ask at the same time.
    /// `unwrap` checks the slot's commitment.
    pub fn get_or_unwrap(
        &self,
        branch: &BranchId,
        slot: &CmkSlot,
        unwrap: impl FnOnce() -> Result<Secret32, KeyError>,
    ) -> Result<Arc<Secret32>, KeyError> {
        let flight = {
            let mut state = self.state.lock();
            if let Some(key) = state.get(&(*branch, slot.commitment)) {
                return Ok(key);
            }
            let same = state.flights.iter().find(|f| f.branch == *branch && f.slot == *slot);
            if let Some(waiting) = same.map(|f| f.flight.clone()) {
                drop(state);
                return waiting.wait();
            }
            let flight = Arc::new(Flight::default());
            state.flights.push(InFlight { branch: *branch, slot: slot.clone(), flight: flight.clone() });
            flight
        };
        let landing = Landing { branches: self, flight: &flight };
        let outcome = unwrap().map(Arc::new);
        if let Ok(key) = &outcome {
            self.insert(branch, &slot.commitment, key.clone());
        }
        let answer = match &outcome {
            Ok(key) => Ok(key.clone()),
            Err(e) => Err(e.repeat()),
        };
        flight.land(answer);
        drop(landing);
        outcome
    }
}

impl State {
    fn get(&mut self, name: &Name) -> Option<Arc<Secret32>> {
        self.clock += 1;
        let cached = self.keys.get_mut(name)?;
        cached.used = self.clock;
        Some(cached.key.clone())
    }

    fn insert(&mut self, name: Name, key: Arc<Secret32>) {
        self.clock += 1;
        if self.keys.len() >= CACHE_MAX && !self.keys.contains_key(&name) {
            let oldest = self.keys.iter().min_by_key(|(_, cached)| cached.used).map(|(name, _)| *name);
            oldest.and_then(|name| self.keys.remove(&name));
        }
        self.keys.insert(name, Cached { key, used: self.clock });
    }
}

/// Takes a flight off the list, also when its provider call panics: the key is cached before that, so that nobody
/// finds neither.
struct Landing<'a> {
    branches: &'a Branches,
    flight: &'a Arc<Flight<Arc<Secret32>>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.branches.state.lock().flights.retain(|f| !Arc::ptr_eq(&f.flight, self.flight));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn slot(blob: u8, commitment: u8) -> CmkSlot {
        CmkSlot { provider: "test".into(), key_ref: "key".into(), blob: vec![blob], commitment: [commitment; 32] }
    }

    #[test]
    fn keys_are_told_apart_by_id_and_commitment() {
        let branches = Branches::default();
        let key = |n| Arc::new(Secret32::from_bytes([n; 32]));
        branches.insert(&[1; 16], &[10; 32], key(1));
        branches.insert(&[1; 16], &[20; 32], key(2));
        let found = |commitment: u8| branches.get(&[1; 16], &[commitment; 32]).map(|k| k.expose()[0]);
        assert_eq!((found(10), found(20), found(30)), (Some(1), Some(2), None));
        assert!(branches.get(&[2; 16], &[10; 32]).is_none());
    }

    #[test]
    fn the_least_recently_used_key_goes_first() {
        let branches = Branches::default();
        let name = |n: usize| ((n as u128).to_le_bytes(), [0; 32]);
        for n in 0..CACHE_MAX {
            branches.insert(&name(n).0, &name(n).1, Arc::new(Secret32::from_bytes([0; 32])));
        }
        assert!(branches.get(&name(0).0, &[0; 32]).is_some());
        branches.insert(&name(CACHE_MAX).0, &[0; 32], Arc::new(Secret32::from_bytes([0; 32])));
        assert!(branches.get(&name(0).0, &[0; 32]).is_some());
        assert!(branches.get(&name(1).0, &[0; 32]).is_none());
        assert_eq!(branches.state.lock().keys.len(), CACHE_MAX);
    }

    #[test]
    fn a_damaged_copy_of_a_blob_does_not_fail_those_with_a_good_one() {
        let branches = Branches::default();
        let bad = || Err(KeyError::BadBlob { key: "k".into(), reason: "r".into() });
        // The good one opens while the bad one is in flight.
        let outcome = branches.get_or_unwrap(&[1; 16], &slot(0, 7), || {
            let good = branches.get_or_unwrap(&[1; 16], &slot(1, 7), || Ok(Secret32::from_bytes([9; 32])));
            assert_eq!(good.unwrap().expose(), &[9; 32]);
            bad()
        });
        assert!(matches!(outcome, Err(KeyError::BadBlob { .. })));
        assert!(branches.state.lock().flights.is_empty());
    }

    #[test]
    fn a_panicking_call_leaves_no_flight_behind() {
        let branches = Branches::default();
        let calls = AtomicUsize::new(0);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            branches.get_or_unwrap(&[1; 16], &slot(0, 7), || panic!("provider"))
        }));
        assert!(panicked.is_err());
        let second = branches.get_or_unwrap(&[1; 16], &slot(0, 7), || {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(Secret32::from_bytes([9; 32]))
        });
        assert_eq!((second.is_ok(), calls.into_inner()), (true, 1));
    }
}
