//! Striped locks over the blocks of one file, and the last partial blocks that were written under them.
//! Owns who may rewrite a block; knows neither keys nor offsets.
//!
//! Invariant: whoever writes a block to the backing file holds its stripe; stripes are taken in ascending order.

use zeroize::Zeroizing;

use crate::format::geometry::PLAIN;
use crate::sync::{Mutex, MutexGuard};

/// Writers of different blocks of one file rarely meet on a stripe.
const STRIPES: usize = 64;
/// Partial blocks whose plaintext a file keeps at most.
const CACHED: usize = 8;

struct Cached {
    block: u64,
    plain: Box<Zeroizing<[u8; PLAIN]>>,
}

/// The stripes of one file.
pub struct Edges {
    stripes: [Mutex<()>; STRIPES],
    /// A slot's lock is held for a moment, under a stripe.
    cached: [Mutex<Option<Cached>>; CACHED],
}

impl Default for Edges {
    fn default() -> Self {
        Self { stripes: std::array::from_fn(|_| Mutex::new(())), cached: std::array::from_fn(|_| Mutex::new(None)) }
    }
}

/// Held stripes of a run of blocks.
pub struct EdgeGuard<'a> {
    edges: &'a Edges,
    _held: [Option<MutexGuard<'a, ()>>; STRIPES],
}

impl Edges {
    /// Locks every stripe that a block of `first..=last` falls on.
    pub fn lock(&self, first: u64, last: u64) -> EdgeGuard<'_> {
        let count = (last - first).saturating_add(1).min(STRIPES as u64);
        let mut wanted = [false; STRIPES];
        for block in first..first + count {
            wanted[stripe(block)] = true;
        }
        EdgeGuard { edges: self, _held: std::array::from_fn(|i| wanted[i].then(|| self.stripes[i].lock())) }
    }

    /// Forgets every cached block; the caller excludes writers.
    pub fn clear(&self) {
        self.forget_where(|_| true);
    }

    fn slot(&self, block: u64) -> MutexGuard<'_, Option<Cached>> {
        self.cached[(block % CACHED as u64) as usize].lock()
    }

    fn forget_where(&self, stale: impl Fn(u64) -> bool) {
        for slot in &self.cached {
            let mut slot = slot.lock();
            if slot.as_ref().is_some_and(|cached| stale(cached.block)) {
                *slot = None;
            }
        }
    }
}

/// Every block named is one whose stripe is held.
impl EdgeGuard<'_> {
    /// Copies the plaintext of `block` as it stands in the backing file, if it is cached; whoever writes a block that shares
    /// the slot may drive it out.
    pub fn get(&self, block: u64, out: &mut [u8; PLAIN]) -> bool {
        match self.edges.slot(block).as_ref() {
            Some(cached) if cached.block == block => {
                *out = **cached.plain;
                true
            }
            _ => false,
        }
    }

    pub fn put(&self, block: u64, content: &[u8; PLAIN]) {
        let mut slot = self.edges.slot(block);
        match slot.as_mut() {
            Some(cached) => {
                cached.block = block;
                cached.plain.copy_from_slice(content);
            }
            None => *slot = Some(Cached { block, plain: Box::new(Zeroizing::new(*content)) }),
        }
    }

    /// Forgets what is cached of `first..=last` but the blocks of `kept`.
    pub fn forget_whole(&self, first: u64, last: u64, kept: impl Iterator<Item = u64> + Clone) {
        self.edges.forget_where(|block| (first..=last).contains(&block) && !kept.clone().any(|k| k == block));
    }

    /// Forgets what is cached of `first..=last`.
    pub fn forget(&self, first: u64, last: u64) {
        self.edges.forget_where(|block| (first..=last).contains(&block));
    }
}

fn stripe(block: u64) -> usize {
    (block % STRIPES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(edges: &Edges, block: u64) -> Option<u8> {
        let mut out = [0; PLAIN];
        edges.lock(block, block).get(block, &mut out).then(|| out[0])
    }

    #[test]
    fn a_block_is_found_only_under_its_own_number() {
        let edges = Edges::default();
        edges.lock(3, 4).put(3, &[7; PLAIN]);
        assert_eq!((cached(&edges, 3), cached(&edges, 4)), (Some(7), None));
        let (same_slot, same_stripe) = (3 + CACHED as u64, 3 + STRIPES as u64);
        assert_eq!((cached(&edges, same_slot), cached(&edges, same_stripe)), (None, None));
        edges.lock(same_slot, same_slot).forget(same_slot, same_slot);
        assert_eq!(cached(&edges, 3), Some(7));
        edges.lock(same_slot, same_slot).put(same_slot, &[8; PLAIN]);
        assert_eq!((cached(&edges, 3), cached(&edges, same_slot)), (None, Some(8)), "driven out");
        edges.clear();
        assert_eq!(cached(&edges, same_slot), None);
    }

    #[test]
    fn a_long_run_takes_every_stripe_once() {
        let edges = Edges::default();
        let g = edges.lock(5, 1 << 40);
        assert!(g._held.iter().all(|s| s.is_some()));
    }

    #[test]
    fn a_run_forgets_what_it_covers_whole() {
        let edges = Edges::default();
        let guard = edges.lock(2, 6);
        for block in 2..=6 {
            guard.put(block, &[block as u8; PLAIN]);
        }
        guard.forget_whole(2, 5, [2, 5].into_iter());
        drop(guard);
        assert_eq!(
            (2..=6).map(|block| cached(&edges, block)).collect::<Vec<_>>(),
            [Some(2), None, None, Some(5), Some(6)]
        );
    }
}
