//! What a request says of its signature, and the text that was signed. Pure: knows no keys and no clock.

use std::fmt::Write as _;

use data_encoding::HEXLOWER;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::{AuthError, Head, MAX_EXPIRES, incomplete, shown};
use crate::kms::policy::values;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Headers that one signature may cover.
const MAX_SIGNED_HEADERS: usize = 100;

/// The signature of a request as it stands there, unverified.
pub(super) struct Claim {
    /// `ID/YYYYMMDD/REGION/SERVICE/aws4_request`.
    pub credential: String,
    /// `YYYYMMDDThhmmssZ`.
    pub date: String,
    pub signature: [u8; 32],
    pub has_session_token: bool,
    /// Seconds; only a presigned request has them.
    pub expires: Option<u64>,
    /// Lower case, sorted, each once.
    signed_headers: Vec<String>,
    /// Names and values, decoded, without the signature itself.
    query: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Claim {
    pub fn read(head: Head) -> Result<Self, AuthError> {
        if head.uri.path() != "/" {
            return Err(incomplete("Requests to this service have the path '/'."));
        }
        let mut query = read_query(head.uri.query().unwrap_or(""))?;
        let presigned = query.iter().any(|(name, _)| name == b"X-Amz-Algorithm" || name == b"X-Amz-Signature");
        let mut claim = match (single(head.headers, AUTHORIZATION.as_str())?, presigned) {
            (Some(_), true) => {
                return Err(incomplete("A request has one signature: in a header or in its query string."));
            }
            (Some(authorization), false) => Self::from_header(authorization, head.headers)?,
            (None, true) => Self::from_query(&mut query)?,
            (None, false) => return Err(AuthError::Missing),
        };
        claim.has_session_token |= head.headers.contains_key("x-amz-security-token");
        claim.query = query;
        claim.check_signed_headers(head.headers)?;
        Ok(claim)
    }

    fn from_header(authorization: &[u8], headers: &HeaderMap) -> Result<Self, AuthError> {
        let text =
            std::str::from_utf8(authorization).map_err(|_| incomplete("Authorization header is no text."))?.trim();
        let (algorithm, rest) = text.split_once(' ').unwrap_or((text, ""));
        check_algorithm(algorithm)?;
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in rest.split(',').map(str::trim) {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                incomplete("A part of the Authorization header is not a valid key=value pair (missing equal-sign).")
            })?;
            let twice = match name {
                "Credential" => credential.replace(value).is_some(),
                "SignedHeaders" => signed.replace(value).is_some(),
                "Signature" => signature.replace(value).is_some(),
                _ => true,
            };
            if twice {
                return Err(incomplete("The Authorization header has a parameter twice, or one that is unknown."));
            }
        }
        let required = |name: &str, value: Option<&str>| {
            let value = value.filter(|value| !value.is_empty()).map(str::to_owned);
            value.ok_or_else(|| AuthError::Incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        let date = single(headers, "x-amz-date")?.and_then(|date| std::str::from_utf8(date).ok());
        let date =
            date.ok_or_else(|| incomplete("Authorization header requires existence of a 'X-Amz-Date' header."))?;
        Ok(Self {
            credential: required("Credential", credential)?,
            date: date.trim().to_owned(),
            signature: read_signature(&required("Signature", signature)?)?,
            has_session_token: false,
            expires: None,
            signed_headers: read_signed_headers(&required("SignedHeaders", signed)?)?,
            query: Vec::new(),
        })
    }

    /// Takes the signature out of the query.
    fn from_query(query: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<Self, AuthError> {
        let required = |name: &str| {
            let mut values = query.iter().filter(|(own, _)| own == name.as_bytes()).map(|(_, value)| value);
            match (values.next(), values.next()) {
                (Some(value), None) if !value.is_empty() => String::from_utf8(value.clone()).ok(),
                _ => None,
            }
            .ok_or_else(|| AuthError::Incomplete(format!("AWS query-string parameters must include '{name}', once.")))
        };
        check_algorithm(&required("X-Amz-Algorithm")?)?;
        let expires = required("X-Amz-Expires")?;
        let valid = expires.bytes().all(|b| b.is_ascii_digit()).then(|| expires.parse().ok()).flatten();
        let expires = valid.filter(|seconds| (1..=MAX_EXPIRES).contains(seconds)).ok_or_else(|| {
            AuthError::Incomplete(format!("X-Amz-Expires must be a number of seconds from 1 to {MAX_EXPIRES}."))
        })?;
        let claim = Self {
            credential: required("X-Amz-Credential")?,
            date: required("X-Amz-Date")?,
            signature: read_signature(&required("X-Amz-Signature")?)?,
            has_session_token: query.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"X-Amz-Security-Token")),
            expires: Some(expires),
            signed_headers: read_signed_headers(&required("X-Amz-SignedHeaders")?)?,
            query: Vec::new(),
        };
        query.retain(|(name, _)| name != b"X-Amz-Signature");
        Ok(claim)
    }

    /// Host, and all that decides what the request means, must be signed; what is signed must be there.
    fn check_signed_headers(&self, headers: &HeaderMap) -> Result<(), AuthError> {
        let signed = |name: &str| self.signed_headers.iter().any(|own| own == name);
        if !signed("host") {
            return Err(incomplete("'Host' must be a 'SignedHeader' in the AWS Authorization."));
        }
        if let Some(name) = headers.keys().find(|name| name.as_str().starts_with("x-amz-") && !signed(name.as_str())) {
            let name = shown(name.as_str());
            return Err(AuthError::Incomplete(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")));
        }
        match self.signed_headers.iter().find(|name| !headers.contains_key(name.as_str())) {
            Some(name) => {
                Err(AuthError::Incomplete(format!("The signed header '{}' is not in the request.", shown(name))))
            }
            None => Ok(()),
        }
    }

    /// SHA-256 of the body in hexadecimal; an error where the request says another.
    pub fn payload_hash(&self, headers: &HeaderMap, body: &[u8]) -> Result<String, AuthError> {
        let own = sha256(body);
        match single(headers, "x-amz-content-sha256")? {
            Some(said) if said.trim_ascii() != own.as_bytes() => Err(AuthError::Invalid(
                "The value passed in for x-amz-content-sha256 does not match the payload of the request.".to_owned(),
            )),
            _ => Ok(own),
        }
    }

    pub fn string_to_sign(&self, head: Head, payload: &str) -> Result<String, AuthError> {
        let mut request = Vec::with_capacity(512);
        let mut line = |parts: &[&[u8]]| {
            parts.iter().for_each(|part| request.extend_from_slice(part));
            request.push(b'\n');
        };
        line(&[head.method.as_str().as_bytes()]);
        line(&[b"/"]);
        line(&[canonical_query(&self.query).as_bytes()]);
        for name in &self.signed_headers {
            let values: Vec<Vec<u8>> =
                head.headers.get_all(name).iter().map(|value| single_spaced(value.as_bytes())).collect();
            line(&[name.as_bytes(), b":", &values.join(&b","[..])]);
        }
        line(&[]);
        line(&[self.signed_headers.join(";").as_bytes()]);
        request.extend_from_slice(payload.as_bytes());
        let (_, scope) = self.credential.split_once('/').unwrap_or(("", ""));
        Ok(format!("{ALGORITHM}\n{}\n{scope}\n{}", self.date, sha256(&request)))
    }
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// The value of a header that may stand once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, AuthError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|value| value.as_bytes())),
        _ => Err(AuthError::Incomplete(format!("The header '{name}' stands twice."))),
    }
}
fn check_algorithm(algorithm: &str) -> Result<(), AuthError> {
    let unsupported = || AuthError::Incomplete(format!("Unsupported AWS 'algorithm': '{}'.", shown(algorithm)));
    if algorithm == ALGORITHM { Ok(()) } else { Err(unsupported()) }
}
fn read_signature(text: &str) -> Result<[u8; 32], AuthError> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| incomplete("A signature is 64 hexadecimal digits in lower case."))
}
fn read_signed_headers(text: &str) -> Result<Vec<String>, AuthError> {
    let names: Vec<String> = text.split(';').map(str::to_owned).collect();
    let lower =
        |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase());
    let ordered = names.windows(2).all(|pair| pair[0] < pair[1]);
    if names.len() > MAX_SIGNED_HEADERS || !ordered || !names.iter().all(lower) {
        return Err(incomplete("SignedHeaders is a list of names in lower case, in order, each once."));
    }
    Ok(names)
}

/// A decoded name and value.
type Parameter = (Vec<u8>, Vec<u8>);

fn read_query(text: &str) -> Result<Vec<Parameter>, AuthError> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Some((percent_decoded(name)?, percent_decoded(value)?))
    };
    let pairs: Option<Vec<_>> = text.split('&').filter(|part| !part.is_empty()).map(pair).collect();
    pairs.ok_or_else(|| incomplete("The query string has an incomplete or illegal escape sequence."))
}
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        out.push(match b {
            b'%' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?,
            b => b,
        });
    }
    Some(out)
}
fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(b) {
            out.push(char::from(*b));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}
fn canonical_query(query: &[(Vec<u8>, Vec<u8>)]) -> String {
    let mut pairs: Vec<_> = query.iter().map(|(name, value)| (percent_encoded(name), percent_encoded(value))).collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}
/// Without white space around, and one blank for several inside.
fn single_spaced(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for b in value.trim_ascii() {
        if *b != b' ' || out.last() != Some(&b' ') {
            out.push(*b);
        }
    }
    out
}

/// `YYYYMMDDThhmmssZ` in seconds since 1970.
pub(super) fn decode_time(text: &str) -> Option<u64> {
    let b = text.as_bytes();
    if b.len() != 16 || !text.is_ascii() || b[8] != b'T' || b[15] != b'Z' {
        return None;
    }
    let part = |from: usize, to: usize| text.get(from..to);
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(9, 11)?, part(11, 13)?, part(13, 15)?);
    let millis = values::date(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))?;
    u64::try_from(millis / 1000).ok()
}
pub(super) fn encode_time(seconds: u64) -> String {
    values::iso(seconds).replace(['-', ':'], "")
}
