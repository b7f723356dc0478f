//! Transit's requests and answers: bodies, blobs, what a key must be like, and what each error text means. Sends nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::client::Answer;
use super::failure::{Failure, words};
use super::json_object;
use crate::crypto::secret::Secret32;
use crate::keys::EncryptionContext;

/// Longest blob, in bytes; 32 bytes wrapped take about 90.
const BLOB_MAX: usize = 4096;
const BLOB_START: &str = "vault:v";

/// The context as it is sent: the base64 of its canonical bytes. The engine derives the key that seals from it.
pub fn context_text(context: &EncryptionContext) -> String {
    BASE64.encode(&context.canonical_bytes())
}

pub fn context_body(context: &EncryptionContext) -> Zeroizing<Vec<u8>> {
    json_object(&[("context", &context_text(context))])
}

pub fn blob_body(blob: &str, context: &EncryptionContext) -> Zeroizing<Vec<u8>> {
    json_object(&[("ciphertext", blob), ("context", &context_text(context))])
}

pub fn key_body(key: &Secret32, context: &EncryptionContext) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new([0u8; 44]);
    BASE64.encode_mut(key.expose(), &mut *text);
    // Base64 is ASCII.
    let text = std::str::from_utf8(&*text).unwrap_or_default();
    json_object(&[("plaintext", text), ("context", &context_text(context))])
}

/// `vault:vN:BASE64`, exactly as the engine writes it: one text for one wrapped key.
pub fn parse_blob(blob: &[u8]) -> Result<&str, Failure> {
    let strange = || Failure::BadBlob("it is no vault:vN: text of a Transit engine".into());
    if blob.len() > BLOB_MAX {
        return Err(strange());
    }
    let text = std::str::from_utf8(blob).map_err(|_| strange())?;
    let (version, sealed) = text.strip_prefix(BLOB_START).and_then(|rest| rest.split_once(':')).ok_or_else(strange)?;
    let plain_number = version.bytes().all(|b| b.is_ascii_digit()) && !version.starts_with('0') && version.len() <= 9;
    if version.is_empty() || !plain_number || sealed.is_empty() || BASE64.decode(sealed.as_bytes()).is_err() {
        return Err(strange());
    }
    Ok(text)
}

/// `data` of an answer about one key or blob.
#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    ciphertext: Cow<'a, str>,
    #[serde(borrow, default)]
    plaintext: Cow<'a, str>,
}

impl Drop for Data<'_> {
    fn drop(&mut self) {
        // Borrowed text is wiped with the answer it stands in.
        if let Cow::Owned(text) = &mut self.plaintext {
            text.zeroize();
        }
    }
}

fn data(answer: &Answer) -> Result<Data<'_>, Failure> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        data: Data<'a>,
    }
    serde_json::from_slice::<Outer<'_>>(&answer.body).map(|outer| outer.data).map_err(|_| malformed())
}

fn malformed() -> Failure {
    Failure::Unreachable("a success answer is not in the form of a Transit engine; is something in between?".into())
}

pub fn blob_of(answer: &Answer) -> Result<Vec<u8>, Failure> {
    let data = data(answer)?;
    parse_blob(data.ciphertext.as_bytes()).map_err(|_| malformed())?;
    Ok(data.ciphertext.as_bytes().to_vec())
}

/// `None`: not 32 bytes.
pub fn key_of(answer: &Answer) -> Result<Option<Secret32>, Failure> {
    let data = data(answer)?;
    let text = data.plaintext.as_bytes();
    let length = BASE64.decode_len(text.len()).map_err(|_| malformed())?;
    let mut bytes = Zeroizing::new(vec![0u8; length]);
    let length = BASE64.decode_mut(text, &mut bytes).map_err(|_| malformed())?;
    Ok(match <&[u8; 32]>::try_from(&bytes[..length]) {
        Ok(bytes) => Some(Secret32::written_by(|to| {
            *to = *bytes;
            Ok::<(), Failure>(())
        })?),
        Err(_) => None,
    })
}

/// What a request wants of the key, for the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Generate,
    Wrap,
    Unwrap,
    Rewrap,
    Read,
}

impl Use {
    pub fn path(self) -> &'static str {
        match self {
            Self::Generate => "datakey/plaintext",
            Self::Wrap => "encrypt",
            Self::Unwrap => "decrypt",
            Self::Rewrap => "rewrap",
            Self::Read => "keys",
        }
    }
    pub fn capability(self) -> &'static str {
        if self == Self::Read { "read" } else { "update" }
    }
}

/// What a 4xx answer in the server's own words means (403 has been dealt with). `mount` and `key` as the URI has them.
pub fn refusal(answer: &Answer, wanted: Use, mount: &str, key: &str) -> Failure {
    let said = answer.errors().unwrap_or_default();
    let refused = |why: String| Failure::Refused(why);
    let has = |text: &str| said.contains(text);
    match answer.status {
        404 if has("no handler for route") => refused(format!(
            "nothing is mounted at {mount}/ ({said}); check MOUNT and namespace= in the URI, or enable it: bao secrets enable -path={mount} transit"
        )),
        404 if has("namespace not found") => refused(format!("{said}; check namespace=")),
        404 => refused(format!("there is no key {key} in {mount}/; create it: {}", creation(mount, key))),
        405 => refused(format!("{said}: is the engine at {mount}/ of type transit?")),
        400 if has("encryption key not found") => {
            refused(format!("{said}: {mount}/{key} was deleted, or never was there"))
        }
        400 if has("soft-deleted") => {
            refused(format!("{said}; to undo that: bao write -f {mount}/keys/{key}/soft-delete-restore"))
        }
        400 if has("too old") => refused(format!(
            "{said}: it is wrapped under a version below min_decryption_version of {mount}/{key}; lower that, rewrap, and raise it again"
        )),
        400 if matches!(wanted, Use::Unwrap | Use::Rewrap) => Failure::BadBlob(format!("the server says: {said}")),
        status => refused(format!("HTTP {status}: {said}")),
    }
}

pub fn creation(mount: &str, key: &str) -> String {
    format!("bao write -f {mount}/keys/{key} derived=true type=aes256-gcm96 (vault write -f … the same)")
}

/// `data` of `GET keys/KEY`, as far as it matters.
#[derive(Deserialize)]
pub struct KeyData {
    #[serde(rename = "type")]
    pub kind: String,
    pub derived: bool,
    #[serde(default)]
    convergent_encryption: bool,
    #[serde(default)]
    exportable: bool,
    #[serde(default)]
    allow_plaintext_backup: bool,
    #[serde(default)]
    pub soft_deleted: bool,
    #[serde(default)]
    pub latest_version: u64,
    #[serde(default)]
    pub min_decryption_version: u64,
    /// By version; the time of creation in seconds since the epoch for symmetric keys.
    #[serde(default)]
    keys: BTreeMap<String, serde_json::Value>,
}

impl KeyData {
    pub fn parse(answer: &Answer) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Outer {
            data: KeyData,
        }
        serde_json::from_slice::<Outer>(&answer.body).map(|outer| outer.data).map_err(|_| malformed())
    }

    /// Seconds since the epoch, of the oldest version that is left.
    pub fn created(&self) -> Option<i64> {
        self.keys.values().filter_map(serde_json::Value::as_i64).min()
    }

    /// Whether a context binds what this key seals, and nothing else about it is wrong.
    pub fn check(&self, mount: &str, key: &str) -> Result<(), Failure> {
        let unfit = |why: String| {
            Err(Failure::Config(format!("{why}; create another key: {}", creation(mount, &format!("{key}-derived")))))
        };
        if !["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"].contains(&self.kind.as_str()) {
            return unfit(format!(
                "key {mount}/{key} has type {}, which cannot wrap under a context",
                words(&self.kind)
            ));
        }
        if !self.derived {
            return unfit(format!(
                "key {mount}/{key} is not derived: the server would ignore the context that binds a wrapped key to its \
                 volume, and that cannot be changed later"
            ));
        }
        if self.convergent_encryption {
            return unfit(format!(
                "key {mount}/{key} encrypts convergently: the same key wrapped twice would show as the same"
            ));
        }
        if self.exportable || self.allow_plaintext_backup {
            log::warn!(
                "key {mount}/{key} is {}: whoever may do that has the CMK itself, outside of any audit log",
                if self.exportable { "exportable" } else { "allowed to be backed up in plaintext" }
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: Zeroizing::new(body.as_bytes().to_vec()) }
    }

    #[test]
    fn blobs_have_one_form() {
        parse_blob(b"vault:v1:AAAA").unwrap();
        parse_blob(b"vault:v123456789:AAAAAA==").unwrap();
        for bad in [
            &b""[..],
            b"vault:v1:",
            b"vault:v:AAAA",
            b"vault:v0:AAAA",
            b"vault:v01:AAAA",
            b"vault:v1234567890:AAAA",
            b"vault:v+1:AAAA",
            b"vault:v1:AAA",
            b"vault:v1:AAAAAB==",
            b"vault:v1:AA AA",
            b"vault:v1:AAAA\n",
            b"Vault:v1:AAAA",
            b"vault:v1:\xff\xff\xff\xff",
            &[b"vault:v1:".to_vec(), vec![b'A'; BLOB_MAX]].concat(),
        ] {
            assert!(matches!(parse_blob(bad), Err(Failure::BadBlob(_))), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn bodies_are_what_the_engine_reads() {
        let context = EncryptionContext::for_volume(&[7; 16]);
        let sent: serde_json::Value =
            serde_json::from_slice(&key_body(&Secret32::from_bytes([1; 32]), &context)).unwrap();
        assert_eq!(sent["plaintext"], BASE64.encode(&[1; 32]));
        assert_eq!(sent["context"], BASE64.encode(&context.canonical_bytes()));
        // Even an empty context is one.
        assert!(!context_text(&EncryptionContext::default()).is_empty());
    }

    #[test]
    fn only_exactly_32_bytes_are_a_key() {
        let of = |bytes: &[u8]| answer(200, &format!(r#"{{"data":{{"plaintext":"{}"}}}}"#, BASE64.encode(bytes)));
        assert_eq!(key_of(&of(&[5; 32])).unwrap().unwrap().expose(), &[5; 32]);
        for length in [0, 1, 31, 33, 64] {
            assert!(key_of(&of(&vec![5; length])).unwrap().is_none(), "{length}");
        }
        // An escaped text is the same text.
        let escaped = format!(r#"{{"data":{{"plaintext":"{}"}}}}"#, BASE64.encode(&[0xff; 32]).replace('/', "\\/"));
        assert_eq!(key_of(&answer(200, &escaped)).unwrap().unwrap().expose(), &[0xff; 32]);
        for garbage in
            ["", "{}", "[]", "null", r#"{"data":null}"#, r#"{"data":{"plaintext":7}}"#, r#"{"data":{"plaintext":"*"}}"#]
        {
            assert!(matches!(key_of(&answer(200, garbage)), Err(Failure::Unreachable(_))), "{garbage}");
        }
        for garbage in [r#"{"data":{}}"#, r#"{"data":{"ciphertext":"vault:v1:"}}"#, r#"{"data":{"ciphertext":"AAAA"}}"#]
        {
            assert!(matches!(blob_of(&answer(200, garbage)), Err(Failure::Unreachable(_))), "{garbage}");
        }
    }

    #[test]
    fn what_the_server_says_decides() {
        let refusal = |status, said: &str, wanted| {
            refusal(&answer(status, &serde_json::json!({ "errors": [said] }).to_string()), wanted, "transit", "k")
        };
        for said in [
            "encryption key not found",
            "refusing to use soft-deleted key",
            "ciphertext or signature version is disallowed by policy (too old)",
        ] {
            for wanted in [Use::Unwrap, Use::Rewrap] {
                assert!(matches!(refusal(400, said, wanted), Failure::Refused(_)), "{said}");
            }
        }
        for said in [
            "cipher: message authentication failed",
            "invalid ciphertext: version is too new",
            "invalid ciphertext length",
        ] {
            assert!(matches!(refusal(400, said, Use::Unwrap), Failure::BadBlob(_)), "{said}");
        }
        assert!(matches!(refusal(400, "whatever", Use::Generate), Failure::Refused(_)));
        assert!(
            matches!(refusal(404, "no handler for route \"x\"", Use::Unwrap), Failure::Refused(why) if why.contains("secrets enable"))
        );
        assert!(matches!(refusal(404, "", Use::Read), Failure::Refused(why) if why.contains("derived=true")));
        assert!(matches!(refusal(405, "unsupported operation", Use::Unwrap), Failure::Refused(_)));
    }

    #[test]
    fn unfit_keys_are_refused_with_the_command_for_a_fit_one() {
        let key = |more: &str| {
            let text = format!(r#"{{"data":{{"type":"aes256-gcm96","derived":true,"keys":{{"2":20,"3":30}}{more}}}}}"#);
            KeyData::parse(&answer(200, &text)).unwrap()
        };
        let fit = key("");
        fit.check("transit", "k").unwrap();
        assert_eq!(fit.created(), Some(20));
        let unfit = |data: KeyData| match data.check("transit", "k") {
            Err(Failure::Config(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(
            unfit(KeyData { derived: false, ..key("") })
                .contains("bao write -f transit/keys/k-derived derived=true type=aes256-gcm96")
        );
        assert!(unfit(key(r#","convergent_encryption":true"#)).contains("convergently"));
        assert!(unfit(KeyData { kind: "rsa-4096".into(), ..key("") }).contains("rsa-4096"));
        assert!(KeyData::parse(&answer(200, r#"{"data":{"type":"aes256-gcm96"}}"#)).is_err());
    }
}
