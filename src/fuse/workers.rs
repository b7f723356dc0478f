//! Replies that must not be given from an event loop: SEEK_DATA and SEEK_HOLE, an open or a write that changed attributes,
//! and a commit on request. Knows the kernel's cache invalidation; no other operation.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;

use fuser::{Errno, FileHandle, FopenFlags, INodeNo, Notifier, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite};
use parking_lot::Mutex;

use super::convert;
use super::shield::contained;
use super::waiting::Waiting;
use crate::file::Seek;
use crate::fs::{Fs, FsError, Ino};
use crate::keys::keyring::Waits;
use crate::store::Store;

/// Threads that answer. Each may wait for the kernel to write one file's dirty pages.
const WORKERS: usize = 2;

/// The kernel's way back to us, known once the session exists.
pub type NotifierCell = Arc<OnceLock<Notifier>>;

enum Task {
    Seek { ino: Ino, whence: Seek, offset: u64, reply: ReplyLseek },
    Opened { ino: Ino, flags: FopenFlags, reply: ReplyOpen },
    Written { ino: Ino, len: u32, reply: ReplyWrite },
    Commit { reply: ReplyEmpty },
}

/// A few threads beside the event loops. They end when this is dropped.
pub struct Workers {
    queue: std::sync::mpsc::Sender<Task>,
}

impl Workers {
    /// `waiting` takes what lacks a key: these threads serve files of other keys, too.
    pub fn start<S: Store>(
        fs: &Arc<Fs<S>>,
        notifier: &NotifierCell,
        waiting: &Waiting,
        flush_before_seek: bool,
    ) -> io::Result<Self> {
        let (queue, tasks) = std::sync::mpsc::channel();
        let tasks = Arc::new(Mutex::new(tasks));
        for i in 0..WORKERS {
            let (fs, notifier, waiting, tasks) = (fs.clone(), notifier.clone(), waiting.clone(), tasks.clone());
            thread::Builder::new().name(format!("worker-{i}")).spawn(move || {
                loop {
                    let task = tasks.lock().recv();
                    match task {
                        Ok(task) => contained("in a worker", || run(&fs, &notifier, &waiting, flush_before_seek, task)),
                        Err(_) => return,
                    }
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// A task that cannot be queued is dropped, and its reply with it: fuser then answers EIO.
    pub fn seek(&self, ino: Ino, whence: Seek, offset: u64, reply: ReplyLseek) {
        let _ = self.queue.send(Task::Seek { ino, whence, offset, reply });
    }

    /// Answers an open after the kernel has forgotten the inode's attributes, which the open changed.
    pub fn opened(&self, ino: Ino, flags: FopenFlags, reply: ReplyOpen) {
        let _ = self.queue.send(Task::Opened { ino, flags, reply });
    }

    /// Answers a write likewise.
    pub fn written(&self, ino: Ino, len: u32, reply: ReplyWrite) {
        let _ = self.queue.send(Task::Written { ino, len, reply });
    }

    pub fn commit(&self, reply: ReplyEmpty) {
        let _ = self.queue.send(Task::Commit { reply });
    }
}

fn run<S: Store>(fs: &Arc<Fs<S>>, notifier: &NotifierCell, waiting: &Waiting, flush_before_seek: bool, task: Task) {
    match task {
        Task::Seek { ino, whence, offset, reply } => {
            // The kernel does not write dirty pages before it asks; they would look like holes. Invalidating writes them
            // first. It must not be called from an event loop, which has to take those very writes.
            if let (true, Some(notifier)) = (flush_before_seek, notifier.get())
                && let Err(e) = notifier.inval_inode(INodeNo(ino), 0, 0)
            {
                log::warn!("cannot flush inode {ino} before a seek: {e}");
            }
            match fs.seek(ino, whence, offset) {
                Err(e) if e.wanted().is_some() => {
                    let fs = fs.clone();
                    waiting.run(move || found(fs.patiently(|fs| fs.seek(ino, whence, offset)), reply));
                }
                result => found(result, reply),
            }
        }
        Task::Opened { ino, flags, reply } => {
            forget_attributes(notifier, ino);
            reply.opened(FileHandle(0), flags);
        }
        Task::Written { ino, len, reply } => {
            forget_attributes(notifier, ino);
            reply.written(len);
        }
        Task::Commit { reply } => match fs.commit() {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(&e)),
        },
    }
}

fn forget_attributes(notifier: &NotifierCell, ino: Ino) {
    // A negative offset means attributes alone.
    if let Some(Err(e)) = notifier.get().map(|n| n.inval_inode(INodeNo(ino), -1, 0)) {
        log::warn!("cannot invalidate attributes of inode {ino}: {e}");
    }
}

fn found(result: Result<u64, FsError>, reply: ReplyLseek) {
    match result.map(i64::try_from) {
        Ok(Ok(found)) => reply.offset(found),
        Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
        Err(e) => reply.error(convert::errno(&e)),
    }
}
