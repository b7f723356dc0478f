//! Small files that hold secrets or trust: who may own and read them, durable creation and replacement.
//! Knows no content.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::KeyError;

/// Set by systemd for units with `LoadCredential=` and friends (systemd.exec(5)): a private directory of read-only files.
pub const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// systemd's credential directory, where there is one.
pub fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os(CREDENTIALS_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Whose hands a file may have been in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Nobody else may read or write it (`mode & 077 == 0`).
    Secret,
    /// Nobody else may write it (`mode & 022 == 0`).
    Trusted,
}

/// Reads a whole file of at most `limit` bytes, refusing one that others had access to. The owner must be this process's
/// effective user or root. `what` names the file's purpose in messages.
pub fn read(path: &Path, what: &str, protection: Protection, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    // O_NONBLOCK: a FIFO in the file's place must not hang a mount.
    let file = open(path, libc::O_NONBLOCK)?;
    let meta = file.metadata().map_err(|e| KeyError::io(path, e))?;
    if !meta.is_file() {
        return Err(KeyError::Config(format!("{what} {} is not a regular file", path.display())));
    }
    check_access(path, what, &meta, protection, credentials_directory().as_deref())?;
    let len = usize::try_from(meta.len()).unwrap_or(usize::MAX);
    if len > limit {
        return Err(too_large(path, what, limit));
    }
    read_bounded(file, path, what, len)
}

fn too_large(path: &Path, what: &str, limit: usize) -> KeyError {
    KeyError::Config(format!("{what} {} is larger than {limit} bytes", path.display()))
}

/// As [`read`], but pipes, terminals and sockets are fine too (a shell's `<(…)`): the mode says nothing about those.
pub fn read_stream(path: &Path, what: &str, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = open(path, 0)?;
    let meta = file.metadata().map_err(|e| KeyError::io(path, e))?;
    if meta.is_dir() {
        return Err(KeyError::Config(format!("{what} {} is a directory", path.display())));
    }
    if meta.is_file() {
        check_access(path, what, &meta, Protection::Secret, credentials_directory().as_deref())?;
    }
    read_bounded(file, path, what, limit)
}

fn open(path: &Path, flags: i32) -> Result<File, KeyError> {
    let flags = flags | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| KeyError::io(path, e))
}

fn check_access(
    path: &Path,
    what: &str,
    meta: &std::fs::Metadata,
    protection: Protection,
    credentials: Option<&Path>,
) -> Result<(), KeyError> {
    let euid = rustix::process::geteuid().as_raw();
    let shown = path.display();
    if meta.uid() != euid && meta.uid() != 0 {
        return Err(KeyError::Config(format!(
            "{what} {shown} belongs to uid {}, who could change it: it must belong to uid {euid} or root (chown {euid} {shown})",
            meta.uid(),
        )));
    }
    let forbidden = match protection {
        Protection::Secret => 0o077,
        Protection::Trusted => 0o022,
    };
    let mode = meta.mode() & 0o7777;
    if mode & forbidden != 0 && !credentials.is_some_and(|dir| lies_under(path, dir)) {
        return Err(KeyError::Config(format!(
            "{what} {shown} has mode {mode:04o}, so others have access to it: chmod {:o} {shown}",
            mode & 0o777 & !forbidden,
        )));
    }
    Ok(())
}

/// Whether `path` really lies in `dir`, links and `..` resolved.
fn lies_under(path: &Path, dir: &Path) -> bool {
    match (path.canonicalize(), dir.canonicalize()) {
        (Ok(path), Ok(dir)) => dir.parent().is_some() && path.starts_with(dir),
        _ => false,
    }
}

/// Reads to the end into one allocation, so that no freed copy stays behind.
pub fn read_bounded(
    mut from: impl Read,
    path: &Path,
    what: &str,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut buffer = Zeroizing::new(vec![0u8; limit + 1]);
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(KeyError::io(path, e)),
        }
    }
    if filled > limit {
        return Err(too_large(path, what, limit));
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Creates a file of mode 0600 that did not exist, durable when this returns; nothing is left behind on failure.
pub fn create_new(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let mut file = create_private(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let written = written.map_err(|e| KeyError::io(path, e)).and_then(|()| sync_parent(path));
    if written.is_err() {
        // The first error is the one to report; a file that cannot be removed either is seen by the next attempt.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Replaces or creates `path` (mode 0600): a reader sees the old or the new content, and so does a crash.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let name = path.file_name().unwrap_or(OsStr::new("file")).to_string_lossy();
    let suffix = data_encoding::HEXLOWER.encode(&crate::crypto::random::array::<8>());
    let temporary = path.with_file_name(format!(".{name}.{suffix}"));
    create_new(&temporary, bytes)?;
    if let Err(e) = std::fs::rename(&temporary, path) {
        let _ = std::fs::remove_file(&temporary);
        return Err(KeyError::io(path, e));
    }
    sync_parent(path)
}

/// A directory of mode 0700, created with its missing parents where needed.
pub fn create_directory(path: &Path) -> Result<(), KeyError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| KeyError::io(path, e))
}

fn create_private(path: &Path) -> Result<File, KeyError> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| KeyError::io(path, e))
}

fn sync_parent(path: &Path) -> Result<(), KeyError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| KeyError::io(parent, e))
}
