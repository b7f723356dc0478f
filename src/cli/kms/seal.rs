//! `envelopefs kms seal` and `status`: what the store hangs on, and how the service stands.

use std::path::PathBuf;

use clap::Args;

use super::super::{Failure, say};
use super::{Place, show};
use crate::kms::admin::Request;

/// Seal the store under another CMK
///
/// The data key of the store is wrapped anew; the old CMK opens the store no more, but opens copies and backups that were made
/// before. Works beside a running service.
#[derive(Args)]
pub struct Seal {
    #[command(flatten)]
    place: Place,
    /// The new CMK
    uri: String,
    /// Where the service reads the passphrase of a new keyfile that is sealed under one (one line)
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

impl Seal {
    pub fn run(self) -> Result<(), Failure> {
        let request = Request::RotateSeal { uri: self.uri, passphrase_file: self.new_passphrase_file };
        let answer = self.place.ask(request)?;
        say(format_args!("The seal is now {}", answer["Seal"].as_str().unwrap_or("")));
        Ok(())
    }
}

/// Show how a service stands
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    place: Place,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub fn run(self) -> Result<(), Failure> {
        show(&self.place.ask(Request::Status {})?, self.json);
        Ok(())
    }
}
