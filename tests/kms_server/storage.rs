//! A disk that is full: changes are refused and leave nothing, what is there goes on opening.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{scratch, tool};
use crate::needs;
use crate::own::Own;

/// A filesystem in memory that ends with the test.
struct Tmpfs {
    path: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Tmpfs {
    fn new(megabytes: u64) -> Self {
        let scratch = scratch();
        let path = scratch.path().join("small");
        fs::create_dir(&path).unwrap();
        let size = format!("size={megabytes}m");
        tool("mount", &["-t", "tmpfs", "-o", &size, "envelopefs-test", path.to_str().unwrap()]);
        Self { path, _scratch: scratch }
    }
    /// Takes all that is left.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096, 512, 1] {
            while file.write_all(&vec![0x55; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l".as_ref(), self.path.as_os_str()]).status();
    }
}

fn names(own: &Own, operation: &str, member: &str, name: &str) -> Vec<Value> {
    let listed = own.admin(operation, &json!({"Limit": 1000}));
    listed[member].as_array().unwrap().iter().map(|item| item[name].clone()).collect()
}

/// Everything that a service shows of itself, for comparing.
fn shown(own: &Own, key: &str) -> Value {
    json!({
        "keys": names(own, "ListKeys", "Keys", "KeyId"),
        "aliases": names(own, "ListAliases", "Aliases", "AliasName"),
        "key": own.admin("DescribeKey", &json!({"KeyId": key})),
        "policy": own.admin("GetKeyPolicy", &json!({"KeyId": key})),
        "grants": own.admin("ListGrants", &json!({"KeyId": key})),
        "tags": own.admin("ListResourceTags", &json!({"KeyId": key})),
    })
}

/// Refused as the service's own fault, which clients try again later.
fn refused(own: &Own, operation: &str, input: &Value) {
    let (status, answer) = own.ask(&own.root, operation, input).unwrap();
    assert!(status >= 500, "{operation} on a full disk: {status} {answer}");
}

fn decrypts(own: &Own, blob: &Value) {
    assert_eq!(own.admin("Decrypt", &json!({"CiphertextBlob": blob}))["Plaintext"], "AAAA");
}

fn full_disk(directory: &Path, tmpfs: &Tmpfs) {
    let mut own = Own::start_in(directory);
    let made = own.admin("CreateKey", &json!({"Description": "before"}));
    let key = made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    own.admin("CreateAlias", &json!({"AliasName": "alias/before", "TargetKeyId": key}));
    let blob = own.admin("Encrypt", &json!({"KeyId": key, "Plaintext": "AAAA"}))["CiphertextBlob"].clone();
    let before = shown(&own, &key);

    let filler = tmpfs.fill();
    // What the store had set aside is used up first: until then changes may be taken.
    let mut taken = Vec::new();
    let full = (0..20_000).any(|n| {
        let alias = format!("alias/extra{n}");
        let (status, _) = own.ask(&own.root, "CreateAlias", &json!({"AliasName": alias, "TargetKeyId": key})).unwrap();
        if status == 200 {
            taken.push(alias);
        }
        status != 200
    });
    assert!(full, "the disk never was full");
    for alias in &taken {
        // Making room again is a change, too, and may be refused.
        let _ = own.ask(&own.root, "DeleteAlias", &json!({"AliasName": alias}));
    }
    let _more = File::create(tmpfs.path.join("filler2")).map(|mut file| while file.write_all(&[0x55; 512]).is_ok() {});
    let before = if taken.is_empty() { before } else { shown(&own, &key) };

    let user = "arn:aws:iam::123456789012:user/u";
    for _ in 0..3 {
        decrypts(&own, &blob);
        let made = own.admin("GenerateDataKey", &json!({"KeyId": key, "KeySpec": "AES_256"}));
        assert!(made["Plaintext"].is_string());
        refused(&own, "CreateKey", &json!({"Description": "x".repeat(8000)}));
        refused(&own, "CreateGrant", &json!({"KeyId": key, "GranteePrincipal": user, "Operations": ["Decrypt"]}));
    }
    assert_eq!(shown(&own, &key), before, "a change that was refused shows");

    // It starts on a full disk, too.
    own.kill();
    own.serve();
    decrypts(&own, &blob);
    assert_eq!(shown(&own, &key), before);

    fs::remove_file(filler).unwrap();
    let _ = fs::remove_file(tmpfs.path.join("filler2"));
    own.admin("CreateAlias", &json!({"AliasName": "alias/after", "TargetKeyId": key}));
    own.admin("DisableKey", &json!({"KeyId": key}));
    own.kill();
    own.serve();
    assert_eq!(own.admin("DescribeKey", &json!({"KeyId": "alias/after"}))["KeyMetadata"]["KeyState"], "Disabled");
    own.verb(&["audit"], &["--verify"]);
}

#[test]
fn a_full_disk_refuses_changes_and_still_decrypts() {
    needs!(have_root);
    let tmpfs = Tmpfs::new(12);
    full_disk(&tmpfs.path, &tmpfs);
}
