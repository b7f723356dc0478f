//! `keyfile:` URIs: a path, maybe inside the credential directory, and a key id. Opens nothing.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{decode, encode};
use crate::keys::protected::{CREDENTIALS_VARIABLE, credentials_directory};

/// `keyfile:///etc/envelopefs/cmk.json`, `keyfile:relative/path`, optional `?key=ID`; `$CREDENTIALS_DIRECTORY` may stand in
/// front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyfileUri {
    /// Absolute: a relative one was resolved when the URI was parsed.
    pub path: PathBuf,
    pub key: Option<String>,
}

impl KeyfileUri {
    /// `rest`: what follows `keyfile:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        parse_in(rest, credentials_directory().as_deref(), &|| std::env::current_dir())
    }

    /// A path in the credential directory is written with the variable: the directory differs from unit to unit.
    fn write_in(&self, f: &mut fmt::Formatter<'_>, credentials: Option<&Path>) -> fmt::Result {
        let Self { path, key } = self;
        match credentials.and_then(|dir| path.strip_prefix(dir).ok()).filter(|p| !p.as_os_str().is_empty()) {
            Some(inside) => write!(f, "keyfile://${CREDENTIALS_VARIABLE}/{}", encode(inside.as_os_str().as_bytes()))?,
            None => write!(f, "keyfile://{}", encode(path.as_os_str().as_bytes()))?,
        }
        match key {
            Some(key) => write!(f, "?key={}", encode(key.as_bytes())),
            None => Ok(()),
        }
    }
}

impl fmt::Display for KeyfileUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_in(f, credentials_directory().as_deref())
    }
}

fn parse_in(
    rest: &str,
    credentials: Option<&Path>,
    current_dir: &dyn Fn() -> std::io::Result<PathBuf>,
) -> Result<KeyfileUri, String> {
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let path = keyfile_path(path, credentials, current_dir)?;
    let key = match query {
        Some(query) => keyfile_query(query)?,
        None => None,
    };
    Ok(KeyfileUri { path, key })
}

fn keyfile_path(
    text: &str,
    credentials: Option<&Path>,
    current_dir: &dyn Fn() -> std::io::Result<PathBuf>,
) -> Result<PathBuf, String> {
    let (text, has_authority) = match text.strip_prefix("//") {
        Some(text) => (text, true),
        None => (text, false),
    };
    if let Some(name) = text.strip_prefix('$') {
        let name =
            name.strip_prefix(CREDENTIALS_VARIABLE).and_then(|rest| rest.strip_prefix('/')).ok_or_else(|| {
                format!("only ${CREDENTIALS_VARIABLE}/NAME may stand in front (a $ in a path is written %24)")
            })?;
        let dir = credentials.ok_or_else(|| {
            format!("{CREDENTIALS_VARIABLE} is not set: systemd sets it for units with LoadCredential= or LoadCredentialEncrypted=")
        })?;
        let name = path_from(name)?;
        if name.is_absolute() {
            return Err(format!("the name after ${CREDENTIALS_VARIABLE}/ starts with a slash"));
        }
        return Ok(dir.join(name));
    }
    if has_authority && !text.starts_with('/') {
        return Err("keyfile:// names no host: write keyfile:///absolute/path or keyfile:relative/path".into());
    }
    let path = path_from(text)?;
    if path.is_absolute() {
        return Ok(path);
    }
    let dir = current_dir().map_err(|e| format!("a relative path needs the current directory: {e}"))?;
    Ok(dir.join(path))
}

fn path_from(text: &str) -> Result<PathBuf, String> {
    let bytes = decode(text)?;
    if bytes.is_empty() {
        return Err("the path is empty".into());
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

fn keyfile_query(query: &str) -> Result<Option<String>, String> {
    let mut key = None;
    for parameter in query.split('&') {
        let Some(value) = parameter.strip_prefix("key=") else {
            return Err(format!("unknown parameter {parameter:?}; keyfile knows: key=ID"));
        };
        let value = String::from_utf8(decode(value)?).map_err(|_| "the key id is not UTF-8".to_string())?;
        if value.is_empty() {
            return Err("key= is empty".into());
        }
        if key.replace(value).is_some() {
            return Err("key= is given twice".into());
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, credentials: Option<&str>) -> Result<KeyfileUri, String> {
        let rest = text.split_once(':').unwrap().1;
        parse_in(rest, credentials.map(Path::new), &|| Ok("/home dir".into()))
    }

    fn keyfile(path: &str, key: Option<&str>) -> KeyfileUri {
        KeyfileUri { path: path.into(), key: key.map(String::from) }
    }

    #[test]
    fn keyfile_addresses() {
        let cases = [
            ("keyfile:///etc/envelopefs/cmk.json", keyfile("/etc/envelopefs/cmk.json", None)),
            ("KEYFILE:///a", keyfile("/a", None)),
            ("keyfile:/a", keyfile("/a", None)),
            ("keyfile:a/b.json?key=one-2", keyfile("/home dir/a/b.json", Some("one-2"))),
            ("keyfile:///a%20b%3fc%25?key=%41", keyfile("/a b?c%", Some("A"))),
            ("keyfile:///a b:c=d&e", keyfile("/a b:c=d&e", None)),
            ("keyfile://$CREDENTIALS_DIRECTORY/cmk?key=k", keyfile("/run/c/cmk", Some("k"))),
            ("keyfile:$CREDENTIALS_DIRECTORY/cmk", keyfile("/run/c/cmk", None)),
            ("keyfile:%24x", keyfile("/home dir/$x", None)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text, Some("/run/c")).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        let cases = [
            ("keyfile://host/a", "keyfile:///absolute/path"),
            ("keyfile:", "empty"),
            ("keyfile://", "keyfile:///absolute/path"),
            ("keyfile:///a?key=", "key= is empty"),
            ("keyfile:///a?key=1&key=2", "twice"),
            ("keyfile:///a?", "key=ID"),
            ("keyfile:///a?region=x", "unknown parameter \"region=x\""),
            ("keyfile:///a%2", "two hex digits"),
            ("keyfile:///a%zz", "two hex digits"),
            ("keyfile:///a%+1", "two hex digits"),
            ("keyfile:///a%00", "NUL"),
            ("keyfile:///a?key=%ff", "not UTF-8"),
            ("keyfile://$HOME/cmk", "%24"),
            ("keyfile://$CREDENTIALS_DIRECTORY", "%24"),
            ("keyfile://$CREDENTIALS_DIRECTORY/", "empty"),
            ("keyfile://$CREDENTIALS_DIRECTORY//etc/x", "slash"),
        ];
        for (text, expected) in cases {
            let error = parse(text, Some("/run/c")).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse("keyfile://$CREDENTIALS_DIRECTORY/cmk", None).unwrap_err().contains("LoadCredential="));
    }

    struct Shown<'a>(&'a KeyfileUri, Option<&'a str>);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write_in(f, self.1.map(Path::new))
        }
    }

    #[test]
    fn what_is_shown_parses_to_the_same() {
        for credentials in [None, Some("/run/c")] {
            for uri in [
                keyfile("/etc/cmk.json", None),
                keyfile("/run/c/cmk", Some("k")),
                keyfile("/run/c", None),
                keyfile("/run/cc/cmk", None),
                keyfile("/ü/%41?#$ &\n", Some("ä?&=")),
                KeyfileUri { path: OsString::from_vec(b"/\xff\x01".to_vec()).into(), key: None },
            ] {
                assert_eq!(parse(&Shown(&uri, credentials).to_string(), credentials).as_ref(), Ok(&uri));
            }
        }
        let inside = keyfile("/run/c/cmk", None);
        assert_eq!(Shown(&inside, Some("/run/c")).to_string(), "keyfile://$CREDENTIALS_DIRECTORY/cmk");
        let pinned = KeyfileUri { key: Some("id".into()), ..inside };
        assert_eq!(Shown(&pinned, None).to_string(), "keyfile:///run/c/cmk?key=id");
    }
}
