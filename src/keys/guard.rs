//! Policy around one CMK: deadline, retries, circuit breaker, counters, and how it stands. Knows a provider as a trait and
//! what to ask it with; no keys in memory, no files.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::{
    CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef,
    providers::KMS_DEADLINE,
    standing::{Answer, Change, Health, Reason, Standing},
    uri::CmkUri,
};
use crate::crypto::{random, secret::Secret32};

/// Calls under way at once per CMK, those that were given up and have not come back included.
const CALLS_MAX: u32 = 32;
/// Retries start after about this long, and double.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// When a file that hangs on several CMKs counts as revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Revoke {
    /// When every CMK that can be asked has said no.
    #[default]
    Any,
    /// Already when the first-listed one has.
    Primary,
}

/// What a mount does while a KMS is slow, down, or says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutagePolicy {
    /// Longest time of a whole operation, retries and further CMKs included.
    pub deadline: Duration,
    /// A CMK is asked at least this often whether it may still be used.
    pub revalidate: Duration,
    /// Keys of a CMK that nobody could ask for this long are dropped; `None`: kept.
    pub max_stale: Option<Duration>,
    pub revoke: Revoke,
}

impl Default for OutagePolicy {
    fn default() -> Self {
        Self {
            deadline: KMS_DEADLINE,
            revalidate: Duration::from_secs(300),
            max_stale: None,
            revoke: Revoke::default(),
        }
    }
}

/// The end of an operation.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
    /// An equal share of what is left for each of `n` attempts.
    pub fn share(self, n: usize) -> Self {
        Self(Instant::now() + self.left() / u32::try_from(n.max(1)).unwrap_or(u32::MAX))
    }
}

/// Ends the waiting of the watcher.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *self.rung.lock() = true;
        self.ring.notify_all();
    }
    /// Until it rings or the time is over.
    pub fn wait(&self, limit: Duration) {
        let mut rung = self.rung.lock();
        if !*rung {
            self.ring.wait_for(&mut rung, limit);
        }
        *rung = false;
    }
}

/// Counters of one kind of call.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Calls {
    pub calls: u64,
    pub failures: u64,
    pub mean_ms: f64,
    pub max_ms: f64,
    #[serde(skip)]
    total: Duration,
}

impl Calls {
    fn count(&mut self, took: Duration, failed: bool) {
        self.calls += 1;
        self.failures += u64::from(failed);
        self.total += took;
        self.mean_ms = self.total.as_secs_f64() * 1000.0 / self.calls as f64;
        self.max_ms = self.max_ms.max(took.as_secs_f64() * 1000.0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Generate,
    Wrap,
    Unwrap,
    Describe,
}

#[derive(Default, Clone)]
struct Record {
    generate: Calls,
    wrap: Calls,
    unwrap: Calls,
    describe: Calls,
    last_success: Option<SystemTime>,
    last_error: Option<(SystemTime, String)>,
}

/// What `status` tells of one CMK.
#[derive(Debug, Clone, Serialize)]
pub struct CmkStatus {
    pub provider: String,
    pub key: String,
    /// `usable`, `unreachable` or `refused`.
    pub state: &'static str,
    /// Why, where it is not usable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether its keys have been dropped: `revoked` or `stale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<&'static str>,
    /// Seconds since the CMK was last known to be usable.
    pub confirmed_seconds_ago: f64,
    pub next_check_in_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    pub generate: Calls,
    pub wrap: Calls,
    pub unwrap: Calls,
    pub describe: Calls,
}

#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    pub at: String,
    pub text: String,
}

/// What the CMK opened or made last, to ask again with.
type Known = (Vec<u8>, EncryptionContext);

type Operation<T> = Arc<dyn Fn(&dyn CmkProvider) -> Result<T, KeyError> + Send + Sync>;

/// One CMK and everything known about how it answers.
pub struct Guard {
    provider: Arc<dyn CmkProvider>,
    policy: OutagePolicy,
    optional: bool,
    standing: Mutex<Standing>,
    record: Mutex<Record>,
    known: Mutex<Option<Known>>,
    bell: Mutex<Arc<Bell>>,
    under_way: Arc<AtomicU32>,
}

impl Guard {
    pub fn new(provider: Arc<dyn CmkProvider>, policy: OutagePolicy) -> Arc<Self> {
        Arc::new(Self::around(provider, policy, false))
    }

    fn around(provider: Arc<dyn CmkProvider>, policy: OutagePolicy, optional: bool) -> Self {
        Self {
            optional,
            standing: Mutex::new(Standing::new(Instant::now(), &policy)),
            provider,
            policy,
            record: Mutex::default(),
            known: Mutex::default(),
            bell: Mutex::default(),
            under_way: Arc::default(),
        }
    }

    /// One around each of the CMKs that were opened by these URIs.
    pub fn all(uris: &[CmkUri], providers: Vec<Arc<dyn CmkProvider>>, policy: OutagePolicy) -> Vec<Arc<Self>> {
        let around = |(uri, provider): (&CmkUri, _)| Arc::new(Self::around(provider, policy, uri.optional));
        uris.iter().zip(providers).map(around).collect()
    }

    /// Keys may be made without this CMK where it cannot be had.
    pub fn is_optional(&self) -> bool {
        self.optional
    }

    pub fn key_ref(&self) -> &KeyRef {
        self.provider.key_ref()
    }

    pub fn is_local(&self) -> bool {
        self.provider.is_local()
    }

    pub fn policy(&self) -> OutagePolicy {
        self.policy
    }

    /// From now `bell` is rung whenever this CMK should be asked earlier than planned.
    pub fn report_to(&self, bell: &Arc<Bell>) {
        *self.bell.lock() = bell.clone();
    }

    fn ring(&self) {
        let bell = self.bell.lock().clone();
        bell.ring();
    }

    /// Whether its keys are gone, or must not be used any more.
    pub fn lost(&self) -> Option<Reason> {
        self.standing.lock().lost()
    }

    /// The error for those who want a key of a CMK that is lost. Has the watcher ask again soon.
    pub fn loss(&self) -> Option<KeyError> {
        let mut standing = self.standing.lock();
        let reason = standing.lost()?;
        standing.hasten(Instant::now());
        let why = match standing.health() {
            Health::Refused(why) | Health::Down(why) => why.clone(),
            Health::Up => String::new(),
        };
        drop(standing);
        self.ring();
        let key = self.key_ref().to_string();
        Some(match reason {
            Reason::Revoked => KeyError::Refused { key, reason: why },
            Reason::Stale => {
                KeyError::Unreachable { key, reason: format!("{why}; its keys were dropped (kms_max_stale)") }
            }
        })
    }

    pub fn generate(&self, context: &EncryptionContext, until: Deadline) -> Result<(Secret32, Vec<u8>), KeyError> {
        let with = context.clone();
        let (key, blob) = self.call(Kind::Generate, until, move |cmk| cmk.generate(&with))?;
        self.remember(&blob, context);
        Ok((key, blob))
    }

    pub fn wrap(&self, key: &Secret32, context: &EncryptionContext, until: Deadline) -> Result<Vec<u8>, KeyError> {
        let (with, key) = (context.clone(), key.duplicate());
        let blob = self.call(Kind::Wrap, until, move |cmk| cmk.wrap(&key, &with))?;
        self.remember(&blob, context);
        Ok(blob)
    }

    pub fn unwrap(&self, blob: &[u8], context: &EncryptionContext, until: Deadline) -> Result<Secret32, KeyError> {
        let (with, bytes) = (context.clone(), blob.to_vec());
        let key = self.call(Kind::Unwrap, until, move |cmk| cmk.unwrap(&bytes, &with))?;
        self.remember(blob, context);
        Ok(key)
    }

    fn remember(&self, blob: &[u8], context: &EncryptionContext) {
        *self.known.lock() = Some((blob.to_vec(), context.clone()));
    }

    /// Asks whether this CMK may still be used: by opening again what it opened last, since a right to describe says nothing
    /// of the right to decrypt. Its answer decides how the CMK stands. For the watcher.
    pub fn probe(&self) {
        let known = self.known.lock().clone();
        let until = Deadline::after(self.policy.deadline);
        let outcome = match known {
            Some((blob, context)) => self.attempt(
                Kind::Unwrap,
                until,
                Arc::new(move |cmk: &dyn CmkProvider| cmk.unwrap(&blob, &context).map(drop)),
            ),
            None => {
                let describe = |cmk: &dyn CmkProvider| {
                    match cmk.describe()?.state {
                        CmkState::Enabled => Ok(()),
                        CmkState::Disabled => Err("disabled"),
                        CmkState::PendingDeletion => Err("pending deletion"),
                    }
                    .map_err(|state| KeyError::Refused {
                        key: cmk.key_ref().to_string(),
                        reason: format!("it is {state}"),
                    })
                };
                self.attempt(Kind::Describe, until, Arc::new(describe))
            }
        };
        let answer = match answer(&outcome) {
            Answer::Yes if outcome.is_err() => Answer::No("it does not open any more what it has opened before".into()),
            answer => answer,
        };
        let change = self.standing.lock().probed(&answer, Instant::now(), &self.policy);
        self.tell(change, &answer);
    }

    pub fn due(&self, now: Instant) -> bool {
        self.standing.lock().due(now)
    }

    /// When the watcher has to look at this CMK next.
    pub fn next_look(&self) -> Instant {
        let standing = self.standing.lock();
        let next = standing.next_probe();
        standing.stale_at(&self.policy).map_or(next, |stale| stale.min(next))
    }

    pub fn must_drop(&self) -> Option<Reason> {
        self.standing.lock().must_drop(Instant::now(), &self.policy)
    }

    pub fn lose(&self, reason: Reason) {
        self.standing.lock().lose(reason);
    }

    /// One operation: attempts until one gives an answer or the time is over.
    fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        until: Deadline,
        op: impl Fn(&dyn CmkProvider) -> Result<T, KeyError> + Send + Sync + 'static,
    ) -> Result<T, KeyError> {
        if self.is_local() {
            return self.settled(self.attempt(kind, until, Arc::new(op)));
        }
        self.standing.lock().admit(Instant::now()).map_err(|(why, left)| KeyError::Unreachable {
            key: self.key_ref().to_string(),
            reason: format!("{why}; next attempt in {:.0} s", left.as_secs_f64().ceil()),
        })?;
        let op: Operation<T> = Arc::new(op);
        let mut pause = BACKOFF;
        let outcome = loop {
            let outcome = self.attempt(kind, until, op.clone());
            // Half to one and a half of the pause, so that many hosts do not come back in step.
            let jittered = pause / 2 + pause.mul_f64(f64::from(random::array::<1>()[0]) / 255.0);
            match outcome {
                Err(KeyError::Unreachable { .. }) if jittered < until.left() => thread::sleep(jittered),
                outcome => break outcome,
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        };
        self.settled(outcome)
    }

    /// Takes an outcome into account.
    fn settled<T>(&self, outcome: Result<T, KeyError>) -> Result<T, KeyError> {
        let answer = answer(&outcome);
        let change = self.standing.lock().called(&answer, Instant::now(), &self.policy);
        self.tell(change, &answer);
        if answer != Answer::Yes {
            self.ring();
        }
        outcome
    }

    /// One call, given up when the time is over: a provider cannot always be interrupted.
    fn attempt<T: Send + 'static>(&self, kind: Kind, until: Deadline, op: Operation<T>) -> Result<T, KeyError> {
        let start = Instant::now();
        let outcome = if self.is_local() { op(&*self.provider) } else { self.on_a_thread(until, op) };
        let mut record = self.record.lock();
        let now = SystemTime::now();
        let failed = match &outcome {
            Ok(_) => {
                record.last_success = Some(now);
                false
            }
            Err(e) => {
                record.last_error = Some((now, e.to_string()));
                true
            }
        };
        let calls = match kind {
            Kind::Generate => &mut record.generate,
            Kind::Wrap => &mut record.wrap,
            Kind::Unwrap => &mut record.unwrap,
            Kind::Describe => &mut record.describe,
        };
        calls.count(start.elapsed(), failed);
        drop(record);
        outcome
    }

    fn on_a_thread<T: Send + 'static>(&self, until: Deadline, op: Operation<T>) -> Result<T, KeyError> {
        let unreachable = |reason: String| KeyError::Unreachable { key: self.key_ref().to_string(), reason };
        if self.under_way.fetch_add(1, Ordering::AcqRel) >= CALLS_MAX {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            return Err(unreachable(format!("{CALLS_MAX} calls are under way already")));
        }
        let (done, outcome) = mpsc::sync_channel(1);
        let (provider, count) = (self.provider.clone(), UnderWay(self.under_way.clone()));
        let spawned = thread::Builder::new().name("kms-call".into()).spawn(move || {
            let outcome = op(&*provider);
            drop(count);
            // Where nobody waits any more, the key in it is wiped.
            let _ = done.send(outcome);
        });
        if let Err(e) = spawned {
            return Err(unreachable(format!("cannot start a thread: {e}")));
        }
        match outcome.recv_timeout(until.left()) {
            Ok(outcome) => outcome,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(unreachable("no answer in time".into())),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(unreachable("the call was abandoned".into())),
        }
    }

    /// Each change of state is logged once.
    fn tell(&self, change: Option<Change>, answer: &Answer) {
        let key = self.key_ref();
        let (Answer::No(why) | Answer::None(why)) = answer else {
            match change {
                Some(Change::CameBack) => log::warn!("code=kms-back CMK {key} answers again"),
                Some(Change::Allowed) => log::warn!("code=kms-allowed CMK {key} may be used again"),
                _ => {}
            }
            return;
        };
        match change {
            Some(Change::WentDown) => log::warn!(
                "code=kms-down CMK {key} cannot be reached: {why}. Files whose keys are in memory go on; others answer ENOKEY"
            ),
            Some(Change::Refused) => log::error!(
                "code=kms-refused CMK {key} refuses: {why}. Its keys are dropped now; files that hang on it alone answer EKEYREVOKED until it is allowed again"
            ),
            Some(Change::CameBack) => log::warn!("code=kms-back CMK {key} answers again"),
            _ => log::debug!("CMK {key}: {why}"),
        }
    }

    pub fn status(&self) -> CmkStatus {
        let now = Instant::now();
        let time = |t: SystemTime| humantime::format_rfc3339_seconds(t).to_string();
        let record = self.record.lock().clone();
        let standing = self.standing.lock();
        let (state, reason) = match standing.health() {
            Health::Up => ("usable", None),
            Health::Down(why) => ("unreachable", Some(why.clone())),
            Health::Refused(why) => ("refused", Some(why.clone())),
        };
        let dropped = standing.lost().map(|reason| match reason {
            Reason::Revoked => "revoked",
            Reason::Stale => "stale",
        });
        CmkStatus {
            provider: self.key_ref().provider.clone(),
            key: self.key_ref().key.clone(),
            state,
            reason,
            dropped,
            confirmed_seconds_ago: now.saturating_duration_since(standing.confirmed()).as_secs_f64(),
            next_check_in_seconds: standing.next_probe().saturating_duration_since(now).as_secs_f64(),
            last_success: record.last_success.map(time),
            last_error: record.last_error.map(|(at, text)| LastError { at: time(at), text }),
            generate: record.generate,
            wrap: record.wrap,
            unwrap: record.unwrap,
            describe: record.describe,
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("key_ref", self.key_ref()).finish_non_exhaustive()
    }
}

/// Counts a call until it has come back, also by a panic.
struct UnderWay(Arc<AtomicU32>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What an outcome says of the CMK. A blob that does not open is an answer of a CMK that works.
fn answer<T>(outcome: &Result<T, KeyError>) -> Answer {
    match outcome {
        Ok(_) | Err(KeyError::BadBlob { .. }) => Answer::Yes,
        Err(KeyError::Refused { reason, .. }) => Answer::No(reason.clone()),
        Err(KeyError::Unreachable { reason, .. }) => Answer::None(reason.clone()),
        Err(other) => Answer::None(other.to_string()),
    }
}
