//! `known_volumes.toml`: which CMKs and which volume-key commitment this host trusts for a volume, like ssh's known hosts.

use std::path::PathBuf;

use super::KeyError;
use crate::format::VolumeId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVolume {
    pub volume_id: VolumeId,
    pub cmks: Vec<String>,
    pub commitment: [u8; 32],
    /// Where it was when it was recorded: a comment for people.
    pub path: String,
}

/// The records of this user on this host. Root: `/etc/envelopefs/`; others: `$XDG_CONFIG_HOME/envelopefs/`, default `~/.config/envelopefs/`.
pub struct KnownVolumes {
    file: PathBuf,
}

impl KnownVolumes {
    /// The directory that keyfiles and records of this user live in.
    pub fn config_dir() -> Result<PathBuf, KeyError> {
        todo!()
    }
    pub fn default_location() -> Result<Self, KeyError> {
        todo!()
    }
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }
    pub fn find(&self, id: &VolumeId) -> Result<Option<KnownVolume>, KeyError> {
        let _ = (id, &self.file);
        todo!()
    }
    /// Adds or replaces one record: write to a temporary file, fsync, rename; concurrent writers are serialised by a lock.
    pub fn record(&self, volume: &KnownVolume) -> Result<(), KeyError> {
        let _ = volume;
        todo!()
    }
}
