//! `envelopefs kms audit`: the trail, and whether it is whole.

use clap::Args;
use serde_json::Value;

use super::super::{Failure, exit, note, printable, say};
use super::Place;
use crate::kms::admin::Request;
use crate::kms::audit::verify::{self, Filter, Verdict};
use crate::kms::clock::wall;
use crate::kms::wire::time;

/// Show the audit trail, or verify it
///
/// One record a line, as JSON in CloudTrail's names. --verify checks that no record was altered, removed, moved or added, and
/// fails with code 7 where one was. It prints the last record's hash: written down elsewhere, it also shows whether the whole
/// directory was put back to an earlier state.
#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    place: Place,
    /// Records from then on: 2026-11-24, 2026-11-24T13:37:55Z, or an age such as 2h
    #[arg(long, value_name = "TIME", conflicts_with = "verify")]
    since: Option<String>,
    /// Records about this key or alias: id, alias/NAME or ARN
    #[arg(long, value_name = "KEY", conflicts_with = "verify")]
    key: Option<String>,
    /// Records of this user: name or ARN
    #[arg(long, value_name = "NAME", conflicts_with = "verify")]
    user: Option<String>,
    /// Records of this operation, such as Decrypt
    #[arg(long, value_name = "NAME", conflicts_with = "verify")]
    event: Option<String>,
    /// Check the whole trail
    #[arg(long)]
    verify: bool,
    /// Whole records, or the verdict, as JSON
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub fn run(self) -> Result<(), Failure> {
        if self.verify {
            return self.verify();
        }
        let since = match &self.since {
            Some(text) => Some(time::rfc3339(
                time::parse(text, wall()).map_err(|e| Failure::new(exit::USAGE, format!("--since: {e}")))?,
            )),
            None => None,
        };
        let filter = Filter { since, key: self.key, user: self.user, event: self.event };
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        verify::read(&self.place.directory, &filter, |line, record| {
            use std::io::Write;
            // Nobody reads on: no error, and no more either.
            if self.json {
                out.write_all(line).and_then(|()| out.write_all(b"\n")).is_ok()
            } else {
                writeln!(out, "{}", printable(told(record).as_bytes())).is_ok()
            }
        })?;
        Ok(())
    }

    fn verify(self) -> Result<(), Failure> {
        let answer = self.place.ask(Request::VerifyTrail {})?;
        let verdict: Verdict = serde_json::from_value(answer.clone())
            .map_err(|e| Failure::new(exit::FAILURE, format!("the service's verdict cannot be read: {e}")))?;
        if self.json {
            say(super::pretty(&answer));
        } else {
            say(format_args!("{} records are as they were written.", verdict.records));
            say(format_args!("The last: {}, hash {}", verdict.sequence, verdict.hash));
        }
        if verdict.problems.is_empty() {
            return Ok(());
        }
        for problem in &verdict.problems {
            note(problem);
        }
        Err(Failure::new(exit::DAMAGE, "the audit trail is not as it was written"))
    }
}

/// A record on one line for people.
fn told(record: &Value) -> String {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let who = match (text("/userIdentity/userName"), text("/userIdentity/type")) {
        ("", "Root") if record.pointer("/userIdentity/invokedBy").is_some() => "root (directory)",
        ("", "Root") => "root",
        ("", "AWSService") => "(service)",
        ("", _) => "(unknown)",
        (name, _) => name,
    };
    let outcome = match text("/errorCode") {
        "" => "ok",
        code => code,
    };
    let resources = record.get("resources").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> =
        resources.filter_map(|r| r.get("ARN")?.as_str()?.rsplit_once(':').map(|(_, name)| name)).collect();
    let context = match record.pointer("/requestParameters/encryptionContext") {
        Some(context) => format!(" {context}"),
        None => String::new(),
    };
    format!(
        "{} {:20} {:28} {:24} {} {}{context}",
        text("/eventTime"),
        who,
        text("/eventName"),
        outcome,
        text("/sourceIPAddress"),
        names.join(" ")
    )
}
