//! The contract on the keyfile.

use std::path::Path;
use std::sync::Arc;

use envelopefs::keys::CmkProvider;
use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::keyfile::{KeyfileCmk, create};

use super::contract::{self, Gaps};

fn open(path: &Path) -> Arc<dyn CmkProvider> {
    Arc::new(KeyfileCmk::open(path, None, &PassphraseSource::Terminal).unwrap())
}

#[test]
fn the_keyfile_keeps_the_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    create(&a, "one", None).unwrap();
    create(&b, "other", None).unwrap();
    contract::holds(&|| open(&a), Gaps::default());
    contract::keys_are_apart(&*open(&a), &*open(&b));
}
