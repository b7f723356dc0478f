//! `envelopefs info`: what a volume, an encrypted file or a keyfile says without any key.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::{Failure, exit, say};
use crate::format::block;
use crate::format::geometry::{Geometry, Length, MAX_HEADER_PAGES, PAGE, PLAIN};
use crate::format::header::{
    CmkSlot, FLAG_HOLES_OK, FLAG_REKEYING, FLAG_SEALED, FileHeader, HeaderError, Unverified, claimed_pages,
};
use crate::format::volume::{KeyMode, UnverifiedVolume, VOLUME_FILE, VolumeConfig};
use crate::keys::{CmkState, providers::keyfile};
use crate::mount::cipher_dir::CipherDir;

/// Show what a volume, an encrypted file or a keyfile says about itself, without any key
///
/// Nothing of it is verified: that takes the keys.
#[derive(Args)]
pub struct Info {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// An encrypted directory, an encrypted file in it, its volume file, or a keyfile
    #[arg(value_name = "CIPHERDIR|FILE")]
    path: PathBuf,
}

impl Info {
    pub fn run(self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::new(exit::VOLUME, format!("{}: {e}", self.path.display()));
        let value = if std::fs::metadata(&self.path).map_err(failed)?.is_dir() {
            let dir = CipherDir::open(&self.path)?;
            volume(dir.require_volume()?.claims())
        } else {
            // A FIFO in the place of a file must not hang us.
            let mut options = File::options();
            let mut file = options.read(true).custom_flags(libc::O_NONBLOCK).open(&self.path).map_err(failed)?;
            if !file.metadata().map_err(failed)?.is_file() {
                return Err(Failure::new(exit::VOLUME, format!("{}: not a regular file", self.path.display())));
            }
            let mut first = [0u8; 1];
            let read = file.read_at(&mut first, 0).map_err(failed)?;
            if self.path.file_name().is_some_and(|name| name == VOLUME_FILE) {
                let mut text = Vec::new();
                file.take(2 << 20).read_to_end(&mut text).map_err(failed)?;
                let parsed = UnverifiedVolume::parse(&text);
                volume(
                    parsed.map_err(|e| Failure::new(exit::VOLUME, format!("{}: {e}", self.path.display())))?.claims(),
                )
            } else if read == 1 && first == *b"{" {
                key_file(&self.path)?
            } else {
                encrypted_file(&mut file).map_err(failed)?
            }
        };
        if self.json {
            say(serde_json::to_string_pretty(&value).unwrap_or_default());
        } else {
            let mut text = String::new();
            render(&value, 0, &mut text);
            say(text.trim_end());
        }
        Ok(())
    }
}

fn time(seconds: i64) -> String {
    u64::try_from(seconds)
        .ok()
        .and_then(|s| std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(s)))
        // Years beyond 9999 have no such form.
        .filter(|t| *t < std::time::UNIX_EPOCH + std::time::Duration::from_secs(253_402_300_800))
        .map_or_else(|| seconds.to_string(), |t| humantime::format_rfc3339_seconds(t).to_string())
}

fn slots(slots: &[CmkSlot]) -> Value {
    slots
        .iter()
        .map(|slot| json!({ "provider": slot.provider, "key": slot.key_ref, "wrapped_bytes": slot.blob.len() }))
        .collect()
}

fn volume(config: &VolumeConfig) -> Value {
    json!({
        "kind": "volume",
        "format": 1,
        "volume_id": HEXLOWER.encode(&config.volume_id),
        "created": time(config.created),
        "names": if config.plaintext_names { "plaintext" } else { "encrypted" },
        "header_pages": config.header_pages,
        "key_mode": match config.key_mode { KeyMode::Branch => "branch", KeyMode::PerFile => "per-file" },
        "branch_max_age_seconds": config.branch_max_age,
        "branch_max_files": config.branch_max_files,
        "cmks": config.cmks,
        "volume_key_wrapped_by": slots(&config.volume_key),
        "current_branch": config.branch.as_ref().map(|branch| json!({
            "id": HEXLOWER.encode(&branch.id),
            "created": time(branch.created),
            "wrapped_by": slots(&branch.slots),
        })),
    })
}

fn key_file(path: &Path) -> Result<Value, Failure> {
    let keys: Vec<Value> = keyfile::inspect(path)?
        .into_iter()
        .map(|info| {
            json!({
                "key": info.key.key,
                "state": match info.state {
                    CmkState::Enabled => "enabled",
                    CmkState::Disabled => "disabled",
                    CmkState::PendingDeletion => "pending deletion",
                },
                "description": info.description,
                "created": info.created.map(time),
            })
        })
        .collect();
    Ok(json!({ "kind": "keyfile", "keys": keys }))
}

/// How many pages a header slot has: slot A says so, or slot B where it is found.
fn geometry(file: &File) -> std::io::Result<Option<Geometry>> {
    let mut page = vec![0; PAGE];
    if read_full(file, &mut page, 0)? == PAGE
        && let Some(header_pages) = claimed_pages(&page)
    {
        return Ok(Some(Geometry { header_pages }));
    }
    for header_pages in 1..=MAX_HEADER_PAGES {
        let at = u64::from(header_pages) * PAGE as u64;
        if read_full(file, &mut page, at)? == PAGE && claimed_pages(&page) == Some(header_pages) {
            return Ok(Some(Geometry { header_pages }));
        }
    }
    Ok(None)
}

fn read_full(file: &File, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn encrypted_file(file: &mut File) -> std::io::Result<Value> {
    let backing_size = file.metadata()?.size();
    if backing_size == 0 {
        return Ok(json!({ "kind": "file", "backing_size": 0, "state": "empty", "size": 0 }));
    }
    let Some(geometry) = geometry(file)? else {
        return Ok(json!({ "kind": "unknown", "backing_size": backing_size, "state": "no header of envelopefs" }));
    };
    let mut volume_id = None;
    let mut headers = serde_json::Map::new();
    for (name, slot) in [("a", 0u64), ("b", 1)] {
        let mut bytes = vec![0; geometry.slot_len()];
        let read = read_full(file, &mut bytes, slot * geometry.slot_len() as u64)?;
        bytes.truncate(read);
        bytes.resize(geometry.slot_len(), 0);
        let value = match Unverified::parse(&bytes, geometry) {
            Ok(parsed) => {
                volume_id.get_or_insert(HEXLOWER.encode(&parsed.claims().volume_id));
                header(parsed.claims())
            }
            Err(HeaderError::Empty) => json!("empty"),
            Err(e) => json!(e.to_string()),
        };
        headers.insert(name.into(), value);
    }
    let (state, size) = match geometry.decode(backing_size) {
        Ok(Length::Empty { .. }) => ("empty", Some(0)),
        Ok(Length::Quiet { size }) => ("quiet", Some(size)),
        Ok(Length::Growing { blocks }) => {
            let mut page = [0u8; PAGE];
            read_full(file, &mut page, geometry.block_offset(blocks - 1))?;
            let valid = block::peek(&page).map_or(0, |p| p.valid_len.min(PLAIN as u16));
            ("growing", Some((blocks - 1) * PLAIN as u64 + u64::from(valid)))
        }
        Err(_) => ("impossible length", None),
    };
    Ok(json!({
        "kind": "file",
        "format": 1,
        "volume_id": volume_id,
        "backing_size": backing_size,
        "header_pages": geometry.header_pages,
        "state": state,
        "size": size,
        "headers": headers,
    }))
}

fn header(header: &FileHeader) -> Value {
    let flags: Vec<&str> = [(FLAG_HOLES_OK, "holes_ok"), (FLAG_REKEYING, "rekeying"), (FLAG_SEALED, "sealed")]
        .into_iter()
        .filter(|(bit, _)| header.flags & bit != 0)
        .map(|(_, name)| name)
        .collect();
    json!({
        "volume_id": HEXLOWER.encode(&header.volume_id),
        "file_id": HEXLOWER.encode(&header.file_id),
        "suite": header.suite,
        "generation": header.generation,
        "size_floor": header.size_floor,
        "sealed_size": header.sealed_size,
        "flags": flags,
        "branch_id": header.wrapped_dek.as_ref().map(|dek| HEXLOWER.encode(&dek.branch_id)),
        "wrapped_by": slots(&header.slots),
    })
}

/// The same as indented lines; what is text is escaped, since it comes from disk.
fn render(value: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.replace('_', " ");
                match field {
                    Value::Object(_) => {
                        out.push_str(&format!("{pad}{name}:\n"));
                        render(field, depth + 1, out);
                    }
                    Value::Array(items) if items.iter().any(Value::is_object) => {
                        for item in items {
                            out.push_str(&format!("{pad}{name}:\n"));
                            render(item, depth + 1, out);
                        }
                    }
                    Value::Array(items) => {
                        let items: Vec<String> = items.iter().map(plain).collect();
                        let list = if items.is_empty() { "none".to_string() } else { items.join(", ") };
                        out.push_str(&format!("{pad}{name}: {list}\n"));
                    }
                    other => out.push_str(&format!("{pad}{name}: {}\n", plain(other))),
                }
            }
        }
        other => out.push_str(&format!("{pad}{}\n", plain(other))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_string(),
        Value::String(text) => super::printable(text.as_bytes()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(-5), "-5");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn lines_escape_what_comes_from_disk() {
        let mut out = String::new();
        render(&json!({ "a_b": "x\u{1b}[2J", "list": ["p", "q"], "in": { "n": null }, "none": [] }), 0, &mut out);
        assert!(out.contains("a b: x\\u{1b}[2J\n"), "{out}");
        assert!(
            out.contains("list: p, q\n") && out.contains("in:\n  n: none\n") && out.contains("none: none\n"),
            "{out}"
        );
    }

    #[test]
    fn a_foreign_file_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello").unwrap();
        let value = encrypted_file(&mut File::open(&path).unwrap()).unwrap();
        assert_eq!(value["kind"], "unknown");
        std::fs::write(&path, "").unwrap();
        assert_eq!(encrypted_file(&mut File::open(&path).unwrap()).unwrap()["size"], 0);
    }
}
