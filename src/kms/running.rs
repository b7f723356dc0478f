//! A service at work: its server, its socket for verbs, and what happens by itself. Knows no signals.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::admin::Socket;
use super::http::{Server, TlsFiles};
use super::{Service, sweep};

pub struct Running {
    pub service: Arc<Service>,
    server: Server,
    socket: Socket,
    sweeper: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Running {
    pub fn start(service: Service, listener: TcpListener, tls: Option<TlsFiles>) -> Result<Self, String> {
        let service = Arc::new(service);
        // What became due while nobody was here.
        service.sweep();
        service.settle();
        let socket = Socket::start(service.clone()).map_err(|e| format!("the socket for verbs: {e}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (swept, stopped) = (service.clone(), stop.clone());
        let sweeper = thread::Builder::new()
            .name("sweep".into())
            .spawn(move || sweep::run(&swept, &stopped))
            .map_err(|e| e.to_string())?;
        let server = Server::start(service.clone(), listener, tls)?;
        Ok(Self { service, server, socket, sweeper, stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn reload_tls(&self) -> Result<bool, String> {
        self.server.reload_tls()
    }

    /// Finishes what was begun, no longer than `grace`, and makes the trail durable.
    pub fn stop(self, grace: Duration) {
        self.server.stop(grace);
        drop(self.socket);
        self.stop.store(true, Ordering::Relaxed);
        self.sweeper.thread().unpark();
        if self.sweeper.join().is_err() {
            log::error!("code=sweep the thread for what happens by itself had ended");
        }
    }
}
