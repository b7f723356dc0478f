//! Taking a file's keys away while it is open: settled first, as far as may be, then nothing of the keys stays. The next
//! operation loads the file again, as one that a crash left. Decides nothing about whose keys go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::state::State;
use super::{EncryptedFile, FileError};
use crate::keys::keyring::KeySource;
use crate::store::BackingFile;

impl<F: BackingFile> EncryptedFile<F> {
    /// Where this file's keys came from, while it has them.
    pub fn key_source(&self) -> Option<Arc<KeySource>> {
        self.state.read().open.as_ref().map(|open| open.source.clone())
    }

    /// Whether `drop_keys` took the keys and nothing has needed them since.
    pub fn keys_are_dropped(&self) -> bool {
        self.keys_dropped.load(Ordering::Acquire)
    }

    /// Drops the keys where `lost` says so of their source, decrypted blocks with them. `None`: they stay. What was written
    /// is made durable first, with its size; where that fails the keys go all the same, and what the backing file holds is
    /// what a crash would leave.
    pub fn drop_keys(&self, lost: &dyn Fn(&KeySource) -> bool) -> Option<Result<(), FileError>> {
        let mut st = self.state.write();
        if !st.open.as_ref().is_some_and(|open| lost(&open.source)) {
            return None;
        }
        let settled = if self.needs_commit() { self.settle_now(&mut st) } else { Ok(()) };
        st.open = None;
        st.loaded = false;
        *self.writer.lock() = None;
        self.edges.clear();
        self.written.lock().clear();
        self.last_says_size.store(false, Ordering::Release);
        self.keys_dropped.store(true, Ordering::Release);
        Some(settled)
    }

    /// A commit while nobody else can write.
    fn settle_now(&self, st: &mut State<F>) -> Result<(), FileError> {
        let token = self.sync_token();
        st.backing.sync_data()?;
        self.synced.fetch_max(token, Ordering::AcqRel);
        self.settle(st)
    }
}
