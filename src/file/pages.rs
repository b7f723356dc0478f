//! Page buffers that a thread reuses from call to call: ciphertext, and plaintext of edge blocks, as the page cache holds it too.
//! Owns memory only, and wipes it when the thread ends.

use std::cell::RefCell;

use zeroize::Zeroizing;

use crate::format::geometry::{PAGE, PLAIN};

thread_local! {
    static BUFFER: RefCell<Zeroizing<Vec<u8>>> = RefCell::new(Zeroizing::new(Vec::new()));
}

/// Blocks that one run handles at most: a FUSE request of 1 MiB, unaligned, fits in one.
pub const MAX_RUN: usize = 264;

/// Calls `f` with `count` ≤ `MAX_RUN + 2` pages of unspecified content. Not reentrant: a nested call gets a buffer of its own.
pub fn with_pages<R>(count: usize, f: impl FnOnce(&mut [[u8; PAGE]]) -> R) -> R {
    debug_assert!(count <= MAX_RUN + 2);
    BUFFER.with(|cell| match cell.try_borrow_mut() {
        Ok(mut buffer) => {
            if buffer.len() < count * PAGE {
                // A fresh one, so that growing leaves no copy behind.
                *buffer = Zeroizing::new(vec![0; count * PAGE]);
            }
            f(buffer[..count * PAGE].as_chunks_mut().0)
        }
        Err(_) => f(vec![0; count * PAGE].as_chunks_mut().0),
    })
}

/// The part of a page that holds a block's plaintext before it is sealed, or room for one.
pub fn body(page: &mut [u8; PAGE]) -> &mut [u8; PLAIN] {
    match page.last_chunk_mut() {
        Some(body) => body,
        None => unreachable!("a page is longer than its plaintext"),
    }
}
