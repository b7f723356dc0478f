//! Log lines for damage: one per finding, a bounded number per code and minute. Knows no operations.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines of one code within one window; the rest is counted and told with the next window.
const LINES_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Findings that are remembered so that they are told once.
const REMEMBERED: usize = 4096;

struct Window {
    start: Instant,
    lines: u32,
    suppressed: u64,
}

/// What has been reported lately.
pub(super) struct Reports {
    windows: Mutex<HashMap<&'static str, Window>>,
    told: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl Reports {
    pub fn new() -> Self {
        Self { windows: Mutex::new(HashMap::new()), told: Mutex::new(HashSet::new()), hasher: RandomState::new() }
    }

    /// Logs `code=… path=… …` unless the code's share of this minute is used up.
    pub fn error(&self, code: &'static str, path: &str, detail: &str) {
        if let Some(suppressed) = self.admit(code, Instant::now()) {
            if suppressed > 0 {
                log::error!("code={code}: {suppressed} more reports of this code were left out");
            }
            log::error!("code={code} path={path}: {detail}");
        }
    }

    /// Like `error`, once per subject while it is remembered.
    pub fn error_once(&self, code: &'static str, subject: &[u8], path: impl FnOnce() -> String, detail: &str) {
        let hash = self.hasher.hash_one((code, subject));
        let mut told = self.told.lock();
        if told.len() >= REMEMBERED {
            told.clear();
        }
        let fresh = told.insert(hash);
        drop(told);
        if fresh {
            self.error(code, &path(), detail);
        }
    }

    /// `None`: not now. Otherwise how many lines were left out in the window before.
    fn admit(&self, code: &'static str, now: Instant) -> Option<u64> {
        let mut windows = self.windows.lock();
        let window = windows.entry(code).or_insert(Window { start: now, lines: 0, suppressed: 0 });
        let mut left_out = 0;
        if now.duration_since(window.start) >= WINDOW {
            left_out = window.suppressed;
            *window = Window { start: now, lines: 0, suppressed: 0 };
        }
        if window.lines < LINES_PER_WINDOW {
            window.lines += 1;
            Some(left_out)
        } else {
            window.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let reports = Reports::new();
        let start = Instant::now();
        for _ in 0..LINES_PER_WINDOW {
            assert_eq!(reports.admit("a", start), Some(0));
        }
        assert_eq!(reports.admit("a", start), None);
        assert_eq!(reports.admit("a", start), None);
        assert_eq!(reports.admit("b", start), Some(0));
        assert_eq!(reports.admit("a", start + WINDOW), Some(2));
        assert_eq!(reports.admit("a", start + WINDOW), Some(0));
    }
}
