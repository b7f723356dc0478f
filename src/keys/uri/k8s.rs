//! `k8skms:` URIs: a plugin's socket and the name that files record for its key. Opens nothing.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use super::{decode, encode};
use crate::keys::KeyRef;

/// Longest name in bytes.
const NAME_MAX: usize = 255;
/// `sun_path` of unix(7) without its final NUL.
const SOCKET_MAX: usize = 107;

/// Kubernetes KMS v2 plugins: `k8skms:///path/to/plugin.sock`, optional `?name=NAME`.
///
/// The protocol has no name for a key that would outlive a rotation (`key_id` is the current version), so the name is this
/// host's: `name=`, or else the path of the socket as bytes in a URI are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct K8sUri {
    /// The plugin's socket, absolute.
    pub socket: PathBuf,
    pub name: Option<String>,
}

impl K8sUri {
    /// `rest`: what follows `k8skms:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let socket = decode(path.strip_prefix("//").unwrap_or(path))?;
        if !socket.starts_with(b"/") {
            return Err("it names a socket on this host by its absolute path: k8skms:///path/to/plugin.sock".into());
        }
        if socket.len() > SOCKET_MAX {
            return Err(format!("a socket's path has at most {SOCKET_MAX} bytes"));
        }
        let mut name = None;
        for parameter in query.into_iter().flat_map(|query| query.split('&')) {
            let Some(value) = parameter.strip_prefix("name=") else {
                let unknown = parameter.split('=').next().unwrap_or(parameter);
                return Err(format!("unknown parameter {unknown:?}; k8skms knows: name=NAME"));
            };
            let value = String::from_utf8(decode(value)?).map_err(|_| "the name is not UTF-8".to_string())?;
            if !(1..=NAME_MAX).contains(&value.len()) || value.chars().any(char::is_control) {
                return Err(format!("name= has 1 to {NAME_MAX} bytes and no control characters"));
            }
            if name.replace(value).is_some() {
                return Err("name= is given twice".into());
            }
        }
        let uri = Self { socket: PathBuf::from(OsString::from_vec(socket)), name };
        if uri.key_name().len() > NAME_MAX {
            return Err(format!(
                "the socket's path is no name of at most {NAME_MAX} bytes for the key: add ?name=NAME"
            ));
        }
        Ok(uri)
    }

    /// The name that headers record.
    pub fn key_name(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => encode(self.socket.as_os_str().as_bytes()),
        }
    }

    /// The name goes on being this one where the socket moves.
    pub(super) fn pinned(&self, key: &KeyRef) -> Self {
        Self { name: Some(key.key.clone()), ..self.clone() }
    }
}

impl fmt::Display for K8sUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k8skms://{}", encode(self.socket.as_os_str().as_bytes()))?;
        match &self.name {
            Some(name) => write!(f, "?name={}", encode(name.as_bytes())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(socket: &str, name: Option<&str>) -> K8sUri {
        K8sUri { socket: socket.into(), name: name.map(String::from) }
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("///run/kms/plugin.sock", uri("/run/kms/plugin.sock", None)),
            ("/run/a%20b", uri("/run/a b", None)),
            ("///run/k?name=prod%2Fkek", uri("/run/k", Some("prod/kek"))),
        ] {
            assert_eq!(K8sUri::parse(text).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        let long = format!("///{}", "x".repeat(SOCKET_MAX));
        let name = format!("///a?name={}", "x".repeat(NAME_MAX + 1));
        let unnamed = format!("///{}", "%0a".repeat(SOCKET_MAX - 1));
        for (text, expected) in [
            ("", "k8skms:///path/to/plugin.sock"),
            ("//host/a", "k8skms:///path/to/plugin.sock"),
            ("run/a", "k8skms:///path/to/plugin.sock"),
            ("///a%00", "NUL"),
            (&long, "at most 107"),
            (&unnamed, "add ?name=NAME"),
            ("///a?name=", "1 to 255"),
            ("///a?name=%0a", "control"),
            ("///a?name=%ff", "UTF-8"),
            (&name, "1 to 255"),
            ("///a?name=x&name=y", "twice"),
            ("///a?key=x", "unknown parameter \"key\"; k8skms knows: name=NAME"),
            ("///a?", "unknown parameter"),
        ] {
            let error = K8sUri::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_parses_to_the_same_and_pinning_keeps_the_name() {
        for uri in [uri("/run/k", None), uri("/ü?#&/%41", Some("a b&=ü%")), uri("/run/k", Some("/run/k"))] {
            let shown = uri.to_string();
            assert_eq!(K8sUri::parse(shown.strip_prefix("k8skms:").unwrap()).as_ref(), Ok(&uri), "{shown}");
        }
        let given = uri("/run/a b", None);
        let pinned = given.pinned(&KeyRef { provider: "k8skms".into(), key: given.key_name() });
        assert_eq!(pinned.to_string(), "k8skms:///run/a%20b?name=/run/a%2520b");
        assert_eq!(pinned.key_name(), given.key_name());
    }
}
