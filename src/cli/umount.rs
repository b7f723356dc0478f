//! `envelopefs umount`: flush, commit, unmount, and wait until the daemon is gone.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::mount::shell_word;
use super::{Failure, exit, note};
use crate::fuse::{COMMIT_XATTR, PID_XATTR};
use crate::mount::kernel::{self, FS_TYPE, MountEntry};
use crate::sys::lock;
use crate::sys::process::Process;

/// Unmount a volume; returns when everything is on disk and its process is gone
#[derive(Args)]
pub struct Umount {
    /// Unmount even if the commit fails
    #[arg(long)]
    force: bool,
    /// How long to wait for the process to be gone
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = crate::config::parse_duration)]
    timeout: Duration,
    mountpoint: PathBuf,
}

impl Umount {
    pub fn run(self) -> Result<(), Failure> {
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::new(exit::MOUNTPOINT, format!("{}: {why}", self.mountpoint.display()))
        };
        let path = kernel::resolve_mountpoint(&self.mountpoint).map_err(|e| wrong(&e))?;
        let entry = match kernel::mount_at(&path).map_err(|e| wrong(&e))? {
            Some(entry) if entry.fs_type == FS_TYPE => entry,
            Some(entry) => return Err(wrong(&format_args!("not an envelopefs mount but {}", entry.fs_type))),
            None => return Err(wrong(&"nothing is mounted here")),
        };
        let owner = owner(&path, &entry).and_then(|pid| Process::open(pid).ok());
        if let Err(e) = flush(&path) {
            if !self.force {
                return Err(Failure::new(
                    exit::FAILURE,
                    format!(
                        "{}: not unmounted, since written data could not be saved: {e}. Make room or repair what is wrong, \
                         then try again; --force unmounts and loses that data",
                        path.display()
                    ),
                ));
            }
            note(format_args!("{}: written data could not be saved: {e}", path.display()));
        }
        kernel::unmount(&path, false).map_err(|e| match e.kind() {
            io::ErrorKind::ResourceBusy => Failure::new(
                exit::BUSY,
                format!(
                    "{0} is in use: open files or a working directory in it. Who it is: fuser -vm {1} (or: lsof {1})",
                    path.display(),
                    shell_word(&path)
                ),
            ),
            _ => wrong(&e),
        })?;
        match owner.map(|process| process.wait(self.timeout)) {
            None | Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(Failure::new(
                exit::BUSY,
                format!(
                    "{} is unmounted here, but its process is not gone after {} seconds: it still commits, or a copy of the \
                     mount lives on in another mount namespace (a container)",
                    path.display(),
                    self.timeout.as_secs()
                ),
            )),
            Some(Err(e)) => Err(wrong(&e)),
        }
    }
}

/// The daemon's process: from the mount itself, or (dead, or closed to us) from the lock on its source.
fn owner(mountpoint: &Path, entry: &MountEntry) -> Option<u32> {
    let mut text = [0u8; 16];
    if let Ok(len) = rustix::fs::getxattr(mountpoint, PID_XATTR, &mut text[..]) {
        return std::str::from_utf8(text.get(..len)?).ok()?.parse().ok();
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(&entry.source, flags, Mode::empty()).ok()?;
    match lock::holders(source).ok()?.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

/// The kernel's dirty pages to the daemon, then a commit, whose error is the daemon's own.
fn flush(mountpoint: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::open(mountpoint, flags, Mode::empty()) {
        Ok(root) => root,
        // Nobody answers any more, or we may not look inside: unmounting decides.
        Err(Errno::NOTCONN | Errno::ACCESS) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    rustix::fs::syncfs(&root)?;
    match rustix::fs::fsetxattr(&root, COMMIT_XATTR, b"1", XattrFlags::empty()) {
        // Read-only, or we may not: the daemon commits by itself when it ends.
        Ok(()) | Err(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
