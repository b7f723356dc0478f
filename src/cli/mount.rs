//! `envelopefs mount`: to the background (or not), through the composition root, and back with an answer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::OptionWords;
use super::{Failure, PassphraseArgs, exit, init, note, say};
use crate::config::{MountOptions, WaitForKms};
use crate::format::{NULL_CIPHER, volume::KeyMode};
use crate::keys::KeyError;
use crate::keys::keyring::KeyPolicy;
use crate::keys::passphrase::PassphraseSource;
use crate::mount::cipher_dir::{CipherDir, DEPARTURE};
use crate::mount::new_volume::{Plan, make};
use crate::mount::serve::{self, Running};
use crate::mount::trust::{self, Request};
use crate::mount::waiting::Patience;
use crate::mount::{MountError, log};
use crate::sys::daemon::{self, Side};

/// Mount a volume; returns when the mount answers
///
/// As root the mount is open to all users, as owners, modes and ACLs in it decide, like any other file system
/// (noallow_other changes that). For other users it is open to themselves alone; allow_other needs user_allow_other
/// in /etc/fuse.conf. Messages go to syslog unless --foreground is given.
#[derive(Args)]
pub struct Mount {
    /// Stay in front and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Make what is missing first: mountpoint, encrypted directory, default key, volume
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    #[command(flatten)]
    options: OptionWords,
    /// The encrypted directory
    cipherdir: PathBuf,
    /// Where its content is to appear
    mountpoint: PathBuf,
}

/// All that a mount needs.
struct Job {
    cipherdir: PathBuf,
    mountpoint: PathBuf,
    options: MountOptions,
    passphrase: PassphraseSource,
}

impl Mount {
    pub fn run(self) -> Result<(), Failure> {
        if !self.foreground {
            serve::close_inherited(self.passphrase.passphrase_fd);
        }
        if NULL_CIPHER {
            note("INSECURE-NULL-CIPHER: this build is for measuring, it writes content to disk WITHOUT ENCRYPTION");
        }
        if self.foreground {
            return self.job()?.start(false)?.serve().map_err(Failure::from);
        }
        match daemon::daemonise()
            .map_err(|e| Failure::new(exit::FAILURE, format!("cannot go to the background: {e}")))?
        {
            Side::Parent(Ok(())) => Ok(()),
            Side::Parent(Err(failure)) => Err(Failure::new(failure.code, failure.message)),
            Side::Child(readiness) => {
                // All of it here: the clients of key services have threads, and those do not live through a fork.
                let started = self.job().and_then(|job| job.start(true).map(|running| (job, running)));
                let (job, running) = match started {
                    Ok(started) => started,
                    Err(failure) => {
                        readiness.failed(failure.code, &failure.message);
                        return Err(Failure::new(failure.code, ""));
                    }
                };
                if !log::to_syslog(&job.mountpoint.display().to_string()) {
                    note("nobody listens at /dev/log: messages of this mount are lost (--foreground shows them)");
                }
                if let Err(e) = readiness.ready() {
                    return Err(running.abandon(Failure::new(exit::FAILURE, format!("cannot detach: {e}"))));
                }
                // The log has it; there is nobody else to tell.
                running.serve().map_err(|e| Failure::new(Failure::from(e).code, ""))
            }
        }
    }

    /// With everything made that is missing, where that is wanted.
    fn job(self) -> Result<Job, Failure> {
        let options = self.options.into_inner();
        if self.create {
            create_missing(&self.cipherdir, &self.mountpoint, &options, &self.passphrase)?;
        }
        // Relative paths mean nothing after the daemon has left this directory.
        let cipherdir = CipherDir::open(&self.cipherdir)?.path().to_path_buf();
        let mountpoint = check_mountpoint(&self.mountpoint)?;
        Ok(Job { cipherdir, mountpoint, options, passphrase: self.passphrase.source() })
    }
}

impl Job {
    /// `background`: the parent process waits for this one's report.
    fn start(&self, background: bool) -> Result<Running, Failure> {
        let descriptors = serve::harden();
        let dir = CipherDir::open(&self.cipherdir)?;
        dir.lock(!self.options.read_only, DEPARTURE)?;
        for remark in dir.remarks() {
            ::log::warn!("{remark}");
        }
        let volume = dir.require_volume()?;
        let (from, to) = (shell_word(&self.cipherdir), shell_word(&self.mountpoint));
        let unlocked = trust::unlock(
            &dir,
            volume,
            &Request {
                cmks: &self.options.cmks,
                trust_first_use: self.options.trust_first_use,
                passphrase: &self.passphrase,
                outage: self.options.outage,
                patience: Patience::new(self.options.wait_for_kms, self.options.outage.deadline, background),
                every_cmk: !self.options.read_only,
                record: true,
                command: ("envelopefs mount", &format!("{from} {to}")),
            },
        )
        .map_err(|e| self.explain(e))?;
        Ok(serve::start(dir, unlocked, &self.options, &self.mountpoint, descriptors)?)
    }
}

impl Job {
    /// What an operator can do about a KMS that is down.
    fn explain(&self, error: MountError) -> MountError {
        match error {
            MountError::Key(KeyError::Unreachable { key, reason }) if self.options.wait_for_kms == WaitForKms::No => {
                let reason = format!(
                    "{reason}. Not mounted: see that it can be reached from this host, or have the mount wait for it with \
                     --wait-for-kms"
                );
                MountError::Key(KeyError::Unreachable { key, reason })
            }
            other => other,
        }
    }
}

/// A path as a shell takes it.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+:@%".contains(&b)) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// An existing directory, as an absolute path without links.
fn check_mountpoint(path: &Path) -> Result<PathBuf, Failure> {
    let wrong = |why: String| Failure::new(exit::MOUNTPOINT, format!("mountpoint {}: {why}", path.display()));
    let unusable = |e: io::Error| match e.raw_os_error() {
        Some(libc::ENOTCONN) => wrong(format!(
            "a mount is there whose process died; remove it with: envelopefs umount {}",
            shell_word(path)
        )),
        _ => wrong(e.to_string()),
    };
    let canonical = path.canonicalize().map_err(unusable)?;
    match fs::metadata(&canonical) {
        Ok(meta) if meta.is_dir() => Ok(canonical),
        Ok(_) => Err(wrong("not a directory".into())),
        Err(e) => Err(unusable(e)),
    }
}

/// The one-command start. Everything that exists is left as it is.
fn create_missing(
    cipherdir: &Path,
    mountpoint: &Path,
    options: &MountOptions,
    passphrase: &PassphraseArgs,
) -> Result<(), Failure> {
    match fs::create_dir(mountpoint) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists && e.raw_os_error() != Some(libc::ENOTCONN) => {
            return Err(Failure::new(exit::MOUNTPOINT, format!("mountpoint {}: {e}", mountpoint.display())));
        }
        _ => {}
    }
    if CipherDir::open(cipherdir).is_ok_and(|dir| dir.has_volume_file()) {
        return Ok(());
    }
    if NULL_CIPHER {
        return Err(Failure::new(exit::USAGE, "this build encrypts no content: it makes volumes with init alone"));
    }
    let made = make(
        cipherdir,
        &Plan {
            cmks: &options.cmks,
            plaintext_names: false,
            header_pages: 1,
            policy: KeyPolicy {
                mode: KeyMode::Branch,
                branch_max_age: init::BRANCH_MAX_AGE.as_secs(),
                branch_max_files: init::BRANCH_MAX_FILES,
            },
            passphrase: &passphrase.source(),
            seal_new_keyfile: passphrase.given().is_some(),
        },
    )?;
    init::report(&made);
    say(format_args!("Mounting it at {}.", mountpoint.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_for_the_shell() {
        assert_eq!(shell_word(Path::new("/srv/a-b_c.d")), "/srv/a-b_c.d");
        assert_eq!(shell_word(Path::new("/srv/it's here")), r"'/srv/it'\''s here'");
    }

    #[test]
    fn a_mountpoint_is_an_existing_directory() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(check_mountpoint(top.path()).unwrap(), top.path().canonicalize().unwrap());
        let file = top.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(check_mountpoint(&file).unwrap_err().code, exit::MOUNTPOINT);
        assert_eq!(check_mountpoint(&top.path().join("none")).unwrap_err().code, exit::MOUNTPOINT);
    }
}
