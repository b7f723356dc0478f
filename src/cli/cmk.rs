//! `envelopefs cmk`: CMKs of single directories on a running mount, and whom this host trusts for them. Asks the mount's
//! process; touches no key.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;

use super::mount::shell_word;
use super::{Failure, exit, note, say};
use crate::mount::cipher_dir::CipherDir;
use crate::mount::control::{self, Request};
use crate::mount::directory_cmks::{DirectoryCmks, GivenCmk};
use crate::mount::kernel::{self, MountEntry};
use crate::mount::{directory_trust, printable, trust};

/// Give directories of a mount CMKs of their own
#[derive(Args)]
pub struct Cmk {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Set(Set),
    Unset(Unset),
    Show(Show),
    Trust(Trust),
}

/// New files in a directory hang on these CMKs from now on
///
/// Directories made inside inherit them. Files and directories that exist keep what they have. Names, targets of symbolic
/// links, and attributes of directories hang on the volume's own CMKs as before.
#[derive(Args)]
struct Set {
    /// A CMK; may be repeated: each alone opens the files
    #[arg(long = "cmk", value_name = "URI", required = true)]
    cmks: Vec<String>,
    /// Where the mount's process reads the passphrase of a sealed keyfile (one line)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// New files in a directory hang on the volume's own CMKs again
#[derive(Args)]
struct Unset {
    #[command(flatten)]
    target: Target,
}

/// Show what new files in a directory hang on
#[derive(Args)]
struct Show {
    #[command(flatten)]
    target: Target,
}

/// Trust CMKs that a volume lists for directories, from the next mount on
#[derive(Args)]
struct Trust {
    /// A CMK to trust; may be repeated
    #[arg(long = "cmk", value_name = "URI", required = true)]
    cmks: Vec<String>,
    /// The encrypted directory
    cipherdir: PathBuf,
}

#[derive(Args)]
struct Target {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    /// A directory on a mount
    dir: PathBuf,
}

impl Cmk {
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Set(args) => args.run(),
            Command::Unset(Unset { target }) => target.ask(|inode| Request::UnsetDirectoryCmks { inode }),
            Command::Show(Show { target }) => target.ask(|inode| Request::DirectoryCmks { inode }),
            Command::Trust(args) => args.run(),
        }
    }
}

impl Set {
    fn run(self) -> Result<(), Failure> {
        // Relative paths mean nothing to the mount's process.
        let cmks = trust::parse_uris(&self.cmks)?.iter().map(ToString::to_string).collect();
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(|e| Failure::new(exit::USAGE, format!("{}: {e}", path.display())))
        };
        let passphrase_file = self.passphrase_file.map(absolute).transpose()?;
        self.target.ask(|inode| Request::SetDirectoryCmks { inode, cmks, passphrase_file })?;
        if !self.target.json {
            say("Files that exist keep their keys until they are rewritten or rewrapped.");
        }
        Ok(())
    }
}

impl Trust {
    fn run(self) -> Result<(), Failure> {
        let dir = CipherDir::open(&self.cipherdir)?;
        for remark in directory_trust::trust(&dir, &self.cmks)? {
            note(printable(remark.as_bytes()));
        }
        say("Recorded. The next mount uses it.");
        Ok(())
    }
}

impl Target {
    fn ask(&self, request: impl FnOnce(u64) -> Request) -> Result<(), Failure> {
        let (held, entry) = find(&self.dir)?;
        let stat = rustix::fs::fstat(&held).map_err(|e| unusable(&self.dir, &e))?;
        let value = control::ask(&entry, &request(stat.st_ino))?;
        // The inode number meant this directory until now.
        drop(held);
        if self.json {
            say(format_args!("{value:#}"));
            return Ok(());
        }
        let answer: DirectoryCmks = understood(value)?;
        say(describe(&self.dir, &answer));
        answer.remarks.iter().for_each(|remark| note(printable(remark.as_bytes())));
        Ok(())
    }
}

fn understood<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|e| {
        Failure::new(exit::MOUNTPOINT, format!("the answer of the mount's process is not understood: {e}"))
    })
}

fn unusable(dir: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(exit::MOUNTPOINT, format!("{}: {why}", dir.display()))
}

/// The directory, held open, and the mount that it is on.
fn find(dir: &Path) -> Result<(OwnedFd, MountEntry), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| unusable(dir, &e))?;
    let stat = rustix::fs::fstat(&held).map_err(|e| unusable(dir, &e))?;
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    match kernel::mount_of_device(device).map_err(|e| unusable(dir, &e))? {
        Some(entry) => Ok((held, entry)),
        None => Err(unusable(dir, &"not on an envelopefs mount: name a directory as it appears below the mountpoint")),
    }
}

fn describe(dir: &Path, answer: &DirectoryCmks) -> String {
    let whose = if answer.own { "of its own" } else { "the volume's: it has none of its own" };
    let mut text = format!("{}: new files hang on these CMKs ({whose})", shell_word(dir));
    for GivenCmk { provider, key, uri, state, reason } in &answer.cmks {
        let uri = uri.as_ref().map(|uri| format!(", {uri}")).unwrap_or_default();
        let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        text.push_str("\n  ");
        text.push_str(&printable(format!("{provider}:{key} ({state}{reason}{uri})").as_bytes()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown() {
        let cmk = |uri: Option<&str>, state: &str, reason: Option<&str>| GivenCmk {
            provider: "keyfile".into(),
            key: "k".into(),
            uri: uri.map(Into::into),
            state: state.into(),
            reason: reason.map(Into::into),
        };
        let answer = DirectoryCmks {
            own: true,
            cmks: vec![cmk(Some("keyfile:///k"), "usable", None), cmk(None, "refused", Some("CMK is disabled\u{1b}"))],
            remarks: Vec::new(),
        };
        assert_eq!(
            describe(Path::new("/mnt/a"), &answer),
            "/mnt/a: new files hang on these CMKs (of its own)\n  keyfile:k (usable, keyfile:///k)\n  \
             keyfile:k (refused: CMK is disabled\\u{1b})"
        );
        let none = DirectoryCmks { own: false, cmks: Vec::new(), remarks: Vec::new() };
        assert!(describe(Path::new("/mnt"), &none).contains("it has none of its own"));
    }

    #[test]
    fn a_directory_elsewhere_is_not_on_a_mount() {
        let top = tempfile::tempdir().unwrap();
        let error = find(top.path()).map(drop).unwrap_err();
        assert_eq!(error.code, exit::MOUNTPOINT);
        assert!(error.message.contains("not on an envelopefs mount"), "{}", error.message);
        assert_eq!(find(&top.path().join("none")).map(drop).unwrap_err().code, exit::MOUNTPOINT);
    }
}
