//! How many calls a mount makes: one a branch, however many files and threads.

use std::fs;
use std::sync::Barrier;

use crate::aws::{Kms, calls, forget_keys, mount, volume};
use crate::needs;

const FILES: usize = 15_000;

#[test]
fn fifteen_thousand_files_are_one_call_to_write_and_one_to_read() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, "commit=5");
        // The mount's own: the volume key.
        assert_eq!(calls(&volume, &key), (0, 1));
        let name = |n: usize| mounted.join(format!("d{}/f{n}", n % 100));
        (0..100).for_each(|n| fs::create_dir(mounted.join(format!("d{n}"))).unwrap());
        std::thread::scope(|scope| {
            for t in 0..4 {
                scope.spawn(move || {
                    (t..FILES).step_by(4).for_each(|n| fs::write(name(n), format!("file {n}")).unwrap())
                });
            }
        });
        let (generated, unwrapped) = calls(&volume, &key);
        assert!(
            generated + unwrapped <= 2,
            "{generated} generate and {unwrapped} unwrap calls, the volume key's included"
        );
        mounted.unmount();

        let mounted = mount(&volume, "ro");
        let name = |n: usize| mounted.join(format!("d{}/f{n}", n % 100));
        for n in 0..FILES {
            assert_eq!(fs::read_to_string(name(n)).unwrap(), format!("file {n}"));
        }
        assert_eq!(calls(&volume, &key), (0, 2), "one for the volume key, one for the branch");
        mounted.unmount();
    }
}

#[test]
fn sixty_four_threads_on_one_uncached_key_are_one_call() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, "commit=5");
        for n in 0..64 {
            fs::write(mounted.join(format!("f{n}")), format!("file {n}")).unwrap();
        }
        forget_keys(&volume);
        let before = calls(&volume, &key);
        let barrier = Barrier::new(64);
        std::thread::scope(|scope| {
            for n in 0..64 {
                let (barrier, path) = (&barrier, mounted.join(format!("f{n}")));
                scope.spawn(move || {
                    barrier.wait();
                    assert_eq!(fs::read_to_string(path).unwrap(), format!("file {n}"));
                });
            }
        });
        assert_eq!(calls(&volume, &key), (before.0, before.1 + 1));
        mounted.unmount();
    }
}

#[test]
fn per_file_mode_asks_for_each_file() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &["--key-mode", "per-file"]);
        let mounted = mount(&volume, "commit=5");
        (0..10).for_each(|n| fs::write(mounted.join(format!("f{n}")), "x").unwrap());
        assert_eq!(calls(&volume, &key), (10, 1));
        mounted.unmount();
        let mounted = mount(&volume, "commit=5");
        (0..10).for_each(|n| assert_eq!(fs::read(mounted.join(format!("f{n}"))).unwrap(), b"x"));
        assert_eq!(calls(&volume, &key), (0, 11));
        mounted.unmount();
    }
}
