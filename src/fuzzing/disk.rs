//! Header slots, blocks and the volume file. Holds the parsers to the format by a second reading of it.

use super::{DEK, FILE_ID, Target, VOLUME_ID, VOLUME_KEY, choice, sequence};
use crate::crypto::{file_keys::FileKeys, kdf::hmac_sha256, secret::Secret32};
use crate::format::block::{self, is_hole};
use crate::format::geometry::{Geometry, Length, PAGE, PLAIN, growing_size};
use crate::format::header::{FileHeader, HeaderError, Unverified, claimed_pages};
use crate::format::volume::{UnverifiedVolume, VolumeConfig, VolumeKeys};

pub const TARGETS: &[Target] = &[
    Target { name: "header", run: header },
    Target { name: "tlvs", run: tlvs },
    Target { name: "block", run: opened_block },
    Target { name: "length", run: length },
    Target { name: "volume", run: volume },
];

fn file_keys() -> FileKeys {
    FileKeys::derive(&sequence(FILE_ID), &Secret32::from_bytes(sequence(DEK)))
}

fn volume_keys() -> VolumeKeys {
    VolumeKeys::derive(&sequence(VOLUME_ID), &Secret32::from_bytes(sequence(VOLUME_KEY)))
}

/// A whole slot: as it is, with a right checksum, or with everything that a holder of the keys could make right.
fn header(input: &[u8]) {
    let (how, rest) = choice(input);
    let geometry = Geometry { header_pages: 1 + u32::from(how >> 4) % 4 };
    let mut slot = rest.to_vec();
    if how & 3 != 0 {
        slot.resize(geometry.slot_len(), 0);
        dress(&mut slot, how & 2 != 0);
    }
    let _ = claimed_pages(&slot);
    check_slot(&slot, geometry, how & 3 >= 2);
}

/// The TLV area alone, in a slot whose fixed part is in order.
fn tlvs(input: &[u8]) {
    let geometry = Geometry { header_pages: 1 };
    let blank = FileHeader {
        volume_id: sequence(VOLUME_ID),
        file_id: sequence(FILE_ID),
        suite: 1,
        generation: 1,
        size_floor: 0,
        sealed_size: 0,
        flags: 0,
        commitment: file_keys().commitment(),
        previous_commitment: [0; 32],
        wrapped_dek: None,
        slots: Vec::new(),
    };
    let mut slot = blank.encode(&file_keys(), None, geometry).expect("a header without TLVs");
    let room = slot.len() - 192 - 72;
    let len = input.len().min(room);
    slot[192..192 + len].copy_from_slice(&input[..len]);
    dress(&mut slot, true);
    check_slot(&slot, geometry, true);
}

/// Magic, version and checksum; with `keys` also ids, commitment, HMAC and origin tag.
fn dress(slot: &mut [u8], keys: bool) {
    let len = slot.len();
    slot[..8].copy_from_slice(b"ENVLPFS\0");
    slot[8..10].copy_from_slice(&1u16.to_le_bytes());
    slot[12..16].copy_from_slice(&((len / PAGE) as u32).to_le_bytes());
    slot[len - 8..len - 4].fill(0);
    if keys {
        let file = file_keys();
        slot[48..64].copy_from_slice(&sequence::<16>(VOLUME_ID));
        slot[64..96].copy_from_slice(&sequence::<32>(FILE_ID));
        slot[96..128].copy_from_slice(&file.commitment());
        let message = message(slot);
        slot[len - 72..len - 40].copy_from_slice(&file.header_mac(&message));
        slot[len - 40..len - 8].copy_from_slice(&hmac_sha256(&volume_keys().origin, &[&message]));
    }
    let crc = crc32fast::hash(&slot[..len - 4]);
    slot[len - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// The authenticated message by `doc/FORMAT.md`, as far as the TLVs can be walked.
fn message(slot: &[u8]) -> Vec<u8> {
    let mut message = slot[..192].to_vec();
    let mut rest = &slot[192..slot.len() - 72];
    while rest.len() >= 4 {
        let kind = u16::from_le_bytes([rest[0], rest[1]]);
        let end = 4 + usize::from(u16::from_le_bytes([rest[2], rest[3]]));
        if kind == 0 || end > rest.len() {
            break;
        }
        if kind & 0x4000 != 0 {
            message.extend_from_slice(&rest[..end]);
        } else if kind == 0x8002 {
            message.extend_from_slice(&rest[..2]);
            message.extend_from_slice(rest[4..end].get(..32).unwrap_or_default());
        }
        rest = &rest[end..];
    }
    message
}

/// Whatever the bytes: strangers' keys verify nothing, what `genuine` bytes say is verified by their own, and what was read
/// can be written and read again.
fn check_slot(slot: &[u8], geometry: Geometry, genuine: bool) {
    let parse = || Unverified::parse(slot, geometry);
    let Ok(parsed) = parse() else { return };
    let claims = parsed.claims().clone();
    assert!(!is_hole(slot) && slot.len() == geometry.slot_len());
    assert!(claims.size_floor <= geometry.max_size() && claims.sealed_size <= geometry.max_size());
    let names: usize = claims.slots.iter().map(|s| s.provider.len() + s.key_ref.len() + s.blob.len()).sum();
    assert!(names <= slot.len(), "a slot says more than it holds");
    let printable = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    assert!(claims.slots.iter().all(|s| printable(&s.provider) && printable(&s.key_ref)));

    let stranger = FileKeys::derive(&claims.file_id, &Secret32::from_bytes([0x99; 32]));
    assert_eq!(parsed.verify(&stranger, None), Err(HeaderError::Auth));
    let (keys, origin) = (file_keys(), volume_keys().origin);
    let verified = parse().and_then(|parsed| parsed.verify(&keys, Some(&origin)));
    if genuine {
        assert_eq!(verified.as_ref(), Ok(&claims));
    } else if verified.is_err() {
        assert!(matches!(verified, Err(HeaderError::Auth | HeaderError::Origin)));
    }

    // TLVs that this version does not know are lost, so the bytes may differ; what they say may not.
    let again = FileHeader { commitment: keys.commitment(), ..claims };
    match again.encode(&keys, Some(&origin), geometry) {
        Ok(bytes) => {
            let back = Unverified::parse(&bytes, geometry).and_then(|parsed| parsed.verify(&keys, Some(&origin)));
            assert_eq!(back, Ok(again));
        }
        Err(e) => panic!("read and not written: {e}"),
    }
}

/// A block at an index: raw, or sealed with clear fields and plaintext of the fuzzer's choice.
fn opened_block(input: &[u8]) {
    let (how, rest) = choice(input);
    let Some((index, rest)) = rest.split_first_chunk() else { return };
    let index = u64::from_le_bytes(*index);
    let mut page = [0u8; PAGE];
    let len = rest.len().min(PAGE);
    page[..len].copy_from_slice(&rest[..len]);
    let peek = block::peek(&page);
    assert_eq!(peek.is_none(), is_hole(&page));
    let Some(peek) = peek else { return };
    assert!((1..=PLAIN as u16).contains(&peek.valid_len));
    let (keys, mut out) = (file_keys(), [0xAA; PLAIN]);
    let key = keys.block_key(peek.key_salt);
    if how & 1 == 0 {
        // The corpus holds the golden blocks, so some do open: then they are what sealing makes, byte for byte.
        match block::open(&key, index, &page, &mut out) {
            Ok(valid) => {
                let mut again = [0u8; PAGE];
                again[PAGE - PLAIN..].copy_from_slice(&out);
                let nonce = page[..12].try_into().expect("12 bytes");
                block::seal(&key, peek.key_salt, &nonce, index, valid, &mut again);
                assert_eq!(again, page);
            }
            Err(_) => assert!(is_hole(&out), "plaintext of a block that is not authentic"),
        }
        return;
    }
    let nonce = page[..12].try_into().expect("12 bytes");
    let plain: [u8; PLAIN] = page[PAGE - PLAIN..].try_into().expect("the rest of a page");
    block::seal(&key, peek.key_salt, &nonce, index, peek.valid_len, &mut page);
    assert_eq!(block::open(&key, index, &page, &mut out), Ok(peek.valid_len));
    assert_eq!(out, plain);
    assert!(block::open(&key, index ^ 1, &page, &mut out).is_err() && is_hole(&out));
    let at = usize::from(how >> 1) * 32 % PAGE;
    page[at] ^= 1;
    assert!(block::open(&key, index, &page, &mut out).is_err() && is_hole(&out));
}

/// Backing lengths and sizes.
fn length(input: &[u8]) {
    let (pages, rest) = choice(input);
    let geometry = Geometry { header_pages: 1 + u32::from(pages) % 64 };
    let Some((len, _)) = rest.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    match geometry.decode(len) {
        Ok(Length::Quiet { size }) => assert_eq!(geometry.quiet_len(size), len),
        Ok(Length::Growing { blocks }) => {
            assert_eq!(geometry.growing_len(blocks), len);
            let _ = growing_size(blocks, len as u16);
        }
        Ok(Length::Empty { header }) => assert_eq!(header, len > 0),
        Err(bad) => assert_eq!(geometry.clamp(bad) % PLAIN as u64, 0),
    }
    let size = len % (geometry.max_size() + 1);
    let backing = geometry.quiet_len(size);
    assert!(i64::try_from(backing).is_ok());
    if size > 0 {
        assert_eq!(geometry.decode(backing), Ok(Length::Quiet { size }));
    }
}

/// The volume file: as it is, or with a last line that authenticates it.
fn volume(input: &[u8]) {
    let (how, rest) = choice(input);
    let keys = volume_keys();
    let mut text = rest.to_vec();
    if how & 1 != 0 {
        let body = rest.strip_suffix(b"\n").unwrap_or(rest);
        let start = body.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        text = rest[..start].to_vec();
        let mac = hmac_sha256(&keys.config, &[&text]);
        text.extend_from_slice(format!("mac = \"{}\"\n", data_encoding::BASE64URL_NOPAD.encode(&mac)).as_bytes());
    }
    let Ok(parsed) = UnverifiedVolume::parse(&text) else { return };
    let claims = parsed.claims().clone();
    let stranger = VolumeKeys::derive(&claims.volume_id, &Secret32::from_bytes([0x99; 32]));
    assert!(parsed.clone().verify(&stranger).is_err());
    if how & 1 != 0 {
        assert_eq!(parsed.verify(&keys), Ok(claims.clone()));
    }
    same_again(&claims, &keys);
}

fn same_again(config: &VolumeConfig, keys: &VolumeKeys) {
    let text = config.encode(keys);
    if text.len() > crate::format::volume::VOLUME_FILE_MAX {
        // Escapes took the room; a writer checks this.
        return;
    }
    let back = UnverifiedVolume::parse(&text).and_then(|volume| volume.verify(keys));
    assert_eq!(back.as_ref(), Ok(config));
}
