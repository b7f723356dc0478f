//! Creating and unlocking a volume's key material: volume key under each CMK, commitment pinning. Does no directory I/O.

use std::sync::Arc;

use data_encoding::HEXLOWER;

use super::{
    EncryptionContext, KeyError,
    guard::{Deadline, Guard},
    slots,
};
use crate::crypto::{kdf::mac_eq, random};
use crate::format::{
    BranchId, VolumeId,
    volume::{BranchRecord, KeyMode, UnverifiedVolume, VolumeConfig, VolumeKeys},
};

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
pub fn create(new: &NewVolume, cmks: &[Arc<Guard>]) -> Result<(VolumeConfig, VolumeKeys), KeyError> {
    let volume_id: VolumeId = random::array();
    let created = super::unix_now();
    let until = deadline(cmks);
    let (volume_key, volume_key_slots) = slots::generate(cmks, &EncryptionContext::for_volume(&volume_id), until)?;
    let branch = match new.policy.mode {
        KeyMode::PerFile => None,
        KeyMode::Branch => {
            let id: BranchId = random::array();
            let (_, slots) = slots::generate(cmks, &EncryptionContext::for_branch(&volume_id, &id), until)?;
            Some(BranchRecord { id, created, slots })
        }
    };
    let config = VolumeConfig {
        volume_id,
        created,
        plaintext_names: new.plaintext_names,
        header_pages: new.header_pages,
        key_mode: new.policy.mode,
        branch_max_age: new.policy.branch_max_age,
        branch_max_files: new.policy.branch_max_files,
        cmks: new.cmk_uris.clone(),
        volume_key: volume_key_slots,
        branch,
        directory_cmks: Vec::new(),
        directory_branches: Vec::new(),
    };
    Ok((config, VolumeKeys::derive(&volume_id, &volume_key)))
}

/// Unwraps the volume key by any of `cmks` within the time, checks `pinned` (the commitment recorded in known volumes) and the config's MAC.
/// What contradicts the record or is not authentic is `KeyError::Volume`.
pub fn unlock(
    volume: UnverifiedVolume,
    cmks: &[Arc<Guard>],
    pinned: Option<&[u8; 32]>,
    until: Deadline,
) -> Result<(VolumeConfig, VolumeKeys), KeyError> {
    let claims = volume.claims();
    let volume_id = claims.volume_id;
    let context = EncryptionContext::for_volume(&volume_id);
    let keys = slots::first_that_opens(cmks, &claims.volume_key, until, |cmk, slot, until| {
        let keys = VolumeKeys::derive(&volume_id, &slots::unwrap(cmk, slot, &context, until)?);
        match pinned {
            Some(pinned) if !mac_eq(pinned, &keys.commitment) => Err(KeyError::Volume(format!(
                "volume {} has another volume key than the one recorded for it (commitment {}, recorded {}): \
                 its volume file was replaced; restore it from a backup",
                HEXLOWER.encode(&volume_id),
                HEXLOWER.encode(&keys.commitment),
                HEXLOWER.encode(pinned),
            ))),
            _ => Ok(keys),
        }
    })?;
    let config = volume.verify(&keys).map_err(|e| KeyError::Volume(e.to_string()))?;
    Ok((config, keys))
}

/// The time of one operation.
pub fn deadline(cmks: &[Arc<Guard>]) -> Deadline {
    Deadline::after(cmks.first().map(|cmk| cmk.policy()).unwrap_or_default().deadline)
}

/// The commitment of the volume key as hex, for known-volumes records.
pub fn commitment_hex(keys: &VolumeKeys) -> String {
    HEXLOWER.encode(&keys.commitment)
}

#[cfg(test)]
mod tests;
