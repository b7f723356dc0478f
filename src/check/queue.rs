//! Work for several threads: single objects in order, and the segments of large files first. Bounded; knows nothing of the work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

/// Objects that wait at most: each may hold a directory open.
const WAITING_MAX: usize = 256;

/// Something that several threads work on: numbers below `total`, each given out once.
pub struct Shared<B> {
    pub work: B,
    total: u64,
    next: AtomicU64,
    left: AtomicU64,
}

impl<B> Shared<B> {
    pub fn new(work: B, total: u64) -> Self {
        Self { work, total, next: AtomicU64::new(0), left: AtomicU64::new(total) }
    }

    /// The next number, `None` where all are given out.
    pub fn claim(&self) -> Option<u64> {
        // Bounded: each thread adds one beyond the total at most a few times.
        if self.next.load(Ordering::Relaxed) >= self.total {
            return None;
        }
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < self.total)
    }

    /// After the work on one number; true for whoever was the last.
    pub fn done(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

struct State<T, B> {
    waiting: VecDeque<T>,
    shared: Vec<Arc<Shared<B>>>,
    closed: bool,
    workers: usize,
}

pub struct Queue<T, B> {
    state: Mutex<State<T, B>>,
    work: Condvar,
    room: Condvar,
}

/// A thread that serves a queue. Whoever pushes does not wait for one that is gone, by a panic for instance.
pub struct Served<'a, T, B>(&'a Queue<T, B>);

impl<T, B> Drop for Served<'_, T, B> {
    fn drop(&mut self) {
        self.0.state.lock().workers -= 1;
        self.0.room.notify_all();
    }
}

pub enum Job<T, B> {
    Single(T),
    Shared(Arc<Shared<B>>),
}

impl<T, B> Queue<T, B> {
    pub fn new() -> Self {
        let state = State { waiting: VecDeque::new(), shared: Vec::new(), closed: false, workers: 0 };
        Self { state: Mutex::new(state), work: Condvar::new(), room: Condvar::new() }
    }

    /// One more thread takes what is pushed, until it drops what this gives.
    pub fn served(&self) -> Served<'_, T, B> {
        self.state.lock().workers += 1;
        Served(self)
    }

    /// Waits for room. Gives the task back where nobody would take it.
    pub fn push(&self, task: T) -> Option<T> {
        let mut state = self.state.lock();
        if state.workers == 0 {
            return Some(task);
        }
        while state.waiting.len() >= WAITING_MAX {
            self.room.wait(&mut state);
            if state.workers == 0 {
                return Some(task);
            }
        }
        state.waiting.push_back(task);
        self.work.notify_one();
        None
    }

    /// Others may help. Whoever shares works on it himself until nothing is left to claim.
    pub fn share(&self, shared: &Arc<Shared<B>>) {
        self.state.lock().shared.push(shared.clone());
        self.work.notify_all();
    }

    /// Nothing more comes.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
    }

    /// `None` where nothing is left and nothing will come.
    pub fn take(&self) -> Option<Job<T, B>> {
        let mut state = self.state.lock();
        loop {
            state.shared.retain(|shared| shared.next.load(Ordering::Relaxed) < shared.total);
            if let Some(shared) = state.shared.first() {
                return Some(Job::Shared(shared.clone()));
            }
            if let Some(task) = state.waiting.pop_front() {
                self.room.notify_one();
                return Some(Job::Single(task));
            }
            if state.closed {
                return None;
            }
            self.work.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_would_take_comes_back() {
        let queue: Queue<u64, u64> = Queue::new();
        assert_eq!(queue.push(7), Some(7));
        queue.close();
        assert!(queue.take().is_none());
    }

    #[test]
    fn nobody_waits_for_threads_that_are_gone() {
        let queue: Queue<u64, u64> = Queue::new();
        let served = queue.served();
        assert!((0..WAITING_MAX as u64).all(|n| queue.push(n).is_none()));
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(queue.push(7), Some(7)));
            std::thread::sleep(std::time::Duration::from_millis(50));
            drop(served);
        });
    }

    #[test]
    fn everything_is_done_once_by_many() {
        let queue: Queue<u64, u64> = Queue::new();
        let (sum, shared_sum) = (AtomicU64::new(0), AtomicU64::new(0));
        let finished = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let served = queue.served();
                scope.spawn(|| {
                    let _served = served;
                    while let Some(job) = queue.take() {
                        let shared = match job {
                            Job::Single(n) => {
                                sum.fetch_add(n, Ordering::Relaxed);
                                if n % 100 != 0 {
                                    continue;
                                }
                                let shared = Arc::new(Shared::new(n, 10));
                                queue.share(&shared);
                                shared
                            }
                            Job::Shared(shared) => shared,
                        };
                        while let Some(at) = shared.claim() {
                            shared_sum.fetch_add(at, Ordering::Relaxed);
                            if shared.done() {
                                finished.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
            assert!((1..=1000).all(|n| queue.push(n).is_none()));
            queue.close();
        });
        assert_eq!(sum.into_inner(), 500_500);
        assert_eq!((shared_sum.into_inner(), finished.into_inner()), (10 * 45, 10));
    }
}
