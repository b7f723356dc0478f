//! What a check saw, in numbers. Bounded, whatever headers claim.

use std::collections::{BTreeMap, HashMap};

use super::problem::{Code, Severity};
use crate::format::KeyRef;

/// CMKs that are counted by name; headers that name more are counted together.
const CMKS_MAX: usize = 1024;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Names of regular files; one with several names counts once in everything below.
    pub files: u64,
    pub empty_files: u64,
    pub directories: u64,
    pub symlinks: u64,
    /// FIFOs, sockets and devices.
    pub special: u64,
    pub overflow_objects: u64,
    pub quarantined: u64,
    /// Directories that stand in another one than at their making: an ordinary rename does that.
    pub moved_directories: u64,
    pub xattrs: u64,
    /// Plaintext bytes of the files.
    pub bytes: u64,
    /// Blocks that authenticated.
    pub blocks: u64,
    /// Legal holes.
    pub hole_blocks: u64,
    /// By CMK: how many files' headers carry a copy of the key under it, and how many lack one although the volume has it.
    pub cmks: HashMap<KeyRef, CmkCount>,
    pub cmks_left_out: u64,
    /// Findings by code.
    pub codes: BTreeMap<&'static str, u64>,
    pub damage: u64,
    pub unchecked: u64,
    pub leftovers: u64,
    pub warnings: u64,
    /// Of the unchecked: for want of a key.
    pub keys: u64,
    pub mended: u64,
    pub mendable: u64,
    pub not_mended: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CmkCount {
    pub files: u64,
    pub missing: u64,
    /// Of `files`: those whose copy of the key could not be asked for, since the CMK cannot be reached or refuses.
    pub unproven: u64,
}

impl Counts {
    pub fn problem(&mut self, code: &Code) {
        *self.codes.entry(code.word).or_default() += 1;
        match code.severity {
            Severity::Damage => self.damage += 1,
            Severity::Unchecked => self.unchecked += 1,
            Severity::Leftover => self.leftovers += 1,
            Severity::Warning => self.warnings += 1,
        }
    }

    pub fn cmk(&mut self, key: &KeyRef, count: impl FnOnce(&mut CmkCount)) {
        if let Some(known) = self.cmks.get_mut(key) {
            count(known);
        } else if self.cmks.len() < CMKS_MAX {
            count(self.cmks.entry(key.clone()).or_default());
        } else {
            self.cmks_left_out += 1;
        }
    }
}
