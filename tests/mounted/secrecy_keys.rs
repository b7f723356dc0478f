//! Every secret behind one file of one volume, computed from keyfile, passphrase and backing files as FORMAT.md says it.

use std::fs;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64URL_NOPAD;
use envelopefs::crypto::{kdf::Prk, secret::Secret32, wrap};
use envelopefs::format::geometry::Geometry;
use envelopefs::format::header::{CmkSlot, Unverified};
use envelopefs::format::volume::{UnverifiedVolume, VolumeKeys};
use envelopefs::keys::passphrase::PassphraseSource;
use envelopefs::keys::providers::keyfile::KeyfileCmk;
use envelopefs::keys::{CmkProvider, EncryptionContext};

use super::secrecy_search::Needles;
use crate::common::*;

/// A volume whose keyfile may be sealed under a passphrase, with a mount of it in the foreground.
pub struct Sealed {
    pub volume: Volume,
    /// The passphrase file and what stands in it.
    pub passphrase: Option<(std::path::PathBuf, &'static str)>,
}

pub const PASSPHRASE: &str = "Armadillo-5408 crosses the Limpopo at noon";

impl Sealed {
    pub fn new(sealed: bool) -> Self {
        let volume = Volume::unmade(None);
        let passphrase = sealed.then(|| (private(&volume, "passphrase", PASSPHRASE), PASSPHRASE));
        let made = Self { volume, passphrase };
        made.volume.ok(made.arguments(&["keygen"], &[&made.volume.keyfile]));
        made.volume.ok(made.arguments(&["init", "--cmk", &made.volume.cmk()], &[&made.volume.cipher]));
        made
    }
    /// A command line of this volume: `--passphrase-file` added where there is one.
    pub fn arguments(&self, words: &[&str], paths: &[&Path]) -> Vec<std::ffi::OsString> {
        let mut all: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
        if let Some((file, _)) = &self.passphrase {
            all.extend(["--passphrase-file".into(), file.clone().into()]);
        }
        all.extend(paths.iter().map(Into::into));
        all
    }
    /// Mounts in the foreground behind `wrapper` (a program that runs another, `env` at least), at the log level given.
    pub fn mount_by(&self, wrapper: &[&str], level: &str) -> Mount {
        let mut command = std::process::Command::new(wrapper[0]);
        command
            .args(&wrapper[1..])
            .env("ENVELOPEFS_CONFIG_DIR", &self.volume.config)
            .env("ENVELOPEFS_RUNTIME_DIR", self.volume.runtime())
            .stdin(std::process::Stdio::null());
        // The harness sets a level of its own: the innermost `env` has the last word.
        command.args(["env", &format!("ENVELOPEFS_LOG={level}")]).arg(binary());
        command.args(self.arguments(&["mount", "--foreground"], &[&self.volume.cipher, &self.volume.mountpoint]));
        Mount::wait_until_up(&self.volume, &self.volume.mountpoint, command)
    }
    pub fn source(&self) -> PassphraseSource {
        match &self.passphrase {
            Some((file, _)) => PassphraseSource::File(file.clone()),
            None => PassphraseSource::Terminal,
        }
    }

    /// What must never be found anywhere: the passphrase and all keys above a file's own. `CMK`, `passphrase`,
    /// `passphrase key`, `volume key`, and its sub-keys `names`, `targets`...
    pub fn volume_secrets(&self, needles: &mut Needles) {
        let cmk = self.cmk();
        needles.add("CMK", cmk.0.expose());
        if let Some(kek) = &cmk.1 {
            needles.add("passphrase key", kek.expose());
            needles.add("passphrase", PASSPHRASE.as_bytes());
        }
        let text = fs::read(self.volume.cipher.join("envelopefs.toml")).unwrap();
        let volume = UnverifiedVolume::parse(&text).unwrap();
        let (id, slots) = (volume.claims().volume_id, volume.claims().volume_key.clone());
        let key = self.unwrap(&slots, &EncryptionContext::for_volume(&id));
        needles.add("volume key", key.expose());
        needles.add("volume PRK", &hmac(&id, key.expose()));
        let keys = VolumeKeys::derive(&id, &key);
        volume.verify(&keys).expect("these are the volume's keys");
        for (label, key) in [
            ("names", &keys.names),
            ("directory ids", &keys.dir_id),
            ("targets", &keys.targets),
            ("xattrs", &keys.xattrs),
            ("origin", &keys.origin),
            ("config", &keys.config),
        ] {
            needles.add(label, key.expose());
        }
        for half in [" s2v", " ctr"] {
            let label = [b"envelopefs v1 names".as_slice(), half.as_bytes()];
            needles.add(&format!("names{half}"), Prk::from_uniform(&keys.names).expand(&label).expose());
        }
    }

    /// The keys of the file with this inode number: `NAME: branch key`, `DEK`, `file PRK`, `header key`, `block key` (of its
    /// first block) and `xattr key`.
    pub fn file_secrets(&self, name: &str, ino: u64, needles: &mut Needles) {
        let backing = fs::read(self.volume.backing_of(ino)).unwrap();
        let page = |index: usize| &backing[index * PAGE as usize..(index + 1) * PAGE as usize];
        let header = Unverified::parse(page(0), Geometry { header_pages: 1 }).unwrap();
        let claims = header.claims();
        let wrapped = claims.wrapped_dek.as_ref().expect("branch mode");
        let branch = self.unwrap(&claims.slots, &EncryptionContext::for_branch(&claims.volume_id, &wrapped.branch_id));
        let dek = wrapped.open(&branch, &claims.volume_id, &claims.file_id).unwrap();
        let prk = Prk::extract(&claims.file_id, &dek);
        assert_eq!(prk.expand(&[b"envelopefs v1 file commit"]).expose(), &claims.commitment, "the DEK of {name}");
        let salt = envelopefs::format::block::peek(page(2).try_into().unwrap()).expect("a first block").key_salt;
        let raw_prk = hmac(&claims.file_id, dek.expose());
        for (label, key) in [
            ("branch key", branch.expose()),
            ("DEK", dek.expose()),
            ("file PRK", &raw_prk),
            ("header key", prk.expand(&[b"envelopefs v1 file hdr"]).expose()),
            ("block key", prk.expand(&[b"envelopefs v1 file blk", &salt]).expose()),
            ("xattr key", prk.expand(&[b"envelopefs v1 file xattr"]).expose()),
        ] {
            needles.add(&format!("{name}: {label}"), key);
        }
    }

    fn unwrap(&self, slots: &[CmkSlot], context: &EncryptionContext) -> Secret32 {
        let cmk = KeyfileCmk::open(&self.volume.keyfile, None, &self.source()).unwrap();
        cmk.unwrap(&slots[0].blob, context).unwrap()
    }

    /// The CMK's material as the keyfile has it, and the key that the passphrase gives.
    fn cmk(&self) -> (Secret32, Option<Secret32>) {
        let document: serde_json::Value = serde_json::from_slice(&fs::read(&self.volume.keyfile).unwrap()).unwrap();
        let (key, version) = (&document["keys"][0], &document["keys"][0]["versions"][0]);
        let bytes = |value: &serde_json::Value| BASE64URL_NOPAD.decode(value.as_str().unwrap().as_bytes()).unwrap();
        if self.passphrase.is_none() {
            return (Secret32::from_bytes(bytes(&version["key"]).try_into().unwrap()), None);
        }
        let sealed = &version["sealed"];
        let number = |name: &str| u32::try_from(sealed[name].as_u64().unwrap()).unwrap();
        let costs = [number("memory_kib"), number("passes"), number("lanes")];
        let params = Params::new(costs[0], costs[1], costs[2], Some(32)).unwrap();
        let mut kek = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(PASSPHRASE.as_bytes(), &bytes(&sealed["salt"]), &mut kek)
            .unwrap();
        let kek = Secret32::from_bytes(kek);
        let mut authenticated = b"envelopefs keyfile v1 material".to_vec();
        let version = u32::try_from(version["version"].as_u64().unwrap()).unwrap();
        [&[version][..], &costs].concat().iter().for_each(|n| authenticated.extend_from_slice(&n.to_le_bytes()));
        authenticated.extend_from_slice(key["id"].as_str().unwrap().as_bytes());
        let cmk = wrap::unwrap_key(&kek, &authenticated, &bytes(&sealed["wrapped"])).expect("the passphrase is right");
        (cmk, Some(kek))
    }
}

/// HKDF-Extract.
fn hmac(salt: &[u8], key: &[u8]) -> [u8; 32] {
    let (prk, _) = hkdf::Hkdf::<sha2::Sha256>::extract(Some(salt), key);
    prk.into()
}

/// A file that its owner alone may read, beside the volume.
pub fn private(volume: &Volume, name: &str, line: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = volume.scratch().join(name);
    fs::write(&path, format!("{line}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}
