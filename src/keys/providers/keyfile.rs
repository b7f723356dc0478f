//! The embedded CMK provider: a JSON keyfile with one or more CMKs, optionally under a passphrase.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::keyfile_document::{Cost, KEYFILE_MAX, Key, KeyVersion, Keyfile, Material, Sealed};
use crate::keys::{
    CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef,
    known_volumes::KnownVolumes,
    length_prefix,
    passphrase::{PassphraseReader, PassphraseSource},
    protected::{self, Protection},
    unix_now,
};
use crate::crypto::{random, secret::Secret32, wrap};

/// The name that headers record.
pub const PROVIDER: &str = "keyfile";

const WRAP_LABEL: &[u8] = b"envelopefs keyfile v1 wrap";
const BLOB_VERSION: u8 = 1;
/// `version 1 ‖ CMK version u32 LE ‖ nonce 12 ‖ ciphertext 32 ‖ tag 16`
const BLOB_LEN: usize = 1 + 4 + wrap::WRAPPED_LEN;
/// How often a terminal is asked again after a wrong passphrase.
const TERMINAL_ATTEMPTS: u32 = 3;

/// Creates a keyfile with one fresh CMK, mode 0600, never over an existing file. Durable when it returns. Returns the CMK's info.
pub fn create(path: &Path, description: &str, passphrase: Option<&PassphraseSource>) -> Result<CmkInfo, KeyError> {
    create_with(path, description, passphrase, Cost::DEFAULT)
}

fn create_with(
    path: &Path,
    description: &str,
    passphrase: Option<&PassphraseSource>,
    cost: Cost,
) -> Result<CmkInfo, KeyError> {
    // Asked before anybody types a passphrase; the exclusive creation below is what decides.
    if path.symlink_metadata().is_ok() {
        let exists = std::io::Error::from_raw_os_error(libc::EEXIST);
        return Err(KeyError::io(path, exists));
    }
    let passphrase =
        passphrase.map(|source| source.read(&format!("New passphrase for {}: ", path.display()), true)).transpose()?;
    let sealing = passphrase.as_ref().map(|passphrase| (passphrase.as_slice(), cost));
    let (keyfile, bytes) =
        Keyfile::fresh(description, unix_now(), sealing).map_err(|why| malformed(path, &why))?;
    let info = keyfile.keys.first().map(info).ok_or_else(|| malformed(path, "no key"))?;
    // The documented place for keyfiles, which a fresh host does not have yet; no other directory is made up.
    if let (Ok(dir), Some(parent)) = (KnownVolumes::config_dir(), path.parent())
        && dir == parent
    {
        protected::create_directory(parent)?;
    }
    protected::create_new(path, &bytes)?;
    Ok(info)
}

/// What a keyfile says without its passphrase.
pub fn inspect(path: &Path) -> Result<Vec<CmkInfo>, KeyError> {
    Ok(load(path)?.keys.iter().map(info).collect())
}

fn load(path: &Path) -> Result<Keyfile, KeyError> {
    let bytes = protected::read(path, "keyfile", Protection::Secret, KEYFILE_MAX)?;
    Keyfile::parse(&bytes).map_err(|why| malformed(path, &why))
}

fn malformed(path: &Path, why: &str) -> KeyError {
    KeyError::Config(format!("keyfile {}: {why}", path.display()))
}

fn info(key: &Key) -> CmkInfo {
    CmkInfo {
        key: key_ref(&key.id),
        state: key.state,
        description: key.description.clone(),
        created: Some(key.created),
    }
}

fn key_ref(id: &str) -> KeyRef {
    KeyRef { provider: PROVIDER.into(), key: id.into() }
}

/// One CMK of a keyfile, ready to use.
pub struct KeyfileCmk {
    path: PathBuf,
    key_ref: KeyRef,
    /// The version that wraps; one of `versions`.
    current: u32,
    versions: Vec<(u32, Secret32)>,
    /// As the file said last; held for the copy only, never across a read of the file.
    status: Mutex<Status>,
}

#[derive(Clone)]
struct Status {
    info: CmkInfo,
    deletion_date: Option<String>,
}

impl Status {
    fn of(key: &Key) -> Self {
        Self { info: info(key), deletion_date: key.deletion_date.clone() }
    }
}

impl KeyfileCmk {
    /// `key`: an id in the file, or the first enabled one (the first, where none is). Refuses a file that others may
    /// read (mode & 077). A key that is not enabled opens, and refuses every use until it is enabled again.
    pub fn open(path: &Path, key: Option<&str>, passphrase: &PassphraseSource) -> Result<Self, KeyError> {
        Self::open_with(path, key, &mut PassphraseReader::new(passphrase))
    }

    pub(super) fn open_with(
        path: &Path,
        key: Option<&str>,
        passphrase: &mut PassphraseReader<'_>,
    ) -> Result<Self, KeyError> {
        let keyfile = load(path)?;
        let ids: Vec<String> = keyfile.keys.iter().map(|k| k.id.clone()).collect();
        let wanted = match key {
            Some(id) => keyfile.keys.iter().position(|k| k.id == id),
            None => keyfile.keys.iter().position(|k| k.state == CmkState::Enabled).or(Some(0)),
        };
        let Some(key) = wanted.and_then(|index| keyfile.keys.into_iter().nth(index)) else {
            let wanted = key.unwrap_or("any key");
            return Err(malformed(path, &format!("it has no key {wanted:?}, only: {}", ids.join(", "))));
        };
        let status = Status::of(&key);
        let versions = open_material(path, &key.id, key.versions, passphrase)?;
        Ok(Self {
            path: path.to_path_buf(),
            key_ref: status.info.key.clone(),
            current: key.current,
            versions,
            status: Mutex::new(status),
        })
    }

    /// The key's entry as the file has it now.
    fn refresh(&self) -> Result<Status, KeyError> {
        let keyfile = load(&self.path)?;
        let status = match keyfile.keys.iter().find(|k| k.id == self.key_ref.key) {
            Some(key) => Status::of(key),
            None => return Err(self.refused(format!("it was removed from {}", self.path.display()))),
        };
        *self.status.lock() = status.clone();
        Ok(status)
    }

    /// Follows the file, so that disabling a key reaches a running mount; while the file cannot be read (removed after
    /// the start, being edited) what it said last holds.
    fn check_usable(&self) -> Result<(), KeyError> {
        let status = match self.refresh() {
            Ok(status) => status,
            Err(refused @ KeyError::Refused { .. }) => return Err(refused),
            Err(_) => self.status.lock().clone(),
        };
        let file = self.path.display();
        match (status.info.state, status.deletion_date) {
            (CmkState::Enabled, _) => Ok(()),
            (CmkState::Disabled, _) => Err(self.refused(format!("it is disabled in {file}"))),
            (CmkState::PendingDeletion, None) => Err(self.refused(format!("it is pending deletion in {file}"))),
            (CmkState::PendingDeletion, Some(date)) => {
                Err(self.refused(format!("it is pending deletion on {date} in {file}")))
            }
        }
    }

    fn refused(&self, reason: String) -> KeyError {
        KeyError::Refused { key: self.key_ref.to_string(), reason }
    }

    fn bad_blob(&self, reason: impl Into<String>) -> KeyError {
        KeyError::BadBlob { key: self.key_ref.to_string(), reason: reason.into() }
    }

    fn material(&self, version: u32) -> Option<&Secret32> {
        self.versions.iter().find(|(v, _)| *v == version).map(|(_, material)| material)
    }

    /// Binds a blob to this key, its version and the context.
    fn authenticated(&self, version: u32, context: &EncryptionContext) -> Vec<u8> {
        let mut out = WRAP_LABEL.to_vec();
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&length_prefix(self.key_ref.key.len()));
        out.extend_from_slice(self.key_ref.key.as_bytes());
        out.extend_from_slice(&context.canonical_bytes());
        out
    }

    fn seal(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        let material =
            self.material(self.current).ok_or_else(|| malformed(&self.path, "its current version is missing"))?;
        let mut blob = Vec::with_capacity(BLOB_LEN);
        blob.push(BLOB_VERSION);
        blob.extend_from_slice(&self.current.to_le_bytes());
        let aad = self.authenticated(self.current, context);
        blob.extend_from_slice(&wrap::wrap_key(material, &random::array(), &aad, key));
        Ok(blob)
    }
}

impl fmt::Debug for KeyfileCmk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyfileCmk").field("key_ref", &self.key_ref).finish_non_exhaustive()
    }
}

impl CmkProvider for KeyfileCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }

    fn is_local(&self) -> bool {
        true
    }

    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        self.check_usable()?;
        let key = Secret32::random();
        let blob = self.seal(&key, context)?;
        Ok((key, blob))
    }

    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        self.check_usable()?;
        self.seal(key, context)
    }

    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        self.check_usable()?;
        let Some((&[BLOB_VERSION, v0, v1, v2, v3], wrapped)) =
            blob.split_first_chunk::<5>().filter(|_| blob.len() == BLOB_LEN)
        else {
            return Err(self.bad_blob("not a keyfile blob"));
        };
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        let Some(material) = self.material(version) else {
            return Err(self.bad_blob(format!(
                "it names version {version} of the key, which {} did not have when it was opened",
                self.path.display()
            )));
        };
        wrap::unwrap_key(material, &self.authenticated(version, context), wrapped)
            .map_err(|_| self.bad_blob("altered, or made for something else"))
    }

    /// Reads the file again: a key that was disabled or enabled since shows it.
    fn describe(&self) -> Result<CmkInfo, KeyError> {
        match self.refresh() {
            Ok(status) => Ok(status.info),
            Err(KeyError::Io { path, source }) => {
                Err(KeyError::Unreachable { key: self.key_ref.to_string(), reason: format!("{path}: {source}") })
            }
            Err(other) => Err(other),
        }
    }
}

/// The plain material of every version; the passphrase is asked for only where one is sealed.
fn open_material(
    path: &Path,
    id: &str,
    versions: Vec<KeyVersion>,
    passphrase: &mut PassphraseReader<'_>,
) -> Result<Vec<(u32, Secret32)>, KeyError> {
    let mut open = Vec::with_capacity(versions.len());
    let mut sealed = Vec::new();
    for KeyVersion { version, material } in versions {
        match material {
            Material::Plain(material) => open.push((version, material)),
            Material::Sealed(material) => sealed.push((version, material)),
        }
    }
    if sealed.is_empty() {
        return Ok(open);
    }
    let mut attempts = if passphrase.can_retry() { TERMINAL_ATTEMPTS } else { 1 };
    loop {
        let typed = passphrase.read(&format!("Passphrase for keyfile {}: ", path.display()))?;
        match open_sealed(id, &sealed, &typed).map_err(|why| malformed(path, &why))? {
            Some(more) => {
                open.extend(more);
                return Ok(open);
            }
            None if attempts > 1 => {
                attempts -= 1;
                log::warn!("wrong passphrase for keyfile {}", path.display());
            }
            None => {
                return Err(KeyError::Refused {
                    key: key_ref(id).to_string(),
                    reason: format!("wrong passphrase for keyfile {}, or the file was altered", path.display()),
                });
            }
        }
    }
}

/// `None`: the passphrase does not open them.
fn open_sealed(id: &str, sealed: &[(u32, Sealed)], passphrase: &[u8]) -> Result<Option<Vec<(u32, Secret32)>>, String> {
    let mut derived: Vec<(&Sealed, Secret32)> = Vec::new();
    let mut open = Vec::with_capacity(sealed.len());
    for (version, material) in sealed {
        let known = derived.iter().position(|(other, _)| other.shares_derivation(material));
        let index = match known {
            Some(index) => index,
            None => {
                derived.push((material, material.derive(passphrase)?));
                derived.len() - 1
            }
        };
        match material.open(id, *version, &derived[index].1) {
            Some(secret) => open.push((*version, secret)),
            None => return Ok(None),
        }
    }
    Ok(Some(open))
}

#[cfg(test)]
mod tests;
