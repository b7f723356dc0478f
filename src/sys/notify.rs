//! Telling systemd how a start goes (sd_notify(3)): one datagram to the socket that $NOTIFY_SOCKET names. Knows no states.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// Sends `state` (lines of `NAME=value`); `false` where nobody wants to know. Never blocks.
pub fn notify(state: &str) -> io::Result<bool> {
    match std::env::var_os(VARIABLE) {
        Some(socket) if !socket.is_empty() => send(&socket, state).map(|()| true),
        _ => Ok(false),
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name")),
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("envelopefs-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{name}").into()),
        ] {
            send(&address, "READY=1").unwrap();
            let mut text = [0; 64];
            let len = listener.recv(&mut text).unwrap();
            assert_eq!(&text[..len], b"READY=1");
        }
        assert!(send(OsStr::new("relative"), "").is_err());
        assert!(send(dir.path().join("none").as_os_str(), "").is_err());
    }
}
