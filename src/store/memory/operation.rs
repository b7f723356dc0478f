//! What changes a tree, as plain data: recorded, counted, failed and replayed one by one. Knows no state.

use crate::store::{Kind, RenameMode, SetTime, Timestamp};

pub type Name = Box<[u8]>;

/// One change, or one barrier that makes earlier changes durable. Objects are named by inode number; creating operations
/// carry the number that the new object gets, so that a replay gives it the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Create {
        dir: u64,
        name: Name,
        ino: u64,
        object: NewObject,
    },
    Link {
        ino: u64,
        dir: u64,
        name: Name,
    },
    Unlink {
        dir: u64,
        name: Name,
    },
    Rmdir {
        dir: u64,
        name: Name,
    },
    Rename {
        from: (u64, Name),
        to: (u64, Name),
        mode: RenameMode,
    },
    Write {
        ino: u64,
        offset: u64,
        data: Vec<u8>,
    },
    SetLen {
        ino: u64,
        len: u64,
    },
    PunchHole {
        ino: u64,
        offset: u64,
        len: u64,
    },
    Allocate {
        ino: u64,
        offset: u64,
        len: u64,
    },
    Chmod {
        ino: u64,
        mode: u32,
    },
    Chown {
        ino: u64,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    SetTimes {
        ino: u64,
        atime: SetTime,
        mtime: SetTime,
    },
    /// Through an open file: needs no name.
    SetMtime {
        ino: u64,
        mtime: Timestamp,
    },
    SetXattr {
        ino: u64,
        name: Name,
        value: Box<[u8]>,
        flags: i32,
    },
    RemoveXattr {
        ino: u64,
        name: Name,
    },
    SyncData {
        ino: u64,
    },
    SyncAll {
        ino: u64,
    },
    SyncDir {
        ino: u64,
    },
    SyncFs,
}

/// What `Create` makes. `mode` is what the creator asked for less its umask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewObject {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Of a symbolic link.
    pub target: Box<[u8]>,
}

impl Operation {
    /// Whether this is a barrier: it changes nothing that can be seen before a crash.
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::SyncData { .. } | Self::SyncAll { .. } | Self::SyncDir { .. } | Self::SyncFs)
    }
}
