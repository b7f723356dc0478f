//! The composition root of a mount: store, keys, filesystem, session, background commit.
//! Knows every room below it, and nothing of the command line.

pub mod cipher_dir;
pub mod control;
pub mod directory_cmks;
pub mod directory_trust;
pub mod kernel;
pub mod log;
pub mod mounted;
pub mod new_volume;
pub mod runtime_dir;
pub mod serve;
pub mod status;
pub mod trust;
pub mod volume_file;
pub mod waiting;
pub mod watch;

use std::sync::Arc;

use crate::file::FileContext;
use crate::format::geometry::Geometry;
use crate::format::names::NameCodec;
use crate::format::volume::{VolumeConfig, VolumeKeys};
use crate::fs::{Fs, FsConfig};
use crate::keys::KeyError;
use crate::keys::guard::Guard;
use crate::keys::keyring::{KeyPolicy, Keyring};
use crate::store::disk::DiskStore;
use cipher_dir::CipherDir;
use trust::Unlocked;

/// Why a volume cannot be used. The text is for the user and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The volume is missing, malformed, or contradicts its record.
    #[error("{0}")]
    Volume(String),
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Mountpoint or FUSE.
    #[error("{0}")]
    Mountpoint(String),
    /// Another process owns the CIPHERDIR, or the mount is in use.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Other(String),
}

/// How a filesystem is opened.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    pub read_only: bool,
    /// Nobody else changes the tree meanwhile.
    pub exclusive: bool,
    pub noatime: bool,
    /// Descriptors that may be held beyond open files.
    pub descriptor_budget: usize,
}

/// The filesystem of an unlocked volume, with the keys to rewrite its volume file.
pub fn open_fs(dir: &CipherDir, unlocked: Unlocked, access: Access) -> Result<OpenVolume, MountError> {
    let Unlocked { config, keys, cmks, directory_cmks } = unlocked;
    let (files, names) = files_of(&config, &keys, cmks, directory_cmks);
    let rewrite_keys = duplicate(&keys);
    let fs_config = FsConfig {
        files: files.clone(),
        names,
        keys,
        read_only: access.read_only,
        exclusive: access.exclusive,
        noatime: access.noatime,
        descriptor_budget: access.descriptor_budget,
    };
    let tree = dir.tree()?.noatime(access.noatime);
    let fs = Fs::new(tree, dir.overflow()?, fs_config)
        .map_err(|e| MountError::Volume(format!("{}: the tree cannot be used: {e}", dir.path().display())))?;
    Ok(OpenVolume { fs: Arc::new(fs), files, config, keys: rewrite_keys })
}

/// What all files of an unlocked volume share, and its names.
pub fn files_of(
    config: &VolumeConfig,
    keys: &VolumeKeys,
    cmks: Vec<Arc<Guard>>,
    directory_cmks: Vec<Arc<Guard>>,
) -> (Arc<FileContext>, NameCodec) {
    let keyring = Keyring::new(
        config.volume_id,
        cmks,
        KeyPolicy {
            mode: config.key_mode,
            branch_max_age: config.branch_max_age,
            branch_max_files: config.branch_max_files,
        },
        Some(keys.origin.duplicate()),
        config.branch.clone(),
    )
    .with_branches(config.directory_branches.clone());
    for cmk in directory_cmks {
        keyring.add_cmk(cmk);
    }
    let names = if config.plaintext_names { NameCodec::Plain } else { NameCodec::encrypted(&keys.names) };
    (Arc::new(FileContext { keyring, geometry: Geometry { header_pages: config.header_pages } }), names)
}

pub struct OpenVolume {
    pub fs: Arc<Fs<DiskStore>>,
    pub files: Arc<FileContext>,
    pub config: VolumeConfig,
    /// A second copy, for rewriting the volume file.
    pub keys: VolumeKeys,
}

fn duplicate(keys: &VolumeKeys) -> VolumeKeys {
    VolumeKeys {
        names: keys.names.duplicate(),
        dir_id: keys.dir_id.duplicate(),
        targets: keys.targets.duplicate(),
        xattrs: keys.xattrs.duplicate(),
        origin: keys.origin.duplicate(),
        config: keys.config.duplicate(),
        commitment: keys.commitment,
    }
}

/// A name or path from disk for a terminal: control characters and what is not UTF-8 are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable(b"a b/\xc3\xa9"), "a b/é");
        assert_eq!(printable(b"a\x1b[2J\n\xff"), "a\\u{1b}[2J\\n\\xff");
    }
}
