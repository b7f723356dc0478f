//! The one fuzzing program: the variable FUZZ_TARGET says which of `envelopefs::fuzzing::TARGETS` gets the input. One program,
//! because each would contain the whole library again.
#![no_main]

use std::sync::OnceLock;

use envelopefs::fuzzing::{Target, find};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET=NAME says what is fuzzed");
        let target = find(&name).unwrap_or_else(|| panic!("no fuzz target {name}"));
        let _ = TARGET.set(target);
    },
    |input: &[u8]| (TARGET.get().expect("set above").run)(input)
);
