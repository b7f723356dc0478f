//! What every request pays in pure computation: blocks, headers, names, offsets, a cached key. No store, no FUSE.
//!
//! `cargo bench --bench hot_paths [-- FILTER]`

mod local_cmk;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use envelopefs::crypto::{file_keys::FileKeys, random, secret::Secret32};
use envelopefs::format::block;
use envelopefs::format::geometry::{BLOCK_HEADER, Geometry, PAGE, PLAIN, blocks_for, locate};
use envelopefs::format::header::Unverified;
use envelopefs::format::names::NameCodec;

const SALT: [u8; 4] = [1, 2, 3, 4];

/// Each time with a nonce of its own; what the nonces cost stands beside it, drawn as an engine draws those of 1 MiB.
fn blocks(c: &mut Criterion) {
    let keys = FileKeys::derive(&[1; 32], &Secret32::random());
    let key = keys.block_key(SALT);
    let mut page = [0x5a; PAGE];
    let mut count = 0u64;
    let mut group = c.benchmark_group("block");
    group.throughput(Throughput::Bytes(PLAIN as u64));
    group.bench_function("seal", |b| {
        b.iter(|| {
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&count.to_le_bytes());
            count += 1;
            block::seal(&key, SALT, &nonce, 7, PLAIN as u16, black_box(&mut page));
        });
    });
    page[BLOCK_HEADER..].fill(0x5a);
    block::seal(&key, SALT, &[9; 12], 7, PLAIN as u16, &mut page);
    let mut out = [0; PLAIN];
    group.bench_function("open", |b| {
        b.iter(|| block::open(&key, 7, black_box(&page), &mut out).expect("authentic"));
    });
    group.bench_function("tell a hole", |b| {
        let zeros = [0; PAGE];
        b.iter(|| block::is_hole(black_box(&zeros)));
    });
    let mut nonces = [0; 12 * 260];
    group.throughput(Throughput::Elements(260));
    group.bench_function("nonces of 1 MiB", |b| b.iter(|| random::fill(black_box(&mut nonces))));
    group.finish();
    c.bench_function("block key, cached", |b| b.iter(|| keys.block_key(black_box(SALT))));
    let mut salt = 0u32;
    c.bench_function("block key, derived", |b| {
        b.iter(|| {
            salt += 1;
            keys.block_key(salt.to_le_bytes())
        });
    });
}

/// A first header as every new file gets one, and what the first open of a file does with it.
fn headers(c: &mut Criterion) {
    let context = local_cmk::context();
    let (keyring, geometry) = (&context.keyring, context.geometry);
    let new = keyring.create(&None).expect("keys of a new file");
    let header = new.header(keyring.volume_id());
    let slot = header.encode(&new.keys, keyring.origin(), geometry).expect("a header");
    let parse = || Unverified::parse(black_box(&slot), geometry).expect("a header");
    c.bench_function("header/encode", |b| b.iter(|| black_box(&header).encode(&new.keys, keyring.origin(), geometry)));
    c.bench_function("header/parse", |b| b.iter(parse));
    c.bench_function("header/parse and verify", |b| {
        b.iter(|| parse().verify(&new.keys, keyring.origin()).expect("authentic"));
    });
    c.bench_function("keyring/open, branch key cached", |b| {
        let parsed = parse();
        b.iter(|| keyring.open(black_box(&parsed)).expect("keys"));
    });
    c.bench_function("keyring/create, branch key cached", |b| b.iter(|| keyring.create(&None).expect("keys")));
}

fn names(c: &mut Criterion) {
    let codec = NameCodec::encrypted(&Secret32::random());
    let dir = [4; 16];
    for (what, name) in [("16 bytes", vec![b'n'; 16]), ("100 bytes", vec![b'n'; 100])] {
        let entry = codec.encode(&dir, &name).expect("a name").name;
        c.bench_function(&format!("name/encrypt {what}"), |b| b.iter(|| codec.encode(&dir, black_box(&name))));
        c.bench_function(&format!("name/decrypt {what}"), |b| b.iter(|| codec.decode(&dir, black_box(&entry))));
    }
}

fn geometry(c: &mut Criterion) {
    let geometry = Geometry { header_pages: 1 };
    let length = geometry.quiet_len(123_456_789);
    c.bench_function("geometry/size of a length", |b| b.iter(|| geometry.decode(black_box(length))));
    c.bench_function("geometry/blocks of a write", |b| {
        b.iter(|| {
            let offset = black_box(123_456_789u64);
            let (first, within) = locate(offset);
            (geometry.block_offset(first), within, blocks_for(offset + 4096))
        });
    });
}

criterion_group!(hot_paths, blocks, headers, names, geometry);
criterion_main!(hot_paths);
