//! What a thread that must not wait asks those who may to fetch. Holds no secrets.

use std::sync::Arc;

use super::KeyRef;
use crate::format::{BranchId, FileId, header::CmkSlot};

/// The CMKs that new files of a directory hang on, where they are not the volume's own.
pub type KeyGroup = Option<Arc<[KeyRef]>>;

/// A key that a remote provider has to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One of these slots, all of the same branch.
    Branch { branch: BranchId, slots: Vec<CmkSlot> },
    /// One of these slots, all of the same file (per-file mode).
    File { file: FileId, slots: Vec<CmkSlot> },
    /// A branch for new files.
    NewBranch(KeyGroup),
    /// A key for one new file (per-file mode).
    NewFile(KeyGroup),
}
