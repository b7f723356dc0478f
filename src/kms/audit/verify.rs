//! Reading the trail: every record in order, and whether any was altered, removed, put elsewhere or added. Writes nothing.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use data_encoding::HEXLOWER;
use serde_json::Value;

use super::lines::{self, Hash, NOTHING};
use super::trail::{directory, segments};
use crate::crypto::secret::Secret32;
use crate::kms::store::StoreError;
use crate::kms::store::records::TrailHead;

/// A line longer than this is no record, in bytes.
const LINE_MAX: usize = 4 << 20;

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// Records that are as they were written, in their places.
    pub records: u64,
    /// The last one's place and hash: worth writing down elsewhere, since whoever can put back the whole directory of yesterday
    /// can put back its trail too.
    pub sequence: u64,
    pub hash: String,
    pub problems: Vec<String>,
}

/// More problems than this are only counted.
const PROBLEMS_MAX: usize = 100;

struct Checker<'a> {
    key: &'a Secret32,
    expected: u64,
    previous: Hash,
    verdict: Verdict,
    more: u64,
    remembered: Option<(u64, Hash)>,
    head_seen: bool,
}

impl Checker<'_> {
    fn problem(&mut self, text: String) {
        if self.verdict.problems.len() < PROBLEMS_MAX {
            self.verdict.problems.push(text);
        } else {
            self.more += 1;
        }
    }

    fn line(&mut self, at: &str, line: &[u8]) {
        let Some((link, open)) = lines::read(line) else {
            self.problem(format!("{at}: not a record of the trail"));
            return;
        };
        if !lines::authentic(self.key, &link, open) {
            self.problem(format!("{at}: record {} was altered", link.sequence));
            // What follows is judged by what it says of itself.
            (self.expected, self.previous) = (link.sequence + 1, link.hash);
            return;
        }
        if link.sequence > self.expected {
            let (from, to) = (self.expected, link.sequence - 1);
            self.problem(format!("{at}: records {from} to {to} are missing before it"));
        } else if link.sequence < self.expected {
            self.problem(format!("{at}: record {} stands in a wrong place", link.sequence));
            return;
        } else if link.previous != self.previous {
            self.problem(format!("{at}: record {} does not follow the one before it", link.sequence));
        }
        self.verdict.records += 1;
        (self.expected, self.previous) = (link.sequence + 1, link.hash);
        if self.remembered == Some((link.sequence, link.hash)) {
            self.head_seen = true;
        }
    }
}

/// Checks the trail of `datadir` against its key and the head that the store remembers.
pub fn verify(datadir: &Path, key: &Secret32, head: &TrailHead) -> Result<Verdict, StoreError> {
    let hash = |hex: &str| -> Option<Hash> { HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok() };
    let mut checker = Checker {
        key,
        expected: head.base + 1,
        previous: hash(&head.base_hash).unwrap_or(NOTHING),
        verdict: Verdict { records: 0, sequence: 0, hash: String::new(), problems: Vec::new() },
        more: 0,
        remembered: hash(&head.hash).map(|hash| (head.sequence, hash)),
        head_seen: head.sequence == head.base,
    };
    for_each_line(datadir, |at, line| checker.line(at, line))?;
    if checker.expected <= head.sequence {
        let (from, to) = (checker.expected, head.sequence);
        checker.problem(format!("records {from} to {to} are missing at the end"));
    } else if !checker.head_seen {
        checker.problem(format!("record {} is not the one that the store remembers", head.sequence));
    }
    if checker.more > 0 {
        checker.verdict.problems.push(format!("and {} problems more", checker.more));
    }
    checker.verdict.sequence = checker.expected - 1;
    checker.verdict.hash = HEXLOWER.encode(&checker.previous);
    Ok(checker.verdict)
}

/// Every line, with the place where it stands.
fn for_each_line(datadir: &Path, mut each: impl FnMut(&str, &[u8])) -> Result<(), StoreError> {
    for (_, path) in segments(&directory(datadir))? {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&path).map_err(|e| StoreError::io(&path, e))?);
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_owned();
        let mut line = Vec::new();
        let mut number = 0u64;
        loop {
            line.clear();
            number += 1;
            let mut limited = std::io::Read::take(&mut reader, LINE_MAX as u64);
            let read = limited.read_until(b'\n', &mut line).map_err(|e| StoreError::io(&path, e))?;
            if read == 0 {
                break;
            }
            each(&format!("{name}:{number}"), line.strip_suffix(b"\n").unwrap_or(&line));
        }
    }
    Ok(())
}

/// Which records are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// RFC 3339 text of the earliest second.
    pub since: Option<String>,
    /// Part of a resource's ARN: a key id, an alias.
    pub key: Option<String>,
    pub user: Option<String>,
    pub event: Option<String>,
}

impl Filter {
    fn wants(&self, record: &Value) -> bool {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let late_enough = self.since.as_deref().is_none_or(|since| text("/eventTime") >= since);
        let of_key = self.key.as_deref().is_none_or(|key| {
            let resources = record.get("resources").and_then(Value::as_array).into_iter().flatten();
            let mut arns = resources.filter_map(|resource| resource.get("ARN")?.as_str());
            arns.any(|arn| {
                arn == key
                    || arn
                        .rsplit_once(':')
                        .is_some_and(|(_, name)| name == key || name.strip_prefix("key/") == Some(key))
            })
        });
        let by_user = self
            .user
            .as_deref()
            .is_none_or(|user| text("/userIdentity/userName") == user || text("/userIdentity/arn") == user);
        let named = self.event.as_deref().is_none_or(|event| text("/eventName") == event);
        late_enough && of_key && by_user && named
    }
}

/// Gives each wanted record to `each`, as it stands in the trail, until that says no. Needs no key and verifies nothing.
pub fn read(datadir: &Path, filter: &Filter, mut each: impl FnMut(&[u8], &Value) -> bool) -> Result<(), StoreError> {
    let mut going = true;
    for_each_line(datadir, |_, line| {
        if going
            && let Ok(record) = serde_json::from_slice::<Value>(line)
            && filter.wants(&record)
        {
            going = each(line, &record);
        }
    })
}
