//! Errors as the protocol tells them: a code that clients make typed exceptions of, a text, an HTTP status. Knows no causes.

use std::fmt;

use serde_json::{Map, Value};

/// What a client gets instead of an answer. The text never holds key material or plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub code: &'static str,
    /// `None` where the protocol has none (InvalidCiphertext, KMSInvalidMac, KMSInvalidSignature).
    pub message: Option<String>,
    pub status: u16,
}

impl ApiError {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()), status: 400 }
    }

    pub fn silent(code: &'static str) -> Self {
        Self { code, message: None, status: 400 }
    }

    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new("NotFoundException", message)
    }

    pub fn invalid_state(message: impl Into<String>) -> Self {
        Self::new("KMSInvalidStateException", message)
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new("UnsupportedOperationException", message)
    }

    pub fn limit(message: impl Into<String>) -> Self {
        Self::new("LimitExceededException", message)
    }

    pub fn denied(message: impl Into<String>) -> Self {
        Self::new("AccessDeniedException", message)
    }

    /// The service's own fault: what really happened is in its log, never in the answer.
    pub fn internal() -> Self {
        Self::new("KMSInternalException", "The service could not do this. Its log says why.").with_status(500)
    }

    /// `{"__type":CODE,"message":TEXT}`.
    pub fn body(&self) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("__type".into(), self.code.into());
        if let Some(message) = &self.message {
            body.insert("message".into(), message.as_str().into());
        }
        Value::Object(body).to_string().into_bytes()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{}: {message}", self.code),
            None => f.write_str(self.code),
        }
    }
}
