//! What every provider promises, whatever stands behind it. Knows no provider.

use std::sync::Arc;

use envelopefs::crypto::secret::Secret32;
use envelopefs::keys::{CmkProvider, CmkState, EncryptionContext, KeyError};

/// What a test server is known not to enforce, each with the reason at the place that sets it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gaps {
    /// The server does not look at the context.
    pub context: bool,
    /// The server opens altered blobs.
    pub tamper: bool,
}

pub fn branch(n: u8) -> EncryptionContext {
    EncryptionContext::for_branch(&[7; 16], &[n; 16])
}

pub fn assert_bad_blob(result: Result<Secret32, KeyError>, what: &str) {
    match result {
        Err(KeyError::BadBlob { key, reason }) => assert!(!key.is_empty() && !reason.is_empty(), "{what}"),
        Ok(_) => panic!("{what}: opened"),
        Err(other) => panic!("{what}: {other:?}"),
    }
}

pub fn assert_refused<T>(result: Result<T, KeyError>, words: &[&str], what: &str) {
    match result {
        Err(KeyError::Refused { key, reason }) => {
            assert!(!key.is_empty(), "{what}");
            for word in words {
                assert!(reason.contains(word), "{what}: {reason:?} lacks {word:?}");
            }
        }
        Ok(_) => panic!("{what}: allowed"),
        Err(other) => panic!("{what}: {other:?}"),
    }
}

pub fn assert_unreachable<T>(result: Result<T, KeyError>, what: &str) {
    match result {
        Err(KeyError::Unreachable { key, reason }) => assert!(!key.is_empty() && !reason.is_empty(), "{what}"),
        Ok(_) => panic!("{what}: answered"),
        Err(other) => panic!("{what}: {other:?}"),
    }
}

/// `open` opens the same CMK anew each time, as another mount would.
pub fn holds(open: &dyn Fn() -> Arc<dyn CmkProvider>, gaps: Gaps) {
    let cmk = open();
    let name = cmk.key_ref().clone();
    assert!(!name.provider.is_empty() && !name.key.is_empty());
    assert_eq!(open().key_ref(), &name, "the name of a key is stable");
    let info = cmk.describe().unwrap();
    assert_eq!((&info.key, info.state), (&name, CmkState::Enabled));

    // Generated keys are fresh, 32 bytes, and open again elsewhere under the same context in any order.
    let (key, blob) = cmk.generate(&branch(1)).unwrap();
    let (other, other_blob) = cmk.generate(&branch(1)).unwrap();
    assert_ne!(key.expose(), other.expose());
    assert_ne!(blob, other_blob);
    assert!(blob.len() <= 6144 && !blob.windows(32).any(|w| w == key.expose()), "a blob is not the key");
    assert_eq!(open().unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
    let mut reversed = branch(1);
    reversed.0.reverse();
    assert_eq!(cmk.unwrap(&blob, &reversed).unwrap().expose(), key.expose());

    // A key made elsewhere is wrapped all the same.
    let foreign = Secret32::random();
    let wrapped = cmk.wrap(&foreign, &branch(2)).unwrap();
    assert_eq!(open().unwrap(&wrapped, &branch(2)).unwrap().expose(), foreign.expose());

    // A rewrapped blob holds the same key under the same context.
    if let Some(rewrapped) = cmk.rewrap(&blob, &branch(1)).unwrap() {
        assert_ne!(rewrapped, blob);
        assert_eq!(cmk.unwrap(&rewrapped, &branch(1)).unwrap().expose(), key.expose());
        if !gaps.context {
            assert!(cmk.rewrap(&blob, &branch(9)).is_err(), "rewrapped under a wrong context");
        }
    }

    if !gaps.context {
        assert_bad_blob(cmk.unwrap(&blob, &branch(2)), "wrong context");
        let mut less = branch(1);
        less.0.pop();
        assert_bad_blob(cmk.unwrap(&blob, &less), "less context");
        let mut more = branch(1);
        more.0.push(("envelopefs:file-id", "00".into()));
        assert_bad_blob(cmk.unwrap(&blob, &more), "more context");
        assert_bad_blob(cmk.unwrap(&wrapped, &branch(1)), "another branch's blob");
    }
    if !gaps.tamper {
        for at in [0, blob.len() / 2, blob.len() - 1] {
            let mut altered = blob.clone();
            altered[at] ^= 1;
            assert_bad_blob(cmk.unwrap(&altered, &branch(1)), &format!("altered at {at}"));
        }
        assert_bad_blob(cmk.unwrap(&blob[..blob.len() - 1], &branch(1)), "shortened");
    }
    assert_bad_blob(cmk.unwrap(&[], &branch(1)), "empty");
    assert_bad_blob(cmk.unwrap(b"not a blob of anybody", &branch(1)), "nonsense");
    // Nothing above has hurt the good one.
    assert_eq!(cmk.unwrap(&blob, &branch(1)).unwrap().expose(), key.expose());
}

/// A blob of one CMK does not open under another of the same provider.
pub fn keys_are_apart(one: &dyn CmkProvider, other: &dyn CmkProvider) {
    assert_ne!(one.key_ref(), other.key_ref());
    let (_, blob) = one.generate(&branch(1)).unwrap();
    assert_bad_blob(other.unwrap(&blob, &branch(1)), "another key's blob");
}
