//! Extended attributes of objects named by descriptor: the calls take paths only, so the path leads through /proc.
//! Knows nothing of what the attributes mean.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Place;
use crate::store::check_name;
use crate::sys::descriptor;

/// Longest value and longest list that Linux passes, in bytes (xattr(7)).
const VALUE_MAX: usize = 64 * 1024;
/// Enough for nearly all values and lists.
const FIRST_TRY: usize = 1024;

/// Where the object is and whether the last component may be followed: a pinned object is reached by following its
/// /proc link, an entry must not be followed.
struct Target {
    path: Vec<u8>,
    follow: bool,
}

impl Target {
    fn of(place: Place<'_, OwnedFd>) -> io::Result<Self> {
        Ok(match place {
            Place::Pinned(handle) => Self { path: descriptor::path(handle.as_fd()).into_bytes(), follow: true },
            Place::Entry { dir, name } => {
                check_name(name)?;
                let mut path = descriptor::path(dir.as_fd()).into_bytes();
                path.push(b'/');
                path.extend_from_slice(name);
                Self { path, follow: false }
            }
        })
    }
}

/// Calls `read` with a buffer that grows until the result fits.
fn fetch(read: impl Fn(&mut Vec<u8>) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(FIRST_TRY);
    match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.reserve_exact(VALUE_MAX);
            read(&mut buffer)?;
            buffer.shrink_to_fit();
        }
        other => {
            other?;
        }
    }
    Ok(buffer)
}

pub fn get(place: Place<'_, OwnedFd>, name: &[u8]) -> io::Result<Vec<u8>> {
    let Target { path, follow } = Target::of(place)?;
    if follow {
        fetch(|buffer| rustix::fs::getxattr(&*path, name, spare_capacity(buffer)))
    } else {
        fetch(|buffer| rustix::fs::lgetxattr(&*path, name, spare_capacity(buffer)))
    }
}

pub fn set(place: Place<'_, OwnedFd>, name: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
    let flags = u32::try_from(flags).ok().and_then(XattrFlags::from_bits).ok_or(Errno::INVAL)?;
    let Target { path, follow } = Target::of(place)?;
    let set = if follow { rustix::fs::setxattr } else { rustix::fs::lsetxattr };
    Ok(set(&path, name, value, flags)?)
}

pub fn list(place: Place<'_, OwnedFd>) -> io::Result<Vec<Vec<u8>>> {
    let Target { path, follow } = Target::of(place)?;
    let names = if follow {
        fetch(|buffer| rustix::fs::listxattr(&*path, spare_capacity(buffer)))?
    } else {
        fetch(|buffer| rustix::fs::llistxattr(&*path, spare_capacity(buffer)))?
    };
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

pub fn remove(place: Place<'_, OwnedFd>, name: &[u8]) -> io::Result<()> {
    let Target { path, follow } = Target::of(place)?;
    let remove = if follow { rustix::fs::removexattr } else { rustix::fs::lremovexattr };
    Ok(remove(&path, name)?)
}
