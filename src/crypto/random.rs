//! Randomness from the kernel, asked for per request: no pool that a cloned machine could repeat.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `buf` with one getrandom(2) system call (more only where a signal cuts a request above 256 bytes short).
///
/// The system call itself is used, not the C library's wrapper, which may answer from per-thread state in user space.
///
/// # Panics
/// Where the kernel has no getrandom(2) or a sandbox forbids it: nothing safe could be done without randomness.
pub fn fill(buf: &mut [u8]) {
    let mut filled = 0;
    while filled < buf.len() {
        match getrandom(&mut buf[filled..], GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => panic!("the kernel refuses randomness: {e}"),
        }
    }
}

/// `N` fresh bytes.
pub fn array<const N: usize>() -> [u8; N] {
    let mut b = [0u8; N];
    fill(&mut b);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_differ_and_cover_the_whole_buffer() {
        assert_ne!(array::<32>(), array::<32>());
        // 64 KiB in one request: every 32-byte piece must have been written.
        let mut big = vec![0u8; 65536];
        fill(&mut big);
        assert!(big.chunks(32).all(|c| c.iter().any(|&b| b != 0)));
        fill(&mut []);
    }
}
