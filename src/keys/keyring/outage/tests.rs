//! Tests of remote CMKs: nobody waits where he stands, one call for all, outages, revocation, healing.

use super::*;
use crate::format::geometry::Geometry;
use crate::keys::test_cmk::{Mood, TestCmk};
use std::sync::Barrier;

const VOLUME: VolumeId = [0x11; 16];
const GEOMETRY: Geometry = Geometry { header_pages: 4 };
const BRANCH: KeyPolicy = KeyPolicy { mode: KeyMode::Branch, branch_max_age: 3600, branch_max_files: 1 << 20 };
const PER_FILE: KeyPolicy = KeyPolicy { mode: KeyMode::PerFile, ..BRANCH };
const QUICK: OutagePolicy = OutagePolicy {
    deadline: Duration::from_millis(300),
    revalidate: Duration::from_secs(3600),
    max_stale: None,
    revoke: Revoke::Any,
};

fn remote(name: &str) -> Arc<TestCmk> {
    Arc::new(TestCmk::remote(name))
}

fn ring_with(cmks: &[&Arc<TestCmk>], policy: KeyPolicy, outage: OutagePolicy) -> Keyring {
    let cmks = cmks.iter().map(|&cmk| Guard::new(cmk.clone(), outage)).collect();
    Keyring::new(VOLUME, cmks, policy, None, None)
}

fn ring(cmks: &[&Arc<TestCmk>]) -> Keyring {
    ring_with(cmks, BRANCH, QUICK)
}

fn create(ring: &Keyring) -> Result<Unverified, KeyError> {
    let new = ring.patiently(|| ring.create(&None))?;
    Ok(stored(&new.header(VOLUME), &new.keys))
}

fn stored(header: &FileHeader, keys: &FileKeys) -> Unverified {
    Unverified::parse(&header.encode(keys, None, GEOMETRY).unwrap(), GEOMETRY).unwrap()
}

fn open(ring: &Keyring, header: &Unverified) -> Result<OpenKeys, KeyError> {
    ring.patiently(|| ring.open(header))
}

/// As the watcher does it, asking now.
fn revoke(ring: &Keyring) -> Vec<Loss> {
    for cmk in ring.cmks() {
        cmk.probe();
    }
    let losses = ring.watch(Duration::ZERO);
    losses.iter().for_each(|loss| ring.enforce(loss));
    losses
}

#[test]
fn a_remote_cmk_is_never_called_where_its_user_stands() {
    let cmk = remote("a");
    for policy in [BRANCH, PER_FILE] {
        let writer = ring_with(&[&cmk], policy, QUICK);
        let before = cmk.calls();
        assert!(matches!(writer.create(&None), Err(KeyError::Pending(_))));
        assert!(matches!(writer.create(&None), Err(KeyError::Pending(_))));
        assert_eq!(cmk.calls(), before);
        let header = create(&writer).unwrap();
        let reader = ring_with(&[&cmk], policy, QUICK);
        let before = cmk.calls();
        assert!(matches!(reader.open(&header), Err(KeyError::Pending(_))));
        assert_eq!(cmk.calls(), before);
        open(&reader, &header).unwrap();
        assert_eq!(cmk.calls().2, before.2 + 1);
        // By branch the key stays; in per-file mode each open asks.
        assert_eq!(reader.open(&header).is_ok(), policy == BRANCH);
    }
}

#[test]
fn many_files_are_one_generate_and_one_unwrap_call() {
    let cmk = remote("a");
    let writer = ring(&[&cmk]);
    let headers: Vec<_> = (0..2000).map(|_| create(&writer).unwrap()).collect();
    assert_eq!(cmk.calls(), (1, 0, 0));
    let reader = ring(&[&cmk]);
    headers.iter().for_each(|header| drop(open(&reader, header).unwrap()));
    assert_eq!(cmk.calls(), (1, 0, 1));
}

#[test]
fn sixty_four_threads_on_one_uncached_key_are_one_call() {
    let cmk = Arc::new(TestCmk::far("a", Duration::from_millis(30)));
    let header = create(&ring(&[&cmk])).unwrap();
    let reader = ring(&[&cmk]);
    let barrier = Barrier::new(64);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                barrier.wait();
                open(&reader, &header).unwrap();
            });
        }
    });
    assert_eq!(cmk.calls().2, 1);
    let writer = ring(&[&cmk]);
    let before = cmk.calls().0;
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| create(&writer).unwrap());
        }
    });
    assert_eq!(cmk.calls().0, before + 1);
}

#[test]
fn an_outage_fails_in_time_spares_cached_keys_and_stops_hammering() {
    let cmk = remote("a");
    let writer = ring(&[&cmk]);
    let cached = create(&writer).unwrap();
    let other = create(&ring(&[&cmk])).unwrap();
    *cmk.mood.lock() = Mood::Unreachable;
    let start = Instant::now();
    assert!(matches!(open(&writer, &other), Err(KeyError::Unreachable { .. })));
    assert!(start.elapsed() < QUICK.deadline * 3, "{:?}", start.elapsed());
    // Retried within the deadline, then left alone.
    let calls = cmk.calls().2;
    assert!(calls > 1, "no retry");
    for _ in 0..20 {
        assert!(matches!(open(&writer, &other), Err(KeyError::Unreachable { .. })));
    }
    assert_eq!(cmk.calls().2, calls);
    writer.open(&cached).unwrap();
    writer.create(&None).unwrap();
    *cmk.mood.lock() = Mood::Works;
    // What the watcher does when the breaker's pause is over.
    writer.cmks()[0].probe();
    writer.branches.drop_keys(|_| false);
    open(&writer, &other).unwrap();
}

#[test]
fn a_call_that_never_returns_is_given_up() {
    let cmk = Arc::new(TestCmk::far("a", Duration::from_secs(5)));
    let ring = ring(&[&cmk]);
    let start = Instant::now();
    match create(&ring) {
        Err(KeyError::Unreachable { reason, .. }) => assert!(reason.contains("no answer in time"), "{reason}"),
        other => panic!("{:?}", other.map(drop)),
    }
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_dead_first_cmk_leaves_time_for_the_second() {
    let (a, b) = (remote("a"), remote("b"));
    let header = create(&ring(&[&a, &b])).unwrap();
    *a.mood.lock() = Mood::Unreachable;
    let start = Instant::now();
    open(&ring(&[&a, &b]), &header).unwrap();
    assert!(start.elapsed() < QUICK.deadline * 2);
    assert_eq!(b.calls().2, 1);
}

#[test]
fn a_definite_no_drops_the_keys_and_a_yes_heals() {
    let cmk = remote("a");
    let ring = ring(&[&cmk]);
    let header = create(&ring).unwrap();
    let source = ring.open(&header).unwrap().source;
    *cmk.mood.lock() = Mood::Refuses;
    // Until it has been asked, keys in memory are good.
    ring.open(&header).unwrap();
    assert!(!ring.lost(&source));
    assert_eq!(revoke(&ring).len(), 1);
    assert!(ring.lost(&source));
    let calls = cmk.calls();
    for _ in 0..10 {
        assert!(matches!(open(&ring, &header), Err(KeyError::Refused { .. })));
        assert!(matches!(create(&ring), Err(KeyError::Refused { .. })));
    }
    assert_eq!(cmk.calls(), calls, "a lost CMK is asked by the watcher alone");
    assert!(ring.status().cached_keys.is_empty());
    assert_eq!(ring.status().cmks[0].state, "refused");
    assert_eq!(revoke(&ring), [], "said once");
    *cmk.mood.lock() = Mood::Works;
    revoke(&ring);
    open(&ring, &header).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    create(&ring).unwrap();
    assert!(!ring.lost(&ring.open(&header).unwrap().source));
}

/// A CMK that answers, and then says no before its answer has arrived: the key does not come into memory after all others
/// have been dropped.
#[test]
fn a_key_that_arrives_after_the_drop_does_not_stay() {
    for (cmk, policy) in [(TestCmk::new("a"), BRANCH), (TestCmk::remote("a"), BRANCH), (TestCmk::remote("a"), PER_FILE)]
    {
        for uses in ["an old file", "a new file"] {
            let cmk = Arc::new(TestCmk::like(&cmk));
            let ring = Arc::new(ring_with(&[&cmk], policy, QUICK));
            let header = create(&ring).unwrap();
            ring.forget();
            let (watched, said_no) = (ring.clone(), cmk.clone());
            *cmk.answering.lock() = Some(Box::new(move || {
                *said_no.mood.lock() = Mood::Refuses;
                assert_eq!(revoke(&watched).len(), 1);
            }));
            let outcome = match uses {
                "an old file" => open(&ring, &header).map(drop),
                _ => create(&ring).map(drop),
            };
            assert!(matches!(outcome, Err(KeyError::Refused { .. })), "{uses}: {outcome:?}");
            assert!(ring.status().cached_keys.is_empty(), "{uses}");
            assert!(ring.files.all().is_empty() && ring.fresh.lock().is_empty(), "{uses}");
            // Nor does the next one get it.
            assert!(matches!(open(&ring, &header), Err(KeyError::Refused { .. })), "{uses}");
            assert!(matches!(create(&ring), Err(KeyError::Refused { .. })), "{uses}");
        }
    }
}

#[test]
fn a_key_that_alone_is_refused_revokes_nothing() {
    let cmk = remote("a");
    let ring = ring(&[&cmk]);
    let good = create(&ring).unwrap();
    let other = create(&self::ring(&[&cmk])).unwrap();
    *cmk.mood.lock() = Mood::Refuses;
    assert!(matches!(open(&ring, &other), Err(KeyError::Refused { .. })));
    *cmk.mood.lock() = Mood::Works;
    assert_eq!(ring.watch(Duration::ZERO), []);
    ring.open(&good).unwrap();
}

#[test]
fn a_branch_goes_on_through_another_of_its_cmks() {
    let (a, b) = (remote("a"), remote("b"));
    let ring = ring(&[&a, &b]);
    let header = create(&ring).unwrap();
    let source = ring.open(&header).unwrap().source;
    *a.mood.lock() = Mood::Refuses;
    assert_eq!(revoke(&ring).len(), 1);
    assert!(!ring.lost(&source), "b opens it");
    ring.open(&header).unwrap();
    ring.create(&None).unwrap();
    // Now nobody does any more.
    *b.mood.lock() = Mood::Refuses;
    revoke(&ring);
    assert!(ring.lost(&source));
    assert!(matches!(open(&ring, &header), Err(KeyError::Refused { .. })));
    *b.mood.lock() = Mood::Works;
    revoke(&ring);
    open(&ring, &header).unwrap();
}

#[test]
fn where_the_other_cmk_cannot_be_asked_the_no_counts() {
    let (a, b) = (remote("a"), remote("b"));
    let ring = ring(&[&a, &b]);
    let header = create(&ring).unwrap();
    *a.mood.lock() = Mood::Refuses;
    *b.mood.lock() = Mood::Unreachable;
    revoke(&ring);
    assert!(matches!(open(&ring, &header), Err(KeyError::Refused { .. })));
}

#[test]
fn the_primary_alone_decides_where_policy_says_so() {
    let (a, b) = (remote("a"), remote("b"));
    let ring = ring_with(&[&a, &b], BRANCH, OutagePolicy { revoke: Revoke::Primary, ..QUICK });
    let header = create(&ring).unwrap();
    let source = ring.open(&header).unwrap().source;
    *b.mood.lock() = Mood::Refuses;
    revoke(&ring);
    assert!(!ring.lost(&source));
    ring.open(&header).unwrap();
    *b.mood.lock() = Mood::Works;
    revoke(&ring);
    *a.mood.lock() = Mood::Refuses;
    revoke(&ring);
    assert!(ring.lost(&source));
    assert!(matches!(open(&ring, &header), Err(KeyError::Refused { .. })));
    assert!(matches!(create(&ring), Err(KeyError::Refused { .. })));
    // An outage of the primary is no decision.
    *a.mood.lock() = Mood::Works;
    revoke(&ring);
    *a.mood.lock() = Mood::Unreachable;
    revoke(&ring);
    open(&ring, &header).unwrap();
}

#[test]
fn keys_that_nobody_could_confirm_for_too_long_go() {
    let cmk = remote("a");
    let ring = ring_with(&[&cmk], BRANCH, OutagePolicy { max_stale: Some(Duration::from_millis(200)), ..QUICK });
    let header = create(&ring).unwrap();
    let kept = ring_with(&[&cmk], BRANCH, QUICK);
    let other = create(&kept).unwrap();
    *cmk.mood.lock() = Mood::Unreachable;
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(revoke(&ring).len(), 1);
    match open(&ring, &header) {
        Err(KeyError::Unreachable { reason, .. }) => assert!(reason.contains("kms_max_stale"), "{reason}"),
        other => panic!("{:?}", other.map(drop)),
    }
    assert_eq!(ring.status().cmks[0].dropped, Some("stale"));
    // Without a limit they stay.
    assert_eq!(revoke(&kept), []);
    kept.open(&other).unwrap();
    *cmk.mood.lock() = Mood::Works;
    revoke(&ring);
    open(&ring, &header).unwrap();
}

#[test]
fn a_due_branch_is_renewed_by_the_watcher_and_nobody_waits() {
    let cmk = remote("a");
    let ring = ring_with(&[&cmk], KeyPolicy { branch_max_files: 3, ..BRANCH }, QUICK);
    (0..3).for_each(|_| drop(create(&ring).unwrap()));
    let first = ring.current_branch().unwrap().id;
    for _ in 0..5 {
        assert_eq!(ring.create(&None).unwrap().wrapped_dek.unwrap().branch_id, first);
    }
    assert_eq!(cmk.calls(), (1, 0, 0));
    ring.watch(Duration::ZERO);
    assert_eq!(cmk.calls(), (2, 0, 0));
    assert_ne!(ring.create(&None).unwrap().wrapped_dek.unwrap().branch_id, first);
}

#[test]
fn groups_have_branches_of_their_own() {
    let (a, b) = (remote("a"), remote("b"));
    let ring = ring(&[&a]);
    ring.add_cmk(Guard::new(b.clone(), QUICK));
    ring.add_cmk(Guard::new(b.clone(), QUICK));
    assert_eq!(ring.cmks().len(), 2);
    let group: KeyGroup = Some([KeyRef { provider: "test".into(), key: "b".into() }].into());
    let own = create(&ring).unwrap();
    let new = ring.patiently(|| ring.create(&group)).unwrap();
    let tenant = stored(&new.header(VOLUME), &new.keys);
    assert_eq!((a.calls(), b.calls()), ((1, 0, 0), (1, 0, 0)));
    assert_eq!(tenant.claims().slots.iter().map(|s| s.key_ref.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(own.claims().slots.iter().all(|s| s.key_ref == "a"));
    // One says no: the other's files go on.
    *b.mood.lock() = Mood::Refuses;
    revoke(&ring);
    ring.open(&own).unwrap();
    assert!(matches!(open(&ring, &tenant), Err(KeyError::Refused { .. })));
    let stranger: KeyGroup = Some([KeyRef { provider: "test".into(), key: "c".into() }].into());
    assert!(matches!(ring.create(&stranger), Err(KeyError::NoCmk { .. })));
}

#[test]
fn cmks_are_proved_before_a_directory_gets_them() {
    let (a, b) = (remote("a"), remote("b"));
    let ring = ring(&[&a]);
    let cmks = [&b, &a].map(|cmk| Guard::new(cmk.clone(), QUICK));
    let slots = ring.prove(&cmks).unwrap();
    assert_eq!(slots.iter().map(|slot| slot.key_ref.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!((a.calls(), b.calls()), ((0, 1, 1), (1, 0, 1)));
    assert!(a.contexts.lock().iter().all(|context| context.0[0].0 == "envelopefs:volume-id"));
    for mood in [Mood::Refuses, Mood::Unreachable] {
        *a.mood.lock() = mood;
        assert!(ring.prove(&cmks).is_err());
    }
    // Proving gives a CMK to nobody.
    let group: KeyGroup = Some([KeyRef { provider: "test".into(), key: "b".into() }].into());
    assert!(matches!(ring.knows(&group), Err(KeyError::NoCmk { .. })));
    ring.add_cmk(cmks[0].clone());
    ring.knows(&group).unwrap();
    assert_eq!(ring.own_cmks().len(), 1);
}

#[test]
fn a_recorded_branch_of_a_group_is_used_again() {
    let (a, b) = (remote("a"), remote("b"));
    let group: KeyGroup = Some([KeyRef { provider: "test".into(), key: "b".into() }].into());
    let records: Arc<Mutex<Vec<BranchRecord>>> = Arc::default();
    let first = ring(&[&a]);
    first.add_cmk(Guard::new(b.clone(), QUICK));
    let seen = records.clone();
    first.on_new_branch(Box::new(move |group, record| {
        assert!(group.is_some());
        seen.lock().push(record.clone());
    }));
    first.patiently(|| first.create(&group)).unwrap();
    let second = ring(&[&a]).with_branches(records.lock().clone());
    second.add_cmk(Guard::new(b.clone(), QUICK));
    second.patiently(|| second.create(&group)).unwrap();
    assert_eq!(b.calls(), (1, 0, 1));
}

#[test]
fn forgetting_empties_the_caches_and_use_fills_them_again() {
    let cmk = remote("a");
    let ring = ring(&[&cmk]);
    let header = create(&ring).unwrap();
    assert_eq!(ring.status().cached_keys.len(), 1);
    ring.forget();
    assert!(ring.status().cached_keys.is_empty());
    assert!(matches!(ring.open(&header), Err(KeyError::Pending(_))));
    open(&ring, &header).unwrap();
    create(&ring).unwrap();
    assert_eq!(cmk.calls(), (1, 0, 1));
}

#[test]
fn status_counts_and_never_shows_keys() {
    let cmk = remote("a");
    let ring = ring(&[&cmk]);
    let header = create(&ring).unwrap();
    open(&self::ring(&[&cmk]), &header).unwrap();
    let status = ring.status();
    assert_eq!((status.cmks[0].generate.calls, status.cmks[0].unwrap.calls, status.cmks[0].state), (1, 0, "usable"));
    assert_eq!(status.cached_keys[0].cmk, "test:a");
    let json = serde_json::to_string(&status).unwrap();
    assert!(json.contains("\"state\":\"usable\"") && !json.contains("Secret"), "{json}");
}
