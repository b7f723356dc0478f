//! Connections that carry secrets: TLS with an explicit configuration, and buffers that are wiped as they are used up.
//! Knows no request.
//!
//! Not wiped: what the TLS library holds between decrypting a record and handing it over, the socket buffers of plain HTTP
//! (loopback only), and the copy of the token in a request's header.

use std::{
    fmt,
    io::{Read, Write},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, Transport, TransportAdapter,
    time::{Duration, Instant},
};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of each direction; a response's head must fit.
const BUFFER_LEN: usize = 32 * 1024;

/// Puts TLS on a connection where the address asks for it.
pub struct SecretConnector {
    pub config: Arc<ClientConfig>,
    /// In place of the address's host.
    pub server_name: Option<ServerName<'static>>,
}

impl fmt::Debug for SecretConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretConnector")
    }
}

impl<In: Transport> Connector<In> for SecretConnector {
    type Out = Channel;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Channel>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        let encrypt = details.needs_tls() && !transport.is_tls();
        let mut socket = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        if !encrypt {
            return Ok(Some(Channel::over(Stream::Plain(socket))));
        }
        socket.set_timeout(what_is_left(details));
        let host = details.uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_string()).map_err(|_| Error::Tls("the host is no name for TLS"))?,
        };
        let mut connection = ClientConnection::new(self.config.clone(), name)?;
        connection.complete_io(&mut socket)?;
        Ok(Some(Channel::over(Stream::Tls(Box::new(StreamOwned::new(connection, socket))))))
    }
}

/// The limit for connecting counts from before the TCP connection was made.
fn what_is_left(details: &ConnectionDetails<'_>) -> NextTimeout {
    let mut timeout = details.timeout;
    if let (Duration::Exact(limit), Instant::Exact(start), Instant::Exact(now)) =
        (timeout.after, details.now, (details.current_time)())
    {
        timeout.after = Duration::Exact(limit.saturating_sub(now.saturating_duration_since(start)));
    }
    timeout
}

enum Stream {
    Plain(TransportAdapter),
    Tls(Box<StreamOwned<ClientConnection, TransportAdapter>>),
}

/// One connection.
pub struct Channel {
    stream: Stream,
    buffers: WipedBuffers,
}

impl Channel {
    fn over(stream: Stream) -> Self {
        Self { stream, buffers: WipedBuffers::new() }
    }

    fn socket(&mut self) -> &mut TransportAdapter {
        match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_mut(),
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel")
    }
}

impl Transport for Channel {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.socket().set_timeout(timeout);
        let output = &mut self.buffers.output[..amount];
        let sent = match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(output),
            Stream::Tls(stream) => stream.write_all(output),
        };
        output.zeroize();
        Ok(sent?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.socket().set_timeout(timeout);
        let space = self.buffers.input_append_buf();
        let got = match &mut self.stream {
            Stream::Plain(socket) => socket.read(space),
            Stream::Tls(stream) => stream.read(space),
        }?;
        self.buffers.input_appended(got);
        Ok(got > 0)
    }

    fn is_open(&mut self) -> bool {
        self.socket().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }
}

/// Bytes are wiped once sent, and once read.
struct WipedBuffers {
    input: Zeroizing<Vec<u8>>,
    /// `consumed ≤ filled ≤ input.len()`
    filled: usize,
    consumed: usize,
    output: Zeroizing<Vec<u8>>,
    progress: bool,
}

impl WipedBuffers {
    fn new() -> Self {
        Self {
            input: Zeroizing::new(vec![0; BUFFER_LEN]),
            filled: 0,
            consumed: 0,
            output: Zeroizing::new(vec![0; BUFFER_LEN]),
            progress: false,
        }
    }

    /// Moves what is unread to the front.
    fn compact(&mut self) {
        self.input.copy_within(self.consumed..self.filled, 0);
        let left = self.filled - self.consumed;
        self.input[left..self.filled].zeroize();
        (self.consumed, self.filled) = (0, left);
    }
}

impl Buffers for WipedBuffers {
    fn output(&mut self) -> &mut [u8] {
        &mut self.output
    }
    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }
    fn input_append_buf(&mut self) -> &mut [u8] {
        self.compact();
        &mut self.input[self.filled..]
    }
    fn input_appended(&mut self, amount: usize) {
        self.filled = (self.filled + amount).min(self.input.len());
    }
    fn input_consume(&mut self, amount: usize) {
        let end = (self.consumed + amount).min(self.filled);
        self.input[self.consumed..end].zeroize();
        self.consumed = end;
        self.progress = amount > 0;
    }
    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.compact();
        (&mut self.input[self.filled..], &mut self.output)
    }
    fn can_use_input(&self) -> bool {
        self.progress && self.consumed < self.filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_gone() {
        let mut buffers = WipedBuffers::new();
        assert!(!buffers.can_use_input());
        buffers.input_append_buf()[..6].copy_from_slice(b"secret");
        buffers.input_appended(6);
        assert_eq!(buffers.input(), b"secret");
        buffers.input_consume(2);
        assert!(buffers.can_use_input());
        assert_eq!((&buffers.input[..6], buffers.input()), (&b"\0\0cret"[..], &b"cret"[..]));
        let free = buffers.input_append_buf().len();
        assert_eq!(free, BUFFER_LEN - 4);
        assert_eq!(&buffers.input[..6], b"cret\0\0");
        buffers.input_consume(usize::MAX / 2);
        assert!(buffers.input.iter().all(|&b| b == 0) && buffers.input().is_empty() && !buffers.can_use_input());
        // Nothing that a library asks for goes beyond the buffer.
        buffers.input_appended(usize::MAX / 2);
        assert_eq!(buffers.filled, BUFFER_LEN);
    }
}
