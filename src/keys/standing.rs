//! How one CMK stands: the state machine of outage and revocation. Pure: time and answers come in, decisions go out.

use std::time::{Duration, Instant};

use super::guard::OutagePolicy;

/// First pause of the circuit breaker; it doubles up to `COOL_OFF_MAX`.
const COOL_OFF: Duration = Duration::from_secs(1);
const COOL_OFF_MAX: Duration = Duration::from_secs(8);
/// A CMK that says no is asked again this often, so that enabling it heals soon.
const REFUSED_REPROBE: Duration = Duration::from_secs(10);
/// A request for a refused CMK brings the next question forward, but no closer to the last one than this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What a probe or a call brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// A definite no, with its reason.
    No(String),
    /// Nobody answered in time.
    None(String),
}

/// What the last answers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet counts as up.
    Up,
    Down(String),
    Refused(String),
}

/// Why keys have to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Revoked,
    Stale,
}

/// What changed by an answer, for the log: each change once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    WentDown,
    CameBack,
    Refused,
    Allowed,
}

#[derive(Debug)]
pub struct Standing {
    health: Health,
    /// Last time that the CMK was known to be usable.
    confirmed: Instant,
    /// The next time that the watcher asks.
    next_probe: Instant,
    last_probe: Option<Instant>,
    cool_off: Duration,
    /// Somebody is asking a CMK that is down.
    trying: bool,
    /// Its keys are dropped, or being dropped.
    lost: Option<Reason>,
}

impl Standing {
    pub fn new(now: Instant, policy: &OutagePolicy) -> Self {
        Self {
            health: Health::Up,
            confirmed: now,
            next_probe: now + policy.revalidate,
            last_probe: None,
            cool_off: COOL_OFF,
            trying: false,
            lost: None,
        }
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn lost(&self) -> Option<Reason> {
        self.lost
    }

    pub fn confirmed(&self) -> Instant {
        self.confirmed
    }

    pub fn next_probe(&self) -> Instant {
        self.next_probe
    }

    /// Whether a call may go out. While the CMK is down one call goes at each `next_probe`; the others get its last error.
    pub fn admit(&mut self, now: Instant) -> Result<(), (String, Duration)> {
        let Health::Down(why) = &self.health else { return Ok(()) };
        if self.trying || now < self.next_probe {
            return Err((why.clone(), self.next_probe.saturating_duration_since(now)));
        }
        self.trying = true;
        Ok(())
    }

    /// A call of ordinary work ended. A definite no may concern that one key alone, so it decides nothing but that the
    /// watcher asks now.
    pub fn called(&mut self, answer: &Answer, now: Instant, policy: &OutagePolicy) -> Option<Change> {
        self.trying = false;
        match answer {
            Answer::Yes if self.health == Health::Up => {
                self.confirm(now, policy);
                None
            }
            // Whether a refusal is over, the watcher's own question decides.
            Answer::Yes if matches!(self.health, Health::Refused(_)) => {
                self.hasten(now);
                None
            }
            Answer::Yes => self.probed(answer, now, policy),
            Answer::No(_) => {
                let was_down = matches!(self.health, Health::Down(_));
                if was_down {
                    self.health = Health::Up;
                }
                self.hasten(now);
                was_down.then_some(Change::CameBack)
            }
            Answer::None(_) => self.probed(answer, now, policy),
        }
    }

    /// Whether the watcher is to ask.
    pub fn due(&self, now: Instant) -> bool {
        now >= self.next_probe
    }

    /// The answer to the watcher's question, which decides.
    pub fn probed(&mut self, answer: &Answer, now: Instant, policy: &OutagePolicy) -> Option<Change> {
        self.trying = false;
        self.last_probe = Some(now);
        let before = std::mem::replace(&mut self.health, Health::Up);
        match answer {
            Answer::Yes => {
                self.confirm(now, policy);
                self.lost = None;
                match before {
                    Health::Up => None,
                    Health::Down(_) => Some(Change::CameBack),
                    Health::Refused(_) => Some(Change::Allowed),
                }
            }
            Answer::No(why) => {
                self.health = Health::Refused(why.clone());
                self.cool_off = COOL_OFF;
                self.next_probe = now + REFUSED_REPROBE.min(policy.revalidate);
                (!matches!(before, Health::Refused(_))).then_some(Change::Refused)
            }
            Answer::None(why) => {
                self.next_probe = now + self.cool_off;
                self.cool_off = (self.cool_off * 2).min(COOL_OFF_MAX);
                match before {
                    // What was refused stays so until somebody takes it back.
                    Health::Refused(_) => {
                        self.health = before;
                        None
                    }
                    Health::Down(_) => {
                        self.health = Health::Down(why.clone());
                        None
                    }
                    Health::Up => {
                        self.health = Health::Down(why.clone());
                        Some(Change::WentDown)
                    }
                }
            }
        }
    }

    fn confirm(&mut self, now: Instant, policy: &OutagePolicy) {
        self.confirmed = now;
        self.cool_off = COOL_OFF;
        self.next_probe = now + policy.revalidate;
    }

    /// Brings the next question forward.
    pub fn hasten(&mut self, now: Instant) {
        let earliest = self.last_probe.map_or(now, |last| last + REFUSED_PAUSE);
        self.next_probe = self.next_probe.min(earliest.max(now));
    }

    /// Why this CMK's keys have to go now, where that has not been said before.
    pub fn must_drop(&self, now: Instant, policy: &OutagePolicy) -> Option<Reason> {
        let reason = match &self.health {
            Health::Up => return None,
            Health::Refused(_) => Reason::Revoked,
            Health::Down(_) => {
                let limit = policy.max_stale?;
                if now.saturating_duration_since(self.confirmed) < limit {
                    return None;
                }
                Reason::Stale
            }
        };
        (self.lost != Some(reason) && self.lost != Some(Reason::Revoked)).then_some(reason)
    }

    /// When `must_drop` can next change by time alone.
    pub fn stale_at(&self, policy: &OutagePolicy) -> Option<Instant> {
        match (&self.health, policy.max_stale, self.lost) {
            (Health::Down(_), Some(limit), None) => Some(self.confirmed + limit),
            _ => None,
        }
    }

    /// From now on keys of this CMK count as lost, until a question is answered with yes.
    pub fn lose(&mut self, reason: Reason) {
        // A yes since then stands.
        if self.health != Health::Up {
            self.lost = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: OutagePolicy = OutagePolicy {
        deadline: Duration::from_secs(5),
        revalidate: Duration::from_secs(300),
        max_stale: Some(Duration::from_secs(3600)),
        revoke: super::super::guard::Revoke::Any,
    };

    fn no() -> Answer {
        Answer::No("disabled".into())
    }
    fn none() -> Answer {
        Answer::None("timeout".into())
    }
    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_healthy_cmk_is_asked_once_an_interval_and_use_counts_as_asking() {
        let start = Instant::now();
        let mut s = Standing::new(start, &POLICY);
        assert!(!s.due(at(start, 299)) && s.due(at(start, 300)));
        assert_eq!(s.called(&Answer::Yes, at(start, 200), &POLICY), None);
        assert!(!s.due(at(start, 499)) && s.due(at(start, 500)));
        assert_eq!(s.must_drop(at(start, 100_000), &POLICY), None);
    }

    #[test]
    fn the_breaker_lets_one_call_through_at_growing_intervals() {
        let start = Instant::now();
        let mut s = Standing::new(start, &POLICY);
        s.admit(start).unwrap();
        assert_eq!(s.called(&none(), start, &POLICY), Some(Change::WentDown));
        let (why, left) = s.admit(start).unwrap_err();
        assert_eq!((why.as_str(), left), ("timeout", COOL_OFF));
        s.admit(at(start, 1)).unwrap();
        s.admit(at(start, 1)).unwrap_err();
        assert_eq!(s.called(&none(), at(start, 1), &POLICY), None);
        s.admit(at(start, 2)).unwrap_err();
        s.admit(at(start, 3)).unwrap();
        let mut now = at(start, 3);
        for _ in 0..10 {
            s.called(&none(), now, &POLICY);
            now = s.next_probe();
            s.admit(now).unwrap();
        }
        s.called(&none(), now, &POLICY);
        assert_eq!(s.next_probe() - now, COOL_OFF_MAX);
        assert_eq!(s.probed(&Answer::Yes, s.next_probe(), &POLICY), Some(Change::CameBack));
        assert_eq!(s.health(), &Health::Up);
        assert!(s.admit(now).is_ok());
    }

    #[test]
    fn an_ordinary_no_only_hastens_the_question_and_the_answer_decides() {
        let start = Instant::now();
        let mut s = Standing::new(start, &POLICY);
        assert_eq!(s.called(&no(), at(start, 10), &POLICY), None);
        assert_eq!((s.health(), s.due(at(start, 10))), (&Health::Up, true));
        assert_eq!(s.must_drop(at(start, 10), &POLICY), None);
        // The CMK as such is fine: only that one key was refused.
        assert_eq!(s.probed(&Answer::Yes, at(start, 10), &POLICY), None);
        // Now it is not.
        assert_eq!(s.probed(&no(), at(start, 20), &POLICY), Some(Change::Refused));
        assert_eq!(s.must_drop(at(start, 20), &POLICY), Some(Reason::Revoked));
        s.lose(Reason::Revoked);
        assert_eq!((s.must_drop(at(start, 21), &POLICY), s.lost()), (None, Some(Reason::Revoked)));
        // Asked again soon, sooner by demand, and an outage does not lift it.
        assert!(!s.due(at(start, 29)) && s.due(at(start, 30)));
        s.hasten(at(start, 20));
        assert!(!s.due(at(start, 20)) && s.due(at(start, 21)));
        assert_eq!(s.probed(&none(), at(start, 21), &POLICY), None);
        assert!(matches!(s.health(), Health::Refused(_)));
        assert_eq!(s.probed(&Answer::Yes, at(start, 31), &POLICY), Some(Change::Allowed));
        assert_eq!((s.lost(), s.health()), (None, &Health::Up));
    }

    #[test]
    fn keys_go_when_nobody_could_be_asked_for_too_long() {
        let start = Instant::now();
        let mut s = Standing::new(start, &POLICY);
        s.probed(&none(), at(start, 300), &POLICY);
        assert_eq!(s.must_drop(at(start, 3599), &POLICY), None);
        assert_eq!(s.stale_at(&POLICY), Some(at(start, 3600)));
        assert_eq!(s.must_drop(at(start, 3600), &POLICY), Some(Reason::Stale));
        s.lose(Reason::Stale);
        assert_eq!((s.must_drop(at(start, 3601), &POLICY), s.stale_at(&POLICY)), (None, None));
        // A definite no outranks staleness.
        s.probed(&no(), at(start, 3700), &POLICY);
        assert_eq!(s.must_drop(at(start, 3700), &POLICY), Some(Reason::Revoked));
        s.probed(&Answer::Yes, at(start, 3800), &POLICY);
        assert_eq!(s.lost(), None);
        let forever = OutagePolicy { max_stale: None, ..POLICY };
        s.probed(&none(), at(start, 4000), &forever);
        assert_eq!(s.must_drop(at(start, 1_000_000), &forever), None);
    }

    #[test]
    fn a_yes_that_came_meanwhile_is_not_overruled() {
        let start = Instant::now();
        let mut s = Standing::new(start, &POLICY);
        s.probed(&no(), start, &POLICY);
        s.probed(&Answer::Yes, at(start, 1), &POLICY);
        s.lose(Reason::Revoked);
        assert_eq!(s.lost(), None);
    }
}
