//! Whom a volume is opened with: what the user names, what this host recorded, or what the volume says on first use.
//! Knows CMKs and records; no FUSE.

use std::sync::{Arc, mpsc};
use std::thread;

use data_encoding::HEXLOWER;

use super::cipher_dir::CipherDir;
use super::waiting::Patience;
use super::{MountError, directory_trust, printable};
use crate::format::header::CmkSlot;
use crate::format::volume::{UnverifiedVolume, VolumeConfig, VolumeKeys};
use crate::keys::guard::{Deadline, Guard, OutagePolicy};
use crate::keys::known_volumes::{KnownVolume, KnownVolumes};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{self, Opening, lazy::LazyCmk};
use crate::keys::uri::{CmkAddress, CmkUri};
use crate::keys::{self, CmkProvider, KeyError, KeyRef};

/// How a command wants a volume unlocked.
#[derive(Debug)]
pub struct Request<'a> {
    /// CMK URIs that the user named; they stand before any record.
    pub cmks: &'a [String],
    pub trust_first_use: bool,
    pub passphrase: &'a PassphraseSource,
    pub outage: OutagePolicy,
    pub patience: Patience,
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
    pub cmks: Vec<Arc<Guard>>,
    /// Those of directories that this host trusts and the volume does not hang on itself.
    pub directory_cmks: Vec<Arc<Guard>>,
}

/// CMK URIs from text; a relative path becomes absolute.
pub fn parse_uris(texts: &[String]) -> Result<Vec<CmkUri>, KeyError> {
    texts.iter().map(|text| CmkUri::parse(text)).collect()
}

/// URIs that go on meaning the very keys that were opened: what records and volume files hold.
pub fn pinned_uris(uris: &[CmkUri], cmks: &[Arc<Guard>]) -> Vec<String> {
    uris.iter().zip(cmks).map(|(uri, cmk)| uri.pinned(cmk.key_ref()).to_string()).collect()
}

/// Opens the CMKs that are to be trusted, unwraps the volume key, checks record and MAC.
pub fn unlock(dir: &CipherDir, volume: UnverifiedVolume, request: &Request<'_>) -> Result<Unlocked, MountError> {
    let claims = volume.claims();
    let (named, named_for_directories) = directory_trust::split_named(request.cmks, claims);
    let records = match KnownVolumes::default_location() {
        Ok(records) => Some(records),
        // Without a place for records there are none; named CMKs work all the same.
        Err(e) if named.is_empty() => return Err(e.into()),
        Err(_) => None,
    };
    let volume_id = claims.volume_id;
    let record = match &records {
        Some(records) => records.find(&volume_id)?,
        None => None,
    };
    let texts = if !named.is_empty() {
        &named
    } else if let Some(record) = &record {
        &record.cmks
    } else if request.trust_first_use {
        &claims.cmks
    } else {
        return Err(KeyError::Config(unknown_volume(dir, claims, request.command)).into());
    };
    let uris = parse_uris(texts)?;
    if named.is_empty()
        && record.is_none()
        && let Some(uri) = uris.iter().find(|uri| uri.loads_code())
    {
        return Err(KeyError::Config(format!(
            "{}: the volume names a PKCS#11 module, which is code that would be loaded; trust_first_use does not go that far. \
             If that is right, name it: --cmk '{}'",
            dir.path().display(),
            printable(uri.to_string().as_bytes()).replace('\'', r"'\''"),
        ))
        .into());
    }
    if uris.is_empty() {
        return Err(MountError::Volume(format!("{}: no CMK is named for this volume", dir.path().display())));
    }
    let mut opener = Opener::new(uris, request);
    let mut patience = request.patience.clone();
    let (mut uris, mut cmks, config, keys) = loop {
        let until = Deadline::after(request.outage.deadline);
        // Half of the time is for opening: what takes longer goes on meanwhile.
        let error = match opener.open(claims, until.share(2)) {
            Ok((uris, cmks)) => {
                if let Some(record) = &record
                    && named.is_empty()
                    && !cmks.iter().any(|cmk| wraps_volume_key(claims, cmk))
                {
                    return Err(contradiction(claims, record));
                }
                match keys::volume::unlock(volume.clone(), &cmks, record.as_ref().map(|r| &r.commitment), until) {
                    Ok((config, keys)) => break (uris, cmks, config, keys),
                    Err(e) if may_pass(&e, &cmks) => e,
                    Err(e) => return Err(e.into()),
                }
            }
            Err(MountError::Key(e @ KeyError::Unreachable { .. })) => e,
            Err(e) => return Err(e),
        };
        patience.wait(error)?;
    };
    let (mut directory_cmks, opened_for_directories) = directory_trust::split_opened(&mut cmks, &mut uris, &config);
    let mut trusted = match &record {
        Some(record) => record.directory_cmks.clone(),
        // The volume is authentic by now.
        None if request.trust_first_use => config.directory_cmks.iter().map(|cmk| cmk.uri.clone()).collect(),
        None => Vec::new(),
    };
    trusted.extend(named_for_directories);
    trusted.extend(pinned_uris(&opened_for_directories, &directory_cmks));
    let own: Vec<_> = cmks.iter().chain(&directory_cmks).cloned().collect();
    directory_cmks.extend(directory_trust::open(&config, &trusted, &own, request));
    let given: Vec<_> = cmks.iter().chain(&directory_cmks).cloned().collect();
    directory_trust::report_missing(dir, &config, &given);
    if let (Some(records), true, true) = (&records, request.record, record.is_none()) {
        let known = KnownVolume {
            volume_id,
            cmks: pinned_uris(&uris, &cmks),
            directory_cmks: trusted,
            commitment: keys.commitment,
            path: dir.path().display().to_string(),
        };
        if let Err(e) = records.record(&known) {
            log::warn!("the volume could not be recorded as known: {e}");
        }
    }
    Ok(Unlocked { config, keys, cmks, directory_cmks })
}

type Opened = (Vec<CmkUri>, Vec<Arc<Guard>>);

/// Opens CMKs; those that did not open are tried again by the next call.
struct Opener<'a> {
    request: &'a Request<'a>,
    uris: Vec<CmkUri>,
    cmks: Vec<Option<Arc<Guard>>>,
    opening: Opening<'a>,
    told: bool,
}

impl<'a> Opener<'a> {
    fn new(uris: Vec<CmkUri>, request: &'a Request<'a>) -> Self {
        let opening = Opening::new(request.passphrase, request.outage.deadline);
        Self { request, cmks: uris.iter().map(|_| None).collect(), uris, opening, told: false }
    }

    /// Those that can be used. A writer has to have all that are not optional; one that cannot be reached and whose URI says
    /// which key it is counts as opened and comes in when it answers.
    fn open(&mut self, claims: &VolumeConfig, until: Deadline) -> Result<Opened, MountError> {
        let mut failed: Option<KeyError> = None;
        for at in 0..self.uris.len() {
            if self.cmks[at].is_some() {
                continue;
            }
            let uri = self.uris[at].clone();
            let cmk = match self.open_one(&uri, claims, until.share(self.uris.len() - at)) {
                Ok(cmk) => cmk,
                Err(e) => {
                    if self.uris.len() > 1 && (uri.optional || !self.request.every_cmk) {
                        if !self.told {
                            log::warn!("going on without CMK {uri}: {e}");
                        }
                    } else if self.uris.len() > 1 {
                        return Err(needed_by_a_writer(e).into());
                    }
                    failed.get_or_insert(e);
                    continue;
                }
            };
            let mut others = self.cmks.iter().flatten();
            if others.any(|other| other.key_ref() == cmk.key_ref()) {
                let name = cmk.key_ref();
                return Err(KeyError::Config(format!("CMK {name} is given twice (second time as {uri})")).into());
            }
            self.cmks[at] = Guard::all(&[uri], vec![cmk], self.request.outage).pop();
        }
        self.told = true;
        let opened = self.uris.iter().zip(&self.cmks);
        let opened: Opened = opened.filter_map(|(uri, cmk)| Some((uri.clone(), cmk.clone()?))).unzip();
        match failed {
            Some(error) if opened.1.is_empty() => Err(error.into()),
            _ => Ok(opened),
        }
    }

    fn open_one(
        &mut self,
        uri: &CmkUri,
        claims: &VolumeConfig,
        until: Deadline,
    ) -> Result<Arc<dyn CmkProvider>, KeyError> {
        // Later on nobody can be asked any more, but a file can be read again.
        let passphrase = match self.request.passphrase {
            PassphraseSource::File(path) => PassphraseSource::File(path.clone()),
            _ => PassphraseSource::Nowhere,
        };
        let (reopened, timeout) = (uri.clone(), self.opening.timeout);
        let open = move || providers::open_cmk(&reopened, &mut Opening::new(&passphrase, timeout));
        let outcome = match uri.address {
            // Whoever types a passphrase or PIN may take his time.
            CmkAddress::Keyfile(_) | CmkAddress::Pkcs11(_) => providers::open_cmk(uri, &mut self.opening),
            CmkAddress::Aws(_) | CmkAddress::Vault(_) | CmkAddress::K8s(_) => in_time(open.clone(), uri, until),
        };
        let unreachable = match outcome {
            Err(e @ KeyError::Unreachable { .. }) => e,
            outcome => return outcome,
        };
        // What it would have told: it is one of those that the volume key is wrapped under.
        let mut names: Vec<KeyRef> = claims.volume_key.iter().map(name_of).filter(|name| uri.may_mean(name)).collect();
        names.dedup();
        match <[KeyRef; 1]>::try_from(names) {
            Ok([name]) => {
                log::warn!("code=kms-down {unreachable}. The mount starts without it; it comes in when it answers");
                Ok(Arc::new(LazyCmk::new(name, Box::new(open))))
            }
            Err(_) => Err(unreachable),
        }
    }
}

/// `open` on a thread of its own, given up when the time is over.
fn in_time(
    open: impl FnOnce() -> Result<Arc<dyn CmkProvider>, KeyError> + Send + 'static,
    uri: &CmkUri,
    until: Deadline,
) -> Result<Arc<dyn CmkProvider>, KeyError> {
    let (done, opened) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("kms-open".into()).spawn(move || {
        // Where nobody waits any more, it closes again.
        let _ = done.send(open());
    });
    if let Err(e) = spawned {
        return Err(KeyError::Config(format!("cannot start a thread: {e}")));
    }
    opened
        .recv_timeout(until.left())
        .unwrap_or_else(|_| Err(KeyError::Unreachable { key: uri.to_string(), reason: "no answer in time".into() }))
}

fn needed_by_a_writer(error: KeyError) -> KeyError {
    const WHY: &str = "New files are wrapped under every CMK of the volume, so a writer needs all of them that are not \
                       optional; a read-only mount (-o ro) goes on with those that open";
    match error {
        KeyError::Unreachable { key, reason } => KeyError::Unreachable { key, reason: format!("{reason}. {WHY}") },
        other => KeyError::Config(format!("{other}. {WHY}")),
    }
}

/// Whether waiting may help: somebody could not be reached, and nobody who could be asked opens the volume.
fn may_pass(error: &KeyError, cmks: &[Arc<Guard>]) -> bool {
    match error {
        KeyError::Unreachable { .. } => true,
        KeyError::Refused { .. } => cmks.iter().any(|cmk| cmk.status().state == "unreachable"),
        _ => false,
    }
}

fn name_of(slot: &CmkSlot) -> KeyRef {
    KeyRef { provider: slot.provider.clone(), key: slot.key_ref.clone() }
}

fn wraps_volume_key(claims: &VolumeConfig, cmk: &Guard) -> bool {
    let own = cmk.key_ref();
    claims.volume_key.iter().any(|slot| slot.provider == own.provider && slot.key_ref == own.key)
}

fn contradiction(claims: &VolumeConfig, record: &KnownVolume) -> MountError {
    MountError::Volume(format!(
        "volume {} contradicts its record: its key is wrapped under {}, recorded is {}. The volume file was replaced, \
         or its CMKs were changed elsewhere; if that is known to be right, name the CMK with --cmk",
        HEXLOWER.encode(&claims.volume_id),
        wrapping_keys(claims),
        record.cmks.join(", "),
    ))
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
    let uris = claims.cmks.iter().chain(claims.directory_cmks.iter().map(|cmk| &cmk.uri));
    let cmks: Vec<String> = uris.map(|uri| printable(uri.as_bytes())).collect();
    let named: String = cmks.iter().map(|uri| format!(" --cmk '{}'", uri.replace('\'', r"'\''"))).collect();
    format!(
        "{}: this host has no record of volume {}, so it does not say which CMKs to trust. The volume itself names: {}. \
         If that is right, type:\n  {before}{named} {after}",
        dir.path().display(),
        HEXLOWER.encode(&claims.volume_id),
        cmks.join(", "),
    )
}
