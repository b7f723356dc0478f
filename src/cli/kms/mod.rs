//! `envelopefs kms`: the key service and its verbs, a file a subcommand. Finds out whether a service runs, and asks it or does it here.

mod audit;
mod backup;
mod create_key;
mod init;
mod seal;
mod serve;
mod user;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Failure, PassphraseArgs, exit, printable, say};
use crate::keys::KeyError;
use crate::kms::Service;
use crate::kms::admin::{self, Request, Told};
use crate::kms::store::StoreError;

/// A key service that speaks the AWS KMS protocol
#[derive(Args)]
pub struct Kms {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Serve(serve::Serve),
    User(user::UserVerb),
    CreateKey(create_key::CreateKey),
    Call(create_key::Call),
    Audit(audit::Audit),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Seal(seal::Seal),
    Status(seal::Status),
}

impl Kms {
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Init(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::User(args) => args.run(),
            Command::CreateKey(args) => args.run(),
            Command::Call(args) => args.run(),
            Command::Audit(args) => args.run(),
            Command::Backup(args) => args.run(),
            Command::Restore(args) => args.run(),
            Command::Seal(args) => args.run(),
            Command::Status(args) => args.run(),
        }
    }
}

/// The directory of a service, and how its seal is opened where no service runs that could be asked.
#[derive(Args)]
struct Place {
    /// The directory of the service
    #[arg(value_name = "DATADIR")]
    directory: PathBuf,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

impl Place {
    /// Asks the running service; where none runs, does it here.
    fn ask(&self, request: Request) -> Result<Value, Failure> {
        match admin::ask(&self.directory, &request).map_err(|e| at(&self.directory, &e))? {
            Some(answer) => answer.map_err(Failure::from),
            None => {
                crate::mount::serve::harden();
                let service = Service::open(&self.directory, &self.passphrase.source())?;
                let answer = service.administer(request, rustix::process::geteuid().as_raw());
                service.settle();
                Ok(answer?)
            }
        }
    }

    /// An operation of the API, as the account root.
    fn call(&self, operation: &str, input: Value) -> Result<Value, Failure> {
        self.ask(Request::Call { operation: operation.into(), input })
    }
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(exit::FAILURE, format!("{}: {error}", path.display()))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Key(error) => error.into(),
            StoreError::Busy(_) => Self::new(
                exit::BUSY,
                format!("{error}, and answers no verbs: it may be starting, or another verb is at work"),
            ),
            StoreError::Damaged(_) => Self::new(exit::DAMAGE, error.to_string()),
            StoreError::Database(_) | StoreError::Io { .. } => Self::new(exit::FAILURE, error.to_string()),
        }
    }
}

impl From<Told> for Failure {
    fn from(error: Told) -> Self {
        let code = if error.code.starts_with("Validation") { exit::USAGE } else { exit::FAILURE };
        Self::new(code, error.to_string())
    }
}

/// An answer as JSON, or as one line a member.
fn show(answer: &Value, json: bool) {
    match answer {
        answer if json => say(pretty(answer)),
        Value::Object(members) => {
            let width = members.keys().map(String::len).max().unwrap_or(0);
            for (name, value) in members {
                match value {
                    // Descriptions and tags are other people's texts.
                    Value::String(text) => say(format_args!("{name:width$}  {}", printable(text.as_bytes()))),
                    other => say(format_args!("{name:width$}  {other}")),
                }
            }
        }
        Value::Null => {}
        other => say(pretty(other)),
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Of the default seal of a new service.
fn default_seal(service: &Path) -> Result<PathBuf, KeyError> {
    let name = std::path::absolute(service).ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    let name = name.unwrap_or_else(|| "kms".into());
    Ok(crate::keys::known_volumes::KnownVolumes::config_dir()?.join(format!("kms-seal-{name}.json")))
}
