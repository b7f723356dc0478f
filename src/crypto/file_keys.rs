//! The sub-keys of one file: commitment, header MAC, block keys, xattr key. Knows no byte layout.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    aead::AeadKey,
    kdf::{Prk, hmac_sha256},
    secret::Secret32,
};

/// Info strings of HKDF-Expand. No one of them, with its suffix, equals another.
const COMMIT: &[u8] = b"envelopefs v1 file commit";
const HEADER: &[u8] = b"envelopefs v1 file hdr";
const BLOCK: &[u8] = b"envelopefs v1 file blk";
const XATTR: &[u8] = b"envelopefs v1 file xattr";

/// Block keys kept ready per file. A long-lived database has one salt per open-for-write in its blocks.
const CACHED_BLOCK_KEYS: usize = 64;

/// Everything derived from one file's DEK: `PRK = HKDF-Extract(file_id, DEK)`, expanded with labels.
pub struct FileKeys {
    prk: Prk,
    commitment: [u8; 32],
    header: Secret32,
    /// Most recently used first. Held for a look-up only, never while a key is derived.
    blocks: Mutex<Vec<([u8; 4], Arc<AeadKey>)>>,
}

impl FileKeys {
    pub fn derive(file_id: &[u8; 32], dek: &Secret32) -> Self {
        let prk = Prk::extract(file_id, dek);
        let commitment = *prk.expand(&[COMMIT]).expose();
        let header = prk.expand(&[HEADER]);
        Self { prk, commitment, header, blocks: Mutex::new(Vec::new()) }
    }

    /// Key commitment stored in the header: a wrong DEK is recognised before any MAC is trusted.
    pub fn commitment(&self) -> [u8; 32] {
        self.commitment
    }

    /// MAC of the header's authenticated part.
    pub fn header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        hmac_sha256(&self.header, &[bytes])
    }

    /// The block key of `salt`, from a small cache (bounded, most recent kept).
    pub fn block_key(&self, salt: [u8; 4]) -> Arc<AeadKey> {
        if let Some(key) = self.cached(salt) {
            return key;
        }
        let key = Arc::new(AeadKey::new(&self.prk.expand(&[BLOCK, &salt])));
        let mut blocks = self.blocks.lock();
        // Another thread may have derived the same key meanwhile; one entry per salt is enough.
        if !blocks.iter().any(|(s, _)| *s == salt) {
            blocks.truncate(CACHED_BLOCK_KEYS - 1);
            blocks.insert(0, (salt, Arc::clone(&key)));
        }
        key
    }

    fn cached(&self, salt: [u8; 4]) -> Option<Arc<AeadKey>> {
        let mut blocks = self.blocks.lock();
        if let Some((first, key)) = blocks.first()
            && *first == salt
        {
            return Some(Arc::clone(key));
        }
        let at = blocks.iter().position(|(s, _)| *s == salt)?;
        blocks[..=at].rotate_right(1);
        blocks.first().map(|(_, key)| Arc::clone(key))
    }

    /// The key for this file's extended attributes.
    pub fn xattr_key(&self) -> Secret32 {
        self.prk.expand(&[XATTR])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> FileKeys {
        FileKeys::derive(&[1; 32], &Secret32::from_bytes([2; 32]))
    }

    #[test]
    fn sub_keys_depend_on_file_id_and_dek() {
        let a = keys();
        let b = FileKeys::derive(&[9; 32], &Secret32::from_bytes([2; 32]));
        let c = FileKeys::derive(&[1; 32], &Secret32::from_bytes([9; 32]));
        assert_ne!(a.commitment(), b.commitment());
        assert_ne!(a.commitment(), c.commitment());
        assert_ne!(a.header_mac(b"x"), b.header_mac(b"x"));
        assert_ne!(a.xattr_key().expose(), c.xattr_key().expose());
        assert_eq!(a.commitment(), keys().commitment());
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let k = keys();
        let first = k.block_key([0; 4]);
        for i in 1..1000u32 {
            k.block_key(i.to_le_bytes());
            // Touched every time, so it is never the oldest.
            assert!(Arc::ptr_eq(&first, &k.block_key([0; 4])), "evicted after {i}");
        }
        assert_eq!(k.blocks.lock().len(), CACHED_BLOCK_KEYS);
        let evicted = k.block_key(1u32.to_le_bytes());
        assert!(Arc::ptr_eq(&evicted, &k.block_key(1u32.to_le_bytes())));
    }

    #[test]
    fn cached_and_fresh_block_keys_are_the_same_key() {
        let (a, b) = (keys(), keys());
        for salt in [[0; 4], [1, 2, 3, 4], [0; 4], [255; 4], [1, 2, 3, 4]] {
            let (mut x, mut y) = ([7u8; 32], [7u8; 32]);
            let t = a.block_key(salt).seal(&[0; 12], b"", &mut x);
            let u = b.block_key(salt).seal(&[0; 12], b"", &mut y);
            assert_eq!((x, t), (y, u));
        }
    }

    #[test]
    fn threads_agree_on_block_keys() {
        let k = keys();
        let sealed = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|t| {
                    let k = &k;
                    s.spawn(move || {
                        let mut out = Vec::new();
                        for i in 0..300u32 {
                            let salt = ((i * (t + 1)) % 100).to_le_bytes();
                            let mut x = [0u8; 16];
                            let tag = k.block_key(salt).seal(&[0; 12], b"", &mut x);
                            out.push((salt, tag));
                        }
                        out
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        let fresh = keys();
        for (salt, tag) in sealed {
            let mut x = [0u8; 16];
            assert_eq!(tag, fresh.block_key(salt).seal(&[0; 12], b"", &mut x));
        }
        assert!(k.blocks.lock().len() <= CACHED_BLOCK_KEYS);
    }
}
