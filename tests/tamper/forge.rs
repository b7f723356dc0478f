//! What an attacker can make who has a CMK, and what somebody has who has the volume key as well: headers, blocks, whole files.
//! Uses the library as a toolbox; must not decide what a mount does with the result.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use envelopefs::crypto::file_keys::FileKeys;
use envelopefs::crypto::{random, secret::Secret32};
use envelopefs::format::block;
use envelopefs::format::geometry::{BLOCK_HEADER, Geometry, PAGE, PLAIN};
use envelopefs::format::header::{CmkSlot, FileHeader, SUITE_AES256_GCM, Unverified, WrappedDek};
use envelopefs::format::volume::{UnverifiedVolume, VOLUME_FILE, VolumeConfig, VolumeKeys, key_commitment};
use envelopefs::keys::guard::{Deadline, Guard, OutagePolicy};
use envelopefs::keys::keyring::{KeyPolicy, Keyring};
use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::keyfile::KeyfileCmk;
use envelopefs::keys::{CmkProvider, EncryptionContext, volume};

use crate::common::{Random, Volume};

/// Somebody who has a volume's keyfile, and so every key of it.
pub struct Insider {
    pub config: VolumeConfig,
    pub keys: VolumeKeys,
    pub cmk: Arc<KeyfileCmk>,
    pub keyring: Keyring,
}

fn keyfile(path: &Path) -> Arc<KeyfileCmk> {
    Arc::new(KeyfileCmk::open(path, None, &PassphraseSource::Nowhere).expect("the keyfile opens"))
}

impl Insider {
    pub fn of(volume: &Volume) -> Self {
        Self::at(&volume.cipher, &volume.keyfile)
    }
    pub fn at(cipher: &Path, keys: &Path) -> Self {
        let cmk = keyfile(keys);
        let policy = OutagePolicy::default();
        let guards = vec![Guard::new(cmk.clone(), policy)];
        let text = fs::read(cipher.join(VOLUME_FILE)).unwrap();
        let parsed = UnverifiedVolume::parse(&text).unwrap();
        let (config, keys) = volume::unlock(parsed, &guards, None, Deadline::after(policy.deadline)).unwrap();
        let key_policy = KeyPolicy {
            mode: config.key_mode,
            branch_max_age: config.branch_max_age,
            branch_max_files: config.branch_max_files,
        };
        let origin = Some(keys.origin.duplicate());
        let keyring = Keyring::new(config.volume_id, guards, key_policy, origin, config.branch.clone());
        Self { config, keys, cmk, keyring }
    }
    pub fn geometry(&self) -> Geometry {
        Geometry { header_pages: self.config.header_pages }
    }
    /// The authentic header in a slot's bytes, and its keys.
    pub fn open(&self, slot: &[u8]) -> (FileHeader, FileKeys) {
        let unverified = Unverified::parse(slot, self.geometry()).unwrap();
        let keys = self.keyring.open(&unverified).unwrap().keys;
        (unverified.verify(&keys, Some(&self.keys.origin)).unwrap(), keys)
    }
    /// The same file's header with something changed, by somebody who has all keys.
    pub fn rewritten(&self, slot: &[u8], change: impl FnOnce(&mut FileHeader)) -> Vec<u8> {
        let (mut header, keys) = self.open(slot);
        change(&mut header);
        header.encode(&keys, Some(&self.keys.origin), self.geometry()).unwrap()
    }
    /// A valid file in all but its origin: keys, header and blocks made by somebody who can only wrap under the CMK, as
    /// everybody can where the CMK has a public key. `origin`: what he takes for the volume's origin key.
    pub fn forged_file(&self, content: &[u8], origin: Option<&Secret32>) -> Vec<u8> {
        let (branch_id, file_id) = (random::array(), random::array());
        let (branch, dek) = (Secret32::random(), Secret32::random());
        let keys = FileKeys::derive(&file_id, &dek);
        let context = EncryptionContext::for_branch(&self.config.volume_id, &branch_id);
        let name = self.cmk.key_ref();
        let slot = CmkSlot {
            provider: name.provider.clone(),
            key_ref: name.key.clone(),
            blob: self.cmk.wrap(&branch, &context).unwrap(),
            commitment: key_commitment(&branch),
        };
        let parent = (branch_id, &branch);
        let wrapped =
            WrappedDek::seal(parent, &self.config.volume_id, &file_id, &dek, random::array(), random::array());
        let header = FileHeader {
            volume_id: self.config.volume_id,
            file_id,
            suite: SUITE_AES256_GCM,
            generation: 1,
            size_floor: 0,
            sealed_size: 0,
            flags: 0,
            commitment: keys.commitment(),
            previous_commitment: [0; 32],
            wrapped_dek: Some(wrapped),
            slots: vec![slot],
        };
        let geometry = self.geometry();
        let mut file = header.encode(&keys, origin, geometry).unwrap();
        file.resize(geometry.data_start() as usize, 0);
        for (index, piece) in content.chunks(PLAIN).enumerate() {
            file.extend(sealed_block(&keys, index as u64, piece));
        }
        file.resize(geometry.quiet_len(content.len() as u64) as usize, 0);
        file
    }
    /// A volume file with the same id that hangs on the same CMK, and another volume key.
    pub fn forged_volume_file(&self) -> Vec<u8> {
        let key = Secret32::random();
        let context = EncryptionContext::for_volume(&self.config.volume_id);
        let mut config = self.config.clone();
        let name = self.cmk.key_ref();
        config.volume_key = vec![CmkSlot {
            provider: name.provider.clone(),
            key_ref: name.key.clone(),
            blob: self.cmk.wrap(&key, &context).unwrap(),
            commitment: key_commitment(&key),
        }];
        config.encode(&VolumeKeys::derive(&config.volume_id, &key))
    }
}

/// One block, sealed as a writer would.
pub fn sealed_block(keys: &FileKeys, index: u64, plain: &[u8]) -> [u8; PAGE] {
    let (salt, mut page) = (random::array(), [0; PAGE]);
    page[BLOCK_HEADER..][..plain.len()].copy_from_slice(plain);
    block::seal(&keys.block_key(salt), salt, &random::array(), index, plain.len() as u16, &mut page);
    page
}

/// The checksum of a slot whose other bytes were changed: no key is needed for it.
pub fn fix_crc(slot: &mut [u8]) {
    let at = slot.len() - 4;
    let crc = crc32fast::hash(&slot[..at]);
    slot[at..].copy_from_slice(&crc.to_le_bytes());
}

/// Where in a slot the bodies of its TLVs stand: (type, range of the body).
pub fn tlvs(slot: &[u8]) -> Vec<(u16, std::ops::Range<usize>)> {
    let (mut found, mut at) = (Vec::new(), 192);
    while at + 4 <= slot.len() - 72 {
        let word = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        let (kind, len) = (word(at), usize::from(word(at + 2)));
        if kind == 0 {
            break;
        }
        found.push((kind, at + 4..at + 4 + len));
        at += 4 + len;
    }
    found
}
pub const TLV_WRAPPED_DEK: u16 = 0xC001;
pub const TLV_CMK_SLOT: u16 = 0x8002;

/// The body of the `n`-th TLV of this type.
pub fn tlv(slot: &[u8], kind: u16, n: usize) -> std::ops::Range<usize> {
    tlvs(slot).into_iter().filter(|(found, _)| *found == kind).nth(n).expect("such a TLV").1
}

/// Changes something in the TLV area, or the length or type of one, and makes the checksum right again.
pub fn fuzz_tlvs(slot: &mut [u8], random: &mut Random) {
    let end = slot.len() - 72;
    let bodies = tlvs(slot);
    for _ in 0..=random.below(3) {
        let (_, body) = random.pick(&bodies).clone();
        match random.below(8) {
            // Lengths of TLVs, and of the strings inside.
            0 => slot[body.start - 2..body.start].copy_from_slice(&(random.next() as u16).to_le_bytes()),
            1 => {
                let at = (body.start + 33 + random.below(16) as usize).min(end - 8);
                slot[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
            }
            2 => slot[body.start - 4..body.start - 2].copy_from_slice(&(random.next() as u16).to_le_bytes()),
            // A critical type that nobody knows, after the last one.
            3 => {
                let at = bodies.last().map_or(192, |(_, last)| last.end);
                slot[at..at + 4].copy_from_slice(&[random.next() as u8, 0x80, random.next() as u8, 0]);
            }
            // A TLV once more.
            4 => {
                let (from, to) = (body.start - 4..body.end, bodies.last().map_or(192, |(_, last)| last.end));
                if to + from.len() <= end {
                    slot.copy_within(from, to);
                }
            }
            5 => slot[192 + random.below((end - 192) as u64) as usize] ^= 1 << random.below(8),
            6 => slot[body.start + random.below(body.len() as u64) as usize] ^= 1 << random.below(8),
            _ => {
                let at = 192 + random.below((end - 192) as u64) as usize;
                let len = (random.below(64) as usize).min(end - at);
                for byte in &mut slot[at..at + len] {
                    *byte = random.next() as u8;
                }
            }
        }
    }
    fix_crc(slot);
}
