//! A CMK in this process, for benchmarks: a key cache miss costs one unwrap and no call. Knows no file and no store.

use std::sync::Arc;

use envelopefs::crypto::{random, secret::Secret32, wrap};
use envelopefs::file::FileContext;
use envelopefs::format::{geometry::Geometry, volume::KeyMode};
use envelopefs::keys::guard::{Guard, OutagePolicy};
use envelopefs::keys::keyring::{KeyPolicy, Keyring};
use envelopefs::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};

struct LocalCmk(KeyRef, Secret32);

impl CmkProvider for LocalCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.0
    }
    fn is_local(&self) -> bool {
        true
    }
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let key = Secret32::random();
        Ok((key.duplicate(), self.wrap(&key, context)?))
    }
    fn wrap(&self, key: &Secret32, _: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        Ok(wrap::wrap_key(&self.1, &random::array(), b"bench", key).to_vec())
    }
    fn unwrap(&self, blob: &[u8], _: &EncryptionContext) -> Result<Secret32, KeyError> {
        wrap::unwrap_key(&self.1, b"bench", blob)
            .map_err(|e| KeyError::BadBlob { key: self.0.to_string(), reason: e.to_string() })
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        Ok(CmkInfo { key: self.0.clone(), state: CmkState::Enabled, description: String::new(), created: None })
    }
}

/// What the files of a volume with one such CMK and one header page share.
pub fn context() -> Arc<FileContext> {
    let cmk = LocalCmk(KeyRef { provider: "bench".into(), key: "local".into() }, Secret32::random());
    let policy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 1 << 30, branch_max_files: 1 << 40 };
    let guards = vec![Guard::new(Arc::new(cmk), OutagePolicy::default())];
    let keyring = Keyring::new([1; 16], guards, policy, Some(Secret32::random()), None);
    Arc::new(FileContext { keyring, geometry: Geometry { header_pages: 1 } })
}
