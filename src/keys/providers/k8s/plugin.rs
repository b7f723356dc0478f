//! Calls to a plugin: gRPC over its socket, each with an end, and what an answer means. Knows no blobs and no keys.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Code, Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::messages::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use crate::{
    crypto::{kdf, random, secret::Secret32},
    keys::KeyError,
};

/// Largest answer in bytes: an `EncryptResponse` has at most 34 kB by the protocol.
const ANSWER_MAX: usize = 64 << 10;
/// Longest text of a plugin that is passed on, in characters.
const TEXT_MAX: usize = 200;

/// Why a call brought nothing.
#[derive(Debug)]
pub enum Trouble {
    Refused(String),
    Unreachable(String),
    Config(String),
    /// An error that plugins use for everything, their own outages and wrong ciphertexts alike.
    Unclear(String),
    /// Only of `decrypt`: the plugin is well, and this ciphertext is not its own.
    NotOurs(String),
}

impl Trouble {
    /// The same after an earlier one.
    fn after(self, why: &str) -> Self {
        let add = |reason: String| format!("{why}; {reason}");
        match self {
            Self::Refused(reason) => Self::Refused(add(reason)),
            Self::Unreachable(reason) | Self::Unclear(reason) => Self::Unreachable(add(reason)),
            Self::Config(reason) => Self::Config(add(reason)),
            Self::NotOurs(reason) => Self::NotOurs(add(reason)),
        }
    }

    pub fn of(self, key: &str) -> KeyError {
        let key = key.to_owned();
        match self {
            Self::Refused(reason) => KeyError::Refused { key, reason },
            Self::Unreachable(reason) | Self::Unclear(reason) => KeyError::Unreachable { key, reason },
            Self::NotOurs(reason) => KeyError::BadBlob { key, reason },
            Self::Config(reason) => KeyError::Config(format!("CMK {key}: {reason}")),
        }
    }
}

/// A plugin behind a socket. Every call makes a connection of its own, so that a plugin may be restarted at any time.
pub struct Plugin {
    socket: PathBuf,
    /// Its thread does the waiting for the network; callers only wait for it.
    runtime: Runtime,
}

impl Plugin {
    pub fn new(socket: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name("envelopefs-k8s")
            .enable_all()
            .build()?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// The plugin's own word on itself, where it is well.
    pub fn status(&self, until: Instant) -> Result<StatusResponse, Trouble> {
        let answer: StatusResponse = self.call("Status", StatusRequest {}, until)?;
        if !matches!(answer.version.as_str(), "v2" | "v2beta1") {
            return Err(Trouble::Config(format!(
                "the plugin speaks version {:?} of the KMS API, and v2 is needed",
                printable(&answer.version)
            )));
        }
        if answer.healthz != "ok" {
            return Err(Trouble::Unreachable(format!(
                "the plugin says it is not well: {}",
                printable(&answer.healthz)
            )));
        }
        Ok(answer)
    }

    pub fn encrypt(&self, plaintext: &Secret32, until: Instant) -> Result<EncryptResponse, Trouble> {
        self.call("Encrypt", EncryptRequest { plaintext: plaintext.expose().to_vec(), uid: uid() }, until)
    }

    /// Opens what the plugin has made. An error is believed only where the plugin does no better with something fresh: many
    /// plugins answer everything with the same code, and the key id in a blob belongs to whoever can write there, so that a
    /// refusal may be of another key.
    pub fn decrypt(&self, mut request: DecryptRequest, until: Instant) -> Result<DecryptResponse, Trouble> {
        let asked = request.key_id.clone();
        let why = match self.call("Decrypt", request.clone(), until) {
            Err(Trouble::Unclear(why) | Trouble::Refused(why)) => why,
            other => return other,
        };
        let current = self.try_out(until).map_err(|trouble| match trouble {
            // What the plugin says of itself tells more than a code that means anything.
            Trouble::Unclear(reason) => match self.status(until) {
                Err(Trouble::Unreachable(more)) => Trouble::Unreachable(format!("{reason}; {more}")),
                _ => Trouble::Unreachable(reason),
            },
            other => other.after(&why),
        })?;
        self.status(until).map_err(|trouble| trouble.after(&why))?;
        request.uid = uid();
        match self.call("Decrypt", request, until) {
            Err(Trouble::Unclear(_) | Trouble::Refused(_)) if asked == current => Err(Trouble::NotOurs(why)),
            Err(Trouble::Unclear(_) | Trouble::Refused(_)) => Err(Trouble::NotOurs(format!(
                "{why}; it was made under key_id {}, the plugin uses {} now",
                printable(&asked),
                printable(&current)
            ))),
            other => other,
        }
    }

    /// There and back with something fresh. The key id it was made under.
    fn try_out(&self, until: Instant) -> Result<String, Trouble> {
        let probe = Secret32::random();
        let EncryptResponse { ciphertext, key_id, annotations } = self.encrypt(&probe, until)?;
        let request = DecryptRequest { ciphertext, uid: uid(), key_id: key_id.clone(), annotations };
        let back: DecryptResponse = self.call("Decrypt", request, until)?;
        if kdf::mac_eq(&back.plaintext, probe.expose()) {
            Ok(key_id)
        } else {
            Err(Trouble::Unreachable("the plugin does not give back what it was given".into()))
        }
    }

    fn call<Q, A>(&self, method: &str, request: Q, until: Instant) -> Result<A, Trouble>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        check_directory(&self.socket)?;
        let limit = until.saturating_duration_since(Instant::now());
        let exchange = async {
            tokio::time::timeout(limit, exchange(&self.socket, method, request, limit)).await.unwrap_or_else(|_| {
                Err(Trouble::Unreachable(format!("the plugin at {} did not answer in time", self.socket.display())))
            })
        };
        self.runtime.block_on(exchange)
    }
}

/// Unique per request, for the plugin's log.
pub fn uid() -> String {
    data_encoding::HEXLOWER.encode(&random::array::<16>())
}

async fn exchange<Q, A>(socket: &Path, method: &str, request: Q, limit: Duration) -> Result<A, Trouble>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let unreachable = |e: &dyn std::fmt::Display| {
        Trouble::Unreachable(format!("{}: {}; check that the plugin runs", socket.display(), printable(&e.to_string())))
    };
    let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(&e))?;
    let mut client = Grpc::new(over(stream).await.map_err(|e| unreachable(&e))?).max_decoding_message_size(ANSWER_MAX);
    client.ready().await.map_err(|e| unreachable(&e))?;
    let path = format!("/v2.KeyManagementService/{method}");
    let path = path.parse().map_err(|_| Trouble::Config(format!("{method} is not a method")))?;
    let mut request = Request::new(request);
    request.set_timeout(limit);
    let answer = client.unary(request, path, ProstCodec::<Q, A>::default()).await;
    answer.map(tonic::Response::into_inner).map_err(|status| meaning(method, &status))
}

/// The one connection of a call; a second one is not made.
async fn over(stream: UnixStream) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // The host's name means nothing on a socket; it is what Kubernetes sends.
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// A connection goes to whoever has put the socket there.
fn check_directory(socket: &Path) -> Result<(), Trouble> {
    let Some(directory) = socket.parent() else { return Ok(()) };
    match fs::metadata(directory) {
        Ok(meta) if meta.permissions().mode() & 0o002 != 0 => Err(Trouble::Config(format!(
            "anybody could put a socket of his own into {0}: keep the plugin's socket in a directory of its own, chmod o-w {0}",
            directory.display()
        ))),
        // Whatever is wrong with it, connecting says it.
        _ => Ok(()),
    }
}

pub(crate) fn meaning(method: &str, status: &tonic::Status) -> Trouble {
    let text = format!("{method}: {:?}: {}", status.code(), printable(status.message()));
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition | Code::NotFound => {
            Trouble::Refused(text)
        }
        Code::Unimplemented => Trouble::Config(format!("{text}; the plugin does not speak the KMS v2 API")),
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled | Code::Aborted => {
            Trouble::Unreachable(text)
        }
        _ if says_no(status.message()) => Trouble::Refused(text),
        _ => Trouble::Unclear(text),
    }
}

/// Whether a text without a code holds the definite no of a KMS behind the plugin: disabled, deleted, access denied. The
/// plugins for AWS, Google Cloud and Azure pass on what their SDK says and answer `Unknown` to everything.
fn says_no(message: &str) -> bool {
    const AWS: [&str; 4] =
        ["DisabledException:", "KMSInvalidStateException:", "AccessDeniedException:", "NotFoundException:"];
    const GOOGLE: [&str; 3] = ["googleapi: Error 403:", "googleapi: Error 404:", ", failedPrecondition"];
    const AZURE: [&str; 2] = ["StatusCode=403", "StatusCode=404"];
    AWS.iter().chain(&GOOGLE).chain(&AZURE).any(|marker| message.contains(marker))
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
    use tonic::Status;

    #[test]
    fn codes_have_a_meaning_and_texts_a_bound() {
        let says = |code| meaning("Decrypt", &Status::new(code, "a\nb"));
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::FailedPrecondition, Code::NotFound] {
            assert!(
                matches!(says(code), Trouble::Refused(text) if text.contains("a\\nb") && text.starts_with("Decrypt: "))
            );
        }
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Aborted] {
            assert!(matches!(says(code), Trouble::Unreachable(_)));
        }
        for code in [Code::Unknown, Code::Internal, Code::InvalidArgument, Code::DataLoss, Code::OutOfRange] {
            assert!(matches!(says(code), Trouble::Unclear(_)));
        }
        assert!(matches!(says(Code::Unimplemented), Trouble::Config(text) if text.contains("KMS v2")));
        let unknown = |text: &str| meaning("Encrypt", &Status::unknown(text));
        for text in [
            "failed to encrypt operation error KMS: Encrypt, https response error StatusCode: 400, RequestID: 1, DisabledException: x",
            "googleapi: Error 403: Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource 'x', forbidden",
            "googleapi: Error 400: x is not enabled, current state is: DISABLED., failedPrecondition",
            "failed to encrypt, error: keyvault.BaseClient#Encrypt: Failure responding to request: StatusCode=403 -- Original Error: x",
        ] {
            assert!(matches!(unknown(text), Trouble::Refused(_)), "{text}");
        }
        for text in
            ["", "googleapi: Error 503: x, backendError", "StatusCode=429", "ThrottlingException: Rate exceeded"]
        {
            assert!(matches!(unknown(text), Trouble::Unclear(_)), "{text}");
        }
        assert_eq!(printable(&"é".repeat(300)).chars().count(), TEXT_MAX + 1);
    }
}
