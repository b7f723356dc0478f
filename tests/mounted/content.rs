//! Reading and writing file content: open flags, offsets and sizes around block and page edges, truncation, copies.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{copy_file_range, ftruncate};

use crate::common::*;
use crate::needs;

/// Offsets and lengths at which a block (4048), a page (4096) or a request may begin or end.
pub const EDGES: [u64; 20] =
    [0, 1, 2, 47, 48, 100, 4047, 4048, 4049, 4095, 4096, 4097, 8095, 8096, 8097, 8191, 8192, 12_144, 131_072, 131_073];

pub fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}
pub fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

#[test]
fn create_write_read_remount() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let data = pattern(1, 100_000);
    fs::write(mount.join("file"), &data).unwrap();
    assert_file(&mount.join("file"), &data);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &data);
}

#[test]
fn empty_files_stay_empty() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    File::create(mount.join("touched")).unwrap();
    fs::write(mount.join("emptied"), b"something").unwrap();
    File::create(mount.join("emptied")).unwrap();
    fs::write(mount.join("nothing"), b"").unwrap();
    mount.unmount();
    let mount = volume.mount();
    for name in ["touched", "emptied", "nothing"] {
        assert_file(&mount.join(name), b"");
    }
}

/// Writes every length at every offset over known content and compares with a plain buffer, before and after a remount.
#[test]
fn writes_at_every_edge() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let file = create(&path);
    let mut model = pattern(2, 20_000);
    file.write_all_at(&model, 0).unwrap();
    let mut seed = 100;
    for offset in EDGES {
        for len in EDGES {
            seed += 1;
            let bytes = pattern(seed, len as usize);
            file.write_all_at(&bytes, offset).unwrap();
            put(&mut model, offset, &bytes);
        }
        if offset % 2 == 1 {
            file.sync_data().unwrap();
        }
    }
    assert_file(&path, &model);
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}
/// Applies a write to a model of a file.
pub fn put(model: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if !bytes.is_empty() && model.len() < end {
        model.resize(end, 0);
    }
    if !bytes.is_empty() {
        model[offset as usize..end].copy_from_slice(bytes);
    }
}

#[test]
fn reads_at_every_edge() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let model = pattern(3, 140_000);
    fs::write(mount.join("file"), &model).unwrap();
    mount.unmount();
    let mount = volume.mount();
    for direct in [false, true] {
        // Without the page cache every request reaches the daemon as it is; a plain directory wants alignment.
        let flags = if direct && !baseline() { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(mount.join("file")).unwrap();
        for offset in EDGES.into_iter().chain([139_999, 140_000, 140_001]) {
            for len in EDGES {
                let mut buffer = vec![0xEE; len as usize];
                let got = read_up_to(&file, &mut buffer, offset);
                let start = (offset as usize).min(model.len());
                let want = &model[start..(start + len as usize).min(model.len())];
                assert_same(&buffer[..got], want, &format!("{len} bytes at {offset}, direct {direct}"));
            }
        }
    }
}
/// pread until the buffer is full or the file ends.
pub fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64).unwrap() {
            0 => break,
            n => done += n,
        }
    }
    done
}

#[test]
fn append_goes_to_the_end_whoever_else_wrote() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("log");
    let append = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let (mut one, mut two) = (append(), append());
    let mut model = Vec::new();
    for round in 0..400_u64 {
        let line = pattern(round, (round % 97 + 1) as usize);
        if round % 2 == 0 { &mut one } else { &mut two }.write_all(&line).unwrap();
        model.extend(line);
        if round % 50 == 0 {
            one.sync_data().unwrap();
        }
    }
    // O_APPEND means the end also where an offset is set.
    one.seek(SeekFrom::Start(0)).unwrap();
    one.write_all(b"tail").unwrap();
    model.extend(b"tail");
    assert_file(&path, &model);
    drop((one, two));
    mount.unmount();
    let mount = volume.mount();
    OpenOptions::new().append(true).open(mount.join("log")).unwrap().write_all(b"more").unwrap();
    model.extend(b"more");
    assert_file(&mount.join("log"), &model);
}

#[test]
fn concurrent_appenders_lose_nothing() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("log");
    File::create(&path).unwrap();
    const RECORD: usize = 100;
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).open(path).unwrap();
                for round in 0..500 {
                    let mut record = pattern(writer * 1000 + round, RECORD);
                    record[..16].copy_from_slice(format!("{writer:08}{round:08}").as_bytes());
                    file.write_all(&record).unwrap();
                }
            });
        }
    });
    mount.unmount();
    let mount = volume.mount();
    let got = fs::read(mount.join("log")).unwrap();
    assert_eq!(got.len(), 4 * 500 * RECORD);
    let mut seen = std::collections::BTreeSet::new();
    for record in got.chunks(RECORD) {
        let head = std::str::from_utf8(&record[..16]).expect("a record was torn");
        let (writer, round): (u64, u64) = (head[..8].parse().unwrap(), head[8..].parse().unwrap());
        assert_same(&record[16..], &pattern(writer * 1000 + round, RECORD)[16..], head);
        assert!(seen.insert((writer, round)), "{head} twice");
    }
}

#[test]
fn open_flags() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, b"content").unwrap();
    let with = |flags| OpenOptions::new().read(true).write(true).create(true).custom_flags(flags).open(&path);
    assert_errno(with(libc::O_EXCL), libc::EEXIST);
    assert_errno(OpenOptions::new().read(true).open(mount.join("none")), libc::ENOENT);
    let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path);
    assert_errno(directory, libc::ENOTDIR);
    assert_errno(OpenOptions::new().write(true).open(&mount.path), libc::EISDIR);
    std::os::unix::fs::symlink("nowhere", mount.join("dangling")).unwrap();
    assert_errno(File::create_new(mount.join("dangling")), libc::EEXIST);
    let nofollow = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(mount.join("dangling"));
    assert_errno(nofollow, libc::ELOOP);
    File::create(mount.join("dangling")).unwrap();
    assert!(mount.join("nowhere").exists(), "O_CREAT follows a dangling link");

    let readable = File::open(&path).unwrap();
    assert_errno(readable.write_at(b"x", 0), libc::EBADF);
    let writable = OpenOptions::new().write(true).open(&path).unwrap();
    assert_errno(writable.read_at(&mut [0], 0), libc::EBADF);
    // A partial block can be overwritten through a handle that may not read.
    writable.write_all_at(b"XX", 3).unwrap();
    assert_file(&path, b"conXXnt");
    // O_TRUNC empties the file for handles that are open already.
    with(libc::O_TRUNC).unwrap();
    assert_eq!(readable.read_at(&mut [0; 10], 0).unwrap(), 0);
    assert_file(&path, b"");
}

/// fuser 0.18 has no TMPFILE request: the kernel answers EOPNOTSUPP, and callers fall back to a named file.
#[test]
fn o_tmpfile_is_not_supported() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&mount.path);
    assert_errno(open, libc::EOPNOTSUPP);
}

#[test]
fn o_direct_reads_and_writes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let mut aligned = Aligned::new(64 * 1024);
    let data = pattern(5, aligned.get().len());
    aligned.get().copy_from_slice(&data);
    for start in (0..4).map(|i| i * 65_536) {
        direct.write_all_at(aligned.get(), start).unwrap();
    }
    assert_file(&path, &data.repeat(4));
    // A buffered write and a direct read see each other.
    read_write(&path).write_all_at(b"buffered", 4040).unwrap();
    assert_eq!(direct.read_at(&mut aligned.get()[..8192], 0).unwrap(), 8192);
    assert_eq!(&aligned.get()[4040..4048], b"buffered");
    if !baseline() {
        direct.write_all_at(b"odd", 4047).unwrap();
        let mut buffer = [0; 5];
        assert_eq!(read_up_to(&direct, &mut buffer, 4046), 5);
        assert_eq!(&buffer[1..4], b"odd");
    }
}
/// A page-aligned buffer.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}
impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, len }
    }
    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[test]
fn o_sync_and_o_dsync_writes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let path = mount.join(name);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flag).open(&path).unwrap();
        let mut model = Vec::new();
        for round in 0..50 {
            let bytes = pattern(round, 333);
            file.write_all(&bytes).unwrap();
            model.extend(bytes);
        }
        assert_file(&path, &model);
    }
}

#[test]
fn truncate_to_every_edge() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let (path, full) = (mount.join("file"), pattern(7, 20_000));
    for from in EDGES {
        for to in EDGES {
            let from = from.min(20_000) as usize;
            let file = create(&path);
            file.write_all_at(&full[..from], 0).unwrap();
            if to % 2 == 0 {
                file.sync_data().unwrap();
            }
            file.set_len(to).unwrap();
            let mut model = full[..from].to_vec();
            model.resize(to as usize, 0);
            assert_file(&path, &model);
        }
    }
}

/// What was cut off must never come back, whatever the edges, also across a remount.
#[test]
fn truncated_bytes_read_as_zeros_when_the_file_grows_again() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let full = pattern(8, 20_000);
    let cuts = [1_u64, 100, 4047, 4048, 4049, 4096, 8096, 8100, 19_999];
    for cut in cuts {
        for how in 0..3 {
            let path = mount.join(format!("f{cut}-{how}"));
            let file = create(&path);
            file.write_all_at(&full, 0).unwrap();
            if how == 1 {
                file.sync_all().unwrap();
            }
            read_write(&path).set_len(cut).unwrap();
            match how {
                0 => file.set_len(20_000).unwrap(),
                1 => file.write_all_at(&[0], 19_999).unwrap(),
                _ => {}
            }
        }
    }
    mount.unmount();
    let mount = volume.mount();
    for cut in cuts {
        let mut model = full[..cut as usize].to_vec();
        model.resize(20_000, 0);
        for how in 0..3 {
            let path = mount.join(format!("f{cut}-{how}"));
            if how == 2 {
                read_write(&path).set_len(20_000).unwrap();
            }
            assert_file(&path, &model);
        }
    }
}

#[test]
fn truncate_refuses_what_posix_refuses() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, b"content").unwrap();
    assert_errno(ftruncate(File::open(&path).unwrap(), 1), libc::EINVAL);
    let file = read_write(&path);
    // Beyond what the backing store can hold: refused, and nothing changed.
    assert_errno(ftruncate(&file, i64::MAX as u64), libc::EFBIG);
    assert_file(&path, b"content");
}

#[test]
fn many_writers_of_one_block() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    const SLICE: usize = 128;
    const SLICES: usize = 256;
    create(&path).set_len((SLICE * SLICES) as u64).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8_usize {
            let path = &path;
            scope.spawn(move || {
                let file = read_write(path);
                for slice in (writer..SLICES).step_by(8) {
                    file.write_all_at(&pattern(slice as u64, SLICE), (slice * SLICE) as u64).unwrap();
                    if slice % 64 == writer {
                        file.sync_data().unwrap();
                    }
                }
            });
        }
    });
    let model: Vec<u8> = (0..SLICES).flat_map(|slice| pattern(slice as u64, SLICE)).collect();
    assert_file(&path, &model);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}

#[test]
fn reads_never_fail_while_a_writer_works() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    // Every version is one repeated byte; a read that met a block half written would fail its authentication.
    fs::write(&path, vec![0; 65_536]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = read_write(&path);
            for round in 1..=200_u8 {
                file.write_all_at(&[round; 65_536], 0).unwrap();
                if round % 20 == 0 {
                    file.sync_data().unwrap();
                }
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let flags = if baseline() { 0 } else { libc::O_DIRECT };
                let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
                let mut page = [0; 4096];
                let mut random = Random::new(9);
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    file.read_exact_at(&mut page, random.below(16) * 4096).unwrap();
                }
            });
        }
    });
    assert_file(&path, &[200; 65_536]);
}

#[test]
fn copy_file_range_copies_any_range() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let data = pattern(11, 300_000);
    fs::write(mount.join("from"), &data).unwrap();
    let from = File::open(mount.join("from")).unwrap();
    for (from_offset, to_offset, len) in [
        (0, 0, 300_000),
        (1, 4047, 10_000),
        (4048, 0, 4048),
        (4000, 4096, 200_000),
        (299_000, 10, 5000),
        (400_000, 0, 5),
    ] {
        let path = mount.join("to");
        let base = pattern(12, 9_000);
        fs::write(&path, &base).unwrap();
        let to = read_write(&path);
        let mut model = base;
        let (mut source, mut target, mut left) = (from_offset as u64, to_offset as u64, len);
        while left > 0 {
            match copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left).unwrap() {
                0 => break,
                n => left -= n,
            }
        }
        let source = data.get(from_offset..(from_offset + len).min(data.len())).unwrap_or_default();
        assert_eq!(len - left, source.len(), "copied bytes for {len} at {from_offset}");
        put(&mut model, to_offset as u64, source);
        assert_file(&path, &model);
    }
}

/// The source's dirty pages are part of what is copied, and the target's cached pages do not survive the copy.
#[test]
fn copy_file_range_sees_dirty_pages() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let (source, target) = (create(&mount.join("from")), create(&mount.join("to")));
    target.write_all_at(&[1; 50_000], 0).unwrap();
    source.write_all_at(&[2; 50_000], 0).unwrap();
    let (mut a, mut b, mut left) = (0, 0, 40_000);
    while left > 0 {
        left -= copy_file_range(&source, Some(&mut a), &target, Some(&mut b), left).unwrap();
    }
    let mut model = vec![2; 40_000];
    model.resize(50_000, 1);
    assert_file(&mount.join("to"), &model);
}

#[test]
fn copy_file_range_within_one_file() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let mut model = pattern(13, 50_000);
    fs::write(&path, &model).unwrap();
    let file = read_write(&path);
    let (mut source, mut target, mut left) = (5_000, 30_001, 20_000);
    while left > 0 {
        left -= copy_file_range(&file, Some(&mut source), &file, Some(&mut target), left).unwrap();
    }
    let moved = model[5_000..25_000].to_vec();
    put(&mut model, 30_001, &moved);
    assert_file(&path, &model);
    let (mut source, mut target) = (0, 10);
    assert_errno(copy_file_range(&file, Some(&mut source), &file, Some(&mut target), 100), libc::EINVAL);
}

#[test]
fn sendfile_and_cp() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let data = pattern(14, 1_000_003);
    fs::write(mount.join("a"), &data).unwrap();
    fs::copy(mount.join("a"), mount.join("b")).unwrap();
    assert_file(&mount.join("b"), &data);
    let outside = volume.scratch().join("outside");
    std::io::copy(&mut File::open(mount.join("a")).unwrap(), &mut File::create(&outside).unwrap()).unwrap();
    assert_file(&outside, &data);
    tool("cp", &[outside, mount.join("c")]);
    assert_file(&mount.join("c"), &data);
}

#[test]
fn large_file_survives_remount() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let chunk = pattern(15, 1 << 20);
    let mut file = File::create(mount.join("large")).unwrap();
    for _ in 0..48 {
        file.write_all(&chunk).unwrap();
    }
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    let mut file = File::open(mount.join("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 48 << 20);
    let mut buffer = vec![0; chunk.len()];
    for index in 0..48 {
        file.read_exact(&mut buffer).unwrap();
        assert_same(&buffer, &chunk, &format!("MiB {index}"));
    }
    assert_eq!(file.read(&mut buffer).unwrap(), 0);
}

#[test]
fn size_is_one_for_all_handles() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let (one, two) = (create(&path), File::open(&path).unwrap());
    for len in EDGES {
        one.set_len(len).unwrap();
        assert_eq!(two.metadata().unwrap().len(), len);
        one.write_all_at(b"x", len).unwrap();
        assert_eq!(two.metadata().unwrap().size(), len + 1);
        assert_eq!(fs::metadata(&path).unwrap().size(), len + 1);
    }
}

/// A descriptor passed on by `/proc` opens the same file, also for writing.
#[test]
fn reopen_through_proc() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("file"), b"content").unwrap();
    let file = File::open(mount.join("file")).unwrap();
    let again = OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    again.unwrap().write_all(b" and more").unwrap();
    assert_file(&mount.join("file"), b"content and more");
}

#[test]
fn programs_run_from_the_mount() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::copy("/bin/true", mount.join("true")).unwrap();
    fs::write(mount.join("script"), "#!/bin/sh\nexec echo ran\n").unwrap();
    tool("chmod", &["755".as_ref(), mount.join("script").as_os_str()]);
    // A descriptor that another test's forked child holds for a moment gives ETXTBSY.
    eventually("the program runs", || {
        std::process::Command::new(mount.join("true")).status().is_ok_and(|status| status.success())
    });
    eventually("the script runs", || {
        std::process::Command::new(mount.join("script")).output().is_ok_and(|output| output.stdout == b"ran\n")
    });
}

#[test]
fn reflinks_and_chattr_are_not_supported() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("a"), b"content").unwrap();
    let (from, to) = (File::open(mount.join("a")).unwrap(), create(&mount.join("b")));
    assert_errno(rustix::fs::ioctl_ficlone(&to, &from), libc::EOPNOTSUPP);
    // cp falls back to a copy.
    tool("cp", &["--reflink=auto".as_ref(), mount.join("a").as_os_str(), mount.join("c").as_os_str()]);
    assert_file(&mount.join("c"), b"content");
    let flags = rustix::fs::ioctl_getflags(&from);
    assert!(matches!(errno(flags), libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS));
}
