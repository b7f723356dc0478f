//! Tests of the key tree: branches, slots, single flight, allow-list.

use super::*;
use crate::format::{geometry::Geometry, volume::key_commitment};
use crate::keys::test_cmk::{Mood, TestCmk};
use std::sync::{
    Barrier,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(feature = "shuttle")]
mod model;

const VOLUME: VolumeId = [0x11; 16];
const GEOMETRY: Geometry = Geometry { header_pages: 4 };
const BRANCH_POLICY: KeyPolicy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 3600, branch_max_files: 1 << 20 };
const PER_FILE: KeyPolicy = KeyPolicy { mode: KeyMode::PerFile, ..BRANCH_POLICY };

fn cmk(name: &str) -> Arc<TestCmk> {
    Arc::new(TestCmk::new(name))
}

fn ring_with(cmks: &[&Arc<TestCmk>], policy: KeyPolicy, branch: Option<BranchRecord>) -> Keyring {
    let cmks = cmks.iter().map(|&cmk| Guard::new(cmk.clone(), OutagePolicy::default())).collect();
    Keyring::new(VOLUME, cmks, policy, None, branch)
}

fn ring(cmks: &[&Arc<TestCmk>]) -> Keyring {
    ring_with(cmks, BRANCH_POLICY, None)
}

/// The header as a reader gets it.
fn stored(header: &FileHeader, keys: &FileKeys) -> Unverified {
    let bytes = header.encode(keys, None, GEOMETRY).unwrap();
    Unverified::parse(&bytes, GEOMETRY).unwrap()
}

fn new_file(ring: &Keyring) -> (FileHeader, FileKeys) {
    let new = ring.create(&None).unwrap();
    (new.header(VOLUME), new.keys)
}

fn opens(ring: &Keyring, header: &FileHeader, keys: &FileKeys) -> Result<(), KeyError> {
    let opened = ring.open(&stored(header, keys))?;
    assert_eq!(opened.keys.commitment(), keys.commitment());
    stored(header, keys).verify(&opened.keys, None).unwrap();
    Ok(())
}

#[test]
fn one_generate_call_serves_many_files_and_one_unwrap_call_reads_them() {
    let cmk = cmk("a");
    let writer = ring(&[&cmk]);
    let files: Vec<_> = (0..20).map(|_| new_file(&writer)).collect();
    assert_eq!(cmk.calls(), (1, 0, 0));
    for (header, keys) in &files {
        opens(&writer, header, keys).unwrap();
    }
    assert_eq!(cmk.calls(), (1, 0, 0));
    let ids: std::collections::HashSet<_> = files.iter().map(|(header, _)| header.file_id).collect();
    assert_eq!(ids.len(), files.len());

    let reader = ring(&[&cmk]);
    for (header, keys) in &files {
        opens(&reader, header, keys).unwrap();
    }
    assert_eq!(cmk.calls(), (1, 0, 1));
    let branch = writer.current_branch().unwrap();
    let expected = EncryptionContext::for_branch(&VOLUME, &branch.id);
    assert!(cmk.contexts.lock().iter().all(|context| *context == expected));
    assert_eq!(expected.0[0], ("envelopefs:volume-id", "11".repeat(16)));
}

#[test]
fn a_recorded_branch_is_used_again_after_a_remount() {
    let cmk = cmk("a");
    let first = ring(&[&cmk]);
    assert_eq!(first.current_branch(), None);
    new_file(&first);
    let record = first.current_branch().unwrap();

    let second = ring_with(&[&cmk], BRANCH_POLICY, Some(record.clone()));
    assert_eq!(second.current_branch().as_ref(), Some(&record));
    assert_eq!(cmk.calls(), (1, 0, 0));
    let (header, keys) = new_file(&second);
    new_file(&second);
    assert_eq!(cmk.calls(), (1, 0, 1));
    assert_eq!(header.wrapped_dek.as_ref().unwrap().branch_id, record.id);
    opens(&first, &header, &keys).unwrap();
}

#[test]
fn a_recorded_branch_that_does_not_open_is_replaced_unless_it_might_open_later() {
    let cmk = cmk("a");
    let first = ring(&[&cmk]);
    new_file(&first);
    let good = first.current_branch().unwrap();
    let mut broken = good.clone();
    broken.slots[0].blob[20] ^= 1;
    let second = ring_with(&[&cmk], BRANCH_POLICY, Some(broken.clone()));
    new_file(&second);
    assert_ne!(second.current_branch().unwrap().id, broken.id);

    for mood in [Mood::Unreachable, Mood::Refuses] {
        *cmk.mood.lock() = mood;
        let third = ring_with(&[&cmk], BRANCH_POLICY, Some(good.clone()));
        assert!(third.create(&None).is_err());
        *cmk.mood.lock() = Mood::Works;
        new_file(&third);
        assert_eq!(third.current_branch().unwrap().id, good.id);
    }
}

#[test]
fn a_branch_is_replaced_after_its_last_file_and_the_hook_comes_first() {
    let cmk = cmk("a");
    let ring = Arc::new(ring_with(&[&cmk], KeyPolicy { branch_max_files: 3, ..BRANCH_POLICY }, None));
    let persisted: Arc<Mutex<Vec<BranchRecord>>> = Arc::default();
    let (seen, inner) = (persisted.clone(), Arc::downgrade(&ring));
    ring.on_new_branch(Box::new(move |group, record| {
        assert_eq!(*group, None);
        // Not yet current: nothing hangs on it, and asking does not deadlock.
        let current = inner.upgrade().unwrap().current_branch();
        assert_ne!(current.map(|c| c.id), Some(record.id));
        seen.lock().push(record.clone());
    }));
    for n in 0..10 {
        let branch_id = ring.create(&None).unwrap().wrapped_dek.unwrap().branch_id;
        let persisted = persisted.lock();
        assert_eq!(persisted.len(), n / 3 + 1);
        assert_eq!(persisted.last().unwrap().id, branch_id);
    }
    assert_eq!(cmk.calls(), (4, 0, 0));
    assert_eq!(ring.current_branch().as_ref(), persisted.lock().last());
}

#[test]
fn an_old_branch_is_replaced_and_so_is_one_from_the_future() {
    let cmk = cmk("a");
    let first = ring(&[&cmk]);
    new_file(&first);
    let mut record = first.current_branch().unwrap();
    for created in [unix_now() - 3601, unix_now() + 10 * 24 * 3600, i64::MIN, i64::MAX] {
        record.created = created;
        let ring = ring_with(&[&cmk], BRANCH_POLICY, Some(record.clone()));
        let (_, _, unwrapped) = cmk.calls();
        new_file(&ring);
        assert_ne!(ring.current_branch().unwrap().id, record.id);
        // The old key was not needed.
        assert_eq!(cmk.calls().2, unwrapped);
    }
}

#[test]
fn a_cmk_that_fails_leaves_the_previous_branch_in_use() {
    let (a, b) = (cmk("a"), cmk("b"));
    let ring = ring_with(&[&a, &b], KeyPolicy { branch_max_files: 1, ..BRANCH_POLICY }, None);
    new_file(&ring);
    let first = ring.current_branch().unwrap();
    *b.mood.lock() = Mood::Unreachable;
    for _ in 0..5 {
        let (header, keys) = new_file(&ring);
        assert_eq!(header.wrapped_dek.as_ref().unwrap().branch_id, first.id);
        opens(&ring, &header, &keys).unwrap();
    }
    // Tried once, then left alone for a while; told once.
    assert_eq!((a.calls(), b.calls()), ((2, 0, 0), (0, 2, 0)));
    assert!(ring.growing.lock().of(&None).warned);
    *b.mood.lock() = Mood::Works;
    ring.growing.lock().of(&None).retry_at = None;
    new_file(&ring);
    assert_ne!(ring.current_branch().unwrap().id, first.id);
    assert!(!ring.growing.lock().of(&None).warned);
}

#[test]
fn without_a_previous_branch_every_cmk_must_answer() {
    let (a, b) = (cmk("a"), cmk("b"));
    let ring = ring(&[&a, &b]);
    *b.mood.lock() = Mood::Unreachable;
    assert!(matches!(ring.create(&None), Err(KeyError::Unreachable { .. })));
    assert_eq!(ring.current_branch(), None);
    *b.mood.lock() = Mood::Works;
    assert_eq!(new_file(&ring).0.slots.len(), 2);
}

#[test]
fn an_overdue_branch_from_the_last_mount_is_revived_where_no_new_one_can_be_made() {
    let (a, b) = (cmk("a"), cmk("b"));
    let first = ring(&[&a, &b]);
    new_file(&first);
    let mut record = first.current_branch().unwrap();
    record.created -= 7200;
    *b.mood.lock() = Mood::Unreachable;
    let second = ring_with(&[&a, &b], BRANCH_POLICY, Some(record.clone()));
    let (header, keys) = new_file(&second);
    assert_eq!(header.wrapped_dek.as_ref().unwrap().branch_id, record.id);
    opens(&first, &header, &keys).unwrap();
}

#[test]
fn a_new_branch_never_locks_out_a_cmk_of_the_old_one_nor_leaves_out_a_configured_one() {
    let (a, b) = (cmk("a"), cmk("b"));
    let both = ring(&[&a, &b]);
    new_file(&both);
    let mut record = both.current_branch().unwrap();
    record.created -= 7200;
    let only_a = ring_with(&[&a], BRANCH_POLICY, Some(record.clone()));
    assert_eq!(new_file(&only_a).0.wrapped_dek.unwrap().branch_id, record.id);

    let single = ring(&[&a]);
    new_file(&single);
    let extended = ring_with(&[&a, &b], BRANCH_POLICY, single.current_branch());
    let (header, keys) = new_file(&extended);
    assert_eq!(header.slots.len(), 2);
    opens(&ring(&[&b]), &header, &keys).unwrap();

    // A volume whose CMKs were all exchanged gets a new branch.
    let c = cmk("c");
    let moved = ring_with(&[&c], BRANCH_POLICY, Some(record));
    assert_eq!(new_file(&moved).0.slots[0].key_ref, "c");
}

#[test]
fn per_file_mode_asks_the_first_cmk_for_each_file() {
    let (a, b) = (cmk("a"), cmk("b"));
    let writer = ring_with(&[&a, &b], PER_FILE, None);
    let files: Vec<_> = (0..3).map(|_| new_file(&writer)).collect();
    assert_eq!((a.calls(), b.calls()), ((3, 0, 0), (0, 3, 0)));
    assert_eq!(a.contexts.lock()[0], EncryptionContext::for_file(&VOLUME, &files[0].0.file_id));
    assert!(files.iter().all(|(header, _)| header.wrapped_dek.is_none()));
    // The header says how it is read, not the policy; either CMK will do.
    for reader in [ring(&[&a]), ring(&[&b]), ring_with(&[&a, &b], PER_FILE, None)] {
        for (header, keys) in &files {
            opens(&reader, header, keys).unwrap();
        }
    }
    // Another file's slots: the context does not match.
    let (header, keys) = &files[0];
    let header = FileHeader { slots: files[1].0.slots.clone(), ..header.clone() };
    assert!(matches!(opens(&writer, &header, keys), Err(KeyError::BadBlob { .. })));
    assert_eq!(writer.current_branch(), None);
}

#[test]
fn any_cmk_opens_a_file_and_the_answers_are_ranked() {
    let (a, b) = (cmk("a"), cmk("b"));
    let (header, keys) = new_file(&ring(&[&a, &b]));
    opens(&ring(&[&a]), &header, &keys).unwrap();
    opens(&ring(&[&b]), &header, &keys).unwrap();
    *a.mood.lock() = Mood::Unreachable;
    opens(&ring(&[&a, &b]), &header, &keys).unwrap();
    *b.mood.lock() = Mood::Refuses;
    assert!(matches!(opens(&ring(&[&a, &b]), &header, &keys), Err(KeyError::Refused { .. })));
    assert!(matches!(opens(&ring(&[&a]), &header, &keys), Err(KeyError::Unreachable { .. })));
    // Nothing negative is kept.
    *a.mood.lock() = Mood::Works;
    opens(&ring(&[&a, &b]), &header, &keys).unwrap();
}

#[test]
fn a_bad_slot_is_skipped_and_none_left_is_a_bad_blob() {
    let (a, b) = (cmk("a"), cmk("b"));
    let (mut header, keys) = new_file(&ring(&[&a, &b]));
    header.slots[0].blob[30] ^= 1;
    opens(&ring(&[&a, &b]), &header, &keys).unwrap();
    header.slots[1].commitment[0] ^= 1;
    assert!(matches!(opens(&ring(&[&a, &b]), &header, &keys), Err(KeyError::BadBlob { .. })));
}

/// A header whose first slot is a well-made one for another key under the same branch id: what anybody can write for
/// a public-key CMK.
fn with_planted_slot(cmk: &TestCmk, header: &FileHeader) -> FileHeader {
    let other = Secret32::random();
    let context = EncryptionContext::for_branch(&VOLUME, &header.wrapped_dek.as_ref().unwrap().branch_id);
    let mut forged = header.clone();
    let slot =
        CmkSlot { blob: cmk.plant(&other, &context), commitment: key_commitment(&other), ..header.slots[0].clone() };
    forged.slots.insert(0, slot);
    forged
}

#[test]
fn a_planted_key_under_a_known_branch_id_neither_opens_nor_poisons_the_cache() {
    let a = cmk("a");
    let (header, keys) = new_file(&ring(&[&a]));
    let both = with_planted_slot(&a, &header);
    let mut alone = both.clone();
    alone.slots.truncate(1);
    let reader = ring(&[&a]);
    for _ in 0..2 {
        assert!(matches!(opens(&reader, &alone, &keys), Err(KeyError::BadBlob { .. })));
        opens(&reader, &both, &keys).unwrap();
        opens(&reader, &header, &keys).unwrap();
    }
    assert_eq!(a.calls().2, 2);

    // The same with the good key cached first.
    let reader = ring(&[&a]);
    opens(&reader, &header, &keys).unwrap();
    assert!(matches!(opens(&reader, &alone, &keys), Err(KeyError::BadBlob { .. })));
    opens(&reader, &both, &keys).unwrap();

    // A blob of the planted key that claims the commitment of the good one.
    let mut lying = alone.clone();
    lying.slots[0].commitment = header.slots[0].commitment;
    let reader = ring(&[&a]);
    assert!(matches!(opens(&reader, &lying, &keys), Err(KeyError::BadBlob { .. })));
    opens(&reader, &header, &keys).unwrap();
}

#[test]
fn a_wrapped_dek_of_another_file_or_branch_is_a_bad_blob() {
    let a = cmk("a");
    let ring = ring(&[&a]);
    let (header, keys) = new_file(&ring);
    let (other, _) = new_file(&ring);
    let transplanted = FileHeader { wrapped_dek: other.wrapped_dek.clone(), ..header.clone() };
    assert!(matches!(opens(&ring, &transplanted, &keys), Err(KeyError::BadBlob { .. })));

    let mut wrong_branch = header.clone();
    wrong_branch.wrapped_dek.as_mut().unwrap().branch_id[0] ^= 1;
    assert!(matches!(opens(&ring, &wrong_branch, &keys), Err(KeyError::BadBlob { .. })));

    let mut flipped = header.clone();
    flipped.wrapped_dek.as_mut().unwrap().wrapped[33] ^= 1;
    assert!(matches!(opens(&ring, &flipped, &keys), Err(KeyError::BadBlob { .. })));

    let mut commitment = header.clone();
    commitment.commitment[5] ^= 1;
    assert!(matches!(opens(&ring, &commitment, &keys), Err(KeyError::BadBlob { .. })));
}

#[test]
fn a_foreign_volume_and_a_planted_key_reference_make_no_provider_call() {
    let (a, b) = (cmk("a"), cmk("b"));
    let (header, keys) = new_file(&ring(&[&a]));
    let foreign = FileHeader { volume_id: [0x22; 16], ..header.clone() };
    let reader = ring(&[&a, &b]);
    assert!(matches!(opens(&reader, &foreign, &keys), Err(KeyError::BadBlob { .. })));

    let mut planted = header.clone();
    planted.slots[0].key_ref = "arn:aws:kms:somewhere".into();
    // Neither before nor after the branch key is in memory.
    for warm in [false, true] {
        if warm {
            opens(&reader, &header, &keys).unwrap();
        }
        let (a_before, b_before) = (a.calls(), b.calls());
        match opens(&reader, &planted, &keys) {
            Err(KeyError::NoCmk { named }) => assert_eq!(named, "test:arn:aws:kms:somewhere"),
            other => panic!("{other:?}"),
        }
        assert_eq!((a.calls(), b.calls()), (a_before, b_before));
    }
    planted.slots[0] = CmkSlot { provider: "other".into(), ..header.slots[0].clone() };
    assert!(matches!(opens(&ring(&[&a]), &planted, &keys), Err(KeyError::NoCmk { .. })));
    planted.slots.clear();
    if let Ok(bytes) = planted.encode(&keys, None, GEOMETRY)
        && let Ok(header) = Unverified::parse(&bytes, GEOMETRY)
    {
        assert!(matches!(ring(&[&a]).open(&header), Err(KeyError::NoCmk { .. })));
    }
    assert_eq!(a.calls().2, 1);
}

#[test]
fn a_header_full_of_slots_causes_few_calls() {
    let a = cmk("a");
    let (header, keys) = new_file(&ring(&[&a]));
    let mut crowded = header.clone();
    crowded.slots[0].blob[0] ^= 1;
    for n in 0..40 {
        let mut slot = crowded.slots[0].clone();
        slot.blob[1] = n;
        crowded.slots.push(slot);
    }
    assert!(matches!(opens(&ring(&[&a]), &crowded, &keys), Err(KeyError::BadBlob { .. })));
    assert_eq!(a.calls().2, 4);
}

#[test]
fn threads_that_open_files_of_one_branch_share_one_call() {
    let a = Arc::new(TestCmk::slow("a"));
    let writer = ring(&[&a]);
    let files: Vec<_> = (0..64).map(|_| new_file(&writer)).collect();
    let reader = ring(&[&a]);
    let start = Barrier::new(files.len());
    std::thread::scope(|scope| {
        for (header, keys) in &files {
            let (reader, start) = (&reader, &start);
            scope.spawn(move || {
                start.wait();
                opens(reader, header, keys).unwrap();
            });
        }
    });
    assert_eq!(a.calls(), (1, 0, 1));
}

#[test]
fn threads_that_create_files_share_one_new_branch() {
    let a = Arc::new(TestCmk::slow("a"));
    let ring = ring(&[&a]);
    let hooked = Arc::new(AtomicUsize::new(0));
    let count = hooked.clone();
    ring.on_new_branch(Box::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let start = Barrier::new(64);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                start.wait();
                let (header, keys) = new_file(&ring);
                opens(&ring, &header, &keys).unwrap();
            });
        }
    });
    assert_eq!((a.calls(), hooked.load(Ordering::SeqCst)), ((1, 0, 0), 1));
}

#[test]
fn a_panicking_hook_does_not_block_later_creates() {
    let a = cmk("a");
    let ring = ring(&[&a]);
    ring.on_new_branch(Box::new(|_, _| panic!("hook")));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ring.create(&None).is_ok())).is_err());
    ring.on_new_branch(Box::new(|_, _| {}));
    new_file(&ring);
}

#[test]
fn debug_shows_no_secret() {
    let a = cmk("a");
    let origin = Secret32::from_bytes([0xab; 32]);
    let ring = Keyring::new(VOLUME, vec![Guard::new(a, OutagePolicy::default())], BRANCH_POLICY, Some(origin), None);
    new_file(&ring);
    assert_eq!(format!("{ring:?}"), format!("Keyring {{ volume: {:?}, .. }}", "11".repeat(16)));
}
