//! Corpus cases 11 to 18: headers, wrapped keys, forged files, fuzzed TLVs. Each on a real mount, with its errno and log word.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use envelopefs::crypto::secret::Secret32;
use envelopefs::format::header::Unverified;
use envelopefs::keys::providers::keyfile::KeyfileCmk;
use envelopefs::keys::{CmkProvider as _, EncryptionContext, passphrase::PassphraseSource};

use crate::common::*;
use crate::forge::{Insider, TLV_CMK_SLOT, TLV_WRAPPED_DEK, fix_crc, tlv, tlvs};
use crate::needs;
use crate::reported::*;
use crate::scene::*;

/// The one of `damages` after which the header is of an unknown version.
const VERSION: usize = 1;

/// Every way to damage one slot: a flipped byte in each field, garbage, zeros.
fn damages(good: &[u8]) -> Vec<Vec<u8>> {
    let filled = good[..good.len() - 72].iter().rposition(|byte| *byte != 0).unwrap();
    let mut all: Vec<Vec<u8>> = [0, 8, 10, 12, 16, 24, 32, 48, 64, 96, 150, filled, good.len() - 72, good.len() - 1]
        .map(|at| {
            let mut bad = good.to_vec();
            bad[at] ^= 0x40;
            bad
        })
        .into();
    all.push(pattern(77, good.len()));
    all.push(vec![0; good.len()]);
    all
}

#[test]
fn case_11_one_of_two_slots_is_damaged() {
    needs!(have_mount);
    // Headers of two pages go to the other slot at each change, so that both are written.
    let scene = Scene::with_header_pages(2);
    let slots = [scene.slot(&scene.victim, 0), scene.slot(&scene.victim, 1)];
    assert!(slots.iter().all(|slot| slot.iter().any(|byte| *byte != 0)), "both slots are written");
    let slot = [whole("header-slot", "/victim")];
    for damaged in 0..2u64 {
        for (n, bad) in damages(&slots[damaged as usize]).into_iter().enumerate() {
            scene.set_slot(&scene.victim, damaged, &bad);
            // One that another version may have written is left alone.
            let left = if n == VERSION { &slot[..] } else { &[] };
            match bad.iter().any(|byte| *byte != 0) {
                true if !(3..14).contains(&n) => scene.assert_reported(&slot, left),
                true => assert_eq!(scene.reported(), slot),
                false => scene.assert_clean(),
            }
            let mount = scene.volume.mount_with(&["ro"]);
            assert_file(&mount.join("victim"), &pattern(1, SIZE));
            // A slot that was never written is no damage.
            if bad.iter().any(|byte| *byte != 0) {
                assert_told(&mount, "header-slot", &scene.victim, None);
            }
            mount.unmount();
            scene.set_slot(&scene.victim, damaged, &slots[damaged as usize]);
        }
        // Work goes on from the good one, and both are good again.
        scene.set_slot(&scene.victim, damaged, &pattern(78, slots[0].len()));
        let mount = scene.mount();
        read_write(&mount.join("victim")).write_all_at(&pattern(1, 100), 0).unwrap();
        mount.unmount();
        assert_file(&scene.mount().join("victim"), &pattern(1, SIZE));
        scene.set_slot(&scene.victim, 0, &slots[0]);
        scene.set_slot(&scene.victim, 1, &slots[1]);
    }
    let mount = scene.mount();
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_11_the_only_slot_or_both_are_damaged() {
    needs!(have_mount);
    for pages in [1, 2] {
        let scene = Scene::with_header_pages(pages);
        let slots = [scene.slot(&scene.victim, 0), scene.slot(&scene.victim, 1)];
        let both = damages(&slots[0]).into_iter().zip(damages(if pages == 1 { &slots[0] } else { &slots[1] }));
        for (n, (bad_a, bad_b)) in both.enumerate() {
            let zeros = bad_a.iter().all(|byte| *byte == 0);
            scene.set_slot(&scene.victim, 0, &bad_a);
            // With one page a slot, B was never written.
            if pages == 2 {
                scene.set_slot(&scene.victim, 1, &bad_b);
            }
            let told = [whole(if zeros { "header-missing" } else { "header" }, "/victim")];
            let left = if n == VERSION { &told[..] } else { &[] };
            if !(3..14).contains(&n) {
                scene.assert_reported(&told, left);
            } else {
                assert_eq!(scene.reported(), told);
            }
            let mount = scene.volume.mount_with(&["ro"]);
            for result in [File::open(mount.join("victim")), direct(&mount.join("victim"))] {
                assert_errno(result, libc::EIO);
            }
            assert_told(&mount, if zeros { "header-missing" } else { "header" }, &scene.victim, None);
            assert_file(&mount.join("other"), &pattern(2, SIZE));
            mount.unmount();
        }
        assert_expendable(&scene, scene.mount(), &["victim"]);
    }
}

#[test]
fn case_12_an_older_header_in_both_slots_is_accepted() {
    needs!(have_mount);
    let scene = Scene::with_header_pages(2);
    let old = scene.slot(&scene.victim, 1);
    let mount = scene.mount();
    let file = File::options().append(true).open(mount.join("victim")).unwrap();
    std::io::Write::write_all(&mut &file, &pattern(8, 5000)).unwrap();
    drop(file);
    mount.unmount();
    assert_ne!(scene.slot(&scene.victim, 0), old, "the floor was raised");
    scene.set_slot(&scene.victim, 0, &old);
    scene.set_slot(&scene.victim, 1, &old);
    scene.assert_clean();
    let mount = scene.mount();
    let want = [pattern(1, SIZE), pattern(8, 5000)].concat();
    assert_bad_blocks(&mount.join("victim"), &want, &[]);
    mount.unmount();
    // Its older floor holds again: what lies above it may be cut, what lies below may not.
    set_len(&scene.victim, scene.block(BLOCKS));
    let mount = scene.mount();
    assert!(fs::metadata(mount.join("victim")).unwrap().len() >= SIZE as u64);
    assert_same(&fs::read(mount.join("victim")).unwrap()[..SIZE], &pattern(1, SIZE), "below the older floor");
    mount.unmount();
    set_len(&scene.victim, scene.block(3));
    assert_refused(&scene.mount().join("victim"), libc::EIO);
    assert_documented("An older header of the same file, with what it says of floor and keys");
    assert_expendable(&scene, scene.mount(), &["victim"]);
}

#[test]
fn case_13_swapped_headers() {
    needs!(have_mount);
    let scene = Scene::new();
    let (one, two) = (scene.slot(&scene.victim, 0), scene.slot(&scene.other, 0));
    scene.set_slot(&scene.victim, 0, &two);
    scene.set_slot(&scene.other, 0, &one);
    scene.assert_lasting(&["/victim", "/other"].map(|path| blocks("block-auth", path, 0, BLOCKS - 1)));
    let mount = scene.mount();
    for (name, backing) in [("victim", &scene.victim), ("other", &scene.other)] {
        let file = direct(&mount.join(name)).unwrap();
        for index in 0..BLOCKS {
            assert_errno(file.read_at(&mut [0; 100], index * PLAIN), libc::EIO);
            assert_told(&mount, "block-auth", backing, Some(index));
        }
    }
    assert_file(&mount.join("d/inside"), b"d");
    assert_expendable(&scene, mount, &["victim", "other"]);
}

/// The header of a short file over the blocks of a long one, whose floor it does not know, and the other way round.
#[test]
fn case_13_headers_of_files_of_other_sizes() {
    needs!(have_mount);
    let scene = Scene::new();
    let short = scene.backing("d/inside");
    let (long_header, short_header) = (scene.slot(&scene.victim, 0), scene.slot(&short, 0));
    scene.set_slot(&scene.victim, 0, &short_header);
    scene.set_slot(&short, 0, &long_header);
    let inside = "/d/inside";
    scene.assert_lasting(&[
        blocks("block-auth", "/victim", 0, BLOCKS - 1),
        blocks("block-auth", inside, 0, 0),
        whole("truncated-below-floor", inside),
    ]);
    let mount = scene.mount();
    let file = direct(&mount.join("victim")).unwrap();
    for index in 0..BLOCKS {
        assert_errno(file.read_at(&mut [0; 100], index * PLAIN), libc::EIO);
    }
    drop(file);
    assert_refused(&mount.join("d/inside"), libc::EIO);
    assert_told(&mount, "truncated-below-floor", &short, None);
    assert_removable(&mount, "d/inside");
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_14_a_transplanted_wrapped_key() {
    needs!(have_mount);
    let scene = Scene::new();
    // The DEK of another file of the same branch.
    let (mut header, donor) = (scene.slot(&scene.victim, 0), scene.slot(&scene.other, 0));
    let body = tlv(&header, TLV_WRAPPED_DEK, 0);
    header[body.clone()].copy_from_slice(&donor[tlv(&donor, TLV_WRAPPED_DEK, 0)]);
    fix_crc(&mut header);
    scene.set_slot(&scene.victim, 0, &header);
    scene.assert_lasting(&[whole("wrapped-key", "/victim")]);
    let mount = scene.mount();
    assert_refused(&mount.join("victim"), libc::ENOKEY);
    assert_told(&mount, "key", &scene.victim, None);
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_14_a_transplanted_cmk_blob() {
    needs!(have_mount);
    let scene = Scene::new();
    // From a volume under the same CMK: another branch, another volume id in the context.
    let foreign = scene.volume.scratch().join("foreign");
    let cmk = scene.volume.cmk();
    scene.volume.ok(["init".as_ref(), "--cmk".as_ref(), cmk.as_ref(), foreign.as_os_str()]);
    let insider = Insider::at(&foreign, &scene.volume.keyfile);
    let blob = insider.config.branch.as_ref().unwrap().slots[0].blob.clone();
    let mut header = scene.slot(&scene.victim, 0);
    let body = tlv(&header, TLV_CMK_SLOT, 0);
    header[body.end - blob.len()..body.end].copy_from_slice(&blob);
    fix_crc(&mut header);
    scene.set_slot(&scene.victim, 0, &header);
    scene.assert_lasting(&[whole("wrapped-key", "/victim")]);
    let mount = scene.mount();
    assert_refused(&mount.join("victim"), libc::ENOKEY);
    assert_told(&mount, "key", &scene.victim, None);
    // The same blob under the right commitment of its own still opens no key of this file.
    mount.unmount();
    let commitment = insider.config.branch.as_ref().unwrap().slots[0].commitment;
    header[body.start..body.start + 32].copy_from_slice(&commitment);
    fix_crc(&mut header);
    scene.set_slot(&scene.victim, 0, &header);
    scene.assert_lasting(&[whole("wrapped-key", "/victim")]);
    let mount = scene.mount();
    assert_refused(&mount.join("victim"), libc::ENOKEY);
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_15_slots_that_give_different_keys() {
    needs!(have_mount);
    let volume = Volume::unmade(None);
    let second = volume.config.join("second.json");
    volume.ok(["keygen".as_ref(), volume.keyfile.as_os_str()]);
    volume.ok(["keygen".as_ref(), second.as_os_str()]);
    let (first_uri, second_uri) = (volume.cmk(), format!("keyfile://{}", second.display()));
    let cipher = volume.cipher.clone();
    let words = ["init".as_ref(), "--cmk".as_ref(), first_uri.as_ref(), "--cmk".as_ref(), second_uri.as_ref()];
    volume.ok(words.into_iter().chain([cipher.as_os_str()]));
    let keyfiles = [volume.keyfile.clone(), second];
    let scene = Scene::on(volume, 1);
    let insider = Insider::of(&scene.volume);
    let good = scene.slot(&scene.victim, 0);
    let (header, _) = insider.open(&good);
    assert_eq!(header.slots.len(), 2);
    let branch = header.wrapped_dek.as_ref().unwrap().branch_id;
    let context = EncryptionContext::for_branch(&insider.config.volume_id, &branch);
    // Under the genuine CMK and context, but another key than the slot committed to.
    let mut bad = good.clone();
    let spoil = |header: &mut Vec<u8>, n: usize| {
        let cmk = KeyfileCmk::open(&keyfiles[n], None, &PassphraseSource::Nowhere).unwrap();
        let blob = cmk.wrap(&Secret32::random(), &context).unwrap();
        let body = tlv(header, TLV_CMK_SLOT, n);
        header[body.end - blob.len()..body.end].copy_from_slice(&blob);
        fix_crc(header);
    };
    for n in [0, 1] {
        bad.clone_from(&good);
        spoil(&mut bad, n);
        scene.set_slot(&scene.victim, 0, &bad);
        scene.assert_lasting(&[whole("cmk-slot", "/victim")]);
        let mount = scene.mount();
        assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[]);
        mount.unmount();
    }
    spoil(&mut bad, 0);
    scene.set_slot(&scene.victim, 0, &bad);
    scene.assert_lasting(&[whole("wrapped-key", "/victim")]);
    let mount = scene.mount();
    assert_refused(&mount.join("victim"), libc::ENOKEY);
    assert_told(&mount, "key", &scene.victim, None);
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_16_a_file_forged_by_somebody_who_can_only_wrap() {
    needs!(have_mount);
    let scene = Scene::new();
    let insider = Insider::of(&scene.volume);
    // Without an origin tag, and with the tag of a guessed key.
    for origin in [None, Some(Secret32::random())] {
        let forged = insider.forged_file(b"never to be served", origin.as_ref());
        fs::write(&scene.victim, &forged).unwrap();
        scene.assert_reported(&[whole("header", "/victim")], &[]);
        let mount = scene.mount();
        assert_refused(&mount.join("victim"), libc::EIO);
        assert_told(&mount, "header", &scene.victim, None);
        assert!(mount.log().contains("origin"), "{}", mount.log());
        mount.unmount();
    }
    // The forgery is a good file otherwise: with the volume key's tag it would open.
    let genuine = insider.forged_file(b"made with the volume key", Some(&insider.keys.origin));
    fs::write(&scene.victim, genuine).unwrap();
    scene.assert_clean();
    let mount = scene.mount();
    assert_file(&mount.join("victim"), b"made with the volume key");
    mount.unmount();
    fs::write(&scene.victim, insider.forged_file(b"never", None)).unwrap();
    assert_expendable(&scene, scene.mount(), &["victim"]);
}

#[test]
fn case_16_a_file_of_another_volume_under_the_same_cmk() {
    needs!(have_mount);
    let scene = Scene::new();
    let (foreign, mountpoint) = (scene.volume.scratch().join("foreign"), scene.volume.scratch().join("foreign-mnt"));
    let cmk = scene.volume.cmk();
    scene.volume.ok(["init".as_ref(), "--cmk".as_ref(), cmk.as_ref(), foreign.as_os_str()]);
    fs::create_dir(&mountpoint).unwrap();
    let mount = scene.volume.mount_other(&foreign, &mountpoint);
    fs::write(mount.join("file"), pattern(6, SIZE)).unwrap();
    let ino = fs::metadata(mount.join("file")).unwrap().ino();
    mount.unmount();
    let found = walk(&foreign).into_iter().find(|path| fs::symlink_metadata(path).unwrap().ino() == ino).unwrap();
    fs::copy(found, &scene.victim).unwrap();
    scene.assert_reported(&[whole("header", "/victim")], &[]);
    let mount = scene.mount();
    assert_refused(&mount.join("victim"), libc::EIO);
    assert_told(&mount, "header", &scene.victim, None);
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_17_flipped_suite_version_and_sizes() {
    needs!(have_mount);
    let scene = Scene::new();
    let good = scene.slot(&scene.victim, 0);
    // Version, suite, header pages, flags (HOLES_OK, SEALED), generation, floor, sealed size; with a correct checksum.
    for (at, mask) in [(8, 3), (10, 3), (12, 3), (16, 1), (16, 4), (24, 1), (32, 0xff), (33, 0xff), (39, 0x80), (40, 1)]
    {
        let mut bad = good.clone();
        bad[at] ^= mask;
        fix_crc(&mut bad);
        scene.set_slot(&scene.victim, 0, &bad);
        let told = [whole("header", "/victim")];
        // What another version of the program may have written is not moved.
        scene.assert_reported(&told, if at <= 10 { &told } else { &[] });
        let mount = scene.volume.mount_with(&["ro"]);
        assert_errno(File::open(mount.join("victim")), libc::EIO);
        assert_told(&mount, "header", &scene.victim, None);
        assert_file(&mount.join("other"), &pattern(2, SIZE));
        mount.unmount();
    }
    assert_expendable(&scene, scene.mount(), &["victim"]);
}

#[test]
fn case_17_a_volume_file_that_asks_for_weaker_checks() {
    needs!(have_mount);
    let scene = Scene::new();
    let path = scene.volume.cipher.join("envelopefs.toml");
    let good = fs::read_to_string(&path).unwrap();
    let edits = [
        ("plaintext_names = false", "plaintext_names = true"),
        ("header_pages = 1", "header_pages = 2"),
        ("key_mode = \"branch\"", "key_mode = \"per-file\""),
        ("version = 1", "version = 0"),
        ("version = 1", "version = 2"),
    ];
    for (from, to) in edits {
        let edited = good.replacen(from, to, 1);
        assert_ne!(edited, good, "{from}");
        fs::write(&path, edited).unwrap();
        scene.volume.fails(3, ["check".as_ref(), scene.volume.cipher.as_os_str()]);
        let words = ["mount".as_ref(), scene.volume.cipher.as_os_str(), scene.volume.mountpoint.as_os_str()];
        let message = scene.volume.fails(3, words);
        assert!(message.contains("volume file"), "{message}");
    }
    fs::write(&path, good).unwrap();
    assert_file(&scene.mount().join("victim"), &pattern(1, SIZE));
}

/// A parser that believed a length would allocate it; a fuzzed header costs what a good one does. That no provider is asked
/// is counted in-process by `fuzzed_headers`.
#[test]
fn case_18_fuzzed_tlvs_with_a_correct_checksum() {
    needs!(have_mount);
    const FILES: usize = 150;
    let scene = Scene::new();
    let mount = scene.mount();
    fs::create_dir(mount.join("fuzzed")).unwrap();
    let inos: Vec<u64> = (0..FILES)
        .map(|n| {
            let path = mount.join(format!("fuzzed/{n}"));
            fs::write(&path, pattern(n as u64, 5000)).unwrap();
            fs::metadata(path).unwrap().ino()
        })
        .collect();
    mount.unmount();
    let objects = walk(&scene.volume.cipher);
    let by_ino = |ino: u64| objects.iter().find(|path| fs::symlink_metadata(path).unwrap().ino() == ino).unwrap();
    let places: Vec<PathBuf> = inos.iter().map(|ino| by_ino(*ino).clone()).collect();
    let insider = Insider::of(&scene.volume);
    let mut random = Random::new(18);
    let parses: Vec<bool> = places
        .iter()
        .map(|place| {
            let mut header = scene.slot(place, 0);
            crate::forge::fuzz_tlvs(&mut header, &mut random);
            scene.set_slot(place, 0, &header);
            Unverified::parse(&header, insider.geometry()).is_ok()
        })
        .collect();
    assert!(parses.iter().any(|parses| *parses) && parses.iter().any(|parses| !parses), "both kinds are there");
    // Told are those that do not open, all of them and no other.
    let told: std::collections::HashSet<String> = scene
        .reported()
        .into_iter()
        .filter(|(code, ..)| code != "unknown-cmk")
        .filter_map(|(_, path, _)| path)
        .collect();
    let mount = scene.mount();
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    let before = resident_peak(&mount);
    for (n, parses) in parses.iter().enumerate() {
        let path = mount.join(format!("fuzzed/{n}"));
        let opened = errno(File::open(&path));
        assert_eq!(told.contains(&format!("/fuzzed/{n}")), opened != 0, "header {n}, which open answers by {opened}");
        match opened {
            libc::EIO => {}
            // It parsed: keys were looked for and not found.
            libc::ENOKEY => assert!(parses, "header {n} does not parse and must not lead to keys"),
            // What is outside the MAC (a blob, of a branch whose key is there already) opens nothing else than the truth.
            0 => {
                assert!(parses, "header {n} does not parse");
                assert_file(&path, &pattern(n as u64, 5000));
            }
            other => panic!("header {n}: errno {other}"),
        }
    }
    let grown = resident_peak(&mount) - before;
    assert!(grown < 64 << 10, "{grown} KiB for {FILES} headers");
    assert!(mount.log().contains("code=header path=tree"), "{}", mount.log());
    for n in 0..FILES {
        let path = mount.join(format!("fuzzed/{n}"));
        if n % 2 == 0 {
            truncated(&path).unwrap();
        }
        fs::remove_file(path).unwrap();
    }
    fs::remove_dir(mount.join("fuzzed")).unwrap();
    assert_expendable(&scene, mount, &[]);
}

/// Peak resident memory of the daemon in KiB.
pub fn resident_peak(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_tlv_walker_sees_what_a_header_holds() {
    needs!(have_mount);
    let scene = Scene::new();
    let kinds: Vec<u16> = tlvs(&scene.slot(&scene.victim, 0)).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [TLV_WRAPPED_DEK, TLV_CMK_SLOT]);
}
