//! How a CMK is named on disk: provider and the provider's own name for the key. Knows no provider.

use std::fmt;
use std::sync::Arc;

/// Longest provider name, in bytes.
pub const PROVIDER_MAX: usize = 32;
/// Longest key name, in bytes.
pub const KEY_REF_MAX: usize = 2048;

/// A key as its provider names it. Recorded in headers and directories; the only thing an allow-list compares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyRef {
    pub provider: String,
    pub key: String,
}

/// The CMKs that new files of a directory hang on, where they are not the volume's own: never an empty list.
pub type KeyGroup = Option<Arc<[KeyRef]>>;

impl KeyRef {
    pub fn is_well_formed(&self) -> bool {
        well_formed(&self.provider, &self.key)
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.key)
    }
}

/// 1 to 32 bytes of `a`–`z`, `0`–`9`, `-`; 1 to 2048 bytes of UTF-8 without control characters.
pub(super) fn well_formed(provider: &str, key: &str) -> bool {
    (1..=PROVIDER_MAX).contains(&provider.len())
        && provider.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && (1..=KEY_REF_MAX).contains(&key.len())
        && !key.chars().any(char::is_control)
}
