//! One AES key on one token through one session, opened again when it was lost. May wait for the device: belongs on a
//! worker thread. Knows PKCS#11, no contexts and no policy.

use std::{path::Path, sync::Arc};

use cryptoki::{
    error::{Error, Result as Answer},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    slot::TokenInfo,
};
use zeroize::Zeroizing;

use super::{
    failure::{Failure, describe, is_bad_ciphertext, is_lost, may_be_bad_ciphertext, printable},
    module::{self, Module, Pin},
};
use crate::{
    crypto::{random, secret::Secret32},
    keys::{
        protected::{self, Protection},
        uri::Pkcs11Uri,
    },
};

pub const IV_LEN: usize = 12;
const TAG_BITS: u64 = 128;
const SEALED_LEN: usize = 32 + 16;
/// Longest PIN file in bytes.
const PIN_MAX: usize = 4096;
/// Objects looked at before a search is called ambiguous anyway.
const OBJECTS_MAX: usize = 32;

/// A key as the token describes it.
#[derive(Debug, Clone)]
pub struct Found {
    handle: ObjectHandle,
    class: Option<ObjectClass>,
    kind: Option<KeyType>,
    label: String,
    id: Vec<u8>,
    /// Bytes.
    len: Option<u64>,
    /// Some way leads out of the token.
    pub extractable: bool,
    pub enabled: bool,
    pub token: String,
    serial: String,
}

impl Found {
    pub fn name(&self) -> String {
        Pkcs11Uri::key_name(&self.token, &self.serial, &self.label, &self.id)
    }

    pub fn label(&self) -> String {
        printable(&self.label)
    }

    fn is_aes256(&self) -> bool {
        self.class == Some(ObjectClass::SECRET_KEY) && self.kind == Some(KeyType::AES) && self.len == Some(32)
    }

    /// For errors: `secret key AES-128 "label" id 01ff`
    fn shown(&self) -> String {
        let class = match self.class {
            Some(ObjectClass::SECRET_KEY) => "secret key",
            Some(ObjectClass::PRIVATE_KEY) => "private key",
            Some(ObjectClass::PUBLIC_KEY) => "public key",
            Some(ObjectClass::CERTIFICATE) => "certificate",
            _ => "object",
        };
        let kind = match (self.kind, self.len) {
            (Some(KeyType::AES), Some(len)) => format!(" AES-{}", len.saturating_mul(8)),
            (Some(kind), _) => format!(" {kind}"),
            (None, _) => String::new(),
        };
        format!("{class}{kind} {:?} id {}", self.label(), data_encoding::HEXLOWER.encode(&self.id))
    }
}

/// A key that is found and used where it is.
pub struct TokenKey {
    module: Arc<Module>,
    /// What to look for: what the user wrote, and once a key was found, exactly that one.
    wanted: Pkcs11Uri,
    open: Option<(Session, ObjectHandle)>,
}

/// Whether opening needs a PIN from somebody.
pub struct Need {
    pub pin: bool,
    pub token: String,
}

impl TokenKey {
    pub fn new(uri: &Pkcs11Uri) -> Self {
        Self { module: module::module(&uri.module), wanted: uri.clone(), open: None }
    }

    /// Finds the token and tells whether somebody has to be asked for its PIN.
    pub fn prepare(&mut self) -> Result<Need, Failure> {
        let context = self.module.context()?;
        let (_, token) = self.module.token(&context, &self.wanted)?;
        let pin = self.wanted.pin_source.is_none() && self.module.needs_pin(&token);
        Ok(Need { pin, token: module::shown(&token) })
    }

    /// Opens the session and finds the key; from then on `exactly` that key is meant.
    pub fn begin(
        &mut self,
        pin: Option<Pin>,
        exactly: impl FnOnce(&Pkcs11Uri, &Found) -> Pkcs11Uri,
    ) -> Result<Found, Failure> {
        let found = self.connect(pin)?;
        self.wanted = exactly(&self.wanted, &found);
        Ok(found)
    }

    /// The key as it is now; a session that was lost is opened again.
    pub fn look(&mut self) -> Result<Found, Failure> {
        if let Some((session, _)) = &self.open
            && let Ok(token) = self.token_of(session)
            && let Ok(found) = find(session, &token, &self.wanted)
        {
            return Ok(found);
        }
        self.connect(None)
    }

    /// AES-256-GCM with a fresh random IV: the IV, and ciphertext and tag.
    pub fn seal(&mut self, aad: &[u8], key: &Secret32) -> Result<([u8; IV_LEN], Vec<u8>), Failure> {
        let (iv, sealed) = self.with_key(|session, handle| {
            let mut iv: [u8; IV_LEN] = random::array();
            let sealed = {
                let parameters = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
                session.encrypt(&Mechanism::AesGcm(parameters), handle, key.expose())?
            };
            // Some tokens insist on an IV of their own and leave it where ours was.
            Ok((iv, sealed))
        })?;
        if sealed.len() != SEALED_LEN {
            return Err(Failure::Config(format!(
                "the token made {} bytes of 32 where AES-GCM makes {SEALED_LEN}; its CKM_AES_GCM is not the standard's",
                sealed.len()
            )));
        }
        Ok((iv, sealed))
    }

    pub fn open(&mut self, iv: &[u8; IV_LEN], aad: &[u8], sealed: &[u8]) -> Result<Secret32, Failure> {
        let plain = match self.decrypt(iv, aad, sealed)? {
            Err(e) if may_be_bad_ciphertext(&e) => {
                if !self.still_works() {
                    self.close();
                    return Err(e.into());
                }
                self.decrypt(iv, aad, sealed)?
            }
            outcome => outcome,
        }
        .map_err(|e| Failure::BadBlob(format!("{}: altered, or made for something else", describe(&e))))?;
        Secret32::written_by(|out| match plain.len() {
            32 => {
                out.copy_from_slice(&plain);
                Ok(())
            }
            len => Err(Failure::BadBlob(format!("it holds {len} bytes, not a key of 32"))),
        })
    }

    /// The inner error may be the ciphertext's own.
    fn decrypt(&mut self, iv: &[u8; IV_LEN], aad: &[u8], sealed: &[u8]) -> Result<Answer<Zeroizing<Vec<u8>>>, Failure> {
        self.with_key(|session, handle| {
            let mut iv = *iv;
            let parameters = GcmParams::new(&mut iv, aad, TAG_BITS.into())?;
            match session.decrypt(&Mechanism::AesGcm(parameters), handle, sealed) {
                Ok(plain) => Ok(Ok(Zeroizing::new(plain))),
                Err(e) if is_bad_ciphertext(&e) || may_be_bad_ciphertext(&e) => Ok(Err(e)),
                Err(e) => Err(e),
            }
        })
    }

    /// Whether the key opens what it has just sealed: then a blob that it fails to open twice is not its own.
    fn still_works(&mut self) -> bool {
        let probe = Secret32::random();
        let Ok((iv, sealed)) = self.seal(b"", &probe) else { return false };
        matches!(self.decrypt(&iv, b"", &sealed), Ok(Ok(plain)) if plain.as_slice() == probe.expose())
    }

    /// One operation, on a new session once where the old one turns out to be lost.
    fn with_key<T>(&mut self, operation: impl Fn(&Session, ObjectHandle) -> Answer<T>) -> Result<T, Failure> {
        if let Some((session, handle)) = &self.open {
            match operation(session, *handle) {
                Ok(value) => return Ok(value),
                Err(e) if is_lost(&e) => log::debug!("PKCS#11 session is opened again: {}", describe(&e)),
                Err(e) => return Err(e.into()),
            }
        }
        self.connect(None)?;
        let Some((session, handle)) = &self.open else {
            return Err(Failure::Unreachable("the session did not open".into()));
        };
        operation(session, *handle).map_err(|e| {
            if is_lost(&e) {
                self.close();
            }
            e.into()
        })
    }

    fn close(&mut self) {
        if let Some((session, _)) = self.open.take() {
            // It may be gone already, which is why it is closed.
            let _ = session.close();
        }
    }

    fn connect(&mut self, pin: Option<Pin>) -> Result<Found, Failure> {
        self.close();
        let context = self.module.context()?;
        let (slot, token) = self.module.token(&context, &self.wanted)?;
        let session = context.open_ro_session_no_drop(slot)?;
        let found = self.log_in_and_find(&session, &token, pin);
        match found {
            Ok(found) => {
                self.open = Some((session, found.handle));
                Ok(found)
            }
            Err(e) => {
                let _ = session.close();
                Err(e)
            }
        }
    }

    fn log_in_and_find(&self, session: &Session, token: &TokenInfo, pin: Option<Pin>) -> Result<Found, Failure> {
        let pin = match (pin, &self.wanted.pin_source) {
            (Some(pin), _) => Some(pin),
            (None, None) => None,
            // After the start the file may be gone: then the last good PIN serves.
            (None, Some(path)) => match read_pin(path) {
                Ok(pin) => Some(pin),
                Err(_) if !self.module.needs_pin(token) => None,
                Err(e) => return Err(e),
            },
        };
        self.module.log_in(session, token, pin)?;
        find(session, token, &self.wanted)
    }

    fn token_of(&self, session: &Session) -> Result<TokenInfo, Failure> {
        let slot = session.get_session_info()?.slot_id();
        Ok(self.module.context()?.get_token_info(slot)?)
    }
}

impl Drop for TokenKey {
    fn drop(&mut self) {
        self.close();
    }
}

fn read_pin(path: &Path) -> Result<Pin, Failure> {
    let mut pin = protected::read(path, "PIN file", Protection::Secret, PIN_MAX).map_err(Failure::File)?;
    if pin.last() == Some(&b'\n') {
        pin.pop();
    }
    let complaint = match () {
        () if pin.is_empty() => "is empty",
        () if pin.contains(&b'\n') => "has more than one line",
        () => return Ok(pin),
    };
    Err(Failure::Config(format!("PIN file {} {complaint}", path.display())))
}

/// The one AES-256 key that `wanted` describes, on a session that may see it.
fn find(session: &Session, token: &TokenInfo, wanted: &Pkcs11Uri) -> Result<Found, Failure> {
    let mut template = vec![Attribute::Token(true)];
    template.extend(wanted.object.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec())));
    template.extend(wanted.id.clone().map(Attribute::Id));
    let objects = search(session, token, &template)?;
    let keys: Vec<&Found> = objects.iter().filter(|o| o.class == Some(ObjectClass::SECRET_KEY)).collect();
    let shown = module::shown(token);
    let found = match keys.as_slice() {
        [key] if key.is_aes256() => (*key).clone(),
        [other] => {
            return Err(Failure::Config(format!("{shown} has {}; an AES-256 key is needed", other.shown())));
        }
        [] if objects.is_empty() => {
            return Err(Failure::Refused(format!("{shown} has no such key: it was removed, or the URI names another")));
        }
        [] => {
            let others = module::list(objects.iter().map(Found::shown));
            return Err(Failure::Config(format!("{shown} has {others}; an AES-256 key is needed")));
        }
        several => {
            let several = module::list(several.iter().map(|key| key.shown()));
            return Err(Failure::Config(format!("on {shown} several keys fit ({several}): add id= or object=")));
        }
    };
    // The id is the key's name then, so it must be this key's alone; a search by nothing else has shown that already.
    if !found.id.is_empty() && wanted.object.is_some() {
        let same = [Attribute::Token(true), Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(found.id.clone())];
        if search(session, token, &same)?.len() > 1 {
            return Err(Failure::Config(format!(
                "on {shown} another secret key has the id of {} too; give each its own CKA_ID",
                found.shown()
            )));
        }
    }
    if found.id.is_empty() && found.label.is_empty() {
        return Err(Failure::Config(format!("on {shown} the key has neither CKA_ID nor CKA_LABEL: give it one")));
    }
    Ok(found)
}

fn search(session: &Session, token: &TokenInfo, template: &[Attribute]) -> Result<Vec<Found>, Failure> {
    let handles = session.iter_objects(template)?.take(OBJECTS_MAX).collect::<Answer<Vec<_>>>()?;
    let mut objects = Vec::with_capacity(handles.len());
    for handle in handles {
        match examine(session, handle, token) {
            Ok(found) => objects.push(found),
            // Removed while we looked.
            Err(Error::Pkcs11(cryptoki::error::RvError::ObjectHandleInvalid, _)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(objects)
}

fn examine(session: &Session, handle: ObjectHandle, token: &TokenInfo) -> Answer<Found> {
    const WANTED: [AttributeType; 9] = [
        AttributeType::Class,
        AttributeType::KeyType,
        AttributeType::Label,
        AttributeType::Id,
        AttributeType::ValueLen,
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::Encrypt,
        AttributeType::Decrypt,
    ];
    let mut found = Found {
        handle,
        class: None,
        kind: None,
        label: String::new(),
        id: Vec::new(),
        len: None,
        extractable: false,
        enabled: true,
        token: token.label().to_owned(),
        serial: token.serial_number().to_owned(),
    };
    for attribute in session.get_attributes(handle, &WANTED)? {
        match attribute {
            Attribute::Class(class) => found.class = Some(class),
            Attribute::KeyType(kind) => found.kind = Some(kind),
            Attribute::Label(label) => found.label = String::from_utf8_lossy(&label).into_owned(),
            Attribute::Id(id) => found.id = id,
            Attribute::ValueLen(len) => found.len = Some(*len),
            Attribute::Sensitive(sensitive) => found.extractable |= !sensitive,
            Attribute::Extractable(extractable) => found.extractable |= extractable,
            Attribute::Encrypt(allowed) | Attribute::Decrypt(allowed) => found.enabled &= allowed,
            _ => {}
        }
    }
    Ok(found)
}
