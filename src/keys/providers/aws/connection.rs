//! The way to AWS KMS: runtime threads, HTTP client with proxy and CA, credentials, region, time limits. Knows no operation.

use std::{
    future::Future,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use aws_config::{
    default_provider::credentials::DefaultCredentialsChain,
    environment::region::EnvironmentVariableRegionProvider,
    imds::{self, region::ImdsRegionProvider},
    meta::region::ProvideRegion,
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    provider_config::ProviderConfig,
};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::{
    BehaviorVersion, ConfigBag, Credentials, IdentityCache, Intercept, Region, RuntimeComponents, SharedHttpClient,
    StalledStreamProtectionConfig,
    interceptors::{BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextRef},
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_kms::error::BoxError;
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{self, TlsContext, TrustStore},
};
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::runtime::Runtime;

use super::errors::{Failure, InsecureEndpoint, Kind};
use crate::keys::uri::AwsUri;

/// An answer has at most 6144 bytes of blob and 4096 of plaintext, in base64; a policy's text may add some.
const ANSWER_LIMIT: usize = 256 * 1024;
/// Calls come in bursts. A connection that is kept longer is one that the other side, or a firewall, has dropped meanwhile.
const IDLE: Duration = Duration::from_secs(15);
/// What a caller waits beyond the time limit before it leaves a stuck runtime alone.
const GRACE: Duration = Duration::from_millis(500);
/// Signs for endpoints that are not Amazon's, where nothing names a region.
const REGION_OF_OTHERS: &str = "us-east-1";

pub(super) struct Connection {
    uri: AwsUri,
    timeout: Duration,
    http: SharedHttpClient,
    region: Region,
    /// `None`: to be built from environment and files as they are now.
    client: Mutex<Option<Client>>,
    /// The service has answered: this host had credentials once.
    answered: AtomicBool,
}

impl Connection {
    /// Starts the process's runtime and reads settings. Asks nobody, but the instance's metadata service where nothing else
    /// names a region.
    pub fn open(uri: &AwsUri, timeout: Duration) -> Result<Arc<Self>, Failure> {
        let http = http_client()?;
        let region = match uri.named_region() {
            Some(region) => Region::new(region.to_string()),
            None => {
                let (uri, http) = (uri.clone(), http.clone());
                run(timeout, async move { region(&uri, &http, timeout).await })?
            }
        };
        Ok(Arc::new(Self {
            uri: uri.clone(),
            timeout,
            http,
            region,
            client: Mutex::new(None),
            answered: AtomicBool::new(false),
        }))
    }

    pub fn region(&self) -> &str {
        self.region.as_ref()
    }

    /// Runs one call on the runtime and waits for it, no longer than the time limit. `ask` is called once, or a second time
    /// where the service rejected credentials that this host had kept: the SDK never looks again into the file or variable
    /// they came from, and a rotated secret must not count as a revoked key.
    pub fn call<T, F, Answer>(self: &Arc<Self>, ask: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Fn(Client) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Result<T, Failure>> + Send,
    {
        let connection = self.clone();
        run(self.timeout, async move {
            let (client, kept) = connection.client().await;
            let mut result = ask(client).await;
            if result.as_ref().is_err_and(|failure| failure.credentials) {
                connection.client.lock().take();
                if kept {
                    let again = ask(connection.client().await.0).await;
                    if again.as_ref().is_err_and(|failure| failure.credentials) {
                        connection.client.lock().take();
                    }
                    // Without newer ones to be found here, what the service said of the kept ones stands.
                    if !again.as_ref().is_err_and(Failure::is_local) {
                        result = again;
                    }
                }
            }
            result.inspect(|_| connection.answered.store(true, Ordering::Relaxed)).map_err(|f| connection.in_context(f))
        })
    }

    /// A host that should have credentials has an outage; one that never had any has a wrong configuration.
    fn in_context(&self, mut failure: Failure) -> Failure {
        if failure.kind == Kind::NoCredentials {
            if let Some(profile) = &self.uri.profile {
                failure.reason = format!("profile {profile:?} has no AWS credentials, or there is no such profile");
            } else if on_ec2() {
                failure.kind = Kind::Unreachable;
                failure.reason =
                    "the instance metadata service gave no AWS credentials; is a role attached to this instance?"
                        .into();
            }
        }
        if failure.is_local() && self.answered.load(Ordering::Relaxed) {
            failure.kind = Kind::Unreachable;
        }
        failure
    }

    /// The client, and whether it is one from before.
    async fn client(&self) -> (Client, bool) {
        if let Some(client) = &*self.client.lock() {
            return (client.clone(), true);
        }
        let client = self.build().await;
        *self.client.lock() = Some(client.clone());
        (client, false)
    }

    async fn build(&self) -> Client {
        // Each limit lies inside the next one, so that the error says which step took too long.
        let operation = self.timeout.mul_f64(0.95);
        let credentials = self.timeout.mul_f64(0.8);
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(self.http.clone())
            .region(self.region.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(self.timeout.mul_f64(0.5))
                    .read_timeout(operation)
                    .operation_timeout(operation)
                    .build(),
            )
            // A slow answer ends by the operation's limit.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .identity_cache(IdentityCache::lazy().load_timeout(operation).build());
        let providers =
            ProviderConfig::default().with_region(Some(self.region.clone())).with_http_client(self.http.clone());
        match &self.uri.profile {
            Some(profile) => {
                let inner =
                    ProfileFileCredentialsProvider::builder().configure(&providers).profile_name(profile).build();
                loader = loader.profile_name(profile).credentials_provider(InTime { inner, limit: credentials });
            }
            None => {
                let inner = DefaultCredentialsChain::builder()
                    .imds_client(metadata_client(&providers, self.timeout))
                    .region(self.region.clone())
                    .configure(providers)
                    .build()
                    .await;
                loader = loader.credentials_provider(InTime { inner, limit: credentials });
            }
        }
        if self.uri.fips {
            loader = loader.use_fips(true);
        }
        let mut config = aws_sdk_kms::config::Builder::from(&loader.load().await).interceptor(Guard);
        // Here, where no variable comes before it.
        if let Some(endpoint) = &self.uri.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Client::from_conf(config.build())
    }
}

/// Runs `work` on the runtime, and ends with the time limit whatever happens there.
fn run<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let (answer, wait) = sync_channel(1);
    let task = runtime()?.spawn(async move {
        let _ = answer.send(tokio::time::timeout(limit, work).await);
    });
    match wait.recv_timeout(limit.saturating_add(GRACE)) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Failure::new(Kind::Unreachable, "no answer in time; check network and endpoint")),
        Err(RecvTimeoutError::Timeout) => {
            task.abort();
            Err(Failure::new(Kind::Unreachable, "no answer in time, and the runtime is busy"))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Failure::new(Kind::Unreachable, "the AWS SDK failed; RUST_BACKTRACE=1 shows where"))
        }
    }
}

/// One for the process, from the first use on: threads do not survive a fork, so nothing may start them earlier.
fn runtime() -> Result<&'static Runtime, Failure> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Name lookups and files; a lookup that hangs keeps one until the resolver gives up.
        .max_blocking_threads(8)
        .thread_name("awskms")
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Config, format!("no threads for the AWS SDK: {e}")))?;
    // Whoever comes second drops an idle runtime, outside of any runtime.
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// By URI or ARN it is known already; here by what the AWS tools look at, in their order.
async fn region(uri: &AwsUri, http: &SharedHttpClient, timeout: Duration) -> Result<Region, Failure> {
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await {
        return Ok(region);
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &uri.profile {
        profile = profile.profile_name(name);
    }
    if let Some(region) = profile.build().region().await {
        return Ok(region);
    }
    if uri.endpoint.is_some() {
        return Ok(Region::from_static(REGION_OF_OTHERS));
    }
    let providers = ProviderConfig::default().with_http_client(http.clone());
    let client = metadata_client(&providers, timeout);
    ImdsRegionProvider::builder().configure(&providers).imds_client(client).build().region().await.ok_or_else(|| {
        Failure::new(Kind::Config, "no AWS region: write region= into the URI, or a key ARN, or set AWS_REGION")
    })
}

/// One attempt, within a part of the time limit: most hosts without credentials have no such service either, and their
/// operator is to hear that and not of a timeout.
fn metadata_client(providers: &ProviderConfig, timeout: Duration) -> imds::Client {
    let step = timeout.mul_f64(0.25).min(Duration::from_secs(1));
    imds::Client::builder()
        .configure(providers)
        .max_attempts(1)
        .connect_timeout(step)
        .read_timeout(step)
        .operation_attempt_timeout(step)
        .operation_timeout(step)
        .build()
}

/// "Identify EC2 instances" in the AWS documentation: by SMBIOS on Nitro, by the hypervisor's UUID on Xen.
fn on_ec2() -> bool {
    let starts = |path: &str, prefix: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.trim_start().to_ascii_lowercase().starts_with(prefix))
    };
    starts("/sys/devices/virtual/dmi/id/sys_vendor", "amazon ec2") || starts("/sys/hypervisor/uuid", "ec2")
}

/// Credentials from `inner`, or an error of their own when the limit is up.
#[derive(Debug)]
struct InTime<P> {
    inner: P,
    limit: Duration,
}

impl<P: ProvideCredentials> ProvideCredentials for InTime<P> {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            tokio::time::timeout(self.limit, self.inner.provide_credentials())
                .await
                .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(self.limit)))
        })
    }
    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.inner.fallback_on_interrupt()
    }
}

/// Stands between the SDK and the network: no key leaves without TLS, whoever set the endpoint; no answer without bounds.
#[derive(Debug)]
struct Guard;

impl Intercept for Guard {
    fn name(&self) -> &'static str {
        "envelopefs"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri();
        let local = |rest: &str| {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            let host = match authority.rsplit_once(':') {
                Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
                _ => authority,
            };
            AwsUri::is_loopback(host)
        };
        match uri.strip_prefix("http://") {
            Some(rest) if !local(rest) => Err(Box::new(InsecureEndpoint(super::errors::printable(uri)))),
            _ => Ok(()),
        }
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let whole = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(whole, ANSWER_LIMIT));
        Ok(())
    }
}

/// For KMS and for the services that credentials come from. The SDK's own client takes neither a proxy nor a CA from the
/// environment.
fn http_client() -> Result<SharedHttpClient, Failure> {
    let trust = trust(std::env::var_os("AWS_CA_BUNDLE").as_deref().map(Path::new))?;
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| Failure::new(Kind::Config, format!("TLS settings: {e}")))?;
    let proxy = proxy(&|name| std::env::var(name).ok())?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy.clone()).pool_idle_timeout(IDLE);
        if let Some(settings) = settings {
            connector = connector.connector_settings(settings.clone());
        }
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .tls_context(context.clone())
            .build()
    }))
}

/// A bundle takes the place of the system's roots, as it does for the AWS CLI. Checked here: the client panics on a bad one.
fn trust(bundle: Option<&Path>) -> Result<TrustStore, Failure> {
    let Some(path) = bundle.filter(|path| !path.as_os_str().is_empty()) else {
        // An empty store where the system has no roots: then TLS fails with an error that says so, and nothing else does.
        let roots = rustls_native_certs::load_native_certs().certs;
        return Ok(TrustStore::empty().with_native_roots(!roots.is_empty()));
    };
    let wrong = |why: String| Failure::new(Kind::Config, format!("AWS_CA_BUNDLE {}: {why}", path.display()));
    let pem = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| wrong(format!("not PEM certificates: {e}")))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|e| wrong(format!("not a certificate: {e}")))?;
    }
    if certificates.is_empty() {
        return Err(wrong("no PEM certificates in it".into()));
    }
    Ok(TrustStore::empty().with_pem_certificate(pem))
}

/// `https_proxy`, else `all_proxy`, each also in capitals, and `no_proxy`. Only for TLS: a key never passes a proxy in the
/// clear, and the metadata services that answer by plain http are on the host itself or its link.
fn proxy(variable: &dyn Fn(&str) -> Option<String>) -> Result<ProxyConfig, Failure> {
    let either = |name: &str| {
        [name.to_string(), name.to_ascii_uppercase()]
            .iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()))
    };
    let Some(url) = either("https_proxy").or_else(|| either("all_proxy")) else {
        return Ok(ProxyConfig::disabled());
    };
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    // The variable's text stays out of the error, as it may hold a password.
    let config = ProxyConfig::https(url.as_str()).map_err(|_| {
        Failure::new(Kind::Config, "HTTPS_PROXY or ALL_PROXY is not http://HOST:PORT or https://HOST:PORT")
    })?;
    Ok(match either("no_proxy") {
        Some(hosts) => config.no_proxy(hosts),
        None => config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_of(variables: &[(&str, &str)]) -> Result<ProxyConfig, Failure> {
        proxy(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_string()))
    }

    #[test]
    fn proxies_are_those_of_the_usual_variables() {
        for none in [&[][..], &[("http_proxy", "http://p:1")], &[("HTTPS_PROXY", "")], &[("no_proxy", "*")]] {
            assert!(proxy_of(none).unwrap().is_disabled(), "{none:?}");
        }
        for variables in [("https_proxy", "p:3128"), ("HTTPS_PROXY", "http://u:w@p"), ("all_proxy", "https://p:1/")] {
            assert!(!proxy_of(&[variables]).unwrap().is_disabled(), "{variables:?}");
        }
        let shown =
            format!("{:?}", proxy_of(&[("HTTPS_PROXY", "http://upper"), ("https_proxy", "http://lower")]).unwrap());
        assert!(shown.contains("lower"), "{shown}");
        for wrong in ["socks5://user:hunter2@p:1", "http://", "http://user:hunter2@p:1 x"] {
            let failure = proxy_of(&[("ALL_PROXY", wrong)]).unwrap_err();
            assert_eq!(failure.kind, Kind::Config, "{wrong}");
            assert!(failure.reason.contains("ALL_PROXY") && !failure.reason.contains("hunter2"), "{}", failure.reason);
        }
    }

    #[test]
    fn a_bad_bundle_is_an_error_and_no_panic() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("ca.pem");
        for (content, expected) in [
            (&b""[..], "no PEM certificates"),
            (b"hello", "no PEM certificates"),
            (b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "not PEM"),
            (b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n", "not a certificate"),
            (b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n", "not PEM"),
            (b"\xff\0", "no PEM certificates"),
        ] {
            std::fs::write(&path, content).unwrap();
            let failure = trust(Some(&path)).unwrap_err();
            assert_eq!(failure.kind, Kind::Config);
            assert!(failure.reason.contains(expected), "{}: {expected}", failure.reason);
        }
        assert!(trust(Some(Path::new("/nonexistent"))).unwrap_err().reason.contains("/nonexistent"));
        assert!(trust(Some(Path::new(""))).is_ok() && trust(None).is_ok());
    }

    #[test]
    fn what_hangs_or_panics_ends_in_time() {
        let limit = Duration::from_millis(50);
        let hung = run::<()>(limit, std::future::pending()).unwrap_err();
        assert_eq!((hung.kind, hung.credentials), (Kind::Unreachable, false));
        // A worker that never yields: the caller does not wait for it.
        let stuck = run::<()>(limit, async {
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        });
        assert_eq!(stuck.unwrap_err().kind, Kind::Unreachable);
        let panicked = run::<()>(limit, async { panic!("on purpose") }).unwrap_err();
        assert_eq!(panicked.kind, Kind::Unreachable);
        assert_eq!(run(limit, async { Ok(7) }).unwrap(), 7);
    }
}
