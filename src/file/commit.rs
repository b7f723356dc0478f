//! Durability: fsync, and the background commit that moves size and floor to where the next mount finds them. Changes no content.

use std::sync::atomic::Ordering;

use super::state::{Phase, State};
use super::{Commit, EncryptedFile, FileError};
use crate::format::geometry::blocks_for;
use crate::format::header::FLAG_HOLES_OK;
use crate::store::BackingFile;

impl<F: BackingFile> EncryptedFile<F> {
    /// fdatasync or fsync of everything written so far.
    pub fn sync(&self, data_only: bool) -> Result<(), FileError> {
        let st = self.state.read();
        let token = self.sync_token();
        if data_only { st.backing.sync_data() } else { st.backing.sync_all() }?;
        self.synced.fetch_max(token, Ordering::AcqRel);
        Ok(())
    }

    /// Whether a commit has something to do.
    pub fn needs_commit(&self) -> bool {
        self.uncommitted.load(Ordering::Acquire)
    }

    /// What has been written up to now, for a caller that makes the whole store durable at once.
    pub fn sync_token(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The background commit of this file: data durable, then floor and size tail; never changes mtime.
    /// `synced`: a token from `sync_token` taken before the caller made the whole store durable, else this syncs by itself.
    pub fn commit(&self, synced: Option<u64>) -> Result<Commit, FileError> {
        if !self.needs_commit() {
            return Ok(Commit::Quiet);
        }
        match synced {
            Some(token) => {
                self.synced.fetch_max(token, Ordering::AcqRel);
            }
            None if self.synced.load(Ordering::Acquire) < self.sync_token() => self.sync(true)?,
            None => {}
        }
        let mut st = self.state.write();
        if self.synced.load(Ordering::Acquire) < self.sync_token() {
            return Ok(Commit::Busy);
        }
        self.settle(&mut st)?;
        Ok(Commit::Quiet)
    }

    /// Everything is durable and nobody writes.
    pub(super) fn settle(&self, st: &mut State<F>) -> Result<(), FileError> {
        if st.writable && st.loaded {
            self.make_quiet(st)?;
        }
        st.resized = false;
        self.uncommitted.store(false, Ordering::Release);
        Ok(())
    }

    /// Everything is durable and nobody writes: raise the floor, set the tail, keep the times.
    fn make_quiet(&self, st: &mut State<F>) -> Result<(), FileError> {
        let size = self.size();
        if size == 0 {
            if st.phase == Phase::Growing {
                // A first write that failed; whoever made it has not put the length right yet.
                let mtime = st.backing.stat()?.mtime;
                self.drop_content(st)?;
                st.backing.set_mtime(mtime)?;
            }
            return Ok(());
        }
        let floor = st.keys()?.header.size_floor;
        let raise = st.floor_known && floor < size;
        if !raise && st.phase == Phase::Quiet {
            st.tail_agrees |= self.last_says_size.load(Ordering::Acquire);
            return Ok(());
        }
        let mtime = st.backing.stat()?.mtime;
        let result = self.write_size(st, size, floor, raise);
        st.backing.set_mtime(mtime)?;
        result
    }

    fn write_size(&self, st: &mut State<F>, size: u64, floor: u64, raise: bool) -> Result<(), FileError> {
        if raise {
            let gaps = !self.written.lock().covers(blocks_for(floor)..blocks_for(size));
            self.update_header(st, |h| {
                h.size_floor = size;
                if gaps {
                    h.flags |= FLAG_HOLES_OK;
                }
            })?;
            self.written.lock().clear();
        }
        if st.phase == Phase::Growing {
            st.backing.set_len(self.context.geometry.quiet_len(size))?;
            st.phase = Phase::Quiet;
            (st.tail_agrees, st.tail_settled) = (true, true);
            self.last_says_size.store(true, Ordering::Release);
        } else {
            st.tail_agrees |= self.last_says_size.load(Ordering::Acquire);
        }
        Ok(())
    }
}
