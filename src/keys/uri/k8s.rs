//! `k8skms:` URIs. Opens nothing.

use std::fmt;

use crate::keys::KeyRef;

/// Kubernetes KMS v2 plugins: `k8skms:///path/to/plugin.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct K8sUri {
    /// The plugin's socket.
    pub socket: std::path::PathBuf,
}

impl K8sUri {
    /// `rest`: what follows `k8skms:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        Err(format!("k8skms:{rest}: not in this version"))
    }

    /// See `CmkUri::pinned`.
    pub(super) fn pinned(&self, _key: &KeyRef) -> Self {
        self.clone()
    }
}

impl fmt::Display for K8sUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k8skms:")
    }
}
