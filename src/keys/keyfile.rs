//! The embedded CMK provider: a JSON keyfile with one or more CMKs, optionally under a passphrase.

use std::path::Path;

use super::{CmkInfo, CmkProvider, EncryptionContext, KeyError, KeyRef, passphrase::PassphraseSource};
use crate::crypto::secret::Secret32;

/// Creates a keyfile with one fresh CMK, mode 0600, never over an existing file. Durable when it returns. Returns the CMK's info.
pub fn create(path: &Path, description: &str, passphrase: Option<&PassphraseSource>) -> Result<CmkInfo, KeyError> {
    let _ = (path, description, passphrase);
    todo!()
}

/// What a keyfile says without its passphrase.
pub fn inspect(path: &Path) -> Result<Vec<CmkInfo>, KeyError> {
    let _ = path;
    todo!()
}

/// One CMK of a keyfile, ready to use.
pub struct KeyfileCmk {
    key_ref: KeyRef,
}

impl KeyfileCmk {
    /// `key`: an id in the file, or the first enabled one. Refuses a file that others may read (mode & 077).
    pub fn open(path: &Path, key: Option<&str>, passphrase: &PassphraseSource) -> Result<Self, KeyError> {
        let _ = (path, key, passphrase);
        todo!()
    }
}

impl CmkProvider for KeyfileCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let _ = context;
        todo!()
    }
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        let _ = (key, context);
        todo!()
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        let _ = (blob, context);
        todo!()
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        todo!()
    }
}
