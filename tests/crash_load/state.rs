//! What is kept outside the mount: the log of acknowledgements, and the state that each round started from.
//! Must not know operations.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use crate::operations::{Content, Model};

/// One line a message, each in one write(2): it counts when it stands where the log is kept.
/// `A WORKER N`: operation N is durable (0: the worker's directory). `E WORKER N …`: it failed, or the load did.
pub struct Log(File);
impl Log {
    /// `path`: a file that is appended to, or a device that takes lines out of a guest.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().append(true).create(true).open(path)?))
    }
    pub fn acknowledge(&self, worker: u8, number: u64) -> io::Result<()> {
        (&self.0).write_all(format!("A {worker} {number}\n").as_bytes())
    }
    pub fn failed(&self, worker: &str, number: u64, what: &str) {
        let _ = (&self.0).write_all(format!("E {worker} {number} {what}\n").as_bytes());
    }
}

/// The last operation that each worker got acknowledged. A line that was cut off does not count.
pub fn acknowledged(log: &Path) -> io::Result<BTreeMap<u8, u64>> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let mut last = BTreeMap::new();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.trim_end_matches('\r').split(' ');
        if words.next() != Some("A") {
            continue;
        }
        let (Some(Ok(worker)), Some(Ok(number))) = (words.next().map(str::parse), words.next().map(str::parse)) else {
            continue;
        };
        let known: &mut u64 = last.entry(worker).or_default();
        *known = (*known).max(number);
    }
    Ok(last)
}

/// The state of `worker` at the start of the round; `None` where it has never run.
pub fn load(state: &Path, worker: u8) -> io::Result<Option<Model>> {
    let bytes = match fs::read(state.join(format!("w{worker}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    decode(&bytes).map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "state file is damaged"))
}
pub fn save(state: &Path, worker: u8, model: &Model) -> io::Result<()> {
    let (path, new) = (state.join(format!("w{worker}")), state.join(format!("w{worker}.new")));
    let mut file = File::create(&new)?;
    file.write_all(&encode(model))?;
    file.sync_all()?;
    fs::rename(new, path)
}

fn encode(model: &Model) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    out.push(model.files.len() as u8);
    for (name, content) in &model.files {
        out.push(*name);
        out.extend(content.mode.to_le_bytes());
        bytes(&mut out, &content.bytes);
        out.push(content.attributes.len() as u8);
        for (key, value) in &content.attributes {
            out.push(*key);
            bytes(&mut out, value);
        }
    }
    out.push(model.directories.len() as u8);
    for (name, inner) in &model.directories {
        out.extend([*name, u8::from(inner.is_some())]);
        bytes(&mut out, inner.as_deref().unwrap_or_default());
    }
    out
}
fn decode(mut from: &[u8]) -> Option<Model> {
    fn byte(from: &mut &[u8]) -> Option<u8> {
        let (first, rest) = from.split_first()?;
        *from = rest;
        Some(*first)
    }
    fn number(from: &mut &[u8]) -> Option<u32> {
        let (first, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(u32::from_le_bytes(*first))
    }
    fn bytes(from: &mut &[u8]) -> Option<Vec<u8>> {
        let len = number(from)? as usize;
        let (first, rest) = from.split_at_checked(len)?;
        *from = rest;
        Some(first.to_vec())
    }
    let mut model = Model::default();
    for _ in 0..byte(&mut from)? {
        let name = byte(&mut from)?;
        let mut content = Content { mode: number(&mut from)?, bytes: bytes(&mut from)?, ..Content::default() };
        for _ in 0..byte(&mut from)? {
            content.attributes.insert(byte(&mut from)?, bytes(&mut from)?);
        }
        model.files.insert(name, content);
    }
    for _ in 0..byte(&mut from)? {
        let (name, some) = (byte(&mut from)?, byte(&mut from)?);
        let inner = bytes(&mut from)?;
        model.directories.insert(name, (some == 1).then_some(inner));
    }
    from.is_empty().then_some(model)
}
