//! The keyfile's JSON: parsing into checked types, writing a new one, material sealed under a passphrase (Argon2id).
//! Does no I/O and no key wrapping for others.

use std::time::{Duration, UNIX_EPOCH};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{
    random,
    secret::{Secret32, wiping_stack},
    wrap,
};
use crate::keys::CmkState;

/// Larger keyfiles are refused: bytes.
pub const KEYFILE_MAX: usize = 1 << 20;
/// Longest description, in bytes.
pub const DESCRIPTION_MAX: usize = 256;

const FORMAT: &str = "envelopefs-keyfile";
const FORMAT_VERSION: u32 = 1;
const KDF: &str = "argon2id";
const KEY_ID_MAX: usize = 64;
const KEYS_MAX: usize = 1024;
const VERSIONS_MAX: usize = 1024;
const SEAL_LABEL: &[u8] = b"envelopefs keyfile v1 material";

/// A keyfile whose every field has been checked; sealed material is still sealed.
pub struct Keyfile {
    /// Never empty; ids are distinct.
    pub keys: Vec<Key>,
}

pub struct Key {
    pub id: String,
    /// Seconds since the epoch.
    pub created: i64,
    pub description: String,
    pub state: CmkState,
    /// As written (RFC 3339): for people.
    pub deletion_date: Option<String>,
    /// The version that wraps; one of `versions`.
    pub current: u32,
    pub versions: Vec<KeyVersion>,
}

pub struct KeyVersion {
    pub version: u32,
    pub material: Material,
}

pub enum Material {
    Plain(Secret32),
    Sealed(Sealed),
}

/// 32 bytes under a key that Argon2id (RFC 9106) makes from a passphrase.
#[derive(Clone)]
pub struct Sealed {
    cost: Cost,
    salt: [u8; 16],
    wrapped: [u8; wrap::WRAPPED_LEN],
}

/// Argon2id parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Cost {
    pub const DEFAULT: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 };

    /// Above what anybody chooses on purpose; a damaged file must not take the machine down.
    fn is_sane(self) -> bool {
        (1..=64).contains(&self.lanes)
            && (1..=1024).contains(&self.passes)
            && (8 * self.lanes..=4 * 1024 * 1024).contains(&self.memory_kib)
    }
}

impl Keyfile {
    /// The error never quotes the file: what stands in the wrong place may be a key.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let probe: FormatJson = from_json(bytes)?;
        if probe.format != FORMAT {
            return Err("not an envelopefs keyfile".into());
        }
        if probe.version != FORMAT_VERSION {
            return Err(format!("keyfile version {}, this program knows {FORMAT_VERSION}", probe.version));
        }
        let document: DocumentJson = from_json(bytes)?;
        if document.keys.is_empty() || document.keys.len() > KEYS_MAX {
            return Err(format!("a keyfile holds 1 to {KEYS_MAX} keys"));
        }
        let mut keys: Vec<Key> = Vec::with_capacity(document.keys.len());
        for (index, json) in document.keys.into_iter().enumerate() {
            let key = Key::from_json(json).map_err(|why| format!("key {}: {why}", index + 1))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("key {}: its id is used twice", index + 1));
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    /// The bytes of a keyfile with one fresh, enabled key.
    pub fn fresh(
        description: &str,
        created: i64,
        passphrase: Option<(&[u8], Cost)>,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), String> {
        check_description(description)?;
        let id = fresh_id();
        let material = Secret32::random();
        let mut version = VersionJson { version: 1, created: Some(format_time(created)), key: None, sealed: None };
        match passphrase {
            None => version.key = Some(SecretText::encode(&material)),
            Some((passphrase, cost)) => {
                let sealed = Sealed::seal(&id, 1, &material, passphrase, cost)?;
                version.sealed = Some(SealedJson::from(&sealed));
            }
        }
        let document = DocumentJson {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            keys: vec![KeyJson {
                id,
                created: format_time(created),
                description: description.into(),
                state: StateJson::Enabled,
                deletion_date: None,
                current_version: 1,
                versions: vec![version],
            }],
        };
        // Room for all of it at once: a buffer that grows leaves copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(4096 + 6 * DESCRIPTION_MAX));
        serde_json::to_writer_pretty(&mut *bytes, &document).map_err(|_| "cannot be encoded".to_string())?;
        bytes.push(b'\n');
        Ok((Self::parse(&bytes)?, bytes))
    }
}

impl Key {
    fn from_json(json: KeyJson) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if json.id.is_empty() || json.id.len() > KEY_ID_MAX || !json.id.bytes().all(legal) {
            return Err(format!("its id is not 1 to {KEY_ID_MAX} letters, digits, '-', '.' or '_'"));
        }
        check_description(&json.description)?;
        let created = parse_time(&json.created).ok_or("\"created\" is not an RFC 3339 time in UTC")?;
        if let Some(date) = &json.deletion_date {
            parse_time(date).ok_or("\"deletion_date\" is not an RFC 3339 time in UTC")?;
        }
        if json.versions.is_empty() || json.versions.len() > VERSIONS_MAX {
            return Err(format!("a key has 1 to {VERSIONS_MAX} versions"));
        }
        let mut versions: Vec<KeyVersion> = Vec::with_capacity(json.versions.len());
        for v in json.versions {
            let version = v.version;
            if versions.iter().any(|other| other.version == version) {
                return Err(format!("version {version} is there twice"));
            }
            versions.push(KeyVersion::from_json(v).map_err(|why| format!("version {version}: {why}"))?);
        }
        if !versions.iter().any(|v| v.version == json.current_version) {
            return Err(format!("current version {} is missing", json.current_version));
        }
        Ok(Self {
            id: json.id,
            created,
            description: json.description,
            state: match json.state {
                StateJson::Enabled => CmkState::Enabled,
                StateJson::Disabled => CmkState::Disabled,
                StateJson::PendingDeletion => CmkState::PendingDeletion,
            },
            deletion_date: json.deletion_date,
            current: json.current_version,
            versions,
        })
    }
}

impl KeyVersion {
    fn from_json(json: VersionJson) -> Result<Self, String> {
        if json.created.as_deref().is_some_and(|created| parse_time(created).is_none()) {
            return Err("\"created\" is not an RFC 3339 time in UTC".into());
        }
        let material = match (json.key, json.sealed) {
            (Some(text), None) => Material::Plain(text.decode().ok_or("its key is not 32 bytes in base64url")?),
            (None, Some(sealed)) => Material::Sealed(sealed.decode()?),
            _ => return Err("it must have either \"key\" or \"sealed\"".into()),
        };
        Ok(Self { version: json.version, material })
    }
}

impl Sealed {
    fn seal(id: &str, version: u32, material: &Secret32, passphrase: &[u8], cost: Cost) -> Result<Self, String> {
        let mut sealed = Self { cost, salt: random::array(), wrapped: [0; wrap::WRAPPED_LEN] };
        let kek = sealed.derive(passphrase)?;
        sealed.wrapped = wrap::wrap_key(&kek, &random::array(), &sealed.authenticated(id, version), material);
        Ok(sealed)
    }

    /// Whether the same passphrase gives the same key for both: saves a derivation per version.
    pub fn shares_derivation(&self, other: &Self) -> bool {
        self.cost == other.cost && self.salt == other.salt
    }

    /// The key that the passphrase gives: slow on purpose, and `memory_kib` large.
    pub fn derive(&self, passphrase: &[u8]) -> Result<Secret32, String> {
        let failed = |e: argon2::Error| format!("Argon2id refuses its parameters: {e}");
        let Cost { memory_kib, passes, lanes } = self.cost;
        let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
        let mut memory = Vec::new();
        if memory.try_reserve_exact(params.block_count()).is_err() {
            return Err(format!("not enough memory for Argon2id ({} MiB)", memory_kib / 1024));
        }
        memory.resize(params.block_count(), Block::new());
        let mut memory: Zeroizing<Vec<Block>> = Zeroizing::new(memory);
        Secret32::written_by(|out| {
            wiping_stack(|| {
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into_with_memory(passphrase, &self.salt, out, &mut memory[..])
                    .map_err(failed)
            })
        })
    }

    /// `None`: not the key this was sealed under, or altered.
    pub fn open(&self, id: &str, version: u32, kek: &Secret32) -> Option<Secret32> {
        wrap::unwrap_key(kek, &self.authenticated(id, version), &self.wrapped).ok()
    }

    fn authenticated(&self, id: &str, version: u32) -> Vec<u8> {
        let numbers = [version, self.cost.memory_kib, self.cost.passes, self.cost.lanes];
        let mut out = SEAL_LABEL.to_vec();
        numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        out.extend_from_slice(id.as_bytes());
        out
    }
}

/// Text that is a key in base64url: wiped on drop, never printed.
struct SecretText(Zeroizing<String>);

impl SecretText {
    fn encode(secret: &Secret32) -> Self {
        Self(Zeroizing::new(BASE64URL_NOPAD.encode(secret.expose())))
    }

    fn decode(&self) -> Option<Secret32> {
        Secret32::written_by(|out| wiping_stack(|| decode_into(&self.0, out)).ok_or(())).ok()
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// The fields that every version of the format has.
#[derive(Deserialize)]
struct FormatJson {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentJson {
    format: String,
    version: u32,
    keys: Vec<KeyJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyJson {
    id: String,
    created: String,
    #[serde(default)]
    description: String,
    state: StateJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deletion_date: Option<String>,
    current_version: u32,
    versions: Vec<VersionJson>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateJson {
    Enabled,
    Disabled,
    PendingDeletion,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionJson {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<SecretText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<SealedJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedJson {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    wrapped: String,
}

impl From<&Sealed> for SealedJson {
    fn from(sealed: &Sealed) -> Self {
        let Cost { memory_kib, passes, lanes } = sealed.cost;
        Self {
            kdf: KDF.into(),
            memory_kib,
            passes,
            lanes,
            salt: BASE64URL_NOPAD.encode(&sealed.salt),
            wrapped: BASE64URL_NOPAD.encode(&sealed.wrapped),
        }
    }
}

impl SealedJson {
    fn decode(&self) -> Result<Sealed, String> {
        if self.kdf != KDF {
            return Err(format!("unknown kdf, this program knows {KDF}"));
        }
        let cost = Cost { memory_kib: self.memory_kib, passes: self.passes, lanes: self.lanes };
        if !cost.is_sane() {
            return Err(format!("Argon2id parameters out of range: {cost:?}"));
        }
        Ok(Sealed {
            cost,
            salt: decode_exactly(&self.salt).ok_or("its salt is not 16 bytes in base64url")?,
            wrapped: decode_exactly(&self.wrapped).ok_or("its sealed key is not 60 bytes in base64url")?,
        })
    }
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| {
        let kind = match e.classify() {
            serde_json::error::Category::Data => "a field is missing, unknown or of the wrong kind",
            _ => "not valid JSON",
        };
        format!("line {}, column {}: {kind}", e.line(), e.column())
    })
}

fn decode_exactly<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0u8; N];
    decode_into(text, &mut out)?;
    Some(out)
}

/// `None` unless `text` is exactly `out` in base64url.
fn decode_into(text: &str, out: &mut [u8]) -> Option<()> {
    if BASE64URL_NOPAD.decode_len(text.len()) != Ok(out.len()) {
        return None;
    }
    BASE64URL_NOPAD.decode_mut(text.as_bytes(), out).ok().map(|_| ())
}

fn check_description(text: &str) -> Result<(), String> {
    if text.len() > DESCRIPTION_MAX || text.chars().any(char::is_control) {
        return Err(format!("a description has at most {DESCRIPTION_MAX} bytes and no control characters"));
    }
    Ok(())
}

/// A random UUID (RFC 9562, version 4).
fn fresh_id() -> String {
    let mut bytes: [u8; 16] = random::array();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn format_time(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

fn parse_time(text: &str) -> Option<i64> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}
