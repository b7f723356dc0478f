//! What time it is for keys: the wall clock, moved where a test says so. Knows nothing of what happens at which time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch. Signatures are always judged by the wall clock itself.
#[derive(Debug, Default)]
pub struct Clock {
    offset: AtomicI64,
}

impl Clock {
    pub fn now(&self) -> i64 {
        wall().saturating_add(self.offset.load(Ordering::Relaxed))
    }

    /// For tests: deletion windows and rotation periods are days long.
    pub fn advance(&self, millis: i64) {
        self.offset.fetch_add(millis, Ordering::Relaxed);
    }
}

/// The wall clock; before 1970 counts as 0.
pub fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
