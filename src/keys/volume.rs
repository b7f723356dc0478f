//! Creating and unlocking a volume's key material: volume key under each CMK, commitment pinning. Does no directory I/O.

use std::sync::Arc;

use super::{CmkProvider, KeyError};
use crate::crypto::secret::Secret32;
use crate::format::volume::{UnverifiedVolume, VolumeConfig, VolumeKeys};

/// Options fixed when a volume is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    pub plaintext_names: bool,
    pub header_pages: u32,
    pub policy: super::keyring::KeyPolicy,
    /// As the user typed them.
    pub cmk_uris: Vec<String>,
}

/// A fresh volume: config (with a first branch already wrapped, unless per-file mode) and its keys.
pub fn create(new: &NewVolume, cmks: &[Arc<dyn CmkProvider>]) -> Result<(VolumeConfig, VolumeKeys), KeyError> {
    let _ = (new, cmks);
    todo!()
}

/// Unwraps the volume key by any of `cmks`, checks `pinned` (the commitment recorded in known volumes) and the config's MAC.
pub fn unlock(
    volume: UnverifiedVolume,
    cmks: &[Arc<dyn CmkProvider>],
    pinned: Option<&[u8; 32]>,
) -> Result<(VolumeConfig, VolumeKeys), KeyError> {
    let _ = (volume, cmks, pinned);
    todo!()
}

/// The commitment of the volume key as hex, for known-volumes records.
pub fn commitment_hex(keys: &VolumeKeys) -> String {
    let _ = keys;
    todo!()
}

#[doc(hidden)]
pub type VolumeKey = Secret32;
