//! The library behind the `envelopefs` command: every module, from system calls up to the mount.
//!
//! Imports point strictly downward in this list (`ARCHITECTURE.md` explains the rooms, a test holds the order).

pub mod check;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod file;
pub mod format;
pub mod fs;
pub mod fuse;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod keys;
#[cfg(feature = "kms")]
pub mod kms;
pub mod mount;
pub mod store;
pub mod sync;
pub mod sys;
