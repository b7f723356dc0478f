//! `envelopefs kms backup` and `restore`: the whole store in one file, still sealed.

use std::path::PathBuf;

use clap::Args;

use super::super::{Failure, PassphraseArgs, say};
use super::{Place, at};
use crate::kms::Service;
use crate::kms::admin::Request;

/// Write everything that a service holds into one file, while it runs
///
/// The file is sealed as the store is: it is worth nothing without the seal, which has to be backed up apart from it. The audit
/// trail is not in it; its files in DATADIR/trail only grow and can be copied at any time.
#[derive(Args)]
pub struct Backup {
    #[command(flatten)]
    place: Place,
    /// A new file
    file: PathBuf,
}

impl Backup {
    pub fn run(self) -> Result<(), Failure> {
        let file = std::path::absolute(&self.file).map_err(|e| at(&self.file, &e))?;
        let answer = self.place.ask(Request::Backup { file })?;
        say(format_args!("Wrote {} ({} bytes).", self.file.display(), answer["Bytes"]));
        Ok(())
    }
}

/// Make a service from a backup
///
/// Asks the seal that the backup was made under. Everything in the backup is verified before anything is written.
#[derive(Args)]
pub struct Restore {
    /// An empty directory, or one to be made
    #[arg(value_name = "DATADIR")]
    directory: PathBuf,
    /// What backup wrote
    file: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

impl Restore {
    pub fn run(self) -> Result<(), Failure> {
        crate::mount::serve::harden();
        let service = Service::restore(&self.directory, &self.file, &self.passphrase.source())?;
        service.settle();
        let view = service.view();
        say(format_args!(
            "Restored key service {} in {}: {} keys, {} aliases, {} users.",
            service.record.id,
            self.directory.display(),
            view.keys.len(),
            view.aliases.len(),
            view.users.len()
        ));
        Ok(())
    }
}
