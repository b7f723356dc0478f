//! Giving directories of a running mount CMKs of their own: prove them, record whom to trust, then change the directory.
//! Knows the filesystem by inode numbers; nothing of who asks, nor how.

use std::sync::Arc;
use std::thread;

use serde::{Deserialize, Serialize};

use super::MountError;
use super::mounted::Mounted;
use super::trust::{parse_uris, pinned_uris};
use crate::crypto::{file_keys::FileKeys, secret::Secret32};
use crate::format::dir_id::check_keys;
use crate::format::header::{CmkSlot, FileHeader, WrappedDek};
use crate::format::volume::DirectoryCmk;
use crate::format::{KeyGroup, KeyRef, SUITE};
use crate::fs::{FsError, Ino};
use crate::keys::guard::{CmkStatus, Guard};
use crate::keys::known_volumes::KnownVolumes;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{self, Opening};
use crate::keys::{CmkProvider, KeyError};

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

/// New files of the directory hang on these CMKs once this has returned. Each has made and opened a key before anything is
/// changed, and is recorded on disk, in the volume file and on this host, before the directory names it. Like the others here
/// it waits for providers and disks: not for a thread that serves requests.
pub fn set(
    mounted: &Mounted,
    ino: Ino,
    uris: &[String],
    passphrase: &PassphraseSource,
) -> Result<DirectoryCmks, MountError> {
    let volume_file = mounted.volume_file.as_ref().ok_or_else(read_only)?;
    // Before anybody is asked.
    mounted.fs.directory_keys(ino).map_err(explained)?;
    let uris = parse_uris(uris)?;
    if let Some(uri) = uris.iter().find(|uri| uri.optional) {
        let text = format!("CMK URI {uri}: a directory's CMK is never optional: leave optional=true out");
        return Err(KeyError::Config(text).into());
    }
    let keyring = mounted.keyring();
    let known = keyring.cmks();
    let policy = mounted.options.outage;
    let opened = providers::open_cmks(&uris, &mut Opening::new(passphrase, policy.deadline))?;
    let known_or_new = |cmk: Arc<dyn CmkProvider>| match known.iter().find(|known| known.key_ref() == cmk.key_ref()) {
        Some(known) => known.clone(),
        None => Guard::new(cmk, policy),
    };
    let cmks: Vec<Arc<Guard>> = opened.into_iter().map(known_or_new).collect();
    let names: Vec<KeyRef> = cmks.iter().map(|cmk| cmk.key_ref().clone()).collect();
    check_keys(&names).map_err(|e| KeyError::Config(e.to_string()))?;
    fit(mounted, keyring.prove(&cmks)?)?;

    let pinned = pinned_uris(&uris, &cmks);
    let listed = names.iter().zip(&pinned).map(|(key, uri)| DirectoryCmk { key: key.clone(), uri: uri.clone() });
    volume_file
        .put_directory_cmks(listed.collect())
        .map_err(|e| MountError::Volume(format!("the volume file could not be written: {e}")))?;
    let remarks = trust(mounted, &pinned)?;
    cmks.into_iter().for_each(|cmk| keyring.add_cmk(cmk));
    change(mounted, ino, Some(names.into()))?;
    Ok(DirectoryCmks { remarks, ..show(mounted, ino)? })
}

/// New files of the directory hang on the volume's own CMKs again.
pub fn unset(mounted: &Mounted, ino: Ino) -> Result<DirectoryCmks, MountError> {
    if mounted.volume_file.is_none() {
        return Err(read_only());
    }
    change(mounted, ino, None)?;
    show(mounted, ino)
}

pub fn show(mounted: &Mounted, ino: Ino) -> Result<DirectoryCmks, MountError> {
    let group = mounted.fs.directory_keys(ino).map_err(explained)?;
    let listed = mounted.volume_file.as_ref().and_then(|file| file.directory_cmks().ok()).unwrap_or_default();
    let status = mounted.keyring().status().cmks;
    let names: Vec<KeyRef> = match &group {
        Some(names) => names.to_vec(),
        None => mounted.keyring().own_cmks().iter().map(|cmk| cmk.key_ref().clone()).collect(),
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
    let cmks = names.into_iter().map(given).collect();
    Ok(DirectoryCmks { own: group.is_some(), cmks, remarks: Vec::new() })
}

/// Whether headers of this volume have room for these slots.
fn fit(mounted: &Mounted, slots: Vec<CmkSlot>) -> Result<(), MountError> {
    let keys = FileKeys::derive(&[0; 32], &Secret32::random());
    let header = FileHeader {
        volume_id: mounted.files.keyring.volume_id(),
        file_id: [0; 32],
        suite: SUITE,
        generation: 1,
        size_floor: 0,
        sealed_size: 0,
        flags: 0,
        commitment: keys.commitment(),
        previous_commitment: [0; 32],
        wrapped_dek: Some(WrappedDek { branch_id: [0; 16], salt: [0; 16], wrapped: [0; 60] }),
        slots,
    };
    match header.encode(&keys, None, mounted.files.geometry) {
        Ok(_) => Ok(()),
        Err(e) => Err(KeyError::Config(format!("new files could not carry these CMKs: {e}")).into()),
    }
}

/// Records that this host trusts these URIs. A host that keeps no record of the volume is told its CMKs at each mount.
fn trust(mounted: &Mounted, uris: &[String]) -> Result<Vec<String>, MountError> {
    let id = mounted.files.keyring.volume_id();
    let named = uris.iter().map(|uri| format!("--cmk '{}'", uri.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ");
    // Where there is no place for records, there is none.
    let recorded =
        KnownVolumes::default_location().map_or(Ok(false), |records| records.trust_directory_cmks(&id, uris));
    match recorded {
        Ok(true) => Ok(Vec::new()),
        Ok(false) => Ok(vec![format!("this host keeps no record of the volume: mount it with {named} as well from now on")]),
        Err(e) => Err(KeyError::Config(format!(
            "the directory was not changed: the next mount would not trust the CMK, since this host's record of the volume could not be written: {e}"
        ))
        .into()),
    }
}

/// In a thread that does nothing else: it takes on the identity of the record's owner.
fn change(mounted: &Mounted, ino: Ino, group: KeyGroup) -> Result<(), MountError> {
    let fs = mounted.fs.clone();
    let failed = |e: &dyn std::fmt::Display| MountError::Other(format!("the directory could not be changed: {e}"));
    let changer = thread::Builder::new().name("directory-cmk".into());
    let changer = changer.spawn(move || fs.set_directory_keys(ino, group)).map_err(|e| failed(&e))?;
    changer.join().map_err(|_| failed(&"a panic"))?.map_err(explained)
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
