//! Making a volume: directories, keys, an empty tree, the volume file last. Knows no mount.

use std::path::{Path, PathBuf};

use super::MountError;
use super::cipher_dir::CipherDir;
use super::trust::pinned_uris;
use crate::format::volume::VolumeConfig;
use crate::fs::Fs;
use crate::keys::guard::{Guard, OutagePolicy};
use crate::keys::keyring::KeyPolicy;
use crate::keys::known_volumes::{KnownVolume, KnownVolumes};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{KMS_DEADLINE, Opening, keyfile, open_cmks};
use crate::keys::uri::{CmkUri, KeyfileUri};
use crate::keys::{self, KeyError, volume::NewVolume};

/// The keyfile that is used where no CMK is named, in the configuration directory.
pub const DEFAULT_KEYFILE: &str = "cmk.json";

/// What a volume is made with.
#[derive(Debug)]
pub struct Plan<'a> {
    pub cmks: &'a [String],
    pub plaintext_names: bool,
    pub header_pages: u32,
    pub policy: KeyPolicy,
    pub passphrase: &'a PassphraseSource,
    /// Seals a default keyfile that has to be made.
    pub seal_new_keyfile: bool,
}

/// What has come into being.
#[derive(Debug)]
pub struct Made {
    pub config: VolumeConfig,
    pub cipher_dir: PathBuf,
    /// A default keyfile that did not exist before: it must be backed up.
    pub new_keyfile: Option<PathBuf>,
    /// Why the volume could not be recorded as known, where it could not.
    pub not_recorded: Option<String>,
}

/// Makes a volume at `path`, which is empty or does not exist. On failure, nothing of it stays but a new keyfile.
pub fn make(path: &Path, plan: &Plan<'_>) -> Result<Made, MountError> {
    // Looked at first, so that a refusal leaves no new key behind.
    let (dir, made_dir) = CipherDir::create(path)?;
    let result = fill(&dir, made_dir, plan);
    if result.is_err() {
        dir.remove_rooms(made_dir);
    }
    result
}

fn fill(dir: &CipherDir, made_dir: bool, plan: &Plan<'_>) -> Result<Made, MountError> {
    let (uris, new_keyfile) = cmk_uris(plan)?;
    let cmks = open_cmks(&uris, &mut Opening::new(plan.passphrase, KMS_DEADLINE))?;
    let cmks = Guard::all(&uris, cmks, OutagePolicy::default());
    let new = NewVolume {
        plaintext_names: plan.plaintext_names,
        header_pages: plan.header_pages,
        policy: plan.policy,
        cmk_uris: pinned_uris(&uris, &cmks),
    };
    let (config, keys) = keys::volume::create(&new, &cmks)?;
    let failed = |e: &dyn std::fmt::Display| MountError::Volume(format!("{}: {e}", dir.path().display()));
    dir.make_rooms().map_err(|e| failed(&e))?;
    Fs::format(&dir.tree()?, &keys).map_err(|e| failed(&e))?;
    dir.write_volume(&config, &keys).map_err(|e| failed(&e))?;
    if made_dir {
        dir.sync_parent().map_err(|e| failed(&e))?;
    }
    let known = KnownVolume {
        volume_id: config.volume_id,
        cmks: new.cmk_uris,
        directory_cmks: Vec::new(),
        commitment: keys.commitment,
        path: dir.path().display().to_string(),
    };
    let recorded = KnownVolumes::default_location().and_then(|records| records.record(&known));
    Ok(Made {
        config,
        cipher_dir: dir.path().to_path_buf(),
        new_keyfile,
        not_recorded: recorded.err().map(|e| e.to_string()),
    })
}

/// The CMKs of a new volume, and the default keyfile where it had to be made.
fn cmk_uris(plan: &Plan<'_>) -> Result<(Vec<CmkUri>, Option<PathBuf>), MountError> {
    if !plan.cmks.is_empty() {
        return Ok((super::trust::parse_uris(plan.cmks)?, None));
    }
    let path = KnownVolumes::config_dir()?.join(DEFAULT_KEYFILE);
    let sealed = plan.seal_new_keyfile.then_some(plan.passphrase);
    let made = match path.try_exists() {
        Ok(true) => None,
        Ok(false) => {
            keyfile::create(&path, "default key of this host", sealed)?;
            Some(path.clone())
        }
        Err(source) => return Err(KeyError::Io { path: path.display().to_string(), source }.into()),
    };
    Ok((vec![CmkUri::from(KeyfileUri { path, key: None })], made))
}
