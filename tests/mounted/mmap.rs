//! Memory mappings: shared and private, coherent with read and write, kept across unlink, durable by msync.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use super::content::{create, read_write};
use crate::common::sys::Mapping;
use crate::common::*;
use crate::needs;

const LEN: usize = 40_000;

#[test]
fn shared_mapping_and_file_are_one() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let mut model = pattern(1, LEN);
    fs::write(&path, &model).unwrap();
    let file = read_write(&path);
    let mut mapping = Mapping::shared(&file, LEN).unwrap();
    assert_same(&mapping.copy(), &model, "mapping");
    // Stores that cross both block and page edges.
    for (index, offset) in [0, 4040, 4090, 8090, 8190, 12_140, LEN - 20].into_iter().enumerate() {
        let bytes = pattern(50 + index as u64, 20);
        mapping.store(offset, &bytes);
        model[offset..offset + 20].copy_from_slice(&bytes);
    }
    assert_same(&fs::read(&path).unwrap(), &model, "read after store");
    file.write_all_at(b"written", 100).unwrap();
    model[100..107].copy_from_slice(b"written");
    assert_same(&mapping.copy(), &model, "mapping after write");
    mapping.sync().unwrap();
    drop((mapping, file));
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &model);
}

#[test]
fn stores_reach_the_file_without_msync() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let file = create(&mount.join("file"));
    file.set_len(LEN as u64).unwrap();
    let mut mapping = Mapping::shared(&file, LEN).unwrap();
    let data = pattern(2, LEN);
    mapping.store(0, &data);
    // The mapping outlives its descriptor.
    drop(file);
    drop(mapping);
    mount.unmount();
    let mount = volume.mount();
    assert_file(&mount.join("file"), &data);
}

#[test]
fn private_mapping_keeps_its_stores() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let data = pattern(3, LEN);
    fs::write(&path, &data).unwrap();
    let mut mapping = Mapping::private(File::open(&path).unwrap(), LEN).unwrap();
    mapping.store(5000, b"private");
    assert_eq!(&mapping.copy()[5000..5007], b"private");
    assert_file(&path, &data);
}

#[test]
fn mapping_of_a_hole_fills_it() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("sparse");
    let file = create(&path);
    file.set_len(1 << 20).unwrap();
    let mut mapping = Mapping::shared(&file, 1 << 20).unwrap();
    mapping.store(500_000, b"island");
    mapping.sync().unwrap();
    let mut model = vec![0; 1 << 20];
    model[500_000..500_006].copy_from_slice(b"island");
    assert_file(&path, &model);
}

#[test]
fn read_only_mapping_sees_later_writes() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, pattern(4, LEN)).unwrap();
    let mapping = Mapping::read_only(File::open(&path).unwrap(), LEN).unwrap();
    let data = pattern(5, LEN);
    read_write(&path).write_all_at(&data, 0).unwrap();
    assert_same(&mapping.copy(), &data, "mapping");
}

#[test]
fn mapping_survives_unlink() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    let data = pattern(6, LEN);
    fs::write(&path, &data).unwrap();
    let file = read_write(&path);
    let mut mapping = Mapping::shared(&file, LEN).unwrap();
    fs::remove_file(&path).unwrap();
    mapping.store(10, b"still here");
    mapping.sync().unwrap();
    let mut got = [0; 10];
    file.read_exact_at(&mut got, 10).unwrap();
    assert_eq!(&got, b"still here");
    assert_same(&mapping.copy()[20..], &data[20..], "rest");
}

#[test]
fn two_mappings_of_one_file_are_coherent() {
    needs!(have_fuse);
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("file");
    fs::write(&path, vec![0; LEN]).unwrap();
    let mut one = Mapping::shared(read_write(&path), LEN).unwrap();
    let two = Mapping::shared(read_write(&path), LEN).unwrap();
    one.store(4044, b"crossing");
    assert_eq!(&two.copy()[4044..4052], b"crossing");
}
