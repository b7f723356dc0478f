//! Tests of the header slot: round trips, tampering, hostile TLVs, rewrapping without a key.

use proptest::prelude::*;

use super::*;
use crate::format::geometry::PAGE;

const ONE: Geometry = Geometry { header_pages: 1 };

fn keys() -> FileKeys {
    FileKeys::derive(&[3; 32], &Secret32::from_bytes([4; 32]))
}

fn origin() -> Secret32 {
    Secret32::from_bytes([5; 32])
}

fn slot(n: u8) -> CmkSlot {
    CmkSlot { provider: "keyfile".into(), key_ref: format!("key-{n}"), blob: vec![n; 60], commitment: [0x80 | n; 32] }
}

fn header() -> FileHeader {
    FileHeader {
        volume_id: [2; 16],
        file_id: [3; 32],
        suite: SUITE_AES256_GCM,
        generation: 7,
        size_floor: 123_456,
        sealed_size: 0,
        flags: FLAG_HOLES_OK,
        commitment: keys().commitment(),
        previous_commitment: [0; 32],
        wrapped_dek: Some(WrappedDek { branch_id: [6; 16], salt: [7; 16], wrapped: [8; 60] }),
        slots: vec![slot(1), slot(2)],
    }
}

fn encoded(header: &FileHeader) -> Vec<u8> {
    header.encode(&keys(), Some(&origin()), ONE).unwrap()
}

fn fix_crc(slot: &mut [u8]) {
    let at = slot.len() - 4;
    let crc = crc32fast::hash(&slot[..at]);
    slot[at..].copy_from_slice(&crc.to_le_bytes());
}

/// What a reader with all keys makes of a slot.
fn read(slot: &[u8]) -> Result<FileHeader, HeaderError> {
    Unverified::parse(slot, ONE)?.verify(&keys(), Some(&origin()))
}

/// A slot whose TLV area is `tlvs`, with MAC, origin tag and CRC as a key holder would make them.
fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    let mut bytes = encoded(&FileHeader { wrapped_dek: None, slots: vec![], ..header() });
    bytes[TLVS..TLVS + tlvs.len()].copy_from_slice(tlvs);
    if let Ok(split) = split_tlvs(&bytes[TLVS..PAGE - TRAILER]) {
        let message = authenticated_message(&bytes[..TLVS], &split);
        bytes[PAGE - TRAILER..][..32].copy_from_slice(&keys().header_mac(&message));
        bytes[PAGE - TRAILER + TRAILER_ORIGIN..][..32].copy_from_slice(&hmac_sha256(&origin(), &[&message]));
    }
    fix_crc(&mut bytes);
    bytes
}

#[test]
fn round_trips() {
    let per_file = FileHeader { wrapped_dek: None, slots: vec![slot(1)], ..header() };
    let bare = FileHeader { wrapped_dek: None, slots: vec![], flags: 0, size_floor: 0, ..header() };
    let sealed = FileHeader { flags: FLAG_SEALED, sealed_size: 99, ..header() };
    let rekeying = FileHeader { flags: FLAG_REKEYING, previous_commitment: [1; 32], ..header() };
    for h in [header(), per_file, bare, sealed, rekeying] {
        let bytes = encoded(&h);
        assert_eq!(bytes.len(), PAGE);
        assert_eq!(read(&bytes), Ok(h));
    }
}

#[test]
fn larger_slots() {
    let big = FileHeader { slots: vec![CmkSlot { blob: vec![9; 6144], ..slot(1) }], ..header() };
    assert_eq!(big.encode(&keys(), None, ONE), Err(HeaderError::TooLarge { needed: 2, have: 1 }));
    let two = Geometry { header_pages: 2 };
    let bytes = big.encode(&keys(), None, two).unwrap();
    assert_eq!(bytes.len(), 2 * PAGE);
    assert_eq!(claimed_pages(&bytes[..PAGE]), Some(2));
    assert_eq!(Unverified::parse(&bytes, two).unwrap().verify(&keys(), None), Ok(big));
    assert!(matches!(Unverified::parse(&bytes[..PAGE], ONE), Err(HeaderError::Checksum)));
    assert!(matches!(Unverified::parse(&bytes, ONE), Err(HeaderError::Malformed(_))));
}

/// The slot is filled to its last byte, and one byte more does not fit.
#[test]
fn the_last_byte_of_a_slot_is_usable() {
    let filled = |blob: usize| FileHeader { slots: vec![CmkSlot { blob: vec![1; blob], ..slot(1) }], ..header() };
    let used = filled(0).encode_tlvs().unwrap().len();
    let room = PAGE - TLVS - TRAILER - used;
    assert_eq!(read(&encoded(&filled(room))), Ok(filled(room)));
    assert!(matches!(filled(room + 1).encode(&keys(), None, ONE), Err(HeaderError::TooLarge { needed: 2, have: 1 })));
    // With one to three bytes left there is no room for a TLV header, only for zeros.
    for left in 1..4 {
        assert_eq!(read(&encoded(&filled(room - left))), Ok(filled(room - left)));
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let good = encoded(&header());
    for at in 0..PAGE {
        let mut torn = good.clone();
        torn[at] ^= 0x10;
        assert!(Unverified::parse(&torn, ONE).is_err(), "byte {at} passed the checksum");
    }
}

/// With the CRC fixed up, nothing but what a rewrap may change gets past the MACs.
#[test]
fn every_flipped_byte_with_a_good_checksum_is_refused_outside_the_blobs() {
    let h = header();
    let good = encoded(&h);
    let mut accepted = Vec::new();
    for at in 0..PAGE - 4 {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        fix_crc(&mut bad);
        if let Ok(read) = read(&bad) {
            let same = |h: &FileHeader| FileHeader { slots: vec![], ..h.clone() };
            assert_eq!(same(&read), same(&h), "byte {at}");
            for (a, b) in read.slots.iter().zip(&h.slots) {
                assert_eq!(a.commitment, b.commitment, "byte {at}");
            }
            accepted.push(at);
        }
    }
    // Two slots, each: provider 7, key reference 5, blob 60; a few flips leave the alphabet of the names. And the first
    // two bytes of the padding, which become an unknown, empty, non-critical TLV.
    assert!(accepted.len() <= 2 * (7 + 5 + 60) + 2, "{}", accepted.len());
    assert!(accepted.len() >= 2 * 60);
}

#[test]
fn empty_foreign_and_future_slots_have_names() {
    assert!(matches!(Unverified::parse(&[0; PAGE], ONE), Err(HeaderError::Empty)));
    assert!(matches!(Unverified::parse(&[1; PAGE], ONE), Err(HeaderError::Magic)));
    for len in [0, 1, PAGE - 1, PAGE + 1] {
        assert!(matches!(Unverified::parse(&vec![0; len], ONE), Err(HeaderError::Malformed(_))), "{len}");
    }
    let none = Geometry { header_pages: 0 };
    assert!(matches!(Unverified::parse(&[], none), Err(HeaderError::Malformed(_))));
    let mut future = encoded(&header());
    future[VERSION] = 2;
    assert!(matches!(Unverified::parse(&future, ONE), Err(HeaderError::Version(2))));
    assert_eq!(claimed_pages(&future), None);
    let mut suite = encoded(&header());
    suite[SUITE] = 9;
    fix_crc(&mut suite);
    assert!(matches!(Unverified::parse(&suite, ONE), Err(HeaderError::Suite(9))));
}

#[test]
fn claimed_pages_are_bounded() {
    let mut bytes = encoded(&header());
    assert_eq!(claimed_pages(&bytes), Some(1));
    for (pages, expected) in [(0, None), (MAX_HEADER_PAGES, Some(MAX_HEADER_PAGES)), (MAX_HEADER_PAGES + 1, None)] {
        bytes[HEADER_PAGES..HEADER_PAGES + 4].copy_from_slice(&pages.to_le_bytes());
        assert_eq!(claimed_pages(&bytes), expected);
    }
    assert_eq!(claimed_pages(&bytes[..100]), None);
    assert_eq!(claimed_pages(&[]), None);
}

#[test]
fn wrong_keys_and_wrong_origin() {
    let bytes = encoded(&header());
    let parsed = || Unverified::parse(&bytes, ONE).unwrap();
    let other = FileKeys::derive(&[3; 32], &Secret32::from_bytes([9; 32]));
    assert_eq!(parsed().verify(&other, None), Err(HeaderError::Auth));
    assert_eq!(parsed().verify(&keys(), Some(&Secret32::from_bytes([9; 32]))), Err(HeaderError::Origin));
    assert_eq!(parsed().verify(&keys(), None), Ok(header()));
    // Written where the volume key was unknown: the zero tag is no origin.
    let unknown = header().encode(&keys(), None, ONE).unwrap();
    assert_eq!(Unverified::parse(&unknown, ONE).unwrap().verify(&keys(), Some(&origin())), Err(HeaderError::Origin));
}

/// Someone without any key replaces provider, reference and blob, and fixes the CRC: the service's own re-encryption.
#[test]
fn a_rewrap_needs_no_key() {
    let mut rewrapped = header();
    for slot in &mut rewrapped.slots {
        (slot.provider, slot.key_ref, slot.blob) = ("awskms".into(), "arn:aws:kms:x".into(), vec![0xbb; 184]);
    }
    let mut bytes = encoded(&header());
    let tlvs = rewrapped.encode_tlvs().unwrap();
    bytes[TLVS..PAGE - TRAILER].fill(0);
    bytes[TLVS..TLVS + tlvs.len()].copy_from_slice(&tlvs);
    fix_crc(&mut bytes);
    assert_eq!(read(&bytes), Ok(rewrapped));
}

/// What a rewrap may not do: other commitments, more slots, fewer, another order, another wrapped DEK.
#[test]
fn the_set_of_wrapped_keys_is_authenticated() {
    let graft = |changed: FileHeader| {
        let mut bytes = encoded(&header());
        let tlvs = changed.encode_tlvs().unwrap();
        bytes[TLVS..PAGE - TRAILER].fill(0);
        bytes[TLVS..TLVS + tlvs.len()].copy_from_slice(&tlvs);
        fix_crc(&mut bytes);
        read(&bytes)
    };
    let (one, two) = (slot(1), slot(2));
    let dek = WrappedDek { branch_id: [6; 16], salt: [7; 16], wrapped: [9; 60] };
    assert_eq!(graft(header()), Ok(header()));
    for changed in [
        FileHeader { slots: vec![one.clone()], ..header() },
        FileHeader { slots: vec![two.clone(), one.clone()], ..header() },
        FileHeader { slots: vec![one.clone(), two.clone(), slot(3)], ..header() },
        FileHeader { slots: vec![one.clone(), CmkSlot { commitment: [0; 32], ..two.clone() }], ..header() },
        FileHeader { slots: vec![], ..header() },
        FileHeader { wrapped_dek: None, ..header() },
        FileHeader { wrapped_dek: Some(dek), ..header() },
    ] {
        assert_eq!(graft(changed), Err(HeaderError::Auth));
    }
}

#[test]
fn tlvs_of_other_versions() {
    let tlv = |kind: u16, body: &[u8]| {
        [&kind.to_le_bytes()[..], &u16::try_from(body.len()).unwrap().to_le_bytes(), body].concat()
    };
    let bare = FileHeader { wrapped_dek: None, slots: vec![], ..header() };
    assert_eq!(read(&with_tlvs(&tlv(0x0123, b"later"))), Ok(bare.clone()));
    assert_eq!(read(&with_tlvs(&tlv(0x4123, b"later"))), Ok(bare));
    for critical in [0x8123, 0xc123, 0xffff] {
        assert!(matches!(read(&with_tlvs(&tlv(critical, b"later"))), Err(HeaderError::Malformed(_))), "{critical:x}");
    }
    // Authenticated even where unknown: a changed or removed body is noticed.
    let mut changed = with_tlvs(&tlv(0x4123, b"later"));
    changed[TLVS + TLV_HEADER] ^= 1;
    fix_crc(&mut changed);
    assert_eq!(read(&changed), Err(HeaderError::Auth));
    changed[TLVS..TLVS + 9].fill(0);
    fix_crc(&mut changed);
    assert_eq!(read(&changed), Err(HeaderError::Auth));
    let mut changed = with_tlvs(&tlv(0x0123, b"later"));
    changed[TLVS + TLV_HEADER] ^= 1;
    fix_crc(&mut changed);
    assert!(read(&changed).is_ok());
}

#[test]
fn malformed_tlvs() {
    let malformed = |tlvs: &[u8]| {
        let got = read(&with_tlvs(tlvs));
        assert!(matches!(got, Err(HeaderError::Malformed(_))), "{got:?}");
    };
    let dek = header().encode_tlvs().unwrap()[..TLV_HEADER + 92].to_vec();
    let cmk = |target: u8, provider: &str, key_ref: &str| {
        let mut out = Vec::new();
        let body = CmkSlotBody { commitment: [1; 32], target, provider, key_ref, blob: b"blob" };
        push_tlv(&mut out, TLV_CMK_SLOT, &body).unwrap();
        out
    };
    assert!(read(&with_tlvs(&dek)).is_ok());
    assert!(read(&with_tlvs(&cmk(TARGET_DEK, "keyfile", "k"))).is_ok());
    malformed(&[dek.clone(), dek.clone()].concat());
    malformed(&[dek.clone(), cmk(TARGET_DEK, "keyfile", "k")].concat());
    malformed(&cmk(TARGET_BRANCH, "keyfile", "k"));
    malformed(&cmk(7, "keyfile", "k"));
    malformed(&cmk(TARGET_DEK, "", "k"));
    malformed(&cmk(TARGET_DEK, "Keyfile", "k"));
    malformed(&cmk(TARGET_DEK, &"k".repeat(33), "k"));
    malformed(&cmk(TARGET_DEK, "keyfile", ""));
    malformed(&cmk(TARGET_DEK, "keyfile", "a\u{1b}[31mred"));
    malformed(&cmk(TARGET_DEK, "keyfile", &"k".repeat(2049)));
    // Longer than the area; longer and shorter than its content; a terminator before the end.
    malformed(&[0x01, 0xc0, 0xff, 0xff]);
    malformed(&[&[0x01, 0xc0, 93, 0][..], &dek[TLV_HEADER..], &[0]].concat());
    malformed(&[&[0x01, 0xc0, 91, 0][..], &dek[TLV_HEADER..][..91]].concat());
    malformed(&[0, 0, 0, 0, 1]);
    malformed(&[0, 0, 1, 0]);
    // Inner lengths that claim more than there is, up to all of memory.
    for claimed in [5u64, 4096, 65_536, u64::from(u32::MAX), u64::MAX] {
        let mut bad = cmk(TARGET_DEK, "keyfile", "k");
        let at = bad.len() - 4 - 8;
        bad[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
        malformed(&bad);
    }
    // Names must be UTF-8.
    let mut bad = cmk(TARGET_DEK, "keyfile", "key");
    let at = bad.len() - 4 - 8 - 1;
    bad[at] = 0xff;
    malformed(&bad);
}

#[test]
fn headers_that_contradict_themselves_are_neither_written_nor_read() {
    for bad in [
        FileHeader { suite: 2, ..header() },
        FileHeader { flags: 8, ..header() },
        FileHeader { sealed_size: 1, ..header() },
        FileHeader { previous_commitment: [1; 32], ..header() },
        FileHeader { size_floor: u64::MAX, ..header() },
        FileHeader { size_floor: ONE.max_size() + 1, ..header() },
        FileHeader { flags: FLAG_SEALED, sealed_size: u64::MAX, ..header() },
        FileHeader { slots: vec![CmkSlot { provider: "a b".into(), ..slot(1) }], ..header() },
        FileHeader { slots: vec![CmkSlot { blob: vec![0; 70_000], ..slot(1) }], ..header() },
    ] {
        assert!(bad.encode(&keys(), None, ONE).is_err(), "{bad:?}");
    }
    for (at, value) in [(FLAGS, 0x80), (RESERVED_A, 1), (RESERVED_B + 31, 1), (PAGE - TRAILER + TRAILER_RESERVED, 1)] {
        let mut bytes = encoded(&header());
        bytes[at] |= value;
        fix_crc(&mut bytes);
        assert!(matches!(read(&bytes), Err(HeaderError::Malformed(_))), "byte {at}");
    }
}

#[test]
fn the_largest_floor_is_accepted() {
    let h = FileHeader { size_floor: ONE.max_size(), ..header() };
    assert_eq!(read(&encoded(&h)), Ok(h));
}

prop_compose! {
    fn any_slot()(
        provider in "[a-z0-9-]{1,32}",
        key_ref in "[!-~é]{1,80}",
        blob in proptest::collection::vec(any::<u8>(), 0..400),
        commitment in any::<[u8; 32]>(),
    ) -> CmkSlot {
        CmkSlot { provider, key_ref, blob, commitment }
    }
}

prop_compose! {
    fn any_header()(
        ids in any::<([u8; 16], [u8; 32], [u8; 16], [u8; 16])>(),
        numbers in (any::<u64>(), 0..=ONE.max_size(), 0..=ONE.max_size()),
        flags in 0u32..8,
        previous in any::<[u8; 32]>(),
        wrapped in proptest::option::of(proptest::collection::vec(any::<u8>(), 60)),
        slots in proptest::collection::vec(any_slot(), 0..5),
    ) -> FileHeader {
        let (volume_id, file_id, branch_id, salt) = ids;
        let (generation, size_floor, sealed_size) = numbers;
        FileHeader {
            volume_id,
            file_id,
            suite: SUITE_AES256_GCM,
            generation,
            size_floor,
            sealed_size: if flags & FLAG_SEALED != 0 { sealed_size } else { 0 },
            flags,
            commitment: keys().commitment(),
            previous_commitment: if flags & FLAG_REKEYING != 0 { previous } else { [0; 32] },
            wrapped_dek: wrapped.map(|w| WrappedDek { branch_id, salt, wrapped: w.try_into().unwrap() }),
            slots,
        }
    }
}

proptest! {
    #[test]
    fn any_header_round_trips(h in any_header()) {
        prop_assert_eq!(read(&encoded(&h)), Ok(h));
    }

    /// Corpus 18: random bytes, and valid slots with random changes and the CRC fixed up. Whatever parses and verifies
    /// has the authenticated content of the original.
    #[test]
    fn mutated_slots_parse_or_fail(
        h in any_header(),
        changes in proptest::collection::vec((0..PAGE - 4, any::<u8>()), 1..12),
    ) {
        let mut bytes = encoded(&h);
        for (at, value) in changes {
            bytes[at] = value;
        }
        fix_crc(&mut bytes);
        if let Ok(read) = read(&bytes) {
            prop_assert_eq!(&read.wrapped_dek, &h.wrapped_dek);
            prop_assert_eq!((read.size_floor, read.flags, read.file_id), (h.size_floor, h.flags, h.file_id));
            let commitments = |h: &FileHeader| h.slots.iter().map(|s| s.commitment).collect::<Vec<_>>();
            prop_assert_eq!(commitments(&read), commitments(&h));
        }
    }

    /// Random TLV areas behind an otherwise valid fixed part.
    #[test]
    fn random_tlv_areas(area in proptest::collection::vec(any::<u8>(), 1..600), kinds in any::<bool>()) {
        let mut area = area;
        if kinds {
            // Make known types likely.
            let kind = if area[0] & 1 == 0 { TLV_WRAPPED_DEK } else { TLV_CMK_SLOT };
            area.splice(..0, kind.to_le_bytes());
        }
        let _ = read(&with_tlvs(&area));
    }

    #[test]
    fn random_slots(bytes in proptest::collection::vec(any::<u8>(), PAGE), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic {
            bytes[..VERSION].copy_from_slice(MAGIC);
            bytes[VERSION..SUITE].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            bytes[HEADER_PAGES..FLAGS].copy_from_slice(&1u32.to_le_bytes());
            fix_crc(&mut bytes);
        }
        prop_assert!(read(&bytes).is_err());
        let _ = claimed_pages(&bytes);
    }
}
