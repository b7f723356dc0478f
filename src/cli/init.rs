//! `envelopefs init`: a new volume.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use data_encoding::HEXLOWER;

use super::{Failure, PassphraseArgs, note, say};
use crate::config::parse_duration;
use crate::format::volume::KeyMode;
use crate::keys::keyring::KeyPolicy;
use crate::mount::new_volume::{Made, Plan, make};

pub const BRANCH_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
pub const BRANCH_MAX_FILES: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One call to the CMK per branch key; each file still carries its whole chain of keys
    Branch,
    /// One call to the CMK per file, for those who want each file in the audit log
    PerFile,
}

/// Make a new volume
#[derive(Args)]
pub struct Init {
    /// A CMK that opens the volume, e.g. keyfile:///etc/envelopefs/cmk.json; repeat it for several, each of which opens
    /// everything [default: the keyfile cmk.json of the configuration directory, made if missing]
    #[arg(long = "cmk", value_name = "URI")]
    cmks: Vec<String>,
    /// Leave names of files and directories readable
    #[arg(long)]
    plaintext_names: bool,
    /// Pages of 4 KiB for the wrapped keys of each file; more CMKs or larger blobs need more
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    header_pages: u32,
    #[arg(long, value_enum, default_value = "branch")]
    key_mode: Mode,
    /// New files hang on a new branch key after this time
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = age)]
    branch_max_age: Duration,
    /// New files hang on a new branch key after so many files
    #[arg(long, value_name = "N", default_value_t = BRANCH_MAX_FILES, value_parser = clap::value_parser!(u64).range(1..))]
    branch_max_files: u64,
    /// Say that the volume is for measuring and its content will NOT be encrypted
    #[cfg(feature = "insecure-null-cipher")]
    #[arg(long, required = true)]
    insecure_null_cipher: bool,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// An empty directory, or one to be made
    cipherdir: PathBuf,
}

fn age(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        age if age < Duration::from_secs(1) => Err("at least one second".into()),
        age => Ok(age),
    }
}

impl Init {
    pub fn run(self) -> Result<(), Failure> {
        crate::mount::serve::harden();
        let made = make(
            &self.cipherdir,
            &Plan {
                cmks: &self.cmks,
                plaintext_names: self.plaintext_names,
                header_pages: self.header_pages,
                policy: KeyPolicy {
                    mode: match self.key_mode {
                        Mode::Branch => KeyMode::Branch,
                        Mode::PerFile => KeyMode::PerFile,
                    },
                    branch_max_age: self.branch_max_age.as_secs(),
                    branch_max_files: self.branch_max_files,
                },
                passphrase: &self.passphrase.source(),
                seal_new_keyfile: self.passphrase.given().is_some(),
            },
        )?;
        report(&made);
        say(format_args!("Mount it with: envelopefs mount {} MOUNTPOINT", made.cipher_dir.display()));
        Ok(())
    }
}

/// Tells what was made, and above all what has to be backed up.
pub fn report(made: &Made) {
    say(format_args!("Made volume {} in {}.", HEXLOWER.encode(&made.config.volume_id), made.cipher_dir.display()));
    match &made.new_keyfile {
        Some(path) => {
            say(format_args!("Made its key: {}", path.display()));
            say("Back this key up now, apart from the data: without it, everything in the volume is lost.");
        }
        None => {
            for uri in &made.config.cmks {
                say(format_args!("Its key: {uri}"));
            }
        }
    }
    if let Some(why) = &made.not_recorded {
        note(format_args!(
            "the volume could not be recorded as known ({why}); name its keys with --cmk when you mount it"
        ));
    }
}
