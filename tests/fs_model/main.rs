//! Random operations on a tree, against a plain reference in memory. Knows the public interface of `fs` only.

mod operations;
mod reference;
mod volume;
mod world;

use envelopefs::store::Store;
use proptest::prelude::*;

use operations::{Op, ops};
use volume::Backing;
use world::World;

fn run<S: Store>(backing: Backing<S>, plain_names: bool, ops: &[Op]) {
    let mut world = World::new(backing, plain_names);
    for op in ops {
        world.apply(op);
    }
    world.compare();
    world.remount(true);
    world.compare();
    world.check_leftovers();
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn behaves_like_the_reference(ops in prop::collection::vec(ops(), 1..120)) {
        run(Backing::memory(), false, &ops);
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn behaves_like_the_reference_with_plain_names(ops in prop::collection::vec(ops(), 1..120)) {
        run(Backing::memory(), true, &ops);
    }

    // A real file system uses inode numbers again.
    #[test]
    fn behaves_like_the_reference_on_disk(ops in prop::collection::vec(ops(), 1..120)) {
        let dir = tempfile::tempdir().expect("a scratch directory");
        run(Backing::disk(dir.path()), false, &ops);
    }
}
