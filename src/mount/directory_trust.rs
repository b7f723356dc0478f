//! The CMKs of directories at the start of a mount: which of them this host trusts, and how each is reached. One that cannot
//! be had keeps nobody from mounting. Knows records and lists of CMKs; no directories.

use std::sync::Arc;

use super::cipher_dir::CipherDir;
use super::trust::Request;
use super::{MountError, printable};
use crate::format::volume::{DirectoryCmk, VolumeConfig};
use crate::keys::guard::Guard;
use crate::keys::known_volumes::KnownVolumes;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{self, Opening, lazy::LazyCmk};
use crate::keys::uri::{CmkAddress, CmkUri};

/// The same address in one way of writing; text that is no URI stays as it is.
fn normal(text: &str) -> String {
    CmkUri::parse(text).map_or_else(|_| text.to_owned(), |uri| uri.to_string())
}

/// Splits the CMKs that a user named into the volume's own and those that the volume lists for directories alone.
pub fn split_named(named: &[String], claims: &VolumeConfig) -> (Vec<String>, Vec<String>) {
    let own: Vec<String> = claims.cmks.iter().map(|uri| normal(uri)).collect();
    let listed: Vec<String> = claims.directory_cmks.iter().map(|cmk| normal(&cmk.uri)).collect();
    named.iter().cloned().partition(|text| {
        let uri = normal(text);
        own.contains(&uri) || !listed.contains(&uri)
    })
}

/// Moves CMKs that the volume lists for directories, and that do not wrap its key, out of its own.
/// Gives them with the URIs that they were opened by.
pub fn split_opened(
    cmks: &mut Vec<Arc<Guard>>,
    uris: &mut Vec<CmkUri>,
    config: &VolumeConfig,
) -> (Vec<Arc<Guard>>, Vec<CmkUri>) {
    let of_directories = |cmk: &Guard| {
        let wraps =
            config.volume_key.iter().any(|s| s.provider == cmk.key_ref().provider && s.key_ref == cmk.key_ref().key);
        !wraps && config.directory_cmks.iter().any(|listed| listed.key == *cmk.key_ref())
    };
    let mut moved = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < cmks.len() {
        if of_directories(&cmks[at]) {
            moved.0.push(cmks.remove(at));
            moved.1.push(uris.remove(at));
        } else {
            at += 1;
        }
    }
    moved
}

/// The CMKs of directories that a mount works with. `trusted`: URIs that this host or its user vouches for; nobody else is
/// contacted. `config` is verified.
pub fn open(config: &VolumeConfig, trusted: &[String], own: &[Arc<Guard>], request: &Request<'_>) -> Vec<Arc<Guard>> {
    let mut opening = Opening::new(request.passphrase, request.outage.deadline);
    let mut opened: Vec<Arc<Guard>> = Vec::new();
    for text in trusted {
        let uri = match CmkUri::parse(text) {
            Ok(uri) => uri,
            Err(e) => {
                log::warn!("code=directory-cmk a CMK that is recorded for directories is left out: {e}");
                continue;
            }
        };
        let listed = config.directory_cmks.iter().find(|cmk| normal(&cmk.uri) == uri.to_string());
        match reach(&uri, listed, &mut opening, request) {
            Some(guard) if opened.iter().chain(own).any(|other| other.key_ref() == guard.key_ref()) => {}
            Some(guard) => opened.push(guard),
            None => {}
        }
    }
    opened
}

/// Keyfiles and tokens are opened now, since a passphrase or PIN may be to hand. A server is asked when it is needed: which key
/// it has is known, and one that is down must not hold up the mount.
fn reach(
    uri: &CmkUri,
    listed: Option<&DirectoryCmk>,
    opening: &mut Opening<'_>,
    request: &Request<'_>,
) -> Option<Arc<Guard>> {
    let later = |listed: &DirectoryCmk| {
        let (uri, timeout) = (uri.clone(), request.outage.deadline);
        // A daemon at work asks nobody.
        let open = move || providers::open_cmk(&uri, &mut Opening::new(&PassphraseSource::Nowhere, timeout));
        Guard::new(Arc::new(LazyCmk::new(listed.key.clone(), Box::new(open))), request.outage)
    };
    if let Some(listed) = listed
        && !matches!(uri.address, CmkAddress::Keyfile(_) | CmkAddress::Pkcs11(_))
    {
        return Some(later(listed));
    }
    match (providers::open_cmk(uri, opening), listed) {
        (Ok(cmk), Some(listed)) if *cmk.key_ref() != listed.key => {
            log::warn!(
                "code=directory-cmk {uri} leads to key {} now, and directories hang on {}: it is left out",
                cmk.key_ref(),
                listed.key
            );
            None
        }
        (Ok(cmk), _) => Some(Guard::new(cmk, request.outage)),
        (Err(e), Some(listed)) => {
            log::warn!(
                "code=directory-cmk going on without CMK {} of some directories: {e}. Files under it answer ENOKEY until it can be opened",
                listed.key
            );
            Some(later(listed))
        }
        (Err(e), None) => {
            log::warn!("code=directory-cmk going on without {uri}, which is recorded for directories: {e}");
            None
        }
    }
}

/// Tells which CMKs of directories this mount was not given, and how to trust them.
pub fn report_missing(dir: &CipherDir, config: &VolumeConfig, given: &[Arc<Guard>]) {
    for DirectoryCmk { key, uri } in &config.directory_cmks {
        if !given.iter().any(|cmk| cmk.key_ref() == key) {
            log::warn!(
                "code=directory-cmk the volume says that directories hang on CMK {key}, which this host does not trust for it: \
                 nobody is asked, and files under it answer ENOKEY. If it is right, type: {}",
                trust_command(dir, uri)
            );
        }
    }
}

/// What to type so that a host trusts a CMK of directories.
fn trust_command(dir: &CipherDir, uri: &str) -> String {
    let quoted = |text: &str| format!("'{}'", printable(text.as_bytes()).replace('\'', r"'\''"));
    format!("envelopefs cmk trust --cmk {} {}", quoted(uri), quoted(&dir.path().display().to_string()))
}

/// Records that this host trusts these CMKs for directories of the volume, without asking anybody. Gives what the user should
/// know beside that.
pub fn trust(dir: &CipherDir, uris: &[String]) -> Result<Vec<String>, MountError> {
    let uris = super::trust::parse_uris(uris)?;
    let volume = dir.require_volume()?;
    let claims = volume.claims();
    let texts: Vec<String> = uris.iter().map(|uri| uri.to_string()).collect();
    let records = KnownVolumes::default_location()?;
    if !records.trust_directory_cmks(&claims.volume_id, &texts)? {
        return Err(MountError::Volume(format!(
            "{}: this host has no record of the volume to add to: mount it once with --cmk for each of its CMKs, those of \
             directories included",
            dir.path().display()
        )));
    }
    let listed: Vec<String> = claims.directory_cmks.iter().map(|cmk| normal(&cmk.uri)).collect();
    let unlisted = texts.iter().filter(|text| !listed.contains(text));
    let remark = |uri: &String| {
        format!(
            "the volume does not list {uri} for any directory under this URI: each mount will open it to see which key it has"
        )
    };
    Ok(unlisted.map(remark).collect())
}
