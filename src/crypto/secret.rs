//! Secret bytes that wipe themselves. Owns the newtype of every key; must not know what they open.

use zeroize::Zeroize;

use crate::sys::locked::Locked;

/// Thirty-two secret bytes: in memory for keys (locked, in no dump), wiped on drop, never printed, never cloned implicitly.
pub struct Secret32(Locked<[u8; 32]>);

impl Secret32 {
    /// The caller's own copy is his to wipe; [`Secret32::written_by`] makes none.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let mut secret = Self(Locked::zeroed());
        secret.0.copy_from_slice(&bytes);
        bytes.zeroize();
        secret
    }
    /// Lets `write` put the bytes where they will stay, so that no other copy is made. Wiped where `write` fails.
    pub fn written_by<E>(write: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self(Locked::zeroed());
        write(&mut secret.0)?;
        Ok(secret)
    }
    /// Fresh bytes from the kernel.
    pub fn random() -> Self {
        let mut secret = Self(Locked::zeroed());
        super::random::fill(&mut secret.0[..]);
        secret
    }
    /// The bytes themselves, for a derivation or an AEAD only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
    /// A second copy, asked for by name so that copies can be found.
    pub fn duplicate(&self) -> Self {
        let mut secret = Self(Locked::zeroed());
        secret.0.copy_from_slice(&self.0[..]);
        secret
    }
}

/// Stack that one derivation, MAC or key schedule may use, in bytes: twice what the deepest needs (names, unoptimised).
const STACK: usize = 12 * 1024;

/// Runs `work` and then overwrites the stack it has used: MACs and key schedules leave copies of their keys there. What it
/// returns should be a secret's handle, not its bytes.
pub fn wiping_stack<T>(work: impl FnOnce() -> T) -> T {
    // Both are called, so that their frames begin at the same place below this one.
    #[inline(never)]
    fn call<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    #[inline(never)]
    fn wipe() {
        std::hint::black_box(&mut [0u8; STACK]);
    }
    let value = call(work);
    wipe();
    value
}

impl std::fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret32(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret32::from_bytes([0x41; 32])), "Secret32(..)");
    }

    #[test]
    fn copies_are_equal_and_random_ones_are_not() {
        let a = Secret32::random();
        assert_eq!(a.duplicate().expose(), a.expose());
        assert_ne!(Secret32::random().expose(), a.expose());
        assert!(Secret32::written_by(|_| Err::<(), ()>(())).is_err());
    }
}
