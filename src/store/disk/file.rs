//! One open regular file of the disk. Knows bytes and offsets only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, SeekFrom, Timestamps};
use rustix::io::{Errno, retry_on_intr};

use super::{stat_of, timespec};
use crate::store::{BackingFile, SetTime, Stat, Timestamp};

/// Zeros written at once where holes cannot be punched, in bytes.
const ZEROS: usize = 64 * 1024;

/// A descriptor shared by all threads: its position is used by nobody.
#[derive(Debug)]
pub struct DiskFile(OwnedFd);

impl DiskFile {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Offset of the next data or hole; `None` past the end. A file system that cannot tell has data everywhere.
    fn seek(&self, from: SeekFrom, otherwise: impl Fn(u64) -> u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.0, from) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let (SeekFrom::Data(offset) | SeekFrom::Hole(offset)) = from else { return Err(Errno::INVAL.into()) };
                let size = self.stat()?.size;
                Ok((offset < size).then(|| otherwise(size)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Overwrites the data in the range with zeros; holes and the length stay.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.stat()?.size);
        let mut at = offset;
        while let Some(data) = self.seek_data(at)?.filter(|data| *data < end) {
            let hole = self.seek_hole(data)?.unwrap_or(end).min(end);
            at = data;
            while at < hole {
                let n = (hole - at).min(ZEROS as u64);
                self.write_at(&[0; ZEROS][..n as usize], at)?;
                at += n;
            }
        }
        Ok(())
    }
}

impl AsFd for DiskFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl BackingFile for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.0, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pwrite(&self.0, &buf[done..], offset + done as u64) {
                // A file system that makes no progress would keep us here for ever.
                Ok(0) => return Err(Errno::IO.into()),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        stat_of(&rustix::fs::fstat(&self.0)?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if i64::try_from(len).is_err() {
            return Err(Errno::FBIG.into());
        }
        Ok(retry_on_intr(|| rustix::fs::ftruncate(&self.0, len))?)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| rustix::fs::fallocate(&self.0, flags, offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(offset, len),
            other => Ok(other?),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, len))?)
    }

    fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(SeekFrom::Data(offset), |_| offset)
    }

    fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(SeekFrom::Hole(offset), |size| size)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.0))?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fsync(&self.0))?)
    }

    fn set_mtime(&self, mtime: Timestamp) -> io::Result<()> {
        let times =
            Timestamps { last_access: timespec(SetTime::Omit), last_modification: timespec(SetTime::At(mtime)) };
        Ok(rustix::fs::futimens(&self.0, &times)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_stand_in_for_holes_and_leave_holes_alone() {
        let file = DiskFile::new(tempfile::tempfile().unwrap().into());
        file.set_len(1 << 40).unwrap();
        file.write_at(&[1; 200_000], 0).unwrap();
        file.write_at(&[2; 10], 1 << 30).unwrap();
        file.write_zeros(100, u64::MAX).unwrap();
        let mut bytes = vec![9; 200_000];
        file.read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..100].iter().all(|b| *b == 1) && bytes[100..].iter().all(|b| *b == 0));
        file.read_at(&mut bytes[..10], 1 << 30).unwrap();
        assert_eq!(bytes[..10], [0; 10]);
        let stat = file.stat().unwrap();
        assert!(stat.size == 1 << 40 && stat.blocks * 512 < 1 << 20);
        // A range that begins past the end has nothing to zero.
        file.write_zeros(1 << 41, 10).unwrap();
        assert_eq!(file.stat().unwrap().size, 1 << 40);
    }
}
