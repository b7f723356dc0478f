//! The command line: one file a subcommand. Turns errors into messages and exit codes.

mod cat;
mod check;
mod cmk;
mod docs;
mod export;
mod forget_keys;
mod info;
mod init;
mod keygen;
#[cfg(feature = "kms")]
mod kms;
mod mount;
mod mount8;
mod options;
mod progress;
mod raw_tree;
mod source;
mod status;
mod umount;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::format::NULL_CIPHER;
use crate::keys::KeyError;
use crate::keys::passphrase::PassphraseSource;
use crate::mount::{MountError, printable};

/// Exit codes; `--help` tells them.
mod exit {
    pub const FAILURE: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const VOLUME: u8 = 3;
    pub const KEY: u8 = 4;
    pub const MOUNTPOINT: u8 = 5;
    pub const BUSY: u8 = 6;
    pub const DAMAGE: u8 = 7;
}

const VERSION: &str = if NULL_CIPHER {
    concat!(env!("CARGO_PKG_VERSION"), " INSECURE-NULL-CIPHER (for measuring: content is NOT encrypted)")
} else {
    env!("CARGO_PKG_VERSION")
};

const AFTER_HELP: &str = "\
Exit codes:
  0  success
  1  failure of another kind
  2  wrong usage
  3  volume: missing, malformed, or contradicting what this host recorded
  4  key: CMK not configured, refused, unreachable, wrong passphrase; status: a CMK of the mount is one of these
  5  mountpoint or FUSE
  6  busy: the encrypted directory belongs to another mount, or the mount is in use
  7  damage: cat, export or check met content that is corrupt

Environment:
  ENVELOPEFS_LOG         error, warn (default), info or debug
  ENVELOPEFS_CONFIG_DIR  instead of /etc/envelopefs (root) or ~/.config/envelopefs (others):
                         holds the default keyfile and known_volumes.toml
  ENVELOPEFS_RUNTIME_DIR instead of /run/envelopefs (root) or $XDG_RUNTIME_DIR/envelopefs (others):
                         holds the control sockets of mounts, for status and forget-keys
  NO_COLOR               no colours

Start with one command: envelopefs mount --create CIPHERDIR MOUNTPOINT";

/// Transparent file encryption for any directory.
#[derive(Parser)]
#[command(name = "envelopefs", version = VERSION, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Keygen(keygen::Keygen),
    Init(init::Init),
    Mount(mount::Mount),
    Info(info::Info),
    Cat(cat::Cat),
    Check(check::Check),
    Export(export::Export),
    Status(status::Status),
    ForgetKeys(forget_keys::ForgetKeys),
    Umount(umount::Umount),
    Cmk(cmk::Cmk),
    #[cfg(feature = "kms")]
    Kms(kms::Kms),
    Completions(docs::Completions),
    Man(docs::Man),
}

/// Where a passphrase is read from.
#[derive(Args, Debug, Default)]
#[group(multiple = false)]
struct PassphraseArgs {
    /// Read the passphrase from this file (one line)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from this open descriptor (one line)
    #[arg(long, value_name = "N")]
    passphrase_fd: Option<i32>,
}

impl PassphraseArgs {
    /// `None` where neither is given.
    fn given(&self) -> Option<PassphraseSource> {
        match (&self.passphrase_file, self.passphrase_fd) {
            (Some(path), _) => Some(PassphraseSource::File(path.clone())),
            (None, Some(fd)) => Some(PassphraseSource::Descriptor(fd)),
            (None, None) => None,
        }
    }

    fn source(&self) -> PassphraseSource {
        self.given().unwrap_or(PassphraseSource::Terminal)
    }
}

/// A message for the user and the exit code. An empty message says that everything has been said.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        let code = match &error {
            MountError::Volume(_) | MountError::Key(KeyError::Volume(_)) => exit::VOLUME,
            MountError::Key(_) => exit::KEY,
            MountError::Mountpoint(_) => exit::MOUNTPOINT,
            MountError::Busy(_) => exit::BUSY,
            MountError::Other(_) => exit::FAILURE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        MountError::Key(error).into()
    }
}

/// A line on standard output; where that is closed there is nobody to tell.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A line on standard error beside the result.
fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "envelopefs: {text}");
}

pub fn main(args: std::env::ArgsOs) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let args = match mount8::translate(&args) {
        Ok(Some(translated)) => translated,
        Ok(None) => args,
        Err(message) => return fail(&Failure::new(exit::USAGE, message)),
    };
    let parsed = command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are "errors" too, with exit code 0.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    if let Err(message) = crate::mount::log::start() {
        return fail(&Failure::new(exit::USAGE, message));
    }
    let result = match cli.command {
        Command::Keygen(args) => args.run(),
        Command::Init(args) => args.run(),
        Command::Mount(args) => args.run(),
        Command::Info(args) => args.run(),
        Command::Cat(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::ForgetKeys(args) => args.run(),
        Command::Umount(args) => args.run(),
        Command::Cmk(args) => args.run(),
        #[cfg(feature = "kms")]
        Command::Kms(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn command() -> clap::Command {
    Cli::command()
}

fn fail(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        note(&failure.message);
    }
    ExitCode::from(failure.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn errors_have_their_exit_codes() {
        let code = |e: MountError| Failure::from(e).code;
        assert_eq!(code(MountError::Volume(String::new())), 3);
        assert_eq!(code(KeyError::Volume(String::new()).into()), 3);
        assert_eq!(code(KeyError::Config(String::new()).into()), 4);
        assert_eq!(code(KeyError::NoCmk { named: String::new() }.into()), 4);
        assert_eq!(code(MountError::Mountpoint(String::new())), 5);
        assert_eq!(code(MountError::Busy(String::new())), 6);
        assert_eq!(code(MountError::Other(String::new())), 1);
    }
}
