//! Schedules of the key cache: one call for all who wait, no flight left behind, nobody waits for ever.

use shuttle::thread;

use super::*;

const CAPACITY: usize = 2;

fn slot(blob: u8) -> CmkSlot {
    CmkSlot { provider: "test".into(), key_ref: "key".into(), blob: vec![blob], commitment: [7; 32] }
}
fn held() -> Held {
    let key = Arc::new(Secret32::from_bytes([1; 32]));
    Held { key, source: KeySource::new(0, 0), slots: Arc::new([]), since: Instant::now() }
}

fn together(count: usize, work: impl Fn(usize) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let threads: Vec<_> = (0..count).map(|n| (work.clone(), n)).map(|(w, n)| thread::spawn(move || w(n))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn explore(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), 3000);
    shuttle::check_pct(model, 3000, 3);
}

#[test]
fn one_call_serves_all_who_ask() {
    explore(|| {
        let (cache, calls) = (Arc::new(KeyCache::<u8>::new(CAPACITY)), Arc::new(AtomicUsize::new(0)));
        let (c, n) = (cache.clone(), calls.clone());
        together(3, move |_| {
            let found = c.get_or_unwrap(&1, &slot(0), || {
                n.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
                Ok(held())
            });
            assert!(found.is_ok());
        });
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert!(cache.state.lock().flights.is_empty());
        assert!(cache.get(&1, &[7; 32]).is_some());
    });
}

#[test]
fn a_failure_reaches_who_waits_and_the_next_asks_again() {
    explore(|| {
        let (cache, calls) = (Arc::new(KeyCache::<u8>::new(CAPACITY)), Arc::new(AtomicUsize::new(0)));
        let (c, n) = (cache.clone(), calls.clone());
        together(3, move |_| {
            let found = c.get_or_unwrap(&1, &slot(0), || {
                let first = n.fetch_add(1, Ordering::Relaxed) == 0;
                thread::yield_now();
                if first { Err(abandoned()) } else { Ok(held()) }
            });
            // Whoever fails has waited for the first call.
            assert!(found.is_ok() || matches!(found, Err(KeyError::Unreachable { .. })));
        });
        assert!((1..=2).contains(&calls.load(Ordering::Relaxed)));
        assert!(cache.state.lock().flights.is_empty());
        assert!(cache.get_or_unwrap(&1, &slot(0), || Ok(held())).is_ok());
    });
}

#[test]
fn keys_come_and_go_while_others_ask() {
    explore(|| {
        let cache = Arc::new(KeyCache::<u8>::new(CAPACITY));
        let c = cache.clone();
        together(4, move |n| match n {
            0 => c.drop_keys(|_| true),
            1 => c.insert(&9, &[7; 32], held()),
            n => assert!(c.get_or_unwrap(&(n as u8 % 2), &slot(n as u8), || Ok(held())).is_ok()),
        });
        assert!(cache.all().len() <= CAPACITY);
        assert!(cache.state.lock().flights.is_empty());
    });
}
