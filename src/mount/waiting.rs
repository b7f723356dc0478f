//! A mount that waits until a CMK can be reached: how long, what it tells the operator and systemd meanwhile, what ends it.
//! Knows time and errors; not how one asks a CMK.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, getppid};

use super::{MountError, printable};
use crate::config::{WaitForKms, shown};
use crate::keys::KeyError;
use crate::sys::notify;

/// Pauses between two attempts: from about this long, doubling.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often the log tells that one still waits.
const REMINDER: Duration = Duration::from_secs(60);
/// How often a waiting daemon looks whether the command that started it is still there.
const GLANCE: Duration = Duration::from_millis(250);

/// Nothing needs to be undone while one waits, so the signals that end a process end it: there is no mount yet, and the
/// kernel gives the lock back.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: WaitForKms,
    /// Of one attempt.
    deadline: Duration,
    /// The command that waits for its daemon; without it nobody waits.
    starter: Option<Pid>,
    since: Option<Instant>,
    told: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// `background`: the parent process is the command that waits.
    pub fn new(limit: WaitForKms, deadline: Duration, background: bool) -> Self {
        let starter = if background { getppid() } else { None };
        let patience = Self { limit, deadline, starter, since: None, told: None, pause: PAUSE };
        if limit != WaitForKms::No {
            patience.tell_systemd("opening the volume", Duration::ZERO);
        }
        patience
    }

    /// None at all: for commands that answer within the deadline.
    pub fn none(deadline: Duration) -> Self {
        Self::new(WaitForKms::No, deadline, false)
    }

    /// After an attempt that failed since somebody could not be reached: returns when the next one is due, or gives the error
    /// to end with.
    pub fn wait(&mut self, error: KeyError) -> Result<(), MountError> {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        let left = match self.limit {
            WaitForKms::No => return Err(error.into()),
            WaitForKms::Forever => Duration::MAX,
            WaitForKms::AtMost(limit) => limit.saturating_sub(waited),
        };
        if left.is_zero() {
            let KeyError::Unreachable { key, reason } = error else { return Err(error.into()) };
            let reason = format!("{reason}; waited {} (wait_for_kms)", shown(whole_seconds(waited)));
            return Err(KeyError::Unreachable { key, reason }.into());
        }
        let text = printable(error.to_string().as_bytes());
        if self.told.is_none_or(|at| at.elapsed() >= REMINDER) {
            log::warn!("code=kms-waiting waiting for a CMK since {}: {text}", shown(whole_seconds(waited)));
            self.told = Some(Instant::now());
        }
        let pause = self.pause.min(left);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.tell_systemd(&format!("waiting for CMK: {text}"), pause);
        self.sleep(pause)
    }

    /// Keeps systemd from ending the start while one waits; it counts from each message anew.
    fn tell_systemd(&self, text: &str, pause: Duration) {
        let extension = (self.deadline + pause) * 2 + Duration::from_secs(30);
        let state = format!("STATUS={text}\nEXTEND_TIMEOUT_USEC={}", extension.as_micros());
        if let Err(e) = notify::notify(&state) {
            log::debug!("{}: {e}", notify::VARIABLE);
        }
    }

    fn sleep(&self, pause: Duration) -> Result<(), MountError> {
        let end = Instant::now() + pause;
        loop {
            if self.starter.is_some() && getppid() != self.starter {
                return Err(MountError::Other("the mount command that waited for a CMK was ended".into()));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(GLANCE));
        }
    }
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> KeyError {
        KeyError::Unreachable { key: "test:a".into(), reason: "timeout".into() }
    }

    #[test]
    fn without_patience_the_error_comes_back_at_once() {
        let error = Patience::none(Duration::from_secs(5)).wait(down()).unwrap_err();
        assert!(matches!(error, MountError::Key(KeyError::Unreachable { reason, .. }) if reason == "timeout"));
    }

    #[test]
    fn a_limit_ends_the_waiting_and_the_error_says_so() {
        let mut patience = Patience::new(WaitForKms::AtMost(Duration::from_millis(30)), Duration::from_secs(5), false);
        patience.wait(down()).unwrap();
        let error = patience.wait(down()).unwrap_err().to_string();
        assert_eq!(error, "CMK test:a cannot be reached: timeout; waited 0s (wait_for_kms)");
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let mut patience = Patience::new(WaitForKms::Forever, Duration::from_secs(5), false);
        patience.pause = Duration::from_millis(1);
        for _ in 0..4 {
            patience.wait(down()).unwrap();
        }
        assert_eq!(patience.pause, Duration::from_millis(16));
    }
}
