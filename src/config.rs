//! Options from text to types: `-o` words, their `--word` forms and their defaults. Knows no files.

use std::time::Duration;

use crate::keys::guard::{OutagePolicy, Revoke};

/// Whether a word takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// `word`
    None,
    /// `word=VALUE`; the text names the value in help.
    Required(&'static str),
    /// `word` or `word=VALUE`.
    Optional(&'static str),
}

/// What a word does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    ReadOnly(bool),
    AllowOther(bool),
    Suid(bool),
    Dev(bool),
    Exec(bool),
    NoAtime(bool),
    Sync(bool),
    DirSync,
    AutoUnmount,
    /// Always in force, or of no effect here: accepted because fstab lines and mount(8) carry them.
    Accepted,
    Commit,
    Cmk,
    TrustFirstUse,
    MetadataTimeout,
    KmsDeadline,
    KmsRevalidate,
    KmsMaxStale,
    WaitForKms,
    Revoke,
}

/// One mount option. The table below is the only list: parser, command line, help and error messages come from it.
#[derive(Debug)]
pub struct Word {
    pub name: &'static str,
    pub value: Value,
    /// Empty for words that are not worth a line of help.
    pub help: &'static str,
    meaning: Meaning,
}

const fn flag(name: &'static str, meaning: Meaning, help: &'static str) -> Word {
    Word { name, value: Value::None, help, meaning }
}

const fn valued(name: &'static str, value: &'static str, meaning: Meaning, help: &'static str) -> Word {
    Word { name, value: Value::Required(value), help, meaning }
}

/// Every word that a mount takes, each as `-o word` and as `--word`.
pub const WORDS: &[Word] = &[
    flag("ro", Meaning::ReadOnly(true), "Mount read-only; several read-only mounts may share a volume"),
    flag("rw", Meaning::ReadOnly(false), "Mount read-write (default)"),
    flag("allow_other", Meaning::AllowOther(true), "Let every user in, as owners and modes decide (default for root)"),
    flag("noallow_other", Meaning::AllowOther(false), "Let only the mounting user in (default for others than root)"),
    flag("suid", Meaning::Suid(true), "Honour set-user-id and set-group-id bits (root only)"),
    flag("nosuid", Meaning::Suid(false), "Ignore them (default)"),
    flag("dev", Meaning::Dev(true), "Honour device nodes (root only)"),
    flag("nodev", Meaning::Dev(false), "Ignore them (default)"),
    flag("exec", Meaning::Exec(true), "Allow programs to be run (default)"),
    flag("noexec", Meaning::Exec(false), "Forbid it"),
    flag("noatime", Meaning::NoAtime(true), "Do not update access times"),
    flag("atime", Meaning::NoAtime(false), ""),
    flag("relatime", Meaning::NoAtime(false), "Update access times as the backing file system does (default)"),
    flag("strictatime", Meaning::NoAtime(false), ""),
    flag("sync", Meaning::Sync(true), "Write everything through to the disk before calls return"),
    flag("async", Meaning::Sync(false), ""),
    flag("dirsync", Meaning::DirSync, "Make changes of directories durable before calls return"),
    flag("auto_unmount", Meaning::AutoUnmount, "Unmount when the process dies (through fusermount3)"),
    flag("default_permissions", Meaning::Accepted, "Always in force: the kernel checks owners, modes and ACLs"),
    valued("commit", "SECONDS", Meaning::Commit, "Interval of the background commit [default: 5]"),
    valued("cmk", "URI", Meaning::Cmk, "A CMK to trust for this volume; may be repeated"),
    flag("trust_first_use", Meaning::TrustFirstUse, "Trust the CMKs that the volume itself names, and record them"),
    valued(
        "metadata_timeout",
        "SECONDS",
        Meaning::MetadataTimeout,
        "How long the kernel keeps names and attributes [default: as long as it likes]",
    ),
    valued(
        "kms_deadline",
        "DURATION",
        Meaning::KmsDeadline,
        "Longest time of a whole operation on a KMS [default: 5s]",
    ),
    valued(
        "kms_revalidate",
        "DURATION",
        Meaning::KmsRevalidate,
        "A CMK is asked at least this often whether it may still be used [default: 5m]",
    ),
    valued(
        "kms_max_stale",
        "DURATION|off",
        Meaning::KmsMaxStale,
        "Drop the keys of a CMK that nobody could ask for this long [default: off]",
    ),
    Word {
        name: "wait_for_kms",
        value: Value::Optional("DURATION"),
        help: "Where no CMK can be reached at mount, wait for one: for ever, or this long [default: fail]",
        meaning: Meaning::WaitForKms,
    },
    valued(
        "revoke",
        "any|primary",
        Meaning::Revoke,
        "Keys go when every CMK of a file refuses (any), or already when the first-listed one does [default: any]",
    ),
    flag("defaults", Meaning::Accepted, ""),
    flag("nodiratime", Meaning::Accepted, ""),
    flag("diratime", Meaning::Accepted, ""),
    flag("norelatime", Meaning::Accepted, ""),
    flag("lazytime", Meaning::Accepted, ""),
    flag("nolazytime", Meaning::Accepted, ""),
    flag("silent", Meaning::Accepted, ""),
    flag("loud", Meaning::Accepted, ""),
];

/// Words for mount(8) and its helpers, which are not for us (mount(8), "filesystem-independent mount options").
const FOR_MOUNT: &[&str] =
    &["_netdev", "nofail", "noauto", "auto", "user", "nouser", "users", "owner", "noowner", "group", "nogroup"];

/// Words that decide how a volume is made.
const AT_INIT: &[&str] = &["key_mode", "branch_max_age", "branch_max_files", "header_pages", "plaintext_names"];

/// Words of the design that this version does not have. Accepting them would promise what does not happen.
const NOT_YET: &[&str] = &["strict_pages"];

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// What `kms_deadline`, `kms_revalidate` and `kms_max_stale` may be at most.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
const REVALIDATE_MAX: Duration = Duration::from_secs(24 * 3600);
const MAX_STALE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The default interval of the background commit.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// What a mount does when no CMK can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitForKms {
    /// Fail within the deadline.
    #[default]
    No,
    Forever,
    AtMost(Duration),
}

/// A mount's options, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    pub read_only: bool,
    /// `None`: root lets others in, other users do not.
    pub allow_other: Option<bool>,
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    pub noatime: bool,
    pub sync: bool,
    pub dirsync: bool,
    pub auto_unmount: bool,
    pub commit: Duration,
    /// CMK URIs as given.
    pub cmks: Vec<String>,
    pub trust_first_use: bool,
    /// `None`: as long as the kernel likes (the mount is exclusive).
    pub metadata_timeout: Option<Duration>,
    pub outage: OutagePolicy,
    pub wait_for_kms: WaitForKms,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: None,
            suid: false,
            dev: false,
            exec: true,
            noatime: false,
            sync: false,
            dirsync: false,
            auto_unmount: false,
            commit: COMMIT_INTERVAL,
            cmks: Vec::new(),
            trust_first_use: false,
            metadata_timeout: None,
            outage: OutagePolicy::default(),
            wait_for_kms: WaitForKms::default(),
        }
    }
}

/// What is wrong with an option; the text names the option and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(String);

impl MountOptions {
    /// One `-o` argument: words separated by commas, later ones win. A comma inside a value is written `\,`.
    pub fn parse(&mut self, list: &str) -> Result<(), OptionError> {
        for word in split_list(list) {
            if !word.is_empty() {
                self.apply(&word)?;
            }
        }
        Ok(())
    }

    /// One word, `name` or `name=value`.
    pub fn apply(&mut self, word: &str) -> Result<(), OptionError> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        if let Some(known) = WORDS.iter().find(|known| known.name == name) {
            return self.set(known, value);
        }
        if is_for_mount(name) {
            return Ok(());
        }
        if AT_INIT.contains(&name) {
            let option = name.replace('_', "-");
            return Err(OptionError(format!(
                "option {name} is fixed when a volume is made: envelopefs init --{option} …"
            )));
        }
        if NOT_YET.contains(&name) {
            return Err(OptionError(format!("option {name} is not in this version")));
        }
        let known: Vec<&str> = WORDS.iter().filter(|w| !w.help.is_empty()).map(|w| w.name).collect();
        Err(OptionError(format!("unknown option {name:?}; known: {}", known.join(", "))))
    }

    fn set(&mut self, word: &Word, value: Option<&str>) -> Result<(), OptionError> {
        let name = word.name;
        let value = match (word.value, value) {
            (Value::None, None) => "",
            (Value::None, Some(_)) => return Err(OptionError(format!("option {name} takes no value"))),
            (Value::Required(what), None | Some("")) => {
                return Err(OptionError(format!("option {name} needs a value: {name}={what}")));
            }
            (Value::Optional(what), Some("")) => {
                return Err(OptionError(format!("option {name}= has no value: {name}, or {name}={what}")));
            }
            (Value::Optional(_), None) => "",
            (Value::Required(_) | Value::Optional(_), Some(value)) => value,
        };
        match word.meaning {
            Meaning::ReadOnly(yes) => self.read_only = yes,
            Meaning::AllowOther(yes) => self.allow_other = Some(yes),
            Meaning::Suid(yes) => self.suid = yes,
            Meaning::Dev(yes) => self.dev = yes,
            Meaning::Exec(yes) => self.exec = yes,
            Meaning::NoAtime(yes) => self.noatime = yes,
            Meaning::Sync(yes) => self.sync = yes,
            Meaning::DirSync => self.dirsync = true,
            Meaning::AutoUnmount => self.auto_unmount = true,
            Meaning::Accepted => {}
            Meaning::Commit => {
                self.commit = bounded(name, value, SECOND..=HOUR, "between 1 second and 1 hour")?;
            }
            Meaning::Cmk => self.cmks.push(value.to_string()),
            Meaning::TrustFirstUse => self.trust_first_use = true,
            Meaning::MetadataTimeout => self.metadata_timeout = Some(duration(name, value)?),
            Meaning::KmsDeadline => {
                let limits = Duration::from_millis(1)..=DEADLINE_MAX;
                self.outage.deadline = bounded(name, value, limits, "more than nothing, at most 10 minutes")?;
            }
            Meaning::KmsRevalidate => {
                let limits = SECOND..=REVALIDATE_MAX;
                self.outage.revalidate = bounded(name, value, limits, "between 1 second and 1 day")?;
            }
            Meaning::KmsMaxStale => {
                self.outage.max_stale = match value {
                    "off" => None,
                    _ => Some(bounded(name, value, SECOND..=MAX_STALE_MAX, "off, or between 1 second and 1 year")?),
                };
            }
            Meaning::WaitForKms => {
                self.wait_for_kms = match value {
                    "" => WaitForKms::Forever,
                    _ => WaitForKms::AtMost(duration(name, value)?),
                };
            }
            Meaning::Revoke => {
                self.outage.revoke = match value {
                    "any" => Revoke::Any,
                    "primary" => Revoke::Primary,
                    _ => return Err(OptionError(format!("option {name}={value}: any or primary"))),
                };
            }
        }
        Ok(())
    }

    /// What no single word can tell: whether they fit together. For the end of the command line.
    pub fn check(&self) -> Result<(), OptionError> {
        let OutagePolicy { deadline, revalidate, max_stale, .. } = self.outage;
        match max_stale {
            // A CMK that is up is asked only so often: a shorter limit would drop keys at the first call that fails.
            Some(stale) if stale < revalidate + deadline => Err(OptionError(format!(
                "option kms_max_stale={}: shorter than kms_revalidate and kms_deadline together ({})",
                shown(stale),
                shown(revalidate + deadline)
            ))),
            _ => Ok(()),
        }
    }
}

/// A duration as options are written: `5s`, `1h 30m`.
pub fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn bounded(
    name: &str,
    text: &str,
    limits: std::ops::RangeInclusive<Duration>,
    said: &str,
) -> Result<Duration, OptionError> {
    let value = duration(name, text)?;
    if limits.contains(&value) { Ok(value) } else { Err(OptionError(format!("option {name}={text}: {said}"))) }
}

fn is_for_mount(name: &str) -> bool {
    FOR_MOUNT.contains(&name) || name.starts_with("x-") || name.starts_with("X-") || name == "comment"
}

/// Splits at commas; `\,` is a comma and `\\` a backslash, as mount helpers of FUSE write them.
fn split_list(list: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' => words.push(String::new()),
            '\\' if matches!(chars.peek(), Some(',' | '\\')) => {
                // The peeked character itself.
                if let (Some(escaped), Some(word)) = (chars.next(), words.last_mut()) {
                    word.push(escaped);
                }
            }
            c => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
        }
    }
    words
}

/// Seconds (`5`, `0.5`) or a duration with units (`30d`, `1h 30m`).
fn duration(name: &str, text: &str) -> Result<Duration, OptionError> {
    parse_duration(text).map_err(|why| OptionError(format!("option {name}={text}: {why}")))
}

/// Seconds (`5`, `0.5`) or a duration with units (`30d`, `1h 30m`).
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
        return Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string());
    }
    humantime::parse_duration(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, String> {
        let mut options = MountOptions::default();
        options.parse(list).and_then(|()| options.check()).map_err(|e| e.to_string())?;
        Ok(options)
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse("").unwrap(), MountOptions::default());
        assert_eq!(parse(",,").unwrap(), MountOptions::default());
    }

    #[test]
    fn the_last_word_wins() {
        assert!(parse("rw,ro").unwrap().read_only);
        assert!(!parse("ro,rw").unwrap().read_only);
        let options = parse("suid,dev,noexec,noatime,dirsync,sync,allow_other,commit=30").unwrap();
        assert!(options.suid && options.dev && !options.exec && options.noatime && options.dirsync && options.sync);
        assert_eq!((options.allow_other, options.commit), (Some(true), Duration::from_secs(30)));
        assert_eq!(parse("allow_other,noallow_other").unwrap().allow_other, Some(false));
    }

    #[test]
    fn words_for_mount_are_ignored() {
        let fstab = "defaults,_netdev,nofail,noauto,user=joe,x-systemd.automount,X-mount.mkdir,comment=hello,users";
        assert_eq!(parse(fstab).unwrap(), MountOptions::default());
    }

    #[test]
    fn values() {
        assert_eq!(parse("metadata_timeout=0").unwrap().metadata_timeout, Some(Duration::ZERO));
        assert_eq!(parse("metadata_timeout=0.5").unwrap().metadata_timeout, Some(Duration::from_millis(500)));
        assert_eq!(parse("commit=2m").unwrap().commit, Duration::from_secs(120));
        let cmks = parse(r"cmk=keyfile:///a\,b,cmk=keyfile:///c?key=d").unwrap().cmks;
        assert_eq!(cmks, ["keyfile:///a,b", "keyfile:///c?key=d"]);
        assert_eq!(parse(r"cmk=keyfile:a\\b\c").unwrap().cmks, [r"keyfile:a\b\c"]);
    }

    #[test]
    fn what_happens_when_a_kms_is_down_or_says_no() {
        assert_eq!(parse("").unwrap().outage, OutagePolicy::default());
        let outage = parse("kms_deadline=500ms,kms_revalidate=1m,kms_max_stale=2h,revoke=primary").unwrap().outage;
        let expected = OutagePolicy {
            deadline: Duration::from_millis(500),
            revalidate: Duration::from_secs(60),
            max_stale: Some(Duration::from_secs(7200)),
            revoke: Revoke::Primary,
        };
        assert_eq!(outage, expected);
        assert_eq!(parse("kms_max_stale=1h,kms_max_stale=off").unwrap().outage.max_stale, None);
        assert_eq!(parse("wait_for_kms").unwrap().wait_for_kms, WaitForKms::Forever);
        let waits = parse("wait_for_kms=90").unwrap().wait_for_kms;
        assert_eq!(waits, WaitForKms::AtMost(Duration::from_secs(90)));
    }

    #[test]
    fn every_complaint_says_what_to_do() {
        for (list, text) in [
            ("commit", "option commit needs a value: commit=SECONDS"),
            ("commit=", "option commit needs a value: commit=SECONDS"),
            ("commit=0", "option commit=0: between 1 second and 1 hour"),
            ("commit=99999999999999999999999", "option commit=99999999999999999999999: "),
            ("commit=x", "option commit=x: "),
            ("commit=1.2.3", "option commit=1.2.3: not a number of seconds"),
            ("ro=yes", "option ro takes no value"),
            ("header_pages=2", "option header_pages is fixed when a volume is made: envelopefs init --header-pages"),
            ("plaintext_names", "envelopefs init --plaintext-names"),
            ("kms_deadline=0", "option kms_deadline=0: more than nothing, at most 10 minutes"),
            ("kms_deadline=11m", "option kms_deadline=11m: more than nothing, at most 10 minutes"),
            ("kms_revalidate=100ms", "option kms_revalidate=100ms: between 1 second and 1 day"),
            ("kms_max_stale=never", "option kms_max_stale=never: "),
            ("kms_max_stale=2y", "option kms_max_stale=2y: off, or between 1 second and 1 year"),
            ("kms_max_stale=1m", "shorter than kms_revalidate and kms_deadline together (5m 5s)"),
            ("wait_for_kms=", "option wait_for_kms= has no value: wait_for_kms, or wait_for_kms=DURATION"),
            ("wait_for_kms=long", "option wait_for_kms=long: "),
            ("revoke=all", "option revoke=all: any or primary"),
            ("strict_pages", "option strict_pages is not in this version"),
            ("big_writes", "unknown option \"big_writes\"; known: ro, rw, allow_other,"),
        ] {
            let error = parse(list).expect_err(list);
            assert!(error.starts_with(text) || error.contains(text), "{list}: {error}");
        }
    }

    #[test]
    fn the_table_has_no_word_twice() {
        for (i, word) in WORDS.iter().enumerate() {
            assert!(WORDS[..i].iter().all(|other| other.name != word.name), "{}", word.name);
            assert!(!is_for_mount(word.name));
        }
    }
}
