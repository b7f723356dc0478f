//! Tests of entry names.

use proptest::prelude::*;

use super::*;

const DIR: DirId = [1; 16];

fn codec() -> NameCodec {
    NameCodec::encrypted(&Secret32::from_bytes([2; 32]))
}

/// The plain name again, by way of the companion where there is one.
fn back(codec: &NameCodec, encoded: &Encoded) -> Vec<u8> {
    match (codec.decode(&DIR, &encoded.name).unwrap(), &encoded.companion) {
        (Decoded::Name(name), None) => name,
        (Decoded::Long { companion }, Some((name, target))) => {
            assert_eq!(companion, *name);
            assert_eq!(codec.decode(&DIR, name), Ok(Decoded::Internal), "the companion itself is not shown");
            codec.decode_long(&DIR, &encoded.name, target).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn forms_are_told_without_a_key() {
    let codec = NameCodec::encrypted(&Secret32::from_bytes([1; 32]));
    let short = codec.encode(&[2; 16], b"a").unwrap();
    assert!(
        has_name_form(&short.name) && !has_name_form(b"notes.txt") && !has_name_form(b"AAAA") && !has_name_form(b"")
    );
    let long = codec.encode(&[2; 16], &[b'n'; 255]).unwrap();
    let (_, full) = long.companion.unwrap();
    assert!(!has_name_form(&long.name) && is_companion_of(&long.name, &full));
    assert!(!is_companion_of(&long.name, &short.name) && !is_companion_of(&short.name, &short.name));
    let (_, other) = codec.encode(&[2; 16], &[b'm'; 255]).unwrap().companion.unwrap();
    assert!(!is_companion_of(&long.name, &other));
}

#[test]
fn every_length_round_trips_and_fits() {
    let codec = codec();
    for len in 1..=NAME_MAX {
        let name = vec![b'n'; len];
        let encoded = codec.encode(&DIR, &name).unwrap();
        assert!(encoded.name.len() <= NAME_MAX, "{len}");
        assert_eq!(encoded.companion.is_some(), len > 175, "{len}");
        if let Some((companion, target)) = &encoded.companion {
            assert!(companion.len() <= NAME_MAX);
            assert!(target.len() <= 362);
        }
        assert_eq!(back(&codec, &encoded), name);
    }
    assert_eq!(codec.encode(&DIR, &[b'n'; 256]), Err(NameError::TooLong));
}

#[test]
fn what_is_no_file_name() {
    for codec in [codec(), NameCodec::Plain] {
        for bad in [b"".as_slice(), b".", b"..", b"a/b", b"/", b"a\0b", b"\0"] {
            assert_eq!(codec.encode(&DIR, bad), Err(NameError::Invalid), "{bad:?}");
        }
        for good in [b"...".as_slice(), b".hidden", b"-rf", b" ", b"\n", b"\xff\xfe", b"a.b", b"~"] {
            let encoded = codec.encode(&DIR, good).unwrap();
            assert_eq!(back(&codec, &encoded), good);
        }
        assert_eq!(codec.encode(&DIR, &[b'x'; 256]), Err(NameError::TooLong));
    }
}

#[test]
fn reserved_names_are_refused_only_where_names_are_plain() {
    for name in [DIR_ID_NAME, TEMP_PREFIX, b".envelopefs.", b".envelopefs.anything"] {
        assert_eq!(NameCodec::Plain.encode(&DIR, name), Err(NameError::Reserved));
        assert_eq!(back(&codec(), &codec().encode(&DIR, name).unwrap()), name);
    }
    assert!(NameCodec::Plain.encode(&DIR, b".envelopefs").is_ok());
}

#[test]
fn internal_names_are_never_shown() {
    for codec in [codec(), NameCodec::Plain] {
        for name in [DIR_ID_NAME, &temp_name([9; 16]), b".envelopefs.unknown", b".envelopefs."] {
            assert_eq!(codec.decode(&DIR, name), Ok(Decoded::Internal));
        }
    }
    assert_eq!(NameCodec::Plain.decode(&DIR, b"x"), Ok(Decoded::Name(b"x".to_vec())));
    assert_eq!(temp_name([9; 16]).len(), 38);
    assert_ne!(temp_name([9; 16]), temp_name([8; 16]));
}

/// Corpus 19: an entry of another directory, of another volume, or altered.
#[test]
fn foreign_and_altered_entries() {
    let codec = codec();
    let encoded = codec.encode(&DIR, b"report.pdf").unwrap();
    assert_eq!(codec.decode(&[7; 16], &encoded.name), Err(AuthError));
    assert_eq!(NameCodec::encrypted(&Secret32::from_bytes([8; 32])).decode(&DIR, &encoded.name), Err(AuthError));
    for at in 0..encoded.name.len() {
        let mut bad = encoded.name.to_vec();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(codec.decode(&DIR, &bad), Err(AuthError), "{at}");
        assert_eq!(codec.decode(&DIR, &encoded.name[..at]), Err(AuthError), "{at}");
    }
    for foreign in [b"lost+found".as_slice(), b"", b"\xff", b"=", &[b'A'; 255], &[b'A'; 4000]] {
        assert_eq!(codec.decode(&DIR, foreign), Err(AuthError), "{foreign:?}");
    }
}

#[test]
fn long_names_need_their_own_companion() {
    let codec = codec();
    let (a, b) = (codec.encode(&DIR, &[b'a'; 200]).unwrap(), codec.encode(&DIR, &[b'b'; 200]).unwrap());
    let target = |e: &Encoded| e.companion.clone().unwrap().1;
    assert!(codec.decode_long(&DIR, &a.name, &target(&a)).is_ok());
    assert_eq!(codec.decode_long(&DIR, &a.name, &target(&b)), Err(AuthError));
    assert_eq!(codec.decode_long(&[7; 16], &a.name, &target(&a)), Err(AuthError));
    assert_eq!(NameCodec::Plain.decode_long(&DIR, &a.name, &target(&a)), Err(AuthError));
    // A short name dressed up as a long one would be a second form of the same name.
    let short = codec.encode(&DIR, b"x").unwrap().name;
    let sealed = BASE64URL_NOPAD.decode(&short).unwrap();
    assert_eq!(codec.decode_long(&DIR, &short_form(&sealed), &short), Err(AuthError));
    for bad in [b".envelopefs.long.".as_slice(), b".envelopefs.long.AAAA", b".envelopefs.long..name"] {
        assert_eq!(codec.decode(&DIR, bad), Err(AuthError), "{bad:?}");
    }
    let mut odd = a.name.to_vec();
    odd[20] = b'=';
    assert_eq!(codec.decode(&DIR, &odd), Err(AuthError));
}

#[test]
fn equal_names_differ_between_directories() {
    let codec = codec();
    assert_ne!(codec.encode(&DIR, b"same").unwrap().name, codec.encode(&[7; 16], b"same").unwrap().name);
    assert_eq!(codec.encode(&DIR, b"same"), codec.encode(&DIR, b"same"));
}

/// Sealed by someone with the key, yet no file name: it must not reach the kernel.
#[test]
fn authentic_nonsense_is_refused() {
    let key = SivKey::derive(&Secret32::from_bytes([2; 32]), LABEL);
    for bad in [b"".as_slice(), b".", b"..", b"a/b", b"a\0"] {
        let raw = BASE64URL_NOPAD.encode(&key.seal(&[&DIR], bad));
        assert_eq!(codec().decode(&DIR, raw.as_bytes()), Err(AuthError), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn names_round_trip(name in proptest::collection::vec(any::<u8>(), 1..=NAME_MAX), dir in any::<[u8; 16]>()) {
        let codec = codec();
        match codec.encode(&dir, &name) {
            Ok(encoded) => {
                let got = match codec.decode(&dir, &encoded.name).unwrap() {
                    Decoded::Name(n) => n,
                    Decoded::Long { .. } => {
                        codec.decode_long(&dir, &encoded.name, &encoded.companion.unwrap().1).unwrap()
                    }
                    Decoded::Internal => panic!("shown as internal"),
                };
                prop_assert_eq!(got, name);
            }
            Err(e) => {
                prop_assert_eq!(e, NameError::Invalid);
                prop_assert!(!is_file_name(&name));
            }
        }
    }

    #[test]
    fn hostile_entries_are_refused(
        raw in proptest::collection::vec(any::<u8>(), 0..400),
        text in "[A-Za-z0-9_-]{0,400}",
    ) {
        let codec = codec();
        prop_assert!(!matches!(codec.decode(&DIR, &raw), Ok(Decoded::Name(_))));
        prop_assert!(!matches!(codec.decode(&DIR, text.as_bytes()), Ok(Decoded::Name(_))));
        prop_assert!(codec.decode_long(&DIR, &raw, text.as_bytes()).is_err());
    }
}
