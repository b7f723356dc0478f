//! The audit trail: complete, and altered by nobody unnoticed.

use std::fs;

use super::*;
use crate::kms::admin::Request;

fn verdict(world: &World) -> Vec<String> {
    let verdict = world.service().administer(Request::VerifyTrail {}, 0).unwrap();
    verdict["problems"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect()
}

fn segment(world: &World) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(world.data().join("trail")).unwrap().flatten().map(|e| e.path()).collect();
    files.sort();
    files.remove(0)
}

fn records(world: &World) -> Vec<Value> {
    let text = fs::read_to_string(segment(world)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_record_says_who_did_what() {
    let world = World::new();
    world.user("ann");
    let key = world.key();
    let input = json!({"KeyId": key, "Plaintext": "aGVsbG8=", "EncryptionContext": {"a": "b"}});
    world.as_user("ann", "Encrypt", input).unwrap_err();
    world.encrypt(&key);
    let records = records(&world);
    let of = |name: &str| records.iter().rfind(|r| r["eventName"] == name).unwrap();
    let (made, used) = (of("CreateKey"), of("Encrypt"));
    assert_eq!(made["readOnly"], false);
    assert_eq!(made["responseElements"]["keyMetadata"]["keyId"], key.as_str());
    assert_eq!(made["userIdentity"]["type"], "Root");
    assert_eq!(used["resources"][0]["ARN"], format!("arn:aws:kms:us-east-1:{ACCOUNT}:key/{key}"));
    assert_eq!(used["sourceIPAddress"], "127.0.0.1");
    assert_eq!(used["requestParameters"], json!({"keyId": key}), "no plaintext");
    let refused = records.iter().find(|r| r["errorCode"] == "AccessDenied").unwrap();
    assert_eq!(refused["userIdentity"]["userName"], "ann");
    assert_eq!(refused["requestParameters"]["encryptionContext"], json!({"a": "b"}));
    let added = of("CreateUser");
    assert_eq!(added["userIdentity"]["invokedBy"], "envelopefs kms (uid 0)");
    assert!(verdict(&world).is_empty());
}

#[test]
fn every_change_to_the_trail_is_found() {
    let world = World::new();
    let key = world.key();
    for _ in 0..10 {
        world.encrypt(&key);
    }
    world.service().settle();
    let good = fs::read_to_string(segment(&world)).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let head = world.service().trail().head();
    let problems = |lines: &[&str]| {
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("trail")).unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(copy.path().join("trail").join(segment(&world).file_name().unwrap()), text).unwrap();
        let keys = world.service().store().keys();
        crate::kms::audit::verify::verify(copy.path(), keys.trail(), &head).unwrap().problems
    };
    assert!(problems(&lines).is_empty());
    let altered = lines[5].replacen("Encrypt", "Decrypt", 1);
    for (what, lines) in [
        ("altered", [&lines[..5], &[altered.as_str()], &lines[6..]].concat()),
        ("removed", [&lines[..5], &lines[6..]].concat()),
        ("moved", [&lines[..5], &[lines[6], lines[5]], &lines[7..]].concat()),
        ("doubled", [&lines[..6], &lines[5..]].concat()),
        ("begun later", lines[3..].to_vec()),
        ("cut", lines[..lines.len() - 2].to_vec()),
        ("emptied", Vec::new()),
        ("added", [&lines[..5], &["{}"], &lines[5..]].concat()),
    ] {
        assert!(!problems(&lines).is_empty(), "{what}");
    }
}

#[test]
fn a_half_written_end_is_cut_off_and_a_missing_one_is_told() {
    let mut world = World::new();
    let key = world.key();
    world.encrypt(&key);
    world.service().settle();
    let path = segment(&world);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"{\"eventName\":\"Half"].concat()).unwrap();
    world.restart();
    assert!(verdict(&world).is_empty(), "{:?}", verdict(&world));
    assert!(records(&world).iter().any(|r| r["eventName"] == "TrailFinding"));
    world.service().settle();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    world.service = None;
    fs::write(&path, lines[..lines.len() - 1].iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    world.service = Some(Service::open(&world.data(), &PassphraseSource::Nowhere).unwrap());
    assert!(verdict(&world).iter().any(|problem| problem.contains("missing")), "{:?}", verdict(&world));
}

#[test]
fn the_record_of_a_change_survives_the_loss_of_the_file() {
    let mut world = World::new();
    world.service().settle();
    let before = fs::read(segment(&world)).unwrap();
    let key = world.key();
    let after = fs::read(segment(&world)).unwrap();
    assert!(after.len() > before.len());
    let path = segment(&world);
    world.service = None;
    // As after a power cut: the last second of the file never reached the disk.
    fs::write(&path, before).unwrap();
    world.service = Some(Service::open(&world.data(), &PassphraseSource::Nowhere).unwrap());
    let made = |world: &World| records(world).iter().filter(|r| r["eventName"] == "CreateKey").count();
    assert_eq!(made(&world), 1);
    assert!(verdict(&world).is_empty(), "{:?}", verdict(&world));
    world.restart();
    assert_eq!(made(&world), 1, "and is not written twice");
    assert!(world.service().view().keys.contains_key(&key));
}
