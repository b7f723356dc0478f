//! `envelopefs kms serve`: the service in front, until a signal ends it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use super::super::{Failure, PassphraseArgs, exit, note};
use crate::kms::Service;
use crate::kms::http::{self, TlsFiles};
use crate::kms::running::Running;
use crate::sys::notify;

/// How long running requests may take when the service ends.
const GRACE: Duration = Duration::from_secs(10);

/// Run a key service
///
/// Runs in front, tells systemd when it is ready (Type=notify), ends with SIGTERM, and reads its certificate again with SIGHUP.
#[derive(Args)]
pub struct Serve {
    /// The directory of the service
    #[arg(value_name = "DATADIR")]
    directory: PathBuf,
    /// Where to listen; other than loopback addresses need TLS
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8765", value_parser = address)]
    listen: SocketAddr,
    /// Certificate and the chain behind it, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|e| format!("{text:?} is no ADDRESS:PORT: {e}"))?;
    found.next().ok_or_else(|| format!("{text:?} has no address"))
}

impl Serve {
    pub fn run(self) -> Result<(), Failure> {
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificates), Some(key)) => Some(TlsFiles { certificates, key }),
            _ => None,
        };
        http::may_listen(&self.listen, tls.is_some()).map_err(|e| Failure::new(exit::USAGE, e))?;
        let failed = |e: &dyn std::fmt::Display| Failure::new(exit::FAILURE, e.to_string());
        // Every thread that is started from here on leaves these signals to this one.
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        signals.thread_block().map_err(|e| failed(&e))?;
        crate::mount::serve::harden();
        let listener =
            http::listen(&self.listen).map_err(|e| Failure::new(exit::BUSY, format!("{}: {e}", self.listen)))?;
        let service = Service::open(&self.directory, &self.passphrase.source())?;
        let secure = tls.is_some();
        let running = Running::start(service, listener, tls).map_err(|e| failed(&e))?;
        let url = format!("{}://{}", if secure { "https" } else { "http" }, running.address());
        note(format_args!("key service {} answers at {url}", running.service.record.id));
        tell(&format!("READY=1\nSTATUS=Answers at {url}"));
        loop {
            match signals.wait() {
                Ok(Signal::SIGHUP) => {
                    tell("RELOADING=1");
                    match running.reload_tls() {
                        Ok(true) => log::info!("code=tls the certificate was read again"),
                        Ok(false) => {}
                        Err(error) => log::error!("code=tls the certificate stays as it was: {error}"),
                    }
                    tell("READY=1");
                }
                Ok(_) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        tell("STOPPING=1");
        running.stop(GRACE);
        Ok(())
    }
}

fn tell(state: &str) {
    if let Err(error) = notify::notify(state) {
        log::warn!("code=notify systemd could not be told: {error}");
    }
}
