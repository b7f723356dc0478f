//! A thread of its own for calls that can hang and cannot be cancelled. Knows nothing of what they do.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

type Call<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Where calls stand, by number.
#[derive(Default)]
struct Progress {
    next: u64,
    running: Option<u64>,
    /// The running call was given up by who asked for it.
    stuck: bool,
    /// Given up before they began; the thread leaves them out.
    abandoned: Vec<u64>,
}

/// How long dropping a worker waits for its thread.
const END_WAIT: Duration = Duration::from_secs(2);

/// Runs calls on `S`, which never leaves its thread, one after the other. Dropping it waits for the thread, unless that is
/// stuck: a process that exits while another thread is inside a library may crash in the library's own cleaning up.
pub struct Worker<S> {
    /// `None` while it is dropped only.
    calls: Option<Sender<(u64, Call<S>)>>,
    progress: Arc<Mutex<Progress>>,
    /// Closed when the thread has dropped its state.
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a call brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It did not come back in time.
    TimedOut,
    /// An earlier one has not come back yet, so this one was not begun.
    Stuck,
    /// It panicked, or the thread could not be started.
    Broken,
}

impl<S: Send + 'static> Worker<S> {
    pub fn start(name: &str, mut state: S) -> std::io::Result<Self> {
        let (calls, queue) = mpsc::channel::<(u64, Call<S>)>();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let (end, ended) = mpsc::channel();
        let shared = progress.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            for (number, call) in queue {
                {
                    let mut progress = shared.lock();
                    if let Some(at) = progress.abandoned.iter().position(|&n| n == number) {
                        progress.abandoned.swap_remove(at);
                        continue;
                    }
                    progress.running = Some(number);
                }
                // Whoever waits sees the answer's channel close.
                let _ = catch_unwind(AssertUnwindSafe(|| call(&mut state)));
                let mut progress = shared.lock();
                progress.running = None;
                progress.stuck = false;
            }
            drop(state);
            drop(end);
        })?;
        Ok(Self { calls: Some(calls), progress, ended: Mutex::new(ended), thread: Some(thread) })
    }

    /// The outcome of `call`, or why there was none by `until`. A call that was begun goes on by itself then.
    pub fn run<T: Send + 'static>(
        &self,
        until: Instant,
        call: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let number = {
            let mut progress = self.progress.lock();
            if progress.stuck {
                return Err(Lost::Stuck);
            }
            progress.next += 1;
            progress.next
        };
        let (answer, outcome) = mpsc::sync_channel(1);
        let call = Box::new(move |state: &mut S| {
            // Nobody waits any more where this fails.
            let _ = answer.send(call(state));
        });
        let calls = self.calls.as_ref().ok_or(Lost::Broken)?;
        calls.send((number, call)).map_err(|_| Lost::Broken)?;
        match outcome.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(value) => Ok(value),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Lost::Broken),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let mut progress = self.progress.lock();
                if progress.running == Some(number) {
                    progress.stuck = true;
                } else if let Ok(value) = outcome.try_recv() {
                    return Ok(value);
                } else {
                    progress.abandoned.push(number);
                }
                Err(Lost::TimedOut)
            }
        }
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.calls = None;
        if self.progress.lock().stuck {
            return;
        }
        let outcome = self.ended.lock().recv_timeout(END_WAIT);
        if let (Err(mpsc::RecvTimeoutError::Disconnected), Some(thread)) = (outcome, self.thread.take()) {
            // Only what the thread keeps for itself is left to be cleaned up.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc::channel, time::Duration};

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    fn worker() -> Worker<u32> {
        Worker::start("test", 0).unwrap()
    }

    #[test]
    fn a_stuck_call_holds_nobody_up_and_a_returned_one_heals() {
        let worker = worker();
        let (release, stuck) = channel::<()>();
        let outcome = worker.run(Instant::now() + SHORT, move |n| {
            *n = 1;
            let _ = stuck.recv();
        });
        assert_eq!(outcome, Err(Lost::TimedOut));
        let start = Instant::now();
        assert_eq!(worker.run(Instant::now() + LONG, |n| *n), Err(Lost::Stuck));
        assert!(start.elapsed() < LONG / 2);
        release.send(()).unwrap();
        while worker.progress.lock().stuck {
            std::thread::yield_now();
        }
        assert_eq!(worker.run(Instant::now() + LONG, |n| *n), Ok(1));
    }

    #[test]
    fn a_call_that_was_given_up_in_the_queue_is_not_made() {
        let worker = Arc::new(worker());
        let (release, wait) = channel::<()>();
        let (begun, began) = channel::<()>();
        let other = worker.clone();
        let first = std::thread::spawn(move || {
            other.run(Instant::now() + LONG, move |_| {
                begun.send(()).unwrap();
                let _ = wait.recv();
            })
        });
        began.recv().unwrap();
        assert_eq!(worker.run(Instant::now() + SHORT, |n| *n = 9), Err(Lost::TimedOut));
        release.send(()).unwrap();
        assert_eq!(first.join().unwrap(), Ok(()));
        assert_eq!(worker.run(Instant::now() + LONG, |n| *n), Ok(0));
        assert!(worker.progress.lock().abandoned.is_empty());
    }

    #[test]
    fn dropping_waits_for_the_state_to_be_dropped_but_not_for_a_stuck_call() {
        struct Slow(Arc<Mutex<bool>>);
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(SHORT);
                *self.0.lock() = true;
            }
        }
        let dropped = Arc::new(Mutex::new(false));
        drop(Worker::start("test", Slow(dropped.clone())).unwrap());
        assert!(*dropped.lock());

        let worker = worker();
        let (release, stuck) = channel::<()>();
        let call = move |_: &mut u32| {
            let _ = stuck.recv();
        };
        assert_eq!(worker.run(Instant::now() + SHORT, call), Err(Lost::TimedOut));
        drop(worker);
        drop(release);
    }

    #[test]
    fn a_panic_ends_its_call_only() {
        let worker = worker();
        assert_eq!(worker.run(Instant::now() + LONG, |_| -> u32 { panic!("on purpose") }), Err(Lost::Broken));
        assert_eq!(worker.run(Instant::now() + LONG, |n| *n), Ok(0));
    }
}
