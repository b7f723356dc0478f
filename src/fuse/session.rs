//! The session: handshake and event loops on a kernel connection. Knows no mountpoint.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};

use super::shield::Shielded;
use super::{Adapter, Behaviour};
use crate::fs::{Fs, Ino};
use crate::store::Store;

/// How requests are taken from the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Loops {
    pub count: usize,
    /// Each loop has a queue of its own in the kernel; needs the right to open the device.
    pub own_queues: bool,
}

/// A connection that is being served.
pub struct Serving {
    /// Ends when the connection does.
    pub thread: JoinHandle<io::Result<()>>,
    pub page_cache: PageCache,
}

/// The kernel's pages of our files.
#[derive(Clone)]
pub struct PageCache(Notifier);

impl PageCache {
    /// Has the kernel write an inode's dirty pages, wait for that, and drop its pages and attributes. Never from a thread
    /// that answers requests: it would wait for itself. An inode that the kernel does not know is no error.
    pub fn invalidate(&self, ino: Ino) -> io::Result<()> {
        self.0.inval_inode(INodeNo(ino), 0, 0)
    }
}

/// Answers the handshake on a fresh connection, then serves it from threads of its own.
pub fn serve<S: Store>(fs: Arc<Fs<S>>, behaviour: Behaviour, device: OwnedFd, loops: Loops) -> io::Result<Serving> {
    let (adapter, notifier) = Adapter::new(fs, behaviour)?;
    let mut config = Config::default();
    config.n_threads = Some(loops.count);
    config.clone_fd = loops.own_queues;
    // The kernel lets in whom the mount allows. A second check in fuser would refuse the kernel's own threads, which
    // write back sizes and times as root.
    let session = Session::from_fd(Shielded(adapter), device, SessionACL::All, config)?;
    // Nobody else sets it.
    let _ = notifier.set(session.notifier());
    let page_cache = PageCache(session.notifier());
    let thread = thread::Builder::new().name("session".into()).spawn(move || session.run())?;
    Ok(Serving { thread, page_cache })
}
