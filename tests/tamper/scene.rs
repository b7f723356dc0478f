//! One mounted volume with known files, the tools to damage what lies below, and the questions that every case asks afterwards.
//! Knows where bytes stand; must not know keys.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::common::*;

pub const BLOCKS: u64 = 8;
/// Bytes of `victim` and `other`: the last block is not full.
pub const SIZE: usize = (BLOCKS * PLAIN) as usize - 1000;

/// A volume with the files `victim` and `other` and the directories `d` and `e`, unmounted, everything committed.
pub struct Scene {
    pub volume: Volume,
    pub victim: PathBuf,
    pub other: PathBuf,
    /// Backing offset of block 0.
    data_start: u64,
}

impl Scene {
    pub fn new() -> Self {
        Self::on(Volume::new(), 1)
    }
    pub fn with_header_pages(pages: u64) -> Self {
        Self::on(Volume::with_options(&["--header-pages", &pages.to_string()]), pages)
    }
    pub fn on(volume: Volume, pages: u64) -> Self {
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
        let (victim, other) = (volume.backing_of(victim), volume.backing_of(other));
        Self { victim, other, volume, data_start: 2 * pages * PAGE }
    }
    pub fn mount(&self) -> Mount {
        self.volume.mount()
    }
    /// The backing path of an object of the mount, found on a mount of its own.
    pub fn backing(&self, name: &str) -> PathBuf {
        let mount = self.mount();
        let ino = fs::symlink_metadata(mount.join(name)).unwrap().ino();
        mount.unmount();
        self.volume.backing_of(ino)
    }
    pub fn block(&self, index: u64) -> u64 {
        self.data_start + index * PAGE
    }
    /// One header slot's bytes.
    pub fn slot(&self, path: &Path, slot: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.data_start as usize / 2];
        File::open(path).unwrap().read_exact_at(&mut bytes, slot * self.data_start / 2).unwrap();
        bytes
    }
    pub fn set_slot(&self, path: &Path, slot: u64, bytes: &[u8]) {
        assert_eq!(bytes.len() as u64, self.data_start / 2);
        put(path, slot * self.data_start / 2, bytes);
    }
    /// A file that was synced and then left growing by a killed daemon, named `name`: nothing of it is below a floor.
    pub fn left_growing(&self, name: &str, content: &[u8]) -> PathBuf {
        let mount = self.volume.mount_with(&["commit=3600"]);
        let file = File::create(mount.join(name)).unwrap();
        file.write_all_at(content, 0).unwrap();
        file.sync_all().unwrap();
        let ino = file.metadata().unwrap().ino();
        drop(file);
        mount.kill();
        self.volume.backing_of(ino)
    }
}

pub fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}
pub fn direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
}
pub fn page(path: &Path, offset: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}
pub fn put(path: &Path, offset: u64, bytes: &[u8]) {
    read_write(path).write_all_at(bytes, offset).unwrap();
}
pub fn flip(path: &Path, offset: u64) {
    let mut byte = [0];
    let file = read_write(path);
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}
pub fn set_len(path: &Path, len: u64) {
    read_write(path).set_len(len).unwrap();
}
pub fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}
pub fn truncated(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).truncate(true).open(path)
}

/// Reads each block past the page cache and insists that exactly `bad` fail with EIO and the rest is right.
#[track_caller]
pub fn assert_bad_blocks(path: &Path, want: &[u8], bad: &[u64]) {
    let file = direct(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for index in 0..(want.len() as u64).div_ceil(PLAIN) {
        let (start, end) = ((index * PLAIN) as usize, (((index + 1) * PLAIN) as usize).min(want.len()));
        let mut buffer = vec![0; end - start];
        let result = file.read_at(&mut buffer, start as u64);
        if bad.contains(&index) {
            assert_eq!(errno(result), libc::EIO, "block {index} must fail");
        } else {
            assert_eq!(result.unwrap_or_else(|e| panic!("block {index}: {e}")), end - start, "block {index}");
            assert_same(&buffer, &want[start..end], &format!("block {index}"));
        }
    }
}
/// No byte is served: open or the first read fails with `expected`, in every way of reading.
#[track_caller]
pub fn assert_refused(path: &Path, expected: i32) {
    assert_errno(File::open(path).and_then(|file| file.read_at(&mut [0; 100], 0)), expected);
    assert_errno(direct(path).and_then(|file| file.read_at(&mut [0; 100], 0)), expected);
    assert_errno(
        read_write_quietly(path).and_then(|file| file.write_at(b"x", 0).and_then(|_| file.sync_all())),
        expected,
    );
}
fn read_write_quietly(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// The log has a line with this code that names the object as an operator finds it below, and the block where it is one.
#[track_caller]
pub fn assert_told(mount: &Mount, code: &str, backing: &Path, block: Option<u64>) {
    let (log, name) = (mount.log(), backing.file_name().unwrap().to_str().unwrap());
    let block = block.map(|block| format!("(block {block})"));
    let line = log.lines().find(|line| {
        line.contains(&format!("code={code} path=tree"))
            && line.contains(name)
            && block.as_ref().is_none_or(|block| line.contains(block.as_str()))
    });
    assert!(line.is_some(), "no line with code={code}, {name} and {block:?}:\n{log}");
    assert!(!log.contains("victim"), "a plain name stands in the log:\n{log}");
}

/// What holds after every damage to files: the files named `intact` are whole, each of `broken` can be emptied and written
/// anew, or removed, and a remount agrees. Ends the mount.
#[track_caller]
pub fn assert_expendable(scene: &Scene, mount: Mount, broken: &[&str]) {
    if !broken.contains(&"other") {
        assert_file(&mount.join("other"), &pattern(2, SIZE));
    }
    for (n, name) in broken.iter().enumerate() {
        let path = mount.join(name);
        fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("stat {name}: {e}"));
        truncated(&path).unwrap_or_else(|e| panic!("O_TRUNC of {name}: {e}"));
        assert_file(&path, b"");
        if n % 2 == 0 {
            fs::write(&path, b"new content").unwrap_or_else(|e| panic!("rewriting {name}: {e}"));
            assert_file(&path, b"new content");
        } else {
            fs::remove_file(&path).unwrap_or_else(|e| panic!("unlinking {name}: {e}"));
        }
    }
    mount.unmount();
    let mount = scene.mount();
    for (n, name) in broken.iter().enumerate() {
        let path = mount.join(name);
        if n % 2 == 0 {
            assert_file(&path, b"new content");
            fs::remove_file(&path).unwrap();
        }
        assert_errno(fs::symlink_metadata(&path), libc::ENOENT);
    }
    mount.unmount();
}
/// Removes without emptying first, as rm does.
#[track_caller]
pub fn assert_removable(mount: &Mount, name: &str) {
    fs::remove_file(mount.join(name)).unwrap_or_else(|e| panic!("unlinking {name}: {e}"));
    assert_errno(fs::symlink_metadata(mount.join(name)), libc::ENOENT);
}

/// Accepted manipulations are no secret: the document has the sentence.
#[track_caller]
pub fn assert_documented(sentence: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/SEMANTICS.md");
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(sentence), "doc/SEMANTICS.md does not say: {sentence}");
}
