//! `envelopefs status`: how a mount stands, for people and for programs. Reads the daemon's answer; decides nothing but the exit
//! code.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Failure, exit, say};
use crate::mount::control::{self, Request};
use crate::mount::{kernel, printable};

/// Show how a mount stands: its CMKs, the keys in memory, the options in force
///
/// Answers also while the mount or a KMS hangs. Exit code 0: every CMK may be used; 4: one or more are refused or cannot be
/// reached; 5: no such mount, or its process does not answer.
#[derive(Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    mountpoint: PathBuf,
}

impl Status {
    pub fn run(self) -> Result<(), Failure> {
        let entry = kernel::find(&self.mountpoint).map_err(|e| Failure::new(exit::MOUNTPOINT, e))?;
        let status = control::ask(&entry, &Request::Status {})?;
        if self.json {
            say(serde_json::to_string_pretty(&status).unwrap_or_default());
        } else {
            let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            say(render(&status, colours).trim_end());
        }
        match text(&status, "mode").as_str() {
            "normal" => Ok(()),
            // All has been said.
            _ => Err(Failure::new(exit::KEY, "")),
        }
    }
}

/// A member as text that cannot drive the terminal; empty where it is missing.
fn text(of: &Value, member: &str) -> String {
    match &of[member] {
        Value::String(text) => printable(text.as_bytes()),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn list<'v>(of: &'v Value, member: &str) -> &'v [Value] {
    of[member].as_array().map_or(&[], Vec::as_slice)
}

/// Whole seconds as people read them, the two largest units.
fn time(seconds: &Value) -> String {
    let seconds = seconds.as_f64().unwrap_or(0.0).max(0.0);
    let whole = Duration::try_from_secs_f64(seconds.floor()).unwrap_or_default();
    let shown = humantime::format_duration(whole).to_string();
    shown.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn render(status: &Value, colours: bool) -> String {
    let mut out = String::new();
    let mode = text(status, "mode");
    let (on, off) = match (colours, mode.as_str()) {
        (false, _) => ("", ""),
        (true, "normal") => ("\x1b[32m", "\x1b[0m"),
        (true, "degraded") => ("\x1b[33m", "\x1b[0m"),
        (true, _) => ("\x1b[1;31m", "\x1b[0m"),
    };
    // Writing to a String cannot fail.
    let _ =
        writeln!(out, "{}  {on}{}{off}: {}", text(status, "mountpoint"), mode.to_uppercase(), text(status, "summary"));
    let access = if status["read_only"] == Value::Bool(true) { "read-only" } else { "read-write" };
    let options: Vec<String> = match &status["options"] {
        Value::Object(map) => map.keys().map(|name| format!("{name}={}", text(&status["options"], name))).collect(),
        _ => Vec::new(),
    };
    let uncommitted = if status["uncommitted"] == Value::Bool(true) { ", commit due" } else { "" };
    let memory = &status["key_memory"];
    let kib = memory["bytes"].as_u64().unwrap_or(0) / 1024;
    let kind = match (&memory["hidden"], &memory["locked"]) {
        (Value::Bool(true), _) => "locked and hidden",
        (_, Value::Bool(true)) => "locked",
        _ => "NOT LOCKED, may reach swap",
    };
    for (name, value) in [
        ("encrypted in", text(status, "cipherdir")),
        ("volume", text(status, "volume_id")),
        ("process", format!("{}, up {}, {access}{uncommitted}", text(status, "pid"), time(&status["uptime_seconds"]))),
        ("options", options.join(" ")),
        ("key memory", format!("{kib} KiB, {kind}")),
    ] {
        let _ = writeln!(out, "  {name:<14}{value}");
    }
    for cmk in list(status, "cmks") {
        cmk_lines(&mut out, cmk);
    }
    let cached = list(status, "cached_keys");
    let _ = writeln!(out, "\nBranch keys in memory: {}", cached.len());
    for key in cached.iter().take(SHOWN) {
        let age = time(&key["age_seconds"]);
        let _ = writeln!(out, "  {}  {age} old, through {}", text(key, "branch"), text(key, "cmk"));
    }
    if cached.len() > SHOWN {
        let _ = writeln!(out, "  and {} more (--json lists all)", cached.len() - SHOWN);
    }
    out
}

/// Branch keys listed for people.
const SHOWN: usize = 10;

fn cmk_lines(out: &mut String, cmk: &Value) {
    let state = text(cmk, "state");
    let dropped = match text(cmk, "dropped").as_str() {
        "" => String::new(),
        why => format!(", its keys are dropped ({why})"),
    };
    let _ = writeln!(out, "\nCMK {}:{}", text(cmk, "provider"), text(cmk, "key"));
    let _ = writeln!(
        out,
        "  {:<14}{}{dropped}; known to be usable {} ago, asked again in {}",
        "state",
        state.to_uppercase(),
        time(&cmk["confirmed_seconds_ago"]),
        time(&cmk["next_check_in_seconds"]),
    );
    let reason = text(cmk, "reason");
    if !reason.is_empty() {
        let _ = writeln!(out, "  {:<14}{reason}", "why");
    }
    let success = text(cmk, "last_success");
    let _ = writeln!(out, "  {:<14}{}", "last success", if success.is_empty() { "none yet" } else { &success });
    let error = &cmk["last_error"];
    if error.is_object() {
        let _ = writeln!(out, "  {:<14}{}  {}", "last error", text(error, "at"), text(error, "text"));
    }
    for kind in ["generate", "wrap", "unwrap", "describe"] {
        let calls = &cmk[kind];
        if calls["calls"].as_u64().unwrap_or(0) > 0 {
            let ms = |member: &str| calls[member].as_f64().unwrap_or(0.0);
            let _ = writeln!(
                out,
                "  {kind:<14}{} calls, {} failed, {:.1} ms on average, {:.1} ms at most",
                text(calls, "calls"),
                text(calls, "failures"),
                ms("mean_ms"),
                ms("max_ms")
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_operator_reads() {
        let none = json!({ "calls": 0, "failures": 0, "mean_ms": 0.0, "max_ms": 0.0 });
        let status = json!({
            "version": 1, "mountpoint": "/srv/data", "cipherdir": "/srv/cipher", "volume_id": "00ff", "pid": 4711,
            "uptime_seconds": 3723, "read_only": false, "mode": "degraded", "summary": "1 of 2 CMKs unreachable",
            "uncommitted": true, "key_memory": { "bytes": 65536, "locked": true, "hidden": true }, "options": { "commit": "5s", "revoke": "any" },
            "cmks": [{
                "provider": "awskms", "key": "arn:x\u{1b}[2J", "state": "unreachable", "reason": "timed out",
                "confirmed_seconds_ago": 61.4, "next_check_in_seconds": 3.9,
                "last_error": { "at": "2026-01-01T00:00:00Z", "text": "no answer" },
                "generate": none, "wrap": none, "describe": none,
                "unwrap": { "calls": 3, "failures": 1, "mean_ms": 12.34, "max_ms": 30.0 },
            }],
            "cached_keys": [{ "branch": "ab", "cmk": "awskms:arn:x", "age_seconds": 5 }],
        });
        let expected = "\
/srv/data  DEGRADED: 1 of 2 CMKs unreachable
  encrypted in  /srv/cipher
  volume        00ff
  process       4711, up 1h 2m, read-write, commit due
  options       commit=5s revoke=any
  key memory    64 KiB, locked and hidden

CMK awskms:arn:x\\u{1b}[2J
  state         UNREACHABLE; known to be usable 1m 1s ago, asked again in 3s
  why           timed out
  last success  none yet
  last error    2026-01-01T00:00:00Z  no answer
  unwrap        3 calls, 1 failed, 12.3 ms on average, 30.0 ms at most

Branch keys in memory: 1
  ab  5s old, through awskms:arn:x
";
        assert_eq!(render(&status, false), expected);
        assert!(render(&status, true).starts_with("/srv/data  \x1b[33mDEGRADED\x1b[0m: 1 of"));
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        assert!(render(&json!({}), false).contains("Branch keys in memory: 0"));
        let odd = json!({ "cmks": [7, null], "cached_keys": "x", "options": [], "uptime_seconds": -1 });
        assert!(render(&odd, false).contains("CMK :"));
    }
}
