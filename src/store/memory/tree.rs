//! The state of a tree in memory and what each operation does to it, as a Linux file system does for a privileged caller.
//! Knows nothing of handles' lifetimes, failures or recording.

use std::collections::{BTreeMap, HashMap};
use std::io;

use rustix::io::Errno;

use super::content::{Content, PAGE};
use super::operation::{Name, NewObject, Operation};
use crate::store::{Kind, RenameMode, SetTime, Stat, Timestamp, check_name};

/// Largest file, as on Linux: offsets are signed.
const SIZE_MAX: u64 = i64::MAX as u64;
const NAME_MAX: usize = 255;
const XATTR_VALUE_MAX: usize = 64 * 1024;
const LINK_TARGET_MAX: usize = 4095;
pub const ROOT: u64 = 2;
const DEVICE: u64 = 0xe0;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

#[derive(Debug, Clone)]
pub enum Body {
    File(Content),
    Directory {
        entries: BTreeMap<Name, u64>,
        parent: u64,
    },
    Symlink(Box<[u8]>),
    /// FIFO, socket or device.
    Special(Kind),
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub body: Body,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    pub nlink: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    xattrs: BTreeMap<Name, Box<[u8]>>,
    /// Handles and open files; the inode lives while it has these or names.
    pub pins: u64,
}

impl Inode {
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::File(_) => Kind::File,
            Body::Directory { .. } => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special(kind) => *kind,
        }
    }

    pub fn stat(&self, ino: u64) -> Stat {
        let (size, allocated) = match &self.body {
            Body::File(content) => (content.len(), content.allocated()),
            Body::Directory { .. } => (PAGE, PAGE),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Special(_) => (0, 0),
        };
        Stat {
            dev: DEVICE,
            ino,
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            blocks: allocated / 512,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }

    /// `user.*` exists on regular files and directories only; reading it elsewhere finds nothing (xattr(7)).
    fn carries(&self, xattr: &[u8]) -> bool {
        !xattr.starts_with(b"user.") || matches!(self.body, Body::File(_) | Body::Directory { .. })
    }

    pub fn xattr(&self, name: &[u8]) -> io::Result<&[u8]> {
        check_xattr_name(name)?;
        Ok(self.xattrs.get(name).ok_or(Errno::NODATA)?)
    }

    pub fn xattr_names(&self) -> impl Iterator<Item = &[u8]> {
        self.xattrs.keys().map(|name| &**name)
    }
}

/// A whole tree. A clone is a snapshot: file pages are shared until written.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: HashMap<u64, Inode>,
    next_ino: u64,
    /// Milliseconds; every operation takes the next one.
    clock: i64,
}

fn check_length(name: &[u8]) -> io::Result<()> {
    check_name(name)?;
    if name.len() > NAME_MAX { Err(Errno::NAMETOOLONG.into()) } else { Ok(()) }
}

fn check_xattr_name(name: &[u8]) -> io::Result<()> {
    if name.len() > NAME_MAX || name.is_empty() {
        return Err(Errno::RANGE.into());
    }
    let known = [&b"user."[..], b"trusted.", b"security.", b"system."];
    if name.contains(&0) {
        Err(Errno::INVAL.into())
    } else if known.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len()) {
        Ok(())
    } else {
        Err(Errno::OPNOTSUPP.into())
    }
}

impl Tree {
    pub fn new() -> Self {
        let mut tree = Self { inodes: HashMap::new(), next_ino: ROOT + 1, clock: 1_000_000_000_000 };
        let now = tree.now();
        let body = Body::Directory { entries: BTreeMap::new(), parent: ROOT };
        let root = Inode {
            body,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 2,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            // Never goes away.
            pins: 1,
        };
        tree.inodes.insert(ROOT, root);
        tree
    }

    fn now(&self) -> Timestamp {
        Timestamp { sec: self.clock / 1000, nsec: (self.clock % 1000) as u32 * 1_000_000 }
    }

    /// The number that the next created object gets.
    pub fn next_ino(&self) -> u64 {
        self.next_ino
    }

    pub fn inode_count(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// ESTALE where it does not exist (any more): a replay may name what another history kept.
    pub fn inode(&self, ino: u64) -> io::Result<&Inode> {
        Ok(self.inodes.get(&ino).ok_or(Errno::STALE)?)
    }

    pub fn inode_mut(&mut self, ino: u64) -> io::Result<&mut Inode> {
        Ok(self.inodes.get_mut(&ino).ok_or(Errno::STALE)?)
    }

    pub fn content(&self, ino: u64) -> io::Result<&Content> {
        match &self.inode(ino)?.body {
            Body::File(content) => Ok(content),
            _ => Err(Errno::INVAL.into()),
        }
    }

    pub fn entries(&self, dir: u64) -> io::Result<&BTreeMap<Name, u64>> {
        match &self.inode(dir)?.body {
            Body::Directory { entries, .. } => Ok(entries),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    fn entries_mut(&mut self, dir: u64) -> io::Result<&mut BTreeMap<Name, u64>> {
        match &mut self.inode_mut(dir)?.body {
            Body::Directory { entries, .. } => Ok(entries),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    pub fn lookup(&self, dir: u64, name: &[u8]) -> io::Result<u64> {
        check_length(name)?;
        Ok(*self.entries(dir)?.get(name).ok_or(Errno::NOENT)?)
    }

    /// Drops an inode that has neither names nor handles.
    pub fn collect(&mut self, ino: u64) {
        if self.inodes.get(&ino).is_some_and(|inode| inode.nlink == 0 && inode.pins == 0) {
            self.inodes.remove(&ino);
        }
    }

    /// Forgets every handle, as a crash does.
    pub fn forget_pins(&mut self) {
        self.inodes.values_mut().for_each(|inode| inode.pins = 0);
        self.inodes.retain(|ino, inode| *ino == ROOT || inode.nlink > 0);
        if let Some(root) = self.inodes.get_mut(&ROOT) {
            root.pins = 1;
        }
    }

    /// Performs one operation wholly or, on error, not at all.
    pub fn apply(&mut self, operation: &Operation) -> io::Result<()> {
        self.clock += 1;
        match operation {
            Operation::Create { dir, name, ino, object } => self.create(*dir, name, *ino, object),
            Operation::Link { ino, dir, name } => self.link(*ino, *dir, name),
            Operation::Unlink { dir, name } => self.unlink(*dir, name),
            Operation::Rmdir { dir, name } => self.rmdir(*dir, name),
            Operation::Rename { from, to, mode } => self.rename((from.0, &from.1), (to.0, &to.1), *mode),
            Operation::Write { ino, offset, data } => self.change(*ino, |content| {
                let end = offset.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX);
                end.ok_or(Errno::FBIG)?;
                content.write(data, *offset);
                Ok(())
            }),
            Operation::SetLen { ino, len } => self.change(*ino, |content| {
                if *len > SIZE_MAX {
                    return Err(Errno::FBIG.into());
                }
                content.set_len(*len);
                Ok(())
            }),
            Operation::PunchHole { ino, offset, len } => self.change(*ino, |content| {
                check_range(*offset, *len)?;
                content.clear(*offset, *len);
                Ok(())
            }),
            Operation::Allocate { ino, offset, len } => self.change(*ino, |_| check_range(*offset, *len)),
            Operation::Chmod { ino, mode } => {
                let now = self.now();
                let inode = self.inode_mut(*ino)?;
                if inode.kind() == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP.into());
                }
                inode.mode = mode & 0o7777;
                inode.ctime = now;
                Ok(())
            }
            Operation::Chown { ino, uid, gid } => self.chown(*ino, *uid, *gid),
            Operation::SetTimes { ino, atime, mtime } => self.set_times(*ino, *atime, *mtime),
            Operation::SetMtime { ino, mtime } => self.set_times(*ino, SetTime::Omit, SetTime::At(*mtime)),
            Operation::SetXattr { ino, name, value, flags } => self.set_xattr(*ino, name, value, *flags),
            Operation::RemoveXattr { ino, name } => {
                check_xattr_name(name)?;
                let now = self.now();
                let inode = self.inode_mut(*ino)?;
                if !inode.carries(name) {
                    return Err(Errno::PERM.into());
                }
                inode.xattrs.remove(name).ok_or(Errno::NODATA)?;
                inode.ctime = now;
                Ok(())
            }
            Operation::SyncData { ino } | Operation::SyncAll { ino } => self.inode(*ino).map(drop),
            Operation::SyncDir { ino } => self.entries(*ino).map(drop),
            Operation::SyncFs => Ok(()),
        }
    }

    fn change(&mut self, ino: u64, edit: impl FnOnce(&mut Content) -> io::Result<()>) -> io::Result<()> {
        let now = self.now();
        let inode = self.inode_mut(ino)?;
        let Body::File(content) = &mut inode.body else { return Err(Errno::INVAL.into()) };
        edit(content)?;
        inode.mtime = now;
        inode.ctime = now;
        Ok(())
    }

    fn set_times(&mut self, ino: u64, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let now = self.now();
        let inode = self.inode_mut(ino)?;
        let resolve = |time| match time {
            SetTime::Omit => Ok(None),
            SetTime::Now => Ok(Some(now)),
            SetTime::At(at) if at.nsec < 1_000_000_000 => Ok(Some(at)),
            SetTime::At(_) => Err(Errno::INVAL),
        };
        let (atime, mtime) = (resolve(atime)?, resolve(mtime)?);
        inode.atime = atime.unwrap_or(inode.atime);
        inode.mtime = mtime.unwrap_or(inode.mtime);
        if atime.is_some() || mtime.is_some() {
            inode.ctime = now;
        }
        Ok(())
    }

    fn chown(&mut self, ino: u64, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL.into());
        }
        let now = self.now();
        let inode = self.inode_mut(ino)?;
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        if inode.kind() != Kind::Directory {
            inode.mode &= !SETUID;
            if inode.mode & 0o010 != 0 {
                inode.mode &= !SETGID;
            }
        }
        inode.ctime = now;
        Ok(())
    }

    fn set_xattr(&mut self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
        check_xattr_name(name)?;
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
            return Err(Errno::INVAL.into());
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(Errno::TOOBIG.into());
        }
        let now = self.now();
        let inode = self.inode_mut(ino)?;
        if !inode.carries(name) {
            return Err(Errno::PERM.into());
        }
        match inode.xattrs.contains_key(name) {
            true if flags & libc::XATTR_CREATE != 0 => return Err(Errno::EXIST.into()),
            false if flags & libc::XATTR_REPLACE != 0 => return Err(Errno::NODATA.into()),
            _ => {}
        }
        inode.xattrs.insert(name.into(), value.into());
        inode.ctime = now;
        Ok(())
    }

    /// ENOENT in a directory that has been removed, ENOTDIR, EEXIST.
    fn check_vacant(&self, dir: u64, name: &[u8]) -> io::Result<()> {
        match self.lookup(dir, name) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                if self.inode(dir)?.nlink == 0 {
                    Err(error)
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(error),
        }
    }

    fn touch_dir(&mut self, dir: u64) -> io::Result<()> {
        let now = self.now();
        let inode = self.inode_mut(dir)?;
        inode.mtime = now;
        inode.ctime = now;
        Ok(())
    }

    fn touch_ctime(&mut self, ino: u64) -> io::Result<()> {
        let now = self.now();
        self.inode_mut(ino)?.ctime = now;
        Ok(())
    }

    fn create(&mut self, dir: u64, name: &[u8], ino: u64, object: &NewObject) -> io::Result<()> {
        self.check_vacant(dir, name)?;
        if object.kind == Kind::Symlink && object.target.is_empty() {
            return Err(Errno::NOENT.into());
        }
        if object.target.len() > LINK_TARGET_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        if self.inodes.contains_key(&ino) {
            return Err(Errno::EXIST.into());
        }
        let now = self.now();
        let parent = self.inode(dir)?;
        let (mut mode, mut gid) = (object.mode & 0o7777, object.gid);
        if parent.mode & SETGID != 0 {
            gid = parent.gid;
            if object.kind == Kind::Directory {
                mode |= SETGID;
            }
        }
        let body = match object.kind {
            Kind::File => Body::File(Content::default()),
            Kind::Directory => Body::Directory { entries: BTreeMap::new(), parent: dir },
            Kind::Symlink => Body::Symlink(object.target.clone()),
            other => Body::Special(other),
        };
        let nlink = if object.kind == Kind::Directory { 2 } else { 1 };
        if object.kind == Kind::Symlink {
            mode = 0o777;
        }
        let inode = Inode {
            body,
            mode,
            uid: object.uid,
            gid,
            rdev: object.rdev,
            nlink,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            pins: 0,
        };
        self.inodes.insert(ino, inode);
        self.next_ino = self.next_ino.max(ino.saturating_add(1));
        self.entries_mut(dir)?.insert(name.into(), ino);
        if object.kind == Kind::Directory {
            self.inode_mut(dir)?.nlink += 1;
        }
        self.touch_dir(dir)
    }

    fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> io::Result<()> {
        let inode = self.inode(ino)?;
        if inode.kind() == Kind::Directory {
            return Err(Errno::PERM.into());
        }
        let unlinked = inode.nlink == 0;
        self.check_vacant(dir, name)?;
        if unlinked {
            return Err(Errno::NOENT.into());
        }
        self.entries_mut(dir)?.insert(name.into(), ino);
        self.inode_mut(ino)?.nlink += 1;
        self.touch_ctime(ino)?;
        self.touch_dir(dir)
    }

    fn unlink(&mut self, dir: u64, name: &[u8]) -> io::Result<()> {
        let ino = self.lookup(dir, name)?;
        if self.inode(ino)?.kind() == Kind::Directory {
            return Err(Errno::ISDIR.into());
        }
        self.entries_mut(dir)?.remove(name);
        self.drop_name(ino, dir)?;
        self.touch_dir(dir)
    }

    fn rmdir(&mut self, dir: u64, name: &[u8]) -> io::Result<()> {
        let ino = self.lookup(dir, name)?;
        if !self.entries(ino)?.is_empty() {
            return Err(Errno::NOTEMPTY.into());
        }
        self.entries_mut(dir)?.remove(name);
        self.drop_name(ino, dir)?;
        self.touch_dir(dir)
    }

    /// After an entry of `dir` that led to `ino` is gone.
    fn drop_name(&mut self, ino: u64, dir: u64) -> io::Result<()> {
        let inode = self.inode_mut(ino)?;
        if inode.kind() == Kind::Directory {
            inode.nlink = 0;
            self.inode_mut(dir)?.nlink -= 1;
        } else {
            inode.nlink -= 1;
        }
        self.touch_ctime(ino)?;
        self.collect(ino);
        Ok(())
    }

    /// Whether `dir` is `ancestor` or lies below it.
    fn is_within(&self, mut dir: u64, ancestor: u64) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            match self.inodes.get(&dir).map(|inode| &inode.body) {
                Some(Body::Directory { parent, .. }) if *parent != dir => dir = *parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), mode: RenameMode) -> io::Result<()> {
        let ino = self.lookup(from.0, from.1)?;
        let is_dir = self.inode(ino)?.kind() == Kind::Directory;
        let target = match self.lookup(to.0, to.1) {
            Ok(_) if mode == RenameMode::NoReplace => {
                return Err(Errno::EXIST.into());
            }
            Ok(target) => Some((target, self.inode(target)?.kind() == Kind::Directory)),
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            Err(error) if mode == RenameMode::Exchange || self.inode(to.0)?.nlink == 0 => return Err(error),
            Err(_) => None,
        };
        if is_dir && self.is_within(to.0, ino) {
            return Err(Errno::INVAL.into());
        }
        if mode == RenameMode::Exchange
            && let Some((target, true)) = target
            && self.is_within(from.0, target)
        {
            return Err(Errno::INVAL.into());
        }
        match target {
            Some((target, _)) if target == ino => return Ok(()),
            Some((target, target_is_dir)) if mode == RenameMode::Exchange => {
                self.entries_mut(from.0)?.insert(from.1.into(), target);
                self.entries_mut(to.0)?.insert(to.1.into(), ino);
                self.move_directory(ino, is_dir, from.0, to.0)?;
                self.move_directory(target, target_is_dir, to.0, from.0)?;
                self.touch_ctime(target)?;
            }
            _ => {
                if let Some((target, target_is_dir)) = target {
                    match (is_dir, target_is_dir) {
                        (true, false) => return Err(Errno::NOTDIR.into()),
                        (false, true) => return Err(Errno::ISDIR.into()),
                        (true, true) if !self.entries(target)?.is_empty() => return Err(Errno::NOTEMPTY.into()),
                        _ => {}
                    }
                    self.entries_mut(to.0)?.remove(to.1);
                    self.drop_name(target, to.0)?;
                }
                self.entries_mut(from.0)?.remove(from.1);
                self.entries_mut(to.0)?.insert(to.1.into(), ino);
                self.move_directory(ino, is_dir, from.0, to.0)?;
            }
        }
        self.touch_ctime(ino)?;
        self.touch_dir(from.0)?;
        self.touch_dir(to.0)
    }

    /// Tells a directory and both parents that it has moved.
    fn move_directory(&mut self, ino: u64, is_dir: bool, from: u64, to: u64) -> io::Result<()> {
        if !is_dir || from == to {
            return Ok(());
        }
        self.inode_mut(from)?.nlink -= 1;
        self.inode_mut(to)?.nlink += 1;
        if let Body::Directory { parent, .. } = &mut self.inode_mut(ino)?.body {
            *parent = to;
        }
        Ok(())
    }
}

/// As fallocate(2): an empty range is EINVAL, one that leaves the largest file EFBIG.
fn check_range(offset: u64, len: u64) -> io::Result<()> {
    if len == 0 || offset > SIZE_MAX {
        return Err(Errno::INVAL.into());
    }
    match offset.checked_add(len) {
        Some(end) if end <= SIZE_MAX => Ok(()),
        _ => Err(Errno::FBIG.into()),
    }
}
