//! Giving directories of a running mount CMKs of their own: prove them, record whom to trust, then change the directory.
//! Knows the filesystem by inode numbers; nothing of who asks, nor how.

use std::sync::Arc;
use std::thread;

use serde::{Deserialize, Serialize};

use super::MountError;
use super::trust::{parse_uris, pinned_uris};
use super::volume_file::VolumeFile;
use crate::crypto::{file_keys::FileKeys, secret::Secret32};
use crate::file::FileContext;
use crate::format::dir_id::check_keys;
use crate::format::header::{CmkSlot, FileHeader, SUITE_AES256_GCM, WrappedDek};
use crate::format::volume::DirectoryCmk;
use crate::format::{KeyGroup, KeyRef};
use crate::fs::{Fs, FsError, Ino};
use crate::keys::KeyError;
use crate::keys::guard::{CmkStatus, Guard};
use crate::keys::known_volumes::KnownVolumes;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{self, Opening};
use crate::store::disk::DiskStore;

/// One CMK that new files of a directory hang on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenCmk {
    pub provider: String,
    pub key: String,
    /// Where the volume says that it is found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// `usable`, `unreachable`, `refused`, or `not given` to this mount.
    pub state: String,
    /// Why, where it is not usable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What new files of a directory hang on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryCmks {
    /// False: the volume's CMKs, because the directory has none of its own.
    pub own: bool,
    pub cmks: Vec<GivenCmk>,
    /// What the operator should know beside that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// Changes and shows the CMKs of directories. Its calls wait for providers and disks: not for a thread that serves requests.
pub struct DirectoryKeys {
    fs: Arc<Fs<DiskStore>>,
    files: Arc<FileContext>,
    /// `None` on a read-only mount.
    volume_file: Option<VolumeFile>,
}

impl DirectoryKeys {
    pub fn new(fs: Arc<Fs<DiskStore>>, files: Arc<FileContext>, volume_file: Option<VolumeFile>) -> Self {
        Self { fs, files, volume_file }
    }

    /// New files of the directory hang on these CMKs once this has returned. Each has made and opened a key before anything
    /// is changed, and is recorded on disk, in the volume file and on this host, before the directory names it.
    pub fn set(&self, ino: Ino, uris: &[String], passphrase: &PassphraseSource) -> Result<DirectoryCmks, MountError> {
        let volume_file = self.volume_file.as_ref().ok_or_else(read_only)?;
        // Before anybody is asked.
        self.fs.directory_keys(ino).map_err(explained)?;
        let uris = parse_uris(uris)?;
        if let Some(uri) = uris.iter().find(|uri| uri.optional) {
            return Err(KeyError::Config(format!(
                "CMK URI {uri}: a directory's CMK is never optional: leave optional=true out"
            ))
            .into());
        }
        let keyring = &self.files.keyring;
        let known = keyring.cmks();
        let policy = known.first().map(|cmk| cmk.policy()).unwrap_or_default();
        let opened = providers::open_cmks(&uris, &mut Opening::new(passphrase, policy.deadline))?;
        let cmks: Vec<Arc<Guard>> = opened
            .into_iter()
            .map(|cmk| match known.iter().find(|known| known.key_ref() == cmk.key_ref()) {
                Some(known) => known.clone(),
                None => Guard::new(cmk, policy),
            })
            .collect();
        let names: Vec<KeyRef> = cmks.iter().map(|cmk| cmk.key_ref().clone()).collect();
        check_keys(&names).map_err(|e| KeyError::Config(e.to_string()))?;
        let slots = keyring.prove(&cmks)?;
        self.fit(slots)?;

        let pinned = pinned_uris(&uris, &cmks);
        let listed = names.iter().zip(&pinned).map(|(key, uri)| DirectoryCmk { key: key.clone(), uri: uri.clone() });
        volume_file
            .put_directory_cmks(listed.collect())
            .map_err(|e| MountError::Volume(format!("the volume file could not be written: {e}")))?;
        let remarks = self.trust(&pinned)?;
        cmks.into_iter().for_each(|cmk| keyring.add_cmk(cmk));
        self.change(ino, Some(names.into()))?;
        Ok(DirectoryCmks { remarks, ..self.show(ino)? })
    }

    /// New files of the directory hang on the volume's own CMKs again.
    pub fn unset(&self, ino: Ino) -> Result<DirectoryCmks, MountError> {
        if self.volume_file.is_none() {
            return Err(read_only());
        }
        self.change(ino, None)?;
        self.show(ino)
    }

    pub fn show(&self, ino: Ino) -> Result<DirectoryCmks, MountError> {
        let group = self.fs.directory_keys(ino).map_err(explained)?;
        let listed = self.volume_file.as_ref().and_then(|file| file.directory_cmks().ok()).unwrap_or_default();
        let status = self.files.keyring.status().cmks;
        let names: Vec<KeyRef> = match &group {
            Some(names) => names.to_vec(),
            None => self.files.keyring.own_cmks().iter().map(|cmk| cmk.key_ref().clone()).collect(),
        };
        let given = |key: KeyRef| {
            let uri = listed.iter().find(|cmk| cmk.key == key).map(|cmk| cmk.uri.clone());
            let is = |status: &&CmkStatus| status.provider == key.provider && status.key == key.key;
            let (state, reason) = match status.iter().find(is) {
                Some(status) => (status.state, status.reason.clone()),
                None => ("not given", Some("this mount was not told to trust it".into())),
            };
            GivenCmk { provider: key.provider, key: key.key, uri, state: state.into(), reason }
        };
        Ok(DirectoryCmks { own: group.is_some(), cmks: names.into_iter().map(given).collect(), remarks: Vec::new() })
    }

    /// Whether headers of this volume have room for these slots.
    fn fit(&self, slots: Vec<CmkSlot>) -> Result<(), MountError> {
        let keys = FileKeys::derive(&[0; 32], &Secret32::random());
        let header = FileHeader {
            volume_id: self.files.keyring.volume_id(),
            file_id: [0; 32],
            suite: SUITE_AES256_GCM,
            generation: 1,
            size_floor: 0,
            sealed_size: 0,
            flags: 0,
            commitment: keys.commitment(),
            previous_commitment: [0; 32],
            wrapped_dek: Some(WrappedDek { branch_id: [0; 16], salt: [0; 16], wrapped: [0; 60] }),
            slots,
        };
        match header.encode(&keys, None, self.files.geometry) {
            Ok(_) => Ok(()),
            Err(e) => Err(KeyError::Config(format!("new files could not carry these CMKs: {e}")).into()),
        }
    }

    /// Records that this host trusts these URIs. A host that keeps no record of the volume is told its CMKs at each mount.
    fn trust(&self, uris: &[String]) -> Result<Vec<String>, MountError> {
        let id = self.files.keyring.volume_id();
        let named =
            uris.iter().map(|uri| format!("--cmk '{}'", uri.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ");
        match KnownVolumes::default_location().and_then(|records| records.trust_directory_cmks(&id, uris)) {
            Ok(true) => Ok(Vec::new()),
            Ok(false) => Ok(vec![format!("this host keeps no record of the volume: mount it with {named} as well from now on")]),
            Err(e) => Err(KeyError::Config(format!(
                "nothing was changed: the next mount would not trust the CMK, since this host's record of the volume could not be written: {e}"
            ))
            .into()),
        }
    }

    /// In a thread that does nothing else: it takes on the identity of the record's owner.
    fn change(&self, ino: Ino, group: KeyGroup) -> Result<(), MountError> {
        let fs = self.fs.clone();
        let failed = |e: &dyn std::fmt::Display| MountError::Other(format!("the directory could not be changed: {e}"));
        let changer = thread::Builder::new().name("directory-cmk".into());
        let changer = changer.spawn(move || fs.set_directory_keys(ino, group)).map_err(|e| failed(&e))?;
        changer.join().map_err(|_| failed(&"a panic"))?.map_err(explained)
    }
}

fn read_only() -> MountError {
    MountError::Other(
        "the volume is mounted read-only: CMKs of directories can be changed by a mount that writes alone".into(),
    )
}

fn explained(error: FsError) -> MountError {
    let text = match error.errno() {
        libc::ENOTDIR => "not a directory: only directories have CMKs, and files inside get theirs from them".into(),
        libc::ESTALE | libc::ENOENT => "the directory is gone".into(),
        libc::EIO => format!("the directory's record is damaged or cannot be read ({error}): see the log of the mount"),
        _ => match error {
            FsError::Key(e) => return e.into(),
            other => other.to_string(),
        },
    };
    MountError::Other(text)
}
