//! HTTP/1.1 in front of the operations: connections, limits, TLS, authentication. Knows no operation.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use zeroize::{Zeroize, Zeroizing};

use super::Service;
use super::audit::{Actor, Event};
use super::clock::wall;
use super::operations::{self, Asked, Caller, Cost, Origin};
use super::sigv4::{AuthError, Head, Verifier};
use super::wire::ApiError;

/// Bytes of a request's body, which is read before anybody knows whose it is.
const BODY_MAX: usize = 1 << 20;
/// Bodies above this many bytes, or of unknown length, are read a few at a time: so memory is bounded by this many bytes a
/// connection.
const SMALL: u64 = 64 << 10;
const LARGE_AT_ONCE: usize = 64;
/// Bytes of a request's line and headers.
const HEAD_MAX: usize = 64 << 10;
/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 2048;
/// How long a client may take to send its headers, and how long a connection may lie idle.
const IDLE: Duration = Duration::from_secs(75);
const BODY: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Threads for RSA, long lists and the disk. Requests beyond them wait.
const BLOCKING_THREADS: usize = 32;
/// Refused signatures that are recorded in one second; the others are counted.
const REFUSALS_RECORDED: u32 = 10;

const JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.1");

/// Certificate chain and private key, PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificates: PathBuf,
    pub key: PathBuf,
}

/// Keys in the clear may only travel inside this host.
pub fn may_listen(address: &SocketAddr, tls: bool) -> Result<(), String> {
    if tls || address.ip().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "{address} can be reached from other hosts: that needs --tls-cert and --tls-key (without TLS the service listens on \
         loopback addresses only, such as 127.0.0.1:8765)"
    ))
}

impl TlsFiles {
    fn config(&self) -> Result<rustls::ServerConfig, String> {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let wrong = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificates)
            .and_then(Iterator::collect)
            .map_err(|e| wrong(&self.certificates, &e))?;
        if certificates.is_empty() {
            return Err(wrong(&self.certificates, &"holds no certificate (PEM)"));
        }
        let mode = std::fs::metadata(&self.key).map_err(|e| wrong(&self.key, &e))?;
        if std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o007 != 0 {
            return Err(wrong(&self.key, &"everybody has rights on this private key; chmod 600"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| wrong(&self.key, &e))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|e| wrong(&self.certificates, &e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The listening service. Ends with `stop`.
pub struct Server {
    address: SocketAddr,
    runtime: Runtime,
    stop: watch::Sender<bool>,
    tls: Option<(TlsFiles, Acceptor)>,
    /// One permit a connection.
    connections: Arc<Semaphore>,
}

type Acceptor = Arc<RwLock<TlsAcceptor>>;

impl Server {
    /// Answers on `listener` from now on.
    pub fn start(
        service: Arc<Service>,
        listener: std::net::TcpListener,
        tls: Option<TlsFiles>,
    ) -> Result<Self, String> {
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        may_listen(&address, tls.is_some())?;
        let tls = match tls {
            Some(files) => {
                let acceptor = TlsAcceptor::from(Arc::new(files.config()?));
                Some((files, Arc::new(RwLock::new(acceptor))))
            }
            None => None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("kms")
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_io()
            .enable_time()
            .build()
            .map_err(|e| e.to_string())?;
        listener.set_nonblocking(true).map_err(|e| e.to_string())?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener).map_err(|e| e.to_string())?
        };
        let (stop, stopped) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let verifier = Verifier::new(&service.record.region);
        let front = Arc::new(Front {
            service,
            verifier,
            large: Semaphore::new(LARGE_AT_ONCE),
            slow: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
            refusals: Mutex::default(),
        });
        let acceptor = tls.as_ref().map(|(_, acceptor)| acceptor.clone());
        runtime.spawn(accept(listener, acceptor, front, connections.clone(), stopped));
        Ok(Self { address, runtime, stop, tls, connections })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads certificate and key again; connections that exist keep theirs.
    pub fn reload_tls(&self) -> Result<bool, String> {
        let Some((files, acceptor)) = &self.tls else { return Ok(false) };
        *acceptor.write() = TlsAcceptor::from(Arc::new(files.config()?));
        Ok(true)
    }

    /// Takes no further connections and requests, and waits for the running ones no longer than `grace`.
    pub fn stop(self, grace: Duration) {
        let _ = self.stop.send(true);
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let finished = async { timeout(grace, self.connections.acquire_many(all)).await.is_ok() };
        if !self.runtime.block_on(finished) {
            log::warn!("some requests were not finished when the service ended");
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Acceptor>,
    front: Arc<Front>,
    connections: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!("code=accept {error}");
                // Out of descriptors: wait for some to be closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let front = front.clone();
        let stopped = stopped.clone();
        let acceptor = tls.as_ref().map(|acceptor| acceptor.read().clone());
        tokio::spawn(async move {
            let _permit = permit;
            match acceptor {
                None => connection(stream, peer.ip(), None, front, stopped).await,
                Some(acceptor) => match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let version = match stream.get_ref().1.protocol_version() {
                            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                            _ => "TLSv1.3",
                        };
                        connection(stream, peer.ip(), Some(version), front, stopped).await;
                    }
                    Ok(Err(error)) => log::debug!("code=tls {}: {error}", peer.ip()),
                    Err(_) => log::debug!("code=tls {}: no handshake in time", peer.ip()),
                },
            }
        });
    }
}

/// `tls`: its version, where the connection has it.
async fn connection<S>(
    stream: S,
    peer: IpAddr,
    tls: Option<&'static str>,
    front: Arc<Front>,
    mut stopped: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let front = front.clone();
        async move { Ok::<_, std::convert::Infallible>(front.answer(request, peer, tls).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// What stands between a connection and the operations.
struct Front {
    service: Arc<Service>,
    verifier: Verifier,
    /// One permit a large body.
    large: Semaphore,
    /// One permit a request that makes an RSA key.
    slow: Arc<Semaphore>,
    /// The current second, and refusals in it.
    refusals: Mutex<(i64, u32)>,
}

type Answer = Response<Full<Bytes>>;

impl Front {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: IpAddr, tls: Option<&'static str>) -> Answer {
        let request_id = operations::new_uuid();
        let (parts, body) = request.into_parts();
        if parts.method == Method::GET && parts.uri.path() == "/healthz" {
            return reply(StatusCode::OK, Bytes::from_static(b"{\"status\":\"healthy\"}"), &request_id);
        }
        let result = match self.read(body).await {
            Ok(body) => {
                let user_agent = header(&parts.headers, USER_AGENT.as_str()).unwrap_or("").to_owned();
                let origin = Origin { address: Some(peer), user_agent, tls, request_id: request_id.clone() };
                self.run(parts, body, origin).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(Value::Null) => reply(StatusCode::OK, Bytes::new(), &request_id),
            Ok(mut answer) => {
                let text = Zeroizing::new(serde_json::to_vec(&answer).unwrap_or_default());
                wipe(&mut answer);
                reply(StatusCode::OK, Bytes::from_owner(text), &request_id)
            }
            Err(error) => {
                let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                reply(status, Bytes::from(error.body()), &request_id)
            }
        }
    }

    async fn run(self: Arc<Self>, parts: Parts, body: Zeroizing<Vec<u8>>, origin: Origin) -> Result<Value, ApiError> {
        let target = header(&parts.headers, "x-amz-target").and_then(|target| target.strip_prefix("TrentService."));
        let target = target.unwrap_or("").to_owned();
        let caller = match self.authenticate(&parts, &body) {
            Ok(caller) => caller,
            Err((error, claimed)) => {
                self.refused(&error, claimed, &target, &origin);
                return Err(error);
            }
        };
        let operation = match operations::find(&target) {
            Asked::Served(operation) => operation,
            Asked::Unsupported(name) => return Err(self.service.refuse(name, &caller, &origin)),
            Asked::Unknown => {
                return Err(ApiError::new("UnknownOperationException", "The service has no such operation."));
            }
        };
        let cost = operations::cost(operation, &body);
        // Whoever makes RSA keys waits for others who do, and not the changes of everybody else for him.
        let turn = if operation.is_slow() { self.slow.clone().acquire_owned().await.ok() } else { None };
        let perform = move || {
            let _turn = turn;
            let run = AssertUnwindSafe(|| self.service.perform(operation, &body, &caller, &origin));
            std::panic::catch_unwind(run).unwrap_or_else(|_| Err(ApiError::internal()))
        };
        match cost {
            Cost::Light => perform(),
            Cost::Heavy | Cost::Change | Cost::HeavyChange => {
                tokio::task::spawn_blocking(perform).await.unwrap_or_else(|_| Err(ApiError::internal()))
            }
        }
    }

    async fn read(&self, body: Incoming) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let too_large =
            || ApiError::new("RequestEntityTooLargeException", "The request is too large.").with_status(413);
        let small = body.size_hint().upper().is_some_and(|len| len <= SMALL);
        let collected = timeout(BODY, async {
            // Never closed; waiting for a turn counts as the client's time.
            let _turn = if small { None } else { self.large.acquire().await.ok() };
            Limited::new(body, BODY_MAX).collect().await
        })
        .await;
        match collected {
            Ok(Ok(collected)) => Ok(Zeroizing::new(Vec::from(collected.to_bytes()))),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(ApiError::new("SerializationException", "the body could not be read")),
            Err(_) => Err(ApiError::new("RequestTimeoutException", "The body did not come in time.").with_status(408)),
        }
    }

    /// Who signed the request; else why not, and the access key id that it claims.
    fn authenticate(&self, parts: &Parts, body: &[u8]) -> Result<Caller, (ApiError, Option<String>)> {
        let secret = |id: &str| self.service.view().user_of(id)?.secret(id);
        let head = Head { method: &parts.method, uri: &parts.uri, headers: &parts.headers };
        // By the wall clock, whatever time the keys have.
        let now = u64::try_from(wall() / 1000).unwrap_or(0);
        let refused = |error: AuthError| ApiError::new(error.code(), error.to_string()).with_status(error.status());
        let id = self
            .verifier
            .verify(head, body, now, &secret)
            .map_err(|error| (refused(error), claimed(parts)))?
            .access_key_id;
        // The verifier keeps what it derived; whether the access key is still good is asked each time.
        let user = self.service.view().user_of(&id).filter(|user| user.may_use(&id)).cloned();
        match user {
            Some(user) => Ok(Caller { user, access_key: Ok(id) }),
            None => Err((refused(AuthError::UnknownKey), Some(id))),
        }
    }

    /// A request whose sender is unknown must not be able to fill the disk: few a second are recorded.
    fn refused(&self, error: &ApiError, claimed: Option<String>, target: &str, origin: &Origin) {
        let now = self.service.now();
        {
            let mut refusals = self.refusals.lock();
            if refusals.0 != now / 1000 {
                *refusals = (now / 1000, 0);
            }
            refusals.1 += 1;
            if refusals.1 > REFUSALS_RECORDED {
                return;
            }
        }
        let name = match operations::find(target) {
            Asked::Served(operation) => operation.name,
            Asked::Unsupported(name) => name,
            Asked::Unknown => "UnknownOperation",
        };
        self.service.record_event(&Event {
            id: operations::new_uuid(),
            request_id: origin.request_id.clone(),
            time: now,
            name,
            actor: Actor::Unknown { access_key_id: claimed },
            source: operations::source(origin),
            user_agent: origin.user_agent.clone(),
            request: Value::Null,
            response: Value::Null,
            additional: serde_json::Map::new(),
            read_only: false,
            resources: Vec::new(),
            error: Some((error.code.into(), error.message.clone().unwrap_or_default())),
            tls: origin.tls,
        });
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn reply(status: StatusCode, body: Bytes, request_id: &str) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate, private"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

/// Texts of an answer, once they have been written: some are plaintext.
fn wipe(answer: &mut Value) {
    for value in answer.as_object_mut().into_iter().flat_map(|members| members.values_mut()) {
        if let Value::String(text) = value {
            text.zeroize();
        }
    }
}

/// The access key id that a refused request names, if it looks like one.
fn claimed(parts: &Parts) -> Option<String> {
    let header = header(&parts.headers, "authorization").and_then(|text| text.split_once("Credential="));
    let query = || parts.uri.query().and_then(|text| text.split_once("X-Amz-Credential="));
    let (_, rest) = header.or_else(query)?;
    let id: String = rest.chars().take_while(char::is_ascii_alphanumeric).take(128).collect();
    (!id.is_empty()).then_some(id)
}

/// A listener on `address`.
pub fn listen(address: &SocketAddr) -> io::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(address)
}
