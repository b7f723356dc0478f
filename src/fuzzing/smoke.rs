//! Every target in every test run: its corpus, and a few thousand inputs made of that by a fixed seed. The long, coverage-guided
//! run is tests/suites/fuzz.sh.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Target, find, targets};
use crate::sys::allocation::peak_of;

/// Longest input that is made, in bytes.
const INPUT_MAX: usize = 16 * 1024;
/// What one input may allocate at most at a time, in bytes.
const MEMORY_MAX: usize = 32 << 20;
/// No input takes longer: a loaded machine included.
const TIME_MAX: Duration = Duration::from_secs(20);

fn fuzz_dir(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(of)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let directory = fuzz_dir("corpus").join(target.name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no corpus", target.name);
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// The words in a dictionary of libFuzzer: `"text"` with `\xNN`, a line each.
fn dictionary(name: &str) -> Vec<Vec<u8>> {
    let Ok(text) = fs::read_to_string(fuzz_dir("dictionaries").join(format!("{name}.dict"))) else { return Vec::new() };
    let words = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    words.map(unescaped).collect()
}

fn unescaped(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = word;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else if let Some(digits) = rest.strip_prefix('x').and_then(|hex| hex.get(..2)) {
            out.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &rest[3..];
        } else {
            out.push(rest.as_bytes()[0]);
            rest = &rest[1..];
        }
    }
    out
}

/// xorshift64*: the same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n.max(1)
    }
}

fn mutated(random: &mut Random, corpus: &[Vec<u8>], words: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 => input.truncate(at),
            3 => input.insert(at, random.next() as u8),
            4 if at < input.len() => drop(input.drain(at..(at + 1 + random.below(16)).min(input.len()))),
            5 => {
                let piece = input[at..(at + 1 + random.below(64)).min(input.len())].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            6 => {
                let other = &corpus[random.below(corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            _ if !words.is_empty() => {
                let word = words[random.below(words.len())].clone();
                input.splice(at..at, word);
            }
            // Lengths and counts.
            _ => {
                let value = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u64::MAX][random.below(7)];
                for (to, from) in input[at..].iter_mut().zip(value.to_le_bytes()) {
                    *to = from;
                }
            }
        }
    }
    input.truncate(INPUT_MAX);
    input
}

fn run(target: &Target, input: &[u8]) {
    let start = Instant::now();
    let (outcome, bytes) = peak_of(|| catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    let shown = || data_encoding::HEXLOWER.encode(input);
    assert!(outcome.is_ok(), "{} breaks its promise on {}", target.name, shown());
    assert!(bytes <= MEMORY_MAX, "{} takes {bytes} bytes for {}", target.name, shown());
    assert!(start.elapsed() <= TIME_MAX, "{} takes {:?} for {}", target.name, start.elapsed(), shown());
}

fn smoke(name: &str, inputs: usize) {
    let target = find(name).unwrap_or_else(|| panic!("no target {name}"));
    let (corpus, words) = (corpus(&target), dictionary(name));
    corpus.iter().for_each(|input| run(&target, input));
    run(&target, b"");
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..inputs {
        run(&target, &mutated(&mut random, &corpus, &words));
    }
}

/// Everything but those that open connections, which have tests of their own.
#[test]
fn parsers() {
    for target in targets().iter().filter(|target| !target.name.ends_with("_answer")) {
        smoke(target.name, 2000);
    }
}

#[test]
fn answers_of_plugins() {
    smoke("k8s_answer", 2000);
}

#[test]
fn answers_of_vault() {
    alone("answers_of_vault", || smoke("vault_answer", 300));
}

#[test]
fn answers_of_aws() {
    alone("answers_of_aws", || smoke("aws_answer", 300));
}

/// Runs `test` in a process of its own, with nothing of this one's environment but credentials that open nothing.
fn alone(name: &str, test: impl FnOnce()) {
    const INSIDE: &str = "ENVELOPEFS_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("fuzzing::smoke::{name}"), "--nocapture"]).env_clear().env(INSIDE, "1");
    for (variable, value) in
        [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_EC2_METADATA_DISABLED", "true")]
    {
        command.env(variable, value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A name that nothing has would pass.
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
fn every_corpus_has_a_target() {
    for entry in fs::read_dir(fuzz_dir("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(find(&name).is_some(), "fuzz/corpus/{name}");
    }
}
