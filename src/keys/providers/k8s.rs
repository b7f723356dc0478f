//! Kubernetes KMS v2 plugins as a CMK provider. Knows how a key is kept by a protocol without contexts; calls and bytes are
//! below, policy around calls is above.

use std::{
    fmt,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::Opening;
use crate::crypto::secret::Secret32;
use crate::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef, uri::K8sUri};

pub(crate) mod blob;
pub(crate) mod messages;
pub(crate) mod plugin;

use blob::Seed;
use messages::DecryptRequest;
use plugin::{Plugin, printable};

/// The name that headers record.
pub const PROVIDER: &str = "k8skms";

/// One plugin. For each blob it wraps a seed of 32 random bytes; the key derived from that seed and the context wraps ours.
pub struct K8sCmk {
    key_ref: KeyRef,
    plugin: Plugin,
    timeout: Duration,
}

impl K8sCmk {
    /// Asks nothing of the plugin, which may be down while another CMK serves.
    pub fn open(uri: &K8sUri, opening: &mut Opening<'_>) -> Result<Self, KeyError> {
        let key_ref = KeyRef { provider: PROVIDER.into(), key: uri.key_name() };
        let plugin = Plugin::new(&uri.socket)
            .map_err(|e| KeyError::Unreachable { key: key_ref.to_string(), reason: format!("no thread: {e}") })?;
        Ok(Self { key_ref, plugin, timeout: opening.timeout })
    }

    fn until(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn name(&self) -> String {
        self.key_ref.to_string()
    }

    fn bad_blob(&self, reason: impl Into<String>) -> KeyError {
        KeyError::BadBlob { key: self.name(), reason: reason.into() }
    }
}

impl fmt::Debug for K8sCmk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("K8sCmk").field("key_ref", &self.key_ref).finish_non_exhaustive()
    }
}

impl CmkProvider for K8sCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }

    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let key = Secret32::random();
        let blob = self.wrap(&key, context)?;
        Ok((key, blob))
    }

    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        let material = Secret32::random();
        let answer = self.plugin.encrypt(&material, self.until());
        let seed = answer.and_then(Seed::from_answer).map_err(|trouble| trouble.of(&self.name()))?;
        Ok(blob::seal(&seed, &material, key, context))
    }

    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        let Some((seed, wrapped)) = blob::parse(blob) else { return Err(self.bad_blob("not a KMS plugin blob")) };
        let request = DecryptRequest {
            ciphertext: seed.ciphertext.clone(),
            uid: plugin::uid(),
            key_id: seed.key_id.clone(),
            annotations: seed.annotations.clone(),
        };
        let mut answer = self.plugin.decrypt(request, self.until()).map_err(|trouble| trouble.of(&self.name()))?;
        let plain = Zeroizing::new(std::mem::take(&mut answer.plaintext));
        let material = Secret32::written_by(|out| match plain.len() {
            32 => {
                out.copy_from_slice(&plain);
                Ok(())
            }
            len => Err(self.bad_blob(format!("the plugin gave {len} bytes back, not 32"))),
        })?;
        blob::open(&seed, &material, wrapped, context).map_err(|_| self.bad_blob("altered, or made for something else"))
    }

    fn describe(&self) -> Result<CmkInfo, KeyError> {
        let status = self.plugin.status(self.until()).map_err(|trouble| trouble.of(&self.name()))?;
        Ok(CmkInfo {
            key: self.key_ref.clone(),
            state: CmkState::Enabled,
            description: format!("KMS plugin, key_id {}", printable(&status.key_id)),
            created: None,
        })
    }
}
