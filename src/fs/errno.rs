//! The one place where an error becomes an errno. Knows every error type below; must not know who asked.

use crate::{
    file::FileError,
    format::names::NameError,
    keys::{KeyError, keyring::Waits, wanted::Wanted},
};

#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A plain errno: the operation is refused by rule, or the store said so.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Name(#[from] NameError),
    /// Damage or tampering outside file content; `code` is the stable word for logs.
    #[error("{code}")]
    Corrupt { code: &'static str },
}

impl From<std::io::Error> for FsError {
    fn from(e: std::io::Error) -> Self {
        FsError::Errno(of_io(&e))
    }
}

/// The errno of an I/O error; EIO for one that did not come from the kernel.
fn of_io(e: &std::io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EIO)
}

impl Waits for FsError {
    fn wanted(&self) -> Option<&Wanted> {
        match self {
            FsError::File(e) => e.wanted(),
            FsError::Key(e) => e.wanted(),
            _ => None,
        }
    }
}

impl FsError {
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Errno(n) => *n,
            FsError::Corrupt { .. } => libc::EIO,
            FsError::Key(e) => of_key(e),
            FsError::Name(e) => match e {
                NameError::TooLong => libc::ENAMETOOLONG,
                NameError::Reserved => libc::EPERM,
                NameError::Invalid => libc::EINVAL,
            },
            FsError::File(e) => match e {
                FileError::Io(e) => of_io(e),
                FileError::Corrupt { .. } => libc::EIO,
                FileError::Key(e) => of_key(e),
                FileError::TooLarge => libc::EFBIG,
                // Damage, tampering, or wrapped keys that do not fit the volume's headers: nothing the caller can mend.
                FileError::Header(_) => libc::EIO,
                FileError::NoOffset => libc::ENXIO,
                FileError::Unsupported => libc::EOPNOTSUPP,
            },
        }
    }

    /// The stable word for logs, where the error tells of damage or of a key that could not be had.
    pub(super) fn code(&self) -> Option<&'static str> {
        match self {
            FsError::Corrupt { code } | FsError::File(FileError::Corrupt { code, .. }) => Some(code),
            FsError::File(FileError::Header(_)) => Some("header"),
            // Not an answer yet.
            FsError::Key(KeyError::Pending(_)) | FsError::File(FileError::Key(KeyError::Pending(_))) => None,
            FsError::Key(_) | FsError::File(FileError::Key(_)) => Some("key"),
            // Full disks and quotas are the caller's business; a failing device is the operator's.
            FsError::Errno(libc::EIO) => Some("backing-io"),
            FsError::File(FileError::Io(e)) if of_io(e) == libc::EIO => Some("backing-io"),
            FsError::Errno(_) | FsError::Name(_) | FsError::File(FileError::Io(_)) => None,
            FsError::File(FileError::TooLarge | FileError::NoOffset | FileError::Unsupported) => None,
        }
    }
}

/// ENOKEY: the key is not there now and may be later. EKEYREVOKED: somebody has decided that it shall not open.
fn of_key(e: &KeyError) -> i32 {
    match e {
        KeyError::Refused { .. } => libc::EKEYREVOKED,
        KeyError::Unreachable { .. } | KeyError::NoCmk { .. } | KeyError::BadBlob { .. } => libc::ENOKEY,
        KeyError::Config(_) | KeyError::Io { .. } => libc::ENOKEY,
        // Somebody did not fetch: no answer of the key's.
        KeyError::Pending(_) => libc::ENOKEY,
        // The volume itself is not what it says.
        KeyError::Volume(_) => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::HeaderError;

    #[test]
    fn every_promised_errno() {
        let key = || "k".to_string();
        let reason = || "r".to_string();
        let io = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let cases: Vec<(FsError, i32)> = vec![
            (FsError::Errno(libc::EXDEV), libc::EXDEV),
            (std::io::Error::other("made up").into(), libc::EIO),
            (FileError::Io(io).into(), libc::ENOSPC),
            (FileError::Corrupt { code: "block-auth", block: Some(3) }.into(), libc::EIO),
            (FsError::Corrupt { code: "dir-id" }, libc::EIO),
            (KeyError::Unreachable { key: key(), reason: reason() }.into(), libc::ENOKEY),
            (KeyError::NoCmk { named: key() }.into(), libc::ENOKEY),
            (FileError::Key(KeyError::BadBlob { key: key(), reason: reason() }).into(), libc::ENOKEY),
            (FileError::Key(KeyError::Refused { key: key(), reason: reason() }).into(), libc::EKEYREVOKED),
            (FileError::Header(HeaderError::Origin).into(), libc::EIO),
            (FileError::TooLarge.into(), libc::EFBIG),
            (FileError::NoOffset.into(), libc::ENXIO),
            (FileError::Unsupported.into(), libc::EOPNOTSUPP),
            (NameError::TooLong.into(), libc::ENAMETOOLONG),
            (NameError::Reserved.into(), libc::EPERM),
            (NameError::Invalid.into(), libc::EINVAL),
        ];
        for (error, errno) in cases {
            assert_eq!(error.errno(), errno, "{error:?}");
        }
    }
}
