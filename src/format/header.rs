//! The file header slot: fixed part, TLVs, HMAC, origin tag, CRC. Parsing is total and bounded; keys verify afterwards.
//! Knows no provider and does no I/O.

use super::{BranchId, FileId, VolumeId, geometry::Geometry};
use crate::crypto::{file_keys::FileKeys, secret::Secret32};

pub const FLAG_HOLES_OK: u32 = 1;
pub const FLAG_REKEYING: u32 = 2;
pub const FLAG_SEALED: u32 = 4;

/// Cipher suite 1: AES-256-GCM blocks, HKDF/HMAC-SHA256.
pub const SUITE_AES256_GCM: u16 = 1;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// All zero: no header was ever written here.
    #[error("header slot is empty")]
    Empty,
    #[error("header checksum mismatch (torn write or damage)")]
    Checksum,
    #[error("not an envelopefs header")]
    Magic,
    #[error("unsupported header version {0}")]
    Version(u16),
    #[error("unsupported cipher suite {0}")]
    Suite(u16),
    #[error("malformed header: {0}")]
    Malformed(&'static str),
    #[error("header authentication failed")]
    Auth,
    #[error("header origin tag does not belong to this volume")]
    Origin,
    #[error("wrapped keys need {needed} header pages, the volume has {have}")]
    TooLarge { needed: u32, have: u32 },
}

/// The DEK under its parent branch key (or, in per-file mode, absent: slots wrap the DEK itself).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedDek {
    pub branch_id: BranchId,
    pub salt: [u8; 16],
    /// `nonce 12 ‖ ciphertext 32 ‖ tag 16`
    pub wrapped: [u8; 60],
}

/// One CMK's wrapping of the branch key (or of the DEK in per-file mode).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmkSlot {
    /// Provider name, e.g. `keyfile`.
    pub provider: String,
    /// What the provider itself calls the key: never an alias, an endpoint or a path.
    pub key_ref: String,
    /// Opaque to everyone but the provider; up to 6144 bytes are legal.
    pub blob: Vec<u8>,
    /// Commitment of the wrapped key: `HMAC(target, label)`, checked after unwrap.
    pub commitment: [u8; 32],
}

/// Everything a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeader {
    pub volume_id: VolumeId,
    pub file_id: FileId,
    pub suite: u16,
    /// Rises with every change of keys; readers take the highest that verifies.
    pub generation: u64,
    /// Plaintext bytes known durable: below it no hole is legal (unless HOLES_OK) and no shorter file is.
    pub size_floor: u64,
    /// Exact size where SEALED is set, else 0.
    pub sealed_size: u64,
    pub flags: u32,
    pub commitment: [u8; 32],
    /// Commitment of the previous DEK during a rekey, else zero.
    pub previous_commitment: [u8; 32],
    pub wrapped_dek: Option<WrappedDek>,
    pub slots: Vec<CmkSlot>,
}

/// A slot that parsed and whose CRC holds; nothing in it is authentic yet.
pub struct Unverified {
    header: FileHeader,
    _private: (),
}

impl Unverified {
    /// Total and bounded: any input gives a value or an error, without allocation beyond the slot's own length.
    pub fn parse(slot: &[u8], geometry: Geometry) -> Result<Self, HeaderError> {
        let _ = (slot, geometry);
        todo!()
    }
    /// The claims, for choosing keys and for keyless display. Do not act on sizes before `verify`.
    pub fn claims(&self) -> &FileHeader {
        &self.header
    }
    /// Checks commitment, HMAC and (where `origin` is given) the origin tag.
    pub fn verify(self, keys: &FileKeys, origin: Option<&Secret32>) -> Result<FileHeader, HeaderError> {
        let _ = (keys, origin);
        todo!()
    }
}

impl FileHeader {
    /// One slot's bytes, `geometry.slot_len()` long. `origin`: the volume's origin key (zero tag where unknown).
    pub fn encode(
        &self,
        keys: &FileKeys,
        origin: Option<&Secret32>,
        geometry: Geometry,
    ) -> Result<Vec<u8>, HeaderError> {
        let _ = (keys, origin, geometry);
        todo!()
    }
}
