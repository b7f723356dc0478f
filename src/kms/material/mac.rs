//! HMAC keys. Knows the four lengths; not what is authenticated.

use aws_lc_rs::hmac;

use super::{KeySpec, MacAlgorithm, MaterialError};
use crate::crypto::random;
use crate::crypto::secret::wiping_stack;
use crate::sys::locked::Locked;

/// The longest HMAC key, in bytes.
const LONGEST: usize = 64;

/// As long as the hash's output, which is what AWS makes and takes.
pub(super) struct Key {
    bytes: Locked<[u8; LONGEST]>,
    len: usize,
}

impl Key {
    pub(super) fn generate(spec: KeySpec) -> Result<Self, MaterialError> {
        let mut key = Self::zeroed(spec)?;
        random::fill(&mut key.bytes[..key.len]);
        Ok(key)
    }

    pub(super) fn from_bytes(spec: KeySpec, bytes: &[u8]) -> Result<Self, MaterialError> {
        let mut key = Self::zeroed(spec)?;
        if bytes.len() != key.len {
            return Err(MaterialError::InvalidMaterial(spec));
        }
        key.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(key)
    }

    fn zeroed(spec: KeySpec) -> Result<Self, MaterialError> {
        let len = spec.raw_len().filter(|len| *len <= LONGEST).ok_or(MaterialError::WrongSpec)?;
        Ok(Self { bytes: Locked::zeroed(), len })
    }

    pub(super) fn expose(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn mac(&self, algorithm: MacAlgorithm, message: &[u8]) -> Vec<u8> {
        wiping_stack(|| hmac::sign(&self.schedule(algorithm), message).as_ref().to_vec())
    }

    pub(super) fn verify(&self, algorithm: MacAlgorithm, message: &[u8], mac: &[u8]) -> Result<(), MaterialError> {
        wiping_stack(|| hmac::verify(&self.schedule(algorithm), message, mac)).map_err(|_| MaterialError::InvalidMac)
    }

    fn schedule(&self, algorithm: MacAlgorithm) -> hmac::Key {
        let algorithm = match algorithm {
            MacAlgorithm::HmacSha224 => hmac::HMAC_SHA224,
            MacAlgorithm::HmacSha256 => hmac::HMAC_SHA256,
            MacAlgorithm::HmacSha384 => hmac::HMAC_SHA384,
            MacAlgorithm::HmacSha512 => hmac::HMAC_SHA512,
        };
        hmac::Key::new(algorithm, self.expose())
    }
}
