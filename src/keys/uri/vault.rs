//! `hashivault:` URIs: mount and key of a Transit engine, where the server is, how to log in. Opens nothing, holds no secret.

use std::{
    ffi::OsString,
    fmt,
    net::IpAddr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use super::{decode, encode};
use crate::keys::KeyRef;
use crate::keys::protected::{CREDENTIALS_VARIABLE, credentials_directory};

/// Environment of the address, as the command lines of Vault and OpenBao read it; the first that is set counts.
pub const ADDRESS_VARIABLES: [&str; 2] = ["VAULT_ADDR", "BAO_ADDR"];
pub const NAMESPACE_VARIABLES: [&str; 2] = ["VAULT_NAMESPACE", "BAO_NAMESPACE"];

const PARAMETERS: &str = "address=URL, namespace=, label=, ca=/PATH, tls_server_name=, client_cert=/PATH, client_key=/PATH, \
                          auth=token|approle|kubernetes|none, auth_mount=, token_file=/PATH, role_id=, role_id_file=/PATH, \
                          secret_id_file=/PATH, role=, jwt_file=/PATH";

/// Vault and OpenBao Transit: `hashivault://MOUNT/KEY?address=https://HOST:8200`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultUri {
    /// Mount path of the Transit engine, without slashes around it.
    pub mount: String,
    pub key: String,
    /// Becomes part of the key's name, to tell servers apart that have the same mount and key.
    pub label: Option<String>,
    pub server: Box<VaultServer>,
    pub auth: VaultAuth,
}

/// Which server, and how to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultServer {
    /// As [`VaultAddress`] reads it; without one the environment decides.
    pub address: Option<String>,
    pub namespace: Option<String>,
    /// Trusted instead of the system's certification authorities: a PEM file, or a directory of them.
    pub ca: Option<FilePath>,
    /// The name in the server's certificate, where it is not the address's host.
    pub tls_server_name: Option<String>,
    /// Certificate chain and private key for servers that ask for one, both PEM.
    pub client_cert: Option<(FilePath, FilePath)>,
}

/// How to come by a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultAuth {
    /// From a file, or as the command line of Vault finds it.
    Token {
        file: Option<FilePath>,
    },
    AppRole {
        mount: String,
        role_id: RoleId,
        secret_id: Option<FilePath>,
    },
    Kubernetes {
        mount: String,
        role: String,
        jwt: Option<FilePath>,
    },
    /// An agent or proxy at the address adds one.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleId {
    Text(String),
    File(FilePath),
}

/// A file by its absolute path, or by its name below `$CREDENTIALS_DIRECTORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilePath {
    At(PathBuf),
    Credential(PathBuf),
}

impl FilePath {
    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let (inside, text) = match text.strip_prefix('$') {
            Some(rest) => match rest.strip_prefix(CREDENTIALS_VARIABLE).and_then(|rest| rest.strip_prefix('/')) {
                Some(rest) => (true, rest),
                None => return Err(format!("{name}: only ${CREDENTIALS_VARIABLE}/NAME may stand in front")),
            },
            None => (false, text),
        };
        let path = PathBuf::from(OsString::from_vec(decode(text)?));
        match (inside, path.is_absolute()) {
            (_, _) if path.as_os_str().is_empty() => Err(format!("{name}= is empty")),
            (true, false) => Ok(Self::Credential(path)),
            (true, true) => Err(format!("{name}: the name after ${CREDENTIALS_VARIABLE}/ starts with a slash")),
            (false, true) => Ok(Self::At(path)),
            (false, false) => Err(format!("{name}= takes an absolute path: this URI is kept and used from elsewhere")),
        }
    }

    /// The error says what is missing.
    pub fn path(&self) -> Result<PathBuf, String> {
        match self {
            Self::At(path) => Ok(path.clone()),
            Self::Credential(name) => credentials_directory().map(|dir| dir.join(name)).ok_or_else(|| {
                format!(
                    "{CREDENTIALS_VARIABLE} is not set: systemd sets it for units with LoadCredential= or \
                     LoadCredentialEncrypted="
                )
            }),
        }
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(path) => f.write_str(&encode(path.as_os_str().as_bytes())),
            Self::Credential(name) => write!(f, "${CREDENTIALS_VARIABLE}/{}", encode(name.as_os_str().as_bytes())),
        }
    }
}

/// Where a server is: `https://HOST[:PORT][/PREFIX]`; plain `http` for loopback addresses only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultAddress {
    pub https: bool,
    /// Host and port as written.
    pub authority: String,
    /// Without port and brackets.
    pub host: String,
    pub port: u16,
    /// Empty, or starts with a slash and does not end with one.
    pub prefix: String,
}

impl VaultAddress {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("server address {text:?}: {why}"));
        // An address with a password in it must not come back in an error.
        if text.contains('@') {
            return Err("a server address holds no user or password; see auth=".into());
        }
        let (https, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return wrong("write https://HOST:PORT"),
        };
        if text.bytes().any(|b| !b.is_ascii_graphic() || b"?#\\\"<>".contains(&b)) {
            return wrong("only scheme, host, port and a path may stand in it");
        }
        let (authority, prefix) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
            Some(_) => return wrong("what stands in brackets is no IPv6 address"),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
                Ok(port) if port != 0 => port,
                _ => return wrong("the port is not a number from 1 to 65535"),
            },
            _ => return wrong("after the host only :PORT may stand (an IPv6 address stands in brackets)"),
        };
        if host.is_empty() {
            return wrong("it names no host");
        }
        let address = Self {
            https,
            authority: authority.into(),
            host: host.into(),
            port,
            prefix: prefix.trim_end_matches('/').into(),
        };
        if !https && !address.is_loopback() {
            return wrong(
                "plain http is for loopback addresses only, since keys and tokens would cross the network in the clear: use https (ca=/PATH for a private certification authority)",
            );
        }
        Ok(address)
    }

    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

/// The first of `names` that is set and not empty.
pub fn from_environment(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

impl VaultUri {
    /// `rest`: what follows `hashivault:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let Some(path) = path.strip_prefix("//") else {
            return Err("write hashivault://MOUNT/KEY".into());
        };
        let path = text("the path", path)?;
        let Some((mount, key)) = path.rsplit_once('/') else {
            return Err(format!(
                "it names no mount: write hashivault://transit/{path} where the engine is mounted at transit/"
            ));
        };
        if mount.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(
                "the mount has an empty part, . or ..: write hashivault://MOUNT/KEY, the server goes into address="
                    .into(),
            );
        }
        if !is_key_name(key) {
            return Err(format!("{key:?} is no name of a Transit key (letters, digits, _ inside also - and .)"));
        }
        let mut parameters = Parameters::parse(query)?;
        let uri = Self {
            mount: mount.into(),
            key: key.into(),
            label: parameters.text("label")?,
            server: Box::new(VaultServer {
                address: parameters.text("address")?,
                namespace: parameters.text("namespace")?,
                ca: parameters.file("ca")?,
                tls_server_name: parameters.text("tls_server_name")?,
                client_cert: match (parameters.file("client_cert")?, parameters.file("client_key")?) {
                    (Some(chain), Some(key)) => Some((chain, key)),
                    (None, None) => None,
                    _ => return Err("client_cert= and client_key= go together".into()),
                },
            }),
            auth: VaultAuth::parse(&mut parameters)?,
        };
        parameters.end(&uri.auth)?;
        if let Some(address) = &uri.server.address {
            VaultAddress::parse(address)?;
        }
        if let Some(label) = &uri.label
            && !(label.len() <= 64 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)))
        {
            return Err("label= takes up to 64 letters, digits, dots, underscores and dashes".into());
        }
        Ok(uri)
    }

    /// See `CmkUri::pinned`. An address or namespace that came from the environment is written out: another environment
    /// must not make another key of it.
    pub(super) fn pinned(&self, _key: &KeyRef) -> Self {
        let mut uri = self.clone();
        let server = &mut uri.server;
        if server.address.is_none() {
            server.address = from_environment(&ADDRESS_VARIABLES).filter(|text| VaultAddress::parse(text).is_ok());
        }
        if server.namespace.is_none() {
            server.namespace = from_environment(&NAMESPACE_VARIABLES);
        }
        uri
    }

    /// What headers record: `MOUNT/KEY`, with the label behind it where there is one. No key name has an `@` in it.
    pub fn key_name(&self) -> String {
        match &self.label {
            Some(label) => format!("{}/{}@{label}", self.mount, self.key),
            None => format!("{}/{}", self.mount, self.key),
        }
    }
}

impl fmt::Display for VaultUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hashivault://{}/{}", encode(self.mount.as_bytes()), self.key)?;
        let mut between = '?';
        let mut put = |name: &str, value: Option<String>| match value {
            Some(value) => write!(f, "{}{name}={value}", std::mem::replace(&mut between, '&')),
            None => Ok(()),
        };
        let encoded = |text: &Option<String>| text.as_ref().map(|text| encode(text.as_bytes()));
        let file = |file: &Option<FilePath>| file.as_ref().map(FilePath::to_string);
        // Colons need no escape in a query (RFC 3986, section 3.4), and an address is read by people.
        let server = &self.server;
        put("address", encoded(&server.address).map(|text| text.replace("%3A", ":")))?;
        put("namespace", encoded(&server.namespace))?;
        put("label", encoded(&self.label))?;
        put("ca", file(&server.ca))?;
        put("tls_server_name", encoded(&server.tls_server_name))?;
        if let Some((chain, key)) = &server.client_cert {
            put("client_cert", Some(chain.to_string()))?;
            put("client_key", Some(key.to_string()))?;
        }
        let mount_at = |mount: &str, usual: &str| (mount != usual).then(|| encode(mount.as_bytes()));
        match &self.auth {
            VaultAuth::Token { file: from } => put("token_file", file(from)),
            VaultAuth::AppRole { mount, role_id, secret_id } => {
                put("auth", Some("approle".into()))?;
                put("auth_mount", mount_at(mount, "approle"))?;
                match role_id {
                    RoleId::Text(id) => put("role_id", Some(encode(id.as_bytes())))?,
                    RoleId::File(from) => put("role_id_file", Some(from.to_string()))?,
                }
                put("secret_id_file", file(secret_id))
            }
            VaultAuth::Kubernetes { mount, role, jwt } => {
                put("auth", Some("kubernetes".into()))?;
                put("auth_mount", mount_at(mount, "kubernetes"))?;
                put("role", Some(encode(role.as_bytes())))?;
                put("jwt_file", file(jwt))
            }
            VaultAuth::None => put("auth", Some("none".into())),
        }
    }
}

impl VaultAuth {
    fn parse(parameters: &mut Parameters) -> Result<Self, String> {
        let method = parameters.text("auth")?;
        match method.as_deref().unwrap_or("token") {
            "token" => Ok(Self::Token { file: parameters.file("token_file")? }),
            "approle" => Ok(Self::AppRole {
                mount: parameters.mount("approle")?,
                role_id: match (parameters.text("role_id")?, parameters.file("role_id_file")?) {
                    (Some(id), None) => RoleId::Text(id),
                    (None, Some(file)) => RoleId::File(file),
                    _ => return Err("auth=approle needs role_id= or role_id_file=, one of them".into()),
                },
                secret_id: parameters.file("secret_id_file")?,
            }),
            "kubernetes" => Ok(Self::Kubernetes {
                mount: parameters.mount("kubernetes")?,
                role: parameters.text("role")?.ok_or("auth=kubernetes needs role=")?,
                jwt: parameters.file("jwt_file")?,
            }),
            "none" => Ok(Self::None),
            other => Err(format!("auth={other:?}: known are token, approle, kubernetes, none")),
        }
    }

    /// As it is written after `auth=`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::AppRole { .. } => "approle",
            Self::Kubernetes { .. } => "kubernetes",
            Self::None => "none",
        }
    }
}

/// The pairs of a query, taken out one by one.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for parameter in query.into_iter().flat_map(|query| query.split('&')) {
            let Some((name, value)) = parameter.split_once('=') else {
                return Err(format!("unknown parameter {parameter:?}; hashivault knows: {PARAMETERS}"));
            };
            // Before anything is shown: this value would be the secret itself.
            if ["token", "secret_id", "jwt", "password", "passphrase", "pin"].contains(&name) {
                return Err(format!(
                    "{name}= would put a secret into a URI that is stored and shown; use token_file=, secret_id_file= or jwt_file="
                ));
            }
            if value.is_empty() {
                return Err(format!("{name}= is empty"));
            }
            if pairs.iter().any(|(other, _)| other == name) {
                return Err(format!("{name}= is given twice"));
            }
            pairs.push((name.into(), value.into()));
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.take(name).map(|value| text(name, &value)).transpose()
    }

    fn file(&mut self, name: &str) -> Result<Option<FilePath>, String> {
        self.take(name).map(|value| FilePath::parse(name, &value)).transpose()
    }

    fn mount(&mut self, usual: &str) -> Result<String, String> {
        let mount = self.text("auth_mount")?.unwrap_or_else(|| usual.into());
        let mount = mount.trim_matches('/');
        if mount.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err("auth_mount= has an empty part, . or ..".into());
        }
        Ok(mount.into())
    }

    /// Nothing may be left.
    fn end(self, auth: &VaultAuth) -> Result<(), String> {
        let Some((name, _)) = self.0.first() else { return Ok(()) };
        if PARAMETERS.split(", ").any(|known| known.split('=').next() == Some(name)) {
            return Err(format!("{name}= does not go with auth={}", auth.name()));
        }
        Err(format!("unknown parameter {name:?}; hashivault knows: {PARAMETERS}"))
    }
}

/// Decoded text for paths and headers of a request: nothing in it ends a line.
fn text(name: &str, value: &str) -> Result<String, String> {
    let text = String::from_utf8(decode(value)?).map_err(|_| format!("{name} is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(format!("{name} holds a control character"));
    }
    Ok(text)
}

/// As Vault takes it for keys: word characters around, dots and dashes inside.
fn is_key_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ends = |b: Option<&u8>| b.is_some_and(|b| word(*b));
    let bytes = name.as_bytes();
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|&b| word(b) || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VaultUri, String> {
        VaultUri::parse(text.split_once(':').unwrap().1)
    }

    #[test]
    fn what_people_type() {
        let uri = parse("hashivault://transit/app").unwrap();
        assert_eq!((uri.mount.as_str(), uri.key.as_str(), uri.key_name().as_str()), ("transit", "app", "transit/app"));
        assert_eq!(uri.auth, VaultAuth::Token { file: None });
        let uri =
            parse("hashivault://team%20a/kms/transit/app-key.v_2?label=eu&address=https://vault.example:8200").unwrap();
        assert_eq!(uri.key_name(), "team a/kms/transit/app-key.v_2@eu");
        assert_eq!(uri.server.address.as_deref(), Some("https://vault.example:8200"));
        let uri = parse("hashivault://t/k?auth=approle&role_id=r&secret_id_file=$CREDENTIALS_DIRECTORY/sid").unwrap();
        assert_eq!(
            uri.auth,
            VaultAuth::AppRole {
                mount: "approle".into(),
                role_id: RoleId::Text("r".into()),
                secret_id: Some(FilePath::Credential("sid".into())),
            }
        );
    }

    #[test]
    fn what_is_shown_parses_to_the_same() {
        for text in [
            "hashivault://transit/app",
            "hashivault://a%20b/c/app?address=https://vault.example:8200/v&namespace=a/b&label=x",
            "hashivault://t/k?address=http://127.0.0.1:8200&token_file=/run/t%26oken",
            "hashivault://t/k?ca=/etc/ca.pem&tls_server_name=vault&client_cert=/c&client_key=$CREDENTIALS_DIRECTORY/k",
            "hashivault://t/k?auth=approle&auth_mount=a/b&role_id=x%3F&secret_id_file=/s",
            "hashivault://t/k?auth=approle&role_id_file=/r",
            "hashivault://t/k?auth=kubernetes&role=app&jwt_file=/j",
            "hashivault://t/k?auth=kubernetes&auth_mount=k8s-2&role=app",
            "hashivault://t/k?auth=none",
        ] {
            let uri = parse(text).unwrap();
            assert_eq!(uri.to_string(), text);
            assert_eq!(parse(&uri.to_string()).unwrap(), uri);
        }
        assert_eq!(parse("hashivault://t/k?auth=token").unwrap().to_string(), "hashivault://t/k");
    }

    #[test]
    fn a_pinned_address_stays() {
        let uri = parse("hashivault://t/k?address=https://a:1&namespace=n").unwrap();
        let key = KeyRef { provider: "hashivault".into(), key: "t/k".into() };
        assert_eq!(uri.pinned(&key), uri);
    }

    #[test]
    fn errors_say_what_to_write() {
        for (text, expected) in [
            ("hashivault:transit/app", "hashivault://MOUNT/KEY"),
            ("hashivault:///transit/app", "empty part"),
            ("hashivault://app", "hashivault://transit/app"),
            ("hashivault://transit/", "name of a Transit key"),
            ("hashivault://transit/-a", "name of a Transit key"),
            ("hashivault://transit/a%0Ab", "control character"),
            ("hashivault://a/../b", "empty part, . or .."),
            ("hashivault://https://vault:8200/transit/app", "address="),
            ("hashivault://t/k?region=x", "unknown parameter \"region\"; hashivault knows: address=URL"),
            ("hashivault://t/k?x", "unknown parameter \"x\""),
            ("hashivault://t/k?label=", "label= is empty"),
            ("hashivault://t/k?label=a&label=b", "twice"),
            ("hashivault://t/k?label=a/b", "label= takes"),
            ("hashivault://t/k?namespace=a%0d%0ab", "control character"),
            ("hashivault://t/k?token_file=token", "absolute path"),
            ("hashivault://t/k?token_file=$HOME/x", "CREDENTIALS_DIRECTORY/NAME"),
            ("hashivault://t/k?client_cert=/x", "go together"),
            ("hashivault://t/k?auth=ldap", "known are token, approle"),
            ("hashivault://t/k?auth=approle", "role_id= or role_id_file="),
            ("hashivault://t/k?auth=approle&role_id=a&role_id_file=/b", "one of them"),
            ("hashivault://t/k?auth=kubernetes", "role="),
            ("hashivault://t/k?role=x", "role= does not go with auth=token"),
            ("hashivault://t/k?address=vault:8200", "https://HOST:PORT"),
            ("hashivault://t/k?address=unix:///run/vault.sock", "https://HOST:PORT"),
            ("hashivault://t/k?address=http://vault:8200", "loopback"),
            ("hashivault://t/k?address=http://127.0.0.1.evil.example", "loopback"),
            ("hashivault://t/k?address=https://", "no host"),
            ("hashivault://t/k?address=https://h:0", "port"),
            ("hashivault://t/k?address=https://h:99999", "port"),
            ("hashivault://t/k?address=https://h:+1", "IPv6"),
            ("hashivault://t/k?address=https://[::g]", "no IPv6 address"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_are_refused_and_never_shown() {
        for text in [
            "hashivault://t/k?token=s.verysecret",
            "hashivault://t/k?auth=approle&secret_id=verysecret",
            "hashivault://t/k?jwt=verysecret",
            "hashivault://t/k?address=https://u:verysecret@h",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("verysecret"), "{error}");
        }
    }

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("https://vault", "vault", 443),
            ("https://vault:8200/", "vault", 8200),
            ("http://localhost:8200", "localhost", 8200),
            ("http://127.1.2.3", "127.1.2.3", 80),
            ("https://[2001:db8::1]:8200/a/", "2001:db8::1", 8200),
            ("http://[::1]:1", "::1", 1),
        ] {
            let address = VaultAddress::parse(text).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(address.to_string(), text.trim_end_matches('/'));
        }
    }
}
