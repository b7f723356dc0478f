//! `pkcs11:` URIs (RFC 7512): which module, which token, which key, where its PIN is. Opens nothing.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{decode, encode};
use crate::keys::{
    KeyRef,
    protected::{CREDENTIALS_VARIABLE, credentials_directory},
};

const KNOWN: &str = "pkcs11 knows, separated by semicolons: token, serial, manufacturer, model, slot-id, object, id, type; \
                     after a question mark, separated by &: module-path, module-name, pin-source";

/// Where a PIN must not stand.
const NO_PIN: &str = "a PIN does not belong into a URI: put it into a file of mode 600 and write pin-source=file:/path, or \
                      leave it out to be asked";

/// Which library speaks for the token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Pkcs11Module {
    /// p11-kit's proxy: every module that this system has registered.
    #[default]
    System,
    /// `module-name`: found by the dynamic linker, without `lib` and `.so`.
    Name(String),
    /// `module-path`: absolute.
    Path(PathBuf),
}

/// What a URI says of the token and the object. What is given must match exactly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pkcs11Uri {
    pub token: Option<String>,
    pub serial: Option<String>,
    pub manufacturer: Option<String>,
    pub model: Option<String>,
    pub slot_id: Option<u64>,
    /// CKA_LABEL
    pub object: Option<String>,
    /// CKA_ID
    pub id: Option<Vec<u8>>,
    pub module: Pkcs11Module,
    /// Absolute.
    pub pin_source: Option<PathBuf>,
}

impl Pkcs11Uri {
    /// `rest`: what follows `pkcs11:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        parse_in(rest, credentials_directory().as_deref())
    }

    /// The name of a key is an RFC 7512 path of its own, which then replaces what the URI said of the object.
    pub(in crate::keys) fn pinned(&self, key: &KeyRef) -> Self {
        let mut named = Self::default();
        if parse_path(&key.key, &mut named).is_err() {
            return self.clone();
        }
        Self {
            token: named.token.or_else(|| self.token.clone()),
            serial: named.serial.or_else(|| self.serial.clone()),
            object: named.object,
            id: named.id,
            ..self.clone()
        }
    }

    /// What headers call a key: by its CKA_ID where it has one, on a token by its label where it has one. Labels and ids
    /// are given by the administrator and survive a restored or replaced device; serial numbers and slots do not.
    pub fn key_name(token: &str, serial: &str, object: &str, id: &[u8]) -> String {
        let token = match token {
            "" => format!("serial={}", encode_attribute(serial.as_bytes())),
            label => format!("token={}", encode_attribute(label.as_bytes())),
        };
        match id {
            [] => format!("{token};object={}", encode_attribute(object.as_bytes())),
            id => format!("{token};id={}", encode_id(id)),
        }
    }

    fn write_in(&self, f: &mut fmt::Formatter<'_>, credentials: Option<&Path>) -> fmt::Result {
        let texts = [
            ("token", &self.token),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
            ("object", &self.object),
        ];
        let texts =
            texts.into_iter().filter_map(|(name, value)| Some((name, encode_attribute(value.as_ref()?.as_bytes()))));
        let slot = self.slot_id.map(|slot| ("slot-id", slot.to_string()));
        let id = self.id.as_ref().map(|id| ("id", encode_id(id)));
        f.write_str("pkcs11:")?;
        for (n, (name, value)) in texts.chain(slot).chain(id).enumerate() {
            write!(f, "{}{name}={value}", if n == 0 { "" } else { ";" })?;
        }
        let module = match &self.module {
            Pkcs11Module::System => None,
            Pkcs11Module::Name(name) => Some(format!("module-name={}", encode(name.as_bytes()))),
            Pkcs11Module::Path(path) => Some(format!("module-path={}", encode(path.as_os_str().as_bytes()))),
        };
        let pin = self.pin_source.as_ref().map(|path| {
            // The credential directory differs from unit to unit.
            match credentials.and_then(|dir| path.strip_prefix(dir).ok()).filter(|p| !p.as_os_str().is_empty()) {
                Some(inside) => {
                    format!("pin-source=file:${CREDENTIALS_VARIABLE}/{}", encode(inside.as_os_str().as_bytes()))
                }
                None => format!("pin-source=file:{}", encode(path.as_os_str().as_bytes())),
            }
        });
        for (n, parameter) in module.into_iter().chain(pin).enumerate() {
            write!(f, "{}{parameter}", if n == 0 { "?" } else { "&" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_in(f, credentials_directory().as_deref())
    }
}

fn parse_in(rest: &str, credentials: Option<&Path>) -> Result<Pkcs11Uri, String> {
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let mut uri = Pkcs11Uri::default();
    parse_path(path, &mut uri)?;
    for parameter in query.into_iter().flat_map(|query| query.split('&')) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let module = match name {
            "module-path" => Pkcs11Module::Path(absolute(name, decode(value)?)?),
            "module-name" => Pkcs11Module::Name(module_name(value)?),
            "pin-source" => {
                set(&mut uri.pin_source, name, pin_source(value, credentials)?)?;
                continue;
            }
            "pin-value" => return Err(NO_PIN.into()),
            _ => return Err(unknown(name)),
        };
        if uri.module != Pkcs11Module::System {
            return Err("the module is given twice: one of module-path= and module-name= is enough".into());
        }
        uri.module = module;
    }
    if uri.token.is_none() && uri.serial.is_none() && uri.slot_id.is_none() {
        return Err("it names no token: write token=LABEL (or serial=, slot-id=)".into());
    }
    if uri.object.is_none() && uri.id.is_none() {
        return Err("it names no key: write object=LABEL or id=%01 (hex digits after each %)".into());
    }
    Ok(uri)
}

fn parse_path(path: &str, uri: &mut Pkcs11Uri) -> Result<(), String> {
    for attribute in path.split(';').filter(|attribute| !attribute.is_empty()) {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        match name {
            "token" => set(&mut uri.token, name, text(name, value)?)?,
            "serial" => set(&mut uri.serial, name, text(name, value)?)?,
            "manufacturer" => set(&mut uri.manufacturer, name, text(name, value)?)?,
            "model" => set(&mut uri.model, name, text(name, value)?)?,
            "object" => set(&mut uri.object, name, text(name, value)?)?,
            "slot-id" => {
                let slot = value.parse().map_err(|_| "slot-id= is a decimal number".to_string())?;
                set(&mut uri.slot_id, name, slot)?;
            }
            "id" => set(&mut uri.id, name, id(value)?)?,
            "type" if value == "secret-key" => {}
            "type" => return Err("type= can only be secret-key: the CMK is an AES key".into()),
            "pin-value" => return Err(NO_PIN.into()),
            "pin-source" | "module-path" | "module-name" => {
                return Err(format!("{name}= stands behind a question mark: pkcs11:token=…;object=…?{name}=…"));
            }
            _ => return Err(unknown(name)),
        }
    }
    Ok(())
}

/// Only the name is shown: the value of what was not understood may be a secret.
fn unknown(name: &str) -> String {
    format!("unknown attribute {name:?}; {KNOWN}")
}

fn set<T>(field: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{name}= is given twice")),
    }
}

fn text(name: &str, value: &str) -> Result<String, String> {
    let value = String::from_utf8(decode(value)?).map_err(|_| format!("{name}= is not UTF-8"))?;
    if value.is_empty() { Err(format!("{name}= is empty")) } else { Ok(value) }
}

/// Arbitrary bytes; a zero byte, which no other part of a URI may have, is one like any other.
fn id(value: &str) -> Result<Vec<u8>, String> {
    let parts = value.split("%00").map(decode).collect::<Result<Vec<_>, _>>()?;
    let id = parts.join(&0);
    if id.is_empty() { Err("id= is empty".into()) } else { Ok(id) }
}

fn absolute(name: &str, bytes: Vec<u8>) -> Result<PathBuf, String> {
    let path = PathBuf::from(OsString::from_vec(bytes));
    if path.is_absolute() { Ok(path) } else { Err(format!("{name}= must be an absolute path")) }
}

/// A bare name, so that the dynamic linker looks for it in the system's directories only.
fn module_name(value: &str) -> Result<String, String> {
    let name = text("module-name", value)?;
    if name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b)) {
        Ok(name)
    } else {
        Err("module-name= is a bare name such as softhsm2 (module-path= takes a path)".into())
    }
}

fn pin_source(value: &str, credentials: Option<&Path>) -> Result<PathBuf, String> {
    let Some(path) = value.strip_prefix("file:") else {
        return Err("pin-source= must be a file: pin-source=file:/path".into());
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    let Some(name) = path.strip_prefix('$') else { return absolute("pin-source=file", decode(path)?) };
    let name = name.strip_prefix(CREDENTIALS_VARIABLE).and_then(|name| name.strip_prefix('/')).ok_or_else(|| {
        format!("only ${CREDENTIALS_VARIABLE}/NAME may stand in front (a $ in a path is written %24)")
    })?;
    let dir = credentials.ok_or_else(|| {
        format!("{CREDENTIALS_VARIABLE} is not set: systemd sets it for units with LoadCredential= or LoadCredentialEncrypted=")
    })?;
    let name = PathBuf::from(OsString::from_vec(decode(name)?));
    if name.as_os_str().is_empty() || name.is_absolute() {
        return Err(format!("what follows ${CREDENTIALS_VARIABLE}/ is not the name of a credential"));
    }
    Ok(dir.join(name))
}

/// A slash is not allowed in the path part of RFC 7512, section 2.3.
fn encode_attribute(bytes: &[u8]) -> String {
    encode(bytes).replace('/', "%2F")
}

/// Each byte in hex, as RFC 7512, section 2.3, recommends.
fn encode_id(id: &[u8]) -> String {
    id.iter().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Pkcs11Uri, String> {
        parse_in(text.strip_prefix("pkcs11:").unwrap(), Some(Path::new("/run/c")))
    }

    #[test]
    fn addresses() {
        let key = |token: &str, object: &str| Pkcs11Uri {
            token: Some(token.into()),
            object: Some(object.into()),
            ..Pkcs11Uri::default()
        };
        let cases = [
            ("pkcs11:token=t;object=o", key("t", "o")),
            ("pkcs11:object=o;type=secret-key;token=t;", key("t", "o")),
            ("pkcs11:token=My%20HSM;object=%c3%bc%3b%2f=", key("My HSM", "ü;/=")),
            (
                "pkcs11:serial=12ab;manufacturer=m;model=x;slot-id=7;id=%00%0aA%00",
                Pkcs11Uri {
                    serial: Some("12ab".into()),
                    manufacturer: Some("m".into()),
                    model: Some("x".into()),
                    slot_id: Some(7),
                    id: Some(b"\0\nA\0".to_vec()),
                    ..Pkcs11Uri::default()
                },
            ),
            (
                "pkcs11:token=t;object=o?module-path=/usr/lib/a%20b.so&pin-source=file:/etc/pin",
                Pkcs11Uri {
                    module: Pkcs11Module::Path("/usr/lib/a b.so".into()),
                    pin_source: Some("/etc/pin".into()),
                    ..key("t", "o")
                },
            ),
            (
                "pkcs11:token=t;object=o?pin-source=file:$CREDENTIALS_DIRECTORY/pin&module-name=softhsm2",
                Pkcs11Uri {
                    module: Pkcs11Module::Name("softhsm2".into()),
                    pin_source: Some("/run/c/pin".into()),
                    ..key("t", "o")
                },
            ),
            (
                "pkcs11:token=t;object=o?pin-source=file:///etc/%24pin",
                Pkcs11Uri { pin_source: Some("/etc/$pin".into()), ..key("t", "o") },
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn errors_say_what_to_write_and_show_no_secret() {
        let cases = [
            ("", "names no token"),
            ("token=t", "names no key"),
            ("object=o", "names no token"),
            ("token=;object=o", "token= is empty"),
            ("token=t;token=u;object=o", "twice"),
            ("token=t;id=", "id= is empty"),
            ("token=t;id=%0", "two hex digits"),
            ("token=t;object=%00", "NUL"),
            ("token=%ff;object=o", "not UTF-8"),
            ("slot-id=x;object=o", "decimal"),
            ("token=t;object=o;type=private", "secret-key"),
            ("token=t;object=o;library-version=3", "unknown attribute \"library-version\"; pkcs11 knows"),
            ("token=t;object=o?pin-value=s3cret", "pin-source=file:/path"),
            ("token=t;object=o;pin-value=s3cret", "pin-source=file:/path"),
            ("token=t;object=o?pin=s3cret", "unknown attribute \"pin\""),
            ("token=t;object=o?pin-source=/etc/pin", "file:/path"),
            ("token=t;object=o?pin-source=|s3cret", "file:/path"),
            ("token=t;object=o?pin-source=file:pin", "absolute"),
            ("token=t;object=o?pin-source=file:$HOME/pin", "%24"),
            ("token=t;object=o?pin-source=file:$CREDENTIALS_DIRECTORY/", "name of a credential"),
            ("token=t;object=o;module-name=x", "question mark"),
            ("token=t;object=o?module-path=lib.so", "absolute"),
            ("token=t;object=o?module-name=../x", "bare name"),
            ("token=t;object=o?module-name=x&module-path=/x", "twice"),
            ("token=t;object=o?", "unknown attribute"),
        ];
        for (text, expected) in cases {
            let error = parse(&format!("pkcs11:{text}")).unwrap_err();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{text}: {error}");
        }
        assert!(
            parse_in("token=t;object=o?pin-source=file:$CREDENTIALS_DIRECTORY/p", None)
                .unwrap_err()
                .contains("not set")
        );
    }

    struct Shown<'a>(&'a Pkcs11Uri);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write_in(f, Some(Path::new("/run/c")))
        }
    }

    #[test]
    fn what_is_shown_parses_to_the_same() {
        for text in [
            "pkcs11:token=t;object=o",
            "pkcs11:serial=%20/;manufacturer=%25;model=;;slot-id=18446744073709551615;object=%3B%3F%26/;id=%00%FF/a",
            "pkcs11:token=t;object=o?module-path=/a%26b%3Fc&pin-source=file:/run/c/pin%20",
            "pkcs11:token=t;object=o?module-name=softhsm2&pin-source=file:/run/cc/pin",
        ] {
            let text = text.replace("model=;", "model=m");
            let uri = parse(&text).unwrap();
            assert_eq!(parse(&Shown(&uri).to_string()).as_ref(), Ok(&uri), "{text}");
        }
        let uri = parse("pkcs11:object=a/b;id=A%01;token=t t?pin-source=file:/run/c/pin&module-name=m").unwrap();
        let shown =
            "pkcs11:token=t%20t;object=a%2Fb;id=%41%01?module-name=m&pin-source=file:$CREDENTIALS_DIRECTORY/pin";
        assert_eq!(Shown(&uri).to_string(), shown);
    }

    #[test]
    fn pinned_means_one_key_on_the_same_module() {
        let name = |text: String| KeyRef { provider: "pkcs11".into(), key: text };
        let given = parse("pkcs11:token=t;object=o?module-name=m&pin-source=file:/p").unwrap();
        let by_id = given.pinned(&name(Pkcs11Uri::key_name("t", "s", "o", &[0, 0x1f])));
        assert_eq!(by_id.to_string(), "pkcs11:token=t;id=%00%1F?module-name=m&pin-source=file:/p");
        let by_label = given.pinned(&name(Pkcs11Uri::key_name("", "s;/1", "o", b"")));
        assert_eq!(by_label.to_string(), "pkcs11:token=t;serial=s%3B%2F1;object=o?module-name=m&pin-source=file:/p");
        assert_eq!(parse(&by_id.to_string()).as_ref(), Ok(&by_id));
        let slot = parse("pkcs11:slot-id=4;object=o").unwrap();
        assert_eq!(
            slot.pinned(&name(Pkcs11Uri::key_name("t", "s", "o", &[1]))).to_string(),
            "pkcs11:token=t;slot-id=4;id=%01"
        );
    }
}
