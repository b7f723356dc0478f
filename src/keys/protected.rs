//! Small files that hold secrets or trust: who may own and read them, durable creation and replacement.
//! Knows no content.

use std::{
    ffi::OsStr,
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
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
    check_open(path, what, &meta, protection)?;
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
        check_open(path, what, &meta, Protection::Secret)?;
    }
    read_bounded(file, path, what, limit)
}

fn open(path: &Path, flags: i32) -> Result<File, KeyError> {
    let flags = flags | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| KeyError::io(path, e))
}

fn check_open(path: &Path, what: &str, meta: &Metadata, protection: Protection) -> Result<(), KeyError> {
    let euid = rustix::process::geteuid().as_raw();
    check_access(path, what, (meta.uid(), meta.mode()), protection, euid, credentials_directory().as_deref())
}

/// `owner` and `mode` are the open file's; `euid` is who we are.
fn check_access(
    path: &Path,
    what: &str,
    (owner, mode): (u32, u32),
    protection: Protection,
    euid: u32,
    credentials: Option<&Path>,
) -> Result<(), KeyError> {
    let shown = path.display();
    if owner != euid && owner != 0 {
        return Err(KeyError::Config(format!(
            "{what} {shown} belongs to uid {owner}, who could change it: it must belong to uid {euid} or root \
             (chown {euid} {shown})"
        )));
    }
    let forbidden = match protection {
        Protection::Secret => 0o077,
        Protection::Trusted => 0o022,
    };
    let mode = mode & 0o7777;
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

/// A directory of mode 0700, created durably with its missing parents where needed.
pub fn create_directory(path: &Path) -> Result<(), KeyError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_directory(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(KeyError::io(path, e)),
        Ok(()) => sync_parent(path),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn text(outcome: Result<(), KeyError>) -> String {
        match outcome {
            Err(KeyError::Config(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn owner_and_mode_decide() {
        let path = Path::new("/x/cmk.json");
        let check = |owner, mode, protection| check_access(path, "keyfile", (owner, mode), protection, 1000, None);
        for mode in [0o100600, 0o100400, 0o100700] {
            check(1000, mode, Protection::Secret).unwrap();
            check(0, mode, Protection::Secret).unwrap();
        }
        assert!(text(check(1001, 0o100600, Protection::Secret)).contains("uid 1001"));
        for bit in [0o040, 0o020, 0o010, 0o004, 0o002, 0o001] {
            assert!(text(check(1000, 0o600 | bit, Protection::Secret)).ends_with("chmod 600 /x/cmk.json"));
            assert_eq!(check(1000, 0o600 | bit, Protection::Trusted).is_err(), bit & 0o022 != 0);
        }
    }

    #[test]
    fn credentials_may_have_any_mode_but_must_lie_there() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = dir.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        std::fs::write(credentials.join("cmk"), b"x").unwrap();
        std::fs::write(dir.path().join("outside"), b"x").unwrap();
        symlink(dir.path().join("outside"), credentials.join("link")).unwrap();
        let check = |name: &str, owner| {
            check_access(
                &credentials.join(name),
                "keyfile",
                (owner, 0o440),
                Protection::Secret,
                1000,
                Some(&credentials),
            )
        };
        check("cmk", 1000).unwrap();
        check("cmk", 0).unwrap();
        text(check("cmk", 1001));
        text(check("../outside", 1000));
        text(check("link", 1000));
        text(check("missing", 1000));
        let root = Path::new("/");
        let everywhere =
            check_access(&credentials.join("cmk"), "keyfile", (0, 0o444), Protection::Secret, 0, Some(root));
        text(everywhere);
    }

    #[test]
    fn what_is_created_is_private_and_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create_new(&path, b"one").unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        match create_new(&path, b"two") {
            Err(KeyError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists),
            other => panic!("{other:?}"),
        }
        assert_eq!(&**read(&path, "file", Protection::Secret, 3).unwrap(), b"one");
        replace(&path, b"three").unwrap();
        assert_eq!(&**read(&path, "file", Protection::Secret, 5).unwrap(), b"three");
        assert!(read(&path, "file", Protection::Secret, 4).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_private_and_those_that_exist_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_directory(&path).unwrap();
        create_directory(&path).unwrap();
        assert!([&path, &dir.path().join("a")].iter().all(|p| p.metadata().unwrap().mode() & 0o777 == 0o700));
        std::fs::write(dir.path().join("file"), b"").unwrap();
        for path in ["file", "file/a"] {
            assert!(matches!(create_directory(&dir.path().join(path)), Err(KeyError::Io { .. })));
        }
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(text(read(dir.path(), "keyfile", Protection::Secret, 9).map(|_| ())).contains("not a regular file"));
        assert!(text(read(Path::new("/dev/null"), "keyfile", Protection::Secret, 9).map(|_| ())).contains("regular"));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(text(read(&fifo, "keyfile", Protection::Secret, 9).map(|_| ())).contains("not a regular file"));
        // Endless input is bounded.
        assert!(text(read_stream(Path::new("/dev/zero"), "passphrase", 9).map(|_| ())).contains("larger than 9"));
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(text(read_stream(&file, "passphrase file", 9).map(|_| ())).contains("chmod 600"));
    }
}
