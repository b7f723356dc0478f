//! Names, directory ids, symlink targets, attributes: what stands in directory entries and small objects.

use data_encoding::BASE64URL_NOPAD;

use super::{DIR_ID, Target, VOLUME_ID, VOLUME_KEY, choice, halves, sequence};
use crate::crypto::{kdf::hmac_sha256, secret::Secret32};
use crate::format::dir_id::DirRecord;
use crate::format::names::{Decoded, NameCodec};
use crate::format::small::{
    XattrCodec, open_overflow_target, open_target, overflow_link, parse_overflow_link, seal_target,
};
use crate::format::volume::VolumeKeys;

pub const TARGETS: &[Target] = &[
    Target { name: "name", run: name },
    Target { name: "dir_id", run: dir_id },
    Target { name: "symlink", run: symlink },
    Target { name: "xattr", run: xattr },
];

fn keys() -> VolumeKeys {
    VolumeKeys::derive(&sequence(VOLUME_ID), &Secret32::from_bytes(sequence(VOLUME_KEY)))
}

/// An entry's name and a companion's target: raw; then a plain name there and back; then sealed bytes that are no name.
fn name(input: &[u8]) {
    let (how, rest) = choice(input);
    let dir = sequence(DIR_ID);
    let codec = match how & 1 {
        0 => NameCodec::encrypted(&keys().names),
        _ => NameCodec::Plain,
    };
    let (raw, target) = halves(rest);
    let shown = match codec.decode(&dir, raw) {
        Ok(Decoded::Name(name)) => Some(name),
        Ok(Decoded::Long { companion }) => {
            assert!(companion.len() <= 255);
            codec.decode_long(&dir, raw, target).ok()
        }
        Ok(Decoded::Internal) | Err(_) => None,
    };
    if let (Some(shown), NameCodec::Encrypted(_)) = (&shown, &codec) {
        // One name has one form: what is shown is encoded to exactly this entry.
        let encoded = codec.encode(&dir, shown).expect("what was shown can be asked for");
        assert_eq!(&*encoded.name, raw);
        assert!(codec.decode(&[0; 16], raw).is_err() || encoded.companion.is_some());
    }

    if let Ok(encoded) = codec.encode(&dir, rest) {
        assert!(encoded.name.len() <= 255);
        let back = match (codec.decode(&dir, &encoded.name), &encoded.companion) {
            (Ok(Decoded::Name(name)), None) => name,
            (Ok(Decoded::Long { companion }), Some((at, text))) => {
                assert_eq!(companion, *at);
                codec.decode_long(&dir, &encoded.name, text).expect("our own long name")
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(back, rest);
    }

    if let NameCodec::Encrypted(key) = &codec
        && rest.len() <= 4096
    {
        let sealed = BASE64URL_NOPAD.encode(&key.seal(&[&dir], rest));
        if let Ok(Decoded::Name(name)) = codec.decode(&dir, sealed.as_bytes()) {
            assert_eq!(name, rest);
            assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&0) && !name.contains(&b'/'));
            assert!(name != b"." && name != b"..");
        }
    }
}

/// A directory's record: the link's target as it is, or a record under a right MAC.
fn dir_id(input: &[u8]) {
    let (how, rest) = choice(input);
    let key = keys().dir_id;
    let target = if how & 1 == 0 {
        rest.to_vec()
    } else {
        let mac = &hmac_sha256(&key, &[rest])[..12];
        BASE64URL_NOPAD.encode(&[rest, mac].concat()).into_bytes()
    };
    assert!(DirRecord::decode(&target, &Secret32::from_bytes([0x99; 32])).is_err());
    let Ok(record) = DirRecord::decode(&target, &key) else { return };
    assert!(target.len() <= 1023);
    assert_eq!(record.encode(&key).expect("what was read can be written"), target, "two forms of one record");
}

/// A link's content and an overflow object's: raw, and made of a target of the fuzzer's choice.
fn symlink(input: &[u8]) {
    let (how, rest) = choice(input);
    let key = keys().targets;
    let id: [u8; 16] = sequence(how);
    if let Ok(target) = open_target(&key, rest) {
        assert!(target.len() <= 4095);
    }
    let _ = open_overflow_target(&key, id, rest);
    if let Ok(Some(id)) = parse_overflow_link(&key, rest) {
        assert_eq!(overflow_link(&key, id), rest);
    }
    let stranger = Secret32::from_bytes([0x99; 32]);
    assert!(open_target(&stranger, rest).is_err());
    assert!(!matches!(parse_overflow_link(&stranger, rest), Ok(Some(_))));

    let target = &rest[..rest.len().min(4095)];
    let sealed = seal_target(&key, id, target);
    assert_eq!(open_overflow_target(&key, id, &sealed).as_deref(), Ok(target));
    assert!(open_overflow_target(&key, sequence(how ^ 1), &sealed).is_err());
}

/// An attribute's backing name and value: raw, and made of a name and value of the fuzzer's choice.
fn xattr(input: &[u8]) {
    let (how, rest) = choice(input);
    let codec = XattrCodec::for_object(&keys().xattrs, sequence(how));
    let (name, value) = halves(rest);
    let _ = XattrCodec::is_encoded(name);
    if let Ok((plain, _)) = codec.open(name, value) {
        assert_eq!(codec.name(&plain), name);
    }
    let sealed = codec.seal(name, value, sequence(how));
    let backing = codec.name(name);
    match codec.open(&backing, &sealed) {
        Ok((plain, back)) => assert!(plain == name && back == value),
        Err(_) => assert!(name.len() > 255, "an attribute of our own does not open"),
    }
    assert!(XattrCodec::for_object(&keys().xattrs, sequence(how ^ 1)).open(&backing, &sealed).is_err());
}
