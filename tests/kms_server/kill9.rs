//! SIGKILL in a loop under load, with a log outside of what the service acknowledged: all of that is there afterwards, and
//! nothing is there by halves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Random, eventually};
use crate::own::{ACCOUNT, Own, call};
use crate::sigv4::Credentials;

const ROUNDS: u64 = 8;
const WORKERS: u64 = 6;

/// What the service said yes to.
#[derive(Default)]
struct Acknowledged {
    keys: BTreeSet<String>,
    /// Alias to key.
    aliases: BTreeMap<String, String>,
    /// (key, grant id).
    grants: BTreeSet<(String, String)>,
    /// Number of the last policy that was acknowledged, a key.
    policies: BTreeMap<String, u64>,
    descriptions: BTreeMap<String, u64>,
    /// Keys that were told to be deleted.
    ending: BTreeSet<String>,
    /// (key, ciphertext) from before and after rotations.
    ciphertexts: Vec<(String, Value)>,
    rotations: BTreeMap<String, usize>,
}

struct Load<'a> {
    port: u16,
    root: &'a Credentials,
    log: &'a Mutex<Acknowledged>,
    over: &'a AtomicBool,
    numbers: &'a AtomicU64,
}

impl Load<'_> {
    /// Nothing where the service is gone; its answer otherwise, which must be a success.
    fn ask(&self, operation: &str, input: Value) -> Option<Value> {
        match call(self.port, self.root, operation, &input) {
            Ok((200, answer)) => Some(answer),
            // Cut off in the middle of its head.
            Err(_) => None,
            Ok((status, answer)) => panic!("{operation}: {status} {answer}"),
        }
    }

    /// Changes things until told to stop or the service is gone.
    fn run(&self) -> Option<()> {
        let made = self.ask("CreateKey", json!({"Description": "0"}))?;
        let key = made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
        self.log.lock().unwrap().keys.insert(key.clone());
        while !self.over.load(Ordering::Relaxed) {
            let n = self.numbers.fetch_add(1, Ordering::Relaxed);
            let alias = format!("alias/n{n}");
            self.ask("CreateAlias", json!({"AliasName": alias, "TargetKeyId": key}))?;
            self.log.lock().unwrap().aliases.insert(alias, key.clone());

            let grant = json!({"KeyId": key, "GranteePrincipal": format!("arn:aws:iam::{ACCOUNT}:user/u"),
                "Operations": ["Decrypt"], "Name": format!("n{n}")});
            let grant = self.ask("CreateGrant", grant)?["GrantId"].as_str().unwrap().to_owned();
            self.log.lock().unwrap().grants.insert((key.clone(), grant));

            self.ask("PutKeyPolicy", json!({"KeyId": key, "Policy": policy(n)}))?;
            self.log.lock().unwrap().policies.insert(key.clone(), n);
            self.ask("UpdateKeyDescription", json!({"KeyId": key, "Description": n.to_string()}))?;
            self.log.lock().unwrap().descriptions.insert(key.clone(), n);

            let sealed = self.ask("Encrypt", json!({"KeyId": key, "Plaintext": "AAAA"}))?;
            self.log.lock().unwrap().ciphertexts.push((key.clone(), sealed["CiphertextBlob"].clone()));
            let rotations = self.log.lock().unwrap().rotations.get(&key).copied().unwrap_or(0);
            if rotations < 20 {
                self.ask("RotateKeyOnDemand", json!({"KeyId": key}))?;
                *self.log.lock().unwrap().rotations.entry(key.clone()).or_default() += 1;
            }

            let short = self.ask("CreateKey", json!({}))?["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
            self.log.lock().unwrap().keys.insert(short.clone());
            self.ask("ScheduleKeyDeletion", json!({"KeyId": short, "PendingWindowInDays": 7}))?;
            self.log.lock().unwrap().ending.insert(short);
        }
        Some(())
    }
}

fn policy(n: u64) -> String {
    json!({"Version": "2012-10-17", "Id": n.to_string(), "Statement": [{"Sid": "root", "Effect": "Allow",
        "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:root")}, "Action": "kms:*", "Resource": "*"}]})
    .to_string()
}

/// Every item of a listing.
fn all(own: &Own, operation: &str, member: &str, mut input: Value) -> Vec<Value> {
    let mut items = Vec::new();
    input["Limit"] = 50.into();
    loop {
        let mut page = own.admin(operation, &input);
        items.extend(page[member].as_array().unwrap().iter().cloned());
        if page["Truncated"] != true {
            return items;
        }
        input["Marker"] = page["NextMarker"].take();
    }
}

/// What was acknowledged is there; of what is there, everything is whole.
fn check(own: &Own, log: &Acknowledged) {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
    let keys: BTreeSet<String> =
        all(own, "ListKeys", "Keys", json!({})).iter().map(|key| text(&key["KeyId"])).collect();
    assert!(log.keys.is_subset(&keys), "keys lost: {:?}", log.keys.difference(&keys));
    let aliases: BTreeMap<String, String> = all(own, "ListAliases", "Aliases", json!({}))
        .iter()
        .filter(|alias| alias["TargetKeyId"].is_string())
        .map(|alias| (text(&alias["AliasName"]), text(&alias["TargetKeyId"])))
        .collect();
    for (alias, key) in &log.aliases {
        assert_eq!(aliases.get(alias), Some(key), "{alias}");
    }
    assert!(aliases.values().all(|key| keys.contains(key)), "an alias leads nowhere");

    for key in &keys {
        let metadata = own.admin("DescribeKey", &json!({"KeyId": key}))["KeyMetadata"].clone();
        let state = text(&metadata["KeyState"]);
        assert!(!log.ending.contains(key) || state == "PendingDeletion", "{key}: {state}");
        if let Some(last) = log.descriptions.get(key) {
            // What was under way when it died may have been done, too.
            assert!(text(&metadata["Description"]).parse::<u64>().unwrap() >= *last, "{key}: {metadata}");
        }
        let policy: Value =
            serde_json::from_str(&text(&own.admin("GetKeyPolicy", &json!({"KeyId": key}))["Policy"])).unwrap();
        if let Some(last) = log.policies.get(key) {
            assert!(text(&policy["Id"]).parse::<u64>().unwrap() >= *last, "{key}: {policy}");
        }
        let mine = log.grants.iter().filter(|(of, _)| of == key).map(|(_, grant)| grant).collect::<BTreeSet<_>>();
        if state == "Enabled" {
            let grants = all(own, "ListGrants", "Grants", json!({"KeyId": key}));
            let there: BTreeSet<String> = grants.iter().map(|grant| text(&grant["GrantId"])).collect();
            assert!(mine.iter().all(|grant| there.contains(*grant)), "{key}: grants lost");
            assert!(grants.iter().all(|grant| grant["Operations"] == json!(["Decrypt"])), "{grants:?}");
            let rotations = all(own, "ListKeyRotations", "Rotations", json!({"KeyId": key})).len();
            assert!(rotations >= log.rotations.get(key).copied().unwrap_or(0), "{key}: rotations lost");
            let sealed = own.admin("Encrypt", &json!({"KeyId": key, "Plaintext": "AAAA"}));
            let opened = own.admin("Decrypt", &json!({"CiphertextBlob": sealed["CiphertextBlob"]}));
            assert_eq!(opened["Plaintext"], "AAAA");
        }
    }
    for (key, blob) in &log.ciphertexts {
        let opened = own.admin("Decrypt", &json!({"CiphertextBlob": blob}));
        assert_eq!(opened["Plaintext"], "AAAA", "{key}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_there_by_halves() {
    let mut own = Own::start();
    let log = Mutex::new(Acknowledged::default());
    let numbers = AtomicU64::new(1);
    let mut random = Random::new(7);
    for _ in 0..ROUNDS {
        let over = AtomicBool::new(false);
        let (port, root) = (own.port, own.root.clone());
        let before = numbers.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                let load = Load { port, root: &root, log: &log, over: &over, numbers: &numbers };
                scope.spawn(move || load.run());
            }
            eventually("the load runs", || numbers.load(Ordering::Relaxed) >= before + WORKERS);
            std::thread::sleep(Duration::from_millis(100 + random.below(1200)));
            own.kill();
            over.store(true, Ordering::Relaxed);
        });
        own.serve();
        let log = log.lock().unwrap();
        check(&own, &log);
    }
    let log = log.lock().unwrap();
    assert!(log.aliases.len() as u64 > ROUNDS * WORKERS, "hardly anything was acknowledged: {}", log.aliases.len());
    assert!(!log.ending.is_empty() && !log.rotations.is_empty());
    // The trail has neither gaps nor alterations, as far as the service itself can tell.
    own.verb(&["audit"], &["--verify"]);
}
