//! Page buffers that a thread reuses from call to call. Owns memory only; what passes through is ciphertext before it is left behind.

use std::cell::RefCell;

use crate::format::geometry::PAGE;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Blocks that one run handles at most: a FUSE request of 1 MiB, unaligned, fits in one.
pub const MAX_RUN: usize = 264;

/// Calls `f` with `count` ≤ `MAX_RUN` pages of unspecified content. Not reentrant: a nested call gets a buffer of its own.
pub fn with_pages<R>(count: usize, f: impl FnOnce(&mut [[u8; PAGE]]) -> R) -> R {
    debug_assert!(count <= MAX_RUN);
    BUFFER.with(|cell| match cell.try_borrow_mut() {
        Ok(mut buffer) => {
            if buffer.len() < count * PAGE {
                buffer.resize(count * PAGE, 0);
            }
            f(buffer[..count * PAGE].as_chunks_mut().0)
        }
        Err(_) => f(vec![0; count * PAGE].as_chunks_mut().0),
    })
}
