//! Tampering with the backing directory, seen through a mount: the right error, for the right bytes, and no hang.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkfifoat};

use super::content::read_write;
use super::metadata::mtime;
use crate::common::*;
use crate::needs;

const BLOCKS: u64 = 20;
const SIZE: usize = (BLOCKS * PLAIN) as usize - 1000;

/// A volume with the files `victim` and `other` and the directories `d` and `e`, unmounted; nothing is cached anywhere.
struct Scene {
    volume: Volume,
    victim: PathBuf,
    other: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let volume = Volume::new();
        let mount = volume.mount();
        fs::write(mount.join("victim"), pattern(1, SIZE)).unwrap();
        fs::write(mount.join("other"), pattern(2, SIZE)).unwrap();
        for directory in ["d", "e"] {
            fs::create_dir(mount.join(directory)).unwrap();
            fs::write(mount.join(directory).join("inside"), directory).unwrap();
        }
        let ino = |name: &str| fs::metadata(mount.join(name)).unwrap().ino();
        let (victim, other) = (ino("victim"), ino("other"));
        mount.unmount();
        Self { victim: volume.backing_of(victim), other: volume.backing_of(other), volume }
    }
    fn mount(&self) -> Mount {
        self.volume.mount()
    }
}

fn page(path: &Path, offset: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}
fn set_page(path: &Path, offset: u64, bytes: &[u8]) {
    read_write(path).write_all_at(bytes, offset).unwrap();
}
fn block(index: u64) -> u64 {
    DATA_START + index * PAGE
}
fn flip(path: &Path, offset: u64) {
    let mut byte = [0];
    let file = read_write(path);
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}
/// Reads each block past the page cache and insists that exactly `bad` fail with EIO and the rest is right.
fn assert_bad_blocks(path: &Path, want: &[u8], bad: &[u64]) {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    for index in 0..BLOCKS {
        let (start, end) = ((index * PLAIN) as usize, (((index + 1) * PLAIN) as usize).min(want.len()));
        let mut buffer = vec![0; end - start];
        let result = file.read_at(&mut buffer, start as u64);
        if bad.contains(&index) {
            assert!(errno(result) == libc::EIO, "block {index} must fail");
        } else {
            assert_eq!(result.unwrap_or_else(|e| panic!("block {index}: {e}")), end - start, "block {index}");
            assert_same(&buffer, &want[start..end], &format!("block {index}"));
        }
    }
}
fn assert_unopenable(path: &Path) {
    let result = File::open(path).and_then(|file| file.read_at(&mut [0; 100], 0));
    assert_errno(result, libc::EIO);
}

#[test]
fn a_flipped_bit_costs_its_block_and_no_other() {
    needs!(have_mount);
    let scene = Scene::new();
    flip(&scene.victim, block(7) + 2000);
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[7]);
    // Also through the page cache: pages that touch no byte of block 7 are served.
    let file = File::open(mount.join("victim")).unwrap();
    let mut buffer = [0; PAGE as usize];
    let (first, last) = (7 * PLAIN / PAGE, (8 * PLAIN - 1) / PAGE);
    for index in 0..SIZE as u64 / PAGE {
        let result = file.read_exact_at(&mut buffer, index * PAGE);
        assert_eq!(errno(result), if (first..=last).contains(&index) { libc::EIO } else { 0 }, "page {index}");
    }
    assert_bad_blocks(&mount.join("other"), &pattern(2, SIZE), &[]);
    // The log names the object as an operator finds it below, and no plaintext name.
    let (log, name) = (mount.log(), scene.victim.file_name().unwrap().to_str().unwrap());
    let line = log.lines().find(|line| line.contains("code=block-auth")).expect("a log line");
    assert!(line.contains(name) && line.contains("block 7") && !log.contains("victim"), "{log}");
    drop(file);
    mount.unmount();
}

#[test]
fn every_byte_of_a_block_header_counts() {
    needs!(have_mount);
    let scene = Scene::new();
    let good = page(&scene.victim, block(3));
    for offset in 0..48 {
        set_page(&scene.victim, block(3), &good);
        flip(&scene.victim, block(3) + offset);
        let mount = scene.volume.mount_with(&["ro"]);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.join("victim")).unwrap();
        assert_errno(file.read_at(&mut [0; 100], 3 * PLAIN), libc::EIO);
        drop(file);
        mount.unmount();
    }
}

#[test]
fn moved_blocks_are_noticed() {
    needs!(have_mount);
    let scene = Scene::new();
    let (two, nine) = (page(&scene.victim, block(2)), page(&scene.victim, block(9)));
    set_page(&scene.victim, block(2), &nine);
    set_page(&scene.victim, block(9), &two);
    // A block of another file, at the same index.
    set_page(&scene.victim, block(5), &page(&scene.other, block(5)));
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[2, 5, 9]);
}

#[test]
fn a_zeroed_block_below_the_floor_is_an_error() {
    needs!(have_mount);
    let scene = Scene::new();
    set_page(&scene.victim, block(4), &[0; PAGE as usize]);
    let mount = scene.mount();
    assert_bad_blocks(&mount.join("victim"), &pattern(1, SIZE), &[4]);
}

#[test]
fn holes_that_were_made_are_zeros() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let file = super::content::create(&mount.join("sparse"));
    file.write_all_at(b"island", 50_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    let mut model = vec![0; 50_000];
    model.extend(b"island");
    assert_file(&mount.join("sparse"), &model);
}

#[test]
fn an_older_version_of_a_block_is_accepted() {
    needs!(have_mount);
    let scene = Scene::new();
    let old = page(&scene.victim, block(6));
    let mount = scene.mount();
    read_write(&mount.join("victim")).write_all_at(&[9; 4048], 6 * PLAIN).unwrap();
    mount.unmount();
    set_page(&scene.victim, block(6), &old);
    let mount = scene.mount();
    // Authenticity and position, not freshness: an honest limit that the documents state.
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
}

#[test]
fn truncation_below_the_floor_is_an_error() {
    needs!(have_mount);
    let scene = Scene::new();
    let full = fs::metadata(&scene.victim).unwrap().len();
    for len in [block(10), block(10) + 100, block(1) + 1, full - 1] {
        let copy = fs::read(&scene.victim).unwrap();
        read_write(&scene.victim).set_len(len).unwrap();
        let mount = scene.mount();
        assert_unopenable(&mount.join("victim"));
        fs::metadata(mount.join("victim")).unwrap();
        mount.unmount();
        fs::write(&scene.victim, copy).unwrap();
    }
    assert_file(&scene.mount().join("victim"), &pattern(1, SIZE));
}

#[test]
fn an_impossible_length_is_an_error_and_stat_answers() {
    needs!(have_mount);
    let scene = Scene::new();
    read_write(&scene.victim).set_len(block(BLOCKS) + 4090).unwrap();
    let mount = scene.mount();
    assert!(fs::metadata(mount.join("victim")).unwrap().len() < 1 << 20);
    assert_unopenable(&mount.join("victim"));
}

#[test]
fn extension_reads_as_zeros_in_no_time() {
    needs!(have_mount);
    let scene = Scene::new();
    read_write(&scene.victim).set_len(block(1 << 28) + 100).unwrap();
    let mount = scene.mount();
    let file = File::open(mount.join("victim")).unwrap();
    assert!(file.metadata().unwrap().len() > 1 << 39);
    let mut buffer = [1; 1000];
    file.read_exact_at(&mut buffer, 1 << 38).unwrap();
    assert_eq!(buffer, [0; 1000]);
    let mut head = vec![0; 40_000];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_same(&head, &pattern(1, SIZE)[..40_000], "what was there before");
}

#[test]
fn headers_belong_to_their_file() {
    needs!(have_mount);
    let scene = Scene::new();
    let (one, two) = (page(&scene.victim, 0), page(&scene.other, 0));
    set_page(&scene.victim, 0, &two);
    set_page(&scene.other, 0, &one);
    let mount = scene.mount();
    for name in ["victim", "other"] {
        // Each header is authentic, so open may succeed; no block opens under another file's key.
        if let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.join(name)) {
            for index in 0..BLOCKS {
                assert_errno(file.read_at(&mut [0; 100], index * PLAIN), libc::EIO);
            }
        }
    }
}

#[test]
fn a_damaged_header_is_an_error() {
    needs!(have_mount);
    let scene = Scene::new();
    let good = page(&scene.victim, 0);
    let filled = good.iter().rposition(|&byte| byte != 0).unwrap() as u64;
    for offset in [0, 5, 9, 20, 40, 60, 100, 130, 200, filled] {
        set_page(&scene.victim, 0, &good);
        flip(&scene.victim, offset);
        let mount = scene.volume.mount_with(&["ro"]);
        assert_unopenable(&mount.join("victim"));
        assert_file(&mount.join("other"), &pattern(2, SIZE));
        mount.unmount();
    }
    set_page(&scene.victim, 0, &[0; PAGE as usize]);
    assert_unopenable(&scene.mount().join("victim"));
}

#[test]
fn broken_files_can_be_emptied_and_removed() {
    needs!(have_mount);
    let scene = Scene::new();
    for path in [&scene.victim, &scene.other] {
        set_page(path, 0, &pattern(77, PAGE as usize));
    }
    let mount = scene.mount();
    assert_unopenable(&mount.join("victim"));
    OpenOptions::new().write(true).truncate(true).open(mount.join("victim")).unwrap();
    assert_file(&mount.join("victim"), b"");
    fs::write(mount.join("victim"), b"new content").unwrap();
    fs::remove_file(mount.join("other")).unwrap();
    mount.unmount();
    let mount = scene.mount();
    assert_file(&mount.join("victim"), b"new content");
    assert_eq!(names(&mount.path), ["d", "e", "victim"]);
}

/// A file replaced by something else below is not followed, not opened, and nothing waits for it.
#[test]
fn files_replaced_by_other_kinds() {
    needs!(have_mount);
    let outside = scratch();
    fs::write(outside.path().join("outside"), b"never to be served").unwrap();
    for kind in ["fifo", "link", "directory", "device"] {
        if kind == "device" && !is_root() {
            continue;
        }
        let scene = Scene::new();
        fs::remove_file(&scene.victim).unwrap();
        match kind {
            "fifo" => mkfifoat(CWD, &scene.victim, Mode::from_raw_mode(0o666)).unwrap(),
            "link" => symlink(outside.path().join("outside"), &scene.victim).unwrap(),
            "directory" => fs::create_dir(&scene.victim).unwrap(),
            _ => {
                let device = rustix::fs::makedev(1, 5);
                rustix::fs::mknodat(CWD, &scene.victim, rustix::fs::FileType::CharacterDevice, Mode::RUSR, device)
                    .unwrap();
            }
        }
        let mount = scene.mount();
        let path = mount.join("victim");
        let kind_shown = fs::symlink_metadata(&path).map(|metadata| metadata.file_type());
        match kind {
            // A FIFO or a device is what it is to the caller too; the kernel opens it, not the daemon.
            "fifo" | "device" => assert!(kind_shown.is_ok_and(|shown| !shown.is_file())),
            "link" => assert_errno(fs::read_link(&path), libc::EIO),
            _ => assert_errno(
                fs::read_dir(&path).and_then(|mut all| all.next().unwrap_or(Err(std::io::Error::from_raw_os_error(0)))),
                libc::EIO,
            ),
        }
        // A FIFO would make a blocking open wait for its other end, as any FIFO does.
        let nonblocking = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut content = [0; 5];
        assert!(!nonblocking.is_ok_and(|file| file.read_at(&mut content, 0).is_ok_and(|got| got > 0)), "{kind}");
        assert_file(&mount.join("other"), &pattern(2, SIZE));
        mount.unmount();
    }
}

/// The swap happens while the daemon knows the file as a regular one.
#[test]
fn a_known_file_replaced_by_a_fifo() {
    needs!(have_mount);
    let scene = Scene::new();
    let mount = scene.mount();
    fs::metadata(mount.join("victim")).unwrap();
    fs::remove_file(&scene.victim).unwrap();
    mkfifoat(CWD, &scene.victim, Mode::from_raw_mode(0o666)).unwrap();
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(mount.join("victim"));
    let got = errno(open.and_then(|file| file.read_at(&mut [0; 10], 0)));
    assert!(got == libc::EIO || got == libc::ESTALE, "errno {got}");
    assert_file(&mount.join("other"), &pattern(2, SIZE));
}

fn backing_directory(scene: &Scene, name: &str) -> PathBuf {
    let mount = scene.mount();
    let ino = fs::metadata(mount.join(name)).unwrap().ino();
    mount.unmount();
    scene.volume.backing_of(ino)
}

#[test]
fn an_entry_moved_to_another_directory_is_hidden() {
    needs!(have_mount);
    let scene = Scene::new();
    let directory = backing_directory(&scene, "d");
    fs::rename(&scene.victim, directory.join(scene.victim.file_name().unwrap())).unwrap();
    let mount = scene.mount();
    assert_eq!(names(&mount.join("d")), ["inside"]);
    assert_errno(File::open(mount.join("victim")), libc::ENOENT);
    assert_errno(File::open(mount.join("d/victim")), libc::ENOENT);
    assert!(mount.log().contains("code="), "{}", mount.log());
}

#[test]
fn a_directory_without_its_id_is_an_error() {
    needs!(have_mount);
    for how in ["deleted", "swapped", "forged"] {
        let scene = Scene::new();
        let (d, e) = (backing_directory(&scene, "d"), backing_directory(&scene, "e"));
        let id = d.join(".envelopefs.dir");
        let record = fs::read_link(&id).unwrap();
        fs::remove_file(&id).unwrap();
        match how {
            "swapped" => symlink(fs::read_link(e.join(".envelopefs.dir")).unwrap(), &id).unwrap(),
            "forged" => {
                let mut text = record.to_str().unwrap().to_owned().into_bytes();
                text[3] = if text[3] == b'A' { b'B' } else { b'A' };
                symlink(String::from_utf8(text).unwrap(), &id).unwrap();
            }
            _ => {}
        }
        let mount = scene.mount();
        let listed = fs::read_dir(mount.join("d")).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        if how == "swapped" {
            // An authentic id of this volume: the names below it do not open under it.
            assert!(listed.is_err() || listed.unwrap().is_empty());
        } else {
            assert_errno(listed, libc::EIO);
            assert_errno(File::create(mount.join("d/new")), libc::EIO);
            assert!(mount.log().contains("code=dir-id"), "{}", mount.log());
        }
        assert!(File::open(mount.join("d/inside")).is_err());
        assert_file(&mount.join("e/inside"), b"e");
        mount.unmount();
        let after = fs::symlink_metadata(&id);
        assert_eq!(after.is_ok(), how != "deleted", "an id is never made anew");
    }
}

/// What is authentic is accepted wherever its volume says it may be: documented limits, shown here so that they are known.
#[test]
fn documented_limits() {
    needs!(have_mount);
    let scene = Scene::new();
    // Siblings swapped.
    let temporary = scene.victim.with_file_name("temporary");
    fs::rename(&scene.victim, &temporary).unwrap();
    fs::rename(&scene.other, &scene.victim).unwrap();
    fs::rename(&temporary, &scene.other).unwrap();
    let mount = scene.mount();
    assert_file(&mount.join("victim"), &pattern(2, SIZE));
    assert_file(&mount.join("other"), &pattern(1, SIZE));
    mount.unmount();
    // A file emptied.
    read_write(&scene.victim).set_len(0).unwrap();
    // A whole older copy of a file.
    let mount = scene.mount();
    assert_file(&mount.join("victim"), b"");
    let older = fs::read(&scene.other).unwrap();
    fs::write(mount.join("other"), b"newer content").unwrap();
    mount.unmount();
    fs::write(&scene.other, older).unwrap();
    let mount = scene.mount();
    assert_file(&mount.join("other"), &pattern(1, SIZE));
}

#[test]
fn stray_objects_below_are_hidden() {
    needs!(have_mount);
    let scene = Scene::new();
    let tree = scene.volume.cipher.join("tree");
    fs::write(tree.join("plain file"), b"not ours").unwrap();
    fs::write(tree.join("bm90IG91cnM"), b"not ours").unwrap();
    fs::write(tree.join(".envelopefs.tmp.leftover"), b"").unwrap();
    symlink("dangling", tree.join(".envelopefs.long.AAAA")).unwrap();
    let mount = scene.mount();
    assert_eq!(names(&mount.path), ["d", "e", "other", "victim"]);
    let before = mtime(&mount.join("victim"));
    assert_file(&mount.join("victim"), &pattern(1, SIZE));
    assert_eq!(mtime(&mount.join("victim")), before);
}

#[test]
fn a_lost_companion_or_overflow_object_costs_its_entry_alone() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let long = "n".repeat(255);
    fs::write(mount.join(&long), b"long name").unwrap();
    fs::write(mount.join("good"), b"good").unwrap();
    symlink("t".repeat(3000), mount.join("link")).unwrap();
    mount.unmount();
    for path in walk(&volume.cipher.join("overflow")) {
        fs::remove_file(path).unwrap();
    }
    let companions =
        walk(&volume.cipher.join("tree")).into_iter().filter(|path| path.to_str().unwrap().ends_with(".name"));
    assert_eq!(companions.map(|path| fs::remove_file(path).unwrap()).count(), 1);
    let mount = volume.mount();
    assert_eq!(names(&mount.path), ["good", "link"]);
    assert_errno(fs::read_link(mount.join("link")), libc::EIO);
    assert!(mount.log().contains("code="), "{}", mount.log());
    fs::remove_file(mount.join("link")).unwrap();
    assert_file(&mount.join("good"), b"good");
    // Not listed, but whoever knows the name has the file; and the name can be had again.
    assert_file(&mount.join(&long), b"long name");
    fs::remove_file(mount.join(&long)).unwrap();
    fs::write(mount.join(&long), b"new").unwrap();
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join(&long), b"new");
    assert_eq!(names(&mount.path).len(), 2);
}

#[test]
fn a_root_without_its_id_is_not_mounted() {
    needs!(have_mount);
    let scene = Scene::new();
    let id = scene.volume.cipher.join("tree/.envelopefs.dir");
    let record = fs::read_link(&id).unwrap();
    fs::remove_file(&id).unwrap();
    let arguments = ["mount".as_ref(), scene.volume.cipher.as_os_str(), scene.volume.mountpoint.as_os_str()];
    scene.volume.fails(3, arguments);
    assert!(fs::symlink_metadata(&id).is_err(), "an id is never made anew");
    symlink(record, &id).unwrap();
    assert_file(&scene.mount().join("other"), &pattern(2, SIZE));
}
