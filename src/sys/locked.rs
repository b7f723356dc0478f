//! Memory for keys: pages that reach neither swap nor core dumps nor a forked child, handed out in small slots that are
//! wiped when they are given back. Knows not what a key is for.
//!
//! Pages come from memfd_secret(2) where the kernel has it: it takes them out of its own map of memory, so that neither
//! ptrace(2) nor `/proc/PID/mem` nor a kernel exploit that reads through that map sees them, not even for root (who can still
//! make the process itself read them). Elsewhere from mmap(2) with mlock(2). Both count against RLIMIT_MEMLOCK; where that
//! does not allow more, keys live in ordinary memory that core dumps leave out, and one warning says so.

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroize;

/// Every slot starts at a multiple of this.
const ALIGN: usize = 32;
/// Sizes of slots, in bytes: multiples of `ALIGN`.
const CLASSES: [usize; 14] = [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096];
/// The largest slot, in bytes.
pub(super) const SLOT_MAX: usize = CLASSES[CLASSES.len() - 1];
/// A chunk of pages: the first has the smallest size, each following one twice the size of the one before.
const CHUNK_MIN: usize = 16 * 1024;
const CHUNK_MAX: usize = 1024 * 1024;

/// What holds the keys of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of pages set aside for keys, used or not.
    pub bytes: usize,
    /// No such page can reach swap.
    pub locked: bool,
    /// No such page can be read from outside the process (memfd_secret).
    pub hidden: bool,
}

pub fn usage() -> Usage {
    let arena = ARENA.lock();
    Usage { bytes: arena.bytes, locked: arena.unlocked == 0, hidden: arena.visible == 0 }
}

/// Slots in use: a process that holds keys must not fork and go on in the child, which does not have them.
pub(super) fn live() -> usize {
    ARENA.lock().live
}

/// In a forked child: the pages are the parent's alone, so keys get fresh ones. Only where `live` was 0 before the fork.
pub(super) fn start_anew_in_child() {
    let mut arena = ARENA.lock();
    *arena = Arena::EMPTY;
}

/// A value in key memory, as a `Box` has it on the heap. Dropped where it lies, then wiped.
pub struct Locked<T>(NonNull<T>);

// SAFETY: owns its value as a Box does.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: gives shared access to its value only through a shared reference, as a Box does.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    const LAYOUT: Layout = {
        let layout = Layout::new::<T>();
        assert!(layout.size() <= SLOT_MAX && layout.align() <= ALIGN);
        layout
    };

    /// Moves `value` in. The place it comes from may keep a copy: see [`Locked::zeroed`] for raw keys.
    pub fn new(value: T) -> Self {
        let slot = take(Self::LAYOUT.size()).cast::<T>();
        // SAFETY: the slot is ours, large enough and aligned (LAYOUT), and holds no value yet.
        unsafe { slot.write(value) };
        Self(slot)
    }
}

impl<const N: usize> Locked<[u8; N]> {
    /// Zeros, to be written in place.
    pub fn zeroed() -> Self {
        // Free slots are all zero.
        Self(take(Self::LAYOUT.size()).cast())
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the slot holds a value from construction to drop, and is borrowed with `self`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped once, here; then the slot, which `take` gave for this size, goes back.
        unsafe {
            self.0.drop_in_place();
            give(self.0.cast(), Self::LAYOUT.size());
        }
    }
}

/// A free slot of at least `size` bytes, all zero, aligned to `ALIGN`. Aborts where there is no memory at all.
pub(super) fn take(size: usize) -> NonNull<u8> {
    let class = class_of(size);
    let (slot, complaint) = {
        let mut arena = ARENA.lock();
        let mut complaint = None;
        let slot = arena.take(class, &mut complaint);
        (slot, complaint)
    };
    if let Some(why) = complaint
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        log::warn!(
            "keys cannot be locked in memory and may reach swap ({why}): raise the limit of locked memory \
             (ulimit -l, LimitMEMLOCK= in a unit) or grant CAP_IPC_LOCK"
        );
    }
    match slot {
        Some(Slot(slot)) => slot,
        None => handle_alloc_error(Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<u8>())),
    }
}

/// Wipes a slot and makes it free.
///
/// # Safety
/// `slot` came from `take(size)`, and nobody uses it any more.
pub(super) unsafe fn give(slot: NonNull<u8>, size: usize) {
    let class = class_of(size);
    // SAFETY: the whole slot is the caller's, who gives it up.
    unsafe { std::slice::from_raw_parts_mut(slot.as_ptr().cast::<MaybeUninit<u8>>(), CLASSES[class]) }.zeroize();
    let mut arena = ARENA.lock();
    arena.live -= 1;
    arena.free[class].push(Slot(slot));
}

/// Index into `CLASSES`. Callers ask for no more than the largest.
fn class_of(size: usize) -> usize {
    CLASSES.partition_point(|class| *class < size)
}

static ARENA: Mutex<Arena> = Mutex::new(Arena::EMPTY);
static WARNED: AtomicBool = AtomicBool::new(false);

struct Slot(NonNull<u8>);

// SAFETY: an address of memory that belongs to the process, not to a thread.
unsafe impl Send for Slot {}

/// Its lock is held for a moment, and across system calls only when a chunk is added. Chunks are never given back: their
/// number is that of the most keys held at a time.
struct Arena {
    /// Free slots of each class.
    free: [Vec<Slot>; CLASSES.len()],
    /// Rest of the newest chunk that no slot was cut from yet.
    rest: Option<(Slot, usize)>,
    /// Length of the next chunk.
    next: usize,
    live: usize,
    bytes: usize,
    /// Bytes of chunks that could not be locked.
    unlocked: usize,
    /// Bytes of chunks that are not from memfd_secret.
    visible: usize,
}

impl Arena {
    const EMPTY: Self = Self {
        free: [const { Vec::new() }; CLASSES.len()],
        rest: None,
        next: CHUNK_MIN,
        live: 0,
        bytes: 0,
        unlocked: 0,
        visible: 0,
    };

    /// `None` where the kernel has no memory; `complaint` says why a new chunk is not locked.
    fn take(&mut self, class: usize, complaint: &mut Option<io::Error>) -> Option<Slot> {
        let slot = match self.free[class].pop() {
            Some(slot) => slot,
            None => self.cut(CLASSES[class], complaint)?,
        };
        self.live += 1;
        Some(slot)
    }

    fn cut(&mut self, size: usize, complaint: &mut Option<io::Error>) -> Option<Slot> {
        if self.rest.as_ref().is_none_or(|(_, left)| *left < size) {
            // What is left of the old chunk is smaller than one slot of this size, and is given up.
            self.rest = Some(self.grow(complaint)?);
        }
        let (start, left) = self.rest.take()?;
        // SAFETY: `size` bytes are left in the chunk, so the address stays in it or at its end.
        let after = unsafe { start.0.add(size) };
        self.rest = Some((Slot(after), left - size));
        Some(start)
    }

    fn grow(&mut self, complaint: &mut Option<io::Error>) -> Option<(Slot, usize)> {
        // A limit that is too low for the next size may still allow the smallest.
        let chunk = [self.next, CHUNK_MIN].into_iter().find_map(|len| {
            let chunk = Chunk::hidden(len).or_else(|_| Chunk::locked(len));
            chunk.map_err(|e| *complaint = Some(e)).ok().map(|chunk| (chunk, len))
        });
        let (chunk, len) = match chunk {
            Some(found) => {
                *complaint = None;
                found
            }
            None => {
                self.unlocked += CHUNK_MIN;
                (Chunk::plain(CHUNK_MIN).ok()?, CHUNK_MIN)
            }
        };
        self.next = (len * 2).min(CHUNK_MAX);
        self.bytes += len;
        self.visible += if chunk.hidden { 0 } else { len };
        Some((Slot(chunk.start), len))
    }
}

/// Readable and writable pages, all zero, between two that nobody may touch.
struct Chunk {
    start: NonNull<u8>,
    hidden: bool,
}

impl Chunk {
    /// From memfd_secret(2), Linux 5.14: locked and left out of dumps by its nature. ENOSYS where the kernel lacks it or
    /// has it switched off (`secretmem.enable=0`), EAGAIN beyond RLIMIT_MEMLOCK.
    fn hidden(len: usize) -> io::Result<Self> {
        // SAFETY: takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd = i32::try_from(check(fd)?).map_err(io::Error::other)?;
        // SAFETY: a descriptor that the kernel just gave us.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::fs::ftruncate(&file, len as u64)?;
        // The mapping keeps the pages; without the descriptor nobody can map them a second time.
        Self::between_guards(len, |at| {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: replaces a part of the reservation that nobody uses yet.
            let mapped = unsafe { libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0) };
            if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(true) }
        })
    }

    /// Anonymous and locked. EAGAIN, ENOMEM or EPERM beyond RLIMIT_MEMLOCK.
    fn locked(len: usize) -> io::Result<Self> {
        Self::between_guards(len, |at| {
            open_up(at, len)?;
            // SAFETY: exactly the pages just made accessible.
            check(unsafe { libc::mlock(at, len) }.into())?;
            Ok(false)
        })
    }

    fn plain(len: usize) -> io::Result<Self> {
        Self::between_guards(len, |at| open_up(at, len).map(|()| false))
    }

    /// Reserves `len` bytes and a page on either side, and lets `fill` make the middle accessible, which tells whether it is
    /// hidden. Nothing is left mapped on failure.
    fn between_guards(len: usize, fill: impl FnOnce(*mut c_void) -> io::Result<bool>) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let whole = len + 2 * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address the kernel chooses; the result is checked.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: inside the reservation.
        let start = unsafe { base.add(page) };
        let filled = fill(start).and_then(|hidden| {
            // A child would get copies that are not locked; a wiped copy (MADV_WIPEONFORK) would be a key of zeros there.
            for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
                // SAFETY: exactly the reservation; neither advice changes its content here.
                check(unsafe { libc::madvise(base, whole, advice) }.into())?;
            }
            let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { start, hidden })
        });
        if filled.is_err() {
            // SAFETY: exactly the reservation, which nobody uses.
            unsafe { libc::munmap(base, whole) };
        }
        filled
    }
}

/// Makes `len` bytes of a reservation readable and writable.
fn open_up(at: *mut c_void, len: usize) -> io::Result<()> {
    // SAFETY: a part of a reservation that nobody uses yet.
    check(unsafe { libc::mprotect(at, len, libc::PROT_READ | libc::PROT_WRITE) }.into()).map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Fields of the mapping that `address` lies in: its line in /proc/self/smaps and its VmFlags.
    fn mapping_of(address: usize) -> (String, Vec<String>) {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = String::new();
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let range = range.and_then(|(a, b)| Some((parse(a)?, parse(b)?)));
            if let Some((start, end)) = range {
                here = if (start..end).contains(&address) { line.to_owned() } else { String::new() };
            }
            if !here.is_empty()
                && let Some(flags) = line.strip_prefix("VmFlags: ")
            {
                return (here, flags.split_whitespace().map(String::from).collect());
            }
        }
        panic!("{address:#x} is not mapped")
    }
    fn parse(hex: &str) -> Option<usize> {
        usize::from_str_radix(hex, 16).ok()
    }
    fn has(flags: &[String], flag: &str) -> bool {
        flags.iter().any(|f| f == flag)
    }
    /// What another process would get at `address`.
    fn from_outside(address: usize) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        let memory = std::fs::File::open("/proc/self/mem").ok()?;
        memory.read_exact_at(&mut bytes, address as u64).ok().map(|()| bytes)
    }

    #[test]
    fn keys_lie_in_pages_that_are_locked_undumped_and_not_inherited() {
        let value = Locked::new([0x5a_u8; 32]);
        let address = value.as_ptr() as usize;
        let (line, flags) = mapping_of(address);
        // smaps(5): dd is MADV_DONTDUMP, dc MADV_DONTFORK, lo a locked mapping.
        assert!(has(&flags, "dd") && has(&flags, "dc"), "{line}: {flags:?}");
        let usage = usage();
        assert!(!usage.locked || has(&flags, "lo"), "{line}: {flags:?}");
        assert!(!usage.hidden || from_outside(address).is_none());
        assert!(usage.bytes >= CHUNK_MIN);
    }

    #[test]
    fn both_kinds_of_locked_chunks_work_and_have_guards() {
        let page = rustix::param::page_size();
        for (chunk, hidden) in [(Chunk::hidden(CHUNK_MIN), true), (Chunk::locked(CHUNK_MIN), false)] {
            let Ok(chunk) = chunk else {
                // memfd_secret is off in many kernels, and RLIMIT_MEMLOCK may be 0; the arena then falls back.
                eprintln!("SKIPPED: no {} memory here", if hidden { "hidden" } else { "locked" });
                continue;
            };
            assert_eq!(chunk.hidden, hidden);
            let start = chunk.start.as_ptr() as usize;
            // SAFETY: the chunk is this test's alone, CHUNK_MIN bytes long.
            let bytes = unsafe { std::slice::from_raw_parts_mut(chunk.start.as_ptr(), CHUNK_MIN) };
            assert!(bytes.iter().all(|b| *b == 0));
            bytes.fill(0x77);
            assert!(bytes.iter().all(|b| *b == 0x77));
            let (line, flags) = mapping_of(start);
            assert!(["lo", "dd", "dc"].iter().all(|f| has(&flags, f)), "{line}: {flags:?}");
            assert!(!hidden || from_outside(start).is_none());
            // The control: the same way does read what is not hidden, unless another test has forbidden it to all but root.
            if !hidden && rustix::process::geteuid().is_root() {
                assert_eq!(from_outside(start), Some([0x77; 16]));
            }
            for guard in [start - 1, start + CHUNK_MIN] {
                let (line, _) = mapping_of(guard);
                assert!(line.contains(" ---p "), "{line}");
            }
            // SAFETY: the whole reservation, whose slice is not used again.
            unsafe { libc::munmap(chunk.start.as_ptr().sub(page).cast(), CHUNK_MIN + 2 * page) };
        }
    }

    #[test]
    fn slots_come_back_wiped() {
        // A class of its own, so that no other test takes the slot in between.
        const SIZE: usize = 3000;
        let mut value = Locked::<[u8; SIZE]>::zeroed();
        value.fill(0xee);
        let address = value.as_ptr();
        drop(value);
        let again = Locked::<[u8; SIZE]>::zeroed();
        assert_eq!(again.as_ptr(), address);
        assert!(again.iter().all(|b| *b == 0));
    }

    #[test]
    fn every_size_finds_a_class_and_an_aligned_slot() {
        for size in 0..=4096 {
            let class = class_of(size);
            assert!(CLASSES[class] >= size && (class == 0 || CLASSES[class - 1] < size));
        }
        assert!(CLASSES.iter().all(|class| class % ALIGN == 0));
        for size in CLASSES {
            assert_eq!(CLASSES[class_of(size)], size);
        }
        let mut arena = Arena { free: [const { Vec::new() }; CLASSES.len()], ..Arena::EMPTY };
        let mut ends = Vec::new();
        for (class, size) in CLASSES.iter().enumerate() {
            let slot = arena.take(class, &mut None).unwrap().0.as_ptr() as usize;
            assert_eq!(slot % ALIGN, 0);
            assert!(ends.iter().all(|(start, end)| slot >= *end || slot + size <= *start));
            ends.push((slot, slot + size));
        }
        assert_eq!(arena.live, CLASSES.len());
    }

    #[test]
    fn the_value_is_dropped_once_where_it_lies() {
        let counted = std::sync::Arc::new(());
        let value = Locked::new(counted.clone());
        assert_eq!(std::sync::Arc::strong_count(&counted), 2);
        drop(value);
        assert_eq!(std::sync::Arc::strong_count(&counted), 1);
    }

    #[test]
    fn threads_never_share_a_slot() {
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..2000_usize {
                        let mut value = Locked::<[u8; 32]>::zeroed();
                        assert_eq!(*value, [0; 32]);
                        value.fill(thread + 1);
                        held.push(value);
                        if round % 3 == 0 {
                            let value = held.swap_remove(round % held.len());
                            assert_eq!(*value, [thread + 1; 32]);
                        }
                    }
                    assert!(held.iter().all(|value| **value == [thread + 1; 32]));
                });
            }
        });
    }
}
