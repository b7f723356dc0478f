//! The volume file `envelopefs.toml` in the CIPHERDIR: identity, options, wrapped volume key, current branch.
//! Readable TOML, MACed under the volume key. Knows no provider and does no I/O.

use std::fmt::Write;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::Deserialize;

use super::{
    BranchId, KeyRef, NULL_CIPHER, SUITE, SUITE_AES256_GCM, SUITE_INSECURE_NULL, VolumeId, geometry::MAX_HEADER_PAGES,
    header::CmkSlot,
};
use crate::crypto::{
    AuthError,
    kdf::{Prk, hmac_sha256, mac_eq},
    secret::Secret32,
};

/// Names inside a CIPHERDIR.
pub const VOLUME_FILE: &str = "envelopefs.toml";
pub const TREE_DIR: &str = "tree";
pub const OVERFLOW_DIR: &str = "overflow";

/// Longest volume file that is read, in bytes.
pub const VOLUME_FILE_MAX: usize = 1 << 20;

const FORMAT_VERSION: i64 = 1;

// Info strings of HKDF-Expand under the volume key.
const NAMES: &[u8] = b"envelopefs v1 volume names";
const DIR_IDS: &[u8] = b"envelopefs v1 volume dir";
const TARGETS: &[u8] = b"envelopefs v1 volume targets";
const XATTRS: &[u8] = b"envelopefs v1 volume xattrs";
const ORIGIN: &[u8] = b"envelopefs v1 volume origin";
const CONFIG: &[u8] = b"envelopefs v1 volume config";
const COMMIT: &[u8] = b"envelopefs v1 volume commit";
/// HMAC message of the commitment to any wrapped key.
const KEY_COMMITMENT: &[u8] = b"envelopefs v1 key commitment";

const PREAMBLE: &str = "\
# envelopefs volume. Written by envelopefs; the last line authenticates every byte above it.
# Losing this file loses names, not content: each file carries its own wrapped key.
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyMode {
    Branch,
    PerFile,
}

/// Most directory CMKs that a volume lists.
pub const DIRECTORY_CMKS_MAX: usize = 256;
/// Most branches of directories with CMKs of their own that are written down; the oldest go first. One that is missing
/// costs its group a new branch.
pub const DIRECTORY_BRANCHES_MAX: usize = 256;

/// A CMK that some directory was given, and where it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryCmk {
    pub key: KeyRef,
    /// Shown to people, and compared with what a host trusts.
    pub uri: String,
}

/// A branch key as every CMK of the volume, or of one directory's group, wraps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRecord {
    pub id: BranchId,
    /// Seconds since the epoch.
    pub created: i64,
    pub slots: Vec<CmkSlot>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeConfig {
    pub volume_id: VolumeId,
    /// Seconds since the epoch.
    pub created: i64,
    pub plaintext_names: bool,
    pub header_pages: u32,
    pub key_mode: KeyMode,
    /// Seconds; a branch older than this is replaced by a new one for new files.
    pub branch_max_age: u64,
    pub branch_max_files: u64,
    /// CMK URIs as given at `init`: shown to people; whom a mount trusts is decided elsewhere.
    pub cmks: Vec<String>,
    /// The volume key under each CMK (context: volume id).
    pub volume_key: Vec<CmkSlot>,
    /// The branch in use when the file was last written.
    pub branch: Option<BranchRecord>,
    /// CMKs of directories, as they were when they were given; one that no directory names any more may be among them.
    pub directory_cmks: Vec<DirectoryCmk>,
    /// The branches in use of directories with CMKs of their own, oldest first: one a group.
    pub directory_branches: Vec<BranchRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("volume file is malformed: {0}")]
    Malformed(String),
    #[error("volume file has version {0}, this program knows version 1")]
    Version(i64),
    #[error("volume has cipher suite {}, this program knows suite {} only", suite_name(*.0), suite_name(SUITE.into()))]
    Suite(i64),
    #[error("volume file authentication failed: it was changed by someone without the volume key")]
    Auth,
}

/// A suite as messages name it.
fn suite_name(suite: i64) -> String {
    let remark =
        if suite == i64::from(SUITE_INSECURE_NULL) { " (INSECURE-NULL-CIPHER: content is not encrypted)" } else { "" };
    format!("{suite}{remark}")
}

/// Parsed, not yet authentic.
#[derive(Clone)]
pub struct UnverifiedVolume {
    config: VolumeConfig,
    /// Every byte before the last line.
    authenticated: Vec<u8>,
    mac: [u8; 32],
}

impl UnverifiedVolume {
    /// Total, and bounded by `VOLUME_FILE_MAX`.
    pub fn parse(text: &[u8]) -> Result<Self, VolumeError> {
        if text.len() > VOLUME_FILE_MAX {
            return Err(malformed("larger than 1 MiB"));
        }
        let text = std::str::from_utf8(text).map_err(|_| malformed("not UTF-8"))?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| malformed(e.message()))?;
        // The version first: another one may have other keys.
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(FORMAT_VERSION) => {}
            Some(other) => return Err(VolumeError::Version(other)),
            None => return Err(malformed("no version")),
        }
        match table.get("suite").map_or(Some(SUITE_AES256_GCM.into()), toml::Value::as_integer) {
            Some(suite) if suite == i64::from(SUITE) => {}
            Some(other) => return Err(VolumeError::Suite(other)),
            None => return Err(malformed("suite: not a number")),
        }
        let raw: RawVolume = table.try_into().map_err(|e: toml::de::Error| malformed(e.message()))?;
        // The line that the parser took for the MAC must be the last line of the text, in exactly this form.
        let last_line = format!("mac = \"{}\"\n", raw.mac);
        let authenticated = text
            .strip_suffix(last_line.as_str())
            .filter(|before| before.ends_with('\n'))
            .ok_or_else(|| malformed("the last line is not the MAC"))?;
        let mac = base64("mac", &raw.mac)?.try_into().map_err(|_| malformed("mac: not 32 bytes"))?;
        Ok(Self { authenticated: authenticated.as_bytes().to_vec(), mac, config: raw.into_config()? })
    }

    pub fn claims(&self) -> &VolumeConfig {
        &self.config
    }

    pub fn verify(self, keys: &VolumeKeys) -> Result<VolumeConfig, VolumeError> {
        if mac_eq(&self.mac, &hmac_sha256(&keys.config, &[&self.authenticated])) {
            Ok(self.config)
        } else {
            Err(VolumeError::Auth)
        }
    }
}

fn malformed(what: impl Into<String>) -> VolumeError {
    VolumeError::Malformed(what.into())
}

/// The file as TOML has it. Unknown keys are errors: this version writes none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVolume {
    #[serde(rename = "version")]
    _version: i64,
    #[serde(rename = "suite")]
    _suite: Option<i64>,
    volume_id: String,
    created: i64,
    plaintext_names: bool,
    header_pages: u32,
    key_mode: String,
    branch_max_age: u64,
    branch_max_files: u64,
    cmks: Vec<String>,
    volume_key: Vec<RawSlot>,
    branch_id: Option<String>,
    branch_created: Option<i64>,
    branch_key: Option<Vec<RawSlot>>,
    #[serde(default)]
    directory_cmks: Vec<RawDirectoryCmk>,
    #[serde(default)]
    directory_branches: Vec<RawBranch>,
    mac: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDirectoryCmk {
    provider: String,
    key_ref: String,
    uri: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBranch {
    id: String,
    created: i64,
    key: Vec<RawSlot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlot {
    provider: String,
    key_ref: String,
    commitment: String,
    blob: String,
}

impl RawVolume {
    fn into_config(self) -> Result<VolumeConfig, VolumeError> {
        if !(1..=MAX_HEADER_PAGES).contains(&self.header_pages) {
            return Err(malformed(format!("header_pages: not in 1..={MAX_HEADER_PAGES}")));
        }
        let key_mode = match self.key_mode.as_str() {
            "branch" => KeyMode::Branch,
            "per-file" => KeyMode::PerFile,
            _ => return Err(malformed("key_mode: neither branch nor per-file")),
        };
        let branch = match (self.branch_id, self.branch_created, self.branch_key) {
            (None, None, None) => None,
            (Some(id), Some(created), Some(key)) => {
                Some(BranchRecord { id: hex("branch_id", &id)?, created, slots: slots(key)? })
            }
            _ => return Err(malformed("branch_id, branch_created and branch_key go together")),
        };
        Ok(VolumeConfig {
            volume_id: hex("volume_id", &self.volume_id)?,
            created: self.created,
            plaintext_names: self.plaintext_names,
            header_pages: self.header_pages,
            key_mode,
            branch_max_age: self.branch_max_age,
            branch_max_files: self.branch_max_files,
            cmks: self.cmks,
            volume_key: slots(self.volume_key)?,
            branch,
            directory_cmks: self.directory_cmks.into_iter().map(directory_cmk).collect::<Result<_, _>>()?,
            directory_branches: self
                .directory_branches
                .into_iter()
                .map(|raw| Ok(BranchRecord { id: hex("id", &raw.id)?, created: raw.created, slots: slots(raw.key)? }))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn directory_cmk(raw: RawDirectoryCmk) -> Result<DirectoryCmk, VolumeError> {
    let key = KeyRef { provider: raw.provider, key: raw.key_ref };
    if !key.is_well_formed() {
        return Err(malformed("directory_cmks: provider or key_ref: not a name"));
    }
    Ok(DirectoryCmk { key, uri: raw.uri })
}

fn slots(raw: Vec<RawSlot>) -> Result<Vec<CmkSlot>, VolumeError> {
    raw.into_iter()
        .map(|raw| {
            let slot = CmkSlot {
                commitment: hex("commitment", &raw.commitment)?,
                blob: base64("blob", &raw.blob)?,
                provider: raw.provider,
                key_ref: raw.key_ref,
            };
            if slot.is_well_formed() { Ok(slot) } else { Err(malformed("provider or key_ref: not a name")) }
        })
        .collect()
}

fn hex<const N: usize>(key: &str, text: &str) -> Result<[u8; N], VolumeError> {
    let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| malformed(format!("{key}: not lowercase hex")))?;
    bytes.try_into().map_err(|_| malformed(format!("{key}: not {N} bytes")))
}

fn base64(key: &str, text: &str) -> Result<Vec<u8>, VolumeError> {
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| malformed(format!("{key}: not base64url")))
}

impl VolumeConfig {
    /// The whole file. Numbers above i64::MAX, which TOML cannot hold, are written as i64::MAX.
    pub fn encode(&self, keys: &VolumeKeys) -> Vec<u8> {
        let mut text = self.text_before_mac();
        let mac = hmac_sha256(&keys.config, &[text.as_bytes()]);
        put(&mut text, format_args!("mac = \"{}\"\n", BASE64URL_NOPAD.encode(&mac)));
        text.into_bytes()
    }

    fn text_before_mac(&self) -> String {
        let toml_integer = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let mut text = String::from(PREAMBLE);
        let out = &mut text;
        put(out, format_args!("version = {FORMAT_VERSION}\n"));
        // Ordinary volumes do not say theirs.
        if NULL_CIPHER {
            put(out, format_args!("suite = {SUITE}\n"));
        }
        put(out, format_args!("volume_id = \"{}\"\n", HEXLOWER.encode(&self.volume_id)));
        put(out, format_args!("created = {}\n", self.created));
        put(out, format_args!("plaintext_names = {}\n", self.plaintext_names));
        put(out, format_args!("header_pages = {}\n", self.header_pages));
        let key_mode = match self.key_mode {
            KeyMode::Branch => "branch",
            KeyMode::PerFile => "per-file",
        };
        put(out, format_args!("key_mode = \"{key_mode}\"\n"));
        put(out, format_args!("branch_max_age = {}\n", toml_integer(self.branch_max_age)));
        put(out, format_args!("branch_max_files = {}\n", toml_integer(self.branch_max_files)));
        out.push_str("cmks = [\n");
        for cmk in &self.cmks {
            put(out, format_args!("  {},\n", quoted(cmk)));
        }
        out.push_str("]\n");
        put_slots(out, "volume_key", &self.volume_key);
        if let Some(branch) = &self.branch {
            put(out, format_args!("branch_id = \"{}\"\n", HEXLOWER.encode(&branch.id)));
            put(out, format_args!("branch_created = {}\n", branch.created));
            put_slots(out, "branch_key", &branch.slots);
        }
        // Volumes without directory CMKs have neither.
        if !self.directory_cmks.is_empty() {
            out.push_str("directory_cmks = [\n");
            for DirectoryCmk { key: KeyRef { provider, key }, uri } in &self.directory_cmks {
                let (provider, key, uri) = (quoted(provider), quoted(key), quoted(uri));
                put(out, format_args!("  {{ provider = {provider}, key_ref = {key}, uri = {uri} }},\n"));
            }
            out.push_str("]\n");
        }
        if !self.directory_branches.is_empty() {
            out.push_str("directory_branches = [\n");
            for BranchRecord { id, created, slots } in &self.directory_branches {
                let id = HEXLOWER.encode(id);
                put(out, format_args!("  {{ id = \"{id}\", created = {created}, key = ["));
                for (n, slot) in slots.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { ", " });
                    put_slot(out, slot);
                }
                out.push_str("] },\n");
            }
            out.push_str("]\n");
        }
        text
    }
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what).expect("writing to a String cannot fail");
}

fn put_slots(out: &mut String, key: &str, slots: &[CmkSlot]) {
    put(out, format_args!("{key} = [\n"));
    for slot in slots {
        out.push_str("  ");
        put_slot(out, slot);
        out.push_str(",\n");
    }
    out.push_str("]\n");
}

fn put_slot(out: &mut String, slot: &CmkSlot) {
    put(
        out,
        format_args!(
            "{{ provider = {}, key_ref = {}, commitment = \"{}\", blob = \"{}\" }}",
            quoted(&slot.provider),
            quoted(&slot.key_ref),
            HEXLOWER.encode(&slot.commitment),
            BASE64URL_NOPAD.encode(&slot.blob),
        ),
    );
}

/// A TOML basic string on one line.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => put(&mut out, format_args!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Everything derived from the volume key.
pub struct VolumeKeys {
    pub names: Secret32,
    pub dir_id: Secret32,
    pub targets: Secret32,
    pub xattrs: Secret32,
    pub origin: Secret32,
    pub config: Secret32,
    /// What known-volumes records pin.
    pub commitment: [u8; 32],
}

impl VolumeKeys {
    /// `PRK = HKDF-Extract(volume id, volume key)`, expanded with labels.
    pub fn derive(volume_id: &VolumeId, volume_key: &Secret32) -> Self {
        let prk = Prk::extract(volume_id, volume_key);
        Self {
            names: prk.expand(&[NAMES]),
            dir_id: prk.expand(&[DIR_IDS]),
            targets: prk.expand(&[TARGETS]),
            xattrs: prk.expand(&[XATTRS]),
            origin: prk.expand(&[ORIGIN]),
            config: prk.expand(&[CONFIG]),
            commitment: *prk.expand(&[COMMIT]).expose(),
        }
    }
}

/// Commitment stored in a `CmkSlot` for any wrapped 32-byte key.
pub fn key_commitment(key: &Secret32) -> [u8; 32] {
    hmac_sha256(key, &[KEY_COMMITMENT])
}

/// Checks `key` against a slot's commitment in constant time.
pub fn check_commitment(key: &Secret32, expected: &[u8; 32]) -> Result<(), AuthError> {
    if mac_eq(&key_commitment(key), expected) { Ok(()) } else { Err(AuthError) }
}

#[cfg(test)]
mod tests;
