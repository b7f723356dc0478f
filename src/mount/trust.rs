//! Whom a volume is opened with: what the user names, what this host recorded, or what the volume says on first use.
//! Knows CMKs and records; no FUSE.

use std::sync::Arc;

use data_encoding::HEXLOWER;

use super::cipher_dir::CipherDir;
use super::{MountError, printable};
use crate::format::volume::{UnverifiedVolume, VolumeConfig, VolumeKeys};
use crate::keys::known_volumes::{KnownVolume, KnownVolumes};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::CmkUri;
use crate::keys::providers::{self, KMS_DEADLINE, Opening};
use crate::keys::{self, CmkProvider, KeyError};

/// How a command wants a volume unlocked.
#[derive(Debug)]
pub struct Request<'a> {
    /// CMK URIs that the user named; they stand before any record.
    pub cmks: &'a [String],
    pub trust_first_use: bool,
    pub passphrase: &'a PassphraseSource,
    /// Writers need every CMK, since new keys are wrapped under each; readers need any.
    pub every_cmk: bool,
    /// A volume that this host did not know is recorded once it has opened.
    pub record: bool,
    /// The command that would work, for the error message: what stands in front of the options and behind them.
    pub command: (&'a str, &'a str),
}

/// A volume with its keys.
pub struct Unlocked {
    pub config: VolumeConfig,
    pub keys: VolumeKeys,
    pub cmks: Vec<Arc<dyn CmkProvider>>,
}

/// CMK URIs from text; a relative path becomes absolute.
pub fn parse_uris(texts: &[String]) -> Result<Vec<CmkUri>, KeyError> {
    texts.iter().map(|text| CmkUri::parse(text)).collect()
}

/// URIs that go on meaning the very keys that were opened: what records and volume files hold.
pub fn pinned_uris(uris: &[CmkUri], cmks: &[Arc<dyn CmkProvider>]) -> Vec<String> {
    uris.iter().zip(cmks).map(|(uri, cmk)| uri.pinned(cmk.key_ref()).to_string()).collect()
}

/// Opens the CMKs that are to be trusted, unwraps the volume key, checks record and MAC.
pub fn unlock(dir: &CipherDir, volume: UnverifiedVolume, request: &Request<'_>) -> Result<Unlocked, MountError> {
    let records = match KnownVolumes::default_location() {
        Ok(records) => Some(records),
        // Without a place for records there are none; named CMKs work all the same.
        Err(e) if request.cmks.is_empty() => return Err(e.into()),
        Err(_) => None,
    };
    let claims = volume.claims();
    let volume_id = claims.volume_id;
    let record = match &records {
        Some(records) => records.find(&volume_id)?,
        None => None,
    };
    let texts = if !request.cmks.is_empty() {
        request.cmks
    } else if let Some(record) = &record {
        &record.cmks
    } else if request.trust_first_use {
        &claims.cmks
    } else {
        return Err(KeyError::Config(unknown_volume(dir, claims, request.command)).into());
    };
    let uris = parse_uris(texts)?;
    if uris.is_empty() {
        return Err(MountError::Volume(format!("{}: no CMK is named for this volume", dir.path().display())));
    }
    let (uris, cmks) = open_cmks(uris, request)?;
    if let Some(record) = &record
        && request.cmks.is_empty()
        && !cmks.iter().any(|cmk| wraps_volume_key(claims, cmk.as_ref()))
    {
        return Err(MountError::Volume(format!(
            "volume {} contradicts its record: its key is wrapped under {}, recorded is {}. The volume file was replaced, \
             or its CMKs were changed elsewhere; if that is known to be right, name the CMK with --cmk",
            HEXLOWER.encode(&volume_id),
            wrapping_keys(claims),
            record.cmks.join(", "),
        )));
    }
    let (config, keys) = keys::volume::unlock(volume, &cmks, record.as_ref().map(|r| &r.commitment))?;
    if let (Some(records), true, true) = (&records, request.record, record.is_none()) {
        let known = KnownVolume {
            volume_id,
            cmks: pinned_uris(&uris, &cmks),
            commitment: keys.commitment,
            path: dir.path().display().to_string(),
        };
        if let Err(e) = records.record(&known) {
            log::warn!("the volume could not be recorded as known: {e}");
        }
    }
    Ok(Unlocked { config, keys, cmks })
}

type Opened = (Vec<CmkUri>, Vec<Arc<dyn CmkProvider>>);

fn open_cmks(uris: Vec<CmkUri>, request: &Request<'_>) -> Result<Opened, MountError> {
    let mut opening = Opening::new(request.passphrase, KMS_DEADLINE);
    let error = match providers::open_cmks(&uris, &mut opening) {
        Ok(cmks) => return Ok((uris, cmks)),
        Err(e) => e,
    };
    if uris.len() == 1 {
        return Err(error.into());
    }
    if request.every_cmk {
        return Err(KeyError::Config(format!(
            "{error}. New files are wrapped under every CMK of the volume, so a writer needs all of them; a read-only mount \
             (-o ro) goes on with those that open"
        ))
        .into());
    }
    // Readers go on with those that open.
    let mut opened = (Vec::new(), Vec::new());
    for uri in uris {
        match providers::open_cmk(&uri, &mut opening) {
            Ok(cmk) => {
                opened.0.push(uri);
                opened.1.push(cmk);
            }
            Err(e) => log::warn!("going on without CMK {uri}: {e}"),
        }
    }
    if opened.1.is_empty() { Err(error.into()) } else { Ok(opened) }
}

fn wraps_volume_key(claims: &VolumeConfig, cmk: &dyn CmkProvider) -> bool {
    let own = cmk.key_ref();
    claims.volume_key.iter().any(|slot| slot.provider == own.provider && slot.key_ref == own.key)
}

fn wrapping_keys(claims: &VolumeConfig) -> String {
    let names: Vec<String> =
        claims.volume_key.iter().map(|s| printable(format!("{}:{}", s.provider, s.key_ref).as_bytes())).collect();
    names.join(", ")
}

/// What to type on a host that does not know the volume.
fn unknown_volume(dir: &CipherDir, claims: &VolumeConfig, command: (&str, &str)) -> String {
    let (before, after) = command;
    // What the volume says is not verified yet: it must drive neither the terminal nor the shell.
    let cmks: Vec<String> = claims.cmks.iter().map(|uri| printable(uri.as_bytes())).collect();
    let named: String = cmks.iter().map(|uri| format!(" --cmk '{}'", uri.replace('\'', r"'\''"))).collect();
    format!(
        "{}: this host has no record of volume {}, so it does not say which CMKs to trust. The volume itself names: {}. \
         If that is right, type:\n  {before}{named} {after}",
        dir.path().display(),
        HEXLOWER.encode(&claims.volume_id),
        cmks.join(", "),
    )
}
