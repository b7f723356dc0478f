//! Reading content: whole runs of blocks, optimistic against concurrent writers. Changes nothing.

use super::pages::{MAX_RUN, body, with_pages};
use super::state::{State, open_page};
use super::{EncryptedFile, FileError, Seek};
use crate::format::geometry::{PAGE, PLAIN, locate};
use crate::store::BackingFile;

impl<F: BackingFile> EncryptedFile<F> {
    /// Reads up to `buf.len()` bytes; short only at the end of the file.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, FileError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let room = (MAX_RUN * PLAIN - locate(at).1).min(buf.len() - done);
            let n = self.read_run(at, &mut buf[done..done + room])?;
            done += n;
            if n < room {
                break;
            }
        }
        Ok(done)
    }

    fn read_run(&self, offset: u64, buf: &mut [u8]) -> Result<usize, FileError> {
        let st = self.loaded_state()?;
        let len = (buf.len() as u64).min(self.size().saturating_sub(offset)) as usize;
        if len == 0 {
            return Ok(0);
        }
        match self.decrypt_run(&st, offset, &mut buf[..len]) {
            // A page may have been caught half written; only a failure without writers counts.
            Err(FileError::Corrupt { .. }) => drop(st),
            other => return other.map(|()| len),
        }
        let st = self.state.write();
        let len = (len as u64).min(self.size().saturating_sub(offset)) as usize;
        self.decrypt_run(&st, offset, &mut buf[..len]).map(|()| len)
    }

    /// Decrypts `buf.len()` bytes that lie inside the file, at most `MAX_RUN` blocks.
    fn decrypt_run(&self, st: &State<F>, offset: u64, buf: &mut [u8]) -> Result<(), FileError> {
        if buf.is_empty() {
            return Ok(());
        }
        let open = st.keys()?;
        let (first, skip) = locate(offset);
        let count = (skip + buf.len()).div_ceil(PLAIN);
        with_pages(count + 1, |buffer| {
            let (pages, scratch) = buffer.split_at_mut(count);
            let bytes = pages.as_flattened_mut();
            let n = st.backing.read_at(bytes, self.context.geometry.block_offset(first))?;
            bytes[n..].fill(0);
            let mut rest = buf;
            for (i, page) in pages.iter().enumerate() {
                let index = first + i as u64;
                let from = if i == 0 { skip } else { 0 };
                let (out, tail) = rest.split_at_mut((PLAIN - from).min(rest.len()));
                rest = tail;
                match <&mut [u8; PLAIN]>::try_from(&mut *out) {
                    Ok(whole) => open_page(open, index, page, whole)?,
                    Err(_) => {
                        let plain = body(&mut scratch[0]);
                        open_page(open, index, page, plain)?;
                        out.copy_from_slice(&plain[from..from + out.len()]);
                    }
                }
            }
            Ok(())
        })
    }

    /// SEEK_DATA and SEEK_HOLE at block granularity.
    pub fn seek(&self, whence: Seek, offset: u64) -> Result<u64, FileError> {
        let st = self.loaded_state()?;
        let size = self.size();
        if offset >= size {
            return Err(FileError::NoOffset);
        }
        let geometry = self.context.geometry;
        let at = geometry.block_offset(locate(offset).0);
        match whence {
            Seek::Data => {
                let found = st.backing.seek_data(at)?.ok_or(FileError::NoOffset)?;
                let block = found.saturating_sub(geometry.data_start()) / PAGE as u64;
                let plain = offset.max(block * PLAIN as u64);
                if plain < size { Ok(plain) } else { Err(FileError::NoOffset) }
            }
            Seek::Hole => {
                let Some(found) = st.backing.seek_hole(at)? else { return Ok(size) };
                let block = found.saturating_sub(geometry.data_start()).div_ceil(PAGE as u64);
                Ok(offset.max(block * PLAIN as u64).min(size))
            }
        }
    }
}
