//! A key service that is slow, down or mad: nothing hangs, cached keys keep their speed, nothing is lost, and it heals.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::aws::{Kms, cmk, forget_keys, mount, mount_command, status, volume};
use crate::common::{Mount, Volume, assert_errno, eventually, finish, pattern, text};
use crate::fault::Behaviour;
use crate::needs;

/// `kms_deadline` of these mounts.
const DEADLINE: Duration = Duration::from_secs(2);
const OPTIONS: &str = "kms_deadline=2s,commit=5";
/// What the kernel, a loaded machine and a debug build may add to it.
const SLACK: Duration = Duration::from_secs(4);
/// No operation on a file whose key is in memory may take longer; they would wait for `DEADLINE` if they waited at all.
const UNDISTURBED: Duration = Duration::from_millis(1500);

/// A volume with two files under two branches.
fn two_branches(kms: &Kms, key: &str) -> Volume {
    let volume = volume(&[&kms.uri(key)], &["--branch-max-age", "1s"]);
    for name in ["known", "other"] {
        let mounted = mount(&volume, OPTIONS);
        fs::write(mounted.join(name), name).unwrap();
        mounted.unmount();
        std::thread::sleep(Duration::from_millis(1100));
    }
    volume
}

fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = body();
    (value, start.elapsed())
}

/// The same check for every way to be ill.
fn cached_keys_go_on_and_others_fail_in_time(kms: &Kms, key: &str, volume: &Volume, illness: Behaviour) {
    let what = format!("{illness:?}").chars().take(40).collect::<String>();
    let mounted = mount(volume, OPTIONS);
    let known = File::options().read(true).write(true).open(mounted.join("known")).unwrap();
    // The log of this mount and of those before it.
    let told_before = mounted.log();
    let told = |word: &str| mounted.log().matches(word).count() - told_before.matches(word).count();
    kms.front.set(illness);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let (mut worst, mut rounds) = (Duration::ZERO, 0);
            while !over.load(Ordering::Relaxed) || rounds < 10 {
                let data = pattern(rounds, 5000);
                let ((), took) = timed(|| {
                    known.write_all_at(&data, 100).unwrap();
                    known.sync_data().unwrap();
                    let mut back = vec![0; 5000];
                    known.read_exact_at(&mut back, 100).unwrap();
                    assert!(back == data);
                    // Opening, and statting, need no service either.
                    drop(File::open(mounted.join("known")).unwrap());
                });
                (worst, rounds) = (worst.max(took), rounds + 1);
            }
            worst
        });
        // More of them at once than there are threads that take requests from the kernel.
        let openers: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| timed(|| assert_errno(File::open(mounted.join("other")), libc::ENOKEY))))
            .collect();
        for opener in openers {
            let ((), took) = opener.join().unwrap();
            assert!(took < DEADLINE + SLACK, "{what}: an open took {took:?}");
        }
        // The breaker: now it fails at once.
        let ((), took) = timed(|| assert_errno(File::open(mounted.join("other")), libc::ENOKEY));
        assert!(took < DEADLINE + SLACK, "{what}: {took:?}");
        over.store(true, Ordering::Relaxed);
        let worst = busy.join().unwrap();
        assert!(worst < UNDISTURBED, "{what}: a file whose key is in memory waited {worst:?}");
    });
    let state = cmk(&status(volume), key);
    assert_eq!(state["state"], "unreachable", "{what}: {state}");
    assert_eq!(told("code=kms-down"), 1, "{what}: once\n{}", mounted.log());
    kms.works();
    eventually("the mount heals", || File::open(mounted.join("other")).is_ok());
    assert_eq!(fs::read_to_string(mounted.join("other")).unwrap(), "other");
    eventually("status says so", || cmk(&status(volume), key)["state"] == "usable");
    assert_eq!(told("code=kms-back"), 1, "{what}");
    drop(known);
    mounted.unmount();
}

#[test]
fn a_service_that_refuses_connections() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = two_branches(&kms, &key);
        cached_keys_go_on_and_others_fail_in_time(&kms, &key, &volume, Behaviour::Close);
    }
}

#[test]
fn a_service_that_never_answers() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = two_branches(&kms, &key);
        cached_keys_go_on_and_others_fail_in_time(&kms, &key, &volume, Behaviour::Hang);
        cached_keys_go_on_and_others_fail_in_time(&kms, &key, &volume, Behaviour::Trickle(Duration::from_millis(100)));
    }
}

#[test]
fn a_service_that_answers_too_late() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = two_branches(&kms, &key);
        let late = Behaviour::Slow(kms.real_port(), DEADLINE * 3);
        cached_keys_go_on_and_others_fail_in_time(&kms, &key, &volume, late);
    }
}

#[test]
fn a_service_that_answers_slowly_is_waited_for() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = two_branches(&kms, &key);
        let mounted = mount(&volume, OPTIONS);
        kms.front.set(Behaviour::Slow(kms.real_port(), Duration::from_millis(400)));
        assert_eq!(fs::read_to_string(mounted.join("other")).unwrap(), "other");
        mounted.unmount();
    }
}

#[test]
fn a_service_that_answers_errors_and_garbage() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = two_branches(&kms, &key);
        let throttled = br#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#.to_vec();
        for illness in [
            Behaviour::Reply(500, "", b"{}".to_vec()),
            Behaviour::Reply(429, "Content-Type: application/x-amz-json-1.1\r\n", throttled),
            Behaviour::Reply(
                200,
                "Content-Type: application/x-amz-json-1.1\r\n",
                b"<html>not what you think</html>".to_vec(),
            ),
            Behaviour::Raw(b"\x16\x03\x01 nonsense".to_vec()),
        ] {
            cached_keys_go_on_and_others_fail_in_time(&kms, &key, &volume, illness);
        }
    }
}

/// Appends lines, each synced before it counts, until told to stop. Returns how many were acknowledged.
fn append_until(path: &Path, over: &AtomicBool) -> u64 {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    let mut lines = 0;
    while !over.load(Ordering::Relaxed) {
        writeln!(file, "line {lines}").unwrap();
        file.sync_data().unwrap();
        lines += 1;
    }
    lines
}

#[test]
fn a_service_that_stops_in_the_middle_of_a_load_loses_nothing() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, OPTIONS);
        let over = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|n| {
                    let (path, over) = (mounted.join(format!("log{n}")), &over);
                    scope.spawn(move || append_until(&path, over))
                })
                .collect();
            for illness in [Behaviour::Close, Behaviour::Hang] {
                std::thread::sleep(Duration::from_millis(500));
                kms.front.set(illness);
                std::thread::sleep(Duration::from_millis(500));
                // The branch is in memory: files can be made, too.
                fs::write(mounted.join("made while it was down"), "x").unwrap();
                kms.works();
            }
            over.store(true, Ordering::Relaxed);
            writers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(written.iter().all(|lines| *lines > 0));
        mounted.unmount();
        let mounted = mount(&volume, OPTIONS);
        for (n, lines) in written.iter().enumerate() {
            let expected: String = (0..*lines).map(|line| format!("line {line}\n")).collect();
            assert_eq!(fs::read_to_string(mounted.join(format!("log{n}"))).unwrap(), expected);
        }
        mounted.unmount();
    }
}

#[test]
fn keys_that_were_forgotten_during_an_outage_come_back_after_it() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, OPTIONS);
        let file = File::options().create(true).read(true).write(true).truncate(true).open(mounted.join("f")).unwrap();
        file.write_all_at(b"before", 0).unwrap();
        file.sync_all().unwrap();
        kms.front.set(Behaviour::Close);
        forget_keys(&volume);
        let mut back = [0; 6];
        assert_errno(file.read_exact_at(&mut back, 0), libc::ENOKEY);
        // A new file says at once that it cannot be had, rather than lose what is written to it later.
        assert_errno(File::create(mounted.join("new")), libc::ENOKEY);
        kms.works();
        eventually("the handle works again", || file.read_exact_at(&mut back, 0).is_ok());
        assert_eq!(&back, b"before");
        eventually("new files work again", || fs::write(mounted.join("new"), "x").is_ok());
        drop(file);
        mounted.unmount();
    }
}

#[test]
fn a_service_that_is_down_at_mount() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        kms.front.set(Behaviour::Close);
        let (output, took) = timed(|| finish(&mut mount_command(&volume, OPTIONS)));
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        assert!(took < DEADLINE + SLACK, "{took:?}");
        let message = text(&output);
        assert!(message.contains("wait_for_kms") || message.contains("--wait-for-kms"), "{message}");
        assert!(message.contains(&key), "{message}");

        // Told to wait, it comes up when the service does.
        let mounted = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let options = "kms_deadline=2s,commit=5,wait_for_kms";
                Mount::wait_until_up(&volume, &volume.mountpoint, mount_command(&volume, options))
            });
            std::thread::sleep(Duration::from_millis(1500));
            kms.works();
            waiting.join().unwrap()
        });
        fs::write(mounted.join("f"), "x").unwrap();
        mounted.unmount();

        // For a time: that is over.
        kms.front.set(Behaviour::Close);
        let (output, took) = timed(|| finish(&mut mount_command(&volume, "kms_deadline=1s,wait_for_kms=3s")));
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(3) + DEADLINE + SLACK, "{took:?}");
    }
}

#[test]
fn keys_that_nobody_could_confirm_for_too_long_are_dropped() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::moto) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, "kms_deadline=1s,kms_revalidate=1s,kms_max_stale=3s,commit=5");
        let file = File::options().create(true).read(true).write(true).truncate(true).open(mounted.join("f")).unwrap();
        file.write_all_at(b"content", 0).unwrap();
        kms.front.set(Behaviour::Close);
        let mut back = [0; 7];
        eventually("the keys go", || file.read_exact_at(&mut back, 0).is_err());
        assert_errno(file.read_exact_at(&mut back, 0), libc::ENOKEY);
        assert_eq!(cmk(&status(&volume), &key)["dropped"], "stale");
        kms.works();
        eventually("they come back", || file.read_exact_at(&mut back, 0).is_ok());
        assert_eq!(&back, b"content", "what was dirty was flushed before the keys went");
        drop(file);
        mounted.unmount();
    }
}

#[test]
fn a_volume_whose_first_cmk_is_down_works_through_the_second() {
    needs!(have_mount);
    for (one, two) in Kms::and_own(Kms::moto).into_iter().zip(Kms::and_own(Kms::moto)) {
        let (a, b) = (one.key(), two.key());
        let volume = volume(&[&one.uri(&a), &two.uri(&b)], &[]);
        let mounted = mount(&volume, OPTIONS);
        fs::write(mounted.join("f"), "both").unwrap();
        mounted.unmount();
        one.front.set(Behaviour::Close);
        let mounted = mount(&volume, OPTIONS);
        assert_eq!(fs::read_to_string(mounted.join("f")).unwrap(), "both");
        fs::write(mounted.join("g"), "under the branch in use").unwrap();
        mounted.unmount();
        one.works();
        two.front.set(Behaviour::Close);
        let mounted = mount(&volume, OPTIONS);
        assert_eq!(fs::read_to_string(mounted.join("g")).unwrap(), "under the branch in use");
        mounted.unmount();
    }
}
