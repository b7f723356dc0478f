//! What a PKCS#11 answer means for a key, and how it reads. Knows the return codes of the standard, no session.

use std::fmt::Debug;

use cryptoki::{
    context::Function,
    error::{Error, RvError},
};

use crate::keys::KeyError;

/// Longest text of a module or the linker that is passed on, in characters.
const TEXT_MAX: usize = 200;

/// A `KeyError` that does not know its CMK's name yet.
#[derive(Debug)]
pub enum Failure {
    Refused(String),
    Unreachable(String),
    BadBlob(String),
    Config(String),
    /// A local file, whose own error says all.
    File(KeyError),
}

impl Failure {
    pub fn of(self, key: &str) -> KeyError {
        let key = key.to_owned();
        match self {
            Self::Refused(reason) => KeyError::Refused { key, reason },
            Self::Unreachable(reason) => KeyError::Unreachable { key, reason },
            Self::BadBlob(reason) => KeyError::BadBlob { key, reason },
            Self::Config(reason) => KeyError::Config(format!("CMK {key}: {reason}")),
            Self::File(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = describe(&error);
        let Error::Pkcs11(code, _) = error else {
            return match error {
                Error::NullFunctionPointer | Error::MissingSymbol(_) | Error::NotSupported => Self::Config(text),
                _ => Self::Unreachable(text),
            };
        };
        match code {
            RvError::KeyFunctionNotPermitted => {
                Self::Refused(format!("{text}: the key's CKA_ENCRYPT or CKA_DECRYPT is off"))
            }
            RvError::ActionProhibited | RvError::FunctionRejected | RvError::PinExpired => Self::Refused(text),
            RvError::UserPinNotInitialized => Self::Refused(format!("{text}: give the token a user PIN")),
            RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::FunctionNotSupported
            | RvError::KeyTypeInconsistent
            | RvError::KeySizeRange => Self::Config(format!("{text}: the token does not do CKM_AES_GCM with this key")),
            _ => Self::Unreachable(text),
        }
    }
}

/// Whether a new session may heal it: the device or the session went away, or the object was made anew.
pub fn is_lost(error: &Error) -> bool {
    use RvError as Rv;
    matches!(
        error,
        Error::Pkcs11(
            Rv::SessionHandleInvalid
                | Rv::SessionClosed
                | Rv::DeviceRemoved
                | Rv::TokenNotPresent
                | Rv::TokenNotRecognized
                | Rv::SlotIdInvalid
                | Rv::UserNotLoggedIn
                | Rv::CryptokiNotInitialized
                | Rv::KeyHandleInvalid
                | Rv::ObjectHandleInvalid
                | Rv::KeyChanged
                | Rv::OperationActive,
            _
        )
    )
}

/// A definite word on the ciphertext; PKCS#11 3.0 adds CKR_AEAD_DECRYPT_FAILED.
pub fn is_bad_ciphertext(error: &Error) -> bool {
    use RvError as Rv;
    match error {
        Error::Pkcs11(Rv::UnknownErrorCode(code), Function::Decrypt) => *code == 0x42,
        Error::Pkcs11(code, Function::Decrypt) => matches!(
            code,
            Rv::EncryptedDataInvalid
                | Rv::EncryptedDataLenRange
                | Rv::SignatureInvalid
                | Rv::DataInvalid
                | Rv::DataLenRange
        ),
        _ => false,
    }
}

/// Tokens say this of a wrong tag and of their own trouble alike (SoftHSM: CKR_GENERAL_ERROR).
pub fn may_be_bad_ciphertext(error: &Error) -> bool {
    use RvError as Rv;
    matches!(
        error,
        Error::Pkcs11(
            Rv::GeneralError
                | Rv::FunctionFailed
                | Rv::DeviceError
                | Rv::ArgumentsBad
                | Rv::VendorDefined(_)
                | Rv::UnknownErrorCode(_),
            Function::Decrypt
        )
    )
}

/// `C_Decrypt answered CKR_GENERAL_ERROR`
pub fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?} answered {}", code_name(code)),
        other => printable(&other.to_string()),
    }
}

fn code_name(code: &RvError) -> String {
    match code {
        RvError::VendorDefined(code) => format!("vendor code {code:#010x}"),
        RvError::UnknownErrorCode(code) => format!("unknown code {code:#010x}"),
        known => constant_name(known),
    }
}

/// The standard's spelling of a code that the library spells in camel case.
fn constant_name(code: &impl Debug) -> String {
    let mut name = String::from("CKR");
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Foreign text, bounded and without control characters.
pub fn printable(text: &str) -> String {
    let mut out: String = text.trim().chars().take(TEXT_MAX).flat_map(char::escape_debug).collect();
    if text.trim().chars().count() > TEXT_MAX {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: RvError, function: Function) -> Error {
        Error::Pkcs11(code, function)
    }

    #[test]
    fn codes_read_as_in_the_standard() {
        assert_eq!(describe(&answer(RvError::PinIncorrect, Function::Login)), "C_Login answered CKR_PIN_INCORRECT");
        assert_eq!(
            describe(&answer(RvError::VendorDefined(0x8000_0001), Function::Decrypt)),
            "C_Decrypt answered vendor code 0x80000001"
        );
        assert_eq!(printable(&format!("a\n\u{1b}{}", "x".repeat(300))), format!("a\\n\\u{{1b}}{}…", "x".repeat(197)));
    }

    #[test]
    fn what_codes_mean() {
        assert!(matches!(
            Failure::from(answer(RvError::KeyFunctionNotPermitted, Function::EncryptInit)),
            Failure::Refused(_)
        ));
        assert!(matches!(Failure::from(answer(RvError::MechanismInvalid, Function::EncryptInit)), Failure::Config(_)));
        assert!(matches!(Failure::from(answer(RvError::DeviceRemoved, Function::Decrypt)), Failure::Unreachable(_)));
        assert!(matches!(Failure::from(Error::MissingSymbol("C_GetFunctionList")), Failure::Config(_)));
        assert!(is_lost(&answer(RvError::SessionHandleInvalid, Function::EncryptInit)));
        assert!(!is_lost(&answer(RvError::GeneralError, Function::Decrypt)));
        assert!(is_bad_ciphertext(&answer(RvError::EncryptedDataInvalid, Function::Decrypt)));
        assert!(is_bad_ciphertext(&answer(RvError::UnknownErrorCode(0x42), Function::Decrypt)));
        // Nothing was decrypted yet, so it is no word on the ciphertext.
        assert!(!is_bad_ciphertext(&answer(RvError::DataInvalid, Function::DecryptInit)));
        assert!(may_be_bad_ciphertext(&answer(RvError::GeneralError, Function::Decrypt)));
        assert!(!may_be_bad_ciphertext(&answer(RvError::GeneralError, Function::DecryptInit)));
    }
}
