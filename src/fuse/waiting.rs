//! Threads that may wait for a key service, so that event loops never do. Knows jobs; nothing of requests or keys.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Threads at most; each waits for one request's key. What comes beyond waits for one of them.
const THREADS_MAX: usize = 64;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// A pool that has no thread until one is needed. Clones are the same pool.
#[derive(Default, Clone)]
pub struct Waiting {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Waiting {
    /// Runs `job` soon, on another thread. Where no thread can be had at all, the job is dropped (and whatever reply it holds
    /// with it, which answers EIO).
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() || state.threads >= THREADS_MAX {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.shared.clone();
        let spawned = thread::Builder::new().name("key-wait".into()).spawn(move || serve(&shared));
        if let Err(e) = spawned {
            let mut state = self.shared.state.lock();
            state.threads -= 1;
            if state.threads == 0 {
                log::error!("code=threads requests that need a key are refused, since no thread can be started: {e}");
                drop(std::mem::take(&mut state.jobs));
            }
        }
    }
}

fn serve(shared: &Shared) {
    let leaving = Leaving(shared);
    let mut state = shared.state.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.state.lock();
            continue;
        }
        state.idle += 1;
        let waited = shared.work.wait_for(&mut state, IDLE);
        state.idle -= 1;
        if waited.timed_out() && state.jobs.is_empty() {
            // Under the same lock: whoever brings a job now does not count on this thread.
            state.threads -= 1;
            std::mem::forget(leaving);
            return;
        }
    }
}

/// Counts a thread out whose job panics.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.state.lock().threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, mpsc};

    #[test]
    fn jobs_that_wait_do_not_hold_up_each_other() {
        let pool = Waiting::default();
        let together = Arc::new(Barrier::new(THREADS_MAX));
        let (done, all) = mpsc::channel();
        for _ in 0..THREADS_MAX {
            let (together, done) = (together.clone(), done.clone());
            pool.run(move || {
                together.wait();
                done.send(()).unwrap();
            });
        }
        for _ in 0..THREADS_MAX {
            all.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        assert!(pool.shared.state.lock().threads <= THREADS_MAX);
    }

    #[test]
    fn more_jobs_than_threads_all_run() {
        let pool = Waiting::default();
        let ran = Arc::new(AtomicUsize::new(0));
        let (done, all) = mpsc::channel();
        for n in 0..1000 {
            let (ran, done) = (ran.clone(), done.clone());
            pool.run(move || {
                if n % 7 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                ran.fetch_add(1, Ordering::Relaxed);
                done.send(()).unwrap();
            });
        }
        for _ in 0..1000 {
            all.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        assert_eq!(ran.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn a_panicking_job_costs_its_thread_alone() {
        let pool = Waiting::default();
        pool.run(|| panic!("a job"));
        let (done, all) = mpsc::channel();
        pool.run(move || done.send(()).unwrap());
        all.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}
