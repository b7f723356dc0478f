//! What a thread that must not wait asks those who may to fetch. Holds no secrets.

pub use crate::format::KeyGroup;
use crate::format::{BranchId, FileId, header::CmkSlot};

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
