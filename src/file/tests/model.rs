//! Schedules of one file: writers against each other, the commit, changes of the header and of the size.

use shuttle::thread;

use super::*;

fn explore(rounds: usize, model: impl Fn() + Send + Sync + Clone + 'static) {
    let config = || {
        let mut config = shuttle::Config::default();
        config.stack_size = 2 << 20;
        config.max_steps = shuttle::MaxSteps::FailAfter(10_000_000);
        config
    };
    shuttle::Runner::new(shuttle::scheduler::RandomScheduler::new(rounds), config()).run(model.clone());
    shuttle::Runner::new(shuttle::scheduler::PctScheduler::new(3, rounds), config()).run(model);
}

/// What a later mount reads, after a last commit.
fn committed(bench: &Bench, file: &EncryptedFile<MemoryFile>) -> Vec<u8> {
    while file.commit(None).unwrap() != Commit::Quiet {}
    assert!(!file.needs_commit());
    let now = read_all(file).unwrap();
    let later = bench.open();
    assert_eq!(read_all(&later).unwrap(), now);
    now
}

/// Two writers of one block, the commit between them: both writes are there.
#[test]
fn neighbouring_writes_and_a_commit() {
    explore(500, || {
        let bench = Bench::new();
        let file = Arc::new(bench.open());
        let (a, b, c) = (file.clone(), file.clone(), file.clone());
        let threads = [
            thread::spawn(move || a.write(0, &[1; 100]).unwrap()),
            thread::spawn(move || b.write(100, &[2; 5000]).unwrap()),
            thread::spawn(move || assert!(c.commit(None).is_ok())),
        ];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let content = committed(&bench, &file);
        assert_eq!(content, [vec![1; 100], vec![2; 5000]].concat());
    });
}

/// The header changes (a floor, flags) under writers, of one page and of several.
#[test]
fn the_header_changes_under_writers() {
    explore(250, || {
        for pages in [1, 2] {
            let bench = Bench::with(pages, KeyMode::Branch);
            let file = Arc::new(bench.open());
            file.write(0, &[7; 3 * PLAIN]).unwrap();
            let (a, b, c) = (file.clone(), file.clone(), file.clone());
            let threads = [
                thread::spawn(move || a.write(10, &[1; PLAIN]).unwrap()),
                // Sets HOLES_OK durably first.
                thread::spawn(move || b.fallocate(Fallocate::PunchHole, 2 * P, P).unwrap()),
                thread::spawn(move || assert!(c.commit(None).is_ok())),
            ];
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let mut expected = vec![7; 3 * PLAIN];
            expected[10..10 + PLAIN].fill(1);
            expected[2 * PLAIN..].fill(0);
            assert_eq!(committed(&bench, &file), expected);
        }
    });
}

/// A truncation against a writer past its end: one comes first.
#[test]
fn a_truncation_and_a_write() {
    explore(500, || {
        let bench = Bench::committed(&[7; 2 * PLAIN]);
        let file = Arc::new(bench.open());
        let (a, b) = (file.clone(), file.clone());
        let write = thread::spawn(move || a.write(P + 10, &[1; 10]).unwrap());
        let cut = thread::spawn(move || b.truncate(100).unwrap());
        write.join().unwrap();
        cut.join().unwrap();
        let content = committed(&bench, &file);
        let mut extended = vec![0; PLAIN + 20];
        extended[..100].fill(7);
        extended[PLAIN + 10..].fill(1);
        assert!(content == [7; 100] || content == extended, "{} bytes", content.len());
    });
}

/// Keys taken away under a writer and the commit: nothing is lost, the next use loads them again.
#[test]
fn keys_are_dropped_under_a_writer() {
    explore(500, || {
        let bench = Bench::committed(&[7; PLAIN]);
        let file = Arc::new(bench.open());
        let (a, b, c) = (file.clone(), file.clone(), file.clone());
        let threads = [
            thread::spawn(move || a.write(P - 5, &[1; 10]).unwrap()),
            thread::spawn(move || assert!(b.drop_keys(&|_| true).is_none_or(|settled| settled.is_ok()))),
            thread::spawn(move || assert!(c.commit(None).is_ok())),
        ];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let content = committed(&bench, &file);
        assert_eq!(content, [vec![7; PLAIN - 5], vec![1; 10]].concat());
    });
}
