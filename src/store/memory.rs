//! A store in memory for tests: fails on demand, counts and records what changes it, and yields crash images.
//! Behaves as a Linux file system does for a privileged caller; checks no permissions and knows no encryption.

mod content;
mod operation;
mod tree;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use self::content::PAGE;
use self::tree::{Body, ROOT, Tree};
use super::{
    Access, BackingFile, Creator, Entry, Kind, Place, RenameMode, SetTime, Stat, StatFs, Store, Timestamp, check_name,
};

pub use self::operation::{NewObject, Operation};

/// A tree shared by all clones of this value, by its handles and by its files.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    root: MemoryHandle,
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    tree: Tree,
    operations: u64,
    failure: Option<Failure>,
    /// Bytes that may still be written.
    budget: Option<u64>,
    recording: Option<Vec<Operation>>,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    /// Operations that still succeed.
    after: u64,
    errno: i32,
    /// Whether all later operations fail too.
    lasting: bool,
}

/// A pinned object.
#[derive(Debug)]
pub struct MemoryHandle {
    ino: u64,
    shared: Arc<Shared>,
}

/// An open file.
#[derive(Debug)]
pub struct MemoryFile {
    object: MemoryHandle,
    writable: bool,
}

impl Shared {
    /// The only way to change the tree. `describe` resolves names under the same lock; what it cannot resolve is not
    /// counted. Returns the number of the object that a `Create` made.
    fn perform(
        self: &Arc<Self>,
        describe: impl FnOnce(&Tree) -> io::Result<Operation>,
    ) -> io::Result<Option<MemoryHandle>> {
        let mut state = self.0.lock();
        let operation = describe(&state.tree)?;
        state.perform(operation)?.map(|ino| self.pin(&mut state, ino)).transpose()
    }

    fn pin(self: &Arc<Self>, state: &mut State, ino: u64) -> io::Result<MemoryHandle> {
        state.tree.inode_mut(ino)?.pins += 1;
        Ok(MemoryHandle { ino, shared: self.clone() })
    }

    fn with_tree(tree: Tree) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { tree, operations: 0, failure: None, budget: None, recording: None })))
    }
}

impl State {
    fn perform(&mut self, mut operation: Operation) -> io::Result<Option<u64>> {
        self.operations += 1;
        if let Some(failure) = &mut self.failure {
            if failure.after == 0 {
                let errno = failure.errno;
                if !failure.lasting {
                    self.failure = None;
                }
                return Err(io::Error::from_raw_os_error(errno));
            }
            failure.after -= 1;
        }
        let mut shortened = false;
        if let (Operation::Write { offset, data, .. }, Some(budget)) = (&mut operation, &mut self.budget) {
            if data.len() as u64 > *budget {
                shortened = true;
                let end = offset.saturating_add(*budget) / PAGE * PAGE;
                data.truncate(end.saturating_sub(*offset) as usize);
            }
            *budget -= data.len() as u64;
        }
        if !(shortened && matches!(&operation, Operation::Write { data, .. } if data.is_empty())) {
            self.tree.apply(&operation)?;
        }
        let created = if let Operation::Create { ino, .. } = &operation { Some(*ino) } else { None };
        if let Some(recording) = &mut self.recording {
            recording.push(operation);
        }
        if shortened { Err(Errno::NOSPC.into()) } else { Ok(created) }
    }
}

impl MemoryHandle {
    fn read<R>(&self, look: impl FnOnce(&Tree) -> io::Result<R>) -> io::Result<R> {
        look(&self.shared.0.lock().tree)
    }
}

impl Clone for MemoryHandle {
    fn clone(&self) -> Self {
        if let Ok(inode) = self.shared.0.lock().tree.inode_mut(self.ino) {
            inode.pins += 1;
        }
        Self { ino: self.ino, shared: self.shared.clone() }
    }
}

impl Drop for MemoryHandle {
    fn drop(&mut self) {
        let mut state = self.shared.0.lock();
        if let Ok(inode) = state.tree.inode_mut(self.ino) {
            inode.pins = inode.pins.saturating_sub(1);
            state.tree.collect(self.ino);
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty tree: a root of mode 0755 that belongs to uid 0.
    pub fn new() -> Self {
        Self::with_tree(Tree::new())
    }

    fn with_tree(mut tree: Tree) -> Self {
        tree.forget_pins();
        let shared = Shared::with_tree(tree);
        let handle = shared.pin(&mut shared.0.lock(), ROOT);
        Self { root: handle.expect("a tree has a root") }
    }

    /// The same tree seen from one of its directories.
    pub fn rooted_at(&self, dir: &MemoryHandle) -> Self {
        Self { root: dir.clone() }
    }

    /// Makes the `n`-th operation from now (1: the next) fail with `errno`, once, without effect.
    pub fn fail_after(&self, n: u64, errno: i32) {
        self.shared().0.lock().failure = Some(Failure { after: n.saturating_sub(1), errno, lasting: false });
    }

    /// As `fail_after`, and every later operation fails too.
    pub fn fail_from(&self, n: u64, errno: i32) {
        self.shared().0.lock().failure = Some(Failure { after: n.saturating_sub(1), errno, lasting: true });
    }

    /// Lifts `fail_after`, `fail_from` and the write budget.
    pub fn heal(&self) {
        let mut state = self.shared().0.lock();
        state.failure = None;
        state.budget = None;
    }

    /// Lets `bytes` more be written. A write beyond that stores its part up to the last page boundary that fits
    /// (4096-byte pages of the file) and fails with ENOSPC.
    pub fn write_budget(&self, bytes: u64) {
        self.shared().0.lock().budget = Some(bytes);
    }

    /// Operations tried so far: changes and syncs, failed ones included.
    pub fn operations(&self) -> u64 {
        self.shared().0.lock().operations
    }

    /// From now on, keeps every operation that succeeded; a shortened write is kept as what it stored.
    pub fn start_recording(&self) {
        self.shared().0.lock().recording = Some(Vec::new());
    }

    /// How many operations have been recorded since `start_recording`.
    pub fn recorded(&self) -> usize {
        self.shared().0.lock().recording.as_ref().map_or(0, Vec::len)
    }

    /// What was recorded since `start_recording`, in order; ends the recording.
    pub fn take_recording(&self) -> Vec<Operation> {
        self.shared().0.lock().recording.take().unwrap_or_default()
    }

    /// An independent copy of the tree as it is, rooted at the top, without handles, failures or recording.
    /// Shares file pages until either is written.
    pub fn snapshot(&self) -> Self {
        let tree = self.shared().0.lock().tree.clone();
        Self::with_tree(tree)
    }

    /// Performs a recorded operation. In a history from which others were left out it may not apply: the error says so,
    /// and nothing has happened.
    pub fn replay(&self, operation: &Operation) -> io::Result<()> {
        let mut state = self.shared().0.lock();
        state.perform(operation.clone()).map(drop)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.root.shared
    }

    fn look<R>(&self, place: Place<'_, MemoryHandle>, f: impl FnOnce(&Tree, u64) -> io::Result<R>) -> io::Result<R> {
        let state = self.shared().0.lock();
        f(&state.tree, resolve(&state.tree, place)?)
    }

    fn perform(&self, describe: impl FnOnce(&Tree) -> io::Result<Operation>) -> io::Result<()> {
        self.shared().perform(describe).map(drop)
    }

    fn change(&self, place: Place<'_, MemoryHandle>, describe: impl FnOnce(u64) -> Operation) -> io::Result<()> {
        self.perform(|tree| Ok(describe(resolve(tree, place)?)))
    }

    fn create(&self, dir: &MemoryHandle, name: &[u8], object: NewObject) -> io::Result<MemoryHandle> {
        check_name(name)?;
        let made = self
            .shared()
            .perform(|tree| Ok(Operation::Create { dir: dir.ino, name: name.into(), ino: tree.next_ino(), object }))?;
        Ok(made.ok_or(Errno::IO)?)
    }
}

fn resolve(tree: &Tree, place: Place<'_, MemoryHandle>) -> io::Result<u64> {
    match place {
        Place::Entry { dir, name } => tree.lookup(dir.ino, name),
        Place::Pinned(handle) => Ok(handle.ino),
    }
}

fn new_object(kind: Kind, mode: u32, by: Creator) -> NewObject {
    NewObject { kind, mode: mode & 0o7777 & !by.umask, uid: by.uid, gid: by.gid, rdev: 0, target: Box::default() }
}

impl Store for MemoryStore {
    type File = MemoryFile;
    type Handle = MemoryHandle;

    fn root(&self) -> &MemoryHandle {
        &self.root
    }

    fn pin(&self, dir: &MemoryHandle, name: &[u8]) -> io::Result<MemoryHandle> {
        let mut state = self.shared().0.lock();
        let ino = state.tree.lookup(dir.ino, name)?;
        self.shared().pin(&mut state, ino)
    }

    fn stat(&self, place: Place<'_, MemoryHandle>) -> io::Result<Stat> {
        self.look(place, |tree, ino| Ok(tree.inode(ino)?.stat(ino)))
    }

    fn list(&self, dir: &MemoryHandle) -> io::Result<Vec<Entry>> {
        dir.read(|tree| {
            let entries = tree.entries(dir.ino)?.iter();
            if tree.inode(dir.ino)?.nlink == 0 {
                return Err(Errno::NOENT.into());
            }
            entries
                .map(|(name, ino)| Ok(Entry { name: name.clone(), ino: *ino, kind: tree.inode(*ino)?.kind() }))
                .collect()
        })
    }

    fn open_file(&self, place: Place<'_, MemoryHandle>, access: Access) -> io::Result<MemoryFile> {
        let mut state = self.shared().0.lock();
        let ino = resolve(&state.tree, place)?;
        match state.tree.inode(ino)?.kind() {
            Kind::File => {}
            Kind::Symlink => return Err(Errno::LOOP.into()),
            _ => return Err(Errno::IO.into()),
        }
        let object = self.shared().pin(&mut state, ino)?;
        Ok(MemoryFile { object, writable: access == Access::ReadWrite })
    }

    fn create_file(&self, dir: &MemoryHandle, name: &[u8], mode: u32, by: Creator) -> io::Result<MemoryFile> {
        Ok(MemoryFile { object: self.create(dir, name, new_object(Kind::File, mode, by))?, writable: true })
    }

    fn mkdir(&self, dir: &MemoryHandle, name: &[u8], mode: u32, by: Creator) -> io::Result<()> {
        self.create(dir, name, new_object(Kind::Directory, mode & 0o1777, by)).map(drop)
    }

    fn mknod(&self, dir: &MemoryHandle, name: &[u8], kind: Kind, mode: u32, rdev: u64, by: Creator) -> io::Result<()> {
        let rdev = match kind {
            Kind::Directory | Kind::Symlink => return Err(Errno::INVAL.into()),
            Kind::CharDevice | Kind::BlockDevice => rdev,
            Kind::File | Kind::Fifo | Kind::Socket => 0,
        };
        self.create(dir, name, NewObject { rdev, ..new_object(kind, mode, by) }).map(drop)
    }

    fn symlink(&self, dir: &MemoryHandle, name: &[u8], target: &[u8], by: Creator) -> io::Result<()> {
        let object = NewObject { target: target.into(), ..new_object(Kind::Symlink, 0o777, by) };
        self.create(dir, name, object).map(drop)
    }

    fn readlink(&self, place: Place<'_, MemoryHandle>) -> io::Result<Vec<u8>> {
        self.look(place, |tree, ino| match &tree.inode(ino)?.body {
            Body::Symlink(target) => Ok(target.to_vec()),
            _ => Err(Errno::INVAL.into()),
        })
    }

    fn link(&self, from: Place<'_, MemoryHandle>, dir: &MemoryHandle, name: &[u8]) -> io::Result<()> {
        check_name(name)?;
        self.change(from, |ino| Operation::Link { ino, dir: dir.ino, name: name.into() })
    }

    fn unlink(&self, dir: &MemoryHandle, name: &[u8]) -> io::Result<()> {
        self.perform(|_| Ok(Operation::Unlink { dir: dir.ino, name: name.into() }))
    }

    fn rmdir(&self, dir: &MemoryHandle, name: &[u8]) -> io::Result<()> {
        self.perform(|_| Ok(Operation::Rmdir { dir: dir.ino, name: name.into() }))
    }

    fn rename(&self, from: (&MemoryHandle, &[u8]), to: (&MemoryHandle, &[u8]), mode: RenameMode) -> io::Result<()> {
        let (from, to) = ((from.0.ino, from.1.into()), (to.0.ino, to.1.into()));
        self.perform(|_| Ok(Operation::Rename { from, to, mode }))
    }

    fn chmod(&self, place: Place<'_, MemoryHandle>, mode: u32) -> io::Result<()> {
        self.change(place, |ino| Operation::Chmod { ino, mode })
    }

    fn chown(&self, place: Place<'_, MemoryHandle>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.change(place, |ino| Operation::Chown { ino, uid, gid })
    }

    fn set_times(&self, place: Place<'_, MemoryHandle>, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.change(place, |ino| Operation::SetTimes { ino, atime, mtime })
    }

    fn get_xattr(&self, place: Place<'_, MemoryHandle>, name: &[u8]) -> io::Result<Vec<u8>> {
        self.look(place, |tree, ino| Ok(tree.inode(ino)?.xattr(name)?.to_vec()))
    }

    fn set_xattr(&self, place: Place<'_, MemoryHandle>, name: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
        self.change(place, |ino| Operation::SetXattr { ino, name: name.into(), value: value.into(), flags })
    }

    fn list_xattrs(&self, place: Place<'_, MemoryHandle>) -> io::Result<Vec<Vec<u8>>> {
        self.look(place, |tree, ino| Ok(tree.inode(ino)?.xattr_names().map(<[u8]>::to_vec).collect()))
    }

    fn remove_xattr(&self, place: Place<'_, MemoryHandle>, name: &[u8]) -> io::Result<()> {
        self.change(place, |ino| Operation::RemoveXattr { ino, name: name.into() })
    }

    /// A terabyte, less the write budget where there is one.
    fn statfs(&self) -> io::Result<StatFs> {
        const BLOCKS: u64 = (1 << 40) / PAGE;
        const FILES: u64 = 1 << 32;
        let state = self.shared().0.lock();
        let free = state.budget.map_or(BLOCKS, |bytes| (bytes / PAGE).min(BLOCKS));
        Ok(StatFs {
            block_size: PAGE,
            fragment_size: PAGE,
            blocks: BLOCKS,
            blocks_free: free,
            blocks_available: free,
            files: FILES,
            files_free: FILES.saturating_sub(state.tree.inode_count()),
            name_max: 255,
        })
    }

    fn sync_dir(&self, dir: &MemoryHandle) -> io::Result<()> {
        self.perform(|_| Ok(Operation::SyncDir { ino: dir.ino }))
    }

    fn sync_fs(&self) -> io::Result<()> {
        self.perform(|_| Ok(Operation::SyncFs))
    }

    fn charge_to(&self, _uid: u32, _gid: u32) {}
}

impl MemoryFile {
    /// `refusal`: what Linux answers to this change through a read-only descriptor.
    fn change(&self, refusal: Errno, operation: impl FnOnce(u64) -> Operation) -> io::Result<()> {
        if !self.writable {
            return Err(refusal.into());
        }
        self.object.shared.perform(|_| Ok(operation(self.object.ino))).map(drop)
    }
}

impl BackingFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.object.read(|tree| Ok(tree.content(self.object.ino)?.read(buf, offset)))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.change(Errno::BADF, |ino| Operation::Write { ino, offset, data: buf.to_vec() })
    }

    fn stat(&self) -> io::Result<Stat> {
        self.object.read(|tree| Ok(tree.inode(self.object.ino)?.stat(self.object.ino)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Errno::INVAL, |ino| Operation::SetLen { ino, len })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Errno::BADF, |ino| Operation::PunchHole { ino, offset, len })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Errno::BADF, |ino| Operation::Allocate { ino, offset, len })
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.object.read(|tree| Ok(tree.content(self.object.ino)?.seek_data(offset)))
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.object.read(|tree| Ok(tree.content(self.object.ino)?.seek_hole(offset)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.object.shared.perform(|_| Ok(Operation::SyncData { ino: self.object.ino })).map(drop)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.object.shared.perform(|_| Ok(Operation::SyncAll { ino: self.object.ino })).map(drop)
    }

    fn set_mtime(&self, mtime: Timestamp) -> io::Result<()> {
        self.object.shared.perform(|_| Ok(Operation::SetMtime { ino: self.object.ino, mtime })).map(drop)
    }
}

#[cfg(test)]
mod tests;
