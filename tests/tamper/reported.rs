//! `envelopefs check` on a volume of the corpus: exactly what it tells, by code, path and block; and that a repair leaves what it
//! must and takes nothing away that a mount served. Knows the program by its JSON.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::*;
use crate::scene::{Scene, direct};

/// Code, path in the mount where the name opens, first and last block where blocks are concerned.
pub type Finding = (String, Option<String>, Option<(u64, u64)>);

pub fn whole(code: &str, path: &str) -> Finding {
    (code.into(), Some(path.into()), None)
}
pub fn blocks(code: &str, path: &str, first: u64, last: u64) -> Finding {
    (code.into(), Some(path.into()), Some((first, last)))
}
pub fn hidden(code: &str) -> Finding {
    (code.into(), None, None)
}

/// What a full check prints, after its exit code was held to its findings.
fn check(volume: &Volume, cipher: &Path, options: &[&str]) -> Vec<Value> {
    let words = ["check", "--json"].into_iter().chain(options.iter().copied()).map(AsRef::as_ref);
    let output = volume.run(words.chain([cipher.as_os_str()]).collect::<Vec<_>>());
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let problems = value["problems"].as_array().unwrap().clone();
    let any = |severity: &str| problems.iter().any(|problem| problem["severity"] == severity);
    let exit = match () {
        () if any("damage") => 7,
        () if problems.iter().any(|problem| problem["code"] == "key") => 4,
        () if any("unchecked") => 1,
        () => 0,
    };
    assert_eq!(output.status.code(), Some(exit), "{value:#}");
    assert_eq!(value["counts"]["repairs_failed"], 0, "{value:#}");
    problems
}

fn findings(problems: &[Value]) -> Vec<Finding> {
    let finding = |problem: &Value| {
        let blocks = problem["first_block"].as_u64().map(|first| (first, problem["last_block"].as_u64().unwrap()));
        (problem["code"].as_str().unwrap().into(), problem["path"].as_str().map(str::to_owned), blocks)
    };
    let mut findings: Vec<Finding> = problems.iter().map(finding).collect();
    findings.sort();
    findings
}

/// Everything that a mount serves, block by block: a directory, a link's target, a piece of a file.
fn served(mount: &Mount) -> BTreeMap<(PathBuf, u64), Vec<u8>> {
    const BLOCKS_MAX: u64 = 64;
    let mut all = BTreeMap::new();
    let mut pending = vec![mount.path.clone()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) else { continue };
        let named = |path: &Path| path.strip_prefix(&mount.path).unwrap().to_owned();
        all.insert((named(&dir), 0), Vec::new());
        for path in entries.into_iter().map(|entry| entry.path()) {
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            if found.is_dir() {
                pending.push(path);
            } else if found.is_symlink() {
                if let Ok(target) = fs::read_link(&path) {
                    all.insert((named(&path), 0), target.into_os_string().into_encoded_bytes());
                }
            } else if found.is_file()
                && let Ok(open) = direct(&path)
            {
                for block in 0..found.size().div_ceil(PLAIN).min(BLOCKS_MAX) {
                    let mut bytes = vec![0; PLAIN as usize];
                    if let Ok(len) = open.read_at(&mut bytes, block * PLAIN) {
                        bytes.truncate(len);
                        all.insert((named(&path), block + 1), bytes);
                    }
                }
                all.insert((named(&path), 0), found.size().to_le_bytes().to_vec());
            }
        }
    }
    all
}

impl Scene {
    /// What a check of the unmounted volume tells.
    pub fn reported(&self) -> Vec<Finding> {
        findings(&check(&self.volume, &self.volume.cipher, &[]))
    }

    /// It tells exactly `want`, and `left` of a copy after it was repaired, where everything is that was served before.
    #[track_caller]
    pub fn assert_reported(&self, want: &[Finding], left: &[Finding]) {
        let sorted = |findings: &[Finding]| {
            let mut sorted = findings.to_vec();
            sorted.sort();
            sorted
        };
        assert_eq!(self.reported(), sorted(want));
        let (copy, mountpoint) = (self.volume.scratch().join("repaired"), self.volume.scratch().join("repaired-mnt"));
        tool("cp", &["-a".as_ref(), "--sparse=always".as_ref(), self.volume.cipher.as_os_str(), copy.as_os_str()]);
        let told = check(&self.volume, &copy, &["--repair", "--yes"]);
        assert_eq!(findings(&told), sorted(want), "a repair finds the same");
        assert_eq!(findings(&check(&self.volume, &copy, &[])), sorted(left), "after {told:#?}");
        let mount = self.volume.mount_with(&["ro"]);
        let before = served(&mount);
        mount.unmount();
        fs::create_dir(&mountpoint).unwrap();
        let mount = self.volume.mount_other(&copy, &mountpoint);
        let after = served(&mount);
        mount.unmount();
        for (what, bytes) in before {
            assert!(after.get(&what) == Some(&bytes), "{what:?} was served before the repair: {told:#?}");
        }
        fs::remove_dir(&mountpoint).unwrap();
        fs::remove_dir_all(&copy).unwrap();
    }

    /// It tells this, and no repair changes that.
    #[track_caller]
    pub fn assert_lasting(&self, want: &[Finding]) {
        self.assert_reported(want, want);
    }
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_lasting(&[]);
    }
}
