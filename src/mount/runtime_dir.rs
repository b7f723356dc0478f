//! Where the control sockets of mounts are, and whom one may trust there. Knows sockets by the mount's device number; nothing
//! of what is said over them.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, statat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::kernel::MountEntry;
use crate::sys::{descriptor, peer};

/// Names the directory instead of the places below.
pub const VARIABLE: &str = "ENVELOPEFS_RUNTIME_DIR";
const OF_ROOT: &str = "/run/envelopefs";
const OF_USERS: &str = "/run/user";
const NAME: &str = "envelopefs";

/// Where this process's mounts have their sockets. The error says why there is no such place.
fn own() -> Result<PathBuf, String> {
    if let Some(dir) = named() {
        return Ok(dir);
    }
    let euid = rustix::process::geteuid();
    if euid.is_root() {
        return Ok(OF_ROOT.into());
    }
    let of_session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let of_user = Path::new(OF_USERS).join(euid.as_raw().to_string());
    match of_session {
        Some(dir) => Ok(dir.join(NAME)),
        None if of_user.is_dir() => Ok(of_user.join(NAME)),
        None => {
            Err(format!("neither XDG_RUNTIME_DIR nor {} is there; {VARIABLE} can name a directory", of_user.display()))
        }
    }
}

fn named() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Where the mounts of user `owner` may have them, as seen from this process.
fn of(owner: u32) -> Vec<PathBuf> {
    if let Some(dir) = named() {
        return vec![dir];
    }
    let mut places = Vec::new();
    if owner == rustix::process::geteuid().as_raw() {
        places.extend(own());
    }
    let usual = match owner {
        0 => OF_ROOT.into(),
        uid => Path::new(OF_USERS).join(uid.to_string()).join(NAME),
    };
    if !places.contains(&usual) {
        places.push(usual);
    }
    places
}

fn name(device: (u32, u32)) -> String {
    format!("{}-{}.sock", device.0, device.1)
}

/// The socket of a running mount; gone when dropped.
#[derive(Debug)]
pub struct Bound {
    dir: OwnedFd,
    name: String,
    path: PathBuf,
    /// The socket itself: its device and inode number.
    identity: (u64, u64),
}

impl Bound {
    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The device number may be another mount's by now, and the name with it.
        if let Ok(stat) = statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            && (stat.st_dev, stat.st_ino) == self.identity
        {
            let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

/// Listens for the mount of this device, in place of what a dead one may have left. The error text is for the user.
pub fn bind(device: (u32, u32)) -> Result<(UnixListener, Bound), String> {
    let path = own()?;
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    let dir = open(&path).map_err(failed)?;
    let stat = fstat(&dir).map_err(|e| failed(e.into()))?;
    let euid = rustix::process::geteuid().as_raw();
    if stat.st_uid != euid || stat.st_mode & 0o022 != 0 {
        return Err(format!(
            "{} must belong to uid {euid} and be writable by nobody else (it belongs to uid {}, mode {:04o})",
            path.display(),
            stat.st_uid,
            stat.st_mode & 0o7777
        ));
    }
    sweep(&dir);
    let name = name(device);
    let fresh = format!(".{}-{name}", std::process::id());
    let _ = rustix::fs::unlinkat(&dir, &fresh, AtFlags::empty());
    // Through the descriptor: no other directory can take this one's place, and the length of its path does not matter.
    let at = |name: &str| PathBuf::from(descriptor::path(dir.as_fd())).join(name);
    let listener = UnixListener::bind(at(&fresh)).map_err(failed)?;
    let named = || -> io::Result<Stat> {
        std::fs::set_permissions(at(&fresh), Permissions::from_mode(0o600))?;
        let stat = statat(&dir, &fresh, AtFlags::SYMLINK_NOFOLLOW)?;
        // It listens when it gets its name, so a name behind which nobody listens is a dead mount's.
        rustix::fs::renameat(&dir, &fresh, &dir, &name)?;
        Ok(stat)
    };
    match named() {
        Ok(stat) => {
            let identity = (stat.st_dev, stat.st_ino);
            Ok((listener, Bound { path: path.join(&name), dir, name, identity }))
        }
        Err(e) => {
            let _ = rustix::fs::unlinkat(&dir, &fresh, AtFlags::empty());
            Err(failed(e))
        }
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Removes the sockets of mounts that died.
fn sweep(dir: &OwnedFd) {
    let Ok(entries) = std::fs::read_dir(descriptor::path(dir.as_fd())) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.to_str().and_then(|n| n.strip_suffix(".sock")).is_some_and(|n| {
            n.split_once('-').is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
        });
        if ours
            && let Err(e) = connect_at(dir, &name.to_string_lossy(), Duration::from_millis(100))
            && e.raw_os_error() == Some(libc::ECONNREFUSED)
        {
            let _ = rustix::fs::unlinkat(dir, &name, AtFlags::empty());
        }
    }
}

/// Why a mount cannot be asked. The texts are for the user.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// There is no socket, or nobody behind it.
    #[error("{0}")]
    Nobody(String),
    /// There is one, and we may not use it.
    #[error("{0}")]
    Forbidden(String),
}

/// Connects to the daemon of a mount, within `limit`, which is each later read's and write's too.
pub fn connect(entry: &MountEntry, limit: Duration) -> Result<UnixStream, NoAnswer> {
    let owner = entry.owner.unwrap_or(0);
    let at = entry.mountpoint.display();
    let name = name(entry.device);
    let places = of(owner);
    for place in &places {
        let dir = match open(place) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(forbidden(entry, owner)),
            Err(e) => return Err(NoAnswer::Nobody(format!("{}: {e}", place.display()))),
        };
        match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {}
            Err(rustix::io::Errno::NOENT) => continue,
            Err(rustix::io::Errno::ACCESS) => return Err(forbidden(entry, owner)),
            Ok(_) => return Err(NoAnswer::Nobody(format!("{}/{name} is not a socket", place.display()))),
            Err(e) => return Err(NoAnswer::Nobody(format!("{}/{name}: {e}", place.display()))),
        }
        let stream = match connect_at(&dir, &name, limit) {
            Ok(stream) => stream,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(forbidden(entry, owner)),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(NoAnswer::Nobody(format!("{at}: the process of this mount is gone")));
            }
            Err(e) => return Err(NoAnswer::Nobody(format!("{at}: its process does not take a request: {e}"))),
        };
        // In a user's directory anybody whom he lets could listen.
        return match peer::uid(stream.as_fd()) {
            Ok(uid) if uid == owner || uid == 0 => Ok(stream),
            Ok(uid) => {
                let text = format!("{}/{name} is served by uid {uid}, not by the mount's owner", place.display());
                Err(NoAnswer::Forbidden(text))
            }
            Err(e) => Err(NoAnswer::Nobody(format!("{at}: {e}"))),
        };
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(NoAnswer::Nobody(format!(
        "{at}: no control socket {name} in {}: its process is gone, or was started with another {VARIABLE} or \
         XDG_RUNTIME_DIR",
        places.join(", ")
    )))
}

fn forbidden(entry: &MountEntry, owner: u32) -> NoAnswer {
    NoAnswer::Forbidden(format!("{}: this mount belongs to uid {owner}; only that user and root may ask it", {
        entry.mountpoint.display()
    }))
}

fn connect_at(dir: &OwnedFd, name: &str, limit: Duration) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for direction in [Timeout::Send, Timeout::Recv] {
        // The one for sending bounds connect(2) too, where the queue of a stopped process is full (unix(7)).
        set_socket_timeout(&socket, direction, Some(limit))?;
    }
    let address = SocketAddrUnix::new(format!("{}/{name}", descriptor::path(dir.as_fd())).as_str())?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}
