//! `envelopefs cat`: one file to standard output, without a mount.

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use zeroize::Zeroizing;

use super::mount::shell_word;
use super::progress::Progress;
use super::source::{self, Opened, Source, TrustArgs};
use super::{Failure, exit, printable};
use crate::fs::FsError;
use crate::store::{Kind, Stat};

/// Bytes per read.
const CHUNK: usize = 1 << 20;
/// Links followed before a path counts as a loop, as the kernel does.
const LINKS_MAX: u32 = 40;
/// Smaller files need no progress bar.
const BAR_FROM: u64 = 16 << 20;

/// Decrypt one file to standard output, without a mount
#[derive(Args)]
pub struct Cat {
    #[command(flatten)]
    trust: TrustArgs,
    /// The encrypted directory
    cipherdir: PathBuf,
    /// The file, as a path inside the volume
    path: PathBuf,
}

impl Cat {
    pub fn run(self) -> Result<(), Failure> {
        let after = format!("{} {}", shell_word(&self.cipherdir), shell_word(&self.path));
        let path = self.path.as_os_str().as_bytes();
        match source::open(&self.cipherdir, &self.trust, ("envelopefs cat", &after))? {
            Opened::Volume(tree) => print(&tree, path),
            Opened::Raw(tree) => print(&tree, path),
        }
    }
}

fn print<S: Source>(source: &S, path: &[u8]) -> Result<(), Failure> {
    let damaged = |e: FsError| match e.errno() {
        libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::EINVAL | libc::ELOOP => {
            Failure::new(exit::FAILURE, format!("{}: {e}", printable(path)))
        }
        _ => Failure::new(exit::DAMAGE, format!("{}: {e}", printable(path))),
    };
    // The directories stay looked up while the file below them is used.
    let trail = resolve(source, path).map_err(damaged)?;
    let Some((node, stat)) = trail.last() else { return Err(damaged(FsError::Errno(libc::ENOENT))) };
    match stat.kind {
        Kind::File => {}
        Kind::Directory => return Err(damaged(FsError::Errno(libc::EISDIR))),
        _ => return Err(damaged(FsError::Errno(libc::EINVAL))),
    }
    let content = source.open(node).map_err(damaged)?;
    let mut out = io::stdout().lock();
    let bar = (stat.size >= BAR_FROM && !io::stdout().is_terminal()).then(|| Progress::new(Some(stat.size)));
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
    let mut offset = 0;
    loop {
        let len = source.read(&content, offset, &mut buffer).map_err(damaged)?;
        if len == 0 {
            break;
        }
        let written = out.write_all(&buffer[..len]);
        match written {
            Ok(()) => {}
            // Who reads has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(Failure::new(exit::FAILURE, "")),
            Err(e) => return Err(Failure::new(exit::FAILURE, format!("standard output: {e}"))),
        }
        offset += len as u64;
        if let Some(bar) = &bar {
            bar.add(len as u64);
        }
    }
    out.flush().map_err(|e| Failure::new(exit::FAILURE, format!("standard output: {e}")))
}

/// Walks a path inside the volume, following symbolic links that stay inside: the directories on the way and the object itself.
fn resolve<S: Source>(source: &S, path: &[u8]) -> Result<Vec<(S::Node, Stat)>, FsError> {
    let mut trail = vec![source.root()?];
    let mut links = 0;
    let mut todo: Vec<Vec<u8>> = components(path);
    while let Some(name) = todo.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                // The root is its own parent.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            _ => {}
        }
        let Some((dir, stat)) = trail.last() else { return Err(FsError::Errno(libc::ENOENT)) };
        if stat.kind != Kind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let (node, stat) = source.lookup(dir, &name)?;
        if stat.kind == Kind::Symlink {
            links += 1;
            let target = source.readlink(&node)?;
            // An absolute target leads out of the volume.
            if links > LINKS_MAX || target.starts_with(b"/") {
                return Err(FsError::Errno(libc::ELOOP));
            }
            todo.extend(components(&target));
        } else {
            trail.push((node, stat));
        }
    }
    Ok(trail)
}

/// The components of a path, last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|c| !c.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_come_last_first() {
        assert_eq!(components(b"/a//b/c/"), [b"c".to_vec(), b"b".to_vec(), b"a".to_vec()]);
        assert!(components(b"/").is_empty());
    }
}
