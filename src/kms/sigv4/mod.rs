//! Who signed a request: verification of AWS Signature Version 4, from the Authorization header or the query string (presigned).
//! Owns the form of the signature and the cache of signing keys; must not know users, policies or operations.
//!
//! Source: IAM User Guide, "AWS Signature Version 4 for API requests" and "Troubleshoot signed requests". Differences, all
//! stricter: the path is `/`, every `x-amz-` header that is there must be signed, SignedHeaders is sorted, a presigned request
//! must say how long it is valid, and there are no session tokens, since this service issues none.

mod canonical;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use hyper::{HeaderMap, Method, Uri};
use parking_lot::Mutex;
use sha2::Sha256;
use zeroize::Zeroizing;

use self::canonical::{Claim, decode_time, encode_time};
use crate::crypto::secret::{Secret32, wiping_stack};

/// How far the clocks of a client and of the service may be apart, in seconds.
pub const SKEW: u64 = 5 * 60;
/// How long a presigned request may be valid, in seconds.
pub const MAX_EXPIRES: u64 = 7 * 24 * 3600;
/// Access key ids are no longer (API: accessKeyIdType).
const MAX_ACCESS_KEY_ID: usize = 128;
/// Signing keys that are kept: one for each access key and day.
const MAX_CACHED: usize = 1024;

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub access_key_id: String,
    /// The request's own date, in seconds since 1970.
    pub signed_at: u64,
    /// By its query string rather than a header.
    pub presigned: bool,
}

/// Why a request is not authenticated: `code` is the error's type in the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("Request is missing Authentication Token")]
    Missing,
    #[error("{0}")]
    Incomplete(String),
    /// Also for a session token, which nobody here has issued.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
         and signing method. Consult the service documentation for details."
    )]
    Mismatch,
    /// The time, the scope or the payload hash.
    #[error("{0}")]
    Invalid(String),
}

impl AuthError {
    pub fn code(&self) -> &'static str {
        match self {
            AuthError::Missing => "MissingAuthenticationTokenException",
            AuthError::Incomplete(_) => "IncompleteSignatureException",
            AuthError::UnknownKey => "UnrecognizedClientException",
            AuthError::Mismatch | AuthError::Invalid(_) => "InvalidSignatureException",
        }
    }
    /// HTTP: as all errors of a client.
    pub fn status(&self) -> u16 {
        400
    }
}

/// What is signed of a request besides its body.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

/// Verifies requests to one service in one region.
pub struct Verifier {
    region: String,
    service: String,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// By access key id and day (`YYYYMMDD`).
    keys: HashMap<(String, String), Arc<Secret32>>,
    /// Counts what was forgotten: a key derived from a secret that was read before is not kept.
    epoch: u64,
}

impl Verifier {
    pub fn new(region: &str) -> Self {
        Self::for_service(region, "kms")
    }
    fn for_service(region: &str, service: &str) -> Self {
        Self { region: region.to_owned(), service: service.to_owned(), cache: Mutex::default() }
    }

    /// Who signed the request that `now` (seconds since 1970) arrived with `body`. `lookup` has the secret access keys that
    /// may be used now; it is asked once for an access key and day, until [`Verifier::forget`].
    pub fn verify(
        &self,
        head: Head,
        body: &[u8],
        now: u64,
        lookup: &dyn Fn(&str) -> Option<Zeroizing<String>>,
    ) -> Result<Verified, AuthError> {
        let claim = Claim::read(head)?;
        if claim.has_session_token {
            return Err(AuthError::UnknownKey);
        }
        let signed_at = decode_time(&claim.date).ok_or_else(|| {
            incomplete("The date of a request must be in ISO 8601 'basic format': 'YYYYMMDDThhmmssZ'.")
        })?;
        check_time(signed_at, claim.expires, now)?;
        let (access_key_id, day) = self.check_scope(&claim)?;
        let payload = claim.payload_hash(head.headers, body)?;
        let text = claim.string_to_sign(head, &payload)?;
        let key = self.signing_key(access_key_id, day, lookup).ok_or(AuthError::UnknownKey)?;
        verify_mac(&key, text.as_bytes(), &claim.signature).ok_or(AuthError::Mismatch)?;
        Ok(Verified { access_key_id: access_key_id.to_owned(), signed_at, presigned: claim.expires.is_some() })
    }

    /// The signature that the request would need, from the claim that it makes: for tests that dress up requests.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn signature_of(&self, head: Head, body: &[u8], secret: &Option<Zeroizing<String>>) -> Option<String> {
        let claim = Claim::read(head).ok()?;
        let (_, day) = self.check_scope(&claim).ok()?;
        let payload = claim.payload_hash(head.headers, body).ok()?;
        let text = claim.string_to_sign(head, &payload).ok()?;
        let key = derive(secret.as_ref()?, day, &self.region, &self.service);
        Some(data_encoding::HEXLOWER.encode(&mac(key.expose(), text.as_bytes()).finalize().into_bytes()))
    }

    /// Drops what was derived from an access key's secret: call it after the secret was changed, disabled or deleted.
    pub fn forget(&self, access_key_id: &str) {
        let mut cache = self.cache.lock();
        cache.keys.retain(|(id, _), _| id != access_key_id);
        cache.epoch += 1;
    }

    /// Access key id and day of the scope, which is for this service, here and on the day of the request.
    fn check_scope<'a>(&self, claim: &'a Claim) -> Result<(&'a str, &'a str), AuthError> {
        let parts: Vec<&str> = claim.credential.split('/').collect();
        let [id, day, region, service, end] = parts[..] else {
            return Err(incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.",
            ));
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if id.is_empty() || id.len() > MAX_ACCESS_KEY_ID || !id.bytes().all(fits) {
            return Err(AuthError::UnknownKey);
        }
        let mut wrong = Vec::new();
        if region != self.region {
            let own = &self.region;
            wrong.push(format!(
                "Credential should be scoped to a valid region, not '{}'. The region of this service is '{own}'.",
                shown(region)
            ));
        }
        if service != self.service {
            wrong.push(format!("Credential should be scoped to correct service: '{}'.", self.service));
        }
        if end != "aws4_request" {
            wrong.push("Credential should be scoped with a valid terminator: 'aws4_request'.".to_owned());
        }
        if !claim.date.starts_with(day) || day.len() != 8 {
            wrong.push(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP.".to_owned(),
            );
        }
        if wrong.is_empty() { Ok((id, day)) } else { Err(AuthError::Invalid(wrong.join(" "))) }
    }

    fn signing_key(
        &self,
        id: &str,
        day: &str,
        lookup: &dyn Fn(&str) -> Option<Zeroizing<String>>,
    ) -> Option<Arc<Secret32>> {
        let name = (id.to_owned(), day.to_owned());
        let epoch = {
            let cache = self.cache.lock();
            if let Some(key) = cache.keys.get(&name) {
                return Some(Arc::clone(key));
            }
            cache.epoch
        };
        let secret = lookup(id)?;
        let key = Arc::new(wiping_stack(|| derive(&secret, day, &self.region, &self.service)));
        let mut cache = self.cache.lock();
        if cache.epoch == epoch {
            if cache.keys.len() >= MAX_CACHED {
                // Yesterday's go first; where all are of one day, a new start costs each key one derivation.
                cache.keys.retain(|(_, of), _| of.as_str() >= day);
                if cache.keys.len() >= MAX_CACHED {
                    cache.keys.clear();
                }
            }
            cache.keys.insert(name, Arc::clone(&key));
        }
        Some(key)
    }
}

fn incomplete(text: &str) -> AuthError {
    AuthError::Incomplete(text.to_owned())
}
/// Foreign text for a message: short, and nothing that a terminal would act on.
fn shown(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(40).collect()
}

fn check_time(signed_at: u64, expires: Option<u64>, now: u64) -> Result<(), AuthError> {
    let (date, here) = (encode_time(signed_at), encode_time(now));
    let valid = expires.unwrap_or(SKEW);
    if signed_at.saturating_add(valid) < now {
        let (earliest, span) =
            (encode_time(now - valid), if expires.is_some() { format!("{valid} s") } else { minutes() });
        return Err(AuthError::Invalid(format!(
            "Signature expired: {date} is now earlier than {earliest} ({here} - {span}.)"
        )));
    }
    if signed_at > now.saturating_add(SKEW) {
        let (latest, span) = (encode_time(now.saturating_add(SKEW)), minutes());
        return Err(AuthError::Invalid(format!(
            "Signature not yet current: {date} is still later than {latest} ({here} + {span}.)"
        )));
    }
    Ok(())
}
fn minutes() -> String {
    format!("{} min", SKEW / 60)
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    mac.update(text);
    mac
}
fn derive(secret: &str, day: &str, region: &str, service: &str) -> Secret32 {
    let mut first = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
    first.extend_from_slice(b"AWS4");
    first.extend_from_slice(secret.as_bytes());
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&mac(&first, day.as_bytes()).finalize().into_bytes());
    for part in [region, service, "aws4_request"] {
        let next = mac(&key[..], part.as_bytes()).finalize().into_bytes();
        key.copy_from_slice(&next);
    }
    Secret32::from_bytes(*key)
}
/// In constant time.
fn verify_mac(key: &Secret32, text: &[u8], signature: &[u8; 32]) -> Option<()> {
    wiping_stack(|| mac(key.expose(), text).verify_slice(signature).ok())
}
