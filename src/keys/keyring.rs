//! The key tree of one volume at run time: CMKs → branch keys → file keys, with the branch cache.
//! The file engine asks it for keys at create and first open only; no I/O of data comes here.

use std::sync::Arc;

use super::{CmkProvider, KeyError};
use crate::crypto::{file_keys::FileKeys, secret::Secret32};
use crate::format::{
    FileId, VolumeId,
    header::{CmkSlot, FileHeader, Unverified, WrappedDek},
    volume::{BranchRecord, KeyMode},
};

/// Identity and keys of a file that is about to get its first header.
pub struct NewFileKeys {
    pub file_id: FileId,
    pub keys: FileKeys,
    pub wrapped_dek: Option<WrappedDek>,
    pub slots: Vec<CmkSlot>,
}

impl NewFileKeys {
    /// A first header: generation 1, floor 0, no flags.
    pub fn header(&self, volume_id: VolumeId) -> FileHeader {
        let _ = volume_id;
        todo!()
    }
}

/// How branch keys are made and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPolicy {
    pub mode: KeyMode,
    /// Seconds.
    pub branch_max_age: u64,
    pub branch_max_files: u64,
}

pub struct Keyring {
    _private: (),
}

impl Keyring {
    /// `origin`: the volume's origin key, `None` when the volume file is lost (origin is then unverified).
    /// `branch`: the branch in use when the volume was last written; unwrapped on first need.
    pub fn new(
        volume_id: VolumeId,
        cmks: Vec<Arc<dyn CmkProvider>>,
        policy: KeyPolicy,
        origin: Option<Secret32>,
        branch: Option<BranchRecord>,
    ) -> Self {
        let _ = (volume_id, cmks, policy, origin, branch);
        todo!()
    }
    pub fn volume_id(&self) -> VolumeId {
        todo!()
    }
    pub fn origin(&self) -> Option<&Secret32> {
        todo!()
    }
    /// Fresh identity and keys; no provider call while the current branch lasts.
    pub fn create(&self) -> Result<NewFileKeys, KeyError> {
        todo!()
    }
    /// The keys that a parsed header leads to: key references are checked against the configured CMKs before any call,
    /// each slot's commitment after it; single-flight per branch. A header of another volume is `BadBlob`.
    pub fn open(&self, header: &Unverified) -> Result<FileKeys, KeyError> {
        let _ = header;
        todo!()
    }
    /// The branch that new files hang on, for the volume file; `None` before the first one was needed.
    pub fn current_branch(&self) -> Option<BranchRecord> {
        todo!()
    }
    /// Called whenever a new branch came into being, so that the owner can persist it before files depend on it.
    pub fn on_new_branch(&self, hook: Box<dyn Fn(&BranchRecord) + Send + Sync>) {
        let _ = hook;
        todo!()
    }
}
