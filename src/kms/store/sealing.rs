//! The keys of the store: the seal (a CMK of some provider) opens the data key, sub-keys of which hide and authenticate every
//! record, wrap material and secrets, and chain the trail. Knows no record's inside.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{AuthError, aead::AeadKey, kdf, kdf::Prk, random, secret::Secret32};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::providers::{self, Opening};
use crate::keys::uri::CmkUri;
use crate::keys::{EncryptionContext, KeyError, KeyRef};

const CONTEXT_SERVICE: &str = "envelopefs:kms-service-id";
const NONCE: usize = 12;
const TAG: usize = 16;
/// How long the seal's provider may take to answer.
pub const SEAL_TIMEOUT: Duration = Duration::from_secs(30);

/// What stands in the open beside the records: where the seal is, and the data key under it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SealedDataKey {
    /// Pinned to one key.
    pub seal: String,
    pub key: KeyName,
    /// As the provider made it, base64.
    pub blob: String,
    /// Milliseconds since the epoch.
    pub sealed: i64,
}

/// `KeyRef` as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyName {
    pub provider: String,
    pub key: String,
}

impl From<&KeyRef> for KeyName {
    fn from(key: &KeyRef) -> Self {
        Self { provider: key.provider.clone(), key: key.key.clone() }
    }
}

/// The root of everything that the store holds. In memory only while the service runs.
pub struct DataKey(Secret32);

impl DataKey {
    pub fn fresh() -> Self {
        Self(Secret32::random())
    }

    /// Wraps the data key under the CMK behind `uri`.
    pub fn seal(
        &self,
        uri: &CmkUri,
        passphrase: &PassphraseSource,
        service_id: &str,
        now: i64,
    ) -> Result<SealedDataKey, KeyError> {
        let cmk = providers::open_cmk(uri, &mut Opening::new(passphrase, SEAL_TIMEOUT))?;
        let context = context(service_id);
        let blob = cmk.wrap(&self.0, &context)?;
        // A seal that cannot be broken again would be found out at the next start, too late.
        let again = cmk.unwrap(&blob, &context)?;
        if !kdf::mac_eq(again.expose(), self.0.expose()) {
            return Err(KeyError::Config(format!("CMK {}: does not give back what it wrapped", cmk.key_ref())));
        }
        Ok(SealedDataKey {
            seal: uri.pinned(cmk.key_ref()).to_string(),
            key: cmk.key_ref().into(),
            blob: data_encoding::BASE64.encode(&blob),
            sealed: now,
        })
    }

    pub fn open(sealed: &SealedDataKey, passphrase: &PassphraseSource, service_id: &str) -> Result<Self, KeyError> {
        let uri = CmkUri::parse(&sealed.seal)?;
        let cmk = providers::open_cmk(&uri, &mut Opening::new(passphrase, SEAL_TIMEOUT))?;
        let blob = data_encoding::BASE64
            .decode(sealed.blob.as_bytes())
            .map_err(|_| KeyError::Config("the sealed data key is not base64: the store is damaged".into()))?;
        Ok(Self(cmk.unwrap(&blob, &context(service_id))?))
    }

    pub fn keys(&self) -> StoreKeys {
        let root = Prk::from_uniform(&self.0);
        let sub = |label: &[u8]| root.expand(&[b"envelopefs kms v1 ", label]);
        StoreKeys {
            records: AeadKey::new(&sub(b"records")),
            material: AeadKey::new(&sub(b"material")),
            index: sub(b"index"),
            trail: sub(b"trail"),
            backup: sub(b"backup"),
            tokens: sub(b"tokens"),
        }
    }
}

fn context(service_id: &str) -> EncryptionContext {
    EncryptionContext(vec![(CONTEXT_SERVICE, service_id.to_owned())])
}

/// One key a purpose.
pub struct StoreKeys {
    records: AeadKey,
    material: AeadKey,
    index: Secret32,
    trail: Secret32,
    backup: Secret32,
    tokens: Secret32,
}

impl StoreKeys {
    /// The place of a record in the database: tells nothing of its name.
    pub fn place(&self, name: &str) -> [u8; 32] {
        kdf::hmac_sha256(&self.index, &[name.as_bytes()])
    }

    /// `nonce ‖ ciphertext ‖ tag` of a record for its place.
    pub fn seal_record(&self, place: &[u8], record: &[u8]) -> Vec<u8> {
        seal(&self.records, place, record)
    }

    pub fn open_record(&self, place: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthError> {
        open(&self.records, place, sealed)
    }

    /// Secrets that records hold: key material and access keys. `context` says whose and what they are.
    pub fn wrap(&self, context: &[&[u8]], secret: &[u8]) -> Vec<u8> {
        seal(&self.material, &joined(context), secret)
    }

    pub fn unwrap(&self, context: &[&[u8]], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthError> {
        open(&self.material, &joined(context), wrapped)
    }

    pub fn trail(&self) -> &Secret32 {
        &self.trail
    }

    /// For grant tokens.
    pub fn tokens(&self) -> &Secret32 {
        &self.tokens
    }

    pub fn backup_mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        kdf::hmac_sha256(&self.backup, parts)
    }

    /// Authenticates tokens that clients bring back; each part is preceded by its length.
    pub fn token_mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        kdf::hmac_sha256(&self.tokens, &[&joined(parts)])
    }
}

/// Parts with their lengths in front (u32, little-endian), so that no two lists of parts are the same bytes.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Nonces are random: 2^32 changes under one data key stay far below what NIST SP 800-38D allows.
fn seal(key: &AeadKey, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE] = random::array();
    let mut out = Vec::with_capacity(NONCE + plain.len() + TAG);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plain);
    let tag = key.seal(&nonce, aad, &mut out[NONCE..]);
    out.extend_from_slice(&tag);
    out
}

fn open(key: &AeadKey, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthError> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or(AuthError)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG>().ok_or(AuthError)?;
    let mut plain = Zeroizing::new(vec![0; ciphertext.len()]);
    key.open(nonce, aad, ciphertext, tag, &mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_in_its_place_only() {
        let keys = DataKey::fresh().keys();
        let place = keys.place("key/1");
        let sealed = keys.seal_record(&place, b"text");
        assert_eq!(&keys.open_record(&place, &sealed).unwrap()[..], b"text");
        assert!(keys.open_record(&keys.place("key/2"), &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open_record(&place, &bad).is_err());
        }
        for len in 0..sealed.len() {
            assert!(keys.open_record(&place, &sealed[..len]).is_err());
        }
    }

    #[test]
    fn a_secret_opens_for_its_owner_only() {
        let keys = DataKey::fresh().keys();
        let wrapped = keys.wrap(&[b"ab", b"c"], b"secret");
        assert_eq!(&keys.unwrap(&[b"ab", b"c"], &wrapped).unwrap()[..], b"secret");
        assert!(keys.unwrap(&[b"a", b"bc"], &wrapped).is_err());
        assert!(DataKey::fresh().keys().unwrap(&[b"ab", b"c"], &wrapped).is_err());
        assert!(keys.open_record(b"", &wrapped).is_err());
    }
}
