//! Where a passphrase comes from: terminal, file or descriptor; never the command line or the environment.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{KeyError, protected, terminal};

/// Longest passphrase in bytes.
pub const PASSPHRASE_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseSource {
    /// Prompt on the controlling terminal, without echo.
    Terminal,
    File(PathBuf),
    Descriptor(i32),
    /// Nobody can be asked, as in a daemon at work.
    Nowhere,
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
            Self::Nowhere => Err(KeyError::Config(
                "the key is sealed under a passphrase, and nobody can be asked for it here: give --passphrase-file FILE".into(),
            )),
        }
    }
}

fn from_terminal(prompt: &str, confirm: bool) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let ask = |prompt: &str| match terminal::ask(prompt, PASSPHRASE_MAX + 1) {
        Ok(line) => one_line(line, &"the terminal"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        os::{
            fd::AsRawFd,
            unix::{fs::PermissionsExt, net::UnixStream},
        },
    };

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn read(source: &PassphraseSource) -> Result<Vec<u8>, String> {
        source.read("", true).map(|p| p.to_vec()).map_err(|e| e.to_string())
    }

    #[test]
    fn one_line_of_a_file() {
        type Case = (&'static [u8], Result<&'static [u8], &'static str>);
        let cases: [Case; 9] = [
            (b"secret\n", Ok(b"secret")),
            (b"secret", Ok(b"secret")),
            (b" two words \n", Ok(b" two words ")),
            (b"\xff\x00\r\n", Ok(b"\xff\x00\r")),
            (b"", Err("empty")),
            (b"\n", Err("empty")),
            (b"secret\n\n", Err("more than one line")),
            (&[b'x'; PASSPHRASE_MAX + 1], Err("longer")),
            (&[b'x'; PASSPHRASE_MAX + 2], Err("larger")),
        ];
        for (content, expected) in cases {
            let file = file(content);
            let outcome = read(&PassphraseSource::File(file.path().into()));
            match expected {
                Ok(expected) => assert_eq!(outcome.as_deref(), Ok(expected)),
                Err(expected) => {
                    let error = outcome.unwrap_err();
                    assert!(error.contains(expected) && !error.contains("secret"), "{error}");
                }
            }
        }
        let longest = [[b'x'; PASSPHRASE_MAX].as_slice(), b"\n"].concat();
        assert_eq!(read(&PassphraseSource::File(file(&longest).path().into())).unwrap().len(), PASSPHRASE_MAX);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let file = file(b"secret\n");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = read(&PassphraseSource::File(file.path().into())).unwrap_err();
        assert!(error.contains("passphrase file") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn descriptors_may_be_files_pipes_or_sockets() {
        let source = |fd: &dyn AsRawFd| PassphraseSource::Descriptor(fd.as_raw_fd());
        assert_eq!(read(&source(&file(b"secret\n").reopen().unwrap())).unwrap(), b"secret");
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"secret\n").unwrap();
        drop(writer);
        // Several sealed keys share what a pipe gives only once.
        let from_pipe = source(&reader);
        let mut shared = PassphraseReader::new(&from_pipe);
        assert!(!shared.can_retry());
        assert_eq!(&**shared.read("").unwrap(), b"secret");
        assert_eq!(&**shared.read("").unwrap(), b"secret");
        assert!(read(&from_pipe).unwrap_err().contains("empty"));

        let (reader, mut writer) = UnixStream::pair().unwrap();
        writer.write_all(b"secret").unwrap();
        drop(writer);
        assert_eq!(read(&source(&reader)).unwrap(), b"secret");

        for fd in [-1, i32::MAX] {
            let error = read(&PassphraseSource::Descriptor(fd)).unwrap_err();
            assert!(error.contains(&format!("descriptor {fd}")), "{error}");
        }
    }

    /// Runs itself in a session of its own, which has no terminal.
    #[test]
    fn without_a_terminal_the_error_names_the_other_ways() {
        const CHILD: &str = "ENVELOPEFS_TEST_WITHOUT_TERMINAL";
        if std::env::var_os(CHILD).is_some() {
            rustix::process::setsid().unwrap();
            let error = read(&PassphraseSource::Terminal).unwrap_err();
            assert!(error.contains("--passphrase-file FILE or --passphrase-fd N"), "{error}");
            return;
        }
        let name = "keys::passphrase::tests::without_a_terminal_the_error_names_the_other_ways";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success() && output.contains("1 passed"), "{output}");
    }
}
