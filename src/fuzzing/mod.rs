//! What takes bytes from disks, servers, users and the kernel, as functions that a fuzzer can call: each panics where a promise
//! is broken. Knows the parsers, no fuzzer; not in any build that is shipped.
//!
//! The first byte of most inputs chooses how far the rest is dressed up as genuine: with a right checksum, MAC or seal the
//! fuzzer reaches what lies behind them. `fuzz/` drives these by coverage, `smoke` with a few inputs each in every test run.

mod disk;
mod host;
#[cfg(feature = "kms")]
mod kms;
#[cfg(feature = "kms")]
mod kms_material;
mod objects;
#[cfg(all(feature = "aws", feature = "vault", feature = "pkcs11", feature = "k8s"))]
mod servers;
#[cfg(test)]
mod smoke;

/// One function that must hold whatever it is given.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All of them, by the name of their corpus.
pub fn targets() -> Vec<Target> {
    let all = disk::TARGETS.iter().chain(objects::TARGETS).chain(host::TARGETS);
    #[cfg(all(feature = "aws", feature = "vault", feature = "pkcs11", feature = "k8s"))]
    let all = all.chain(servers::TARGETS);
    #[cfg(feature = "kms")]
    let all = all.chain(kms::TARGETS).chain(kms_material::TARGETS);
    all.copied().collect()
}

pub fn find(name: &str) -> Option<Target> {
    targets().into_iter().find(|target| target.name == name)
}

/// The ids and keys of the golden vectors: `start`, and each byte 7 more than the one before.
fn sequence<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|i| start.wrapping_add((i as u8).wrapping_mul(7)))
}

const VOLUME_ID: u8 = 0x10;
const FILE_ID: u8 = 0x20;
const DEK: u8 = 0x30;
const VOLUME_KEY: u8 = 0x50;
const DIR_ID: u8 = 0x70;

/// The first byte and the rest; nothing where there is none.
fn choice(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(first, rest)| (*first, rest))
}

/// Two parts: a length in two bytes, and what it leaves.
fn halves(input: &[u8]) -> (&[u8], &[u8]) {
    let Some((len, rest)) = input.split_first_chunk() else { return (input, &[]) };
    rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()))
}
