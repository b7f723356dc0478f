//! What this host's own files, users and kernel say: records, keyfiles, URIs, options, requests, mount tables.

use super::{Target, choice, halves};
use crate::config::{MountOptions, parse_duration, shown};
use crate::keys::KeyRef;
use crate::keys::known_volumes::KnownVolumes;
use crate::keys::providers::keyfile_document::Keyfile;
use crate::keys::uri::{CmkAddress, CmkUri, Pkcs11Uri};
use crate::mount::control;
use crate::mount::kernel::parse_mountinfo;

pub const TARGETS: &[Target] = &[
    Target { name: "known_volumes", run: known_volumes },
    Target { name: "keyfile", run: keyfile },
    Target { name: "cmk_uri", run: cmk_uri },
    Target { name: "control", run: control_lines },
    Target { name: "options", run: options },
    Target { name: "duration", run: duration },
    Target { name: "mountinfo", run: mountinfo },
];

fn known_volumes(input: &[u8]) {
    let records = KnownVolumes::at("/known_volumes.toml".into());
    let Ok(volumes) = records.parse(input) else { return };
    let text = records.encode(&volumes).expect("what was read can be written");
    assert_eq!(records.parse(&text).expect("our own records"), volumes);
}

fn keyfile(input: &[u8]) {
    match Keyfile::parse(input) {
        Ok(keyfile) => {
            assert!(!keyfile.keys.is_empty());
            for key in &keyfile.keys {
                assert!(key.versions.iter().any(|v| v.version == key.current));
                assert!(!key.id.is_empty() && !key.description.chars().any(char::is_control));
            }
        }
        // A key that stands in the wrong place must not be quoted: no word of 40 characters comes from the file.
        Err(why) => assert!(!quotes(&why, input), "{why}"),
    }
}

/// Whether `text` repeats as much of `input` as half a key in base64url.
fn quotes(text: &str, input: &[u8]) -> bool {
    const HALF: usize = 22;
    let word = |piece: &[u8]| piece.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    text.as_bytes().windows(HALF).filter(|piece| word(piece)).any(|piece| input.windows(HALF).any(|w| w == piece))
}

fn cmk_uri(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let uri = match CmkUri::parse(text) {
        Ok(uri) => uri,
        Err(e) => {
            let said = e.to_string();
            assert!(said.len() <= 8 * text.len() + 1000);
            return;
        }
    };
    let shown = uri.to_string();
    assert_eq!(CmkUri::parse(&shown).unwrap_or_else(|e| panic!("{shown}: {e}")), uri, "{shown}");
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    // What a provider of that kind calls its keys.
    let key = match &uri.address {
        CmkAddress::Keyfile(_) => "0123-abc".into(),
        CmkAddress::Aws(_) => "arn:aws:kms:us-east-1:111122223333:key/0a".into(),
        CmkAddress::Vault(vault) => vault.key_name(),
        CmkAddress::K8s(plugin) => plugin.key_name(),
        CmkAddress::Pkcs11(_) => Pkcs11Uri::key_name("t", "1", "o", &[1, 0xff]),
    };
    let key = KeyRef { provider: uri.provider().into(), key };
    let _ = uri.may_mean(&key);
    // A pinned address says the same after it was written down.
    let pinned = uri.pinned(&key);
    let shown = pinned.to_string();
    assert_eq!(CmkUri::parse(&shown).unwrap_or_else(|e| panic!("{shown}: {e}")), pinned, "{shown}");
}

fn control_lines(input: &[u8]) {
    if let Ok(request) = control::parse(input) {
        let line = control::encode(&request).expect("a request is JSON");
        assert!(!line.contains(&b'\n'));
        assert_eq!(control::parse(&line).expect("our own request"), request);
    }
    let _ = control::understand(input);
}

fn options(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut options = MountOptions::default();
    if options.parse(text).is_ok() {
        let _ = options.check();
        assert!(options.commit.as_secs() >= 1 && options.commit.as_secs() <= 3600);
        assert!(!options.outage.deadline.is_zero());
    }
}

fn duration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&shown(duration)), Ok(duration), "{text}");
    }
}

fn mountinfo(input: &[u8]) {
    let (_, rest) = choice(input);
    let (line, _) = halves(rest);
    for line in [input, line] {
        if let Some(entry) = parse_mountinfo(line) {
            assert!(entry.mountpoint.as_os_str().len() <= line.len());
        }
    }
}
