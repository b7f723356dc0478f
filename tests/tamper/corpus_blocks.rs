//! Corpus cases 1 to 10: blocks and lengths. Each on a real mount, with its errno, its word in the log, and what stays good.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use crate::common::*;
use crate::forge::Insider;
use crate::needs;
use crate::reported::*;
use crate::scene::*;

#[test]
fn case_01_a_flipped_ciphertext_bit() {
    needs!(have_mount);
    let scene = Scene::new();
    for (index, at) in [(1, 48), (3, 2000), (BLOCKS - 1, 4095)] {
        flip(&scene.victim, scene.block(index) + at);
    }
    let bad = [1, 3, BLOCKS - 1].map(|n| blocks("block-auth", "/victim", n, n));
    scene.assert_lasting(&bad);
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[1, 3, BLOCKS - 1]);
    // Through the page cache: every page that touches no byte of a bad block is served.
    let file = File::open(mount.join("victim")).unwrap();
    for index in 0..SIZE as u64 / PAGE {
        let (first, last) = (index * PAGE / PLAIN, ((index + 1) * PAGE - 1) / PLAIN);
        let bad = [1, 3, BLOCKS - 1].iter().any(|block| (first..=last).contains(block));
        let result = file.read_exact_at(&mut [0; PAGE as usize], index * PAGE);
        assert_eq!(errno(result), if bad { libc::EIO } else { 0 }, "page {index}");
    }
    drop(file);
    // A bad block takes no partial write, since the rest of it is unknown; a whole one heals it.
    let file = read_write(&mount.join("victim"));
    assert_errno(file.write_all_at(b"part", 3 * PLAIN + 10).and_then(|()| file.sync_all()), libc::EIO);
    drop(file);
    for index in [1, 3, BLOCKS - 1] {
        assert_told(&mount, "block-auth", &scene.victim, Some(index));
    }
    assert_removable(&mount, "victim");
    assert_expendable(&scene, mount, &[]);
}

/// A whole block may be written over a bad one, which is good from then on.
#[test]
fn case_01_a_bad_block_is_healed_by_writing_it_whole() {
    needs!(have_mount);
    let scene = Scene::new();
    flip(&scene.victim, scene.block(3) + 2000);
    let mount = scene.mount();
    let mut want = pattern(1, SIZE);
    let whole = pattern(9, PLAIN as usize);
    want[3 * PLAIN as usize..4 * PLAIN as usize].copy_from_slice(&whole);
    let file = OpenOptions::new().write(true).open(mount.join("victim")).unwrap();
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::DIRECT).unwrap();
    file.write_all_at(&whole, 3 * PLAIN).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_file(&mount.join("victim"), &want);
    mount.unmount();
    assert_file(&scene.mount().join("victim"), &want);
}

#[test]
fn case_02_every_byte_of_a_block_header() {
    needs!(have_mount);
    let scene = Scene::new();
    // The last block too, whose clear bytes say the size of a growing file.
    for index in [3, BLOCKS - 1] {
        let good = page(&scene.victim, scene.block(index));
        let copies: Vec<_> = (0..48u64).collect();
        // One copy of the file per byte, all checked on one mount: a copy is authentic wherever its name belongs.
        let mount = scene.mount();
        for at in &copies {
            fs::write(mount.join(format!("copy{at}")), b"placeholder").unwrap();
        }
        let inos: Vec<_> = copies
            .iter()
            .map(|at| std::os::unix::fs::MetadataExt::ino(&fs::metadata(mount.join(format!("copy{at}"))).unwrap()))
            .collect();
        mount.unmount();
        let places: Vec<_> = inos.iter().map(|ino| scene.volume.backing_of(*ino)).collect();
        for (at, place) in copies.iter().zip(&places) {
            tool("cp", &["--sparse=always".as_ref(), scene.victim.as_os_str(), place.as_os_str()]);
            let mut bad = good;
            bad[*at as usize] ^= 1 << (at % 8);
            put(place, scene.block(index), &bad);
        }
        let bad: Vec<_> = copies.iter().map(|at| blocks("block-auth", &format!("/copy{at}"), index, index)).collect();
        scene.assert_lasting(&bad);
        let mount = scene.mount();
        for at in &copies {
            let path = mount.join(format!("copy{at}"));
            assert_bad_blocks(&path, &pattern(1, SIZE), &[index]);
            fs::remove_file(path).unwrap();
        }
        assert_told(&mount, "block-auth", &places[0], Some(index));
        assert_file(&mount.join("victim"), &pattern(1, SIZE));
        mount.unmount();
    }
}

#[test]
fn case_03_swapped_blocks() {
    needs!(have_mount);
    let scene = Scene::new();
    let (two, six) = (page(&scene.victim, scene.block(2)), page(&scene.victim, scene.block(6)));
    put(&scene.victim, scene.block(2), &six);
    put(&scene.victim, scene.block(6), &two);
    scene.assert_lasting(&[2, 6].map(|n| blocks("block-auth", "/victim", n, n)));
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[2, 6]);
    assert_told(&mount, "block-auth", &scene.victim, Some(2));
    assert_told(&mount, "block-auth", &scene.victim, Some(6));
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_04_a_block_of_another_file() {
    needs!(have_mount);
    let scene = Scene::new();
    put(&scene.victim, scene.block(5), &page(&scene.other, scene.block(5)));
    scene.assert_lasting(&[blocks("block-auth", "/victim", 5, 5)]);
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[5]);
    assert_told(&mount, "block-auth", &scene.victim, Some(5));
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_05_an_older_version_of_a_block_is_accepted() {
    needs!(have_mount);
    let scene = Scene::new();
    let old = page(&scene.victim, scene.block(6));
    let mount = scene.mount();
    read_write(&mount.join("victim")).write_all_at(&pattern(7, 3 * PLAIN as usize), 5 * PLAIN).unwrap();
    mount.unmount();
    put(&scene.victim, scene.block(6), &old);
    let mut want = pattern(1, SIZE);
    want.truncate(5 * PLAIN as usize);
    want.extend(pattern(7, 3 * PLAIN as usize));
    let of_block = 6 * PLAIN as usize..7 * PLAIN as usize;
    want[of_block.clone()].copy_from_slice(&pattern(1, SIZE)[of_block]);
    scene.assert_clean();
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &want, &[]);
    assert_documented("An older authentic version of a block, at its own place in its own file");
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_06_a_zeroed_block() {
    needs!(have_mount);
    let scene = Scene::new();
    // Above the floor: a file that a killed daemon left growing has floor 0. A file with a hole: HOLES_OK.
    let content = pattern(3, 6 * PLAIN as usize);
    let mount = scene.mount();
    let file = File::create(mount.join("sparse")).unwrap();
    file.write_all_at(&pattern(4, 2 * PLAIN as usize), 0).unwrap();
    file.write_all_at(&pattern(5, PLAIN as usize), 6 * PLAIN).unwrap();
    drop(file);
    mount.unmount();
    let sparse = scene.backing("sparse");
    let growing = scene.left_growing("growing", &content);
    for (path, index) in [(&scene.victim, 4), (&growing, 2), (&sparse, 1)] {
        put(path, scene.block(index), &[0; PAGE as usize]);
    }
    let hole = blocks("hole-below-floor", "/victim", 4, 4);
    scene.assert_reported(&[hole.clone(), whole("size-not-settled", "/growing")], &[hole]);
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[4]);
    assert_told(&mount, "hole-below-floor", &scene.victim, Some(4));
    let mut zeroed = content;
    zeroed[2 * PLAIN as usize..3 * PLAIN as usize].fill(0);
    assert_file(&mount.join("growing"), &zeroed);
    let mut holey = pattern(4, PLAIN as usize);
    holey.resize(6 * PLAIN as usize, 0);
    holey.extend(pattern(5, PLAIN as usize));
    assert_file(&mount.join("sparse"), &holey);
    assert_documented(
        "Zeroed blocks above what the last commit covered, and anywhere in a file that has holes, read as zeros",
    );
    assert_expendable(&scene, mount, &["victim", "growing", "sparse"]);
}

#[test]
fn case_07_truncation_below_the_floor() {
    needs!(have_mount);
    let scene = Scene::new();
    let (full, copy) = (len(&scene.victim), fs::read(&scene.victim).unwrap());
    // In whole blocks, inside one, by a single byte, to one byte.
    for short in [scene.block(5), scene.block(5) + 100, full - 1, scene.block(1) + 1] {
        set_len(&scene.victim, short);
        let mut bad = vec![whole("truncated-below-floor", "/victim")];
        if short == scene.block(5) {
            bad.push(whole("size-not-settled", "/victim"));
        }
        scene.assert_lasting(&bad);
        let mount = scene.mount();
        fs::metadata(mount.join("victim")).unwrap();
        assert_refused(&mount.join("victim"), libc::EIO);
        assert_told(&mount, "truncated-below-floor", &scene.victim, None);
        mount.unmount();
        fs::write(&scene.victim, &copy).unwrap();
    }
    // Restored, it is whole.
    let mount = scene.mount();
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    mount.unmount();
    set_len(&scene.victim, scene.block(3));
    assert_expendable(&scene, scene.mount(), &["victim"]);
}

/// The floor is what the last commit covered: above it a cut is not noticed, and below it nothing is.
#[test]
fn case_07_truncation_above_the_floor_is_accepted() {
    needs!(have_mount);
    let scene = Scene::new();
    let growing = scene.left_growing("growing", &pattern(3, 6 * PLAIN as usize));
    set_len(&growing, scene.block(2));
    scene.assert_reported(&[whole("size-not-settled", "/growing")], &[]);
    let mount = scene.mount();
    assert_file(&mount.join("growing"), &pattern(3, 2 * PLAIN as usize));
    assert_documented("A file cut down, but not below what the last commit covered");
    assert_expendable(&scene, mount, &["growing"]);
}

#[test]
fn case_08_impossible_lengths() {
    needs!(have_mount);
    let scene = Scene::new();
    let start = scene.block(0);
    for (length, shown) in [
        (scene.block(BLOCKS) + 4049, BLOCKS * PLAIN),
        (scene.block(BLOCKS) + 4095, BLOCKS * PLAIN),
        (start + 1, 0),
        (start + 4095, 0),
        (scene.block(1 << 30) + 4090, (1 << 30) * PLAIN),
    ] {
        let copy = fs::read(&scene.victim).unwrap();
        set_len(&scene.victim, length);
        scene.assert_lasting(&[whole("impossible-length", "/victim")]);
        let mount = scene.mount();
        assert_eq!(fs::metadata(mount.join("victim")).unwrap().len(), shown, "length {length}");
        assert_eq!(names(&mount.path).len(), 4, "listings do not suffer");
        if shown > 0 {
            assert_refused(&mount.join("victim"), libc::EIO);
        } else {
            assert_errno(File::open(mount.join("victim")), libc::EIO);
        }
        assert_told(&mount, "impossible-length", &scene.victim, None);
        mount.unmount();
        fs::write(&scene.victim, &copy).unwrap();
    }
    set_len(&scene.victim, scene.block(BLOCKS) + 4090);
    assert_expendable(&scene, scene.mount(), &["victim"]);
}

#[test]
fn case_09_without_a_tail_the_last_block_says_the_size() {
    needs!(have_mount);
    let scene = Scene::new();
    set_len(&scene.victim, scene.block(BLOCKS));
    let unsettled = whole("size-not-settled", "/victim");
    scene.assert_reported(std::slice::from_ref(&unsettled), &[]);
    let mount = scene.mount();
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    mount.unmount();
    // A forged size: longer, shorter than the floor, and none at all.
    for valid in [4048u16, 2000, 0, 0xffff] {
        set_len(&scene.victim, scene.block(BLOCKS));
        let good = page(&scene.victim, scene.block(BLOCKS - 1));
        let mut bad = good;
        bad[32..34].copy_from_slice(&valid.to_le_bytes());
        put(&scene.victim, scene.block(BLOCKS - 1), &bad);
        let mut bad = vec![unsettled.clone(), blocks("block-auth", "/victim", BLOCKS - 1, BLOCKS - 1)];
        if valid < 3000 {
            bad.push(whole("truncated-below-floor", "/victim"));
        }
        scene.assert_lasting(&bad);
        let mount = scene.mount();
        let size = fs::metadata(mount.join("victim")).unwrap().len();
        assert!(size <= BLOCKS * PLAIN, "{size}");
        let last = direct(&mount.join("victim")).and_then(|file| file.read_at(&mut [0; 100], (BLOCKS - 1) * PLAIN));
        assert_errno(last, libc::EIO);
        let log = mount.log();
        assert!(log.contains("code=block-auth") || log.contains("code=truncated-below-floor"), "{log}");
        mount.unmount();
        put(&scene.victim, scene.block(BLOCKS - 1), &good);
    }
    set_len(&scene.victim, scene.block(BLOCKS));
    let mount = scene.mount();
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    assert_expendable(&scene, mount, &["victim"]);
}

#[test]
fn case_10_extension_by_a_terabyte() {
    needs!(have_mount);
    let scene = Scene::new();
    let blocks = (1u64 << 40) / PAGE;
    let sealed = scene.backing("other");
    let insider = Insider::of(&scene.volume);
    let slot = insider.rewritten(&scene.slot(&sealed, 0), |header| {
        header.flags |= envelopefs::format::header::FLAG_SEALED;
        header.sealed_size = SIZE as u64;
    });
    scene.set_slot(&sealed, 0, &slot);
    // A sealed file of its exact size is served.
    let mount = scene.mount();
    assert_file(&mount.join("other"), &pattern(2, SIZE));
    mount.unmount();
    set_len(&scene.victim, scene.block(blocks) + 100);
    set_len(&sealed, scene.block(blocks) + 100);
    scene.assert_lasting(&[whole("sealed-size", "/other")]);
    let mount = scene.mount();
    let before = std::time::Instant::now();
    let file = File::open(mount.join("victim")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (blocks - 1) * PLAIN + 100);
    for offset in [BLOCKS * PLAIN, 1 << 30, 1 << 39, (blocks - 1) * PLAIN] {
        let mut buffer = [1; 100];
        file.read_exact_at(&mut buffer, offset).unwrap();
        assert_eq!(buffer, [0; 100], "at {offset}");
    }
    assert!(before.elapsed().as_secs() < 60, "work in proportion to the hole");
    let mut head = vec![0; SIZE];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_same(&head, &pattern(1, SIZE), "what was there before");
    drop(file);
    assert_refused(&mount.join("other"), libc::EIO);
    assert_told(&mount, "sealed-size", &sealed, None);
    assert_documented("A file extended below shows zeros at its end");
    assert_expendable(&scene, mount, &["victim", "other"]);
}
