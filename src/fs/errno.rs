//! The one place where an error becomes an errno.

use crate::{file::FileError, format::names::NameError, keys::KeyError};

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
        FsError::Errno(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl FsError {
    pub fn errno(&self) -> i32 {
        todo!()
    }
}
