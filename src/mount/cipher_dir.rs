//! The CIPHERDIR itself: its lock, its volume file, its rooms. Does the directory I/O; knows neither trust nor FUSE.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::MountError;
use super::kernel;
use crate::format::volume::{OVERFLOW_DIR, TREE_DIR, UnverifiedVolume, VOLUME_FILE, VolumeConfig, VolumeKeys};
use crate::store::disk::DiskStore;
use crate::sys::lock;

/// Larger volume files are refused before they are read: bytes.
const VOLUME_FILE_READ_MAX: u64 = 2 << 20;
/// What a new volume file is written to before it takes its name.
const VOLUME_FILE_TEMP: &str = ".envelopefs.tmp.toml";
/// How long a mount waits for an owner that is unmounted already and finishes its last commit.
pub const DEPARTURE: Duration = Duration::from_secs(30);

/// An open CIPHERDIR. The lock, once taken, lives as long as this value.
#[derive(Debug)]
pub struct CipherDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl CipherDir {
    pub fn open(path: &Path) -> Result<Self, MountError> {
        let wrong = |e: io::Error| {
            let hint = match e.kind() {
                io::ErrorKind::NotFound => format!("; a new volume is made with: envelopefs init {}", path.display()),
                _ => String::new(),
            };
            MountError::Volume(format!("{}: {e}{hint}", path.display()))
        };
        let canonical = path.canonicalize().map_err(wrong)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&canonical, flags, Mode::empty()).map_err(|e| wrong(e.into()))?;
        Ok(Self { path: canonical, dir })
    }

    /// Makes (mode 0700) or takes over an empty directory for a new volume, and locks it. Tells whether it was made.
    pub fn create(path: &Path) -> Result<(Self, bool), MountError> {
        let made = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(MountError::Volume(format!("{}: {e}", path.display()))),
        };
        let dir = Self::open(path)?;
        dir.lock(true, Duration::ZERO)?;
        match dir.is_empty() {
            Ok(true) => {}
            Ok(false) if dir.has_volume_file() => {
                return Err(MountError::Volume(format!("{} holds a volume already", path.display())));
            }
            Ok(false) => {
                return Err(MountError::Volume(format!(
                    "{} is not empty: a new volume needs an empty directory, or one that does not exist yet",
                    path.display()
                )));
            }
            Err(e) => return Err(MountError::Volume(format!("{}: {e}", path.display()))),
        }
        Ok((dir, made))
    }

    fn is_empty(&self) -> io::Result<bool> {
        Ok(fs::read_dir(&self.path)?.next().is_none())
    }

    /// Canonical.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn has_volume_file(&self) -> bool {
        rustix::fs::statat(&self.dir, VOLUME_FILE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Exclusive for a writer, shared for readers. Waits up to `patience` for an owner whose mount is gone already.
    pub fn lock(&self, exclusive: bool, patience: Duration) -> Result<(), MountError> {
        let start = Instant::now();
        let mut told = false;
        loop {
            if lock::try_lock(&self.dir, exclusive).map_err(|e| self.volume_error("lock", &e))? {
                return Ok(());
            }
            let mounts = kernel::mounts_of(&self.path).unwrap_or_default();
            if !mounts.is_empty() || start.elapsed() >= patience {
                let mounted: Vec<String> = mounts.iter().map(|m| m.mountpoint.display().to_string()).collect();
                return Err(MountError::Busy(self.owner_message(&mounted, exclusive)));
            }
            if !told {
                log::warn!("waiting for {}, which still finishes its last commit", self.owner_name());
                told = true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn owner_name(&self) -> String {
        let holders = lock::holders(&self.dir).unwrap_or_default();
        let others: Vec<String> = holders.iter().filter(|p| **p != std::process::id()).map(u32::to_string).collect();
        match others.len() {
            0 => "another process".to_string(),
            1 => format!("process {}", others[0]),
            _ => format!("processes {}", others.join(", ")),
        }
    }

    fn owner_message(&self, mountpoints: &[String], exclusive: bool) -> String {
        let place =
            if mountpoints.is_empty() { String::new() } else { format!(", mounted at {}", mountpoints.join(", ")) };
        let way_out = match (mountpoints.first(), exclusive) {
            (Some(mountpoint), _) => format!("; use that mount, or end it with: envelopefs umount {mountpoint}"),
            (None, true) => "; a writer needs it alone".to_string(),
            (None, false) => "; readers cannot share it with a writer".to_string(),
        };
        format!("{} is owned by {}{place}{way_out}", self.path.display(), self.owner_name())
    }

    /// `None` where there is no volume file.
    pub fn read_volume(&self) -> Result<Option<UnverifiedVolume>, MountError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, VOLUME_FILE, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.volume_error(VOLUME_FILE, &e.into())),
        };
        if !file.metadata().is_ok_and(|m| m.is_file()) {
            return Err(MountError::Volume(format!("{}/{VOLUME_FILE} is not a regular file", self.path.display())));
        }
        let mut text = Vec::new();
        file.take(VOLUME_FILE_READ_MAX).read_to_end(&mut text).map_err(|e| self.volume_error(VOLUME_FILE, &e))?;
        match UnverifiedVolume::parse(&text) {
            Ok(volume) => Ok(Some(volume)),
            Err(e) => Err(MountError::Volume(format!("{}/{VOLUME_FILE}: {e}", self.path.display()))),
        }
    }

    /// The volume file, or the error that says how to go on without.
    pub fn require_volume(&self) -> Result<UnverifiedVolume, MountError> {
        self.read_volume()?.ok_or_else(|| {
            MountError::Volume(format!(
                "{0} is not a volume: it has no {VOLUME_FILE}. A new one is made in an empty directory with: envelopefs init \
                 {0}. If the file was lost, restore it from a backup, or recover the content without it: envelopefs export \
                 --cmk URI {0} DEST",
                self.path.display()
            ))
        })
    }

    /// Replaces the volume file: temporary file, fsync, rename, fsync of the directory.
    pub fn write_volume(&self, config: &VolumeConfig, keys: &VolumeKeys) -> io::Result<()> {
        let _ = rustix::fs::unlinkat(&self.dir, VOLUME_FILE_TEMP, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, VOLUME_FILE_TEMP, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(fd);
        let written = (|| {
            file.write_all(&config.encode(keys))?;
            file.sync_all()?;
            rustix::fs::renameat(&self.dir, VOLUME_FILE_TEMP, &self.dir, VOLUME_FILE)?;
            Ok(())
        })();
        match written {
            Ok(()) => Ok(rustix::fs::fsync(&self.dir)?),
            Err(e) => {
                let _ = rustix::fs::unlinkat(&self.dir, VOLUME_FILE_TEMP, AtFlags::empty());
                Err(e)
            }
        }
    }

    /// Makes the rooms of a new volume.
    pub fn make_rooms(&self) -> io::Result<()> {
        let tree_mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
        for (name, mode) in [(TREE_DIR, tree_mode), (OVERFLOW_DIR, 0o700)] {
            rustix::fs::mkdirat(&self.dir, name, Mode::from_raw_mode(mode))?;
            // Whatever the umask left of it.
            fs::set_permissions(self.path.join(name), Permissions::from_mode(mode))?;
        }
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    /// Takes back what an unfinished `init` made: rooms that hold nothing of a user.
    pub fn remove_rooms(&self, remove_self: bool) {
        for name in [VOLUME_FILE, VOLUME_FILE_TEMP] {
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
        for name in [TREE_DIR, OVERFLOW_DIR] {
            let _ = fs::remove_dir_all(self.path.join(name));
        }
        if remove_self {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// The directory's own entry durable, for one that was just made.
    pub fn sync_parent(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    pub fn tree(&self) -> Result<DiskStore, MountError> {
        DiskStore::open_at(&self.dir, TREE_DIR.as_bytes()).map_err(|e| self.volume_error(TREE_DIR, &e))
    }

    pub fn overflow(&self) -> Result<DiskStore, MountError> {
        DiskStore::open_at(&self.dir, OVERFLOW_DIR.as_bytes()).map_err(|e| self.volume_error(OVERFLOW_DIR, &e))
    }

    fn volume_error(&self, what: &str, error: &io::Error) -> MountError {
        MountError::Volume(format!("{}/{what}: {error}", self.path.display()))
    }

    /// What an operator should know about the place: each a sentence.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let path = self.path.display();
        if let Ok(stat) = fs::metadata(&self.path)
            && stat.mode() & 0o077 != 0
        {
            remarks.push(format!(
                "{path} has mode {:04o}: others can reach the encrypted files; recommended: chmod 0700 {path}",
                stat.mode() & 0o7777
            ));
        }
        if let Ok(stat) = rustix::fs::fstatvfs(&self.dir)
            && stat.f_bsize < 4096
        {
            remarks.push(format!(
                "the file system under {path} has blocks of {} bytes: a power cut may tear a block that was synced",
                stat.f_bsize
            ));
        }
        remarks
    }
}

impl AsFd for CipherDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_needs_an_empty_directory_and_takes_back_what_it_made() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("new");
        let (dir, made) = CipherDir::create(&path).unwrap();
        assert!(made);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        dir.make_rooms().unwrap();
        drop(dir);
        let error = CipherDir::create(&path).unwrap_err();
        assert!(matches!(&error, MountError::Volume(text) if text.contains("is not empty")), "{error}");
        let dir = CipherDir::open(&path).unwrap();
        dir.remove_rooms(false);
        assert!(dir.is_empty().unwrap());
    }

    #[test]
    fn a_second_owner_is_told_who_the_first_one_is() {
        let top = tempfile::tempdir().unwrap();
        let first = CipherDir::open(top.path()).unwrap();
        first.lock(true, Duration::ZERO).unwrap();
        let second = CipherDir::open(top.path()).unwrap();
        let error = second.lock(false, Duration::ZERO).unwrap_err();
        assert!(matches!(error, MountError::Busy(_)), "{error}");
        drop(first);
        second.lock(false, Duration::ZERO).unwrap();
        CipherDir::open(top.path()).unwrap().lock(false, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_missing_volume_says_how_to_make_one() {
        let top = tempfile::tempdir().unwrap();
        let error = CipherDir::open(&top.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("envelopefs init"), "{error}");
        let dir = CipherDir::open(top.path()).unwrap();
        assert!(dir.read_volume().unwrap().is_none());
        assert!(dir.require_volume().is_err());
        fs::write(top.path().join(VOLUME_FILE), "nonsense").unwrap();
        assert!(matches!(dir.read_volume(), Err(MountError::Volume(_))));
        fs::remove_file(top.path().join(VOLUME_FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", top.path().join(VOLUME_FILE)).unwrap();
        assert!(matches!(dir.read_volume(), Err(MountError::Volume(_))));
    }

    #[test]
    fn a_loose_mode_is_remarked() {
        let top = tempfile::tempdir().unwrap();
        let dir = CipherDir::open(top.path()).unwrap();
        fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
        assert!(dir.remarks().iter().any(|r| r.contains("0755")));
        fs::set_permissions(top.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(dir.remarks().iter().all(|r| !r.contains("chmod")));
    }
}
