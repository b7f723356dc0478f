//! A panic in a request costs that request: it is answered with EIO, logged, and the event loop goes on. Knows requests as such;
//! not what they do.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

/// Runs one request. Where it panics, the reply that it holds is dropped with it, which answers EIO; locks are given back
/// (they do not poison), and the panic hook has logged where it was.
pub(super) fn contained(what: &str, request: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(request)).is_err() {
        log::error!("code=panic the request {what} was answered with EIO; the mount goes on");
    }
}

/// Any file system, each of its requests contained.
pub(super) struct Shielded<F>(pub F);

macro_rules! forward {
    ($(fn $name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            fn $name(&self, request: &Request, $($argument: $type),*) {
                contained(stringify!($name), move || self.0.$name(request, $($argument),*));
            }
        )*
    };
}

impl<F: Filesystem> Filesystem for Shielded<F> {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.init(request, config)
    }

    fn destroy(&mut self) {
        self.0.destroy();
    }

    forward! {
        fn lookup(parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        fn forget(ino: INodeNo, count: u64);
        fn getattr(ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr);
        fn setattr(
            ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>, atime: Option<TimeOrNow>,
            mtime: Option<TimeOrNow>, ctime: Option<SystemTime>, handle: Option<FileHandle>, crtime: Option<SystemTime>,
            chgtime: Option<SystemTime>, bkuptime: Option<SystemTime>, flags: Option<BsdFileFlags>, reply: ReplyAttr
        );
        fn readlink(ino: INodeNo, reply: ReplyData);
        fn mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
        fn mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
        fn unlink(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        fn rmdir(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        fn symlink(parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
        fn rename(
            parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr, flags: RenameFlags, reply: ReplyEmpty
        );
        fn link(ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        fn open(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        fn create(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate);
        fn read(
            ino: INodeNo, handle: FileHandle, offset: u64, size: u32, flags: OpenFlags, owner: Option<LockOwner>,
            reply: ReplyData
        );
        fn write(
            ino: INodeNo, handle: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags, flags: OpenFlags,
            owner: Option<LockOwner>, reply: ReplyWrite
        );
        fn flush(ino: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty);
        fn release(
            ino: INodeNo, handle: FileHandle, flags: OpenFlags, owner: Option<LockOwner>, flush: bool, reply: ReplyEmpty
        );
        fn fsync(ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty);
        fn opendir(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        fn readdir(ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory);
        fn readdirplus(ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
        fn releasedir(ino: INodeNo, handle: FileHandle, flags: OpenFlags, reply: ReplyEmpty);
        fn fsyncdir(ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty);
        fn statfs(ino: INodeNo, reply: ReplyStatfs);
        fn setxattr(ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty);
        fn getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
        fn listxattr(ino: INodeNo, size: u32, reply: ReplyXattr);
        fn removexattr(ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
        fn fallocate(ino: INodeNo, handle: FileHandle, offset: u64, len: u64, mode: i32, reply: ReplyEmpty);
        fn lseek(ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
        fn copy_file_range(
            from: INodeNo, from_handle: FileHandle, from_offset: u64, to: INodeNo, to_handle: FileHandle, to_offset: u64,
            len: u64, flags: CopyFileRangeFlags, reply: ReplyWrite
        );
        fn ioctl(
            ino: INodeNo, handle: FileHandle, flags: IoctlFlags, command: u32, input: &[u8], output_size: u32,
            reply: ReplyIoctl
        );
        fn access(ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty);
        fn getlk(
            ino: INodeNo, handle: FileHandle, owner: LockOwner, start: u64, end: u64, kind: i32, pid: u32, reply: ReplyLock
        );
        fn setlk(
            ino: INodeNo, handle: FileHandle, owner: LockOwner, start: u64, end: u64, kind: i32, pid: u32, sleep: bool,
            reply: ReplyEmpty
        );
        fn bmap(ino: INodeNo, block_size: u32, index: u64, reply: ReplyBmap);
        fn poll(
            ino: INodeNo, handle: FileHandle, notifier: PollNotifier, events: PollEvents, flags: PollFlags, reply: ReplyPoll
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use fuser::{FileAttr, FileType, Generation};

    use super::*;

    const ATTR: FileAttr = FileAttr {
        ino: INodeNo(1),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0o777,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    };

    /// Has one directory. Every look for `panic` panics, and so does every mkdir.
    struct Panicky;

    impl Filesystem for Panicky {
        fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
            reply.attr(&Duration::ZERO, &FileAttr { ino, ..ATTR });
        }
        fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
            match name.to_str() {
                Some("panic") => panic!("made on purpose"),
                // A child is never the root itself: the kernel refuses that.
                Some("good") => {
                    let attr = FileAttr { ino: INodeNo(2), ..ATTR };
                    reply.entry(&Duration::ZERO, &attr, Generation(0))
                }
                _ => reply.error(fuser::Errno::ENOENT),
            }
        }
        fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _reply: ReplyEntry) {
            panic!("made on purpose, too");
        }
    }

    /// On a real mount: more panics than there are event loops, and it still answers.
    #[test]
    fn a_panic_is_eio_and_the_mount_goes_on() {
        if !rustix::process::geteuid().is_root() || fs::metadata("/dev/fuse").is_err() {
            eprintln!("SKIPPED: needs root and /dev/fuse");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut config = fuser::Config::default();
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(Shielded(Panicky), directory.path(), &config).unwrap();
        for _ in 0..8 {
            let looked = fs::metadata(directory.path().join("panic")).unwrap_err();
            assert_eq!(looked.raw_os_error(), Some(libc::EIO));
            let made = fs::create_dir(directory.path().join("new")).unwrap_err();
            assert_eq!(made.raw_os_error(), Some(libc::EIO));
            assert!(fs::metadata(directory.path().join("good")).unwrap().is_dir());
        }
        session.umount_and_join().unwrap();
    }
}
