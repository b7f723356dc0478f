//! Vault and OpenBao Transit as a CMK provider. Knows the protocol and its errors; nothing of policy around calls.

use super::Opening;
use crate::crypto::secret::Secret32;
use crate::keys::{CmkInfo, CmkProvider, EncryptionContext, KeyError, KeyRef, uri::VaultUri};

/// The name that headers record.
pub const PROVIDER: &str = "hashivault";

pub struct VaultCmk {
    key_ref: KeyRef,
}

impl VaultCmk {
    pub fn open(_uri: &VaultUri, _opening: &mut Opening<'_>) -> Result<Self, KeyError> {
        todo!()
    }
}

impl CmkProvider for VaultCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }
    fn generate(&self, _context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        todo!()
    }
    fn wrap(&self, _key: &Secret32, _context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        todo!()
    }
    fn unwrap(&self, _blob: &[u8], _context: &EncryptionContext) -> Result<Secret32, KeyError> {
        todo!()
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        todo!()
    }
}
