//! A CMK for tests: counts its calls, remembers their contexts, fails on demand. No keyfile, no passphrase.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef};
use crate::crypto::{random, secret::Secret32, wrap};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Works,
    Refuses,
    Unreachable,
}

pub struct TestCmk {
    key_ref: KeyRef,
    secret: Secret32,
    pub mood: Mutex<Mood>,
    pub generated: AtomicUsize,
    pub wrapped: AtomicUsize,
    pub unwrapped: AtomicUsize,
    pub contexts: Mutex<Vec<EncryptionContext>>,
    /// Done when the next key has been made or opened, before the answer leaves the provider.
    pub answering: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// How long each call takes.
    pause: std::time::Duration,
    remote: bool,
}

impl TestCmk {
    pub fn new(name: &str) -> Self {
        Self {
            key_ref: KeyRef { provider: "test".into(), key: name.into() },
            secret: Secret32::random(),
            mood: Mutex::new(Mood::Works),
            generated: AtomicUsize::new(0),
            wrapped: AtomicUsize::new(0),
            unwrapped: AtomicUsize::new(0),
            contexts: Mutex::new(Vec::new()),
            answering: Mutex::new(None),
            pause: std::time::Duration::ZERO,
            remote: false,
        }
    }

    /// Slow enough for other threads to arrive during a call.
    pub fn slow(name: &str) -> Self {
        Self { pause: std::time::Duration::from_millis(30), ..Self::new(name) }
    }

    /// Another one with this one's name and ways.
    pub fn like(other: &Self) -> Self {
        Self { remote: other.remote, pause: other.pause, ..Self::new(&other.key_ref.key) }
    }

    /// One that may take its time, so that nobody calls it where he must not wait.
    pub fn remote(name: &str) -> Self {
        Self { remote: true, ..Self::new(name) }
    }

    /// A remote one whose calls take that long.
    pub fn far(name: &str, pause: std::time::Duration) -> Self {
        Self { pause, ..Self::remote(name) }
    }

    /// generate, wrap and unwrap calls so far.
    pub fn calls(&self) -> (usize, usize, usize) {
        let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
        (count(&self.generated), count(&self.wrapped), count(&self.unwrapped))
    }

    fn called(&self, counter: &AtomicUsize, context: &EncryptionContext) -> Result<(), KeyError> {
        counter.fetch_add(1, Ordering::SeqCst);
        self.contexts.lock().push(context.clone());
        #[cfg(feature = "shuttle")]
        shuttle::thread::yield_now();
        std::thread::sleep(self.pause);
        let key = self.key_ref.to_string();
        match *self.mood.lock() {
            Mood::Works => Ok(()),
            Mood::Refuses => Err(KeyError::Refused { key, reason: "disabled".into() }),
            Mood::Unreachable => Err(KeyError::Unreachable { key, reason: "timeout".into() }),
        }
    }

    fn answer(&self) {
        let answering = self.answering.lock().take();
        if let Some(answering) = answering {
            answering();
        }
    }

    /// A wrapped blob as anybody could make it for a public key: not counted.
    pub fn plant(&self, key: &Secret32, context: &EncryptionContext) -> Vec<u8> {
        wrap::wrap_key(&self.secret, &random::array(), &context.canonical_bytes(), key).to_vec()
    }
}

impl CmkProvider for TestCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }
    fn is_local(&self) -> bool {
        !self.remote
    }
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        self.called(&self.generated, context)?;
        let key = Secret32::random();
        let blob = self.plant(&key, context);
        self.answer();
        Ok((key, blob))
    }
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        self.called(&self.wrapped, context)?;
        Ok(self.plant(key, context))
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        self.called(&self.unwrapped, context)?;
        let key = wrap::unwrap_key(&self.secret, &context.canonical_bytes(), blob)
            .map_err(|_| KeyError::BadBlob { key: self.key_ref.to_string(), reason: "does not authenticate".into() })?;
        self.answer();
        Ok(key)
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        Ok(CmkInfo { key: self.key_ref.clone(), state: CmkState::Enabled, description: String::new(), created: None })
    }
}
