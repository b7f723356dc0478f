//! Tests of the keyfile: creation, states, versions, passphrases, damage.

use super::*;
use crate::keys::{
    providers::{KMS_DEADLINE, Opening, open_cmk, open_cmks},
    uri::CmkUri,
};
use serde_json::{Value, json};
use std::{io::Write, os::unix::fs::PermissionsExt, sync::Arc};

const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };

struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn passphrase(&self, text: &str) -> PassphraseSource {
        let path = self.path(&format!("passphrase-{text}"));
        let _ = protected::create_new(&path, text.as_bytes());
        PassphraseSource::File(path)
    }
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut document = json_of(&self.path(name));
        change(&mut document);
        std::fs::write(self.path(name), document.to_string()).unwrap();
    }
}

/// A source that fails the test if it is read: nothing is sealed.
fn never() -> PassphraseSource {
    PassphraseSource::File("/nonexistent/passphrase".into())
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn context(value: &str) -> EncryptionContext {
    EncryptionContext(vec![("envelopefs:volume-id", value.into()), ("envelopefs:branch-id", "b".into())])
}

fn open(path: &Path) -> KeyfileCmk {
    KeyfileCmk::open(path, None, &never()).unwrap()
}

fn bad_blob<T: fmt::Debug>(outcome: Result<T, KeyError>) {
    assert!(matches!(outcome, Err(KeyError::BadBlob { .. })), "{outcome:?}");
}

fn refused<T: fmt::Debug>(outcome: Result<T, KeyError>, word: &str) {
    match outcome {
        Err(KeyError::Refused { reason, .. }) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?}"),
    }
}

fn config_error<T>(outcome: Result<T, KeyError>) -> String {
    match outcome {
        Err(KeyError::Config(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it succeeded"),
    }
}

#[test]
fn a_created_keyfile_wraps_and_unwraps() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    let info = create(&path, "for tests", None).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(inspect(&path).unwrap(), vec![info.clone()]);
    assert_eq!((info.state, info.description.as_str()), (CmkState::Enabled, "for tests"));
    assert!((info.created.unwrap() - crate::keys::unix_now()).abs() < 60);
    let cmk = open(&path);
    assert_eq!(cmk.key_ref(), &info.key);
    assert_eq!((info.key.provider.as_str(), info.key.key.len()), ("keyfile", 36));
    assert_eq!(cmk.describe().unwrap(), info);

    let (key, blob) = cmk.generate(&context("v")).unwrap();
    assert_eq!(blob.len(), 65);
    let again = open(&path);
    assert_eq!(again.unwrap(&blob, &context("v")).unwrap().expose(), key.expose());
    // The order of the context does not matter.
    let mut reversed = context("v");
    reversed.0.reverse();
    assert_eq!(again.unwrap(&blob, &reversed).unwrap().expose(), key.expose());
    let second = again.wrap(&key, &context("v")).unwrap();
    assert_ne!(second, blob);
    assert_eq!(cmk.unwrap(&second, &context("v")).unwrap().expose(), key.expose());
}

#[test]
fn a_wrong_context_does_not_open() {
    let scratch = Scratch::new();
    create(&scratch.path("cmk.json"), "", None).unwrap();
    let cmk = open(&scratch.path("cmk.json"));
    let (_, blob) = cmk.generate(&context("v")).unwrap();
    bad_blob(cmk.unwrap(&blob, &context("w")));
    bad_blob(cmk.unwrap(&blob, &EncryptionContext::default()));
    let mut more = context("v");
    more.0.push(("envelopefs:file-id", String::new()));
    bad_blob(cmk.unwrap(&blob, &more));
    // Moving bytes between neighbouring values.
    let split = |a: &str, b: &str| EncryptionContext(vec![("a", a.into()), ("b", b.into())]).canonical_bytes();
    assert_ne!(split("xy", "z"), split("x", "yz"));
}

#[test]
fn an_altered_blob_does_not_open() {
    let scratch = Scratch::new();
    create(&scratch.path("cmk.json"), "", None).unwrap();
    let cmk = open(&scratch.path("cmk.json"));
    let (_, blob) = cmk.generate(&context("v")).unwrap();
    for at in 0..blob.len() {
        let mut altered = blob.clone();
        altered[at] ^= 1;
        bad_blob(cmk.unwrap(&altered, &context("v")));
    }
    for len in 0..blob.len() {
        bad_blob(cmk.unwrap(&blob[..len], &context("v")));
    }
    bad_blob(cmk.unwrap(&[blob.as_slice(), &[0]].concat(), &context("v")));
}

#[test]
fn another_cmk_does_not_open_even_with_the_same_material() {
    let scratch = Scratch::new();
    create(&scratch.path("a.json"), "", None).unwrap();
    create(&scratch.path("b.json"), "", None).unwrap();
    let (a, b) = (open(&scratch.path("a.json")), open(&scratch.path("b.json")));
    assert_ne!(a.key_ref(), b.key_ref());
    let (_, blob) = a.generate(&context("v")).unwrap();
    bad_blob(b.unwrap(&blob, &context("v")));
    scratch.edit("a.json", |d| d["keys"][0]["id"] = json!("0".repeat(36)));
    bad_blob(open(&scratch.path("a.json")).unwrap(&blob, &context("v")));
}

#[test]
fn nothing_is_overwritten() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    create(&path, "", None).unwrap();
    let before = std::fs::read(&path).unwrap();
    // The passphrase is not even asked for.
    match create(&path, "", Some(&never())) {
        Err(KeyError::Io { path: named, source }) => {
            assert_eq!((named, source.kind()), (path.display().to_string(), std::io::ErrorKind::AlreadyExists));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::os::unix::fs::symlink("nowhere", scratch.path("dangling")).unwrap();
    assert!(create(&scratch.path("dangling"), "", None).is_err());
    assert!(config_error(create(&scratch.path("x"), "bell\u{7}", None)).contains("control characters"));
    assert!(!scratch.path("x").exists());
}

#[test]
fn a_keyfile_that_others_may_read_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    create(&path, "", None).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let text = config_error(KeyfileCmk::open(&path, None, &never()));
    assert!(text.contains("0640") && text.contains("chmod 600"), "{text}");
    assert!(inspect(&path).is_err());
    match KeyfileCmk::open(&scratch.path("none"), None, &never()) {
        Err(KeyError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sealed_keyfile_opens_with_its_passphrase_only() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    let right = scratch.passphrase("right");
    let info = create_with(&path, "", Some(&right), CHEAP).unwrap();
    // Says everything but the key without it.
    assert_eq!(inspect(&path).unwrap(), vec![info]);
    let cmk = KeyfileCmk::open(&path, None, &right).unwrap();
    let (key, blob) = cmk.generate(&context("v")).unwrap();
    let again = KeyfileCmk::open(&path, None, &right).unwrap();
    assert_eq!(again.unwrap(&blob, &context("v")).unwrap().expose(), key.expose());
    refused(KeyfileCmk::open(&path, None, &scratch.passphrase("wrong")), "wrong passphrase");
    assert!(KeyfileCmk::open(&path, None, &never()).is_err());

    for (field, value) in [("passes", json!(2)), ("memory_kib", json!(128)), ("salt", json!("A".repeat(22)))] {
        let before = json_of(&path);
        scratch.edit("cmk.json", |d| d["keys"][0]["versions"][0]["sealed"][field] = value);
        refused(KeyfileCmk::open(&path, None, &right), "altered");
        std::fs::write(&path, before.to_string()).unwrap();
    }
    scratch.edit("cmk.json", |d| d["keys"][0]["id"] = json!("other"));
    refused(KeyfileCmk::open(&path, None, &right), "altered");
}

#[test]
fn new_sealed_keyfiles_use_the_documented_cost() {
    let scratch = Scratch::new();
    create(&scratch.path("cmk.json"), "", Some(&scratch.passphrase("p"))).unwrap();
    let sealed = json_of(&scratch.path("cmk.json"))["keys"][0]["versions"][0]["sealed"].clone();
    assert_eq!((&sealed["kdf"], &sealed["memory_kib"]), (&json!("argon2id"), &json!(65536)));
    assert_eq!((&sealed["passes"], &sealed["lanes"]), (&json!(3), &json!(1)));
    assert!(KeyfileCmk::open(&scratch.path("cmk.json"), None, &scratch.passphrase("p")).is_ok());
}

#[test]
fn a_key_that_is_not_enabled_refuses_every_use_until_it_is_enabled_again() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    create(&path, "", None).unwrap();
    let running = open(&path);
    let (key, blob) = running.generate(&context("v")).unwrap();
    for (state, date, word) in [
        ("disabled", None, "disabled"),
        ("pending_deletion", None, "pending deletion in"),
        ("pending_deletion", Some("2031-01-02T03:04:05Z"), "pending deletion on 2031-01-02"),
    ] {
        scratch.edit("cmk.json", |d| {
            d["keys"][0]["state"] = json!(state);
            if let Some(date) = date {
                d["keys"][0]["deletion_date"] = json!(date);
            }
        });
        // Whether it was opened before or after.
        for cmk in [&running, &open(&path)] {
            refused(cmk.generate(&context("v")), word);
            refused(cmk.wrap(&key, &context("v")), word);
            refused(cmk.unwrap(&blob, &context("v")), word);
            assert_ne!(cmk.describe().unwrap().state, CmkState::Enabled);
        }
    }
    scratch.edit("cmk.json", |d| d["keys"][0]["state"] = json!("enabled"));
    running.unwrap(&blob, &context("v")).unwrap();
    scratch.edit("cmk.json", |d| d["keys"][0]["id"] = json!("replaced"));
    refused(running.unwrap(&blob, &context("v")), "removed");
}

#[test]
fn a_keyfile_that_went_away_leaves_the_open_key_in_its_last_state() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    create(&path, "", None).unwrap();
    let cmk = open(&path);
    let (_, blob) = cmk.generate(&context("v")).unwrap();
    std::fs::rename(&path, scratch.path("unplugged")).unwrap();
    cmk.unwrap(&blob, &context("v")).unwrap();
    assert!(matches!(cmk.describe(), Err(KeyError::Unreachable { .. })));
    std::fs::rename(scratch.path("unplugged"), &path).unwrap();
    scratch.edit("cmk.json", |d| d["keys"][0]["state"] = json!("disabled"));
    refused(cmk.unwrap(&blob, &context("v")), "disabled");
    std::fs::remove_file(&path).unwrap();
    refused(cmk.unwrap(&blob, &context("v")), "disabled");
}

/// Two keys in `both.json`, ids "first" and "second".
fn two_keys(scratch: &Scratch) -> PathBuf {
    for name in ["a.json", "both.json"] {
        create(&scratch.path(name), "", None).unwrap();
    }
    let mut other = json_of(&scratch.path("a.json"))["keys"][0].clone();
    other["id"] = json!("second");
    scratch.edit("both.json", |d| {
        d["keys"][0]["id"] = json!("first");
        d["keys"].as_array_mut().unwrap().push(other);
    });
    scratch.path("both.json")
}

#[test]
fn one_file_holds_several_keys() {
    let scratch = Scratch::new();
    let path = two_keys(&scratch);
    assert_eq!(inspect(&path).unwrap().len(), 2);
    let by_id = |id| KeyfileCmk::open(&path, Some(id), &never()).unwrap();
    assert_eq!(open(&path).key_ref().key, "first");
    let (_, blob) = by_id("first").generate(&context("v")).unwrap();
    bad_blob(by_id("second").unwrap(&blob, &context("v")));
    let text = config_error(KeyfileCmk::open(&path, Some("third"), &never()));
    assert!(text.contains("first, second"), "{text}");

    scratch.edit("both.json", |d| d["keys"][0]["state"] = json!("disabled"));
    assert_eq!(open(&path).key_ref().key, "second");
    by_id("second").generate(&context("v")).unwrap();
    refused(by_id("first").generate(&context("v")), "disabled");
    scratch.edit("both.json", |d| d["keys"][1]["state"] = json!("disabled"));
    refused(open(&path).generate(&context("v")), "disabled");
}

#[test]
fn a_rotated_key_wraps_by_its_new_version_and_unwraps_by_all() {
    let scratch = Scratch::new();
    create(&scratch.path("cmk.json"), "", None).unwrap();
    create(&scratch.path("new.json"), "", None).unwrap();
    let path = scratch.path("cmk.json");
    let before = open(&path);
    let (old_key, old_blob) = before.generate(&context("v")).unwrap();
    let material = json_of(&scratch.path("new.json"))["keys"][0]["versions"][0]["key"].clone();
    scratch.edit("cmk.json", |d| {
        d["keys"][0]["current_version"] = json!(7);
        d["keys"][0]["versions"].as_array_mut().unwrap().push(json!({"version": 7, "key": material}));
    });
    let after = open(&path);
    assert_eq!(after.key_ref(), before.key_ref());
    let (_, new_blob) = after.generate(&context("v")).unwrap();
    assert_eq!((&old_blob[..5], &new_blob[..5]), (&[1, 1, 0, 0, 0][..], &[1, 7, 0, 0, 0][..]));
    assert_eq!(after.unwrap(&old_blob, &context("v")).unwrap().expose(), old_key.expose());
    bad_blob(before.unwrap(&new_blob, &context("v")));
}

#[test]
fn malformed_keyfiles_are_refused_without_quoting_them() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    create(&path, "", None).unwrap();
    let good = json_of(&path);
    let secret = good["keys"][0]["versions"][0]["key"].as_str().unwrap().to_string();
    let sealed = |field: &str, value: Value| {
        let mut sealed = json!({
            "kdf": "argon2id", "memory_kib": 64, "passes": 1, "lanes": 1,
            "salt": "A".repeat(22), "wrapped": "A".repeat(80),
        });
        sealed[field] = value;
        json!([{"version": 1, "sealed": sealed}])
    };
    let key = |field: &str, value: Value| {
        let mut document = good.clone();
        document["keys"][0][field] = value;
        document
    };
    let top = |field: &str, value: Value| {
        let mut document = good.clone();
        document[field] = value;
        document
    };
    let twice = json!([good["keys"][0], good["keys"][0]]);
    let cases = [
        (top("version", json!(2)), "keyfile version 2"),
        (top("format", json!("other")), "not an envelopefs keyfile"),
        (top("keys", json!([])), "1 to 1024 keys"),
        (top("keys", twice), "key 2: its id is used twice"),
        (top("keys", json!(secret)), "line 1, column"),
        (top(&secret, json!(1)), "line 1, column"),
        (key("id", json!("")), "its id"),
        (key("id", json!("a/b")), "its id"),
        (key("state", json!(secret)), "line 1, column"),
        (key("created", json!("yesterday")), "created"),
        (key("deletion_date", json!("soon")), "deletion_date"),
        (key("description", json!("\u{1b}[2J")), "description"),
        (key("current_version", json!(2)), "current version 2"),
        (key("versions", json!([])), "1 to 1024 versions"),
        (key("versions", json!([{"version": 1}])), "either"),
        (key("versions", json!([{"version": 1, "key": secret.clone() + "A"}])), "32 bytes"),
        (key("versions", json!([{"version": 1, "key": [secret]}])), "line 1, column"),
        (key("versions", json!([{"version": 1, "key": secret}, {"version": 1, "key": secret}])), "there twice"),
        (key("versions", sealed("kdf", json!("pbkdf2"))), "unknown kdf"),
        (key("versions", sealed("memory_kib", json!(u32::MAX))), "out of range"),
        (key("versions", sealed("memory_kib", json!(7))), "out of range"),
        (key("versions", sealed("lanes", json!(0))), "out of range"),
        (key("versions", sealed("passes", json!(0))), "out of range"),
        (key("versions", sealed("salt", json!("AA"))), "salt"),
        (key("versions", sealed("wrapped", json!(secret))), "60 bytes"),
    ];
    for (document, expected) in cases {
        std::fs::write(&path, document.to_string()).unwrap();
        let text = config_error(KeyfileCmk::open(&path, None, &never()));
        assert!(text.contains(expected) && text.contains("cmk.json"), "{expected}: {text}");
        assert!(!text.contains(&secret), "{text}");
    }
    let text = good.to_string();
    for len in (0..text.len()).step_by(7) {
        std::fs::write(&path, &text[..len]).unwrap();
        config_error(KeyfileCmk::open(&path, None, &never()));
    }
    std::fs::write(&path, " ".repeat(KEYFILE_MAX + 1)).unwrap();
    assert!(config_error(inspect(&path)).contains("larger than"));
}

#[test]
fn the_registry_opens_keyfiles_and_shares_one_passphrase() {
    let scratch = Scratch::new();
    let source = scratch.passphrase("shared");
    let uris: Vec<CmkUri> = ["a.json", "b.json"]
        .iter()
        .map(|name| {
            create_with(&scratch.path(name), "", Some(&source), CHEAP).unwrap();
            CmkUri::parse(&format!("keyfile://{}", scratch.path(name).display())).unwrap()
        })
        .collect();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"shared\n").unwrap();
    drop(writer);
    let pipe = PassphraseSource::Descriptor(std::os::fd::AsRawFd::as_raw_fd(&reader));
    let cmks: Vec<Arc<dyn CmkProvider>> = open_cmks(&uris, &mut Opening::new(&pipe, KMS_DEADLINE)).unwrap();
    let names: Vec<_> = cmks.iter().map(|cmk| cmk.key_ref().clone()).collect();
    let one = open_cmk(&uris[1].pinned(&names[1]), &mut Opening::new(&source, KMS_DEADLINE)).unwrap();
    assert_eq!(one.key_ref(), &names[1]);
    let twice = [uris[0].clone(), uris[0].pinned(&names[0])];
    assert!(config_error(open_cmks(&twice, &mut Opening::new(&source, KMS_DEADLINE))).contains("given twice"));
}

#[test]
fn debug_and_display_show_no_secret() {
    let scratch = Scratch::new();
    let path = scratch.path("cmk.json");
    create(&path, "", None).unwrap();
    let cmk = open(&path);
    assert_eq!(format!("{cmk:?}"), format!("KeyfileCmk {{ key_ref: {:?}, .. }}", cmk.key_ref()));
    let (key, blob) = cmk.generate(&context("v")).unwrap();
    assert_eq!(format!("{key:?}"), "Secret32(..)");
    let error = cmk.unwrap(&blob, &context("w")).unwrap_err();
    let secret = json_of(&path)["keys"][0]["versions"][0]["key"].as_str().unwrap().to_string();
    assert!(!format!("{error} {error:?}").contains(&secret));
}
