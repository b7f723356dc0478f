//! `pkcs11:` URIs. Opens nothing.

use std::fmt;

use crate::keys::KeyRef;

/// PKCS#11 (RFC 7512).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Uri {
    pub token: Option<String>,
    pub object: Option<String>,
}

impl Pkcs11Uri {
    /// `rest`: what follows `pkcs11:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        Err(format!("pkcs11:{rest}: not in this version"))
    }

    /// See `CmkUri::pinned`.
    pub(super) fn pinned(&self, _key: &KeyRef) -> Self {
        self.clone()
    }
}

impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkcs11:")
    }
}
