//! Tests of the volume file.

use proptest::prelude::*;

use super::*;

const ID: VolumeId = [1; 16];

fn keys() -> VolumeKeys {
    VolumeKeys::derive(&ID, &Secret32::from_bytes([2; 32]))
}

fn slot(n: u8) -> CmkSlot {
    CmkSlot { provider: "keyfile".into(), key_ref: format!("k{n}"), blob: vec![n; 60], commitment: [n; 32] }
}

fn config() -> VolumeConfig {
    VolumeConfig {
        volume_id: ID,
        created: 1_800_000_000,
        plaintext_names: false,
        header_pages: 1,
        key_mode: KeyMode::Branch,
        branch_max_age: 2_592_000,
        branch_max_files: 1_048_576,
        cmks: vec!["keyfile:///etc/envelopefs/cmk.json".into(), "keyfile:b.json?key=x".into()],
        volume_key: vec![slot(1), slot(2)],
        branch: Some(BranchRecord { id: [7; 16], created: 1_800_000_001, slots: vec![slot(3)] }),
        directory_cmks: Vec::new(),
        directory_branches: Vec::new(),
    }
}

fn with_directories() -> VolumeConfig {
    let cmk = |n: u8| DirectoryCmk {
        key: KeyRef { provider: "keyfile".into(), key: format!("k{n}") },
        uri: format!("keyfile:///k{n}.json?key=k{n}"),
    };
    let branch = |n: u8, slots| BranchRecord { id: [n; 16], created: 1_800_000_002, slots };
    VolumeConfig {
        directory_cmks: vec![cmk(4), cmk(5)],
        directory_branches: vec![branch(8, vec![slot(4)]), branch(9, vec![slot(4), slot(5)])],
        ..config()
    }
}

fn text() -> String {
    String::from_utf8(config().encode(&keys())).unwrap()
}

fn parse(text: &str) -> Result<VolumeConfig, VolumeError> {
    UnverifiedVolume::parse(text.as_bytes())?.verify(&keys())
}

#[test]
fn round_trips() {
    let per_file = VolumeConfig { key_mode: KeyMode::PerFile, branch: None, plaintext_names: true, ..config() };
    let odd = VolumeConfig {
        cmks: vec!["quote \" backslash \\ newline \n escape \u{1b} é".into()],
        created: -1,
        volume_key: vec![],
        header_pages: MAX_HEADER_PAGES,
        branch_max_files: 0,
        ..config()
    };
    for c in [config(), per_file, odd, with_directories()] {
        let bytes = c.encode(&keys());
        assert_eq!(parse(std::str::from_utf8(&bytes).unwrap()), Ok(c));
    }
}

#[test]
fn what_toml_cannot_hold_is_clamped() {
    let c = VolumeConfig { branch_max_age: u64::MAX, ..config() };
    let read = UnverifiedVolume::parse(&c.encode(&keys())).unwrap().verify(&keys()).unwrap();
    assert_eq!(read.branch_max_age, i64::MAX as u64);
}

#[test]
fn the_file_is_plain_toml_with_the_mac_on_its_last_line() {
    let text = text();
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["version"].as_integer(), Some(1));
    assert!(text.ends_with("\"\n"));
    let last = text.lines().last().unwrap();
    assert_eq!(last, format!("mac = \"{}\"", table["mac"].as_str().unwrap()));
}

#[test]
fn a_volume_without_directory_cmks_says_nothing_of_them() {
    assert!(!text().contains("directory"));
    let text = String::from_utf8(with_directories().encode(&keys())).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("  { id = \"")).count(), 2);
    for (name, bad) in [
        ("key_ref", text.replace("key_ref = \"k5\", uri", "key_ref = \"\\n\", uri")),
        ("unknown key", text.replace(", uri = ", ", more = 1, uri = ")),
        ("no uri", text.replace(", uri = \"keyfile:///k5.json?key=k5\"", "")),
        ("short id", text.replace("id = \"0808", "id = \"08")),
        ("no slots", text.replace("created = 1800000002, key = [", "created = 1800000002, keys = [")),
    ] {
        assert!(bad != text, "{name}");
        assert!(matches!(parse(&bad), Err(VolumeError::Malformed(_))), "{name}: {:?}", parse(&bad));
    }
    let forged = text.replace("keyfile:///k5", "keyfile:///k6");
    assert_eq!(parse(&forged), Err(VolumeError::Auth));
}

/// Corpus 17: every changed byte is noticed; the parser says so or the MAC does.
#[test]
fn every_changed_byte_is_noticed() {
    let text = String::from_utf8(with_directories().encode(&keys())).unwrap();
    for at in 0..text.len() {
        let mut bad = text.clone().into_bytes();
        bad[at] = match bad[at] {
            b'0' => b'1',
            b' ' => b'\t',
            b'\n' => b' ',
            _ => b'0',
        };
        let got = UnverifiedVolume::parse(&bad).and_then(|u| u.verify(&keys()));
        assert!(got.is_err(), "byte {at}");
    }
    for cut in 0..text.len() {
        assert!(parse(&text[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn weaker_settings_need_the_volume_key() {
    let weaker = text().replace("plaintext_names = false", "plaintext_names = true");
    assert!(UnverifiedVolume::parse(weaker.as_bytes()).unwrap().claims().plaintext_names);
    assert_eq!(parse(&weaker), Err(VolumeError::Auth));
    let other = VolumeKeys::derive(&ID, &Secret32::from_bytes([9; 32]));
    assert_eq!(UnverifiedVolume::parse(text().as_bytes()).unwrap().verify(&other).map(|_| ()), Err(VolumeError::Auth));
}

#[test]
fn versions_and_malformed_files() {
    assert_eq!(parse(&text().replace("version = 1", "version = 2\nsomething = \"new\"")), Err(VolumeError::Version(2)));
    let t = text();
    for (name, bad) in [
        ("empty", String::new()),
        ("no version", t.replace("version = 1\n", "")),
        ("version is text", t.replace("version = 1", "version = \"1\"")),
        ("unknown key", t.replace("created", "extra = 1\ncreated")),
        ("missing key", t.replace("key_mode = \"branch\"\n", "")),
        ("key mode", t.replace("\"branch\"", "\"other\"")),
        ("upper-case hex", t.replace("0101", "AAAA")),
        ("short id", t.replace("0101", "01")),
        ("no pages", t.replace("header_pages = 1", "header_pages = 0")),
        ("too many pages", t.replace("header_pages = 1", "header_pages = 65")),
        ("negative", t.replace("branch_max_files = 1048576", "branch_max_files = -1")),
        ("half a branch", t.replace("branch_created = 1800000001\n", "")),
        ("provider", t.replace("\"keyfile\"", "\"Key File\"")),
        ("mac first", format!("{}\n{}", t.lines().last().unwrap(), t)),
        ("after the mac", format!("{t}# more\n")),
        ("no newline at the end", t.trim_end().to_owned()),
        ("mac in a string", t.replace("mac = ", "x = \"\"\"\nmac = ")),
        ("carriage return", t.replace("\"\n", "\"\r\n")),
        ("other quotes", t.replace("mac = \"", "mac = '").trim_end_matches("\"\n").to_owned() + "'\n"),
    ] {
        assert!(matches!(parse(&bad), Err(VolumeError::Malformed(_))), "{name}: {:?}", parse(&bad));
    }
}

#[test]
fn hostile_sizes_are_bounded() {
    assert!(UnverifiedVolume::parse(&vec![b'#'; VOLUME_FILE_MAX + 1]).is_err());
    for nested in ["[", "a = [", "a = {b = ", "a.", "[[a]]\n"] {
        let deep = nested.repeat(VOLUME_FILE_MAX / nested.len());
        assert!(UnverifiedVolume::parse(deep.as_bytes()).is_err(), "{nested}");
    }
    let nested_array = format!("version = 1\na = {}\n", "[".repeat(500_000));
    assert!(UnverifiedVolume::parse(nested_array.as_bytes()).is_err());
}

#[test]
fn volume_keys_are_independent() {
    let k = keys();
    let all = [&k.names, &k.dir_id, &k.targets, &k.xattrs, &k.origin, &k.config]
        .map(|s| *s.expose())
        .into_iter()
        .chain([k.commitment]);
    let distinct: std::collections::HashSet<_> = all.collect();
    assert_eq!(distinct.len(), 7);
    let other = VolumeKeys::derive(&[9; 16], &Secret32::from_bytes([2; 32]));
    assert_ne!(other.commitment, k.commitment);
}

#[test]
fn commitments() {
    let key = Secret32::from_bytes([3; 32]);
    assert_eq!(check_commitment(&key, &key_commitment(&key)), Ok(()));
    assert_eq!(check_commitment(&Secret32::from_bytes([4; 32]), &key_commitment(&key)), Err(AuthError));
}

proptest! {
    #[test]
    fn random_text_is_refused(text in ".{0,300}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(UnverifiedVolume::parse(text.as_bytes()).is_err());
        prop_assert!(UnverifiedVolume::parse(&bytes).is_err());
    }

    #[test]
    fn spliced_files_are_refused(from in 0usize..1200, len in 1usize..200, with in "[a-z0-9=\\[\\]{}\"'\n# ,.]{0,40}") {
        let original = text();
        let mut bad = original.clone();
        let from = from.min(bad.len());
        let to = (from + len).min(bad.len());
        bad.replace_range(from..to, &with);
        if bad != original {
            prop_assert!(parse(&bad).is_err());
        }
    }

    #[test]
    fn any_strings_survive(uri in "\\PC{0,60}", control in "[\\x00-\\x1f\"\\\\\\x7f]{0,10}") {
        let c = VolumeConfig { cmks: vec![uri + &control], ..config() };
        let bytes = c.encode(&keys());
        prop_assert_eq!(UnverifiedVolume::parse(&bytes).unwrap().verify(&keys()), Ok(c));
    }
}
