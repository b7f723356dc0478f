//! What an answer of AWS KMS, or the lack of one, means for the key. Knows the SDK's errors; sends nothing.

use std::error::Error;

use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sso::operation::get_role_credentials::GetRoleCredentialsError;
use aws_sdk_sts::operation::{
    assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
};

use crate::keys::KeyError;

/// The operations in use, as IAM and the API name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    GenerateDataKey,
    Encrypt,
    Decrypt,
    ReEncrypt,
    DescribeKey,
}

impl Call {
    fn permission(self) -> &'static str {
        match self {
            Self::GenerateDataKey => "kms:GenerateDataKey",
            Self::Encrypt => "kms:Encrypt",
            Self::Decrypt => "kms:Decrypt",
            Self::ReEncrypt => "kms:ReEncryptFrom and kms:ReEncryptTo",
            Self::DescribeKey => "kms:DescribeKey",
        }
    }
    /// The call's subject is a blob, which came from a disk that anybody may have written.
    fn opens_a_blob(self) -> bool {
        matches!(self, Self::Decrypt | Self::ReEncrypt)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Refused,
    Unreachable,
    BadBlob,
    Config,
    /// The service does not know the operation: a compatible one need not know all.
    NoOperation,
    /// No source of credentials is configured; whether that is an outage depends on what went before.
    NoCredentials,
}

/// A `KeyError` before the key's name is known.
#[derive(Debug)]
pub(super) struct Failure {
    pub kind: Kind,
    pub reason: String,
    /// The credentials were not good. They may have been renewed in the file or variable they came from.
    pub credentials: bool,
}

impl Failure {
    pub fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), credentials: false }
    }

    /// Nobody was asked: this host has no credentials, or cannot tell which.
    pub fn is_local(&self) -> bool {
        self.credentials && matches!(self.kind, Kind::NoCredentials | Kind::Config)
    }

    pub fn named(self, key: &str) -> KeyError {
        let Self { kind, reason, .. } = self;
        let key = key.to_string();
        match kind {
            Kind::Refused => KeyError::Refused { key, reason },
            Kind::Unreachable => KeyError::Unreachable { key, reason },
            Kind::BadBlob => KeyError::BadBlob { key, reason },
            Kind::Config | Kind::NoCredentials | Kind::NoOperation => KeyError::Config(format!("CMK {key}: {reason}")),
        }
    }
}

/// A request was about to leave this host without TLS. Raised by `connection::Guard`.
#[derive(Debug, thiserror::Error)]
#[error(
    "the endpoint {0} is plain http on another host, and keys travel in the answers: use https (AWS_ENDPOINT_URL?)"
)]
pub(super) struct InsecureEndpoint(pub String);

/// The server's own words are cut here, in characters.
const WORDS: usize = 300;

/// One line, printable, bounded.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.trim().chars().enumerate() {
        if count == WORDS {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c) => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// An error and its causes, each said once.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    printable(&text)
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What the SDK's error of one call means.
pub(super) fn failure<E>(error: &SdkError<E, HttpResponse>, call: Call) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let Some(insecure) = find::<InsecureEndpoint>(error) {
        return Failure::new(Kind::Config, insecure.to_string());
    }
    if let Some(credentials) = find::<CredentialsError>(error) {
        return without_credentials(credentials);
    }
    match error {
        SdkError::TimeoutError(_) => Failure::new(Kind::Unreachable, "no answer in time; check network and endpoint"),
        SdkError::DispatchFailure(cause) => {
            let text = cause.as_connector_error().map_or_else(|| with_causes(error), |cause| with_causes(cause));
            Failure::new(Kind::Unreachable, connection_advice(text))
        }
        SdkError::ServiceError(service) => {
            let meta = service.err().meta();
            let known = meta.code().map(|code| (code.to_string(), meta.message().unwrap_or_default().to_string()));
            answered(service.raw(), known, call)
        }
        SdkError::ResponseError(response) => match with_xml(response.raw()) {
            Some(known) => answered(response.raw(), Some(known), call),
            None => Failure::new(Kind::Unreachable, format!("the answer broke off: {}", with_causes(error))),
        },
        other => Failure::new(Kind::Config, format!("the request could not be made: {}", with_causes(other))),
    }
}

fn connection_advice(text: String) -> String {
    if text.contains("certificate") {
        format!("{text} (the certificate of a private CA goes into the file that AWS_CA_BUNDLE names)")
    } else if text.contains("CONNECT") || text.contains("tunnel") {
        format!("{text} (through the proxy that HTTPS_PROXY or ALL_PROXY names; NO_PROXY lists exceptions)")
    } else {
        format!("{text}; check network and endpoint")
    }
}

/// An HTTP answer that is not success: by what it says, else by its status.
fn answered(raw: &HttpResponse, known: Option<(String, String)>, call: Call) -> Failure {
    let status = raw.status().as_u16();
    match known.or_else(|| with_xml(raw)) {
        Some((code, message)) => by_code(status, &code, &message, call),
        None => Failure::new(
            Kind::Unreachable,
            format!("HTTP {status} with an answer that AWS KMS does not give; check endpoint and proxy"),
        ),
    }
}

/// Front ends and some compatible servers answer questions of authentication in XML. (code, message)
fn with_xml(raw: &HttpResponse) -> Option<(String, String)> {
    if raw.status().is_success() {
        return None;
    }
    let body = raw.body().bytes()?;
    let text = std::str::from_utf8(&body[..body.len().min(16384)]).ok()?;
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (inner, _) = rest.split_once(&format!("</{name}>"))?;
        Some(inner.to_string())
    };
    Some((element("Code")?, element("Message").unwrap_or_default()))
}

/// The list is that of "Common Errors" and of each operation's "Errors" in the AWS KMS API reference.
fn by_code(status: u16, code: &str, message: &str, call: Call) -> Failure {
    let code = printable(code);
    let words = printable(message);
    let said = if words.is_empty() { code.clone() } else { format!("{code}: {words}") };
    if status >= 500 || status == 429 {
        return Failure::new(Kind::Unreachable, format!("{said} (HTTP {status})"));
    }
    let lower = message.to_ascii_lowercase();
    match code.as_str() {
        "AccessDeniedException" | "AccessDenied" => {
            Failure::new(Kind::Refused, format!("{said}; grant {} in the key policy or by IAM", call.permission()))
        }
        "DisabledException" => Failure::new(Kind::Refused, format!("{said}; enable it with aws kms enable-key")),
        // A key store that does not answer is an outage; the other states of a key are somebody's decision.
        "KMSInvalidStateException"
            if ["unavailable", "not connected", "key store"].iter().any(|w| lower.contains(w)) =>
        {
            Failure::new(Kind::Unreachable, said)
        }
        "KMSInvalidStateException" => Failure::new(
            Kind::Refused,
            format!("{said}; aws kms describe-key shows its state, cancel-key-deletion and enable-key undo it"),
        ),
        "NotFoundException" => Failure::new(Kind::Refused, format!("{said}; check the key's name, account and region")),
        "ExpiredTokenException" | "ExpiredToken" | "TokenRefreshRequired" => {
            rejected(format!("{said}; renew the AWS credentials"))
        }
        "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" => {
            rejected(format!("{said}; check the AWS credentials (access key id, session token)"))
        }
        "RequestExpired" | "RequestTimeTooSkewed" => clock(&code),
        // The message of these may show the request as it was signed, session token included.
        "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException" => {
            if lower.contains("expired") || lower.contains("not yet current") {
                clock(&code)
            } else {
                rejected(format!("{code}; check the AWS secret access key"))
            }
        }
        "MissingAuthenticationToken" | "MissingAuthenticationTokenException" | "OptInRequired" | "NotAuthorized" => {
            rejected(format!("{said}; check the AWS credentials and the account"))
        }
        "InvalidCiphertextException" | "IncorrectKeyException" if call.opens_a_blob() => {
            Failure::new(Kind::BadBlob, said)
        }
        "InvalidKeyUsageException" | "UnsupportedOperationException" => Failure::new(
            Kind::Config,
            format!("{said}; an RSA key needs algorithm=rsa in its URI, a symmetric one must not have it"),
        ),
        "ValidationException" | "InvalidParameterValue" if call.opens_a_blob() => Failure::new(Kind::BadBlob, said),
        "ValidationException" | "InvalidArnException" => {
            Failure::new(Kind::Config, format!("{said}; check the CMK's URI"))
        }
        "UnknownOperationException" | "InvalidAction" => {
            Failure::new(Kind::NoOperation, format!("{said}; the endpoint does not offer {}", call.permission()))
        }
        _ => Failure::new(Kind::Unreachable, format!("{said} (HTTP {status})")),
    }
}

fn rejected(reason: String) -> Failure {
    Failure { kind: Kind::Refused, reason, credentials: true }
}

/// A host whose clock is wrong learns nothing about the key.
fn clock(code: &str) -> Failure {
    Failure::new(Kind::Unreachable, format!("{code}: this host's clock is wrong; check time synchronisation"))
}

/// The chain of credential sources has none, or one of them failed.
fn without_credentials(error: &CredentialsError) -> Failure {
    // What the service behind the source answered, where one did.
    let service = [
        find::<AssumeRoleError>(error).map(ProvideErrorMetadata::meta),
        find::<AssumeRoleWithWebIdentityError>(error).map(ProvideErrorMetadata::meta),
        find::<GetRoleCredentialsError>(error).map(ProvideErrorMetadata::meta),
    ]
    .into_iter()
    .flatten()
    .next();
    let source = |text: String| format!("AWS credentials cannot be had: {text}");
    match error {
        CredentialsError::CredentialsNotLoaded(_) => Failure {
            kind: Kind::NoCredentials,
            reason:
                "no AWS credentials found: set AWS_PROFILE or AWS_SHARED_CREDENTIALS_FILE, or AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or give this host an \
                     instance or task role"
                    .into(),
            credentials: true,
        },
        CredentialsError::InvalidConfiguration(_) => {
            Failure { kind: Kind::Config, reason: source(with_causes(error)), credentials: true }
        }
        _ => match service.and_then(|meta| meta.code()) {
            Some(
                "AccessDenied"
                | "AccessDeniedException"
                | "ExpiredTokenException"
                | "InvalidIdentityToken"
                | "InvalidIdentityTokenException"
                | "IDPRejectedClaim"
                | "UnauthorizedException"
                | "InvalidClientTokenId"
                | "ResourceNotFoundException"
                | "ForbiddenException",
            ) => rejected(source(with_causes(error))),
            // Instance metadata, container agents, external programs, what they were busy with: different in a moment.
            _ => {
                let mut failure = Failure::new(Kind::Unreachable, source(with_causes(error)));
                failure.credentials =
                    find::<ImdsError>(error).is_none() && !matches!(error, CredentialsError::ProviderTimedOut(_));
                failure
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_one_bounded_printable_line() {
        assert_eq!(printable("  a\nb\tc\u{1b}[0m\u{202e}d\0 "), "a b c\u{fffd}[0m\u{fffd}d\u{fffd}");
        let long = printable(&"é".repeat(1000));
        assert_eq!(long.chars().count(), WORDS + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn what_a_code_means_depends_on_the_call_and_the_status() {
        let kind = |status, code, message, call| by_code(status, code, message, call).kind;
        for (code, expected) in [
            ("InvalidCiphertextException", Kind::BadBlob),
            ("IncorrectKeyException", Kind::BadBlob),
            ("ValidationException", Kind::BadBlob),
            ("DisabledException", Kind::Refused),
            ("AccessDeniedException", Kind::Refused),
            ("ExpiredTokenException", Kind::Refused),
            ("ThrottlingException", Kind::Unreachable),
            ("LimitExceededException", Kind::Unreachable),
            ("SomethingOfNextYear", Kind::Unreachable),
            ("InvalidKeyUsageException", Kind::Config),
            ("UnknownOperationException", Kind::NoOperation),
        ] {
            assert_eq!(kind(400, code, "", Call::Decrypt), expected, "{code}");
            assert_eq!(kind(500, code, "", Call::Decrypt), Kind::Unreachable, "{code}");
            assert_eq!(kind(429, code, "", Call::Decrypt), Kind::Unreachable, "{code}");
        }
        // Nothing that is asked about a key without a blob can be the blob's fault.
        for call in [Call::GenerateDataKey, Call::Encrypt, Call::DescribeKey] {
            assert_eq!(kind(400, "ValidationException", "", call), Kind::Config);
            assert_eq!(kind(400, "InvalidCiphertextException", "", call), Kind::Unreachable);
        }
        for (message, expected) in [
            ("arn:aws:kms:…:key/x is pending deletion.", Kind::Refused),
            ("arn:aws:kms:…:key/x is pending import.", Kind::Refused),
            ("", Kind::Refused),
            ("arn:aws:kms:…:key/x is unavailable.", Kind::Unreachable),
            ("The custom key store is not connected", Kind::Unreachable),
        ] {
            assert_eq!(kind(400, "KMSInvalidStateException", message, Call::Decrypt), expected, "{message}");
        }
        let late = by_code(400, "InvalidSignatureException", "Signature expired: now earlier than then", Call::Decrypt);
        assert_eq!((late.kind, late.credentials), (Kind::Unreachable, false));
        assert!(late.reason.contains("clock"));
        assert!(by_code(403, "InvalidClientTokenId", "", Call::Decrypt).credentials);
    }
}
