//! Memory of the cipher library: what it allocates while a key schedule is made lies in key memory, everything else on the
//! heap; all of it is wiped when it is given back. Knows not what the library does with it.
//!
//! AWS-LC asks for memory through these four functions where a program defines them (weak symbols, crypto/mem.c).

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

use zeroize::Zeroize;

use super::locked;

/// In front of every allocation, so that the address after it keeps malloc(3)'s alignment.
#[repr(C, align(16))]
struct Head {
    /// As asked for, in bytes.
    size: usize,
    in_key_memory: bool,
}

const HEAD: usize = size_of::<Head>();

thread_local! {
    static FOR_KEYS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `make`, whose allocations by the cipher library lie in key memory for as long as they live.
pub fn for_keys<T>(make: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            FOR_KEYS.set(self.0);
        }
    }
    // The linker takes the four functions along with this one, since it is what names them.
    std::hint::black_box([
        OPENSSL_memory_alloc as *const c_void,
        OPENSSL_memory_free as *const c_void,
        OPENSSL_memory_get_size as *const c_void,
        OPENSSL_memory_realloc as *const c_void,
    ]);
    let _before = Before(FOR_KEYS.replace(true));
    make()
}

/// `size` bytes, or null.
#[unsafe(no_mangle)]
extern "C" fn OPENSSL_memory_alloc(size: usize) -> *mut c_void {
    let Some(whole) = size.checked_add(HEAD) else { return ptr::null_mut() };
    // A thread that ends has no such flag any more; nothing makes keys then.
    let in_key_memory = FOR_KEYS.try_with(Cell::get).unwrap_or(false) && whole <= locked::SLOT_MAX;
    let start = if in_key_memory {
        locked::take(whole).as_ptr()
    } else {
        // SAFETY: any size may be asked for.
        unsafe { libc::malloc(whole) }.cast::<u8>()
    };
    if start.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: `whole` bytes at an address aligned for `Head` (16 by malloc(3), 32 by key memory), all ours.
    unsafe {
        start.cast::<Head>().write(Head { size, in_key_memory });
        start.add(HEAD).cast()
    }
}

/// # Safety
/// `block` is null or came from `OPENSSL_memory_alloc` and is not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn OPENSSL_memory_free(block: *mut c_void) {
    let Some(block) = NonNull::new(block.cast::<u8>()) else { return };
    // SAFETY: by the caller's promise, a head stands in front and `size` bytes follow it.
    unsafe {
        let start = block.sub(HEAD);
        let Head { size, in_key_memory } = start.cast::<Head>().read();
        if in_key_memory {
            locked::give(start, size + HEAD);
        } else {
            let content = block.cast::<std::mem::MaybeUninit<u8>>().as_ptr();
            std::slice::from_raw_parts_mut(content, size).zeroize();
            libc::free(start.as_ptr().cast());
        }
    }
}

/// # Safety
/// `block` came from `OPENSSL_memory_alloc` and was not freed.
#[unsafe(no_mangle)]
unsafe extern "C" fn OPENSSL_memory_get_size(block: *mut c_void) -> usize {
    // SAFETY: by the caller's promise, a head stands in front.
    unsafe { block.cast::<u8>().sub(HEAD).cast::<Head>().read().size }
}

/// # Safety
/// As for `OPENSSL_memory_free`; where null is returned, `block` is as it was.
#[unsafe(no_mangle)]
unsafe extern "C" fn OPENSSL_memory_realloc(block: *mut c_void, size: usize) -> *mut c_void {
    let new = OPENSSL_memory_alloc(size);
    if !block.is_null() && !new.is_null() {
        // SAFETY: both blocks are at least as long as the shorter of the two sizes, and apart.
        unsafe {
            let kept = OPENSSL_memory_get_size(block).min(size);
            ptr::copy_nonoverlapping(block.cast::<u8>(), new.cast::<u8>(), kept);
            OPENSSL_memory_free(block);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_key_memory(block: *mut c_void) -> bool {
        // SAFETY: the tests pass live blocks only.
        unsafe { block.cast::<u8>().sub(HEAD).cast::<Head>().read().in_key_memory }
    }

    #[test]
    fn the_library_uses_these_functions() {
        let before = locked::live();
        // Other tests make and drop keys at the same time: many at once stand out.
        let keys: Vec<_> = (0..5000)
            .map(|_| for_keys(|| aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, &[7; 32]).unwrap()))
            .collect();
        let during = locked::live();
        assert!(during > before + 4000, "{before} slots before, {during} with 5000 key schedules");
        drop(keys);
    }

    #[test]
    fn only_what_belongs_to_keys_lies_in_key_memory() {
        let plain = OPENSSL_memory_alloc(100);
        let (key, large) = for_keys(|| (OPENSSL_memory_alloc(600), OPENSSL_memory_alloc(1 << 20)));
        let after = OPENSSL_memory_alloc(0);
        assert!(in_key_memory(key));
        for block in [plain, large, after] {
            assert!(!block.is_null() && (block as usize).is_multiple_of(16) && !in_key_memory(block));
        }
        // SAFETY: live blocks of the sizes asked for above.
        unsafe {
            key.cast::<u8>().write_bytes(0x11, 600);
            assert_eq!(OPENSSL_memory_get_size(key), 600);
            let longer = OPENSSL_memory_realloc(key, 900);
            assert_eq!(std::slice::from_raw_parts(longer.cast::<u8>(), 600), [0x11; 600]);
            let shorter = OPENSSL_memory_realloc(longer, 10);
            assert_eq!(std::slice::from_raw_parts(shorter.cast::<u8>(), 10), [0x11; 10]);
            for block in [plain, shorter, large, after, ptr::null_mut()] {
                OPENSSL_memory_free(block);
            }
        }
        assert!(OPENSSL_memory_alloc(usize::MAX).is_null());
    }

    #[test]
    fn a_panic_ends_the_scope() {
        let _ = std::panic::catch_unwind(|| for_keys(|| panic!("made on purpose")));
        assert!(!FOR_KEYS.get());
    }
}
