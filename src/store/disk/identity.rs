//! On whose behalf a thread works: its filesystem ids and umask, changed only when the next call needs others.
//! Knows nothing of the calls that follow.
//!
//! Nothing is switched back: every call that depends on the identity sets its own. Permission to act is not decided
//! here (the capabilities that override file permissions stay); ownership, umask, quota and reserve are.

use std::cell::Cell;
use std::io;

use super::Creator;
use crate::sys::identity;

#[derive(Clone, Copy)]
struct Current {
    /// `None`: not set by us yet; a new thread starts with those of the thread that started it.
    ids: Option<(u32, u32)>,
    /// `None`: the umask is still shared with other threads.
    umask: Option<u32>,
}

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(Current { ids: None, umask: None }) };
}

/// How identities apply to the calls of one store.
#[derive(Debug, Clone, Copy)]
pub struct Switch {
    /// Whether this process may act for other users.
    multi_user: bool,
}

impl Switch {
    /// Only a process of effective uid 0 acts for others.
    pub fn of_process() -> Self {
        Self { multi_user: identity::is_root() }
    }

    /// Before an object is made: it gets this owner, and the kernel applies this umask or the directory's default ACL.
    pub fn create_as(self, by: Creator) -> io::Result<()> {
        self.set_ids(by.uid, by.gid)?;
        let mut current = CURRENT.get();
        if current.umask != Some(by.umask) {
            if current.umask.is_none() {
                identity::unshare_umask()?;
            }
            identity::set_umask(by.umask);
            current.umask = Some(by.umask);
            CURRENT.set(current);
        }
        Ok(())
    }

    /// Before data is written: blocks count against this user. A failure is not one of the write: it only counts wrongly.
    pub fn charge_to(self, uid: u32, gid: u32) {
        if let Err(error) = self.set_ids(uid, gid) {
            log::debug!("cannot account writes to uid {uid} gid {gid}: {error}");
        }
    }

    fn set_ids(self, uid: u32, gid: u32) -> io::Result<()> {
        let mut current = CURRENT.get();
        if !self.multi_user || current.ids == Some((uid, gid)) {
            return Ok(());
        }
        let was_root = current.ids.map(|(uid, _)| uid == 0);
        // Unknown until both steps are done.
        current.ids = None;
        CURRENT.set(current);
        identity::set_filesystem_ids(uid, gid)?;
        if was_root != Some(uid == 0) {
            identity::raise_capabilities(uid == 0)?;
        }
        current.ids = Some((uid, gid));
        CURRENT.set(current);
        Ok(())
    }
}
