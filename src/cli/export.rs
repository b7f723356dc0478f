//! `envelopefs export`: the whole tree, decrypted, into a directory; without a mount.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use serde::Serialize;
use zeroize::Zeroizing;

use super::mount::shell_word;
use super::progress::{self, Progress};
use super::source::{self, Item, Opened, Source, TrustArgs, Xattr};
use super::{Failure, exit, printable, say};
use crate::format::geometry::PLAIN;
use crate::fs::FsError;
use crate::mount::log;
use crate::store::{Kind, Stat, Timestamp};

/// Bytes per read.
const CHUNK: usize = 1 << 20;

/// Decrypt the whole volume into a directory, without a mount
///
/// Keeps modes, times, extended attributes, links, holes, and (as root) owners and device nodes. Goes on after a corrupt
/// file, tells which, and ends with exit code 7; unreadable stretches of a file are zeros in the copy. Where the volume
/// file is lost, --cmk recovers content by the files' own headers: names stay as they are on disk.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    trust: TrustArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// The encrypted directory
    cipherdir: PathBuf,
    /// An empty directory, or one to be made
    dest: PathBuf,
}

/// What went wrong with one object.
#[derive(Debug, Serialize)]
struct Problem {
    path: String,
    reason: String,
}

#[derive(Debug, Default, Serialize)]
struct Outcome {
    files: u64,
    directories: u64,
    symlinks: u64,
    others: u64,
    bytes: u64,
    /// Objects of the volume that are damaged, or whose key is not to be had.
    damaged: Vec<Problem>,
    /// What the destination could not take.
    incomplete: Vec<Problem>,
}

impl Export {
    pub fn run(self) -> Result<(), Failure> {
        let after = format!("{} {}", shell_word(&self.cipherdir), shell_word(&self.dest));
        let opened = source::open(&self.cipherdir, &self.trust, ("envelopefs export", &after))?;
        let dest = open_destination(&self.dest)?;
        let outcome = match opened {
            Opened::Volume(tree) => export(&tree, dest)?,
            Opened::Raw(tree) => export(&tree, dest)?,
        };
        if self.json {
            say(serde_json::to_string_pretty(&outcome).unwrap_or_default());
        } else {
            say(format_args!(
                "Exported {} files ({} bytes), {} directories, {} symbolic links, {} others.",
                outcome.files, outcome.bytes, outcome.directories, outcome.symlinks, outcome.others
            ));
        }
        if !outcome.damaged.is_empty() {
            return Err(Failure::new(exit::DAMAGE, format!("damaged: {}", outcome.damaged.len())));
        }
        if !outcome.incomplete.is_empty() {
            return Err(Failure::new(exit::FAILURE, format!("not kept in full: {}", outcome.incomplete.len())));
        }
        Ok(())
    }
}

fn open_destination(path: &Path) -> Result<OwnedFd, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(exit::FAILURE, format!("{}: {e}", path.display()));
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&e)),
        _ => {}
    }
    if std::fs::read_dir(path).map_err(|e| failed(&e))?.next().is_some() {
        return Err(failed(&"not empty: export needs an empty directory, or one that does not exist yet"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(&e))
}

/// A directory that is being filled.
struct Frame<S: Source> {
    node: S::Node,
    stat: Stat,
    path: Vec<u8>,
    dest: OwnedFd,
    /// Still to come, in reverse.
    items: Vec<Item<S::Node>>,
}

/// Why one object was not exported.
enum Trouble {
    /// The volume's fault; the text says what is missing.
    Source(String),
    /// The destination's.
    Dest(io::Error),
}

impl From<FsError> for Trouble {
    fn from(error: FsError) -> Self {
        Trouble::Source(error.to_string())
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(error: rustix::io::Errno) -> Self {
        Trouble::Dest(error.into())
    }
}

struct Exporter<'a, S: Source> {
    source: &'a S,
    root_dest: OwnedFd,
    is_root: bool,
    /// First path of each inode that has several.
    links: HashMap<u64, Vec<u8>>,
    progress: Progress,
    buffer: Zeroizing<Vec<u8>>,
    outcome: Outcome,
}

fn export<S: Source>(source: &S, dest: OwnedFd) -> Result<Outcome, Failure> {
    let unreadable = |e: FsError| Failure::new(exit::DAMAGE, format!("the root directory: {e}"));
    let reported_before = log::hidden_entries();
    let (node, stat) = source.root().map_err(unreadable)?;
    let items = source.list(&node).map_err(unreadable)?;
    let total = progress::visible().then(|| measure(source, &node));
    let failed = |e: &dyn std::fmt::Display| Failure::new(exit::FAILURE, format!("destination: {e}"));
    let mut exporter = Exporter {
        source,
        root_dest: dest.try_clone().map_err(|e| failed(&e))?,
        is_root: rustix::process::geteuid().is_root(),
        links: HashMap::new(),
        progress: Progress::new(total),
        buffer: Zeroizing::new(vec![0; CHUNK]),
        outcome: Outcome::default(),
    };
    let root = Frame { node, stat, path: Vec::new(), dest, items: reversed(items) };
    exporter.run(root)?;
    let mut outcome = std::mem::take(&mut exporter.outcome);
    drop(exporter);
    let hidden = log::hidden_entries() - reported_before;
    if hidden > 0 {
        let reason = format!(
            "entries that do not belong where they stand, and are left out: {hidden}; the lines above name them"
        );
        outcome.damaged.push(Problem { path: String::new(), reason });
    }
    Ok(outcome)
}

/// Bytes of all files, for the progress bar.
fn measure<S: Source>(source: &S, root: &S::Node) -> u64 {
    let mut total = 0u64;
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for item in source.list(&dir).unwrap_or_default() {
            match item.stat.kind {
                Kind::Directory => dirs.push(item.node),
                Kind::File => total = total.saturating_add(item.stat.size),
                _ => {}
            }
        }
    }
    total
}

fn reversed<N>(mut items: Vec<Item<N>>) -> Vec<Item<N>> {
    items.reverse();
    items
}

impl<S: Source> Exporter<'_, S> {
    /// Depth first, without recursion: a tree may be deeper than the stack.
    fn run(&mut self, root: Frame<S>) -> Result<(), Failure> {
        let mut stack = vec![root];
        while let Some(frame) = stack.last_mut() {
            let Some(item) = frame.items.pop() else {
                if let Some(done) = stack.pop() {
                    self.finish_directory(done)?;
                }
                continue;
            };
            let path = join(&frame.path, &item.name);
            self.progress.at(&path);
            let entered = match item.stat.kind {
                Kind::Directory => self.directory(&frame.dest, &item, &path).map(Some),
                _ => self.object(&frame.dest, &item, &path).map(|()| None),
            };
            match entered {
                Ok(Some(frame)) => stack.push(frame),
                Ok(None) => {}
                Err(trouble) => self.complain(&path, trouble)?,
            }
        }
        Ok(())
    }

    /// Records a problem; a full destination ends everything.
    fn complain(&mut self, path: &[u8], trouble: Trouble) -> Result<(), Failure> {
        let path = printable(path);
        match trouble {
            Trouble::Source(reason) => {
                self.progress.line(&format!("{path}: {reason}"));
                self.outcome.damaged.push(Problem { path, reason });
            }
            Trouble::Dest(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS)) => {
                return Err(Failure::new(exit::FAILURE, format!("destination, at {path}: {e}")));
            }
            Trouble::Dest(e) => {
                let reason = format!("destination: {e}");
                self.progress.line(&format!("{path}: {reason}"));
                self.outcome.incomplete.push(Problem { path, reason });
            }
        }
        Ok(())
    }

    fn directory(&mut self, dest: &OwnedFd, item: &Item<S::Node>, path: &[u8]) -> Result<Frame<S>, Trouble> {
        let name = item.name.as_slice();
        rustix::fs::mkdirat(dest, name, Mode::from_raw_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside = rustix::fs::openat(dest, name, flags, Mode::empty())?;
        let items = match self.source.list(&item.node) {
            Ok(items) => items,
            Err(e) => {
                // The directory itself is kept; its content is what is lost.
                self.metadata(&item.node, &item.stat, path, &inside)?;
                return Err(e.into());
            }
        };
        Ok(Frame {
            node: item.node.clone(),
            stat: item.stat,
            path: path.to_vec(),
            dest: inside,
            items: reversed(items),
        })
    }

    fn finish_directory(&mut self, frame: Frame<S>) -> Result<(), Failure> {
        self.outcome.directories += 1;
        match self.metadata(&frame.node, &frame.stat, &frame.path, &frame.dest) {
            Ok(()) => Ok(()),
            Err(trouble) => self.complain(&frame.path, trouble),
        }
    }

    /// Everything that is not a directory.
    fn object(&mut self, dest: &OwnedFd, item: &Item<S::Node>, path: &[u8]) -> Result<(), Trouble> {
        let name = item.name.as_slice();
        if item.stat.nlink > 1
            && let Some(first) = self.links.get(&item.stat.ino)
        {
            return Ok(rustix::fs::linkat(&self.root_dest, first.as_slice(), dest, name, AtFlags::empty())?);
        }
        match item.stat.kind {
            Kind::File => self.file(dest, item, path)?,
            Kind::Symlink => {
                let target = self.source.readlink(&item.node)?;
                rustix::fs::symlinkat(target.as_slice(), dest, name)?;
                self.outer_metadata(dest, name, &item.stat)?;
                self.outcome.symlinks += 1;
            }
            kind => {
                let (file_type, device) = match kind {
                    Kind::Fifo => (FileType::Fifo, 0),
                    Kind::Socket => (FileType::Socket, 0),
                    Kind::CharDevice => (FileType::CharacterDevice, item.stat.rdev),
                    _ => (FileType::BlockDevice, item.stat.rdev),
                };
                rustix::fs::mknodat(dest, name, file_type, Mode::from_raw_mode(0o600), device)?;
                rustix::fs::chmodat(dest, name, Mode::from_raw_mode(item.stat.mode & 0o7777), AtFlags::empty())?;
                self.outer_metadata(dest, name, &item.stat)?;
                self.outcome.others += 1;
            }
        }
        if item.stat.nlink > 1 {
            self.links.insert(item.stat.ino, path.to_vec());
        }
        Ok(())
    }

    fn file(&mut self, dest: &OwnedFd, item: &Item<S::Node>, path: &[u8]) -> Result<(), Trouble> {
        let content = self.source.open(&item.node)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let out = File::from(rustix::fs::openat(dest, item.name.as_slice(), flags, Mode::from_raw_mode(0o600))?);
        let size = item.stat.size;
        let mut unreadable = Unreadable::default();
        let mut offset = 0;
        while offset < size {
            // Over holes, which the copy has as well. Where that cannot be told, everything counts as data.
            match self.source.next_data(&content, offset) {
                Ok(Some(data)) if data < size => offset = data.max(offset),
                Ok(_) => break,
                Err(_) => {}
            }
            let want = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
            match self.source.read(&content, offset, &mut self.buffer[..want]) {
                Ok(0) => break,
                Ok(len) => {
                    out.write_all_at(&self.buffer[..len], offset).map_err(Trouble::Dest)?;
                    self.progress.add(len as u64);
                    offset += len as u64;
                }
                Err(_) => {
                    let end = offset + want as u64;
                    self.salvage(&content, &out, offset, end, &mut unreadable)?;
                    offset = end;
                }
            }
        }
        out.set_len(size).map_err(Trouble::Dest)?;
        self.outcome.files += 1;
        self.outcome.bytes += size;
        self.metadata(&item.node, &item.stat, path, &out)?;
        match unreadable.describe() {
            Some(reason) => Err(Trouble::Source(reason)),
            None => Ok(()),
        }
    }

    /// Block by block, where a longer read met damage; what does not open stays a hole.
    fn salvage(
        &mut self,
        content: &S::Content,
        out: &File,
        from: u64,
        to: u64,
        unreadable: &mut Unreadable,
    ) -> Result<(), Trouble> {
        let block = PLAIN as u64;
        let mut offset = from;
        while offset < to {
            let end = ((offset / block + 1) * block).min(to);
            let want = (end - offset) as usize;
            match self.source.read(content, offset, &mut self.buffer[..want]) {
                Ok(len) => out.write_all_at(&self.buffer[..len], offset).map_err(Trouble::Dest)?,
                Err(e) => unreadable.add(offset, want as u64, &e),
            }
            self.progress.add(want as u64);
            offset = end;
        }
        Ok(())
    }

    /// By descriptor: owner, attributes, mode, times, in the order in which none undoes another.
    fn metadata(&mut self, node: &S::Node, stat: &Stat, path: &[u8], out: &impl AsFd) -> Result<(), Trouble> {
        let xattrs = self.source.xattrs(node);
        if self.is_root {
            rustix::fs::fchown(out, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
        }
        for xattr in xattrs.iter().flatten() {
            if let Err(e) = self.set_xattr(out, xattr) {
                let reason = format!("attribute {}: {e}", printable(&xattr.0));
                self.progress.line(&format!("{}: {reason}", printable(path)));
                self.outcome.incomplete.push(Problem { path: printable(path), reason });
            }
        }
        rustix::fs::fchmod(out, Mode::from_raw_mode(stat.mode & 0o7777))?;
        rustix::fs::futimens(out, &times(stat))?;
        match xattrs {
            Ok(_) => Ok(()),
            Err(e) => Err(Trouble::Source(format!("extended attributes: {e}"))),
        }
    }

    /// `trusted.*` and `security.*` are root's; others leave them out as cp(1) does.
    fn set_xattr(&self, out: &impl AsFd, (name, value): &Xattr) -> Result<(), rustix::io::Errno> {
        if !self.is_root && (name.starts_with(b"trusted.") || name.starts_with(b"security.")) {
            return Ok(());
        }
        rustix::fs::fsetxattr(out, name.as_slice(), value, XattrFlags::empty())
    }

    /// By name, for what cannot be opened.
    fn outer_metadata(&self, dest: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), Trouble> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            rustix::fs::chownat(dest, name, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)), nofollow)?;
            if stat.kind != Kind::Symlink {
                // A change of owner clears set-id bits.
                rustix::fs::chmodat(dest, name, Mode::from_raw_mode(stat.mode & 0o7777), AtFlags::empty())?;
            }
        }
        Ok(rustix::fs::utimensat(dest, name, &times(stat), nofollow)?)
    }
}

/// Stretches of one file that do not open.
#[derive(Default)]
struct Unreadable {
    bytes: u64,
    first: Option<(u64, String)>,
}

impl Unreadable {
    fn add(&mut self, offset: u64, len: u64, error: &FsError) {
        self.bytes += len;
        self.first.get_or_insert_with(|| (offset, error.to_string()));
    }

    fn describe(&self) -> Option<String> {
        let (offset, error) = self.first.as_ref()?;
        Some(format!("{} bytes unreadable, zeros in the copy; the first at offset {offset}: {error}", self.bytes))
    }
}

fn times(stat: &Stat) -> Timestamps {
    let at = |t: Timestamp| Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() };
    Timestamps { last_access: at(stat.atime), last_modification: at(stat.mtime) }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
