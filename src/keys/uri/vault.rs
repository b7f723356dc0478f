//! `hashivault:` URIs. Opens nothing.

use std::fmt;

use crate::keys::KeyRef;

/// Vault and OpenBao Transit: `hashivault://MOUNT/KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultUri {
    /// Mount path of the Transit engine.
    pub mount: String,
    pub key: String,
}

impl VaultUri {
    /// `rest`: what follows `hashivault:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        Err(format!("hashivault:{rest}: not in this version"))
    }

    /// See `CmkUri::pinned`.
    pub(super) fn pinned(&self, _key: &KeyRef) -> Self {
        self.clone()
    }
}

impl fmt::Display for VaultUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hashivault:")
    }
}
