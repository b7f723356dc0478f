//! The kernel's side of a mount: making it, finding it, ending it. Knows mount(2), fusermount3 and mountinfo; no volume.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::config::MountOptions;

/// File system type in mountinfo and fstab.
pub const FS_TYPE: &str = "fuse.envelopefs";
const SUBTYPE: &str = "envelopefs";
const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// A fresh mount whose first request nobody has answered yet.
#[derive(Debug)]
pub struct KernelMount {
    pub device: OwnedFd,
    /// With `auto_unmount`: fusermount3 unmounts when this closes.
    pub keeper: Option<OwnedFd>,
}

/// Mounts at `mountpoint` (a directory; absolute path). `source` appears in mountinfo. By mount(2) where we may,
/// otherwise by fusermount3, which is set-user-id root. The error text is for the user.
pub fn mount(
    source: &Path,
    mountpoint: &Path,
    options: &MountOptions,
    allow_other: bool,
) -> Result<KernelMount, String> {
    if !options.auto_unmount {
        match mount_directly(source, mountpoint, options, allow_other) {
            Ok(device) => return Ok(KernelMount { device, keeper: None }),
            Err(Errno::PERM | Errno::ACCESS) => {}
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) if !fuse_device_exists() => {
                return Err(format!("{DEVICE} is missing: load the kernel's fuse module (modprobe fuse)"));
            }
            Err(e) => return Err(format!("cannot mount at {}: {e}", mountpoint.display())),
        }
    }
    mount_by_helper(source, mountpoint, options, allow_other)
}

fn fuse_device_exists() -> bool {
    fs::metadata(DEVICE).is_ok_and(|m| m.file_type().is_char_device())
}

/// Whether this process may open the device itself, as an event loop with its own queue must.
pub fn can_clone_device() -> bool {
    fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE).is_ok()
}

fn mount_directly(
    source: &Path,
    mountpoint: &Path,
    options: &MountOptions,
    allow_other: bool,
) -> Result<OwnedFd, Errno> {
    let errno = |e: io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE)
        .map(OwnedFd::from)
        .map_err(errno)?;
    let root_mode = fs::metadata(mountpoint).map_err(errno)?.mode() & libc::S_IFMT;
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::empty();
    for (wanted, flag) in [
        (options.read_only, MountFlags::RDONLY),
        (!options.suid, MountFlags::NOSUID),
        (!options.dev, MountFlags::NODEV),
        (!options.exec, MountFlags::NOEXEC),
        (options.noatime, MountFlags::NOATIME),
        (options.sync, MountFlags::SYNCHRONOUS),
        (options.dirsync, MountFlags::DIRSYNC),
    ] {
        flags.set(flag, wanted);
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, mountpoint, FS_TYPE, flags, data.as_c_str())?;
    Ok(device)
}

fn mount_by_helper(
    source: &Path,
    mountpoint: &Path,
    options: &MountOptions,
    allow_other: bool,
) -> Result<KernelMount, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("cannot mount at {}: {what}{e}", mountpoint.display());
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed("", &e))?;
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(helper_options(source, options, allow_other))
        .arg("--")
        .arg(mountpoint)
        // The helper answers on the descriptor that this variable names: its standard input.
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("fusermount3 (package fuse3) does not start: ", &e))?;
    match receive_descriptor(&ours) {
        Ok(Some(device)) if options.auto_unmount => {
            // The helper lives on and waits for our end to close.
            Ok(KernelMount { device, keeper: Some(ours.into()) })
        }
        received => {
            // Without a descriptor the helper has written why to its standard error, and ends.
            let output = child.wait_with_output().map_err(|e| failed("", &e))?;
            match received {
                Ok(Some(device)) => Ok(KernelMount { device, keeper: None }),
                Ok(None) => {
                    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
                    let hint = if text.contains("user_allow_other") {
                        "; leave allow_other out, or have the administrator set user_allow_other in /etc/fuse.conf"
                    } else {
                        ""
                    };
                    Err(failed("", &format!("{text}{hint}")))
                }
                Err(e) => Err(failed("", &e)),
            }
        }
    }
}

/// fusermount3's own syntax: a comma or backslash in a value is escaped.
fn helper_options(source: &Path, options: &MountOptions, allow_other: bool) -> OsString {
    let mut text = b"fsname=".to_vec();
    for &byte in source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.extend_from_slice(format!(",subtype={SUBTYPE},default_permissions").as_bytes());
    for (wanted, word) in [
        (allow_other, "allow_other"),
        (options.read_only, "ro"),
        (!options.suid, "nosuid"),
        (!options.dev, "nodev"),
        (!options.exec, "noexec"),
        (options.noatime, "noatime"),
        (options.sync, "sync"),
        (options.dirsync, "dirsync"),
        (options.auto_unmount, "auto_unmount"),
    ] {
        if wanted {
            text.push(b',');
            text.extend_from_slice(word.as_bytes());
        }
    }
    OsString::from_vec(text)
}

/// One descriptor passed over a Unix socket (unix(7), SCM_RIGHTS); `None` where the other side closed without.
fn receive_descriptor(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let read = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if read.bytes == 0 {
        return Ok(None);
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// Unmounts. `lazy`: hides the mount at once and ends it when its last user is gone (MNT_DETACH).
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_helper(mountpoint, lazy),
        Err(e) => Err(e.into()),
    }
}

fn unmount_by_helper(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(HELPER);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
    let kind = if text.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, text))
}

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor` of st_dev.
    pub device: (u32, u32),
    pub mountpoint: PathBuf,
    pub fs_type: String,
    pub source: PathBuf,
    /// A FUSE mount's `user_id`: who mounted it.
    pub owner: Option<u32>,
}

/// Everything mounted in our mount namespace, in the kernel's order: of two at one place, the later one is on top.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_mountinfo).collect())
}

/// The envelopefs mounts of one CIPHERDIR (canonical path).
pub fn mounts_of(source: &Path) -> io::Result<Vec<MountEntry>> {
    Ok(mounts()?.into_iter().filter(|m| m.fs_type == FS_TYPE && m.source == source).collect())
}

/// What is mounted exactly at this canonical path, topmost.
pub fn mount_at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

pub(crate) fn parse_mountinfo(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let mountpoint = path_of(fields.nth(1)?);
    // Optional fields end with a single dash.
    fields.find(|f| *f == b"-")?;
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = path_of(fields.next()?);
    let own_options = fields.next().unwrap_or_default();
    let owner = own_options.split(|b| *b == b',').find_map(|option| option.strip_prefix(b"user_id="));
    let owner = owner.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
    Some(MountEntry { device, mountpoint, fs_type, source, owner })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn path_of(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(digits) => {
                // Three octal digits of one byte; the kernel writes no larger ones.
                bytes.push(digits.iter().fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Device number of the newest envelopefs mount of this CIPHERDIR at this place, also where another covers it.
pub fn device_of(source: &Path, mountpoint: &Path) -> Option<(u32, u32)> {
    let all = mounts_of(source).ok()?;
    all.into_iter().rfind(|m| m.mountpoint == mountpoint).map(|m| m.device)
}

/// The envelopefs mount that `path` means, found without asking it anything: it may hang. What is wrong with the path is
/// for the user.
pub fn find(path: &Path) -> Result<MountEntry, String> {
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    let all = mounts().map_err(failed)?;
    let exactly = |at: &Path| all.iter().rfind(|m| m.mountpoint == at).cloned();
    let absolute = std::path::absolute(path).map_err(failed)?;
    let beside = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !hides_in_a_mount(&all, parent) => {
            parent.canonicalize().map(|parent| parent.join::<&OsStr>(name)).ok()
        }
        _ => None,
    };
    let mut found = exactly(&absolute).or_else(|| exactly(beside.as_deref()?));
    if found.is_none() && !hides_in_a_mount(&all, &absolute) {
        // A link to it, perhaps.
        found = exactly(&path.canonicalize().map_err(failed)?);
    }
    match found {
        Some(entry) if entry.fs_type == FS_TYPE => Ok(entry),
        Some(entry) => Err(format!("{}: not an envelopefs mount but {}", path.display(), entry.fs_type)),
        None => Err(match all.iter().rfind(|m| m.fs_type == FS_TYPE && absolute.starts_with(&m.mountpoint)) {
            Some(around) => {
                format!("{}: not a mountpoint; the mount around it is {}", path.display(), around.mountpoint.display())
            }
            None => format!("{}: nothing is mounted here", path.display()),
        }),
    }
}

/// The envelopefs mount with this device number.
pub fn mount_of_device(device: (u32, u32)) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|m| m.fs_type == FS_TYPE && m.device == device))
}

/// Whether resolving `path` would ask an envelopefs mount.
fn hides_in_a_mount(all: &[MountEntry], path: &Path) -> bool {
    all.iter().any(|m| m.fs_type == FS_TYPE && path.starts_with(&m.mountpoint))
}

/// Unmounts at `mountpoint` if the mount of this device is on top there, and nobody else's. Tells whether it was.
pub fn unmount_own(mountpoint: &Path, device: (u32, u32)) -> io::Result<bool> {
    match mount_at(mountpoint)? {
        Some(top) if top.device == device && top.fs_type == FS_TYPE => unmount(mountpoint, true).map(|()| true),
        _ => Ok(false),
    }
}

/// An absolute path for a mountpoint that may hold a dead mount, whose own stat(2) fails: its parent is resolved alone.
pub fn resolve_mountpoint(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            let absolute = std::path::absolute(path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join::<&OsStr>(name)),
                _ => Err(e),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line =
            br"98 30 0:51 / /mnt/a\040b rw,nosuid shared:9 master:1 - fuse.envelopefs /srv/c\134d\011e rw,user_id=1000,x";
        let entry = parse_mountinfo(line).unwrap();
        assert_eq!(entry.device, (0, 51));
        assert_eq!(entry.mountpoint, Path::new("/mnt/a b"));
        assert_eq!(entry.fs_type, FS_TYPE);
        assert_eq!(entry.source, Path::new("/srv/c\\d\te"));
        assert_eq!(entry.owner, Some(1000));
        let plain = parse_mountinfo(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw").unwrap();
        assert_eq!((plain.fs_type.as_str(), plain.device), ("ext4", (8, 1)));
        for bad in [&b""[..], b"1 2", b"1 2 x:y / / rw - a b", b"1 2 0:1 / /m rw a b c", b"1 2 0:1 / /m rw -"] {
            assert_eq!(parse_mountinfo(bad), None);
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(path_of(br"/a\04"), Path::new(r"/a\04"));
        assert_eq!(path_of(br"/a\x41\"), Path::new(r"/a\x41\"));
        assert_eq!(path_of(br"/\777"), Path::new(OsStr::from_bytes(b"/\xff")));
    }

    #[test]
    fn helper_options_escape_commas() {
        let options = MountOptions { read_only: true, ..MountOptions::default() };
        let text = helper_options(Path::new(r"/a,b\c"), &options, true);
        assert_eq!(
            text.to_str().unwrap(),
            r"fsname=/a\,b\\c,subtype=envelopefs,default_permissions,allow_other,ro,nosuid,nodev"
        );
    }

    #[test]
    fn own_mounts_can_be_read() {
        let all = mounts().unwrap();
        assert!(all.iter().any(|m| m.mountpoint == Path::new("/")));
    }
}
