//! CMK URIs: text to a typed address, one file a scheme. Knows the syntax of each provider, opens none.

use std::fmt;

use super::{KeyError, KeyRef};

mod aws;
mod k8s;
mod keyfile;
mod pkcs11;
pub mod vault;

pub use aws::{AwsAlgorithm, AwsKey, AwsUri};
pub use k8s::K8sUri;
pub use keyfile::KeyfileUri;
pub use pkcs11::{Pkcs11Module, Pkcs11Uri};
pub use vault::VaultUri;

/// The schemes, as error messages list them.
const SCHEMES: &str = "keyfile:///absolute/path, keyfile:relative/path, awskms:///KEY, hashivault://MOUNT/KEY, \
                       pkcs11:token=…;object=…, k8skms:///path/to/plugin.sock";

/// A parsed CMK URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmkUri {
    pub address: CmkAddress,
    /// `optional=true`, in any scheme's query: new keys are made without this CMK where it cannot be had.
    pub optional: bool,
}

/// Where a CMK is, by scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CmkAddress {
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
        let (rest, optional) = take_optional(rest).map_err(|why| wrong(&why))?;
        let rest = rest.as_str();
        let address = match scheme.to_ascii_lowercase().as_str() {
            "keyfile" => KeyfileUri::parse(rest).map(CmkAddress::Keyfile),
            "awskms" => AwsUri::parse(rest).map(CmkAddress::Aws),
            "hashivault" => VaultUri::parse(rest).map(CmkAddress::Vault),
            "pkcs11" => Pkcs11Uri::parse(rest).map(CmkAddress::Pkcs11),
            "k8skms" => K8sUri::parse(rest).map(CmkAddress::K8s),
            _ => return Err(wrong(&format!("unknown scheme {scheme:?}; known are: {SCHEMES}"))),
        }
        .map_err(|why| wrong(&why))?;
        Ok(Self { address, optional })
    }

    /// Names a library that would run inside this process: never to be taken from a volume.
    pub fn loads_code(&self) -> bool {
        matches!(&self.address, CmkAddress::Pkcs11(uri) if uri.module != Pkcs11Module::System)
    }

    /// The same address, but for exactly this key: what to record, so that another key becoming the first enabled one
    /// of a keyfile, or an alias moving, does not change which key is meant.
    pub fn pinned(&self, key: &KeyRef) -> Self {
        let address = match &self.address {
            CmkAddress::Keyfile(uri) => CmkAddress::Keyfile(KeyfileUri { key: Some(key.key.clone()), ..uri.clone() }),
            CmkAddress::Aws(uri) => CmkAddress::Aws(uri.pinned(key)),
            CmkAddress::Vault(uri) => CmkAddress::Vault(uri.pinned(key)),
            CmkAddress::Pkcs11(uri) => CmkAddress::Pkcs11(uri.pinned(key)),
            CmkAddress::K8s(uri) => CmkAddress::K8s(uri.pinned(key)),
        };
        Self { address, optional: self.optional }
    }

    /// What headers call the provider.
    pub fn provider(&self) -> &'static str {
        match &self.address {
            CmkAddress::Keyfile(_) => "keyfile",
            CmkAddress::Aws(_) => "awskms",
            CmkAddress::Vault(_) => "hashivault",
            CmkAddress::Pkcs11(_) => "pkcs11",
            CmkAddress::K8s(_) => "k8skms",
        }
    }

    /// Whether this address, as it stands, may mean that key: an alias may not, since nobody was asked where it leads.
    pub fn may_mean(&self, key: &KeyRef) -> bool {
        let named = match &self.address {
            CmkAddress::Vault(uri) => uri.key_name() == key.key,
            CmkAddress::K8s(uri) => uri.key_name() == key.key,
            CmkAddress::Keyfile(_) | CmkAddress::Aws(_) | CmkAddress::Pkcs11(_) => true,
        };
        key.provider == self.provider() && named && self.pinned(key) == *self
    }
}

/// The `optional` parameter out of the query, for every scheme alike.
fn take_optional(rest: &str) -> Result<(String, bool), String> {
    let Some((before, query)) = rest.split_once('?') else { return Ok((rest.to_owned(), false)) };
    let mut optional = None;
    let mut others = Vec::new();
    for parameter in query.split('&') {
        let value = match parameter.strip_prefix("optional=") {
            Some("true") => true,
            Some("false") => false,
            Some(other) => return Err(format!("optional={other:?}: true or false")),
            None => {
                others.push(parameter);
                continue;
            }
        };
        if optional.replace(value).is_some() {
            return Err("optional= is given twice".into());
        }
    }
    let rest = match (others.is_empty(), optional) {
        (true, Some(_)) => before.to_owned(),
        _ => format!("{before}?{}", others.join("&")),
    };
    Ok((rest, optional.unwrap_or(false)))
}

impl From<KeyfileUri> for CmkUri {
    fn from(uri: KeyfileUri) -> Self {
        Self { address: CmkAddress::Keyfile(uri), optional: false }
    }
}

impl fmt::Display for CmkUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.to_string();
        f.write_str(&address)?;
        match (self.optional, address.contains('?')) {
            (true, true) => f.write_str("&optional=true"),
            (true, false) => f.write_str("?optional=true"),
            (false, _) => Ok(()),
        }
    }
}

impl fmt::Display for CmkAddress {
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

    #[test]
    fn an_address_tells_which_key_it_may_mean() {
        let may = |uri: &str, provider: &str, key: &str| {
            CmkUri::parse(uri).unwrap().may_mean(&KeyRef { provider: provider.into(), key: key.into() })
        };
        let arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        assert!(may(&format!("awskms:///{arn}"), "awskms", arn));
        assert!(!may("awskms:///alias/app", "awskms", arn));
        assert!(!may(&format!("awskms:///{arn}"), "hashivault", arn));
        assert!(may("hashivault://transit/app?address=https://vault:8200", "hashivault", "transit/app"));
        assert!(!may("hashivault://transit/app?address=https://vault:8200", "hashivault", "transit/apple"));
        assert!(may("keyfile:///a?key=k&optional=true", "keyfile", "k"));
        assert!(!may("keyfile:///a", "keyfile", "k"));
    }

    #[test]
    fn every_scheme_takes_optional() {
        for (text, shown) in [
            ("keyfile:///a?optional=true", "keyfile:///a?optional=true"),
            ("keyfile:///a?optional=true&key=k", "keyfile:///a?key=k&optional=true"),
            ("keyfile:///a?key=k&optional=false", "keyfile:///a?key=k"),
        ] {
            let uri = CmkUri::parse(text).unwrap();
            assert_eq!(uri.to_string(), shown);
            assert_eq!(CmkUri::parse(shown).unwrap(), uri);
        }
        for text in ["keyfile:///a?optional=yes", "keyfile:///a?optional=true&optional=true", "keyfile:///a?"] {
            assert!(CmkUri::parse(text).is_err(), "{text}");
        }
    }
}
