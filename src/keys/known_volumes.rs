//! `known_volumes.toml`: which CMKs and which volume-key commitment this host trusts for a volume, like ssh's known hosts.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{
    KeyError,
    protected::{self, Protection},
};
use crate::format::VolumeId;

/// The name in the configuration directory.
pub const KNOWN_VOLUMES_FILE: &str = "known_volumes.toml";
/// Overrides the configuration directory, for tests and containers.
pub const CONFIG_DIR_VARIABLE: &str = "ENVELOPEFS_CONFIG_DIR";

const FORMAT_VERSION: i64 = 1;
/// Larger files are refused: bytes.
const FILE_MAX: usize = 16 << 20;
const PREAMBLE: &str = "\
# Volumes that this host knows: their CMKs and the commitment of their volume keys.
# A volume that contradicts its record is not mounted. Written by envelopefs; comments are not kept.

";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVolume {
    pub volume_id: VolumeId,
    pub cmks: Vec<String>,
    /// CMKs of single directories that this host trusts for the volume beside its own.
    pub directory_cmks: Vec<String>,
    pub commitment: [u8; 32],
    /// Where it was when it was recorded: a comment for people.
    pub path: String,
}

/// The records of this user on this host. Root: `/etc/envelopefs/`; others: `$XDG_CONFIG_HOME/envelopefs/`, default
/// `~/.config/envelopefs/`; `$ENVELOPEFS_CONFIG_DIR`, where set, instead of either.
pub struct KnownVolumes {
    file: PathBuf,
}

impl KnownVolumes {
    /// The directory that keyfiles and records of this user live in.
    pub fn config_dir() -> Result<PathBuf, KeyError> {
        config_dir_in(rustix::process::geteuid().is_root(), &|name| std::env::var_os(name))
    }
    pub fn default_location() -> Result<Self, KeyError> {
        Ok(Self::at(Self::config_dir()?.join(KNOWN_VOLUMES_FILE)))
    }
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }
    /// The file itself, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }
    pub fn find(&self, id: &VolumeId) -> Result<Option<KnownVolume>, KeyError> {
        Ok(self.load()?.into_iter().find(|volume| volume.volume_id == *id))
    }
    /// Adds or replaces one record: write to a temporary file, fsync, rename; concurrent writers are serialised by a lock.
    pub fn record(&self, volume: &KnownVolume) -> Result<(), KeyError> {
        self.change(|volumes| match volumes.iter_mut().find(|known| known.volume_id == volume.volume_id) {
            Some(known) if known == volume => false,
            Some(known) => {
                known.clone_from(volume);
                true
            }
            None => {
                volumes.push(volume.clone());
                true
            }
        })
    }

    /// Adds CMKs of directories to the record of a volume. False where there is no record.
    pub fn trust_directory_cmks(&self, id: &VolumeId, uris: &[String]) -> Result<bool, KeyError> {
        let mut found = false;
        self.change(|volumes| {
            let Some(known) = volumes.iter_mut().find(|known| known.volume_id == *id) else { return false };
            found = true;
            let new: Vec<_> = uris.iter().filter(|uri| !known.directory_cmks.contains(uri)).cloned().collect();
            known.directory_cmks.extend_from_slice(&new);
            !new.is_empty()
        })?;
        Ok(found)
    }

    /// `change` says whether there is anything to write.
    fn change(&self, change: impl FnOnce(&mut Vec<KnownVolume>) -> bool) -> Result<(), KeyError> {
        let directory = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        protected::create_directory(directory)?;
        let _lock = self.lock()?;
        let mut volumes = self.load()?;
        if !change(&mut volumes) {
            return Ok(());
        }
        protected::replace(&self.file, &self.encode(&volumes)?)
    }

    pub(crate) fn encode(&self, volumes: &[KnownVolume]) -> Result<Vec<u8>, KeyError> {
        let document = FileOut { version: FORMAT_VERSION, volume: volumes.iter().map(RecordOut::from).collect() };
        let text = toml::to_string(&document).map_err(|e| self.malformed(None, &e.to_string()))?;
        Ok(format!("{PREAMBLE}{text}").into_bytes())
    }

    /// Held until dropped. A file of its own: the records themselves are replaced, and NFS locks no directories.
    fn lock(&self) -> Result<File, KeyError> {
        let name = self.file.file_name().unwrap_or(OsStr::new(KNOWN_VOLUMES_FILE)).to_string_lossy();
        let path = self.file.with_file_name(format!(".{name}.lock"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| KeyError::io(&path, e))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(KeyError::io(&path, e)),
            }
        }
    }

    /// No file, no records.
    fn load(&self) -> Result<Vec<KnownVolume>, KeyError> {
        let bytes = match protected::read(&self.file, "record file", Protection::Trusted, FILE_MAX) {
            Ok(bytes) => bytes,
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        self.parse(&bytes)
    }

    pub(crate) fn parse(&self, bytes: &[u8]) -> Result<Vec<KnownVolume>, KeyError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| self.malformed(Some(line_of(bytes, e.valid_up_to())), "not UTF-8"))?;
        let line = |span: std::ops::Range<usize>| Some(line_of(bytes, span.start));
        let file: FileIn = toml::from_str(text).map_err(|e| self.malformed(e.span().and_then(line), e.message()))?;
        if *file.version.get_ref() != FORMAT_VERSION {
            let why = format!("version {}, this program knows {FORMAT_VERSION}", file.version.get_ref());
            return Err(self.malformed(line(file.version.span()), &why));
        }
        let mut volumes: Vec<KnownVolume> = Vec::with_capacity(file.volume.len());
        for record in file.volume {
            let volume_id = hex(record.id.get_ref())
                .ok_or_else(|| self.malformed(line(record.id.span()), "id is not 32 hex digits"))?;
            let commitment = hex(record.commitment.get_ref())
                .ok_or_else(|| self.malformed(line(record.commitment.span()), "commitment is not 64 hex digits"))?;
            if volumes.iter().any(|other| other.volume_id == volume_id) {
                return Err(self.malformed(line(record.id.span()), "this volume is there twice"));
            }
            volumes.push(KnownVolume {
                volume_id,
                cmks: record.cmks,
                directory_cmks: record.directory_cmks,
                commitment,
                path: record.path,
            });
        }
        Ok(volumes)
    }

    fn malformed(&self, line: Option<usize>, why: &str) -> KeyError {
        let file = self.file.display();
        KeyError::Config(match line {
            Some(line) => format!("{file}, line {line}: {why}"),
            None => format!("{file}: {why}"),
        })
    }
}

fn config_dir_in(is_root: bool, variable: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> Result<PathBuf, KeyError> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = path(CONFIG_DIR_VARIABLE) {
        if dir.is_relative() {
            return Err(KeyError::Config(format!("{CONFIG_DIR_VARIABLE} is not an absolute path: {}", dir.display())));
        }
        return Ok(dir);
    }
    if is_root {
        return Ok(PathBuf::from("/etc/envelopefs"));
    }
    // The XDG base directory specification says to ignore relative paths.
    if let Some(dir) = path("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(dir.join("envelopefs"));
    }
    match path("HOME").filter(|home| home.is_absolute()) {
        Some(home) => Ok(home.join(".config/envelopefs")),
        None => Err(KeyError::Config(format!(
            "no directory for configuration: neither {CONFIG_DIR_VARIABLE}, XDG_CONFIG_HOME nor HOME is an absolute path"
        ))),
    }
}

/// Counted from 1.
fn line_of(bytes: &[u8], offset: usize) -> usize {
    1 + bytes.iter().take(offset).filter(|&&b| b == b'\n').count()
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIn {
    version: Spanned<i64>,
    #[serde(default)]
    volume: Vec<RecordIn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordIn {
    id: Spanned<String>,
    #[serde(default)]
    path: String,
    cmks: Vec<String>,
    #[serde(default)]
    directory_cmks: Vec<String>,
    commitment: Spanned<String>,
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: i64,
    volume: Vec<RecordOut<'a>>,
}

#[derive(Serialize)]
struct RecordOut<'a> {
    id: String,
    path: &'a str,
    cmks: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    directory_cmks: &'a [String],
    commitment: String,
}

impl<'a> From<&'a KnownVolume> for RecordOut<'a> {
    fn from(volume: &'a KnownVolume) -> Self {
        Self {
            id: HEXLOWER.encode(&volume.volume_id),
            path: &volume.path,
            cmks: &volume.cmks,
            directory_cmks: &volume.directory_cmks,
            commitment: HEXLOWER.encode(&volume.commitment),
        }
    }
}

#[cfg(test)]
mod tests;
