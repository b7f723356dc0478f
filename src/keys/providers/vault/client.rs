//! HTTP to one server: which certificates and which proxy, bounded answers, statuses that mean "later". Knows no Transit, no
//! login.

use std::{
    io::Read,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
};
use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use ureq::unversioned::{
    resolver::DefaultResolver,
    transport::{ConnectProxyConnector, Connector, TcpConnector},
};
use ureq::{Agent, Proxy};
use zeroize::Zeroizing;

use super::failure::{Failure, words};
use crate::keys::protected::{self, Protection};
use crate::keys::uri::vault::{ADDRESS_VARIABLES, NAMESPACE_VARIABLES, VaultAddress, VaultUri, from_environment};

/// Largest answer that is read, in bytes. Everything asked for here fits into a hundredth of it.
const ANSWER_MAX: usize = 64 * 1024;
const CA_FILE_VARIABLES: [&str; 2] = ["VAULT_CACERT", "BAO_CACERT"];
const CA_PATH_VARIABLES: [&str; 2] = ["VAULT_CAPATH", "BAO_CAPATH"];
const SERVER_NAME_VARIABLES: [&str; 2] = ["VAULT_TLS_SERVER_NAME", "BAO_TLS_SERVER_NAME"];
const CLIENT_CERT_VARIABLES: [&str; 2] = ["VAULT_CLIENT_CERT", "BAO_CLIENT_CERT"];
const CLIENT_KEY_VARIABLES: [&str; 2] = ["VAULT_CLIENT_KEY", "BAO_CLIENT_KEY"];
const SKIP_VERIFY_VARIABLES: [&str; 2] = ["VAULT_SKIP_VERIFY", "BAO_SKIP_VERIFY"];
/// Only https goes through a proxy: plain http stays on this host.
const PROXY_VARIABLES: [&str; 6] =
    ["VAULT_PROXY_ADDR", "VAULT_HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What a server said. Wiped when dropped.
pub struct Answer {
    pub status: u16,
    pub body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The server's own list of errors, on one line; `None` where the body is not the protocol's.
    pub fn errors(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<String>,
        }
        let Errors { errors } = serde_json::from_slice(&self.body).ok()?;
        Some(words(&errors.join("; ")))
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

pub struct Client {
    agent: Agent,
    address: VaultAddress,
    headers: HeaderMap,
}

impl Client {
    /// Looks at the environment and at certificate files; contacts nobody.
    pub fn new(uri: &VaultUri) -> Result<Self, Failure> {
        let text = uri.server.address.clone().or_else(|| from_environment(&ADDRESS_VARIABLES)).ok_or_else(|| {
            Failure::Config("no server address: add address=https://HOST:8200 to the URI or set VAULT_ADDR".into())
        })?;
        let address = VaultAddress::parse(&text).map_err(Failure::Config)?;
        let mut headers = HeaderMap::new();
        // Agents and proxies may ask for it, against requests that a browser was tricked into.
        headers.insert(HeaderName::from_static("x-vault-request"), HeaderValue::from_static("true"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(namespace) = uri.server.namespace.clone().or_else(|| from_environment(&NAMESPACE_VARIABLES)) {
            let value = HeaderValue::from_str(&namespace)
                .map_err(|_| Failure::Config(format!("namespace {namespace:?} cannot be sent in a header")))?;
            headers.insert(HeaderName::from_static("x-vault-namespace"), value);
        }
        let connector = ()
            .chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(super::channel::SecretConnector { config: Arc::new(tls(uri)?), server_name: server_name(uri)? });
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(16 * 1024)
            .proxy(proxy(&address)?)
            .user_agent(concat!("envelopefs/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: Agent::with_parts(config, connector, DefaultResolver::default()), address, headers })
    }

    pub fn address(&self) -> &VaultAddress {
        &self.address
    }

    /// Interrupts what is under way; nothing can be asked afterwards.
    pub fn shut_down(&self) {
        self.agent.clone().shutdown();
    }

    /// One request and its answer before `until`, a redirect to the active node included. `Ok` is a status that the
    /// caller has to look at; everything that may be different in a moment is `Unreachable`.
    pub fn call(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: Option<&[u8]>,
        until: Instant,
    ) -> Result<Answer, Failure> {
        let mut target = self.address.clone();
        for redirects in 0.. {
            let (answer, location) = self.exchange(&target, method, path, token, body, until)?;
            target = match answer.status {
                // From a standby to the active node; the verb and the body stay (RFC 9110, sections 15.4.8 and 15.4.9).
                307 | 308 if redirects == 0 => elsewhere(&target, path, location.as_deref())?,
                300..=399 => return Err(self.later(&answer, "it redirects, and not to its active node")),
                412 => return Err(self.later(&answer, "it has not caught up with its cluster yet")),
                429 => return Err(self.later(&answer, "a rate limit is reached, or it is a standby")),
                472 | 473 => return Err(self.later(&answer, "it is a standby that does not answer for its cluster")),
                500.. => return Err(self.later(&answer, "")),
                // A definite no is the server's own only in its own words: a proxy or another service says 403 or 404 too.
                400..=499 if answer.errors().is_none() && !is_empty_read(&answer) => {
                    return Err(self.later(&answer, "that is no answer of Vault or OpenBao; is address= right?"));
                }
                _ => return Ok(answer),
            };
        }
        Err(Failure::Unreachable("redirects without end".into()))
    }

    fn later(&self, answer: &Answer, why: &str) -> Failure {
        let said = answer.errors().filter(|said| !said.is_empty());
        let parts = [said.as_deref().unwrap_or_default(), why];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join("; ")) };
        let hint =
            if answer.status == 503 && said.is_some_and(|said| said.contains("sealed")) { "; unseal it" } else { "" };
        Failure::Unreachable(format!("{} answered HTTP {}{parts}{hint}", self.address, answer.status))
    }

    fn exchange(
        &self,
        target: &VaultAddress,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: Option<&[u8]>,
        until: Instant,
    ) -> Result<(Answer, Option<String>), Failure> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Unreachable(format!("{target} did not answer in time")));
        }
        let failed = |e: ureq::Error| self.failed(target, &e);
        let mut request = Request::builder().method(method).uri(format!("{target}/v1/{path}"));
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            if let Some(token) = token {
                let mut value = HeaderValue::from_str(token)
                    .map_err(|_| Failure::Config("the token has characters that no token has".into()))?;
                value.set_sensitive(true);
                headers.insert(HeaderName::from_static("x-vault-token"), value);
            }
        }
        let invalid =
            |e: ureq::http::Error| Failure::Config(format!("no request can be made of {target}/v1/{path}: {e}"));
        let mut response = match body {
            Some(body) => self.run(request.body(body).map_err(invalid)?, left),
            None => self.run(request.body(()).map_err(invalid)?, left),
        }
        .map_err(failed)?;
        let location =
            response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_string);
        let status = response.status().as_u16();
        let body = read_bounded(&mut response.body_mut().as_reader()).map_err(|e| match e {
            Some(e) => failed(e.into()),
            None => Failure::Unreachable(format!("{target} answered more than {ANSWER_MAX} bytes (HTTP {status})")),
        })?;
        Ok((Answer { status, body }, location))
    }

    fn run(
        &self,
        request: Request<impl ureq::AsSendBody>,
        left: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let request = self.agent.configure_request(request).timeout_global(Some(left)).build();
        self.agent.run(request)
    }

    /// Nothing here is an answer, so nothing is definite.
    fn failed(&self, target: &VaultAddress, error: &ureq::Error) -> Failure {
        let text = words(&error.to_string());
        let hint = match error {
            ureq::Error::Timeout(_) => {
                return Failure::Unreachable(format!("{target} did not answer in time ({text})"));
            }
            _ if text.contains("certificate") => {
                "; name its certification authority with ca=/PATH or VAULT_CACERT (tls_server_name= for another name in \
                 the certificate)"
            }
            _ => "",
        };
        Failure::Unreachable(format!("{target}: {text}{hint}"))
    }
}

/// Vault answers a read of what does not exist with 404 and warnings in place of errors.
fn is_empty_read(answer: &Answer) -> bool {
    #[derive(Deserialize)]
    struct Empty {
        #[serde(rename = "request_id")]
        _request_id: String,
    }
    answer.status == 404 && serde_json::from_slice::<Empty>(&answer.body).is_ok()
}

/// Where a standby sends its client: the same path at another address, never from https to http.
fn elsewhere(from: &VaultAddress, path: &str, location: Option<&str>) -> Result<VaultAddress, Failure> {
    let wrong = |why: &str| Failure::Unreachable(format!("{from} redirects {why}"));
    let location = location.ok_or_else(|| wrong("to nowhere"))?;
    let base = location.strip_suffix(path).and_then(|base| base.strip_suffix("/v1/"));
    let base = base.ok_or_else(|| wrong("to another path"))?;
    let target =
        VaultAddress::parse(base).map_err(|why| wrong(&format!("to where this is not sent: {}", words(&why))))?;
    if from.https && !target.https {
        return Err(wrong("from https to http"));
    }
    Ok(target)
}

/// `Err(None)` where there is more. One allocation, so that no freed copy stays behind.
fn read_bounded(from: &mut impl Read) -> Result<Zeroizing<Vec<u8>>, Option<std::io::Error>> {
    let mut buffer = Zeroizing::new(vec![0u8; ANSWER_MAX + 1]);
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Some(e)),
        }
    }
    if filled > ANSWER_MAX {
        return Err(None);
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn tls(uri: &VaultUri) -> Result<ClientConfig, Failure> {
    if from_environment(&SKIP_VERIFY_VARIABLES)
        .is_some_and(|value| !["0", "f", "F", "false", "FALSE"].contains(&value.as_str()))
    {
        log::warn!(
            "VAULT_SKIP_VERIFY is ignored: whoever stands in between would get the keys. Name the certification authority \
             with ca=/PATH or VAULT_CACERT"
        );
    }
    let mut roots = RootCertStore::empty();
    let named = match &uri.server.ca {
        Some(file) => Some(file.path().map_err(Failure::Config)?),
        None => from_environment(&CA_FILE_VARIABLES).or_else(|| from_environment(&CA_PATH_VARIABLES)).map(Into::into),
    };
    let (certificates, whence) = match &named {
        Some(path) if path.is_dir() => {
            (rustls_native_certs::load_certs_from_paths(None, Some(path)), path.display().to_string())
        }
        Some(path) => (rustls_native_certs::load_certs_from_paths(Some(path), None), path.display().to_string()),
        None => (rustls_native_certs::load_native_certs(), "the system's certificates".into()),
    };
    // Systems list certificates that no library reads any more; the others count.
    let (added, _) = roots.add_parsable_certificates(certificates.certs);
    if added == 0 {
        let why = certificates.errors.first().map_or_else(|| "no certificate in it".into(), |e| words(&e.to_string()));
        // Without any, each connection fails with a reason; that matters only where TLS is used.
        if named.is_some() {
            return Err(Failure::Config(format!("certification authority {whence}: {why}")));
        }
        log::warn!("{whence} cannot be used ({why}): name a certification authority with ca=/PATH");
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::Config(format!("TLS: {e}")))?
        .with_root_certificates(roots);
    let (chain, key) = match &uri.server.client_cert {
        Some((chain, key)) => (chain.path().map_err(Failure::Config)?, key.path().map_err(Failure::Config)?),
        None => match (from_environment(&CLIENT_CERT_VARIABLES), from_environment(&CLIENT_KEY_VARIABLES)) {
            (Some(chain), Some(key)) => (chain.into(), key.into()),
            _ => return Ok(builder.with_no_client_auth()),
        },
    };
    let (chain, key) = (client_chain(&chain)?, client_key(&key)?);
    builder.with_client_auth_cert(chain, key).map_err(|e| Failure::Config(format!("client certificate: {e}")))
}

type Chain = Vec<rustls::pki_types::CertificateDer<'static>>;

fn client_chain(path: &Path) -> Result<Chain, Failure> {
    let loaded = rustls_native_certs::load_certs_from_paths(Some(path), None);
    match loaded.errors.first() {
        Some(e) => Err(Failure::Config(format!("client certificate {}: {}", path.display(), words(&e.to_string())))),
        None => Ok(loaded.certs),
    }
}

fn client_key(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    let pem = protected::read(path, "client key", Protection::Secret, ANSWER_MAX)
        .map_err(|e| Failure::Config(e.to_string()))?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| Failure::Config(format!("client key {}: no private key in PEM format", path.display())))
}

fn server_name(uri: &VaultUri) -> Result<Option<ServerName<'static>>, Failure> {
    let Some(name) = uri.server.tls_server_name.clone().or_else(|| from_environment(&SERVER_NAME_VARIABLES)) else {
        return Ok(None);
    };
    ServerName::try_from(name.clone())
        .map(Some)
        .map_err(|_| Failure::Config(format!("tls_server_name={name:?} is no host name")))
}

/// The environment's proxy for this server. This host itself is never asked through one.
fn proxy(address: &VaultAddress) -> Result<Option<Proxy>, Failure> {
    if !address.https || address.is_loopback() {
        return Ok(None);
    }
    let exceptions = from_environment(&NO_PROXY_VARIABLES).unwrap_or_default();
    let Some(text) = from_environment(&PROXY_VARIABLES).filter(|_| !is_exempt(&exceptions, address)) else {
        return Ok(None);
    };
    // Its text may hold a password.
    let wrong = "the proxy in HTTPS_PROXY (or VAULT_PROXY_ADDR, ALL_PROXY) is not of the form http://HOST:PORT";
    match Proxy::new(&text) {
        Ok(proxy) if matches!(proxy.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https) => {
            Ok(Some(proxy))
        }
        _ => Err(Failure::Config(wrong.into())),
    }
}

/// As curl and Go read it: `*`, a host or domain with all below it (a dot in front: only what is below), an address, a
/// network (`10.0.0.0/8`), each maybe with `:PORT`.
fn is_exempt(exceptions: &str, address: &VaultAddress) -> bool {
    let host = address.host.trim_end_matches('.').to_ascii_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    exceptions.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(ip), Some((network, bits))) = (ip, entry.split_once('/')) {
            return network.parse().is_ok_and(|network| bits.parse().is_ok_and(|bits| lies_in(ip, network, bits)));
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
            _ => (entry, None),
        };
        if port.is_some_and(|port| port.parse() != Ok(address.port)) {
            return false;
        }
        let name = name.trim_start_matches("[").trim_end_matches(']').to_ascii_lowercase();
        if let Some(ip) = ip {
            return name.parse() == Ok(ip);
        }
        let domain = name.trim_start_matches('*').trim_start_matches('.');
        let below = host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        below || (domain == name && host == domain)
    })
}

fn lies_in(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) if bits <= 32 => {
            u32::from(ip).checked_shr(32 - bits).unwrap_or(0) == u32::from(network).checked_shr(32 - bits).unwrap_or(0)
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) if bits <= 128 => {
            u128::from(ip).checked_shr(128 - bits).unwrap_or(0)
                == u128::from(network).checked_shr(128 - bits).unwrap_or(0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_past_the_proxy() {
        for (exceptions, address, expected) in [
            ("", "https://vault.example:8200", false),
            ("*", "https://vault.example", true),
            ("example", "https://vault.example", true),
            ("vault.example", "https://vault.example", true),
            (".example", "https://vault.example", true),
            ("*.example", "https://vault.example", true),
            (".vault.example", "https://vault.example", false),
            ("ault.example", "https://vault.example", false),
            ("a, VAULT.example:8200", "https://vault.example:8200", true),
            ("vault.example:8201", "https://vault.example:8200", false),
            ("10.0.0.0/8", "https://10.1.2.3:8200", true),
            ("10.0.0.0/8", "https://11.1.2.3:8200", false),
            ("0.0.0.0/0", "https://11.1.2.3:8200", true),
            ("10.1.2.3", "https://10.1.2.3", true),
            ("2001:db8::/32", "https://[2001:db8::5]", true),
            ("[2001:db8::5]:443", "https://[2001:db8::5]", true),
            ("10.0.0.0/99,/,:,::/,[", "https://10.0.0.1", false),
        ] {
            let parsed = VaultAddress::parse(address).unwrap();
            assert_eq!(is_exempt(exceptions, &parsed), expected, "{exceptions} {address}");
        }
    }

    #[test]
    fn redirects_go_to_the_same_path_and_stay_encrypted() {
        let from = VaultAddress::parse("https://a:8200").unwrap();
        let to = elsewhere(&from, "transit/keys/k", Some("https://b:8200/v1/transit/keys/k")).unwrap();
        assert_eq!(to.to_string(), "https://b:8200");
        for location in [
            None,
            Some("http://127.0.0.1:8200/v1/transit/keys/k"),
            Some("http://b:8200/v1/transit/keys/k"),
            Some("https://b:8200/v1/transit/keys/k2"),
            Some("https://b:8200/transit/keys/k"),
            Some("/v1/transit/keys/k"),
            Some("https://u:p@b:8200/v1/transit/keys/k"),
        ] {
            assert!(
                matches!(elsewhere(&from, "transit/keys/k", location), Err(Failure::Unreachable(_))),
                "{location:?}"
            );
        }
    }
}
