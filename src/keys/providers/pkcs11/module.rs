//! PKCS#11 modules of this process: loaded and initialised once each, and what is known of the PINs of their tokens.
//! Everything here may wait for a device and belongs on a worker thread. Knows no keys.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    session::{Session, SessionState, UserType},
    slot::{Slot, TokenInfo},
    types::RawAuthPin,
};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::failure::{Failure, describe, printable};
use crate::{
    crypto::{kdf, secret::Secret32},
    keys::uri::{Pkcs11Module, Pkcs11Uri},
};

/// The proxy of p11-kit under the names that distributions give it.
const SYSTEM_MODULES: [&str; 2] = ["p11-kit-proxy.so", "libp11-kit.so.0"];

pub type Pin = Zeroizing<Vec<u8>>;

/// By the name it is loaded by. Never emptied: unloading a module while another CMK uses it, or at exit, is not safe.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// One shared library.
pub struct Module {
    /// Tried in this order.
    files: Vec<PathBuf>,
    /// Held while the library loads and initialises, so that this happens once.
    context: Mutex<Option<Pkcs11>>,
    logins: Mutex<BTreeMap<String, Arc<Mutex<Login>>>>,
}

/// What is known of the user PIN of one token. Held across C_Login, so that one wrong PIN is tried once.
#[derive(Default)]
struct Login {
    good: Option<Pin>,
    /// Keyed digests of PINs that the token refused.
    refused: Vec<[u8; 32]>,
}

/// Looks a module up; nothing is loaded yet.
pub fn module(name: &Pkcs11Module) -> Arc<Module> {
    let files = match name {
        Pkcs11Module::System => SYSTEM_MODULES.map(PathBuf::from).to_vec(),
        Pkcs11Module::Name(name) => vec![format!("lib{name}.so").into(), format!("{name}.so").into()],
        // One library has one state, whatever links lead to it.
        Pkcs11Module::Path(path) => vec![path.canonicalize().unwrap_or_else(|_| path.clone())],
    };
    let fresh = || Arc::new(Module { files: files.clone(), context: Mutex::default(), logins: Mutex::default() });
    MODULES.lock().entry(files[0].clone()).or_insert_with(fresh).clone()
}

impl Module {
    /// The initialised library.
    pub fn context(&self) -> Result<Pkcs11, Failure> {
        let mut context = self.context.lock();
        if let Some(context) = &*context {
            return Ok(context.clone());
        }
        let loaded = self.load()?;
        match loaded.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(e) => {
                let text = describe(&e);
                return Err(match e {
                    Error::Pkcs11(RvError::CantLock | RvError::NeedToCreateThreads | RvError::ArgumentsBad, _) => {
                        Failure::Config(format!("{}: {text}: it cannot be used from threads", self.name()))
                    }
                    _ => Failure::Unreachable(format!("{}: {text}", self.name())),
                });
            }
        }
        Ok(context.insert(loaded).clone())
    }

    /// The next use initialises it again.
    pub fn forget(&self) {
        *self.context.lock() = None;
    }

    fn name(&self) -> String {
        format!("PKCS#11 module {}", self.files[0].display())
    }

    fn load(&self) -> Result<Pkcs11, Failure> {
        let mut first = None;
        for file in &self.files {
            if file.is_absolute() {
                check_trusted(file).map_err(|why| Failure::Config(format!("{}: {why}", self.name())))?;
            }
            match Pkcs11::new(file) {
                Ok(loaded) => return Ok(loaded),
                Err(e) => first = first.or(Some(describe(&e))),
            }
        }
        Err(Failure::Config(format!(
            "{} cannot be loaded: {}; install it, or name the token's own with module-path=/path/to/library.so",
            self.name(),
            first.unwrap_or_default()
        )))
    }

    /// The one token that `uri` describes.
    pub fn token(&self, context: &Pkcs11, uri: &Pkcs11Uri) -> Result<(Slot, TokenInfo), Failure> {
        let slots = context.get_slots_with_token().inspect_err(|e| {
            if matches!(e, Error::Pkcs11(RvError::CryptokiNotInitialized, _)) {
                self.forget();
            }
        })?;
        // A token that went away in between is one that is not there.
        let tokens = slots.into_iter().filter_map(|slot| Some((slot, context.get_token_info(slot).ok()?)));
        let tokens: Vec<_> = tokens.filter(|(_, token)| token.token_initialized()).collect();
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        let fits = |(slot, token): &&(Slot, TokenInfo)| {
            is(&uri.token, token.label())
                && is(&uri.serial, token.serial_number())
                && is(&uri.manufacturer, token.manufacturer_id())
                && is(&uri.model, token.model())
                && uri.slot_id.is_none_or(|id| id == slot.id())
        };
        let found: Vec<_> = tokens.iter().filter(fits).collect();
        match found.as_slice() {
            [(slot, token)] => Ok((*slot, token.clone())),
            [] => Err(Failure::Unreachable(format!(
                "{} has no such token; it has {}",
                self.name(),
                list(tokens.iter().map(|token| shown(&token.1)))
            ))),
            several => Err(Failure::Config(format!(
                "several tokens fit ({}): add serial=",
                list(several.iter().map(|token| shown(&token.1)))
            ))),
        }
    }

    fn login(&self, token: &TokenInfo) -> Arc<Mutex<Login>> {
        self.logins.lock().entry(identity(token)).or_default().clone()
    }

    /// Whether the token wants a PIN that this process does not know.
    pub fn needs_pin(&self, token: &TokenInfo) -> bool {
        token.login_required() && self.login(token).lock().good.is_none()
    }

    /// Logs this process in, unless it is. `fresh`: the PIN as it is now, where there is one to ask; otherwise the last good
    /// one. A PIN that the token refused once is never offered again: some lock themselves after three.
    pub fn log_in(&self, session: &Session, token: &TokenInfo, fresh: Option<Pin>) -> Result<(), Failure> {
        if !token.login_required() {
            return Ok(());
        }
        let login = self.login(token);
        let mut login = login.lock();
        match session.get_session_info()?.session_state() {
            SessionState::RoUser | SessionState::RwUser => {
                // Not tried, but all there is to log in with later.
                if login.good.is_none() {
                    login.good = fresh;
                }
                return Ok(());
            }
            SessionState::RoPublic | SessionState::RwPublic | SessionState::RwSecurityOfficer => {}
        }
        let token = shown(token);
        let Some(pin) = fresh.or_else(|| login.good.clone()) else {
            return Err(Failure::Config(format!("{token} wants a PIN: write pin-source=file:/path into the URI")));
        };
        let digest = kdf::hmac_sha256(process_key(), &[&pin]);
        if login.refused.contains(&digest) {
            return Err(Failure::Refused(format!(
                "{token} refused this PIN before, so it is not offered again; correct the PIN file, or unmount and try with \
                 the right PIN"
            )));
        }
        self.check_attempts(&token, session)?;
        let offered = RawAuthPin::new(Box::new(pin.to_vec()));
        match session.login_with_raw(UserType::User, &offered) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                login.good = Some(pin);
                Ok(())
            }
            Err(e) => {
                let text = describe(&e);
                let Error::Pkcs11(code, _) = e else { return Err(e.into()) };
                let advice = match code {
                    RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => {
                        "the PIN is wrong; tokens lock themselves after a few wrong ones, so make sure of it before the next try"
                    }
                    RvError::PinLocked => "the token has locked the user PIN; its security officer can set a new one",
                    _ => return Err(e.into()),
                };
                login.refused.push(digest);
                if login.good.as_ref() == Some(&pin) {
                    login.good = None;
                }
                Err(Failure::Refused(format!("{token}: {text}: {advice}")))
            }
        }
    }

    /// The token's own warnings, read anew: a wrong PIN from us must not be the one that locks it.
    fn check_attempts(&self, token: &str, session: &Session) -> Result<(), Failure> {
        let now = self.context()?.get_token_info(session.get_session_info()?.slot_id())?;
        if now.user_pin_locked() {
            return Err(Failure::Refused(format!(
                "{token} has locked the user PIN; its security officer can set a new one"
            )));
        }
        if now.user_pin_final_try() {
            return Err(Failure::Refused(format!(
                "{token} has one attempt left before it locks the PIN, which is not used up here: log in once by hand \
                 (pkcs11-tool --login --list-objects) and try again"
            )));
        }
        Ok(())
    }
}

/// Digests of refused PINs mean nothing outside this process.
fn process_key() -> &'static Secret32 {
    static KEY: OnceLock<Secret32> = OnceLock::new();
    KEY.get_or_init(Secret32::random)
}

fn identity(token: &TokenInfo) -> String {
    [token.manufacturer_id(), token.model(), token.serial_number(), token.label()].join("\0")
}

/// `token "label" (serial 12ab)`
pub fn shown(token: &TokenInfo) -> String {
    format!("token \"{}\" (serial {})", printable(token.label()), printable(token.serial_number()))
}

pub fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.take(16).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

/// A library runs with all our rights: nobody else may be able to put another in its place. Links are resolved already.
fn check_trusted(file: &Path) -> Result<(), String> {
    let euid = rustix::process::geteuid().as_raw();
    for (depth, path) in file.ancestors().enumerate() {
        let shown = path.display();
        let meta = path.symlink_metadata().map_err(|e| format!("{shown}: {e}"))?;
        if depth == 0 && !meta.is_file() {
            return Err("it is not a regular file".into());
        }
        if meta.uid() != 0 && meta.uid() != euid {
            return Err(format!("{shown} belongs to uid {}, who could change it: it must belong to root", meta.uid()));
        }
        // In a sticky directory nobody else can replace what is ours or root's.
        let sticky = meta.is_dir() && meta.mode() & 0o1000 != 0;
        if meta.mode() & 0o022 != 0 && !sticky {
            return Err(format!("{shown} can be written by others: chmod go-w {shown}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_library_that_others_could_replace_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("module.so");
        std::fs::write(&file, b"").unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        mode(&file, 0o644);
        check_trusted(&file).unwrap();
        mode(&file, 0o664);
        assert!(check_trusted(&file).unwrap_err().contains("chmod go-w"));
        mode(&file, 0o644);
        mode(dir.path(), 0o777);
        assert!(check_trusted(&file).unwrap_err().contains("chmod go-w"));
        mode(dir.path(), 0o1777);
        check_trusted(&file).unwrap();
        assert!(check_trusted(dir.path()).unwrap_err().contains("regular file"));
        assert!(check_trusted(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn one_library_is_one_module() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a.so"), dir.path().join("b.so"));
        std::fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let path = |path: &Path| module(&Pkcs11Module::Path(path.into()));
        assert!(Arc::ptr_eq(&path(&file), &path(&link)));
        assert!(!Arc::ptr_eq(&path(&file), &module(&Pkcs11Module::System)));
        assert!(matches!(path(&file).context(), Err(Failure::Config(text)) if text.contains("module-path=")));
    }
}
