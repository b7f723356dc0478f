//! The library behind the `envelopefs` command: every module, from system calls up to the mount.
//!
//! Imports point strictly downward in this list (`ARCHITECTURE.md` explains the rooms, a test holds the order).

pub mod sys;
pub mod crypto;
pub mod store;
pub mod format;
pub mod keys;
pub mod file;
pub mod fs;
pub mod fuse;
pub mod config;
pub mod mount;
pub mod cli;
