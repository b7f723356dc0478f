//! A CMK that could not be reached when it should have been opened: which key it is, its URI says; the provider itself is
//! opened at first use. Knows no URI syntax and no policy: each use that finds it closed tries once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    crypto::secret::Secret32,
    keys::{CmkInfo, CmkProvider, EncryptionContext, KeyError, KeyRef},
};

/// Those who waited for an opening that failed are not worth an attempt each.
const FAILURE_HOLDS: Duration = Duration::from_millis(200);

/// Opens the provider; ends by itself as [`CmkProvider`]'s calls do.
pub type Open = Box<dyn Fn() -> Result<Arc<dyn CmkProvider>, KeyError> + Send + Sync>;

pub struct LazyCmk {
    key_ref: KeyRef,
    open: Open,
    /// Held while it is opened: others wait for the same outcome.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: Option<Arc<dyn CmkProvider>>,
    failed: Option<(Instant, KeyError)>,
}

impl LazyCmk {
    /// `key_ref`: what the opened provider has to call its key.
    pub fn new(key_ref: KeyRef, open: Open) -> Self {
        Self { key_ref, open, state: Mutex::default() }
    }

    /// Opens it now, if that can be done.
    pub fn opened(&self) -> Result<Arc<dyn CmkProvider>, KeyError> {
        let mut state = self.state.lock();
        if let Some(cmk) = &state.opened {
            return Ok(cmk.clone());
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < FAILURE_HOLDS
        {
            return Err(error.repeat());
        }
        let outcome = (self.open)().and_then(|cmk| match cmk.key_ref() == &self.key_ref {
            true => Ok(cmk),
            false => Err(KeyError::Config(format!(
                "CMK {} was expected and its URI leads to {}: correct the recorded URI, or name the CMK with --cmk",
                self.key_ref,
                cmk.key_ref()
            ))),
        });
        match &outcome {
            Ok(cmk) => state.opened = Some(cmk.clone()),
            Err(e) => state.failed = Some((Instant::now(), e.repeat())),
        }
        outcome
    }
}

impl CmkProvider for LazyCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }
    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        self.opened()?.generate(context)
    }
    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        self.opened()?.wrap(key, context)
    }
    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        self.opened()?.unwrap(blob, context)
    }
    fn rewrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Option<Vec<u8>>, KeyError> {
        self.opened()?.rewrap(blob, context)
    }
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        self.opened()?.describe()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::keys::test_cmk::TestCmk;

    fn lazy(name: &str, down: usize) -> (LazyCmk, Arc<AtomicUsize>) {
        let (cmk, attempts) = (Arc::new(TestCmk::remote("a")), Arc::new(AtomicUsize::new(0)));
        let counted = attempts.clone();
        let open = move || match counted.fetch_add(1, Ordering::SeqCst) {
            n if n < down => Err(KeyError::Unreachable { key: "test:a".into(), reason: "refused".into() }),
            _ => Ok(cmk.clone() as Arc<dyn CmkProvider>),
        };
        let key_ref = KeyRef { provider: "test".into(), key: name.into() };
        (LazyCmk::new(key_ref, Box::new(open)), attempts)
    }

    #[test]
    fn it_is_opened_at_first_use_and_once() {
        let context = EncryptionContext::default();
        let (cmk, attempts) = lazy("a", 0);
        assert!(!cmk.is_local());
        assert_eq!((cmk.key_ref().key.as_str(), attempts.load(Ordering::SeqCst)), ("a", 0));
        let (key, blob) = cmk.generate(&context).unwrap();
        assert!(cmk.unwrap(&blob, &context).unwrap().expose() == key.expose());
        cmk.unwrap(&cmk.wrap(&key, &context).unwrap(), &context).unwrap();
        cmk.describe().unwrap();
        assert_eq!(attempts.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn while_it_is_down_uses_fail_and_later_ones_succeed() {
        let (cmk, attempts) = lazy("a", 2);
        let unreachable = || matches!(cmk.describe(), Err(KeyError::Unreachable { .. }));
        assert!(unreachable() && unreachable());
        assert_eq!(attempts.load(Ordering::SeqCst), 1, "a failure answers for a moment");
        std::thread::sleep(FAILURE_HOLDS);
        assert!(unreachable());
        std::thread::sleep(FAILURE_HOLDS);
        cmk.describe().unwrap();
        assert_eq!(attempts.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn another_key_is_refused() {
        let (cmk, _) = lazy("b", 0);
        let error = cmk.describe().unwrap_err().to_string();
        assert!(error.contains("test:b was expected and its URI leads to test:a"), "{error}");
    }
}
