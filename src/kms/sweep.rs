//! What happens by itself: rotation on schedule, expiry of imported material, deletion after its window, and making the trail
//! durable. The states themselves do not wait for it: a key is gone, or its material expired, when its time has come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::store::Change;
use super::store::records::{KeyRecord, Record, RotationType};
use super::view::{Gone, Key, KeyState};
use super::wire::time::DAY;
use super::{Edit, Service};

/// Of the trail.
pub const SYNC: Duration = Duration::from_secs(1);
/// When last uses of keys are written down.
const USES: Duration = Duration::from_secs(60);

/// Runs until `stop` says so, then once more.
pub fn run(service: &Service, stop: &std::sync::atomic::AtomicBool) {
    let mut uses = Instant::now();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        std::thread::park_timeout(SYNC);
        service.settle();
        service.sweep();
        if uses.elapsed() >= USES {
            service.remember_uses();
            uses = Instant::now();
        }
    }
    service.remember_uses();
    service.settle();
}

impl Service {
    /// Makes the trail durable, and lets the store forget what it kept for it.
    pub fn settle(&self) {
        if self.store.is_suspect() {
            let _writer = self.writer();
            // Its failure is in the log; the next call tries again.
            if self.recover().is_err() {
                return;
            }
        }
        let synced = match self.trail.sync() {
            Ok(Some(synced)) => synced,
            Ok(None) => return,
            Err(error) => {
                log::error!("code=trail the audit trail cannot be made durable: {error}");
                return;
            }
        };
        let change =
            Change { put: vec![Record::TrailHead(synced.head)], settled: synced.settled.clone(), ..Change::default() };
        if let Err(error) = self.store.commit(change) {
            log::warn!("code=store the trail's head cannot be written down: {error}");
            self.trail.unsynced(synced.settled);
        }
    }

    /// Does what is due now. A step that fails is tried again at the next call.
    pub fn sweep(&self) {
        let now = self.now();
        let due: Vec<Arc<Key>> = self.view().keys.values().filter(|key| is_due(key, now)).cloned().collect();
        for key in due {
            let writer = self.writer();
            // As it is now: a request may have been faster.
            let Some(key) = self.view().keys.get(&key.record.id).cloned() else { continue };
            if key.is_gone(now) {
                let mut remove: Vec<Gone> =
                    self.view().aliases_of(&key.record.id).map(|a| Gone::Alias(a.to_owned())).collect();
                let view = self.view();
                let grants = view.grants_of(&key.record.id).into_iter().flat_map(|grants| grants.by_id.keys());
                remove.extend(grants.map(|id| Gone::Grant { key: key.record.id.clone(), id: id.clone() }));
                drop(view);
                remove.push(Gone::Key(key.record.id.clone()));
                let event = self.own_event("DeleteKey", json!({"keyId": key.record.id}), vec![key.arn.clone()]);
                let _ = self.change(&writer, Edit { put: Vec::new(), remove }, &event);
                self.uses.lock().remove(&key.record.id);
                continue;
            }
            if has_expired(&key.record, now) {
                let mut record = key.record.clone();
                for material in record.materials.iter_mut().filter(|m| is_expired(m, now)) {
                    material.wrapped = None;
                }
                let event =
                    self.own_event("DeleteExpiredKeyMaterial", json!({"keyId": key.record.id}), vec![key.arn.clone()]);
                self.put_swept(&writer, record, &key, &event);
            } else if rotation_is_due(&key, now) {
                let mut record = key.record.clone();
                let made = super::operations::rotate(&mut record, self.store.keys(), RotationType::Automatic, now);
                if made.is_err() {
                    log::error!("code=rotation key {} could not be rotated", record.id);
                    continue;
                }
                if let Some(rotation) = &mut record.rotation {
                    rotation.next = now + rotation.period_days * DAY;
                }
                let event = self.own_event(
                    "RotateKey",
                    json!({"keyId": record.id, "rotationType": "AUTOMATIC"}),
                    vec![key.arn.clone()],
                );
                self.put_swept(&writer, record, &key, &event);
            }
        }
    }

    fn put_swept(&self, writer: &super::Writer<'_>, record: KeyRecord, old: &Key, event: &super::audit::Event) {
        // Its failures are in the log already.
        if let Ok(key) = self.key(record, Some(old)) {
            let _ = self.change(writer, Edit::key(key), event);
        }
    }

    /// Writes down when keys were last used.
    pub fn remember_uses(&self) {
        let uses = std::mem::take(&mut *self.uses.lock());
        if uses.is_empty() {
            return;
        }
        let writer = self.writer();
        let mut put = Vec::new();
        let mut pieces = Vec::new();
        for (id, last) in &uses {
            let Some(key) = self.view().keys.get(id).cloned() else { continue };
            let mut record = key.record.clone();
            record.last_use = Some(last.clone());
            if let Ok(key) = self.key(record.clone(), Some(&key)) {
                put.push(Record::Key(record));
                pieces.push(super::Piece::Key(Arc::new(key)));
            }
        }
        if let Err(error) = self.store.commit(Change { put, ..Change::default() }) {
            log::warn!("code=store last uses of keys cannot be written down: {error}");
            let mut current = self.uses.lock();
            for (id, last) in uses {
                current.entry(id).or_insert(last);
            }
            return;
        }
        let mut view = self.view.write();
        for piece in pieces {
            view.put(piece);
        }
        drop(view);
        drop(writer);
    }
}

fn is_due(key: &Key, now: i64) -> bool {
    key.is_gone(now) || has_expired(&key.record, now) || rotation_is_due(key, now)
}

fn has_expired(record: &KeyRecord, now: i64) -> bool {
    record.materials.iter().any(|material| is_expired(material, now))
}

/// And its bytes are still here.
fn is_expired(material: &super::store::records::MaterialRecord, now: i64) -> bool {
    material.wrapped.is_some() && material.import.as_ref().and_then(|i| i.valid_to).is_some_and(|end| end <= now)
}

/// A key that is not enabled waits; it is rotated when it is enabled again.
fn rotation_is_due(key: &Key, now: i64) -> bool {
    key.record.rotation.as_ref().is_some_and(|rotation| rotation.next <= now) && key.state(now) == KeyState::Enabled
}
