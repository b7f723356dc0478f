//! `envelopefs kms init`: a new key service.

use std::path::PathBuf;

use clap::Args;

use super::super::{Failure, PassphraseArgs, exit, say};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::keyfile;
use crate::keys::uri::{CmkUri, KeyfileUri};
use crate::kms::{Plan, Service};

/// Make a key service
///
/// Prints the access key of the account root once. It has all rights, as in AWS: lock it away, and make users for daily work.
#[derive(Args)]
pub struct Init {
    /// Where the service keeps its store; an empty directory, or one to be made
    #[arg(value_name = "DATADIR")]
    directory: PathBuf,
    /// The CMK that seals the store: a keyfile, a token, another key service
    /// [default: a keyfile kms-seal-NAME.json in the configuration directory, made if missing]
    #[arg(long, value_name = "URI")]
    seal: Option<String>,
    /// Twelve digits; fixed for good
    #[arg(long, value_name = "N", default_value = "000000000000", value_parser = account)]
    account_id: String,
    /// Fixed for good; clients sign for it
    #[arg(long, default_value = "us-east-1", value_parser = region)]
    region: String,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// Answer as JSON
    #[arg(long)]
    json: bool,
}

fn account(text: &str) -> Result<String, String> {
    if text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
        Ok(text.to_owned())
    } else {
        Err("an account id has twelve digits".into())
    }
}

fn region(text: &str) -> Result<String, String> {
    let fine = !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.as_bytes()[0].is_ascii_lowercase();
    if fine { Ok(text.to_owned()) } else { Err("a region is written like eu-central-1".into()) }
}

impl Init {
    pub fn run(self) -> Result<(), Failure> {
        crate::mount::serve::harden();
        let (seal, made) = match &self.seal {
            Some(uri) => (CmkUri::parse(uri)?, None),
            None => {
                let path = super::default_seal(&self.directory)?;
                let made = path.symlink_metadata().is_err();
                if made {
                    let passphrase = self.passphrase.given();
                    keyfile::create(&path, "seal of a key service", passphrase.as_ref())?;
                }
                (CmkUri::from(KeyfileUri { path: path.clone(), key: None }), made.then_some(path))
            }
        };
        let passphrase: PassphraseSource = self.passphrase.source();
        let plan = Plan { seal: &seal, passphrase: &passphrase, account: &self.account_id, region: &self.region };
        let (service, root) = Service::create(&self.directory, &plan)?;
        service.settle();
        let sealed = service.store().header().data_key.seal;
        if sealed.is_empty() {
            return Err(Failure::new(exit::KEY, "the seal has no name"));
        }
        if self.json {
            let answer = serde_json::json!({
                "ServiceId": service.record.id,
                "Account": self.account_id,
                "Region": self.region,
                "Seal": sealed,
                "UserName": "root",
                "Arn": format!("arn:aws:iam::{}:root", self.account_id),
                "AccessKeyId": root.id,
                "SecretAccessKey": root.secret.as_str(),
            });
            say(super::pretty(&answer));
            return Ok(());
        }
        let directory = self.directory.display();
        say(format_args!("Made key service {} in {directory}.", service.record.id));
        say(format_args!("Account {}, region {}.", self.account_id, self.region));
        match made {
            Some(path) => {
                say(format_args!("Made its seal: {}", path.display()));
                say("Back the seal up now, apart from the service's directory: without it, every key here is lost.");
            }
            None => say(format_args!("Its seal: {sealed}")),
        }
        say("The access key of the account root, shown this once:");
        say(format_args!("  AccessKeyId      {}", root.id));
        say(format_args!("  SecretAccessKey  {}", root.secret.as_str()));
        say("It may do everything. Lock it away, and make users for daily work:");
        say(format_args!("  envelopefs kms user add {directory} NAME"));
        say(format_args!("Start the service with: envelopefs kms serve {directory}"));
        Ok(())
    }
}
