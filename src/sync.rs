//! The locks of the lock protocol: parking_lot's, or those of a model checker that tries out schedules (feature `shuttle`).
//! For the locks that are held while others are taken or while I/O happens; what is held for a moment only needs none of this.

#[cfg(not(feature = "shuttle"))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(feature = "shuttle"))]
pub use std::sync::atomic::AtomicBool;

#[cfg(feature = "shuttle")]
pub use model::Condvar;
#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic::AtomicBool;
#[cfg(feature = "shuttle")]
pub use shuttle_parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(feature = "shuttle")]
mod model {
    use super::MutexGuard;

    /// parking_lot's, as far as it is used, under the model checker. A waiter whose turn it was before it let go of the lock
    /// misses nothing: the number of notifications tells.
    #[derive(Default)]
    pub struct Condvar {
        notified: shuttle::sync::Mutex<u64>,
        changed: shuttle::sync::Condvar,
    }

    impl Condvar {
        pub fn new() -> Self {
            Self::default()
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let before = *self.notified.lock().expect("no test panics with it");
            MutexGuard::unlocked(guard, || {
                let mut notified = self.notified.lock().expect("no test panics with it");
                while *notified == before {
                    notified = self.changed.wait(notified).expect("no test panics with it");
                }
            });
        }

        pub fn notify_all(&self) {
            *self.notified.lock().expect("no test panics with it") += 1;
            self.changed.notify_all();
        }
    }
}
