//! CMK URIs: text to a typed address, one file a scheme. Knows the syntax of each provider, opens none.

use std::fmt;

use super::{KeyError, KeyRef};

mod aws;
mod k8s;
mod keyfile;
mod pkcs11;
mod vault;

pub use aws::AwsUri;
pub use k8s::K8sUri;
pub use keyfile::KeyfileUri;
pub use pkcs11::{Pkcs11Module, Pkcs11Uri};
pub use vault::VaultUri;

/// The schemes, as error messages list them.
const SCHEMES: &str = "keyfile:///absolute/path, keyfile:relative/path, awskms:///KEY, hashivault://MOUNT/KEY, \
                       pkcs11:token=…;object=…, k8skms:///path/to/plugin.sock";

/// A parsed CMK URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CmkUri {
    Keyfile(KeyfileUri),
    Aws(AwsUri),
    Vault(VaultUri),
    Pkcs11(Pkcs11Uri),
    K8s(K8sUri),
}

impl CmkUri {
    /// The error says what to write.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let wrong = |why: &str| KeyError::Config(format!("CMK URI {:?}: {why}", without_parameters(text)));
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(wrong(&format!("no scheme in front; known are: {SCHEMES}")));
        };
        if rest.contains('#') {
            return Err(wrong("a # in a path or key is written %23"));
        }
        match scheme.to_ascii_lowercase().as_str() {
            "keyfile" => KeyfileUri::parse(rest).map(Self::Keyfile),
            "awskms" => AwsUri::parse(rest).map(Self::Aws),
            "hashivault" => VaultUri::parse(rest).map(Self::Vault),
            "pkcs11" => Pkcs11Uri::parse(rest).map(Self::Pkcs11),
            "k8skms" => K8sUri::parse(rest).map(Self::K8s),
            _ => return Err(wrong(&format!("unknown scheme {scheme:?}; known are: {SCHEMES}"))),
        }
        .map_err(|why| wrong(&why))
    }

    /// The same address, but for exactly this key: what to record, so that another key becoming the first enabled one
    /// of a keyfile, or an alias moving, does not change which key is meant.
    pub fn pinned(&self, key: &KeyRef) -> Self {
        match self {
            Self::Keyfile(uri) => Self::Keyfile(KeyfileUri { key: Some(key.key.clone()), ..uri.clone() }),
            Self::Aws(uri) => Self::Aws(uri.pinned(key)),
            Self::Vault(uri) => Self::Vault(uri.pinned(key)),
            Self::Pkcs11(uri) => Self::Pkcs11(uri.pinned(key)),
            Self::K8s(uri) => Self::K8s(uri.pinned(key)),
        }
    }
}

impl fmt::Display for CmkUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyfile(uri) => uri.fmt(f),
            Self::Aws(uri) => uri.fmt(f),
            Self::Vault(uri) => uri.fmt(f),
            Self::Pkcs11(uri) => uri.fmt(f),
            Self::K8s(uri) => uri.fmt(f),
        }
    }
}

impl std::str::FromStr for CmkUri {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

/// What an error shows of a URI: a parameter may be a secret that somebody put there by mistake.
fn without_parameters(text: &str) -> String {
    match [text.find('?'), text.find("pin-value")].into_iter().flatten().min() {
        Some(end) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Percent-decoding (RFC 3986, section 2.1). A NUL cannot be part of a path.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let byte = if byte == b'%' {
            let digits = tail.get(..2).and_then(|d| data_encoding::HEXLOWER_PERMISSIVE.decode(d).ok());
            let Some(&[value]) = digits.as_deref() else {
                return Err("% is not followed by two hex digits (a % itself is written %25)".into());
            };
            rest = &tail[2..];
            value
        } else {
            rest = tail;
            byte
        };
        if byte == 0 {
            return Err("a NUL byte is not allowed".into());
        }
        out.push(byte);
    }
    Ok(out)
}

/// Everything but the unreserved characters of RFC 3986, section 2.3, and the slash.
pub(super) fn encode(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_list_the_schemes() {
        for (text, expected) in [
            ("/etc/cmk.json", "no scheme in front; known are: keyfile"),
            ("gcpkms://projects/p", "unknown scheme \"gcpkms\"; known are: keyfile"),
            ("keyfile:///a#b", "%23"),
            ("pkcs11:token=t;object=o?pin-value=s3cret", "pin-source=file:"),
            ("pkcs11:token=t;object=o;pin-value=s3cret", "pin-source=file:"),
            ("k8skms:///a?token=s3cret", "CMK URI \"k8skms:///a…\""),
        ] {
            let error = CmkUri::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
