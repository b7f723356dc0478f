//! Holes: fallocate, SEEK_DATA and SEEK_HOLE, sparse copies, files of a terabyte.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::content::{EDGES, create, put, read_up_to, read_write};
use crate::common::*;
use crate::needs;

fn data_after(file: &File, offset: u64) -> rustix::io::Result<u64> {
    seek(file, SeekFrom::Data(offset))
}
fn hole_after(file: &File, offset: u64) -> rustix::io::Result<u64> {
    seek(file, SeekFrom::Hole(offset))
}
/// Every byte that SEEK_DATA would skip must read as zero.
fn assert_map_is_true(file: &File, model: &[u8]) {
    let mut at = 0;
    while at < model.len() as u64 {
        let data = match data_after(file, at) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => model.len() as u64,
            Err(error) => panic!("SEEK_DATA at {at}: {error}"),
        };
        assert!(data >= at);
        let skipped = &model[at as usize..(data as usize).min(model.len())];
        assert!(skipped.iter().all(|&byte| byte == 0), "SEEK_DATA {at} skips data before {data}");
        if data >= model.len() as u64 {
            break;
        }
        at = hole_after(file, data).unwrap();
        assert!(at > data, "a hole right at data");
    }
}

#[test]
fn data_and_holes_are_found() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let file = create(&path);
    let mut model = vec![0; 4 << 20];
    file.set_len(model.len() as u64).unwrap();
    for (offset, len) in [(0, 10_000), (1 << 20, 1), ((2 << 20) + 4047, 5000), ((4 << 20) - 1, 1)] {
        let bytes = pattern(offset, len);
        file.write_all_at(&bytes, offset).unwrap();
        put(&mut model, offset, &bytes);
    }
    file.sync_all().unwrap();
    assert_map_is_true(&file, &model);
    // A hole of a megabyte is found, to within a block on either side.
    let hole = hole_after(&file, 0).unwrap();
    assert!((10_000..=16_384).contains(&hole), "{hole}");
    let data = data_after(&file, hole).unwrap();
    assert!(data > (1 << 20) - 8192 && data <= 1 << 20, "{data}");
    assert_errno(data_after(&file, 4 << 20), libc::ENXIO);
    assert_errno(hole_after(&file, 4 << 20), libc::ENXIO);
    assert_errno(hole_after(&file, 5 << 20), libc::ENXIO);
    assert_eq!(hole_after(&file, (4 << 20) - 1).unwrap(), 4 << 20, "the end counts as a hole");
    assert!(file.metadata().unwrap().blocks() * 512 < 200_000);
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    let file = File::open(mount.join("file")).unwrap();
    assert_map_is_true(&file, &model);
    assert_file(&mount.join("file"), &model);
}

#[test]
fn a_full_file_has_no_holes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let file = create(&mount.join("file"));
    file.write_all_at(&pattern(1, 100_000), 0).unwrap();
    for sync in [false, true] {
        if sync {
            file.sync_all().unwrap();
        }
        for offset in [0, 1, 4047, 4048, 50_000, 99_999] {
            assert_eq!(data_after(&file, offset).unwrap(), offset);
            assert_eq!(hole_after(&file, offset).unwrap(), 100_000);
        }
    }
    let empty = create(&mount.join("empty"));
    assert_errno(data_after(&empty, 0), libc::ENXIO);
}

#[test]
fn fallocate_mode_zero_extends() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    for offset in EDGES {
        let path = mount.join(format!("f{offset}"));
        let file = create(&path);
        let mut model = pattern(offset, 5000);
        file.write_all_at(&model, 0).unwrap();
        fallocate(&file, FallocateFlags::empty(), offset, 6000).unwrap();
        if model.len() < offset as usize + 6000 {
            model.resize(offset as usize + 6000, 0);
        }
        assert_file(&path, &model);
        // What was reserved can be written and read.
        file.write_all_at(b"in the reserve", offset + 100).unwrap();
        put(&mut model, offset + 100, b"in the reserve");
        assert_file(&path, &model);
    }
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::metadata(mount.join("f8192")).unwrap().len(), 14_192);
    fs::read(mount.join("f8192")).unwrap();
}

#[test]
fn fallocate_keep_size_reserves_only() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let file = create(&path);
    let model = pattern(1, 5000);
    file.write_all_at(&model, 0).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_file(&path, &model);
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}

#[test]
fn punch_hole_zeroes_exactly_its_range() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let mut model = pattern(1, 200_000);
    let file = create(&path);
    file.write_all_at(&model, 0).unwrap();
    file.sync_all().unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // The kernel asks for block counts anew after a close (fuse_flush), not before.
    drop(read_write(&path));
    let before = file.metadata().unwrap().blocks();
    for (offset, len) in
        [(1, 1), (4047, 2), (4048, 4048), (10_000, 20_000), (100_001, 60_000), (199_999, 1), (190_000, 50_000)]
    {
        fallocate(&file, punch, offset, len).unwrap();
        let end = (offset + len).min(model.len() as u64) as usize;
        model[offset as usize..end].fill(0);
        assert_file(&path, &model);
    }
    file.sync_all().unwrap();
    drop(read_write(&path));
    assert!(file.metadata().unwrap().blocks() * 512 + 50_000 < before * 512, "punched space is given back");
    assert_map_is_true(&file, &model);
    // Beyond the end nothing changes, the size least of all.
    fallocate(&file, punch, 300_000, 10_000).unwrap();
    assert_file(&path, &model);
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}

#[test]
fn zero_range() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let mut model = pattern(1, 50_000);
    let file = create(&path);
    file.write_all_at(&model, 0).unwrap();
    for (offset, len, keep) in [(5, 10, false), (4048, 8096, true), (45_000, 10_000, true), (49_000, 11_000, false)] {
        let flags = if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        fallocate(&file, FallocateFlags::ZERO_RANGE | flags, offset, len).unwrap();
        if !keep && model.len() < (offset + len) as usize {
            model.resize((offset + len) as usize, 0);
        }
        let end = (offset + len).min(model.len() as u64) as usize;
        model[offset as usize..end].fill(0);
        assert_file(&path, &model);
    }
    assert_eq!(model.len(), 60_000);
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}

#[test]
fn fallocate_modes_that_blocks_cannot_do() {
    needs!(have_mount);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let data = pattern(1, 50_000);
    let file = create(&path);
    file.write_all_at(&data, 0).unwrap();
    assert_errno(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), libc::EOPNOTSUPP);
    assert_errno(fallocate(&file, FallocateFlags::INSERT_RANGE, 0, 4096), libc::EOPNOTSUPP);
    let beyond = errno(fallocate(&file, FallocateFlags::empty(), 0, 1 << 62));
    assert!(beyond == libc::EFBIG || beyond == libc::ENOSPC, "errno {beyond}");
    assert_file(&path, &data);
}

/// Nothing about a terabyte of hole may take time or space in proportion to it.
#[test]
fn a_terabyte_of_hole() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("huge");
    const SIZE: u64 = 1 << 40;
    let file = create(&path);
    file.write_all_at(b"head", 0).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"middle", SIZE / 2 + 4045).unwrap();
    file.write_all_at(b"tail", SIZE - 4).unwrap();
    file.sync_all().unwrap();
    let check = |file: &File| {
        assert_eq!(file.metadata().unwrap().len(), SIZE);
        assert!(file.metadata().unwrap().blocks() < 1000);
        let mut buffer = [1; 4];
        assert_eq!(read_up_to(file, &mut buffer, SIZE - 4), 4);
        assert_eq!(&buffer, b"tail");
        let mut middle = [1; 8];
        file.read_exact_at(&mut middle, SIZE / 2 + 4044).unwrap();
        assert_eq!(&middle, b"\0middle\0");
        let mut zeros = [1; 10_000];
        file.read_exact_at(&mut zeros, SIZE / 3).unwrap();
        assert_eq!(zeros, [0; 10_000]);
        let hole = hole_after(file, 0).unwrap();
        let data = data_after(file, hole).unwrap();
        assert!(data <= SIZE / 2 + 4045 && data > SIZE / 2 - 8192, "{data}");
    };
    check(&file);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 10_000, SIZE / 4).unwrap();
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    let path = mount.join("huge");
    check(&File::open(&path).unwrap());
    let file = super::content::read_write(&path);
    file.set_len(10).unwrap();
    file.set_len(SIZE).unwrap();
    file.set_len(10).unwrap();
    assert_file(&path, b"head\0\0\0\0\0\0");
}

#[test]
fn sparse_copies_are_exact() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let file = create(&mount.join("from"));
    let mut model = vec![0; 1 << 20];
    file.set_len(model.len() as u64).unwrap();
    for offset in [5_u64, 70_000, 500_001, (1 << 20) - 9] {
        file.write_all_at(b"islands", offset).unwrap();
        put(&mut model, offset, b"islands");
    }
    // Not synced: the daemon has seen none of it when the copy begins.
    for mode in ["always", "auto", "never"] {
        let to = mount.join(mode);
        tool("cp", &[format!("--sparse={mode}").as_ref(), mount.join("from").as_os_str(), to.as_os_str()]);
        assert_file(&to, &model);
    }
    let archive = volume.scratch().join("archive");
    tool("tar", &["-Scf".as_ref(), archive.as_os_str(), "-C".as_ref(), mount.path.as_os_str(), "from".as_ref()]);
    fs::create_dir(mount.join("x")).unwrap();
    tool("tar", &["-xf".as_ref(), archive.as_os_str(), "-C".as_ref(), mount.join("x").as_os_str()]);
    assert_file(&mount.join("x/from"), &model);
}
