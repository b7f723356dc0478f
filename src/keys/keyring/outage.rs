//! What a keyring does while CMKs are down or say no: asking them, dropping their keys, telling how they stand.

use serde::Serialize;

use super::*;
use crate::keys::{guard::CmkStatus, standing::Reason};

/// The watcher looks at least this often.
const LOOK: Duration = Duration::from_secs(60);

/// A CMK whose keys have to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    cmk: usize,
    reason: Reason,
}

#[cfg(all(test, feature = "shuttle"))]
impl Loss {
    pub fn of(cmk: usize, reason: Reason) -> Self {
        Self { cmk, reason }
    }
}

/// What `status` tells of keys.
#[derive(Debug, Clone, Serialize)]
pub struct KeyringStatus {
    pub cmks: Vec<CmkStatus>,
    pub cached_keys: Vec<CachedKey>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CachedKey {
    /// Hex.
    pub branch: String,
    pub cmk: String,
    pub age_seconds: u64,
}

impl Keyring {
    /// Whether keys from this source must not be used any more.
    pub fn lost(&self, source: &KeySource) -> bool {
        let cmks = self.cmks.read();
        let gone = |at: usize| cmks.get(at).and_then(|cmk| cmk.lost());
        gone(source.via()).is_some()
            || self.outage.revoke == Revoke::Primary && gone(source.primary()) == Some(Reason::Revoked)
    }

    /// Ends a running `watch` early.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Waits until a CMK should be asked or a branch renewed, `at_most` so long, and does so. Returns the CMKs whose keys have
    /// to go; they can be used until `enforce`. For one thread that may wait.
    pub fn watch(&self, at_most: Duration) -> Vec<Loss> {
        let now = Instant::now();
        let next = self.cmks.read().iter().map(|cmk| cmk.next_look()).min();
        let pause = next.map_or(LOOK, |next| next.saturating_duration_since(now)).min(LOOK).min(at_most);
        self.bell.wait(pause);
        let cmks = self.cmks();
        // One that does not answer must not hold up the question to another.
        std::thread::scope(|scope| {
            for cmk in cmks.iter().filter(|cmk| cmk.due(Instant::now())) {
                scope.spawn(|| cmk.probe());
            }
        });
        self.renew_due_branches();
        let lost = |(at, cmk): (usize, &Arc<Guard>)| cmk.must_drop().map(|reason| Loss { cmk: at, reason });
        cmks.iter().enumerate().filter_map(lost).collect()
    }

    /// A loss for the log.
    pub fn describe(&self, loss: &Loss) -> String {
        let cmks = self.cmks.read();
        let name = cmks.get(loss.cmk).map_or_else(String::new, |cmk| cmk.key_ref().to_string());
        match loss.reason {
            Reason::Revoked => format!("CMK {name} refuses"),
            Reason::Stale => format!("CMK {name} could not be asked for longer than kms_max_stale"),
        }
    }

    /// From now the CMK's keys count as lost, and those in the caches are gone. A branch that another of its CMKs opens stays,
    /// through that one.
    pub fn enforce(&self, loss: &Loss) {
        let cmks = self.cmks();
        let Some(cmk) = cmks.get(loss.cmk) else { return };
        cmk.lose(loss.reason);
        for ((branch, commitment), held) in self.branches.all() {
            if held.source.via() != loss.cmk || self.primary_refuses(&held.source) {
                continue;
            }
            let context = EncryptionContext::for_branch(&self.volume_id, &branch);
            let others = self.allowed(&held.slots);
            let usable =
                others.iter().filter(|(_, other, slot)| other.lost().is_none() && slot.commitment == commitment);
            for (at, other, slot) in usable {
                if slots::unwrap(other, slot, &context, self.deadline()).is_ok() {
                    log::warn!("branch {} goes on through CMK {}", HEXLOWER.encode(&branch), other.key_ref());
                    held.source.now_via(*at);
                    break;
                }
            }
        }
        self.drop_keys(|source| self.lost(source));
    }

    /// For whoever has just put a key into memory: its CMK may have been lost between its answer and that. `enforce` marks
    /// the loss before it drops keys, so that one of the two sees this key. An error where the key is gone again.
    pub(super) fn check_source(&self, source: &KeySource) -> Result<(), KeyError> {
        if !self.lost(source) {
            return Ok(());
        }
        self.drop_keys(|source| self.lost(source));
        let at = |cmk: usize| self.cmks.read().get(cmk).cloned();
        let loss = [source.via(), source.primary()].into_iter().find_map(|cmk| at(cmk)?.loss());
        // Allowed again meanwhile: the next attempt finds out.
        loss.map_or_else(|| Err(abandoned()), Err)
    }

    fn primary_refuses(&self, source: &KeySource) -> bool {
        self.outage.revoke == Revoke::Primary
            && self.cmks.read().get(source.primary()).and_then(|cmk| cmk.lost()) == Some(Reason::Revoked)
    }

    /// Drops every key in the caches; the next use fetches again.
    pub fn forget(&self) {
        self.drop_keys(|_| true);
    }

    fn drop_keys(&self, lost: impl Fn(&KeySource) -> bool) {
        self.branches.drop_keys(&lost);
        self.files.drop_keys(&lost);
        self.fresh.lock().retain(|fresh| !lost(&fresh.source));
        self.growing.lock().drop_keys(&lost);
    }

    pub fn status(&self) -> KeyringStatus {
        let cmks = self.cmks();
        let name = |at: usize| cmks.get(at).map_or(String::new(), |cmk| cmk.key_ref().to_string());
        let mut cached_keys: Vec<CachedKey> = self
            .branches
            .all()
            .into_iter()
            .map(|((branch, _), held)| CachedKey {
                branch: HEXLOWER.encode(&branch),
                cmk: name(held.source.via()),
                age_seconds: held.since.elapsed().as_secs(),
            })
            .collect();
        cached_keys.sort_by(|a, b| a.branch.cmp(&b.branch));
        KeyringStatus { cmks: cmks.iter().map(|cmk| cmk.status()).collect(), cached_keys }
    }
}

#[cfg(test)]
mod tests;
