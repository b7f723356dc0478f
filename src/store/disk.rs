//! A Linux directory as the store: one place for the file system calls. Knows neither encryption nor names' meaning.
//!
//! Every call names a single component relative to an O_PATH descriptor and follows no link; where a call takes no O_PATH
//! descriptor, the object is reached through `/proc/self/fd/N`, which leads to it and nowhere else.

mod file;
mod identity;
mod xattr;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use self::identity::Switch;
use super::{Access, Creator, Entry, Kind, Place, RenameMode, SetTime, Stat, StatFs, Store, Timestamp, check_name};
use crate::sys::descriptor;

pub use self::file::DiskFile;

/// Bytes of directory entries fetched by one getdents64(2).
const LISTING_BUFFER: usize = 128 * 1024;

/// A directory tree of a mounted Linux file system.
#[derive(Debug)]
pub struct DiskStore {
    root: OwnedFd,
    /// A real descriptor of the file system, held from the start: syncfs(2) reports the write-back errors since it was opened.
    sync: OwnedFd,
    switch: Switch,
    noatime: bool,
}

impl DiskStore {
    /// The directory at `path`; links in `path` are followed. ENOTDIR for anything else.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::with_root(rustix::fs::openat(CWD, path.as_ref(), PIN | OFlags::DIRECTORY, Mode::empty())?)
    }

    /// The directory `name` (one component) in `dir`; never follows a link.
    pub fn open_at(dir: impl AsFd, name: &[u8]) -> io::Result<Self> {
        check_name(name)?;
        Self::with_root(rustix::fs::openat(dir, name, PIN | OFlags::NOFOLLOW | OFlags::DIRECTORY, Mode::empty())?)
    }

    fn with_root(root: OwnedFd) -> io::Result<Self> {
        let sync = match open_directory(&root, OFlags::empty()) {
            // A root of mode 0300, say. Its parent does, where it lies on the same file system.
            Err(Errno::ACCESS) => {
                let parent = rustix::fs::openat(&root, "..", DIRECTORY, Mode::empty())?;
                if rustix::fs::fstat(&parent)?.st_dev != rustix::fs::fstat(&root)?.st_dev {
                    return Err(Errno::ACCESS.into());
                }
                parent
            }
            other => other?,
        };
        if rustix::fs::stat(descriptor::path(root.as_fd())).is_err() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "/proc is not mounted"));
        }
        Ok(Self { root, sync, switch: Switch::of_process(), noatime: false })
    }

    /// Reads leave access times alone, where the kernel allows it (owner, or CAP_FOWNER).
    pub fn noatime(mut self, yes: bool) -> Self {
        self.noatime = yes;
        self
    }

    /// Runs an open with O_NOATIME where that is wanted and allowed.
    fn quietly(&self, open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
        if self.noatime {
            match open(OFlags::NOATIME) {
                Err(Errno::PERM) => {}
                other => return other,
            }
        }
        open(OFlags::empty())
    }

    /// chmod for kernels without fchmodat2(2).
    fn chmod_through_proc(&self, place: Place<'_, OwnedFd>, mode: u32) -> io::Result<()> {
        let pinned;
        let handle = match place {
            Place::Pinned(handle) => handle,
            Place::Entry { dir, name } => {
                pinned = self.pin(dir, name)?;
                &pinned
            }
        };
        if kind_of(rustix::fs::fstat(handle)?.st_mode)? == Kind::Symlink {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(rustix::fs::chmod(descriptor::path(handle.as_fd()), mode_of(mode))?)
    }

    fn open_pinned(&self, handle: &OwnedFd, access: OFlags) -> io::Result<DiskFile> {
        match kind_of(rustix::fs::fstat(handle)?.st_mode)? {
            Kind::File => {}
            Kind::Symlink => return Err(Errno::LOOP.into()),
            _ => return Err(Errno::IO.into()),
        }
        let path = descriptor::path(handle.as_fd());
        let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(DiskFile::new(self.quietly(|more| rustix::fs::open(&path, flags | more, Mode::empty()))?))
    }
}

const PIN: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_directory(dir: &OwnedFd, more: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, ".", DIRECTORY | more, Mode::empty())
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

fn kind_of(st_mode: u32) -> io::Result<Kind> {
    kind_of_type(FileType::from_raw_mode(st_mode)).ok_or_else(|| Errno::IO.into())
}

fn kind_of_type(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return None,
    })
}

/// The kernel's `struct stat`, whose field types differ between architectures.
#[allow(clippy::unnecessary_cast)]
fn stat_of(stat: &rustix::fs::Stat) -> io::Result<Stat> {
    Ok(Stat {
        dev: stat.st_dev as u64,
        ino: stat.st_ino as u64,
        kind: kind_of(stat.st_mode)?,
        mode: stat.st_mode & 0o7777,
        nlink: stat.st_nlink as u64,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u64,
        size: u64::try_from(stat.st_size).map_err(|_| Errno::IO)?,
        blocks: stat.st_blocks as u64,
        atime: Timestamp { sec: stat.st_atime as i64, nsec: stat.st_atime_nsec as u32 },
        mtime: Timestamp { sec: stat.st_mtime as i64, nsec: stat.st_mtime_nsec as u32 },
        ctime: Timestamp { sec: stat.st_ctime as i64, nsec: stat.st_ctime_nsec as u32 },
    })
}

fn timespec(time: SetTime) -> Timespec {
    match time {
        SetTime::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::At(at) => Timespec { tv_sec: at.sec, tv_nsec: at.nsec.into() },
    }
}

/// Sets the mode by fchmodat2(2); `false` where that call is not to be had.
fn chmod_directly(place: Place<'_, OwnedFd>, mode: u32) -> io::Result<bool> {
    static MISSING: AtomicBool = AtomicBool::new(false);
    if MISSING.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let (dir, name) = match place {
        Place::Entry { dir, name } => (dir, name),
        Place::Pinned(handle) => (handle, &b""[..]),
    };
    let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
    match descriptor::chmod_at(dir.as_fd(), &name, mode) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                MISSING.store(true, Ordering::Relaxed);
                Ok(false)
            }
            // Some sandboxes answer so to calls they do not know; the other way tells the truth.
            Some(libc::EPERM) => Ok(false),
            _ => Err(error),
        },
    }
}

impl Store for DiskStore {
    type File = DiskFile;
    type Handle = OwnedFd;

    fn root(&self) -> &OwnedFd {
        &self.root
    }

    fn pin(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
        check_name(name)?;
        Ok(rustix::fs::openat(dir, name, PIN | OFlags::NOFOLLOW, Mode::empty())?)
    }

    fn stat(&self, place: Place<'_, OwnedFd>) -> io::Result<Stat> {
        stat_of(&match place {
            Place::Entry { dir, name } => {
                check_name(name)?;
                rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)?
            }
            Place::Pinned(handle) => rustix::fs::fstat(handle)?,
        })
    }

    fn list(&self, dir: &OwnedFd) -> io::Result<Vec<Entry>> {
        let open = self.quietly(|more| open_directory(dir, more))?;
        let mut buffer: Vec<u8> = Vec::with_capacity(LISTING_BUFFER);
        let mut raw = RawDir::new(&open, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match kind_of_type(entry.file_type()) {
                Some(kind) => kind,
                None => match self.stat(Place::Entry { dir, name }) {
                    Ok(stat) => stat.kind,
                    // Removed meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                    Err(error) => return Err(error),
                },
            };
            entries.push(Entry { name: name.into(), ino: entry.ino(), kind });
        }
        Ok(entries)
    }

    fn open_file(&self, place: Place<'_, OwnedFd>, access: Access) -> io::Result<DiskFile> {
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let (dir, name) = match place {
            Place::Pinned(handle) => return self.open_pinned(handle, access),
            Place::Entry { dir, name } => (dir, name),
        };
        check_name(name)?;
        // O_NONBLOCK: a FIFO or a device must not make us wait before we know what it is.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match self.quietly(|more| rustix::fs::openat(dir, name, flags | more, Mode::empty())) {
            Ok(fd) => match kind_of(rustix::fs::fstat(&fd)?.st_mode)? {
                Kind::File => Ok(DiskFile::new(fd)),
                _ => Err(Errno::IO.into()),
            },
            // Directory, socket or absent device.
            Err(Errno::ISDIR | Errno::NXIO | Errno::NODEV) => Err(Errno::IO.into()),
            // Somebody holds a lease (fcntl(2)) on the file: this open waits until it is given back.
            Err(Errno::WOULDBLOCK) => self.open_pinned(&self.pin(dir, name)?, access),
            Err(error) => Err(error.into()),
        }
    }

    fn create_file(&self, dir: &OwnedFd, name: &[u8], mode: u32, by: Creator) -> io::Result<DiskFile> {
        check_name(name)?;
        self.switch.create_as(by)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(DiskFile::new(rustix::fs::openat(dir, name, flags, mode_of(mode))?))
    }

    fn mkdir(&self, dir: &OwnedFd, name: &[u8], mode: u32, by: Creator) -> io::Result<()> {
        check_name(name)?;
        self.switch.create_as(by)?;
        Ok(rustix::fs::mkdirat(dir, name, mode_of(mode))?)
    }

    fn mknod(&self, dir: &OwnedFd, name: &[u8], kind: Kind, mode: u32, rdev: u64, by: Creator) -> io::Result<()> {
        check_name(name)?;
        let (file_type, rdev) = match kind {
            Kind::File => (FileType::RegularFile, 0),
            Kind::Fifo => (FileType::Fifo, 0),
            Kind::Socket => (FileType::Socket, 0),
            Kind::CharDevice => (FileType::CharacterDevice, rdev),
            Kind::BlockDevice => (FileType::BlockDevice, rdev),
            Kind::Directory | Kind::Symlink => return Err(Errno::INVAL.into()),
        };
        self.switch.create_as(by)?;
        Ok(rustix::fs::mknodat(dir, name, file_type, mode_of(mode), rdev)?)
    }

    fn symlink(&self, dir: &OwnedFd, name: &[u8], target: &[u8], by: Creator) -> io::Result<()> {
        check_name(name)?;
        self.switch.create_as(by)?;
        Ok(rustix::fs::symlinkat(target, dir, name)?)
    }

    fn readlink(&self, place: Place<'_, OwnedFd>) -> io::Result<Vec<u8>> {
        let target = match place {
            Place::Entry { dir, name } => {
                check_name(name)?;
                rustix::fs::readlinkat(dir, name, Vec::new())?
            }
            // With an empty name, ENOENT stands for "not a link" (readlink(2)).
            Place::Pinned(handle) => rustix::fs::readlinkat(handle, "", Vec::new()).map_err(|error| match error {
                Errno::NOENT => Errno::INVAL,
                other => other,
            })?,
        };
        Ok(target.into_bytes())
    }

    fn link(&self, from: Place<'_, OwnedFd>, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        check_name(name)?;
        let linked = match from {
            Place::Entry { dir: old_dir, name: old } => {
                check_name(old)?;
                rustix::fs::linkat(old_dir, old, dir, name, AtFlags::empty())
            }
            Place::Pinned(handle) => {
                let path = descriptor::path(handle.as_fd());
                rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
            }
        };
        Ok(linked?)
    }

    fn unlink(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        check_name(name)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn rmdir(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        check_name(name)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }

    fn rename(&self, from: (&OwnedFd, &[u8]), to: (&OwnedFd, &[u8]), mode: RenameMode) -> io::Result<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags)?)
    }

    fn chmod(&self, place: Place<'_, OwnedFd>, mode: u32) -> io::Result<()> {
        if let Place::Entry { name, .. } = place {
            check_name(name)?;
        }
        let mode = mode & 0o7777;
        if chmod_directly(place, mode)? {
            return Ok(());
        }
        self.chmod_through_proc(place, mode)
    }

    fn chown(&self, place: Place<'_, OwnedFd>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::INVAL.into());
        }
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        let changed = match place {
            Place::Entry { dir, name } => {
                check_name(name)?;
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            Place::Pinned(handle) => rustix::fs::chownat(handle, "", uid, gid, AtFlags::EMPTY_PATH),
        };
        Ok(changed?)
    }

    fn set_times(&self, place: Place<'_, OwnedFd>, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        let set = match place {
            Place::Entry { dir, name } => {
                check_name(name)?;
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            // utimensat(2) knows AT_EMPTY_PATH since Linux 5.8 only.
            Place::Pinned(handle) => {
                rustix::fs::utimensat(CWD, descriptor::path(handle.as_fd()), &times, AtFlags::empty())
            }
        };
        Ok(set?)
    }

    fn get_xattr(&self, place: Place<'_, OwnedFd>, name: &[u8]) -> io::Result<Vec<u8>> {
        xattr::get(place, name)
    }

    fn set_xattr(&self, place: Place<'_, OwnedFd>, name: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
        xattr::set(place, name, value, flags)
    }

    fn list_xattrs(&self, place: Place<'_, OwnedFd>) -> io::Result<Vec<Vec<u8>>> {
        xattr::list(place)
    }

    fn remove_xattr(&self, place: Place<'_, OwnedFd>, name: &[u8]) -> io::Result<()> {
        xattr::remove(place, name)
    }

    fn statfs(&self) -> io::Result<StatFs> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(StatFs {
            block_size: stat.f_bsize,
            fragment_size: stat.f_frsize,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            name_max: stat.f_namemax,
        })
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        let open = open_directory(dir, OFlags::empty())?;
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(&open))?)
    }

    fn sync_fs(&self) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::syncfs(&self.sync))?)
    }

    fn charge_to(&self, uid: u32, gid: u32) {
        self.switch.charge_to(uid, gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_change_modes_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("l")).unwrap();
        let store = DiskStore::open(dir.path()).unwrap();
        let (file, link) = (store.pin(store.root(), b"f").unwrap(), store.pin(store.root(), b"l").unwrap());
        for (place, mode) in [(Place::Entry { dir: store.root(), name: b"f" }, 0o751), (Place::Pinned(&file), 0o640)] {
            store.chmod_through_proc(place, mode).unwrap();
            assert_eq!(store.stat(place).unwrap().mode, mode);
        }
        for place in [Place::Entry { dir: store.root(), name: b"l" }, Place::Pinned(&link)] {
            let error = store.chmod_through_proc(place, 0o777).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        }
        assert_eq!(store.stat(Place::Pinned(&file)).unwrap().mode, 0o640);
    }
}
