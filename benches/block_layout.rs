//! Page-aligned 4048-byte blocks (the format) against inline 4096 + 28 (what others use), engine against engine, no FUSE.
//!
//! `cargo bench --bench block_layout -- [DIR] [MIB]`; DIR defaults to /dev/shm. Prints MB/s, the median of five interleaved rounds.

mod local_cmk;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use envelopefs::crypto::{aead::AeadKey, random, secret::Secret32};
use envelopefs::file::EncryptedFile;
use envelopefs::store::{Creator, Store, disk::DiskStore};

const ROUNDS: usize = 5;
const RUN: usize = 1 << 20;
const PAGE: usize = 4096;

trait Layout {
    fn write(&self, offset: u64, data: &[u8]);
    fn read(&self, offset: u64, buf: &mut [u8]);
}

impl Layout for EncryptedFile<<DiskStore as Store>::File> {
    fn write(&self, offset: u64, data: &[u8]) {
        EncryptedFile::write(self, offset, data).expect("write");
    }
    fn read(&self, offset: u64, buf: &mut [u8]) {
        assert_eq!(EncryptedFile::read(self, offset, buf).expect("read"), buf.len());
    }
}

/// `nonce 12 ‖ ciphertext 4096 ‖ tag 16` blocks one after the other; page-aligned requests only, so it never merges an edge.
struct Inline {
    file: std::fs::File,
    key: AeadKey,
}

const STRIDE: usize = PAGE + 28;

impl Layout for Inline {
    fn write(&self, offset: u64, data: &[u8]) {
        let first = offset / PAGE as u64;
        let count = data.len() / PAGE;
        let mut nonces = vec![0u8; 12 * count];
        random::fill(&mut nonces);
        let mut out = vec![0u8; count * STRIDE];
        for (i, (block, plain)) in out.chunks_exact_mut(STRIDE).zip(data.chunks_exact(PAGE)).enumerate() {
            let nonce: [u8; 12] = nonces[12 * i..12 * i + 12].try_into().expect("12 bytes");
            block[..12].copy_from_slice(&nonce);
            block[12..12 + PAGE].copy_from_slice(plain);
            let tag = self.key.seal(&nonce, &(first + i as u64).to_le_bytes(), &mut block[12..12 + PAGE]);
            block[12 + PAGE..].copy_from_slice(&tag);
        }
        self.file.write_all_at(&out, first * STRIDE as u64).expect("write");
    }
    fn read(&self, offset: u64, buf: &mut [u8]) {
        let first = offset / PAGE as u64;
        let mut sealed = vec![0u8; buf.len() / PAGE * STRIDE];
        self.file.read_exact_at(&mut sealed, first * STRIDE as u64).expect("read");
        for (i, (block, plain)) in sealed.chunks_exact(STRIDE).zip(buf.chunks_exact_mut(PAGE)).enumerate() {
            let nonce = block[..12].try_into().expect("12 bytes");
            let tag = block[12 + PAGE..].try_into().expect("16 bytes");
            self.key
                .open(nonce, &(first + i as u64).to_le_bytes(), &block[12..12 + PAGE], tag, plain)
                .expect("authentic");
        }
    }
}

fn rate(bytes: usize, f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// The same pseudo-random page order for every layout and round.
fn random_pages(pages: u64, count: usize) -> impl Iterator<Item = u64> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    (0..count).map(move |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % pages * PAGE as u64
    })
}

fn measure(layout: &dyn Layout, size: usize) -> [f64; 4] {
    let data = vec![0x5au8; RUN];
    let mut buf = vec![0u8; RUN];
    let offsets = || (0..size).step_by(RUN).map(|o| o as u64);
    let pages = size as u64 / PAGE as u64;
    let count = size / PAGE / 4;
    [
        rate(size, || offsets().for_each(|o| layout.write(o, &data))),
        rate(size, || offsets().for_each(|o| layout.read(o, &mut buf))),
        rate(count * PAGE, || random_pages(pages, count).for_each(|o| layout.write(o, &data[..PAGE]))),
        rate(count * PAGE, || random_pages(pages, count).for_each(|o| layout.read(o, &mut buf[..PAGE]))),
    ]
}

fn aligned(dir: &Path) -> Box<dyn Layout> {
    let store = DiskStore::open(dir).expect("open directory");
    let by = Creator { uid: 0, gid: 0, umask: 0o077 };
    let file = store.create_file(store.root(), b"aligned", 0o600, by).expect("create");
    Box::new(EncryptedFile::new(local_cmk::context(), file, true, 0))
}

fn inline(dir: &Path) -> Box<dyn Layout> {
    let path = dir.join("inline");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(path).expect("create");
    Box::new(Inline { file, key: AeadKey::new(&Secret32::random()) })
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let base = args.first().map_or(PathBuf::from("/dev/shm"), PathBuf::from);
    let size = args.get(1).and_then(|a| a.parse::<usize>().ok()).unwrap_or(256) << 20;
    let mut figures: [[Vec<f64>; 4]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (which, make) in [aligned as fn(&Path) -> Box<dyn Layout>, inline].into_iter().enumerate() {
            let dir = base.join(format!("block-layout-{}", std::process::id()));
            std::fs::create_dir(&dir).expect("scratch directory");
            let result = measure(&*make(&dir), size);
            std::fs::remove_dir_all(&dir).expect("remove scratch directory");
            for (figure, r) in figures[which].iter_mut().zip(result) {
                figure.push(r);
            }
        }
    }
    let median = |r: &mut Vec<f64>| {
        r.sort_by(f64::total_cmp);
        r[ROUNDS / 2]
    };
    println!("{:<22}{:>14}{:>14}{:>8}", "MB/s", "aligned 4048", "inline 4096", "ratio");
    for (i, name) in
        ["sequential write", "sequential read", "random 4 KiB write", "random 4 KiB read"].iter().enumerate()
    {
        let (a, b) = (median(&mut figures[0][i]), median(&mut figures[1][i]));
        println!("{name:<22}{a:>14.0}{b:>14.0}{:>8.2}", a / b);
    }
}
