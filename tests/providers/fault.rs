//! A server in place of a KMS, or in front of one, that misbehaves on command. Knows TCP and the outline of HTTP/1.1 only.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to a connection.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Passes everything to and from this loopback port.
    Forward(u16),
    /// The same, but nothing of the server's comes back before this long after the first of it.
    Slow(u16, Duration),
    /// Takes the request and never answers.
    Hang,
    /// Starts a good answer and sends a byte of its head at this interval, for ever.
    Trickle(Duration),
    /// One HTTP answer a connection: this status, these further header lines (each ending in CR LF) and this body.
    Reply(u16, &'static str, Vec<u8>),
    /// A good head and a body that does not end.
    Endless,
    /// Takes the request and sends these bytes, which need not be HTTP.
    Raw(Vec<u8>),
    /// Closes without reading.
    Close,
    /// Answers CONNECT as a proxy does and makes a tunnel to this loopback port, whatever host was asked for.
    Proxy(u16),
}

struct State {
    behaviour: Behaviour,
    open: Vec<TcpStream>,
    requests: Vec<String>,
    closed: bool,
}

/// Listens on `port` until dropped. Its threads end with their connections.
pub struct FaultServer {
    pub port: u16,
    state: Arc<Mutex<State>>,
    listener: Option<thread::JoinHandle<()>>,
}

impl FaultServer {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { behaviour, open: Vec::new(), requests: Vec::new(), closed: false }));
        let shared = state.clone();
        let listener = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let behaviour = {
                    let mut state = shared.lock().unwrap();
                    if state.closed {
                        return;
                    }
                    state.open.push(stream.try_clone().unwrap());
                    state.behaviour.clone()
                };
                let shared = shared.clone();
                thread::spawn(move || serve(stream, behaviour, &shared));
            }
        });
        Self { port, state, listener: Some(listener) }
    }

    /// From now on; connections that are open are cut, so that no kept-alive one goes on in the old way. A client may find
    /// that out by its next request only.
    pub fn set(&self, behaviour: Behaviour) {
        let mut state = self.state.lock().unwrap();
        state.behaviour = behaviour;
        cut(&mut state);
    }

    /// Heads of the requests seen so far. `Forward` and `Slow` look into nothing and record an empty one a connection.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        cut(&mut state);
        drop(state);
        // Wakes the listener; when it has ended, the port refuses connections.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.listener.take().map(thread::JoinHandle::join);
    }
}

fn cut(state: &mut State) {
    for stream in state.open.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn serve(mut stream: TcpStream, behaviour: Behaviour, state: &Mutex<State>) {
    let reader = stream.try_clone().unwrap();
    let request = || -> Option<String> {
        let head = read_request(&reader)?;
        state.lock().unwrap().requests.push(head.clone());
        Some(head)
    };
    // Whoever went away does not get an answer; that is not this server's failure.
    let _: std::io::Result<()> = (|| match behaviour {
        Behaviour::Forward(port) => {
            state.lock().unwrap().requests.push(String::new());
            pass(&stream, port, Duration::ZERO)
        }
        Behaviour::Slow(port, delay) => {
            state.lock().unwrap().requests.push(String::new());
            pass(&stream, port, delay)
        }
        Behaviour::Proxy(port) => {
            if request().is_some_and(|head| head.starts_with("CONNECT ")) {
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
                pass(&stream, port, Duration::ZERO)?;
            }
            Ok(())
        }
        Behaviour::Hang => {
            while request().is_some() {}
            Ok(())
        }
        Behaviour::Trickle(interval) => {
            request();
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-Filler: ")?;
            loop {
                stream.write_all(b"x")?;
                thread::sleep(interval);
            }
        }
        Behaviour::Reply(status, headers, body) => {
            if request().is_some() {
                let length = body.len();
                write!(stream, "HTTP/1.1 {status} Answer\r\n{headers}Content-Length: {length}\r\n")?;
                stream.write_all(b"Connection: close\r\n\r\n")?;
                stream.write_all(&body)?;
            }
            Ok(())
        }
        Behaviour::Endless => {
            request();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\n\r\n{\"KeyId\":\"")?;
            loop {
                stream.write_all(&[b'x'; 65536])?;
            }
        }
        Behaviour::Raw(bytes) => {
            request();
            stream.write_all(&bytes)
        }
        Behaviour::Close => Ok(()),
    })();
    let _ = stream.shutdown(Shutdown::Both);
}

/// One request with its body; its head as text. `None`: the client has gone, or this is not HTTP.
fn read_request(mut stream: &TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 65536 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(head)
}

fn pass(client: &TcpStream, port: u16, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port))?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let (mut from_server, mut to_client) = (server, client.try_clone()?);
    let mut first = [0; 16384];
    let count = from_server.read(&mut first)?;
    thread::sleep(delay);
    to_client.write_all(&first[..count])?;
    let _ = std::io::copy(&mut from_server, &mut to_client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}

#[test]
fn the_fault_server_does_what_it_is_told() {
    let real = FaultServer::start(Behaviour::Reply(418, "", b"tea".to_vec()));
    let front = FaultServer::start(Behaviour::Forward(real.port));
    let get = || super::servers::http(front.port, "GET /x", "", b"");
    assert_eq!(get().unwrap(), (418, b"tea".to_vec()));
    front.set(Behaviour::Close);
    assert!(get().is_err());
    front.set(Behaviour::Raw(b"garbage\r\n\r\n".to_vec()));
    assert!(get().is_err());
    front.set(Behaviour::Slow(real.port, Duration::from_millis(50)));
    assert_eq!(get().unwrap().0, 418);
    assert!(real.requests().iter().all(|head| head.starts_with("GET /x ")));
    assert_eq!(real.requests().len(), 2);
}
