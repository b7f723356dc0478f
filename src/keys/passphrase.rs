//! Where a passphrase comes from: terminal, file or descriptor; never the command line or the environment.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{KeyError, protected};

/// Longest passphrase in bytes.
pub const PASSPHRASE_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseSource {
    /// Prompt on the controlling terminal, without echo.
    Terminal,
    File(PathBuf),
    Descriptor(i32),
}

impl PassphraseSource {
    /// One line, without its newline. `confirm` asks twice on a terminal.
    pub fn read(&self, prompt: &str, confirm: bool) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match self {
            Self::Terminal => from_terminal(prompt, confirm),
            Self::File(path) => {
                one_line(protected::read_stream(path, "passphrase file", PASSPHRASE_MAX + 1)?, &path.display())
            }
            Self::Descriptor(fd) => {
                let name = PathBuf::from(format!("descriptor {fd}"));
                let file = File::from(duplicate(*fd).map_err(|e| KeyError::io(&name, e))?);
                one_line(protected::read_bounded(file, &name, "passphrase on", PASSPHRASE_MAX + 1)?, &name.display())
            }
        }
    }
}

fn from_terminal(prompt: &str, confirm: bool) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let ask = |prompt: &str| match rpassword::prompt_password(prompt) {
        Ok(line) => one_line(Zeroizing::new(line.into_bytes()), &"the terminal"),
        Err(e) => Err(KeyError::Config(format!(
            "cannot ask for the passphrase on a terminal ({e}): give --passphrase-file FILE or --passphrase-fd N"
        ))),
    };
    let first = ask(prompt)?;
    if confirm && *ask("Repeat it: ")? != *first {
        return Err(KeyError::Config("the two passphrases differ".into()));
    }
    Ok(first)
}

/// Strips one trailing newline; refuses nothing at all, and more than a terminal could ever ask for.
fn one_line(mut bytes: Zeroizing<Vec<u8>>, from: &dyn std::fmt::Display) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    let complaint = match () {
        () if bytes.is_empty() => "is empty",
        () if bytes.len() > PASSPHRASE_MAX => "is longer than 4096 bytes",
        () if bytes.contains(&b'\n') => "has more than one line",
        () => return Ok(bytes),
    };
    Err(KeyError::Config(format!("the passphrase from {from} {complaint}")))
}

/// A second descriptor for an inherited one given by number.
fn duplicate(fd: i32) -> std::io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    if fd < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // Shares offset and works on sockets; may be filtered in containers, where reopening does for files and pipes.
    let shared =
        pidfd_open(getpid(), PidfdFlags::empty()).and_then(|own| pidfd_getfd(own, fd, PidfdGetfdFlags::empty()));
    match shared {
        Ok(owned) => Ok(owned),
        Err(rustix::io::Errno::BADF) => Err(rustix::io::Errno::BADF.into()),
        Err(_) => File::open(Path::new("/proc/self/fd").join(fd.to_string())).map(OwnedFd::from),
    }
}

/// A source as the sealed keys of one command share it: a terminal is asked each time, anything else is read once.
pub struct PassphraseReader<'a> {
    source: &'a PassphraseSource,
    kept: Option<Zeroizing<Vec<u8>>>,
}

impl<'a> PassphraseReader<'a> {
    pub fn new(source: &'a PassphraseSource) -> Self {
        Self { source, kept: None }
    }

    pub fn read(&mut self, prompt: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if let Some(kept) = &self.kept {
            return Ok(kept.clone());
        }
        let passphrase = self.source.read(prompt, false)?;
        if !self.can_retry() {
            self.kept = Some(passphrase.clone());
        }
        Ok(passphrase)
    }

    /// Whether asking again may give another answer.
    pub fn can_retry(&self) -> bool {
        *self.source == PassphraseSource::Terminal
    }
}
