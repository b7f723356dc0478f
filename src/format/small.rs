//! Sealed small objects: symlink targets and extended attributes. Knows no files; keys are passed in.

use data_encoding::BASE64URL_NOPAD;

use crate::crypto::{
    AuthError,
    aead::{AeadKey, NONCE_LEN, TAG_LEN},
    kdf::{Prk, hmac_sha256, mac_eq},
    secret::Secret32,
    siv::{SIV_LEN, SivKey},
};

/// Longest symlink content kept in the link itself; longer ones go to an overflow object.
pub const INLINE_TARGET_MAX: usize = 1023;

/// Backing attribute that holds the random object id of a directory's xattrs (16 raw bytes).
pub const OBJECT_ID_XATTR: &[u8] = b"user.envelopefs.id";
/// The same for what cannot carry `user.` attributes: symlinks and special files (xattr(7)).
pub const TRUSTED_OBJECT_ID_XATTR: &[u8] = b"trusted.envelopefs.id";

const TARGET_LABEL: &[u8] = b"envelopefs v1 target";
const OVERFLOW_LABEL: &[u8] = b"envelopefs v1 overflow link";
const XATTR_OBJECT_LABEL: &[u8] = b"envelopefs v1 xattr object";
const XATTR_NAME_LABEL: &[u8] = b"envelopefs v1 xattr name";
const XATTR_VALUE_LABEL: &[u8] = b"envelopefs v1 xattr value";

const ID_LEN: usize = 16;
/// Characters of an overflow object's name: the id in lowercase hex.
pub const OVERFLOW_NAME_LEN: usize = 2 * ID_LEN;
/// Longest symlink target that Linux takes, in bytes; nothing longer is decoded.
const TARGET_MAX: usize = 4095;
/// First character of an overflow link; base64url has none like it.
const OVERFLOW_MARK: u8 = b'@';
/// Between the namespace and the PRF of a sealed attribute's name.
const XATTR_MARK: &[u8] = b"e.";
/// Characters of a base64url 16-byte PRF.
const XATTR_PRF_CHARS: usize = 22;

/// A symlink target sealed under the volume's symlink key and a random id: base64url of `id 16 ‖ siv 16 ‖ ciphertext`. Bound to no position.
pub fn seal_target(key: &Secret32, id: [u8; 16], target: &[u8]) -> Vec<u8> {
    let mut raw = vec![0u8; ID_LEN + SIV_LEN + target.len()];
    raw[..ID_LEN].copy_from_slice(&id);
    raw[ID_LEN + SIV_LEN..].copy_from_slice(target);
    SivKey::derive(key, TARGET_LABEL).seal_in_place(&[&id], &mut raw[ID_LEN..]);
    BASE64URL_NOPAD.encode(&raw).into_bytes()
}

pub fn open_target(key: &Secret32, sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
    open_target_and_id(key, sealed).map(|(_, target)| target)
}

/// Opens the content of the overflow object `id`: the same as a link's, sealed under that very id.
pub fn open_overflow_target(key: &Secret32, id: [u8; 16], sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
    match open_target_and_id(key, sealed)? {
        (found, target) if found == id => Ok(target),
        _ => Err(AuthError),
    }
}

fn open_target_and_id(key: &Secret32, sealed: &[u8]) -> Result<([u8; 16], Vec<u8>), AuthError> {
    if sealed.len() > BASE64URL_NOPAD.encode_len(ID_LEN + SIV_LEN + TARGET_MAX) {
        return Err(AuthError);
    }
    let raw = BASE64URL_NOPAD.decode(sealed).map_err(|_| AuthError)?;
    let (id, rest) = raw.split_first_chunk::<ID_LEN>().ok_or(AuthError)?;
    Ok((*id, SivKey::derive(key, TARGET_LABEL).open(&[id], rest)?))
}

/// A symlink whose sealed target lies in an overflow object: `@` + base64url(id 16 ‖ MAC 16); the object's name is lowercase hex of the id.
pub fn overflow_link(key: &Secret32, id: [u8; 16]) -> Vec<u8> {
    let raw = [id, overflow_mac(key, &id)].concat();
    let mut link = vec![OVERFLOW_MARK];
    link.extend_from_slice(BASE64URL_NOPAD.encode(&raw).as_bytes());
    link
}

/// `Ok(None)` where the content is not an overflow link.
pub fn parse_overflow_link(key: &Secret32, content: &[u8]) -> Result<Option<[u8; 16]>, AuthError> {
    let Some(text) = content.strip_prefix(&[OVERFLOW_MARK]) else { return Ok(None) };
    let raw = BASE64URL_NOPAD.decode(text).map_err(|_| AuthError)?;
    let (id, mac) = raw.split_first_chunk::<ID_LEN>().ok_or(AuthError)?;
    if mac_eq(mac, &overflow_mac(key, id)) { Ok(Some(*id)) } else { Err(AuthError) }
}

/// The form of a link's content, which is all that can be told without the key: `Some(Some(id))` for an overflow link,
/// `Some(None)` for a sealed target, `None` for anything else.
pub fn claimed_target(content: &[u8]) -> Option<Option<[u8; 16]>> {
    match content.strip_prefix(&[OVERFLOW_MARK]) {
        Some(text) => {
            let raw: [u8; 32] = BASE64URL_NOPAD.decode(text).ok()?.try_into().ok()?;
            raw.first_chunk().copied().map(Some)
        }
        None if content.len() > INLINE_TARGET_MAX => None,
        None => (BASE64URL_NOPAD.decode(content).ok()?.len() > ID_LEN + SIV_LEN).then_some(None),
    }
}

fn overflow_mac(key: &Secret32, id: &[u8; 16]) -> [u8; 16] {
    truncated(hmac_sha256(&Prk::from_uniform(key).expand(&[OVERFLOW_LABEL]), &[id]))
}

fn truncated(mac: [u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&mac[..16]);
    out
}

/// Extended attributes of one object under one key: names become a PRF, name and value are sealed together in the value.
pub struct XattrCodec {
    names: Secret32,
    values: AeadKey,
}

impl XattrCodec {
    /// A file's own xattr key (`FileKeys::xattr_key`), or `for_object` below.
    pub fn new(key: &Secret32) -> Self {
        let prk = Prk::from_uniform(key);
        Self { names: prk.expand(&[XATTR_NAME_LABEL]), values: AeadKey::new(&prk.expand(&[XATTR_VALUE_LABEL])) }
    }

    /// For objects without file keys: derived from the volume's xattr key and a random id stored with the object.
    pub fn for_object(volume_key: &Secret32, object_id: [u8; 16]) -> Self {
        Self::new(&Prk::extract(&object_id, volume_key).expand(&[XATTR_OBJECT_LABEL]))
    }

    /// The backing name of `user.x` or `trusted.x`: the namespace, `e.` and base64url of a 16-byte PRF of the whole name.
    pub fn name(&self, plain: &[u8]) -> Vec<u8> {
        let namespace = plain.iter().position(|b| *b == b'.').map_or(plain, |dot| &plain[..=dot]);
        let prf = truncated(hmac_sha256(&self.names, &[plain]));
        [namespace, XATTR_MARK, BASE64URL_NOPAD.encode(&prf).as_bytes()].concat()
    }

    /// Whether a backing attribute name is one of ours (namespace `user` or `trusted`, our marker, right length).
    pub fn is_encoded(backing: &[u8]) -> bool {
        let Some(rest) = backing.strip_prefix(b"user.").or_else(|| backing.strip_prefix(b"trusted.")) else {
            return false;
        };
        rest.strip_prefix(XATTR_MARK).is_some_and(|prf| {
            prf.len() == XATTR_PRF_CHARS && prf.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
    }

    /// `nonce 12 ‖ tag 16 ‖ ciphertext(name_len 1 ‖ name ‖ value)`, AAD: the backing name.
    ///
    /// `plain_name` has at most 255 bytes, as the kernel sees to (XATTR_NAME_MAX); what is sealed under a longer one
    /// does not open. The nonce is fresh and random.
    pub fn seal(&self, plain_name: &[u8], value: &[u8], nonce: [u8; 12]) -> Vec<u8> {
        let name_len = u8::try_from(plain_name.len()).unwrap_or(0);
        let mut out = vec![0u8; NONCE_LEN + TAG_LEN];
        out.push(name_len);
        out.extend_from_slice(plain_name);
        out.extend_from_slice(value);
        let tag = self.values.seal(&nonce, &self.name(plain_name), &mut out[NONCE_LEN + TAG_LEN..]);
        out[..NONCE_LEN].copy_from_slice(&nonce);
        out[NONCE_LEN..NONCE_LEN + TAG_LEN].copy_from_slice(&tag);
        out
    }

    /// Full plain name and value; checks that the backing name is the name's own PRF.
    pub fn open(&self, backing_name: &[u8], sealed: &[u8]) -> Result<(Vec<u8>, Vec<u8>), AuthError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(AuthError)?;
        let (tag, ciphertext) = rest.split_first_chunk::<TAG_LEN>().ok_or(AuthError)?;
        let mut plain = vec![0u8; ciphertext.len()];
        self.values.open(nonce, backing_name, ciphertext, tag, &mut plain)?;
        let (name_len, rest) = plain.split_first().ok_or(AuthError)?;
        let (name, value) = rest.split_at_checked(usize::from(*name_len)).ok_or(AuthError)?;
        if self.name(name) != backing_name {
            return Err(AuthError);
        }
        Ok((name.to_vec(), value.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Secret32 {
        Secret32::from_bytes([1; 32])
    }

    #[test]
    fn targets_of_every_length_come_back() {
        for len in [0, 1, 15, 16, 17, 700, 4095] {
            let target = vec![b'x'; len];
            let sealed = seal_target(&key(), [2; 16], &target);
            assert_eq!(open_target(&key(), &sealed), Ok(target.clone()));
            assert_eq!(open_overflow_target(&key(), [2; 16], &sealed), Ok(target));
            assert!(open_overflow_target(&key(), [3; 16], &sealed).is_err());
            assert!(open_target(&Secret32::from_bytes([9; 32]), &sealed).is_err());
        }
        assert!(open_target(&key(), &vec![b'A'; 1 << 20]).is_err());
    }

    #[test]
    fn forms_of_links_are_told_without_a_key() {
        assert_eq!(claimed_target(&seal_target(&key(), [2; 16], b"x")), Some(None));
        assert_eq!(claimed_target(&overflow_link(&key(), [2; 16])), Some(Some([2; 16])));
        let too_long = seal_target(&key(), [2; 16], &[b'x'; 1000]);
        for content in [&b"/etc/passwd"[..], b"@", b"@AAAA", b"", b"AAAA", &too_long] {
            assert_eq!(claimed_target(content), None);
        }
    }

    #[test]
    fn equal_targets_look_different() {
        assert_ne!(seal_target(&key(), [2; 16], b"same")[22..], seal_target(&key(), [3; 16], b"same")[22..]);
    }

    #[test]
    fn a_changed_target_is_refused() {
        let sealed = seal_target(&key(), [2; 16], b"../some/where");
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            assert!(open_target(&key(), &bad).is_err(), "character {at}");
        }
    }

    #[test]
    fn overflow_links() {
        let link = overflow_link(&key(), [5; 16]);
        assert_eq!(link.len(), 44);
        assert_eq!(parse_overflow_link(&key(), &link), Ok(Some([5; 16])));
        assert_eq!(parse_overflow_link(&key(), &seal_target(&key(), [2; 16], b"t")), Ok(None));
        assert_eq!(parse_overflow_link(&key(), b""), Ok(None));
        assert!(parse_overflow_link(&key(), b"@").is_err());
        assert!(parse_overflow_link(&key(), &link[..43]).is_err());
        assert!(parse_overflow_link(&Secret32::from_bytes([9; 32]), &link).is_err());
        for at in 1..link.len() {
            let mut bad = link.clone();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            assert!(parse_overflow_link(&key(), &bad).is_err(), "character {at}");
        }
    }

    #[test]
    fn attributes_come_back_under_their_own_name_only() {
        let codec = XattrCodec::new(&key());
        let backing = codec.name(b"user.comment");
        assert!(backing.starts_with(b"user.e."));
        assert!(XattrCodec::is_encoded(&backing));
        let sealed = codec.seal(b"user.comment", b"value", [4; 12]);
        assert_eq!(codec.open(&backing, &sealed), Ok((b"user.comment".to_vec(), b"value".to_vec())));
        assert!(codec.open(&codec.name(b"user.other"), &sealed).is_err());
        assert!(XattrCodec::for_object(&key(), [1; 16]).open(&backing, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(codec.open(&backing, &bad).is_err(), "byte {at}");
            assert!(codec.open(&backing, &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn namespaces_are_kept_and_names_are_not() {
        let codec = XattrCodec::for_object(&key(), [7; 16]);
        let user = codec.name(b"user.a.b");
        let trusted = codec.name(b"trusted.a.b");
        assert!(trusted.starts_with(b"trusted.e."));
        assert_ne!(user[7..], trusted[10..]);
        assert_ne!(codec.name(b"user.a.c"), user);
        assert_ne!(XattrCodec::for_object(&key(), [8; 16]).name(b"user.a.b"), user);
        for foreign in
            [b"user.x".as_slice(), b"user.e.", b"user.e.short", b"security.e.AAAAAAAAAAAAAAAAAAAAAA", OBJECT_ID_XATTR]
        {
            assert!(!XattrCodec::is_encoded(foreign), "{foreign:?}");
        }
        assert!(!XattrCodec::is_encoded(b"user.e.AAAAAAAAAAAAAAAAAAAAA!"));
    }

    proptest! {
        #[test]
        fn attributes_round_trip(
            name in proptest::collection::vec(1u8..=255, 1..=250),
            value in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let codec = XattrCodec::new(&key());
            let name = [b"user.".as_slice(), &name].concat();
            let sealed = codec.seal(&name, &value, [4; 12]);
            prop_assert_eq!(codec.open(&codec.name(&name), &sealed), Ok((name, value)));
        }

        #[test]
        fn hostile_input_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open_target(&key(), &bytes).is_err());
            prop_assert!(XattrCodec::new(&key()).open(b"user.e.AAAAAAAAAAAAAAAAAAAAAA", &bytes).is_err());
            prop_assert!(!matches!(parse_overflow_link(&key(), &bytes), Ok(Some(_))));
        }
    }
}
