//! `envelopefs kms user`: who may call, and each one's policy.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::super::{Failure, exit, say};
use super::{Place, show};
use crate::kms::admin::Request;

/// Users of the service, their access keys and policies
#[derive(Args)]
pub struct UserVerb {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Add(Add),
    Disable(Disable),
    Enable(Enable),
    Rotate(Rotate),
    List(List),
    #[command(subcommand)]
    Policy(Policy),
}

/// Make a user; its access key is shown once
#[derive(Args)]
struct Add {
    #[command(flatten)]
    place: Place,
    name: String,
    /// A service principal, as a mount is: for it alone stands alias/aws/envelopefs, and grants to it are a service's own
    #[arg(long)]
    service: bool,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
    /// Answer as shell commands that set the environment of AWS clients: eval "$(...)"
    #[arg(long, conflicts_with = "json")]
    env: bool,
}

/// Refuse a user's requests from now on
#[derive(Args)]
struct Disable {
    #[command(flatten)]
    place: Place,
    name: String,
    /// Only those with this access key
    #[arg(long, value_name = "ID")]
    access_key: Option<String>,
}

/// Take a disabled user's requests again
#[derive(Args)]
struct Enable {
    #[command(flatten)]
    place: Place,
    name: String,
}

/// Give a user (or root) a new access key, shown once; the old one ends at once
#[derive(Args)]
struct Rotate {
    #[command(flatten)]
    place: Place,
    name: String,
    /// Leave the newest old one valid, until the next rotation
    #[arg(long)]
    keep_old: bool,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

/// List users and their access keys, without secrets
#[derive(Args)]
struct List {
    #[command(flatten)]
    place: Place,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

/// What a user may do where key policies leave it to the account
#[derive(Subcommand)]
enum Policy {
    /// Set a user's policy document
    Put {
        #[command(flatten)]
        place: Place,
        name: String,
        /// JSON [default: standard input]
        file: Option<PathBuf>,
    },
    /// Show a user's policy document
    Get {
        #[command(flatten)]
        place: Place,
        name: String,
    },
    /// Remove a user's policy document
    Delete {
        #[command(flatten)]
        place: Place,
        name: String,
    },
}

impl UserVerb {
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Add(Add { place, name, service, json, env }) => {
                let answer = place.ask(Request::UserAdd { name, service })?;
                if env {
                    let text = |member: &str| answer[member].as_str().unwrap_or("").to_owned();
                    say(format_args!("export AWS_ACCESS_KEY_ID='{}'", text("AccessKeyId")));
                    say(format_args!("export AWS_SECRET_ACCESS_KEY='{}'", text("SecretAccessKey")));
                } else {
                    show(&answer, json);
                }
            }
            Command::Disable(Disable { place, name, access_key }) => {
                place.ask(Request::UserDisable { name, access_key })?;
            }
            Command::Enable(Enable { place, name }) => drop(place.ask(Request::UserEnable { name })?),
            Command::Rotate(Rotate { place, name, keep_old, json }) => {
                show(&place.ask(Request::UserRotate { name, keep_old })?, json);
            }
            Command::List(List { place, json }) => list(&place.ask(Request::UserList {})?, json),
            Command::Policy(Policy::Put { place, name, file }) => {
                let document = document(file.as_deref())?;
                place.ask(Request::PolicyPut { name, document })?;
            }
            Command::Policy(Policy::Get { place, name }) => {
                let answer = place.ask(Request::PolicyGet { name })?;
                say(answer["PolicyDocument"].as_str().unwrap_or(""));
            }
            Command::Policy(Policy::Delete { place, name }) => drop(place.ask(Request::PolicyDelete { name })?),
        }
        Ok(())
    }
}

/// Longest document, in bytes; far more than the service takes.
const DOCUMENT_MAX: u64 = 1 << 20;

/// The text of a file, or of standard input.
pub fn document(file: Option<&std::path::Path>) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(DOCUMENT_MAX).read_to_string(&mut text)),
        None => std::io::stdin().take(DOCUMENT_MAX).read_to_string(&mut text),
    };
    let name = file.map_or("standard input".into(), |path| path.display().to_string());
    read.map_err(|e| Failure::new(exit::FAILURE, format!("{name}: {e}")))?;
    Ok(text)
}

fn list(answer: &Value, json: bool) {
    if json {
        return show(answer, true);
    }
    for user in answer["Users"].as_array().into_iter().flatten() {
        let kind = if user["ServicePrincipal"] == true { "service" } else { "user" };
        let name = user["UserName"].as_str().unwrap_or("");
        for key in user["AccessKeys"].as_array().into_iter().flatten() {
            let text = |member: &str| key[member].as_str().unwrap_or("");
            say(format_args!(
                "{name:24} {kind:8} {:20} {:8} {}",
                text("AccessKeyId"),
                text("Status"),
                text("CreateDate")
            ));
        }
    }
}
