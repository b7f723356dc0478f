//! The file engine without disk and FUSE: reads, writes and the life of a small file on the memory store, which copies pages under a lock.
//!
//! `cargo bench --bench engine [-- FILTER]`

mod local_cmk;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use envelopefs::file::{EncryptedFile, FileContext};
use envelopefs::store::memory::MemoryStore;
use envelopefs::store::{Creator, Store};
use std::sync::Arc;

const SIZE: u64 = 32 << 20;
const RUN: usize = 1 << 20;
const PAGE: usize = 4096;

type File = EncryptedFile<<MemoryStore as Store>::File>;

fn new_file(context: &Arc<FileContext>, store: &MemoryStore, name: &[u8]) -> File {
    let by = Creator { uid: 0, gid: 0, umask: 0o077 };
    let backing = store.create_file(store.root(), name, 0o600, by).expect("create");
    EncryptedFile::new(Arc::clone(context), backing, true, 0)
}

/// Page-aligned offsets below `SIZE`, the same ones in every run.
struct Offsets(u64);

impl Offsets {
    fn sequential(&mut self) -> u64 {
        self.0 = (self.0 + RUN as u64) % SIZE;
        self.0
    }
    fn random(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (SIZE / PAGE as u64) * PAGE as u64
    }
}

fn throughput(c: &mut Criterion) {
    let file = new_file(&local_cmk::context(), &MemoryStore::new(), b"file");
    let data = vec![0x5a; RUN];
    let mut buf = vec![0; RUN];
    for offset in (0..SIZE).step_by(RUN) {
        file.write(offset, &data).expect("write");
    }
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Bytes(RUN as u64));
    let mut at = Offsets(0);
    group.bench_function("sequential write 1 MiB", |b| {
        b.iter(|| file.write(at.sequential(), black_box(&data)).expect("write"));
    });
    group.bench_function("sequential read 1 MiB", |b| {
        b.iter(|| file.read(at.sequential(), black_box(&mut buf)).expect("read"));
    });
    group.throughput(Throughput::Bytes(PAGE as u64));
    let mut at = Offsets(0x9e37_79b9_7f4a_7c15);
    group.bench_function("random write 4 KiB", |b| {
        b.iter(|| file.write(at.random(), black_box(&data[..PAGE])).expect("write"));
    });
    group.bench_function("random read 4 KiB", |b| {
        b.iter(|| file.read(at.random(), black_box(&mut buf[..PAGE])).expect("read"));
    });
    group.finish();
}

/// From an open empty file to one whose content and size are committed: header, keys, one block.
fn small_file(c: &mut Criterion) {
    let context = local_cmk::context();
    let store = MemoryStore::new();
    let mut count = 0u64;
    c.bench_function("engine/small file, write and commit", |b| {
        b.iter_batched(
            || {
                count += 1;
                new_file(&context, &store, format!("f{count}").as_bytes())
            },
            |file| {
                file.write(0, b"a small file").expect("write");
                file.commit(None).expect("commit");
                file
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(engine, throughput, small_file);
criterion_main!(engine);
