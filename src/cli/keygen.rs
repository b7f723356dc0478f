//! `envelopefs keygen`: a keyfile with a fresh CMK.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, PassphraseArgs, say};
use crate::keys::providers::keyfile;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::{CmkUri, KeyfileUri};

/// Make a keyfile with a fresh customer master key (CMK)
#[derive(Args)]
pub struct Keygen {
    /// Where to write it; an existing file is never overwritten
    keyfile: PathBuf,
    /// Seal it under a passphrase, asked for on the terminal
    #[arg(long)]
    passphrase: bool,
    #[command(flatten)]
    source: PassphraseArgs,
    /// A text that tells people what the key is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

impl Keygen {
    pub fn run(self) -> Result<(), Failure> {
        crate::mount::serve::harden();
        let passphrase = self.source.given().or(self.passphrase.then_some(PassphraseSource::Terminal));
        let info = keyfile::create(&self.keyfile, &self.description, passphrase.as_ref())?;
        let path = std::path::absolute(&self.keyfile).unwrap_or(self.keyfile);
        say(format_args!("Made CMK {} in {}.", info.key.key, path.display()));
        say(format_args!("Its URI: {}", CmkUri::Keyfile(KeyfileUri { path, key: None })));
        say("Back it up now, apart from the data: without it, everything encrypted under it is lost.");
        Ok(())
    }
}
