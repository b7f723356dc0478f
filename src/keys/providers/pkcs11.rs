//! PKCS#11 tokens as a CMK provider: an AES-256 key that stays on its token. Knows blobs, contexts and names; sessions and
//! modules are below, policy around calls is above.

use std::{fmt, time::Instant};

use super::Opening;
use crate::crypto::secret::Secret32;
use crate::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef, uri::Pkcs11Uri};

mod failure;
mod key;
mod module;
mod worker;

use failure::Failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use failure::printable;
use key::{IV_LEN, TokenKey};
use worker::{Lost, Worker};

/// The name that headers record.
pub const PROVIDER: &str = "pkcs11";

const WRAP_LABEL: &[u8] = b"envelopefs pkcs11 v1 wrap";
const BLOB_VERSION: u8 = 1;
/// `version 1 ‖ IV 12 ‖ ciphertext 32 ‖ tag 16`
const BLOB_LEN: usize = 1 + IV_LEN + 32 + 16;
/// Names in headers are bounded; labels and ids of tokens are not.
const NAME_MAX: usize = 1024;

/// One key on one token.
pub struct Pkcs11Cmk {
    key_ref: KeyRef,
    worker: Worker<TokenKey>,
    timeout: std::time::Duration,
}

impl Pkcs11Cmk {
    /// Logs in and finds the key. The PIN is read from the URI's `pin-source`, else asked for, once a token and process.
    pub fn open(uri: &Pkcs11Uri, opening: &mut Opening<'_>) -> Result<Self, KeyError> {
        let name = without_query(uri);
        let state = TokenKey::new(uri);
        let worker = Worker::start("envelopefs-pkcs11", state)
            .map_err(|e| KeyError::Unreachable { key: name.clone(), reason: format!("no thread: {e}") })?;
        let start = Instant::now();
        let need = call(&worker, start + opening.timeout, &name, TokenKey::prepare)?;
        // How long somebody types is not the device's time.
        let used = start.elapsed();
        let pin = if need.pin { Some(ask(&need.token, opening)?) } else { None };
        let until = Instant::now() + opening.timeout.saturating_sub(used);
        let found = call(&worker, until, &name, move |key| {
            key.begin(pin, |uri, found| uri.pinned(&KeyRef { provider: PROVIDER.into(), key: found.name() }))
        })?;
        let key_ref = KeyRef { provider: PROVIDER.into(), key: found.name() };
        if key_ref.key.len() > NAME_MAX {
            return Err(KeyError::Config(format!(
                "CMK {name}: its token label and CKA_ID are too long to be recorded"
            )));
        }
        if found.extractable {
            log::warn!(
                "CMK {key_ref}: the key can be read out of its token (CKA_SENSITIVE is off or CKA_EXTRACTABLE is on), so the \
                 token does not protect it; make a key that cannot"
            );
        }
        Ok(Self { key_ref, worker, timeout: opening.timeout })
    }

    fn call<T: Send + 'static>(
        &self,
        call_key: impl FnOnce(&mut TokenKey) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, KeyError> {
        call(&self.worker, Instant::now() + self.timeout, &self.key_ref.to_string(), call_key)
    }

    fn bad_blob(&self, reason: impl Into<String>) -> KeyError {
        KeyError::BadBlob { key: self.key_ref.to_string(), reason: reason.into() }
    }
}

fn call<T: Send + 'static>(
    worker: &Worker<TokenKey>,
    until: Instant,
    name: &str,
    call_key: impl FnOnce(&mut TokenKey) -> Result<T, Failure> + Send + 'static,
) -> Result<T, KeyError> {
    let lost = |reason: &str| Failure::Unreachable(reason.into());
    worker
        .run(until, call_key)
        .unwrap_or_else(|why| {
            Err(match why {
                Lost::TimedOut => lost("the token did not answer in time"),
                Lost::Stuck => lost("the token has not answered an earlier call yet; check the device and its module"),
                Lost::Broken => lost("the call into the PKCS#11 module broke off"),
            })
        })
        .map_err(|failure| failure.of(name))
}

fn ask(token: &str, opening: &mut Opening<'_>) -> Result<module::Pin, KeyError> {
    opening.passphrase.read(&format!("PIN of {token}: ")).map_err(|e| match e {
        KeyError::Config(text) => KeyError::Config(format!("{text}; or write pin-source=file:/path into the CMK URI")),
        other => other,
    })
}

/// For messages before the key has a name.
fn without_query(uri: &Pkcs11Uri) -> String {
    let text = uri.to_string();
    text.split('?').next().unwrap_or_default().to_owned()
}

/// Binds a blob to its purpose; the token's key binds it to the CMK, so a token may be relabelled.
fn authenticated(context: &EncryptionContext) -> Vec<u8> {
    let mut out = WRAP_LABEL.to_vec();
    out.extend_from_slice(&context.canonical_bytes());
    out
}

/// IV, and ciphertext and tag.
pub(crate) fn parts(blob: &[u8]) -> Option<([u8; IV_LEN], &[u8])> {
    let (&BLOB_VERSION, rest) = blob.split_first().filter(|_| blob.len() == BLOB_LEN)? else { return None };
    rest.split_first_chunk().map(|(iv, sealed)| (*iv, sealed))
}

impl fmt::Debug for Pkcs11Cmk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Cmk").field("key_ref", &self.key_ref).finish_non_exhaustive()
    }
}

impl CmkProvider for Pkcs11Cmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }

    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let key = Secret32::random();
        let blob = self.wrap(&key, context)?;
        Ok((key, blob))
    }

    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        let (key, aad) = (key.duplicate(), authenticated(context));
        let (iv, sealed) = self.call(move |token| token.seal(&aad, &key))?;
        let mut blob = Vec::with_capacity(BLOB_LEN);
        blob.push(BLOB_VERSION);
        blob.extend_from_slice(&iv);
        blob.extend_from_slice(&sealed);
        Ok(blob)
    }

    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        let Some((iv, sealed)) = parts(blob) else { return Err(self.bad_blob("not a PKCS#11 blob")) };
        let (sealed, aad) = (sealed.to_vec(), authenticated(context));
        self.call(move |token| token.open(&iv, &aad, &sealed))
    }

    fn describe(&self) -> Result<CmkInfo, KeyError> {
        let found = self.call(TokenKey::look)?;
        let guarded = if found.extractable { ", can be read out of the token" } else { "" };
        Ok(CmkInfo {
            key: self.key_ref.clone(),
            state: if found.enabled { CmkState::Enabled } else { CmkState::Disabled },
            description: format!("AES-256 {}{guarded}", found.label()),
            created: None,
        })
    }
}
