//! What lies on disk: restarts, nothing in the open, tampering, seal, backup, a disk that fails.

use std::fs;

use data_encoding::BASE64;

use super::*;
use crate::kms::admin::Request;
use crate::kms::store::StoreError;

#[test]
fn what_was_answered_is_there_after_a_crash() {
    let mut world = World::new();
    let key = world.key();
    let blob = world.encrypt(&key);
    world.root("CreateAlias", json!({"AliasName": "alias/a", "TargetKeyId": key})).unwrap();
    world.root("TagResource", json!({"KeyId": key, "Tags": [{"TagKey": "a", "TagValue": "b"}]})).unwrap();
    world.restart();
    assert_eq!(world.decrypt(&blob).unwrap(), "aGVsbG8=");
    let described = world.root("DescribeKey", json!({"KeyId": "alias/a"})).unwrap();
    assert_eq!(id_of(&described), key);
    assert_eq!(world.root("ListResourceTags", json!({"KeyId": key})).unwrap()["Tags"][0]["TagKey"], "a");
}

/// Every byte under a directory.
fn bytes(directory: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(bytes(&path));
        } else {
            all.extend(fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn nothing_secret_lies_in_the_open() {
    let world = World::new();
    let user = world.service().administer(Request::UserAdd { name: "ann".into(), service: false }, 0).unwrap();
    let key = world.key();
    world.root("UpdateKeyDescription", json!({"KeyId": key, "Description": "unmistakable words"})).unwrap();
    let data_key = world.root("GenerateDataKey", json!({"KeyId": key, "KeySpec": "AES_256"})).unwrap();
    world
        .root("Encrypt", json!({"KeyId": key, "Plaintext": BASE64.encode(b"a plaintext that is long enough")}))
        .unwrap();
    let file = world.root.path().join("backup");
    world.service().administer(Request::Backup { file: file.clone() }, 0).unwrap();
    world.service().settle();
    let mut disk = bytes(&world.data());
    disk.extend(fs::read(&file).unwrap());
    let shows = |what: &[u8]| disk.windows(what.len()).any(|window| window == what);
    let material = world.service().view().keys[&key].current().unwrap().1.to_bytes().unwrap();
    let secret = user["SecretAccessKey"].as_str().unwrap();
    let plaintext = BASE64.decode(data_key["Plaintext"].as_str().unwrap().as_bytes()).unwrap();
    for hidden in
        [&material[..], secret.as_bytes(), &plaintext, b"a plaintext that is long enough", b"unmistakable words"]
    {
        let trail_may = hidden == b"unmistakable words";
        assert!(trail_may || !shows(hidden) && !shows(BASE64.encode(hidden).as_bytes()));
    }
    assert!(!fs::read(world.data().join("kms.redb")).unwrap().windows(18).any(|w| w == b"unmistakable words"));
    assert!(shows(key.as_bytes()), "the search finds what the trail names");
}

#[test]
fn one_process_at_a_time() {
    let world = World::new();
    assert!(matches!(Service::open(&world.data(), &PassphraseSource::Nowhere), Err(StoreError::Busy(_))));
}

#[test]
fn directories_and_files_of_others_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new();
    world.service = None;
    let open = || Service::open(&world.data(), &PassphraseSource::Nowhere).err().map(|e| e.to_string());
    fs::set_permissions(world.data(), fs::Permissions::from_mode(0o750)).unwrap();
    assert!(open().unwrap().contains("chmod 700"));
    fs::set_permissions(world.data(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(world.data().join("kms.redb"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(open().unwrap().contains("chmod 600"));
}

#[test]
fn another_seal_opens_and_the_old_one_does_not() {
    let mut world = World::new();
    let key = world.key();
    let blob = world.encrypt(&key);
    let seal = world.root.path().join("second.json");
    keyfile::create(&seal, "", None).unwrap();
    let request = Request::RotateSeal { uri: uri(&seal).to_string(), passphrase_file: None };
    world.service().administer(request, 0).unwrap();
    fs::remove_file(world.root.path().join("seal.json")).unwrap();
    world.restart();
    assert_eq!(world.decrypt(&blob).unwrap(), "aGVsbG8=");
    world.service = None;
    fs::remove_file(&seal).unwrap();
    assert!(matches!(Service::open(&world.data(), &PassphraseSource::Nowhere), Err(StoreError::Key(_))));
}

#[test]
fn a_backup_makes_the_same_service_elsewhere() {
    let world = World::new();
    world.user("ann");
    let key = world.key();
    let blob = world.encrypt(&key);
    let file = world.root.path().join("backup");
    world.service().administer(Request::Backup { file: file.clone() }, 0).unwrap();
    assert!(world.service().administer(Request::Backup { file: file.clone() }, 0).is_err(), "no file is overwritten");
    world.root("DisableKey", json!({"KeyId": key})).unwrap();
    let elsewhere = world.root.path().join("elsewhere");
    let restored = Service::restore(&elsewhere, &file, &PassphraseSource::Nowhere).unwrap();
    assert!(restored.view().users.contains_key("ann"));
    let restored = World { root: tempfile::tempdir().unwrap(), service: Some(restored) };
    assert_eq!(restored.decrypt(&blob).unwrap(), "aGVsbG8=");
    let verdict = restored.service().administer(Request::VerifyTrail {}, 0).unwrap();
    assert_eq!(verdict["problems"], json!([]));
    assert!(Service::restore(&world.data(), &file, &PassphraseSource::Nowhere).is_err());
    drop(restored);
    // Altered anywhere, or cut, it is refused before anything is written.
    let whole = fs::read(&file).unwrap();
    let broken = world.root.path().join("broken");
    for at in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&broken, &bytes).unwrap();
        let to = world.root.path().join(format!("to-{at}"));
        assert!(Service::restore(&to, &broken, &PassphraseSource::Nowhere).is_err(), "byte {at}");
        assert!(!to.join("kms.redb").exists());
    }
    for len in (0..whole.len()).step_by(211) {
        fs::write(&broken, &whole[..len]).unwrap();
        let to = world.root.path().join("to-cut");
        assert!(Service::restore(&to, &broken, &PassphraseSource::Nowhere).is_err(), "cut at {len}");
    }
}

#[test]
fn uses_are_remembered() {
    let mut world = World::new();
    let key = world.key();
    world.encrypt(&key);
    let last = |world: &World| {
        world.root("GetKeyLastUsage", json!({"KeyId": key})).unwrap()["KeyLastUsage"]["Operation"].clone()
    };
    assert_eq!(last(&world), "Encrypt");
    world.service().remember_uses();
    world.restart();
    assert_eq!(last(&world), "Encrypt");
}
