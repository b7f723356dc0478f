//! Randomness from the kernel, asked for per request: no pool that a cloned machine could repeat.

/// Fills `buf` with one request to the kernel. The kernel's generator cannot fail once it is seeded.
pub fn fill(buf: &mut [u8]) {
    let _ = buf;
    todo!()
}

/// `N` fresh bytes.
pub fn array<const N: usize>() -> [u8; N] {
    let mut b = [0u8; N];
    fill(&mut b);
    b
}
