//! `envelopefs forget-keys`: has a mount drop the keys that it could fetch again.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, exit, note, say};
use crate::mount::control::{self, Request};
use crate::mount::mounted::Forgotten;
use crate::mount::{kernel, printable};

/// Have a mount drop its keys from memory, and the plaintext that the kernel has cached; use fetches them again
///
/// Written data is saved first. What stays is the volume's own key, which names and attributes hang on: it goes when the
/// volume is unmounted. Files can be used again at once, as far as their CMKs answer.
#[derive(Args)]
pub struct ForgetKeys {
    /// Drop the keys even if written data cannot be saved first
    #[arg(long)]
    force: bool,
    mountpoint: PathBuf,
}

impl ForgetKeys {
    pub fn run(self) -> Result<(), Failure> {
        let entry = kernel::find(&self.mountpoint).map_err(|e| Failure::new(exit::MOUNTPOINT, e))?;
        let answer = control::ask(&entry, &Request::ForgetKeys { force: self.force })?;
        let forgotten: Forgotten = serde_json::from_value(answer)
            .map_err(|e| Failure::new(exit::FAILURE, format!("the mount's answer is not understood: {e}")))?;
        if let Some(why) = &forgotten.unsaved {
            note(format_args!("written data could not all be saved: {}", printable(why.as_bytes())));
        }
        say(format_args!(
            "Dropped {} branch keys and the keys of {} files. The volume key, which names hang on, stays until unmount.",
            forgotten.branch_keys, forgotten.files
        ));
        for cmk in &forgotten.unusable_cmks {
            let cmk = printable(cmk.as_bytes());
            note(format_args!(
                "CMK {cmk} does not answer with yes now: what hangs on it alone stays closed until it does"
            ));
        }
        Ok(())
    }
}
