//! Sealed small objects: symlink targets and extended attributes. Knows no files; keys are passed in.

use crate::crypto::{AuthError, secret::Secret32};

/// Longest symlink content kept in the link itself; longer ones go to an overflow object.
pub const INLINE_TARGET_MAX: usize = 1023;

/// A symlink target sealed under the volume's symlink key and a random id: base64url of `id 16 ‖ siv 16 ‖ ciphertext`. Bound to no position.
pub fn seal_target(key: &Secret32, id: [u8; 16], target: &[u8]) -> Vec<u8> {
    let _ = (key, id, target);
    todo!()
}
pub fn open_target(key: &Secret32, sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
    let _ = (key, sealed);
    todo!()
}

/// A symlink whose sealed target lies in an overflow object: `@` + base64url(id 16 ‖ MAC 16); the object's name is lowercase hex of the id.
pub fn overflow_link(key: &Secret32, id: [u8; 16]) -> Vec<u8> {
    let _ = (key, id);
    todo!()
}
/// `Ok(None)` where the content is not an overflow link.
pub fn parse_overflow_link(key: &Secret32, content: &[u8]) -> Result<Option<[u8; 16]>, AuthError> {
    let _ = (key, content);
    todo!()
}

/// Extended attributes of one object under one key: names become a PRF, name and value are sealed together in the value.
pub struct XattrCodec {
    _private: (),
}

impl XattrCodec {
    /// A file's own xattr key (`FileKeys::xattr_key`), or `directory` below.
    pub fn new(key: &Secret32) -> Self {
        let _ = key;
        todo!()
    }
    /// For objects without file keys: derived from the volume's xattr key and a random id stored with the object.
    pub fn for_object(volume_key: &Secret32, object_id: [u8; 16]) -> Self {
        let _ = (volume_key, object_id);
        todo!()
    }
    /// The backing name of `user.x` or `trusted.x`: the namespace, `.e.`-style marker and base64url of a 16-byte PRF.
    pub fn name(&self, plain: &[u8]) -> Vec<u8> {
        let _ = plain;
        todo!()
    }
    /// Whether a backing attribute name is one of ours (namespace `user` or `trusted`, our marker, right length).
    pub fn is_encoded(backing: &[u8]) -> bool {
        let _ = backing;
        todo!()
    }
    /// `nonce 12 ‖ tag 16 ‖ ciphertext(name_len 1 ‖ name ‖ value)`
    pub fn seal(&self, plain_name: &[u8], value: &[u8], nonce: [u8; 12]) -> Vec<u8> {
        let _ = (plain_name, value, nonce);
        todo!()
    }
    /// Full plain name and value; checks that the backing name is the name's own PRF.
    pub fn open(&self, backing_name: &[u8], sealed: &[u8]) -> Result<(Vec<u8>, Vec<u8>), AuthError> {
        let _ = (backing_name, sealed);
        todo!()
    }
}

/// Backing attribute that holds the random object id of a directory's xattrs (16 raw bytes).
pub const OBJECT_ID_XATTR: &[u8] = b"user.envelopefs.id";
