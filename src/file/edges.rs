//! Striped locks over the blocks of one file, each with the last partial block that was written under it.
//! Owns who may rewrite a block; knows neither keys nor offsets.
//!
//! Invariant: whoever writes a block to the backing file holds its stripe; stripes are taken in ascending order.

use zeroize::Zeroizing;

use crate::format::geometry::PLAIN;
use crate::sync::{Mutex, MutexGuard};

const STRIPES: usize = 8;

struct Cached {
    block: u64,
    plain: Box<Zeroizing<[u8; PLAIN]>>,
}

/// The stripes of one file.
#[derive(Default)]
pub struct Edges {
    stripes: [Mutex<Option<Cached>>; STRIPES],
}

/// Held stripes of a run of blocks.
pub struct EdgeGuard<'a> {
    held: [Option<MutexGuard<'a, Option<Cached>>>; STRIPES],
}

impl Edges {
    /// Locks every stripe that a block of `first..=last` falls on.
    pub fn lock(&self, first: u64, last: u64) -> EdgeGuard<'_> {
        let count = (last - first).saturating_add(1).min(STRIPES as u64);
        let mut wanted = [false; STRIPES];
        for block in first..first + count {
            wanted[stripe(block)] = true;
        }
        EdgeGuard { held: std::array::from_fn(|i| wanted[i].then(|| self.stripes[i].lock())) }
    }

    /// Forgets every cached block; the caller excludes writers.
    pub fn clear(&self) {
        for s in &self.stripes {
            *s.lock() = None;
        }
    }
}

impl EdgeGuard<'_> {
    /// The decrypted content of `block` as it stands in the backing file, if it is cached.
    pub fn get(&self, block: u64) -> Option<&[u8; PLAIN]> {
        let cached = self.held[stripe(block)].as_ref()?.as_ref()?;
        (cached.block == block).then_some(&**cached.plain)
    }

    pub fn put(&mut self, block: u64, content: &[u8; PLAIN]) {
        let Some(slot) = self.held[stripe(block)].as_mut() else { return };
        match slot.as_mut() {
            Some(cached) => {
                cached.block = block;
                cached.plain.copy_from_slice(content);
            }
            None => **slot = Some(Cached { block, plain: Box::new(Zeroizing::new(*content)) }),
        }
    }

    /// Forgets what is cached of `first..=last` but the blocks of `kept`.
    pub fn forget_whole(&mut self, first: u64, last: u64, kept: impl Iterator<Item = u64> + Clone) {
        for slot in self.held.iter_mut().flatten() {
            let stale = |c: &Cached| (first..=last).contains(&c.block) && !kept.clone().any(|k| k == c.block);
            if slot.as_ref().is_some_and(stale) {
                **slot = None;
            }
        }
    }

    /// Forgets what is cached of `first..=last`.
    pub fn forget(&mut self, first: u64, last: u64) {
        for slot in self.held.iter_mut().flatten() {
            if slot.as_ref().is_some_and(|c| (first..=last).contains(&c.block)) {
                **slot = None;
            }
        }
    }
}

fn stripe(block: u64) -> usize {
    (block % STRIPES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_only_under_its_own_number() {
        let edges = Edges::default();
        let mut g = edges.lock(3, 4);
        g.put(3, &[7; PLAIN]);
        assert!(g.get(3).is_some() && g.get(4).is_none());
        drop(g);
        let mut g = edges.lock(11, 11);
        assert!(g.get(11).is_none(), "block 11 shares the stripe of block 3, not its content");
        g.forget(11, 11);
        drop(g);
        assert!(edges.lock(3, 3).get(3).is_some());
        edges.clear();
        assert!(edges.lock(3, 3).get(3).is_none());
    }

    #[test]
    fn a_long_run_takes_every_stripe_once() {
        let edges = Edges::default();
        let g = edges.lock(5, 1 << 40);
        assert!(g.held.iter().all(|s| s.is_some()));
    }
}
