//! Which CMKs a file's keys will come from when it gets its first header: those of the directory it stands in at that time.
//! Knows groups of CMKs; no directories, no names.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::keys::wanted::KeyGroup;

/// The group of one directory, shared with the files in it, so that they follow a change even while they are open.
#[derive(Debug, Default)]
pub struct DirectoryGroup(Mutex<KeyGroup>);

impl DirectoryGroup {
    pub fn get(&self) -> KeyGroup {
        self.0.lock().clone()
    }
    pub fn set(&self, group: KeyGroup) {
        *self.0.lock() = group;
    }
}

/// What one file inherits: the group of the directory in which it was met last.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<Arc<DirectoryGroup>>);

impl Inherited {
    pub fn from(directory: Arc<DirectoryGroup>) -> Self {
        Self(Mutex::new(directory))
    }
    pub fn directory(&self) -> Arc<DirectoryGroup> {
        self.0.lock().clone()
    }
    pub fn follow(&self, directory: Arc<DirectoryGroup>) {
        *self.0.lock() = directory;
    }
    pub fn group(&self) -> KeyGroup {
        self.directory().get()
    }
}
