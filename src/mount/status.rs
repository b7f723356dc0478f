//! How a mount stands, as `envelopefs status --json` prints it. Only looks at what is in memory: it must answer also where the
//! storage below or a KMS hangs. Members are added only; what one means never changes without another version.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::Serialize;

use super::mounted::Mounted;
use crate::config::shown;
use crate::keys::guard::{CmkStatus, Revoke};
use crate::keys::keyring::KeyringStatus;
use crate::sys::locked;

/// Of the JSON object.
pub const VERSION: u32 = 1;

/// Memory set aside for keys.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct KeyMemory {
    pub bytes: usize,
    /// None of it can reach swap.
    pub locked: bool,
    /// None of it can be read from outside the process (memfd_secret(2)).
    pub hidden: bool,
}

impl KeyMemory {
    fn now() -> Self {
        let locked::Usage { bytes, locked, hidden } = locked::usage();
        Self { bytes, locked, hidden }
    }
}

#[derive(Debug, Serialize)]
pub struct Status {
    pub version: u32,
    pub mountpoint: String,
    pub cipherdir: String,
    /// `major:minor` of st_dev.
    pub device: String,
    pub volume_id: String,
    pub pid: u32,
    pub started: String,
    pub uptime_seconds: u64,
    pub read_only: bool,
    pub mode: Mode,
    /// The mode in a few words.
    pub summary: String,
    /// Data that the next background commit makes durable.
    pub uncommitted: bool,
    pub key_memory: KeyMemory,
    /// The options in force that concern keys and durability, as they are typed.
    pub options: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    pub keys: KeyringStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every CMK may be used, as far as is known.
    Normal,
    /// One or more cannot be reached, or refuse.
    Degraded,
    /// The keys of all of them are dropped (with `revoke=primary`: the first one's): no file can be read.
    Revoked,
}

pub fn of(mounted: &Mounted) -> Status {
    let options = &mounted.options;
    let keys = mounted.keyring().status();
    let (mode, summary) = judge(&keys.cmks, options.outage.revoke);
    let policy = options.outage;
    let words = [
        ("commit", shown(options.commit)),
        ("kms_deadline", shown(policy.deadline)),
        ("kms_revalidate", shown(policy.revalidate)),
        ("kms_max_stale", policy.max_stale.map_or("off".into(), shown)),
        ("revoke", if policy.revoke == Revoke::Any { "any" } else { "primary" }.into()),
        ("metadata_timeout", options.metadata_timeout.map_or("unlimited".into(), shown)),
    ];
    Status {
        version: VERSION,
        mountpoint: mounted.mountpoint.display().to_string(),
        cipherdir: mounted.dir.path().display().to_string(),
        device: format!("{}:{}", mounted.device.0, mounted.device.1),
        volume_id: HEXLOWER.encode(&mounted.keyring().volume_id()),
        pid: std::process::id(),
        started: humantime::format_rfc3339_seconds(mounted.since.1).to_string(),
        uptime_seconds: mounted.since.0.elapsed().as_secs(),
        read_only: options.read_only,
        mode,
        summary,
        uncommitted: mounted.fs.needs_commit(),
        key_memory: KeyMemory::now(),
        options: words.into(),
        keys,
    }
}

fn judge(cmks: &[CmkStatus], revoke: Revoke) -> (Mode, String) {
    let dropped = |cmk: &&CmkStatus| cmk.dropped.is_some();
    let all = cmks.len();
    let count = |state: &str| cmks.iter().filter(|cmk| cmk.state == state).count();
    let (refused, unreachable) = (count("refused"), count("unreachable"));
    let primary = cmks.first().filter(|cmk| revoke == Revoke::Primary && cmk.dropped == Some("revoked"));
    if primary.is_some() && all > 1 {
        return (Mode::Revoked, "the first CMK refuses, and revoke=primary is set: keys are dropped".into());
    }
    let mut parts = Vec::new();
    for (n, what) in [(refused, "refused"), (unreachable, "unreachable")] {
        match n {
            0 => {}
            _ if all == 1 => parts.push(format!("the CMK is {what}")),
            n => parts.push(format!("{n} of {all} CMKs {what}")),
        }
    }
    let lost = cmks.iter().filter(dropped).count();
    if lost > 0 {
        parts.push(if lost == all { "keys are dropped".into() } else { format!("keys of {lost} are dropped") });
    }
    let mode = match () {
        () if all > 0 && lost == all => Mode::Revoked,
        () if parts.is_empty() => Mode::Normal,
        () => Mode::Degraded,
    };
    (mode, if parts.is_empty() { "every CMK may be used".into() } else { parts.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::guard::Calls;

    fn cmk(state: &'static str, dropped: Option<&'static str>) -> CmkStatus {
        CmkStatus {
            provider: "test".into(),
            key: "key".into(),
            state,
            reason: None,
            dropped,
            confirmed_seconds_ago: 0.0,
            next_check_in_seconds: 0.0,
            last_success: None,
            last_error: None,
            generate: Calls::default(),
            wrap: Calls::default(),
            unwrap: Calls::default(),
            describe: Calls::default(),
        }
    }

    #[test]
    fn the_mode_tells_what_can_be_read() {
        let up = || cmk("usable", None);
        let down = || cmk("unreachable", None);
        let gone = || cmk("refused", Some("revoked"));
        let any = |cmks: &[CmkStatus]| {
            let (mode, summary) = judge(cmks, Revoke::Any);
            (mode, summary)
        };
        assert_eq!(any(&[up(), up()]), (Mode::Normal, "every CMK may be used".into()));
        assert_eq!(any(&[down()]), (Mode::Degraded, "the CMK is unreachable".into()));
        assert_eq!(any(&[down(), up()]), (Mode::Degraded, "1 of 2 CMKs unreachable".into()));
        assert_eq!(any(&[gone(), up()]), (Mode::Degraded, "1 of 2 CMKs refused, keys of 1 are dropped".into()));
        assert_eq!(any(&[gone()]), (Mode::Revoked, "the CMK is refused, keys are dropped".into()));
        let stale = cmk("unreachable", Some("stale"));
        let (mode, summary) = any(&[gone(), stale]);
        assert_eq!(mode, Mode::Revoked);
        assert_eq!(summary, "1 of 2 CMKs refused, 1 of 2 CMKs unreachable, keys are dropped");
        assert_eq!(judge(&[gone(), up()], Revoke::Primary).0, Mode::Revoked);
        assert_eq!(judge(&[up(), gone()], Revoke::Primary).0, Mode::Degraded);
    }
}
