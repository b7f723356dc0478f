//! A bounded set of block ranges: what this mount has written since the floor was last raised. Knows no files.

use std::ops::Range;

/// More separate ranges than this count as "scattered": the set then only says that it does not know.
const LIMIT: usize = 64;

/// Disjoint, sorted, non-adjacent ranges of block indices.
#[derive(Debug, Default)]
pub struct BlockRanges {
    ranges: Vec<Range<u64>>,
    scattered: bool,
}

impl BlockRanges {
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.scattered = false;
    }

    pub fn insert(&mut self, new: Range<u64>) {
        if new.is_empty() || self.scattered {
            return;
        }
        let from = self.ranges.partition_point(|r| r.end < new.start);
        let to = self.ranges.partition_point(|r| r.start <= new.end);
        if from == to {
            self.ranges.insert(from, new);
        } else {
            let start = self.ranges[from].start.min(new.start);
            let end = self.ranges[to - 1].end.max(new.end);
            self.ranges.splice(from..to, std::iter::once(start..end));
        }
        if self.ranges.len() > LIMIT {
            self.ranges.clear();
            self.scattered = true;
        }
    }

    pub fn remove(&mut self, gone: Range<u64>) {
        let mut kept = Vec::with_capacity(self.ranges.len() + 1);
        for r in self.ranges.drain(..) {
            let left = r.start..r.end.min(gone.start);
            let right = r.start.max(gone.end)..r.end;
            kept.extend([left, right].into_iter().filter(|r| !r.is_empty()));
        }
        self.ranges = kept;
    }

    /// Whether every block of `wanted` is known to be in the set.
    pub fn covers(&self, wanted: Range<u64>) -> bool {
        wanted.is_empty()
            || (!self.scattered && self.ranges.iter().any(|r| r.start <= wanted.start && wanted.end <= r.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_blocks(ops in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..8), 1..40)) {
            let mut ranges = BlockRanges::default();
            let mut model = std::collections::BTreeSet::new();
            for (add, start, len) in ops {
                if add {
                    ranges.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    ranges.remove(start..start + len);
                    model.retain(|b| !(start..start + len).contains(b));
                }
                for a in 0..48 {
                    for b in a..48 {
                        prop_assert_eq!(ranges.covers(a..b), (a..b).all(|x| model.contains(&x)));
                    }
                }
            }
        }
    }

    #[test]
    fn scattered_writes_are_never_called_covered() {
        let mut ranges = BlockRanges::default();
        for i in 0..200 {
            ranges.insert(i * 2..i * 2 + 1);
        }
        assert!(!ranges.covers(0..1));
        ranges.clear();
        ranges.insert(0..1);
        assert!(ranges.covers(0..1));
    }
}
