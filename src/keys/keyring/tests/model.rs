//! Schedules of branch making and of revocation.

use shuttle::thread;

use super::*;

fn explore(model: impl Fn() + Send + Sync + Clone + 'static) {
    let config = || {
        let mut config = shuttle::Config::default();
        config.stack_size = 1 << 20;
        config
    };
    shuttle::Runner::new(shuttle::scheduler::RandomScheduler::new(1500), config()).run(model.clone());
    shuttle::Runner::new(shuttle::scheduler::PctScheduler::new(3, 1500), config()).run(model);
}

fn together(work: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = work.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_first_branch_is_made_once_and_recorded_before_any_file_hangs_on_it() {
    explore(|| {
        let cmk = cmk("a");
        let ring = Arc::new(ring(&[&cmk]));
        let recorded = Arc::new(std::sync::Mutex::new(Vec::new()));
        let hooked = recorded.clone();
        ring.on_new_branch(Box::new(move |_, record| hooked.lock().unwrap().push(record.id)));
        let one = |ring: Arc<Keyring>, recorded: Arc<std::sync::Mutex<Vec<BranchId>>>| {
            Box::new(move || {
                let (header, keys) = new_file(&ring);
                let branch = header.wrapped_dek.as_ref().unwrap().branch_id;
                assert!(recorded.lock().unwrap().contains(&branch));
                opens(&ring, &header, &keys).unwrap();
            }) as Box<dyn FnOnce() + Send>
        };
        together((0..3).map(|_| one(ring.clone(), recorded.clone())).collect());
        assert_eq!(cmk.calls(), (1, 0, 0));
        let current = ring.current_branch().unwrap().id;
        assert_eq!(*recorded.lock().unwrap(), [current]);
    });
}

#[test]
fn a_due_branch_is_replaced_while_files_are_made() {
    explore(|| {
        let cmk = cmk("a");
        let ring = Arc::new(ring_with(&[&cmk], KeyPolicy { branch_max_files: 1, ..BRANCH_POLICY }, None));
        new_file(&ring);
        let one = |ring: Arc<Keyring>| {
            Box::new(move || {
                let (header, keys) = new_file(&ring);
                opens(&ring, &header, &keys).unwrap();
            }) as Box<dyn FnOnce() + Send>
        };
        together((0..3).map(|_| one(ring.clone())).collect());
        let (generated, ..) = cmk.calls();
        assert!((2..=4).contains(&generated), "{generated} branches");
        // Nobody is left making one.
        new_file(&ring);
    });
}

/// What a provider has answered before it says no must not come into memory after the keys have been dropped.
#[test]
fn no_key_of_a_lost_cmk_stays() {
    explore(|| {
        let cmk = cmk("a");
        let writer = ring(&[&cmk]);
        let (header, keys) = new_file(&writer);
        let ring = Arc::new(ring_with(&[&cmk], BRANCH_POLICY, writer.current_branch()));
        // What the watcher asks again with.
        opens(&ring, &header, &keys).unwrap();
        ring.forget();
        let (reader, maker, watcher) = (ring.clone(), ring.clone(), ring.clone());
        together(vec![
            // Either may come before or after the loss.
            Box::new(move || drop(opens(&reader, &header, &keys))),
            Box::new(move || drop(maker.create(&None))),
            Box::new(move || {
                let guard = watcher.cmks().remove(0);
                *cmk.mood.lock() = Mood::Refuses;
                guard.probe();
                let reason = guard.must_drop().expect("the CMK refuses");
                watcher.enforce(&outage::Loss::of(0, reason));
            }),
        ]);
        assert!(ring.cmks()[0].lost().is_some());
        assert!(ring.branches.all().is_empty(), "a lost key is cached");
        assert!(!ring.growing.lock().of(&None).has_key(), "a lost branch is in use");
        assert!(matches!(ring.create(&None), Err(KeyError::Refused { .. })));
    });
}
