//! Vault and OpenBao Transit as a CMK provider. Knows which request each use takes; nothing of policy around calls.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ureq::http::Method;
use zeroize::Zeroizing;

use super::Opening;
use crate::crypto::secret::Secret32;
use crate::keys::{CmkInfo, CmkProvider, CmkState, EncryptionContext, KeyError, KeyRef, uri::VaultUri};

mod auth;
mod channel;
mod client;
mod failure;
pub(crate) mod transit;

use auth::Auth;
use client::{Answer, Client};
use failure::Failure;
use transit::{KeyData, Use};

/// The name that headers record.
pub const PROVIDER: &str = "hashivault";

/// One derived key of a Transit engine.
pub struct VaultCmk {
    key_ref: KeyRef,
    mount: String,
    key: String,
    client: Arc<Client>,
    auth: Auth,
    timeout: Duration,
    /// Whether the token may read the key's properties.
    may_read: bool,
}

impl VaultCmk {
    /// Contacts the server: the key must exist and bind a context, or the CMK does not open.
    pub fn open(uri: &VaultUri, opening: &mut Opening<'_>) -> Result<Self, KeyError> {
        let key_ref = KeyRef { provider: PROVIDER.into(), key: uri.key_name() };
        let name = key_ref.to_string();
        let opened = || -> Result<Self, Failure> {
            let until = Instant::now() + opening.timeout;
            let client = Arc::new(Client::new(uri)?);
            let auth = Auth::new(client.clone(), uri.auth.clone(), opening.timeout)?;
            let mut cmk = Self {
                key_ref,
                mount: uri.mount.clone(),
                key: uri.key.clone(),
                client,
                auth,
                timeout: opening.timeout,
                may_read: true,
            };
            match cmk.read_key(until)? {
                Some(data) => data.check(&cmk.mount, &cmk.key)?,
                None => {
                    cmk.may_read = false;
                    cmk.check_by_use(until)?;
                }
            }
            Ok(cmk)
        };
        opened().map_err(|failure| failure.about(&name))
    }

    fn until(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn about(&self) -> impl Fn(Failure) -> KeyError {
        |failure| failure.about(&self.key_ref.to_string())
    }

    fn path(&self, wanted: Use) -> String {
        format!("{}/{}/{}", crate::keys::uri::encode(self.mount.as_bytes()), wanted.path(), self.key)
    }

    /// One request; after a 403 once more, where another token can be had. `Ok` may still be a 403.
    fn send(
        &self,
        wanted: Use,
        body: Option<&[u8]>,
        until: Instant,
    ) -> Result<(Answer, Option<Arc<auth::Token>>), Failure> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let path = self.path(wanted);
        let token = self.auth.token(until)?;
        let answer = self.client.call(&method, &path, token.as_ref().map(|t| t.text.as_str()), body, until)?;
        let (403, Some(worn)) = (answer.status, &token) else { return Ok((answer, token)) };
        match self.auth.instead_of(worn, until)? {
            Some(other) => {
                let answer = self.client.call(&method, &path, Some(&other.text), body, until)?;
                Ok((answer, Some(other)))
            }
            None => Ok((answer, token)),
        }
    }

    /// A success answer, or what the refusal means.
    fn ask(&self, wanted: Use, body: &Zeroizing<Vec<u8>>, until: Instant) -> Result<Answer, Failure> {
        let (answer, token) = self.send(wanted, Some(body), until)?;
        match answer.status {
            200..=299 => Ok(answer),
            403 => Err(Failure::Refused(self.denied(wanted, token.as_deref(), until))),
            _ => Err(transit::refusal(&answer, wanted, &self.mount, &self.key)),
        }
    }

    fn denied(&self, wanted: Use, token: Option<&auth::Token>, until: Instant) -> String {
        let what = format!("{} {}", wanted.capability(), self.path(wanted));
        self.auth.explain(token, &what, until)
    }

    /// `None` where the token may not.
    fn read_key(&self, until: Instant) -> Result<Option<KeyData>, Failure> {
        let (answer, _) = self.send(Use::Read, None, until)?;
        match answer.status {
            200..=299 => KeyData::parse(&answer).map(Some),
            403 => Ok(None),
            _ => Err(transit::refusal(&answer, Use::Read, &self.mount, &self.key)),
        }
    }

    /// Finds out by use what may not be read: a blob must open under its own context and under no other.
    fn check_by_use(&self, until: Instant) -> Result<(), Failure> {
        let cannot = |failure| match failure {
            Failure::Refused(why) => Failure::Refused(format!(
                "{why}. To see that the key is derived takes read on {}, or update on {} and {}",
                self.path(Use::Read),
                self.path(Use::Generate),
                self.path(Use::Unwrap),
            )),
            other => other,
        };
        let (one, other) = (probe_context("1"), probe_context("2"));
        let answer = self.ask(Use::Generate, &transit::context_body(&one), until).map_err(cannot)?;
        let blob = transit::blob_of(&answer)?;
        let text = transit::parse_blob(&blob)?;
        match self.ask(Use::Unwrap, &transit::blob_body(text, &other), until) {
            Err(Failure::BadBlob(_)) => {}
            Ok(_) => {
                return Err(Failure::Config(format!(
                    "key {} is not derived: it opens under any context; create another key: {}",
                    self.key_ref.key,
                    transit::creation(&self.mount, &format!("{}-derived", self.key))
                )));
            }
            Err(failure) => return Err(cannot(failure)),
        }
        self.ask(Use::Unwrap, &transit::blob_body(text, &one), until).map_err(cannot)?;
        Ok(())
    }

    /// `encrypt` creates a key that is missing, where the token may; nothing else here does.
    fn check_exists(&self, until: Instant) -> Result<(), Failure> {
        if self.may_read
            && let Some(data) = self.read_key(until)?
        {
            return match data.derived {
                true => Ok(()),
                false => data.check(&self.mount, &self.key),
            };
        }
        self.ask(Use::Generate, &transit::context_body(&probe_context("1")), until).map(drop)
    }
}

impl CmkProvider for VaultCmk {
    fn key_ref(&self) -> &KeyRef {
        &self.key_ref
    }

    fn generate(&self, context: &EncryptionContext) -> Result<(Secret32, Vec<u8>), KeyError> {
        let made = || {
            let answer = self.ask(Use::Generate, &transit::context_body(context), self.until())?;
            let blob = transit::blob_of(&answer)?;
            match transit::key_of(&answer)? {
                Some(key) => Ok((key, blob)),
                None => Err(Failure::Unreachable("the server made a key that is not 32 bytes long".into())),
            }
        };
        made().map_err(self.about())
    }

    fn wrap(&self, key: &Secret32, context: &EncryptionContext) -> Result<Vec<u8>, KeyError> {
        let until = self.until();
        self.check_exists(until)
            .and_then(|()| self.ask(Use::Wrap, &transit::key_body(key, context), until))
            .and_then(|answer| transit::blob_of(&answer))
            .map_err(self.about())
    }

    fn unwrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Secret32, KeyError> {
        let opened = || {
            let text = transit::parse_blob(blob)?;
            let answer = self.ask(Use::Unwrap, &transit::blob_body(text, context), self.until())?;
            transit::key_of(&answer)?
                .ok_or_else(|| Failure::BadBlob("it holds something that is not 32 bytes long".into()))
        };
        opened().map_err(self.about())
    }

    fn rewrap(&self, blob: &[u8], context: &EncryptionContext) -> Result<Option<Vec<u8>>, KeyError> {
        transit::parse_blob(blob)
            .and_then(|text| self.ask(Use::Rewrap, &transit::blob_body(text, context), self.until()))
            .and_then(|answer| transit::blob_of(&answer))
            .map(Some)
            .map_err(self.about())
    }

    fn describe(&self) -> Result<CmkInfo, KeyError> {
        let until = self.until();
        let at = self.client.address();
        let described = || {
            if self.may_read
                && let Some(data) = self.read_key(until)?
            {
                let state = if data.soft_deleted { CmkState::Disabled } else { CmkState::Enabled };
                let description = format!(
                    "Transit {} at {at}, version {}, opens from version {}",
                    failure::words(&data.kind),
                    data.latest_version,
                    data.min_decryption_version
                );
                return Ok(CmkInfo { key: self.key_ref.clone(), state, description, created: data.created() });
            }
            self.ask(Use::Generate, &transit::context_body(&probe_context("1")), until)?;
            let description = format!("Transit at {at} (its properties may not be read)");
            Ok(CmkInfo { key: self.key_ref.clone(), state: CmkState::Enabled, description, created: None })
        };
        described().map_err(self.about())
    }
}

/// No file is ever sealed under it.
fn probe_context(value: &str) -> EncryptionContext {
    EncryptionContext(vec![("envelopefs:probe", value.into())])
}

/// A JSON object of texts, in one allocation that is wiped.
fn json_object(pairs: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    // An escaped character takes up to six bytes.
    let room = pairs.iter().map(|(name, value)| 6 * (name.len() + value.len()) + 6).sum::<usize>() + 2;
    let mut out = Zeroizing::new(Vec::with_capacity(room));
    out.push(b'{');
    for (n, (name, value)) in pairs.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        // Writing to memory cannot fail, nor can text be no JSON.
        let _ = serde_json::to_writer(&mut *out, name);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_json_and_do_not_move() {
        let hostile = "\"\\\u{1}\u{7f}ü".repeat(50);
        let out = json_object(&[("a", "b"), ("c", &hostile)]);
        assert!(out.len() <= out.capacity() && out.capacity() >= 6 * hostile.len());
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&read["a"], &read["c"]), (&"b".into(), &hostile.as_str().into()));
        assert_eq!(&**json_object(&[]), b"{}");
    }
}
