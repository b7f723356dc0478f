//! The backing store: the small set of directory and file operations that everything above needs.
//! Owns the traits and their plain types; must not know encryption, names or FUSE.
//!
//! Two implementations: `disk` (a Linux directory, by descriptor, never by path) and `memory` (tests: failure injection).
//! Errors are `std::io::Error` with the raw errno of the backing store, passed through unchanged.

use std::io;

pub mod disk;
pub mod memory;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// Seconds and nanoseconds since the epoch; `nsec` is in 0..1_000_000_000 also before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    pub sec: i64,
    pub nsec: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Omit,
    Now,
    At(Timestamp),
}

/// What the backing store says of an object. Sizes in bytes, `blocks` in 512-byte units, `mode` holds the permission bits (07777) only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub kind: Kind,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// Space and inode counts, as statvfs(3): counts are in units of `fragment_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    pub block_size: u64,
    pub fragment_size: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max: u64,
}

/// One raw directory entry; `.` and `..` are never among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Box<[u8]>,
    pub ino: u64,
    pub kind: Kind,
}

/// On whose behalf an object is created: owner, group and the umask that applies where no default ACL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creator {
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
}

/// How a backing file is opened. Content is always read where it is written (blocks are rewritten whole).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// An object addressed without following links: an entry of a pinned directory, or a pinned object itself.
pub enum Place<'a, H> {
    Entry { dir: &'a H, name: &'a [u8] },
    Pinned(&'a H),
}

impl<H> Clone for Place<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H> Copy for Place<'_, H> {}

/// Rename behaviour, as renameat2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// EINVAL for anything but a single component: empty, `.`, `..`, or with `/` or NUL in it.
pub(crate) fn check_name(name: &[u8]) -> io::Result<()> {
    match name {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ if name.contains(&b'/') || name.contains(&0) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// One open backing file. Offsets and lengths are in bytes of the backing file.
pub trait BackingFile: Send + Sync + 'static {
    /// Reads until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`, or fails; on failure a prefix may have been written.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    fn stat(&self) -> io::Result<Stat>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Frees the range; it reads as zeros afterwards. The length does not change.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves space for the range; existing bytes and the length do not change.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// First byte at or after `offset` that may hold data; `None` past the last one (ENXIO).
    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// First hole at or after `offset` (the end of the file counts as one); `None` where `offset` is past the end.
    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>>;
    fn sync_data(&self) -> io::Result<()>;
    fn sync_all(&self) -> io::Result<()>;
    /// Sets the modification time alone.
    fn set_mtime(&self, mtime: Timestamp) -> io::Result<()>;
}

/// A backing directory tree. Nothing here follows a symbolic link or leaves the tree.
pub trait Store: Send + Sync + 'static {
    type File: BackingFile;
    /// Pins one object (a directory or anything else) whatever happens to its names: O_PATH on disk.
    type Handle: Send + Sync + 'static;

    /// The directory that holds the tree.
    fn root(&self) -> &Self::Handle;
    /// ENOENT where there is none, ENOTDIR is never checked here.
    fn pin(&self, dir: &Self::Handle, name: &[u8]) -> io::Result<Self::Handle>;
    fn stat(&self, place: Place<'_, Self::Handle>) -> io::Result<Stat>;
    /// Whole listing, in the store's order, without `.` and `..`. ENOENT for a directory that has been removed.
    fn list(&self, dir: &Self::Handle) -> io::Result<Vec<Entry>>;

    /// Opens an existing regular file; ELOOP for a symlink, EIO (never a hang) for any other kind.
    fn open_file(&self, place: Place<'_, Self::Handle>, access: Access) -> io::Result<Self::File>;
    /// Creates and opens read-write; EEXIST where the name is taken.
    fn create_file(&self, dir: &Self::Handle, name: &[u8], mode: u32, by: Creator) -> io::Result<Self::File>;
    fn mkdir(&self, dir: &Self::Handle, name: &[u8], mode: u32, by: Creator) -> io::Result<()>;
    fn mknod(&self, dir: &Self::Handle, name: &[u8], kind: Kind, mode: u32, rdev: u64, by: Creator) -> io::Result<()>;
    fn symlink(&self, dir: &Self::Handle, name: &[u8], target: &[u8], by: Creator) -> io::Result<()>;
    fn readlink(&self, place: Place<'_, Self::Handle>) -> io::Result<Vec<u8>>;
    fn link(&self, from: Place<'_, Self::Handle>, dir: &Self::Handle, name: &[u8]) -> io::Result<()>;
    fn unlink(&self, dir: &Self::Handle, name: &[u8]) -> io::Result<()>;
    fn rmdir(&self, dir: &Self::Handle, name: &[u8]) -> io::Result<()>;
    fn rename(&self, from: (&Self::Handle, &[u8]), to: (&Self::Handle, &[u8]), mode: RenameMode) -> io::Result<()>;

    fn chmod(&self, place: Place<'_, Self::Handle>, mode: u32) -> io::Result<()>;
    fn chown(&self, place: Place<'_, Self::Handle>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    fn set_times(&self, place: Place<'_, Self::Handle>, atime: SetTime, mtime: SetTime) -> io::Result<()>;

    /// Extended attributes, full names (`user.x`). ENODATA where there is none.
    fn get_xattr(&self, place: Place<'_, Self::Handle>, name: &[u8]) -> io::Result<Vec<u8>>;
    /// `flags` as setxattr(2): 0, XATTR_CREATE or XATTR_REPLACE.
    fn set_xattr(&self, place: Place<'_, Self::Handle>, name: &[u8], value: &[u8], flags: i32) -> io::Result<()>;
    fn list_xattrs(&self, place: Place<'_, Self::Handle>) -> io::Result<Vec<Vec<u8>>>;
    fn remove_xattr(&self, place: Place<'_, Self::Handle>, name: &[u8]) -> io::Result<()>;

    fn statfs(&self) -> io::Result<StatFs>;
    /// Makes the entries of `dir` durable.
    fn sync_dir(&self, dir: &Self::Handle) -> io::Result<()>;
    /// Makes the whole backing filesystem durable, as syncfs(2); an earlier write-back error is reported here.
    fn sync_fs(&self) -> io::Result<()>;
    /// The calling thread's data writes count against this owner's quota and reserve from now on (no-op where there is one user).
    fn charge_to(&self, uid: u32, gid: u32);
}
