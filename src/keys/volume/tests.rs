//! Tests of unlocking a volume: several CMKs, pinned commitments, contradictions.

use super::*;
use crate::keys::{
    guard::OutagePolicy,
    keyring::KeyPolicy,
    test_cmk::{Mood, TestCmk},
};

fn new(mode: KeyMode) -> NewVolume {
    NewVolume {
        plaintext_names: false,
        header_pages: 1,
        policy: KeyPolicy { mode, branch_max_age: 3600, branch_max_files: 100 },
        cmk_uris: vec!["keyfile:///etc/envelopefs/cmk.json".into()],
    }
}

fn cmk(name: &str) -> Arc<TestCmk> {
    Arc::new(TestCmk::new(name))
}

fn list(cmks: &[&Arc<TestCmk>]) -> Vec<Arc<Guard>> {
    cmks.iter().map(|&cmk| Guard::new(cmk.clone(), OutagePolicy::default())).collect()
}

fn stored(config: &VolumeConfig, keys: &VolumeKeys) -> UnverifiedVolume {
    UnverifiedVolume::parse(&config.encode(keys)).unwrap()
}

fn unlock(
    volume: UnverifiedVolume,
    cmks: &[Arc<Guard>],
    pinned: Option<&[u8; 32]>,
) -> Result<(VolumeConfig, VolumeKeys), KeyError> {
    super::unlock(volume, cmks, pinned, deadline(cmks))
}

#[test]
fn any_cmk_unlocks_what_was_created() {
    let (a, b) = (cmk("a"), cmk("b"));
    let (config, keys) = create(&new(KeyMode::Branch), &list(&[&a, &b])).unwrap();
    assert_eq!(a.contexts.lock()[0], EncryptionContext::for_volume(&config.volume_id));
    let branch = config.branch.as_ref().unwrap();
    assert_eq!(a.contexts.lock()[1], EncryptionContext::for_branch(&config.volume_id, &branch.id));
    assert_eq!((config.volume_key.len(), branch.slots.len()), (2, 2));
    for cmks in [list(&[&a]), list(&[&b]), list(&[&b, &a])] {
        let (again, opened) = unlock(stored(&config, &keys), &cmks, Some(&keys.commitment)).unwrap();
        assert_eq!(again, config);
        assert_eq!(opened.commitment, keys.commitment);
        assert_eq!(opened.names.expose(), keys.names.expose());
    }
    *a.mood.lock() = Mood::Unreachable;
    unlock(stored(&config, &keys), &list(&[&a, &b]), None).unwrap();
    assert_eq!(commitment_hex(&keys), HEXLOWER.encode(&keys.commitment));
}

#[test]
fn per_file_mode_makes_no_branch() {
    let a = cmk("a");
    let (config, _) = create(&new(KeyMode::PerFile), &list(&[&a])).unwrap();
    assert_eq!((config.branch, config.key_mode), (None, KeyMode::PerFile));
    assert_eq!(a.calls(), (1, 0, 0));
    assert!(matches!(create(&new(KeyMode::Branch), &[]), Err(KeyError::Config(_))));
}

#[test]
fn another_volume_key_contradicts_the_record() {
    let a = cmk("a");
    let (config, keys) = create(&new(KeyMode::Branch), &list(&[&a])).unwrap();
    // A replacement that is authentic under its own key, made with the same CMK.
    let key = crate::crypto::secret::Secret32::random();
    let mut forged = config.clone();
    forged.volume_key[0].blob = a.plant(&key, &EncryptionContext::for_volume(&config.volume_id));
    forged.volume_key[0].commitment = crate::format::volume::key_commitment(&key);
    let forged_keys = VolumeKeys::derive(&config.volume_id, &key);
    let parsed = stored(&forged, &forged_keys);
    match unlock(parsed, &list(&[&a]), Some(&keys.commitment)) {
        Err(KeyError::Volume(text)) => assert!(text.contains(&commitment_hex(&keys)), "{text}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    // Without a record nothing tells it from a volume of its own.
    unlock(stored(&forged, &forged_keys), &list(&[&a]), None).unwrap();
}

#[test]
fn a_changed_configuration_is_refused() {
    let a = cmk("a");
    let (config, keys) = create(&new(KeyMode::Branch), &list(&[&a])).unwrap();
    let text = String::from_utf8(config.encode(&keys)).unwrap();
    let changed = text.replace("3600", "3601");
    assert_ne!(text, changed);
    let parsed = UnverifiedVolume::parse(changed.as_bytes()).unwrap();
    assert!(matches!(unlock(parsed, &list(&[&a]), Some(&keys.commitment)), Err(KeyError::Volume(_))));
}

#[test]
fn unlisted_cmks_are_not_asked_and_bad_slots_are_skipped() {
    let (a, b, c) = (cmk("a"), cmk("b"), cmk("c"));
    let (config, keys) = create(&new(KeyMode::Branch), &list(&[&a, &b])).unwrap();
    assert!(matches!(unlock(stored(&config, &keys), &list(&[&c]), None), Err(KeyError::NoCmk { .. })));
    assert_eq!(c.calls(), (0, 0, 0));

    let mut damaged = config.clone();
    damaged.volume_key[0].blob[15] ^= 1;
    let outcome = unlock(stored(&damaged, &keys), &list(&[&a]), None);
    assert!(matches!(outcome, Err(KeyError::BadBlob { .. })));
    *a.mood.lock() = Mood::Refuses;
    let outcome = unlock(stored(&config, &keys), &list(&[&a]), None);
    assert!(matches!(outcome, Err(KeyError::Refused { .. })));
    unlock(stored(&config, &keys), &list(&[&a, &b]), None).unwrap();
}
