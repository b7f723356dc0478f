//! Keeping pages of memory out of swap and core dumps. Knows not what is in them.

use std::io;

use rustix::mm::{Advice, madvise, mlock};

/// Locks the pages that hold `bytes` into memory (mlock(2)) and leaves them out of core dumps. ENOMEM or EPERM beyond
/// RLIMIT_MEMLOCK. Whole pages are meant: they stay locked until they are unmapped.
pub fn lock_pages(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let page = rustix::param::page_size();
    let start = bytes.as_ptr().addr() & !(page - 1);
    let len = bytes.as_ptr().addr() + bytes.len() - start;
    let pages = bytes.as_ptr().map_addr(|_| start).cast_mut().cast();
    // SAFETY: the pages are mapped, since they hold `bytes`; neither call reads, writes or unmaps them.
    unsafe {
        mlock(pages, len)?;
        madvise(pages, len, Advice::LinuxDontDump)?;
    }
    Ok(())
}
