//! What all requests share: the filesystem, how answers are shaped, and who answers when a key has to be fetched first.
//! Decodes no request.

use std::io;
use std::sync::{Arc, OnceLock};

use fuser::{Errno, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::waiting::Waiting;
use super::workers::{NotifierCell, Workers};
use super::{Behaviour, convert};
use crate::fs::{Attr, Caller, Fs, FsError};
use crate::keys::keyring::Waits;
use crate::store::{Kind, Store};

/// What answers; shared with the threads that answer later.
pub(super) struct Core<S: Store> {
    pub fs: Arc<Fs<S>>,
    pub behaviour: Behaviour,
    pub workers: Workers,
    pub waiting: Waiting,
}

pub(super) struct Adapter<S: Store>(Arc<Core<S>>);

impl<S: Store> std::ops::Deref for Adapter<S> {
    type Target = Core<S>;

    fn deref(&self) -> &Core<S> {
        &self.0
    }
}

impl<S: Store> Adapter<S> {
    /// The cell takes the session's notifier once there is one.
    pub fn new(fs: Arc<Fs<S>>, behaviour: Behaviour) -> io::Result<(Self, NotifierCell)> {
        let notifier: NotifierCell = Arc::new(OnceLock::new());
        let waiting = Waiting::default();
        let workers = Workers::start(&fs, &notifier, &waiting, !behaviour.read_only)?;
        Ok((Self(Arc::new(Core { fs, behaviour, workers, waiting })), notifier))
    }

    /// Answers at once, unless a key has to be fetched first: then from a thread that may wait.
    pub fn keyed<T>(
        &self,
        attempt: impl Fn(&Core<S>) -> Result<T, FsError> + Send + 'static,
        respond: impl FnOnce(&Core<S>, Result<T, FsError>) + Send + 'static,
    ) {
        match attempt(&self.0) {
            Err(e) if e.wanted().is_some() => self.later(attempt, respond),
            result => respond(&self.0, result),
        }
    }

    /// From a thread that may wait for a key.
    pub fn later<T>(
        &self,
        attempt: impl Fn(&Core<S>) -> Result<T, FsError> + Send + 'static,
        respond: impl FnOnce(&Core<S>, Result<T, FsError>) + Send + 'static,
    ) {
        let core = self.0.clone();
        self.waiting.run(move || {
            let result = core.fs.patiently(|_| attempt(&core));
            respond(&core, result);
        });
    }
}

/// Whether a key has to be fetched first.
pub(super) fn is_pending<T>(result: &Result<T, FsError>) -> bool {
    result.as_ref().is_err_and(|e| e.wanted().is_some())
}

impl<S: Store> Core<S> {
    pub fn entry(&self, result: Result<Attr, FsError>, reply: ReplyEntry) {
        match result {
            Ok(attr) => reply.entry(&self.behaviour.timeout, &convert::attributes(&attr), Generation(0)),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    /// After a change of the entries of `dirs`.
    pub fn settle<T>(&self, result: Result<T, FsError>, dirs: &[INodeNo]) -> Result<T, FsError> {
        let value = result?;
        if self.behaviour.dirsync {
            for dir in dirs {
                self.fs.fsyncdir(dir.0)?;
            }
        }
        Ok(value)
    }

    pub fn attr(&self, result: Result<Attr, FsError>, reply: ReplyAttr) {
        match result {
            Ok(attr) => reply.attr(&self.behaviour.timeout, &convert::attributes(&attr)),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    /// open(2) with O_CREAT: a file that is there already is opened, unless O_EXCL forbids it.
    pub fn create_or_open(
        &self,
        by: &Caller,
        parent: INodeNo,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<Attr, FsError> {
        match self.fs.create(by, parent.0, name, mode) {
            Err(e) if e.errno() == libc::EEXIST && flags & libc::O_EXCL == 0 => {}
            other => return self.settle(other, &[parent]),
        }
        let attr = self.fs.lookup(parent.0, name)?;
        let opened = match attr.stat.kind {
            Kind::File => {
                self.fs.open(attr.ino, convert::open_mode(flags, by.uid)).and_then(|()| self.fs.getattr(attr.ino))
            }
            Kind::Directory => Err(FsError::Errno(libc::EISDIR)),
            Kind::Symlink => Err(FsError::Errno(libc::ELOOP)),
            _ => Err(FsError::Errno(libc::EEXIST)),
        };
        if opened.is_err() {
            self.fs.forget(attr.ino, 1);
        }
        opened
    }
}

pub(super) fn empty(result: Result<(), FsError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

/// The two-step protocol of getxattr(2) and listxattr(2): size 0 asks for the size.
pub(super) fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
