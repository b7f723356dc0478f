//! Every test that needs a real mount, in one binary: linked once, run in parallel, one module a theme.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod check_repair;
mod content;
mod control;
mod directory_cmk;
mod durability;
mod full;
mod hostile;
mod lifecycle;
mod links;
mod locks;
mod metadata;
mod mmap;
mod multi_user;
mod names;
mod random_ops;
mod recovery;
mod rename;
mod secrecy;
mod secrecy_keys;
mod secrecy_logs;
mod secrecy_memory;
mod secrecy_search;
mod single_user;
mod sparse;
mod tamper_smoke;
mod traps;
mod xattr_acl;
