//! Between FUSE's types and the filesystem's own: attributes, kinds, modes, times, errno. Knows no operation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};

use crate::fs::{Attr, FsError, OpenMode};
use crate::store::{Kind, SetTime, Timestamp};

/// Block size that stat(2) reports; the kernel reads and writes through its page cache in its own units.
const BLOCK_SIZE: u32 = 4096;

pub fn errno(error: &FsError) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno())
}

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// What mknod(2) asks for: the type bits of `mode`, none meaning a regular file. `None` for what it cannot make.
pub fn node_kind(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        _ => None,
    }
}

pub fn attributes(attr: &Attr) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        // `Stat::mode` holds the permission bits alone.
        perm: (stat.mode & 0o7777) as u16,
        nlink: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
        uid: stat.uid,
        gid: stat.gid,
        // The protocol carries 32 bits: the same encoding as dev_t's low half, enough for every Linux device number.
        rdev: stat.rdev as u32,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes of nothing: with inode number 0, a name that the kernel may remember as absent.
pub fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let seconds = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    seconds.and_then(|s| s.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

/// The inverse of fuser 0.18's own decoding, which counts the nanoseconds of times before the epoch backwards:
/// it hands out `epoch - |seconds| - nanoseconds` where the kernel sent `seconds` (negative) and `nanoseconds` (positive).
/// An end-to-end check of a negative time fails when fuser changes that.
pub fn set_time(time: Option<TimeOrNow>) -> Option<SetTime> {
    Some(match time? {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp { sec: after.as_secs() as i64, nsec: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                Timestamp { sec: 0i64.wrapping_sub_unsigned(before.as_secs()), nsec: before.subsec_nanos() }
            }
        }),
    })
}

/// Root (in place of CAP_FSETID, which a request does not tell) keeps set-id bits when it truncates a file.
pub fn keeps_set_id(uid: u32) -> bool {
    uid == 0
}

pub fn open_mode(flags: i32, uid: u32) -> OpenMode {
    let (read, write) = match OpenFlags(flags).acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    OpenMode { read, write, truncate: flags & libc::O_TRUNC != 0, drop_privileges: !keeps_set_id(uid) }
}

/// Names as listxattr(2) gives them: each with a NUL behind it.
pub fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|n| n.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_system_times_on_both_sides_of_the_epoch() {
        let half = Duration::from_millis(500);
        assert_eq!(system_time(Timestamp { sec: 3, nsec: 500_000_000 }), UNIX_EPOCH + Duration::from_secs(3) + half);
        assert_eq!(system_time(Timestamp { sec: -1, nsec: 500_000_000 }), UNIX_EPOCH - half);
        assert_eq!(system_time(Timestamp { sec: -2, nsec: 0 }), UNIX_EPOCH - Duration::from_secs(2));
        // The ends of the range neither panic nor wrap.
        for sec in [i64::MIN, i64::MAX] {
            let _ = system_time(Timestamp { sec, nsec: 999_999_999 });
        }
    }

    #[test]
    fn fuser_times_become_ours() {
        let at = |time| set_time(Some(TimeOrNow::SpecificTime(time)));
        assert_eq!(set_time(None), None);
        assert_eq!(set_time(Some(TimeOrNow::Now)), Some(SetTime::Now));
        assert_eq!(at(UNIX_EPOCH), Some(SetTime::At(Timestamp { sec: 0, nsec: 0 })));
        assert_eq!(at(UNIX_EPOCH + Duration::new(5, 7)), Some(SetTime::At(Timestamp { sec: 5, nsec: 7 })));
        // What fuser makes of (-2, 800_000_000), which is 1.2 seconds before the epoch.
        assert_eq!(
            at(UNIX_EPOCH - Duration::new(2, 800_000_000)),
            Some(SetTime::At(Timestamp { sec: -2, nsec: 800_000_000 }))
        );
        assert_eq!(at(UNIX_EPOCH - Duration::new(1 << 63, 0)), Some(SetTime::At(Timestamp { sec: i64::MIN, nsec: 0 })));
    }

    #[test]
    fn kinds_that_mknod_makes() {
        assert_eq!(node_kind(0o644), Some(Kind::File));
        assert_eq!(node_kind(libc::S_IFREG | 0o644), Some(Kind::File));
        assert_eq!(node_kind(libc::S_IFIFO), Some(Kind::Fifo));
        assert_eq!(node_kind(libc::S_IFSOCK), Some(Kind::Socket));
        assert_eq!(node_kind(libc::S_IFCHR), Some(Kind::CharDevice));
        assert_eq!(node_kind(libc::S_IFBLK), Some(Kind::BlockDevice));
        assert_eq!(node_kind(libc::S_IFDIR), None);
        assert_eq!(node_kind(libc::S_IFLNK), None);
    }

    #[test]
    fn open_flags() {
        let read = OpenMode { read: true, write: false, truncate: false, drop_privileges: false };
        assert_eq!(open_mode(libc::O_RDONLY, 0), read);
        assert_eq!(
            open_mode(libc::O_WRONLY | libc::O_TRUNC, 1000),
            OpenMode { read: false, write: true, truncate: true, drop_privileges: true }
        );
        assert_eq!(open_mode(libc::O_RDWR | libc::O_APPEND, 0), OpenMode { write: true, ..read });
    }

    #[test]
    fn attribute_names_end_with_nul() {
        assert_eq!(joined(&[b"user.a".to_vec(), b"security.b".to_vec()]), b"user.a\0security.b\0");
        assert_eq!(joined(&[]), b"");
    }
}
