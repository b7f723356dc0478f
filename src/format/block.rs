//! One self-contained 4096-byte block: `[nonce 12][tag 16][key_salt 4][valid_len 2][flags 2][reserved 12][ciphertext 4048]`.
//! Knows neither files nor sizes beyond one block.

use super::{
    NULL_CIPHER, SUITE,
    geometry::{BLOCK_HEADER, PAGE, PLAIN},
};
use crate::crypto::{
    AuthError,
    aead::{AeadKey, NONCE_LEN, TAG_LEN},
};

// Offsets inside the page, each the end of the field before. Integers are little-endian.
const NONCE: usize = 0;
const TAG: usize = NONCE + NONCE_LEN;
const KEY_SALT: usize = TAG + TAG_LEN;
const VALID_LEN: usize = KEY_SALT + 4;
const FLAGS: usize = VALID_LEN + 2;
const RESERVED: usize = FLAGS + 2;
const _: () = assert!(RESERVED + 12 == BLOCK_HEADER);

/// First bytes of every block's AAD. With it the AAD is 48 bytes, three cipher blocks.
const LABEL: &[u8; 18] = b"envelopefs v1 data";
const AAD_LEN: usize = 18 + 2 + 8 + (BLOCK_HEADER - KEY_SALT);

/// The clear fields of a block, unauthenticated until it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek {
    pub key_salt: [u8; 4],
    /// Plaintext bytes that were valid when the block was written: 1..=PLAIN.
    /// A value outside is brought inside; such a block never opens.
    pub valid_len: u16,
}

/// `None` for an all-zero page (a hole); the fields are not yet authenticated.
pub fn peek(page: &[u8; PAGE]) -> Option<Peek> {
    match peek_clear(page.first_chunk()?) {
        None if !is_hole(page) => Some(fields(page.first_chunk()?)),
        found => found,
    }
}

/// The same from a block's clear bytes alone; `None` where they are all zero.
pub fn peek_clear(clear: &[u8; BLOCK_HEADER]) -> Option<Peek> {
    if is_hole(clear) { None } else { Some(fields(clear)) }
}

fn fields(clear: &[u8; BLOCK_HEADER]) -> Peek {
    let valid_len = u16::from_le_bytes([clear[VALID_LEN], clear[VALID_LEN + 1]]);
    Peek { key_salt: key_salt(clear), valid_len: valid_len.clamp(1, PLAIN as u16) }
}

fn key_salt(clear: &[u8; BLOCK_HEADER]) -> [u8; 4] {
    [clear[KEY_SALT], clear[KEY_SALT + 1], clear[KEY_SALT + 2], clear[KEY_SALT + 3]]
}

/// Whether every byte of the page is zero.
pub fn is_hole(page: &[u8]) -> bool {
    // A comparison of slices is the C library's vector code; a written block differs in its first bytes, its nonce.
    static ZEROS: [u8; PAGE] = [0; PAGE];
    page.chunks(PAGE).all(|piece| *piece == ZEROS[..piece.len()])
}

/// Seals the plaintext that already stands at `page[48..]` (zero-padded past `valid_len`) in place.
///
/// The pair of key and nonce must be fresh for every call.
///
/// # Panics
/// Where `valid_len` is not in 1..=PLAIN: such a block could never be opened again.
pub fn seal(key: &AeadKey, key_salt: [u8; 4], nonce: &[u8; 12], index: u64, valid_len: u16, page: &mut [u8; PAGE]) {
    assert!((1..=PLAIN).contains(&usize::from(valid_len)), "a block holds 1 to {PLAIN} bytes");
    page[NONCE..TAG].copy_from_slice(nonce);
    page[KEY_SALT..VALID_LEN].copy_from_slice(&key_salt);
    page[VALID_LEN..FLAGS].copy_from_slice(&valid_len.to_le_bytes());
    page[FLAGS..BLOCK_HEADER].fill(0);
    if NULL_CIPHER {
        return;
    }
    let aad = aad(index, page);
    let tag = key.seal(nonce, &aad, &mut page[BLOCK_HEADER..]);
    page[TAG..KEY_SALT].copy_from_slice(&tag);
}

/// Opens `page` into `out` and returns its authenticated `valid_len`. On failure `out` holds no plaintext.
///
/// Flags and reserved bytes must be zero in this version, and `valid_len` in 1..=PLAIN, whatever the tag says.
pub fn open(key: &AeadKey, index: u64, page: &[u8; PAGE], out: &mut [u8; PLAIN]) -> Result<u16, AuthError> {
    let valid_len = u16::from_le_bytes([page[VALID_LEN], page[VALID_LEN + 1]]);
    if !(1..=PLAIN).contains(&usize::from(valid_len)) || !is_hole(&page[FLAGS..BLOCK_HEADER]) {
        out.fill(0);
        return Err(AuthError);
    }
    if NULL_CIPHER {
        out.copy_from_slice(&page[BLOCK_HEADER..]);
        return Ok(valid_len);
    }
    let nonce = page[NONCE..].first_chunk().ok_or(AuthError)?;
    let tag = page[TAG..].first_chunk().ok_or(AuthError)?;
    key.open(nonce, &aad(index, page), &page[BLOCK_HEADER..], tag, out)?;
    Ok(valid_len)
}

/// `label 18 ‖ suite 2 ‖ index 8 ‖ clear bytes after the tag 20`.
fn aad(index: u64, page: &[u8; PAGE]) -> [u8; AAD_LEN] {
    let mut aad = [0u8; AAD_LEN];
    aad[..18].copy_from_slice(LABEL);
    aad[18..20].copy_from_slice(&SUITE.to_le_bytes());
    aad[20..28].copy_from_slice(&index.to_le_bytes());
    aad[28..].copy_from_slice(&page[KEY_SALT..BLOCK_HEADER]);
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{file_keys::FileKeys, secret::Secret32};

    const SALT: [u8; 4] = [1, 2, 3, 4];

    fn file(id: u8) -> FileKeys {
        FileKeys::derive(&[id; 32], &Secret32::from_bytes([5; 32]))
    }

    fn sealed(keys: &FileKeys, index: u64, valid_len: u16) -> [u8; PAGE] {
        let mut page = [0u8; PAGE];
        for (i, b) in page[BLOCK_HEADER..BLOCK_HEADER + usize::from(valid_len)].iter_mut().enumerate() {
            *b = i as u8 ^ 0x5a;
        }
        seal(&keys.block_key(SALT), SALT, &[7; 12], index, valid_len, &mut page);
        page
    }

    #[test]
    fn round_trip_at_every_interesting_length() {
        let keys = file(1);
        for valid_len in [1, 2, 15, 16, 17, 4047, 4048] {
            let page = sealed(&keys, 9, valid_len);
            let mut out = [0u8; PLAIN];
            assert_eq!(open(&keys.block_key(SALT), 9, &page, &mut out), Ok(valid_len));
            assert!(out[..usize::from(valid_len)].iter().enumerate().all(|(i, b)| *b == i as u8 ^ 0x5a));
            assert_eq!(peek(&page), Some(Peek { key_salt: SALT, valid_len }));
        }
    }

    /// Corpus 1 and 2: no byte of the page may change unnoticed.
    #[test]
    fn any_flipped_byte_is_refused_and_leaves_no_plaintext() {
        let keys = file(1);
        let key = keys.block_key(SALT);
        let page = sealed(&keys, 3, 4048);
        for at in 0..PAGE {
            let mut bad = page;
            bad[at] ^= 1 << (at % 8);
            let mut out = [0xeeu8; PLAIN];
            assert_eq!(open(&key, 3, &bad, &mut out), Err(AuthError), "byte {at}");
            assert!(is_hole(&out), "byte {at}");
        }
    }

    /// Corpus 3 and 4: position and file are bound.
    #[test]
    fn a_block_opens_at_its_place_in_its_file_only() {
        let (a, b) = (file(1), file(2));
        let page = sealed(&a, 3, 100);
        let mut out = [0u8; PLAIN];
        assert!(open(&a.block_key(SALT), 4, &page, &mut out).is_err());
        assert!(open(&a.block_key(SALT), 3 + (1 << 32), &page, &mut out).is_err());
        assert!(open(&b.block_key(SALT), 3, &page, &mut out).is_err());
        assert!(open(&a.block_key([9; 4]), 3, &page, &mut out).is_err());
        assert!(open(&a.block_key(SALT), 3, &page, &mut out).is_ok());
    }

    /// Authentic but not of this version: someone with the key who sets flags or reserved bytes.
    #[test]
    fn flags_reserved_bytes_and_lengths_are_required_as_this_version_writes_them() {
        let keys = file(1);
        let key = keys.block_key(SALT);
        let with = |change: &dyn Fn(&mut [u8; PAGE])| {
            let mut page = [0u8; PAGE];
            page[NONCE..TAG].fill(7);
            page[KEY_SALT..VALID_LEN].copy_from_slice(&SALT);
            page[VALID_LEN] = 1;
            change(&mut page);
            let aad = aad(0, &page);
            let tag = key.seal(&[7; 12], &aad, &mut page[BLOCK_HEADER..]);
            page[TAG..KEY_SALT].copy_from_slice(&tag);
            open(&key, 0, &page, &mut [0u8; PLAIN])
        };
        assert_eq!(with(&|_| {}), Ok(1));
        assert_eq!(with(&|p| p[FLAGS] = 1), Err(AuthError));
        assert_eq!(with(&|p| p[FLAGS + 1] = 0x80), Err(AuthError));
        for at in RESERVED..BLOCK_HEADER {
            assert_eq!(with(&|p| p[at] = 1), Err(AuthError), "{at}");
        }
        assert_eq!(with(&|p| p[VALID_LEN] = 0), Err(AuthError));
        assert_eq!(with(&|p| p[VALID_LEN..FLAGS].copy_from_slice(&4048u16.to_le_bytes())), Ok(4048));
        assert_eq!(with(&|p| p[VALID_LEN..FLAGS].copy_from_slice(&4049u16.to_le_bytes())), Err(AuthError));
    }

    #[test]
    fn holes_are_all_zero_and_nothing_else() {
        let mut page = [0u8; PAGE];
        assert!(is_hole(&page));
        assert_eq!(peek(&page), None);
        for at in 0..PAGE {
            page[at] = 1;
            assert!(!is_hole(&page), "{at}");
            assert!(peek(&page).is_some(), "{at}");
            page[at] = 0;
        }
        assert!(is_hole(&[]));
        assert!(!is_hole(&[0, 0, 1]));
    }

    #[test]
    fn a_peeked_length_is_always_possible() {
        let mut page = [0u8; PAGE];
        page[0] = 1;
        assert_eq!(peek(&page).map(|p| p.valid_len), Some(1));
        page[VALID_LEN..FLAGS].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(peek(&page).map(|p| p.valid_len), Some(4048));
        assert_eq!(peek_clear(&[0; BLOCK_HEADER]), None);
    }

    #[test]
    #[should_panic(expected = "a block holds")]
    fn a_block_without_content_is_never_sealed() {
        seal(&file(1).block_key(SALT), SALT, &[0; 12], 0, 0, &mut [0; PAGE]);
    }
}
