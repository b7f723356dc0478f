//! A CMK that is disabled under a running mount: dirty data first, then no more plaintext; and back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::aws::{Kms, cmk, mount, status, volume};
use crate::common::{assert_errno, eventually, pattern};
use crate::needs;

const OPTIONS: &str = "kms_deadline=2s,kms_revalidate=1s,commit=5";

#[test]
fn a_disabled_cmk_closes_open_files_and_enabling_it_heals_them() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::ministack) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, OPTIONS);
        let open = |name: &str| {
            File::options().create(true).read(true).write(true).truncate(true).open(mounted.join(name)).unwrap()
        };
        let (synced, dirty) = (open("synced"), open("dirty"));
        let data = pattern(1, 300_000);
        synced.write_all_at(&data, 0).unwrap();
        synced.sync_all().unwrap();
        // In the page cache alone: flushed with the keys still held.
        dirty.write_all_at(&data, 0).unwrap();
        kms.call("DisableKey", &json!({ "KeyId": key }));
        let mut back = vec![0; data.len()];
        eventually("reads stop", || synced.read_exact_at(&mut back, 0).is_err());
        assert_errno(synced.read_exact_at(&mut back, 0), libc::EKEYREVOKED);
        assert_errno(dirty.read_exact_at(&mut back, 0), libc::EKEYREVOKED);
        assert_errno(File::open(mounted.join("synced")), libc::EKEYREVOKED);
        assert_errno(File::create(mounted.join("new")), libc::EKEYREVOKED);
        // A write that comes too late is told by fsync at the latest.
        let late = dirty.write_all_at(b"too late", 0).and_then(|()| dirty.sync_all());
        assert_errno(late, libc::EKEYREVOKED);
        let told = cmk(&status(&volume), &key);
        assert_eq!((told["state"].as_str(), told["dropped"].as_str()), (Some("refused"), Some("revoked")), "{told}");
        assert_eq!(status(&volume)["cached_keys"].as_array().map(Vec::len), Some(0));
        let log = mounted.log();
        assert_eq!(log.matches("code=kms-refused").count(), 1, "{log}");

        kms.call("EnableKey", &json!({ "KeyId": key }));
        eventually("reads work again", || synced.read_exact_at(&mut back, 0).is_ok());
        assert!(back == data, "what was synced");
        dirty.read_exact_at(&mut back, 0).unwrap();
        assert!(back == data, "what was dirty when the key was disabled");
        dirty.write_all_at(b"in time", 0).unwrap();
        dirty.sync_all().unwrap();
        drop((synced, dirty));
        mounted.unmount();
        let mounted = mount(&volume, OPTIONS);
        assert!(fs::read(mounted.join("dirty")).unwrap().starts_with(b"in time"));
        mounted.unmount();
    }
}

#[test]
fn a_second_cmk_keeps_files_open_unless_the_primary_decides() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::ministack) {
        for primary in [false, true] {
            let (a, b) = (kms.key(), kms.key());
            let volume = volume(&[&kms.uri(&a), &kms.uri(&b)], &[]);
            let policy = if primary { "primary" } else { "any" };
            let mounted = mount(&volume, &format!("{OPTIONS},revoke={policy}"));
            fs::write(mounted.join("f"), "content").unwrap();
            kms.call("DisableKey", &json!({ "KeyId": a }));
            eventually("it is noticed", || cmk(&status(&volume), &a)["dropped"] == "revoked");
            if primary {
                eventually("the file is closed", || fs::read(mounted.join("f")).is_err());
                assert_errno(fs::read(mounted.join("f")), libc::EKEYREVOKED);
            } else {
                assert_eq!(fs::read_to_string(mounted.join("f")).unwrap(), "content");
            }
            kms.call("EnableKey", &json!({ "KeyId": a }));
            eventually("it heals", || fs::read(mounted.join("f")).is_ok());
            // Now all of them.
            kms.call("DisableKey", &json!({ "KeyId": a }));
            kms.call("DisableKey", &json!({ "KeyId": b }));
            eventually("the file is closed", || fs::read(mounted.join("f")).is_err());
            assert_errno(fs::read(mounted.join("f")), libc::EKEYREVOKED);
            mounted.unmount();
        }
    }
}

#[test]
fn a_cmk_pending_deletion_is_a_definite_no() {
    needs!(have_mount);
    for kms in Kms::and_own(Kms::ministack) {
        let key = kms.key();
        let volume = volume(&[&kms.uri(&key)], &[]);
        let mounted = mount(&volume, OPTIONS);
        fs::write(mounted.join("f"), "content").unwrap();
        kms.call("ScheduleKeyDeletion", &json!({ "KeyId": key, "PendingWindowInDays": 7 }));
        eventually("the file is closed", || fs::read(mounted.join("f")).is_err());
        assert_errno(fs::read(mounted.join("f")), libc::EKEYREVOKED);
        kms.call("CancelKeyDeletion", &json!({ "KeyId": key }));
        kms.call("EnableKey", &json!({ "KeyId": key }));
        eventually("it heals", || fs::read(mounted.join("f")).is_ok());
        mounted.unmount();
    }
}
