//! Randomness from the kernel, asked for per request: no pool that a cloned machine could repeat.

use rand::{TryRng, rngs::SysRng};

/// Fills `buf` by one request to the kernel (getrandom(2), or its vDSO form, which the kernel itself reseeds when a machine is cloned).
///
/// # Panics
/// Where the kernel has no randomness to give or a sandbox forbids it: nothing safe could be done without.
pub fn fill(buf: &mut [u8]) {
    if let Err(e) = SysRng.try_fill_bytes(buf) {
        panic!("the kernel refuses randomness: {e}");
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
