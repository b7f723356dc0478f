//! Looking for secrets in bytes, files and the memory of other processes, in every spelling they may have there.
//! Must not know whose secrets they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};

/// How much is read at a time.
const STEP: usize = 1 << 20;

/// What to look for: each secret in several spellings.
#[derive(Default)]
pub struct Needles {
    /// Label of the secret, its spelling, its bytes.
    all: Vec<(String, &'static str, Vec<u8>)>,
    /// Indices into `all` by the first two bytes.
    starts: BTreeMap<[u8; 2], Vec<usize>>,
    longest: usize,
}

impl Needles {
    /// At least 12 bytes, so that nothing is found by chance.
    pub fn add(&mut self, label: &str, secret: &[u8]) {
        assert!(secret.len() >= 12, "{label} is too short to search for");
        // HMAC works on keys xored with these bytes (RFC 2104): as good as the key itself.
        let xored = |pad: u8| secret.iter().map(|b| b ^ pad).collect::<Vec<u8>>();
        let listed = format!("{secret:?}");
        for (spelling, bytes) in [
            ("raw", secret.to_vec()),
            ("hex", HEXLOWER.encode(secret).into_bytes()),
            ("HEX", HEXUPPER.encode(secret).into_bytes()),
            ("as a list", listed.trim_matches(['[', ']']).as_bytes().to_vec()),
            ("HMAC's inner pad", xored(0x36)),
            ("HMAC's outer pad", xored(0x5c)),
        ] {
            self.push(label, spelling, bytes);
        }
        // base64 has three alignments: the middle of each encodes alike wherever it stands.
        for skip in 0..3 {
            let whole = (secret.len() - skip) / 3 * 3;
            let (standard, url) =
                (BASE64.encode(&secret[skip..skip + whole]), BASE64URL_NOPAD.encode(&secret[skip..skip + whole]));
            if standard != url {
                self.push(label, "base64url", url.into_bytes());
            }
            self.push(label, "base64", standard.into_bytes());
        }
    }
    fn push(&mut self, label: &str, spelling: &'static str, bytes: Vec<u8>) {
        self.longest = self.longest.max(bytes.len());
        self.starts.entry([bytes[0], bytes[1]]).or_default().push(self.all.len());
        self.all.push((label.to_owned(), spelling, bytes));
    }

    /// "label (spelling)" of all that stand in `haystack`.
    pub fn within(&self, haystack: &[u8]) -> BTreeSet<String> {
        let mut interesting = vec![false; 1 << 16];
        for start in self.starts.keys() {
            interesting[usize::from(u16::from_le_bytes(*start))] = true;
        }
        let mut found = BTreeSet::new();
        for (at, pair) in haystack.windows(2).enumerate() {
            if interesting[usize::from(u16::from_le_bytes([pair[0], pair[1]]))] {
                for (label, spelling, bytes) in self.starts[&[pair[0], pair[1]]].iter().map(|index| &self.all[*index]) {
                    if haystack[at..].starts_with(bytes) {
                        found.insert(format!("{label} ({spelling})"));
                    }
                }
            }
        }
        found
    }
    pub fn within_file(&self, path: &Path) -> BTreeSet<String> {
        let mut file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        let (mut found, mut window) = (BTreeSet::new(), Vec::new());
        let mut read = 0;
        while read < len {
            // What spans two steps is seen in the second.
            let keep = window.len().saturating_sub(self.longest);
            window.drain(..keep);
            read += file.by_ref().take(STEP as u64).read_to_end(&mut window).unwrap() as u64;
            found.extend(self.within(&window));
        }
        found
    }
    /// Of all the memory that the kernel lets us read. A process that runs may move things while we look.
    pub fn within_process(&self, pid: u32) -> Memory {
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let mut result = Memory::default();
        for mapping in mappings(pid) {
            if !mapping.permissions.starts_with('r')
                || ["[vvar]", "[vvar_vclock]", "[vsyscall]"].contains(&mapping.name.as_str())
            {
                continue;
            }
            let mut at = mapping.start;
            while at < mapping.end {
                let mut bytes = vec![0; (mapping.end - at).min((STEP + self.longest) as u64) as usize];
                match memory.read_exact_at(&mut bytes, at) {
                    Ok(()) => {
                        result.searched += bytes.len() as u64;
                        for what in self.within(&bytes) {
                            result.found.insert(what, mapping.clone());
                        }
                    }
                    Err(_) => {
                        result.unreadable.insert(mapping.name.clone());
                    }
                }
                at += STEP as u64;
            }
        }
        assert!(result.searched > 1 << 20, "only {} bytes of process {pid} could be read", result.searched);
        result
    }
}

/// What a search of a process's memory gave.
#[derive(Default)]
pub struct Memory {
    /// What was found, and (the last place) where.
    pub found: BTreeMap<String, Mapping>,
    /// Names of mappings that cannot be read from outside.
    pub unreadable: BTreeSet<String>,
    /// Bytes.
    pub searched: u64,
}

impl Memory {
    /// Labels of all that was found raw.
    pub fn raw(&self) -> BTreeSet<&str> {
        self.found.keys().filter_map(|what| what.strip_suffix(" (raw)")).collect()
    }
}

/// One line of /proc/PID/maps with the flags of /proc/PID/smaps.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub permissions: String,
    pub name: String,
    /// MADV_DONTDUMP: left out of core dumps.
    pub undumped: bool,
}

pub fn mappings(pid: u32) -> Vec<Mapping> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let parse = |hex| u64::from_str_radix(hex, 16).unwrap();
            all.push(Mapping {
                start: parse(start),
                end: parse(end),
                permissions: words.next().unwrap().to_owned(),
                name: words.nth(3).unwrap_or_default().to_owned(),
                undumped: false,
            });
        } else if first == "VmFlags:" {
            all.last_mut().unwrap().undumped = words.any(|flag| flag == "dd");
        }
    }
    all
}

#[test]
fn every_spelling_is_found_and_nothing_else() {
    let secret: Vec<u8> = (0..32).map(|i: u8| i.wrapping_mul(37) ^ 0xc3).collect();
    let mut needles = Needles::default();
    needles.add("key", &secret);
    assert!(needles.within(&crate::common::pattern(1, 3 << 20)).is_empty());
    let mut spellings = 0;
    for prefix in 0..3 {
        let padded = [&b"xyz"[..prefix], &secret, b"tail"].concat();
        for (text, expected) in [
            (padded.clone(), "key (raw)"),
            (HEXLOWER.encode(&padded).into_bytes(), "key (hex)"),
            (HEXUPPER.encode(&padded).into_bytes(), "key (HEX)"),
            (BASE64.encode(&padded).into_bytes(), "key (base64)"),
            (format!("{padded:?}").into_bytes(), "key (as a list)"),
        ] {
            assert!(needles.within(&text).contains(expected), "{expected} after {prefix} bytes");
            spellings += 1;
        }
    }
    assert_eq!(spellings, 15);
    // Across the border of two steps of a file.
    let directory = crate::common::scratch();
    let path = directory.path().join("file");
    for at in [STEP - 31, STEP - 1, 2 * STEP - 16] {
        let mut content = vec![0; 3 * STEP];
        content[at..at + 32].copy_from_slice(&secret);
        fs::write(&path, &content).unwrap();
        assert_eq!(needles.within_file(&path).into_iter().collect::<Vec<_>>(), ["key (raw)"]);
    }
}
