//! Tests of directory records: both forms, tampering, bounds.

use proptest::prelude::*;

use super::*;

fn key() -> Secret32 {
    Secret32::from_bytes([3; 32])
}

fn key_ref(provider: &str, key: &str) -> KeyRef {
    KeyRef { provider: provider.into(), key: key.into() }
}

fn plain() -> DirRecord {
    DirRecord { id: [1; 16], parent: [2; 16], keys: None }
}

fn with_keys(keys: &[KeyRef]) -> DirRecord {
    DirRecord { keys: Some(keys.into()), ..plain() }
}

/// As `encode`, but whatever the list says.
fn sealed(list: &[u8]) -> Vec<u8> {
    let said = [&[1; 16][..], &[2; 16], list].concat();
    let tag = mac(&key(), &said);
    BASE64URL_NOPAD.encode(&[&said[..], &tag].concat()).into_bytes()
}

#[test]
fn claims_are_read_without_a_key() {
    let record = DirRecord { id: [1; 16], parent: [2; 16], keys: None };
    let target = record.encode(&Secret32::from_bytes([3; 32])).unwrap();
    assert_eq!(claimed_ids(&target), Some(([1; 16], [2; 16])));
    assert_eq!(claimed_ids(&target[1..]), None);
    assert_eq!(claimed_ids(b"../../etc/passwd"), None);
    assert_eq!(claimed_ids(&[b'A'; ENCODED_MAX + 1]), None);
}

#[test]
fn round_trip_in_59_characters() {
    let target = plain().encode(&key()).unwrap();
    assert_eq!(target.len(), ENCODED_LEN);
    assert_eq!(DirRecord::decode(&target, &key()), Ok(plain()));
    assert!(DirRecord::decode(&target, &Secret32::from_bytes([4; 32])).is_err());
}

#[test]
fn keys_round_trip_up_to_the_bound_and_no_further() {
    let longest = "k".repeat(KEYS_MAX - 3 - 4);
    for keys in [
        vec![key_ref("keyfile", "a")],
        vec![key_ref("awskms", "arn:aws:kms:eu-central-1:1:key/2"), key_ref("pkcs11", "ü=%20"), key_ref("a", "a")],
        vec![key_ref("test", &longest)],
    ] {
        let record = with_keys(&keys);
        let target = record.encode(&key()).unwrap();
        assert!(target.len() <= ENCODED_MAX);
        assert_eq!(DirRecord::decode(&target, &key()), Ok(record));
        assert!(DirRecord::decode(&target, &Secret32::from_bytes([4; 32])).is_err());
    }
    assert_eq!(with_keys(&[key_ref("test", &longest)]).encode(&key()).unwrap().len(), ENCODED_MAX);
    let too_long = with_keys(&[key_ref("test", &(longest + "k"))]).encode(&key());
    assert_eq!(too_long, Err(KeysError::TooLong(KEYS_MAX + 1)));
}

#[test]
fn lists_that_cannot_be_recorded_are_refused() {
    let (a, b) = (key_ref("keyfile", "a"), key_ref("keyfile", "b"));
    assert_eq!(check_keys(&[]), Err(KeysError::Empty));
    assert_eq!(check_keys(&[a.clone(), b.clone(), a.clone()]), Err(KeysError::Twice(a.clone())));
    for bad in [key_ref("", "a"), key_ref("Key", "a"), key_ref("keyfile", ""), key_ref("keyfile", "a\n")] {
        assert_eq!(check_keys(&[a.clone(), bad.clone()]), Err(KeysError::Name(bad)));
    }
    assert_eq!(check_keys(&[a, b]), Ok(()));
}

#[test]
fn every_changed_character_is_refused() {
    for record in [plain(), with_keys(&[key_ref("keyfile", "one"), key_ref("awskms", "two")])] {
        let target = record.encode(&key()).unwrap();
        for at in 0..target.len() {
            for other in [b'A', b'B', b'/', b'=', 0, 255] {
                let mut bad = target.clone();
                if bad[at] == other {
                    continue;
                }
                bad[at] = other;
                assert!(DirRecord::decode(&bad, &key()).is_err(), "character {at} as {other}");
            }
        }
        for cut in 0..target.len() {
            assert!(DirRecord::decode(&target[..cut], &key()).is_err(), "cut at {cut}");
        }
        assert!(DirRecord::decode(&[target.as_slice(), b"A"].concat(), &key()).is_err());
    }
}

/// Taking the keys away, or adding some, does not give the directory back to the volume's CMKs.
#[test]
fn the_list_cannot_be_removed_from_a_record_nor_added_to_one() {
    let long = BASE64URL_NOPAD.decode(&with_keys(&[key_ref("keyfile", "one")]).encode(&key()).unwrap()).unwrap();
    let tag = &long[long.len() - MAC_LEN..];
    let stripped = [&long[..IDS_LEN], tag].concat();
    assert!(DirRecord::decode(BASE64URL_NOPAD.encode(&stripped).as_bytes(), &key()).is_err());
    let short = BASE64URL_NOPAD.decode(&plain().encode(&key()).unwrap()).unwrap();
    let added = [&short[..IDS_LEN], &long[IDS_LEN..long.len() - MAC_LEN], &short[IDS_LEN..]].concat();
    assert!(DirRecord::decode(BASE64URL_NOPAD.encode(&added).as_bytes(), &key()).is_err());
}

#[test]
fn malformed_lists_are_refused_even_under_a_good_mac() {
    assert_eq!(DirRecord::decode(&sealed(b""), &key()), Ok(plain()));
    assert_eq!(DirRecord::decode(&sealed(b"\x01a\x01\0k"), &key()), Ok(with_keys(&[key_ref("a", "k")])));
    for list in [
        &b"\x00"[..],
        b"\x00\x01\0k",
        b"\x01a",
        b"\x01a\x01",
        b"\x01a\x01\0",
        b"\x01a\0\0",
        b"\x01a\xff\xffk",
        b"\x01a\x01\0kk",
        b"\x01A\x01\0k",
        b"\x01a\x01\0\n",
        b"\x01a\x01\0\xff",
        b"\xffa\x01\0k",
        b"\x01a\x01\0k\x01a\x01\0k",
        &[b"\x21".as_slice(), &[b'a'; 33], b"\x01\0k"].concat(),
    ] {
        assert!(DirRecord::decode(&sealed(list), &key()).is_err(), "{list:?}");
    }
}

proptest! {
    #[test]
    fn any_list_parses_totally_and_to_one_form(list in proptest::collection::vec(any::<u8>(), 0..KEYS_MAX)) {
        if let Ok(record) = DirRecord::decode(&sealed(&list), &key()) {
            prop_assert_eq!(record.encode(&key()).unwrap(), sealed(&list));
        }
    }

    #[test]
    fn any_bytes_are_refused(target in proptest::collection::vec(any::<u8>(), 0..1200), text in "[A-Za-z0-9_-]{0,1100}") {
        prop_assert!(DirRecord::decode(&target, &key()).is_err());
        prop_assert!(DirRecord::decode(text.as_bytes(), &key()).is_err());
    }

    #[test]
    fn any_names_survive(names in proptest::collection::vec(("[a-z0-9-]{1,32}", "\\PC{1,40}"), 1..5)) {
        let keys: Vec<KeyRef> = names.iter().map(|(provider, name)| key_ref(provider, name)).collect();
        let record = with_keys(&keys);
        match record.encode(&key()) {
            Ok(target) => {
                prop_assert!(target.len() <= ENCODED_MAX);
                prop_assert_eq!(DirRecord::decode(&target, &key()), Ok(record));
            }
            Err(e) => prop_assert_eq!(check_keys(&keys), Err(e)),
        }
    }
}
