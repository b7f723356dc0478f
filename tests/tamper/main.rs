//! The tamper contract: the numbered corpus on real mounts, forged and fuzzed headers, a differential fuzz of whole trees,
//! and vectors frozen in tests/hostile. The corpus is the table of doc/FORMAT.md, "Tamper table".
//!
//! `ENVELOPEFS_TAMPER_SEED`, `ENVELOPEFS_TAMPER_ROUNDS`: a certain run of the fuzz, or a longer one (tests/suites/tamper.sh).

// The harness is shared with other test binaries; each needs its part.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;

mod attack;
mod checked;
mod corpus_blocks;
mod corpus_headers;
mod corpus_tree;
mod forge;
mod frozen;
mod library;
mod mounted_fuzz;
mod oracle;
mod reported;
mod scene;
mod world;
