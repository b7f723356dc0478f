//! The FUSE adapter: decodes requests, calls the filesystem, replies. No logic of its own; the only importer of `fuser`.

mod convert;
mod core;
pub mod session;
mod shield;
mod waiting;
mod workers;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use zeroize::Zeroizing;

use crate::file::Seek;
use crate::fs::{Attr, Caller, FsError, ROOT, SetAttr};
use crate::keys::keyring::Waits;
use crate::store::{RenameMode, Store};
use core::{Adapter, Core, empty, is_pending, sized};

/// Reads this attribute of the root directory: the daemon's process id, as text.
pub const PID_XATTR: &str = "user.envelopefs.pid";
/// Setting this attribute of the root directory runs a full commit; the answer is its errno.
pub const COMMIT_XATTR: &str = "user.envelopefs.commit";

/// How long the kernel may keep names, attributes and absences of a mount that nobody else changes.
pub const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Largest read, write and read-ahead in bytes.
const MAX_IO: u32 = 1 << 20;
/// Background requests (read-ahead, write-back, asynchronous I/O) under way at once.
const MAX_BACKGROUND: u16 = 64;
/// Bytes copied by one request: the caller loops, and an event loop is not held for long.
const MAX_COPY: u64 = 32 << 20;

/// What of the kernel's abilities is used. What is missing here is missing on purpose: locks stay with the kernel (fuser
/// does not tell flock from fcntl), SETXATTR_EXT, SECURITY_CTX and SUPP_GROUPS carry data that fuser drops.
///
/// With HANDLE_KILLPRIV_V2 set-id bits are ours to clear, and the kernel need not ask for `security.capability` before every
/// write(2). Of its signs fuser passes on the one on writes; `setattr` and `open` go by the caller instead.
const CAPABILITIES: &[InitFlags] = &[
    InitFlags::FUSE_WRITEBACK_CACHE,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// How the adapter answers.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Lifetime of names, attributes and absences in the kernel.
    pub timeout: Duration,
    pub read_only: bool,
    /// Changes of directories are durable before they are answered.
    pub dirsync: bool,
    /// Who, beside root, may ask for a commit.
    pub owner: u32,
}

thread_local! {
    /// One read buffer per event loop, grown to the largest request and never cleared in between: clearing would cost as
    /// much as decrypting. It holds plaintext like the kernel's page cache does, and is wiped when its thread ends.
    static READ_BUFFER: RefCell<Zeroizing<Vec<u8>>> = RefCell::new(Zeroizing::new(Vec::new()));
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask }
}

fn is_control(ino: INodeNo, name: &OsStr) -> bool {
    ino.0 == ROOT && (name == PID_XATTR || name == COMMIT_XATTR)
}

impl<S: Store> Filesystem for Adapter<S> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if let Err(missing) = config.add_capabilities(*capability) {
                log::info!("the kernel lacks {missing:?}");
            }
        }
        // Each of these answers with the nearest value that it would take.
        if let Err(largest) = config.set_max_write(MAX_IO) {
            let _ = config.set_max_write(largest);
        }
        if let Err(largest) = config.set_max_readahead(MAX_IO) {
            let _ = config.set_max_readahead(largest);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup(parent.0, name.as_bytes()) {
            Err(e) if e.errno() == libc::ENOENT => {
                reply.entry(&self.behaviour.timeout, &convert::absent(), Generation(0));
            }
            result => self.entry(result, reply),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(ino.0, count);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.attr(self.fs.getattr(ino.0), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut set = SetAttr {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size,
            atime: convert::set_time(atime),
            mtime: convert::set_time(mtime),
            drop_set_id: false,
        };
        // A request to set nothing is the kernel's way to say that privileges go (fallocate, chown to nobody else). What a
        // change of owner costs, the backing kernel takes.
        set.drop_set_id = set == SetAttr::default() || size.is_some() && !convert::keeps_set_id(request.uid());
        self.keyed(move |core| core.fs.setattr(ino.0, &set), |core, result| core.attr(result, reply));
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = convert::node_kind(mode) else { return reply.error(Errno::EINVAL) };
        let by = caller(request, umask);
        let (mode, rdev) = (mode & 0o7777, u64::from(rdev));
        let make = move |core: &Core<S>, name: &[u8]| {
            core.settle(core.fs.mknod(&by, parent.0, name, kind, mode, rdev), &[parent])
        };
        let made = make(self, name.as_bytes());
        if is_pending(&made) {
            let name = name.as_bytes().to_vec();
            return self.later(move |core| make(core, &name), |core, made| core.entry(made, reply));
        }
        self.entry(made, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.fs.mkdir(&caller(request, umask), parent.0, name.as_bytes(), mode & 0o7777);
        self.entry(self.settle(made, &[parent]), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.settle(self.fs.unlink(parent.0, name.as_bytes()), &[parent]), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.settle(self.fs.rmdir(parent.0, name.as_bytes()), &[parent]), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made = self.fs.symlink(&caller(request, 0), parent.0, name.as_bytes(), target);
        self.entry(self.settle(made, &[parent]), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let renamed = self.fs.rename((parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()), mode);
        empty(self.settle(renamed, &[parent, new_parent]), reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(self.settle(self.fs.link(ino.0, parent.0, name.as_bytes()), &[parent]), reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = convert::open_mode(flags.0, request.uid());
        let respond = move |core: &Core<S>, result| match result {
            // Set-id bits may be gone: the kernel must not go on with those it knows.
            Ok(()) if mode.truncate && mode.drop_privileges => {
                core.workers.opened(ino.0, FopenFlags::FOPEN_KEEP_CACHE, reply);
            }
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(convert::errno(&e)),
        };
        self.keyed(move |core| core.fs.open(ino.0, mode), respond);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (by, mode) = (caller(request, umask), mode & 0o7777);
        let respond = |core: &Core<S>, result: Result<Attr, FsError>| match result {
            Ok(attr) => {
                let attributes = convert::attributes(&attr);
                let timeout = &core.behaviour.timeout;
                reply.created(timeout, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(convert::errno(&e)),
        };
        let result = self.create_or_open(&by, parent, name.as_bytes(), mode, flags);
        if is_pending(&result) {
            let name = name.as_bytes().to_vec();
            return self.later(move |core| core.create_or_open(&by, parent, &name, mode, flags), respond);
        }
        respond(self, result);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                // A fresh one, so that growing leaves no copy behind.
                *buffer = Zeroizing::new(vec![0; size.next_multiple_of(MAX_IO as usize)]);
            }
            let buffer = &mut buffer[..size];
            match self.fs.read(ino.0, offset, buffer) {
                Ok(len) => reply.data(&buffer[..len.min(size)]),
                Err(e) if e.wanted().is_some() => {
                    let read = move |core: &Core<S>| {
                        let mut buffer = Zeroizing::new(vec![0; size]);
                        let len = core.fs.read(ino.0, offset, &mut buffer)?;
                        buffer.truncate(len);
                        Ok(buffer)
                    };
                    let respond = |_: &Core<S>, result: Result<Zeroizing<Vec<u8>>, FsError>| match result {
                        Ok(data) => reply.data(&data),
                        Err(e) => reply.error(convert::errno(&e)),
                    };
                    self.later(read, respond);
                }
                Err(e) => reply.error(convert::errno(&e)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel never sends more than 16 MiB at once.
        let len = data.len() as u32;
        let drop_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let respond = move |core: &Core<S>, result: Result<(), FsError>| {
            match result.and_then(|()| if drop_set_id { core.fs.drop_set_id(ino.0) } else { Ok(false) }) {
                Ok(false) => reply.written(len),
                // The kernel must not go on with the bits that it knows.
                Ok(true) => core.workers.written(ino.0, len, reply),
                Err(e) => reply.error(convert::errno(&e)),
            }
        };
        let result = self.fs.write(ino.0, offset, data);
        if is_pending(&result) {
            let data = Zeroizing::new(data.to_vec());
            return self.later(move |core| core.fs.write(ino.0, offset, &data), respond);
        }
        respond(self, result);
    }

    /// close(2): the kernel has written out what is dirty before it asks, and goes on doing so when this is not to be had. There
    /// is nothing to add; after this answer a close is one question less.
    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(ino.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.keyed(move |core| core.fs.fsync(ino.0, data_only), |_, result| empty(result, reply));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.opendir(ino.0) {
            Ok(handle) => {
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.fs.readdir(ino.0, handle.0, offset, &mut |entry| {
            !reply.add(INodeNo(entry.ino), entry.next, convert::file_type(entry.kind), OsStr::from_bytes(&entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let timeout = self.behaviour.timeout;
        let listed = self.fs.readdirplus(ino.0, handle.0, offset, &mut |entry, attr| {
            let name = OsStr::from_bytes(&entry.name);
            let attributes = convert::attributes(attr);
            !reply.add(INodeNo(entry.ino), entry.next, name, &timeout, &attributes, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.fs.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        empty(self.fs.fsyncdir(ino.0), reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.fs.statfs() {
            Ok(s) => {
                let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                reply.statfs(
                    s.blocks,
                    s.blocks_free,
                    s.blocks_available,
                    s.files,
                    s.files_free,
                    small(s.block_size),
                    small(s.name_max),
                    small(s.fragment_size),
                );
            }
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if is_control(ino, name) {
            let allowed = request.uid() == 0 || request.uid() == self.behaviour.owner;
            return if name == COMMIT_XATTR && allowed {
                self.workers.commit(reply)
            } else {
                reply.error(Errno::EPERM)
            };
        }
        let by = caller(request, 0);
        let result = self.fs.setxattr(&by, ino.0, name.as_bytes(), value, flags);
        if is_pending(&result) {
            let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
            let attempt = move |core: &Core<S>| core.fs.setxattr(&by, ino.0, &name, &value, flags);
            return self.later(attempt, |_, result| empty(result, reply));
        }
        empty(result, reply);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if is_control(ino, name) {
            return if name == PID_XATTR {
                sized(std::process::id().to_string().as_bytes(), size, reply)
            } else {
                reply.error(Errno::ENODATA)
            };
        }
        let respond = move |_: &Core<S>, result: Result<Vec<u8>, FsError>| match result {
            Ok(value) => sized(&value, size, reply),
            Err(e) => reply.error(convert::errno(&e)),
        };
        let result = self.fs.getxattr(ino.0, name.as_bytes());
        if is_pending(&result) {
            let name = name.as_bytes().to_vec();
            return self.later(move |core| core.fs.getxattr(ino.0, &name), respond);
        }
        respond(self, result);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let is_root = request.uid() == 0;
        let respond = move |_: &Core<S>, result: Result<Vec<Vec<u8>>, FsError>| match result {
            Ok(mut names) => {
                // Which trusted attributes there are is for root alone (xattr(7)).
                names.retain(|name| is_root || !name.starts_with(b"trusted."));
                sized(&convert::joined(&names), size, reply)
            }
            Err(e) => reply.error(convert::errno(&e)),
        };
        self.keyed(move |core| core.fs.listxattr(ino.0), respond);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_control(ino, name) {
            return reply.error(Errno::EPERM);
        }
        let result = self.fs.removexattr(ino.0, name.as_bytes());
        if is_pending(&result) {
            let name = name.as_bytes().to_vec();
            return self.later(move |core| core.fs.removexattr(ino.0, &name), |_, result| empty(result, reply));
        }
        empty(result, reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.keyed(move |core| core.fs.fallocate(ino.0, mode, offset, len), |_, result| empty(result, reply));
    }

    /// Only SEEK_DATA and SEEK_HOLE come here; the kernel does the others by itself.
    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let whence = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        match u64::try_from(offset) {
            Ok(offset) => self.workers.seek(ino.0, whence, offset, reply),
            Err(_) => reply.error(Errno::ENXIO),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let len = len.min(MAX_COPY);
        let copy = move |core: &Core<S>| core.fs.copy_range((from.0, from_offset), (to.0, to_offset), len);
        self.keyed(copy, |_, result| match result {
            Ok(copied) => reply.written(copied.min(MAX_COPY) as u32),
            Err(e) => reply.error(convert::errno(&e)),
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // Never asked for with default_permissions, without lock forwarding, or on a file system without a block device.

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getlk(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _block_size: u32, _index: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    /// Files are always ready: after this answer the kernel says so by itself.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_attributes_are_on_the_root_only() {
        assert!(is_control(INodeNo(ROOT), OsStr::new(PID_XATTR)));
        assert!(is_control(INodeNo(ROOT), OsStr::new(COMMIT_XATTR)));
        assert!(!is_control(INodeNo(ROOT), OsStr::new("user.envelopefs.other")));
        assert!(!is_control(INodeNo(2), OsStr::new(PID_XATTR)));
    }
}
