//! `awskms:` URIs. Opens nothing.

use std::{fmt, net::IpAddr};

use super::{decode, encode};
use crate::keys::KeyRef;

/// AWS KMS and what speaks its protocol:
///
/// ```text
/// awskms:///KEY[?region=R][&endpoint=URL][&algorithm=rsa][&profile=NAME][&fips=true]
/// awskms://HOST[:PORT]/KEY      the same as endpoint=https://HOST[:PORT] (as cosign writes it)
/// awskms://alias/NAME           the same as awskms:///alias/NAME, and so for a key id or ARN (as Go CDK writes it)
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsUri {
    pub key: AwsKey,
    /// As given; `key` may name one too, and then it is the same.
    pub region: Option<String>,
    /// `https://…`, or `http://…` on this host. Without a slash at the end.
    pub endpoint: Option<String>,
    pub algorithm: AwsAlgorithm,
    /// Where credentials come from: this profile only.
    pub profile: Option<String>,
    /// The FIPS 140 endpoint of the region.
    pub fips: bool,
}

/// What the key can do. An RSA key must be declared, so that the configuration says by itself that anybody who has the
/// public half can wrap keys, and so that an ARN opens without asking the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AwsAlgorithm {
    #[default]
    Symmetric,
    /// RSAES_OAEP_SHA_256.
    Rsa,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AwsKey {
    /// `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`: names one key for good.
    Arn(String),
    /// A key id, `alias/NAME` or an alias ARN: which key that is, the service tells.
    Name(String),
}

impl AwsKey {
    pub fn as_str(&self) -> &str {
        let (Self::Arn(text) | Self::Name(text)) = self;
        text
    }
}

const KNOWN: &str = "region=, endpoint=, algorithm=rsa, profile=, fips=true";

impl AwsUri {
    /// `rest`: what follows `awskms:`.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let path = path
            .strip_prefix("//")
            .ok_or("write awskms:///KEY, where KEY is a key ARN, a key id, alias/NAME or an alias ARN")?;
        let (authority, key) = match path.strip_prefix('/') {
            Some(key) => (None, key),
            None if path.starts_with("alias/") || path.starts_with("arn:") => (None, path),
            None => match path.split_once('/') {
                Some((authority, key)) => (Some(authority), key),
                None => (None, path),
            },
        };
        let (key, key_region) = parse_key(&text(key, "the key")?)?;
        let mut uri = Self {
            key,
            region: None,
            endpoint: authority.map(|host| parse_endpoint(&format!("https://{host}"))).transpose()?,
            algorithm: AwsAlgorithm::Symmetric,
            profile: None,
            fips: false,
        };
        let mut seen = Vec::new();
        for parameter in query.into_iter().flat_map(|query| query.split('&')) {
            // The value stays out of the error: it might be a credential that somebody tried to put here.
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if seen.contains(&name) {
                return Err(format!("{name}= is given twice"));
            }
            seen.push(name);
            let value = text(value, name)?;
            match name {
                "region" | "endpoint" | "profile" | "algorithm" | "fips" if value.is_empty() => {
                    return Err(format!("{name}= is empty"));
                }
                "region" => {
                    if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                        return Err(format!("region={value:?} is not a region such as eu-central-1"));
                    }
                    uri.region = Some(value);
                }
                "endpoint" if uri.endpoint.is_some() => {
                    return Err("the endpoint is given twice: as the host and as endpoint=".into());
                }
                "endpoint" => uri.endpoint = Some(parse_endpoint(&value)?),
                "algorithm" => {
                    uri.algorithm = match value.as_str() {
                        "rsa" => AwsAlgorithm::Rsa,
                        "symmetric" => AwsAlgorithm::Symmetric,
                        _ => return Err("algorithm= knows symmetric (the default) and rsa".into()),
                    }
                }
                "profile" => uri.profile = Some(value),
                "fips" => {
                    uri.fips = match value.as_str() {
                        "true" => true,
                        "false" => false,
                        _ => return Err("fips= is true or false".into()),
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown parameter {name:?}; awskms knows: {KNOWN} (credentials never stand in a URI: they come \
                         from the environment, a profile or the instance's role)"
                    ));
                }
            }
        }
        match (&uri.region, key_region) {
            (Some(given), Some(named)) if *given != named => {
                return Err(format!("region={given} contradicts the ARN, which is of {named}"));
            }
            _ => {}
        }
        if uri.fips && uri.endpoint.is_some() {
            return Err("fips=true chooses the endpoint; write only one of fips= and endpoint=".into());
        }
        Ok(uri)
    }

    /// The region that the URI itself names.
    pub fn named_region(&self) -> Option<&str> {
        self.region.as_deref().or_else(|| arn_region(self.key.as_str()))
    }

    /// A host's own names: only there may keys travel without TLS.
    pub fn is_loopback(host: &str) -> bool {
        host.eq_ignore_ascii_case("localhost")
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// See `CmkUri::pinned`.
    pub(super) fn pinned(&self, key: &KeyRef) -> Self {
        // A server's own word on where its key is stands before the region that it was found by.
        let agrees = |given: &String| arn_region(&key.key).is_none_or(|named| named == given);
        Self { key: AwsKey::Arn(key.key.clone()), region: self.region.clone().filter(agrees), ..self.clone() }
    }
}

impl fmt::Display for AwsUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "awskms:///{}", readable(self.key.as_str()))?;
        let parameters = [
            ("region", self.region.as_deref()),
            ("endpoint", self.endpoint.as_deref()),
            ("algorithm", (self.algorithm == AwsAlgorithm::Rsa).then_some("rsa")),
            ("profile", self.profile.as_deref()),
            ("fips", self.fips.then_some("true")),
        ];
        let mut mark = '?';
        for (name, value) in parameters.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            write!(f, "{mark}{name}={}", readable(value))?;
            mark = '&';
        }
        Ok(())
    }
}

/// A colon needs no escape in a path or query; ARNs stay legible.
fn readable(text: &str) -> String {
    encode(text.as_bytes()).replace("%3A", ":")
}

fn text(encoded: &str, what: &str) -> Result<String, String> {
    String::from_utf8(decode(encoded)?).map_err(|_| format!("{what} is not UTF-8"))
}

fn arn_region(text: &str) -> Option<&str> {
    text.strip_prefix("arn:")?.split(':').nth(2)
}

/// The key and the region that its ARN names. See "KeyId" in the AWS KMS API reference.
fn parse_key(text: &str) -> Result<(AwsKey, Option<String>), String> {
    let name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-".contains(&b));
    if text.is_empty() {
        return Err("no key: write awskms:///KEY, where KEY is a key ARN, a key id, alias/NAME or an alias ARN".into());
    }
    if text.len() > 2048 {
        return Err("the key is longer than 2048 bytes".into());
    }
    if text.starts_with("arn:") {
        let parts: Vec<&str> = text.split(':').collect();
        let [_, partition, "kms", region, account, resource] = parts[..] else {
            return Err(format!("{text:?} is no ARN of a KMS key: arn:aws:kms:REGION:ACCOUNT:key/ID or …:alias/NAME"));
        };
        let plain = |part: &str| name(part) && !part.contains('/');
        let valid = plain(partition) && plain(region) && plain(account) && name(resource);
        return match resource.split_once('/') {
            Some(("key", id)) if valid && plain(id) => Ok((AwsKey::Arn(text.into()), Some(region.into()))),
            Some(("alias", _)) if valid => Ok((AwsKey::Name(text.into()), Some(region.into()))),
            _ => Err(format!("{text:?} is no ARN of a KMS key: arn:aws:kms:REGION:ACCOUNT:key/ID or …:alias/NAME")),
        };
    }
    let rest = text.strip_prefix("alias/").unwrap_or(text);
    if !name(rest) || (rest == text && text.contains('/')) {
        return Err(format!("{text:?} is neither a key ARN, a key id, alias/NAME nor an alias ARN"));
    }
    Ok((AwsKey::Name(text.into()), None))
}

/// `scheme://host[:port][/path]`. Errors do not repeat what stands before an `@`.
fn parse_endpoint(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").ok_or("endpoint= is a URL such as https://kms.example.org:8443")?;
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err("credentials never stand in a URI: the endpoint has an @".into());
    }
    if url
        .bytes()
        .any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b"?#\"<>\\^`{|}".contains(&b) || b >= 0x80)
    {
        return Err(format!("endpoint {url:?}: a scheme, a host, maybe a port and a path, nothing else"));
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').or((!port.is_empty()).then_some("none"))),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("endpoint {url:?} has no host or no valid port"));
    }
    match scheme {
        "https" => Ok(url.into()),
        "http" if AwsUri::is_loopback(host) => Ok(url.into()),
        "http" => Err(format!(
            "endpoint {url:?}: keys travel in the answers, so http is for this host only (localhost, 127.0.0.1, [::1]); \
             write https"
        )),
        _ => Err(format!("endpoint {url:?}: the scheme is https, or http on this host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const ALIAS_ARN: &str = "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/team/app";

    fn parse(text: &str) -> Result<AwsUri, String> {
        AwsUri::parse(text.strip_prefix("awskms:").unwrap())
    }
    fn plain(key: AwsKey) -> AwsUri {
        AwsUri { key, region: None, endpoint: None, algorithm: AwsAlgorithm::Symmetric, profile: None, fips: false }
    }
    fn named(name: &str) -> AwsUri {
        plain(AwsKey::Name(name.into()))
    }

    #[test]
    fn every_common_way_to_write_a_key() {
        let arn = plain(AwsKey::Arn(ARN.into()));
        let cases = [
            (format!("awskms:///{ARN}"), arn.clone()),
            (format!("awskms://{ARN}"), arn.clone()),
            (format!("awskms:///{}", ARN.replace(':', "%3a")), arn),
            (format!("awskms:///{ALIAS_ARN}"), named(ALIAS_ARN)),
            ("awskms:///alias/app".into(), named("alias/app")),
            ("awskms://alias/app".into(), named("alias/app")),
            ("awskms:///alias/a/b_c-d".into(), named("alias/a/b_c-d")),
            ("awskms:///1234abcd-12ab".into(), named("1234abcd-12ab")),
            ("awskms://mrk-1234abcd".into(), named("mrk-1234abcd")),
            (
                "awskms://localhost:4566/alias/x".into(),
                AwsUri { endpoint: Some("https://localhost:4566".into()), ..named("alias/x") },
            ),
            (
                "awskms://[::1]:1/alias/x?region=us-east-1&fips=false".into(),
                AwsUri {
                    endpoint: Some("https://[::1]:1".into()),
                    region: Some("us-east-1".into()),
                    ..named("alias/x")
                },
            ),
            (
                "awskms:///alias/x?endpoint=http://127.0.0.1:5111/&region=eu-west-1&algorithm=rsa&profile=a%20b".into(),
                AwsUri {
                    endpoint: Some("http://127.0.0.1:5111".into()),
                    region: Some("eu-west-1".into()),
                    algorithm: AwsAlgorithm::Rsa,
                    profile: Some("a b".into()),
                    ..named("alias/x")
                },
            ),
            ("awskms:///alias/x?fips=true".into(), AwsUri { fips: true, ..named("alias/x") }),
        ];
        for (text, expected) in cases {
            let uri = parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(uri, expected, "{text}");
            let shown = uri.to_string();
            assert_eq!(parse(&shown).unwrap(), uri, "{shown}");
        }
        assert_eq!(parse(&format!("awskms:///{ARN}")).unwrap().named_region(), Some("eu-central-1"));
        assert_eq!(named(ALIAS_ARN).named_region(), Some("us-gov-west-1"));
        assert_eq!(named("alias/app").named_region(), None);
    }

    #[test]
    fn errors_say_what_to_write() {
        let cases = [
            ("awskms:alias/app", "awskms:///KEY"),
            ("awskms:///", "no key"),
            ("awskms://", "no key"),
            ("awskms://localhost:4566", "neither"),
            ("awskms:///key/abc", "neither"),
            ("awskms:///alias/", "neither"),
            ("awskms:///alias/a b", "neither"),
            ("awskms:///a%00", "NUL"),
            ("awskms:///a%ff", "not UTF-8"),
            ("awskms:///arn:aws:s3:::bucket", "no ARN of a KMS key"),
            ("awskms:///arn:aws:kms:eu-west-1:1:key/", "no ARN of a KMS key"),
            ("awskms:///arn:aws:kms:eu-west-1:1:key/a/b", "no ARN of a KMS key"),
            ("awskms:///arn:aws:kms::1:key/a", "no ARN of a KMS key"),
            ("awskms:///arn:aws:kms:eu-west-1:1:key/a:b", "no ARN of a KMS key"),
            ("awskms:///arn:aws:kms:eu-west-1:1:key/a?region=us-east-1", "contradicts the ARN, which is of eu-west-1"),
            ("awskms:///alias/a?", "unknown parameter \"\"; awskms knows: region="),
            ("awskms:///alias/a?region=", "region= is empty"),
            ("awskms:///alias/a?region=x.evil.example", "not a region"),
            ("awskms:///alias/a?region=a&region=b", "twice"),
            ("awskms://h/alias/a?endpoint=https://h", "twice"),
            ("awskms:///alias/a?fips=yes", "true or false"),
            ("awskms:///alias/a?fips=true&endpoint=https://h", "only one of"),
            ("awskms:///alias/a?algorithm=aes", "symmetric"),
            ("awskms:///alias/a?endpoint=h:1", "URL such as"),
            ("awskms:///alias/a?endpoint=http://kms.example", "http is for this host only"),
            ("awskms:///alias/a?endpoint=http://127.0.0.1.example", "http is for this host only"),
            ("awskms:///alias/a?endpoint=http://10.0.0.1:80", "http is for this host only"),
            ("awskms:///alias/a?endpoint=ftp://h", "the scheme is https"),
            ("awskms:///alias/a?endpoint=https://h:99999", "port"),
            ("awskms:///alias/a?endpoint=https://[::1]x", "port"),
            ("awskms:///alias/a?endpoint=https://:1", "no host"),
            ("awskms:///alias/a?endpoint=https://h/%3Fq", "nothing else"),
            ("awskms:///alias/a?endpoint=https://h%0d", "nothing else"),
            ("awskms://u:p%40h/alias/a", "port"),
        ];
        for (text, expected) in cases {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        for secret in [
            "awskms:///alias/a?secret_access_key=hunter2",
            "awskms:///alias/a?endpoint=https://user:hunter2@h",
            "awskms://user:hunter2@h/alias/a",
        ] {
            let error = parse(secret).expect_err(secret);
            assert!(error.contains("credentials never stand in a URI") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_pinned_uri_names_the_key_and_keeps_the_way_to_it() {
        let uri = parse("awskms:///alias/x?endpoint=http://[::1]:5111&algorithm=rsa&profile=p").unwrap();
        let pinned = uri.pinned(&KeyRef { provider: "awskms".into(), key: ARN.into() });
        assert_eq!(pinned, AwsUri { key: AwsKey::Arn(ARN.into()), ..uri });
        assert_eq!(
            pinned.to_string(),
            format!("awskms:///{ARN}?endpoint=http://%5B::1%5D:5111&algorithm=rsa&profile=p")
        );
        assert_eq!(parse(&pinned.to_string()).unwrap(), pinned);
    }
}
