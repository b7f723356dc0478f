//! A CMK that is opened when it is first needed, and again later where that fails: for one whose absence must not keep
//! anybody from working. Knows its URI and which key it must lead to; asks nobody for a passphrase.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{Opening, open_cmk};
use crate::crypto::secret::Secret32;
use crate::keys::{
    CmkInfo, CmkProvider, EncryptionContext, KeyError, KeyRef, passphrase::PassphraseSource, uri::CmkUri,
};

pub struct DeferredCmk {
    key: KeyRef,
    uri: CmkUri,
    timeout: Duration,
    opened: OnceLock<Arc<dyn CmkProvider>>,
}

impl DeferredCmk {
    /// `key`: what the URI must lead to. `timeout`: of each opening and each call.
    pub fn new(key: KeyRef, uri: CmkUri, timeout: Duration) -> Self {
        Self { key, uri, timeout, opened: OnceLock::new() }
    }

    /// Two threads at once may both open it; one of the two is used then.
    fn opened(&self) -> Result<&dyn CmkProvider, KeyError> {
        if let Some(cmk) = self.opened.get() {
            return Ok(&**cmk);
        }
        let cmk = open_cmk(&self.uri, &mut Opening::new(&PassphraseSource::Nowhere, self.timeout))?;
        if *cmk.key_ref() != self.key {
            return Err(KeyError::Config(format!(
                "CMK URI {} leads to key {} now, and {} was recorded",
                self.uri,
                cmk.key_ref(),
                self.key
            )));
        }
        Ok(&**self.opened.get_or_init(|| cmk))
    }
}

/// Never local: opening may take its time.
impl CmkProvider for DeferredCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key
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
    use super::*;
    use crate::keys::providers::keyfile;

    fn deferred(path: &std::path::Path, key: &str) -> DeferredCmk {
        let uri = CmkUri::parse(&format!("keyfile://{}", path.display())).unwrap();
        DeferredCmk::new(KeyRef { provider: "keyfile".into(), key: key.into() }, uri, Duration::from_secs(1))
    }

    #[test]
    fn it_is_opened_once_it_is_there_and_only_as_the_key_it_should_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cmk.json");
        let context = EncryptionContext::for_volume(&[1; 16]);
        assert!(matches!(deferred(&path, "any").generate(&context), Err(KeyError::Io { .. })));
        let waiting = deferred(&path, "any");
        keyfile::create(&path, "test", None).unwrap();
        match waiting.generate(&context) {
            Err(KeyError::Config(text)) => assert!(text.contains("keyfile:any was recorded"), "{text}"),
            other => panic!("{:?}", other.map(drop)),
        }
        let uri = CmkUri::parse(&format!("keyfile://{}", path.display())).unwrap();
        let direct = open_cmk(&uri, &mut Opening::new(&PassphraseSource::Nowhere, Duration::from_secs(1))).unwrap();
        let cmk = deferred(&path, &direct.key_ref().key);
        assert!(!cmk.is_local());
        let (key, blob) = cmk.generate(&context).unwrap();
        assert_eq!(direct.unwrap(&blob, &context).unwrap().expose(), key.expose());
        assert_eq!(cmk.describe().unwrap().key, *direct.key_ref());
    }

    #[test]
    fn a_sealed_key_is_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (path, secret) = (dir.path().join("cmk.json"), dir.path().join("passphrase"));
        std::fs::write(&secret, "correct horse\n").unwrap();
        keyfile::create(&path, "test", Some(&PassphraseSource::File(secret))).unwrap();
        match deferred(&path, "any").describe() {
            Err(KeyError::Config(text)) => assert!(text.contains("nobody can be asked"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}
