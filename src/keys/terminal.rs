//! One secret line from the controlling terminal, without echo, in one buffer that is wiped: no line editor of a library
//! leaves pieces of it behind. Knows not what the line is for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::{Zeroize, Zeroizing};

/// Shows `prompt` and reads up to the end of a line, which is not part of the answer. More than `limit` bytes are cut off.
/// Ctrl-C acts on the program as ever, with the terminal restored. An error where there is no terminal.
pub fn ask(prompt: &str, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    let quiet = Quiet::make(&terminal)?;
    (&terminal).write_all(prompt.as_bytes())?;
    let line = read_line(&terminal, limit);
    drop(quiet);
    (&terminal).write_all(b"\n")?;
    match line? {
        Some(line) => Ok(line),
        None => {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT)?;
            Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"))
        }
    }
}

/// Neither echo nor line editing nor signals by the kernel, until it is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn make(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Now, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing to be done where the terminal is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// `None`: interrupted (Ctrl-C).
fn read_line(mut from: impl Read, limit: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(limit));
    let mut byte = Zeroizing::new([0u8]);
    loop {
        match from.read(&mut byte[..]) {
            Ok(0) => return Ok(Some(line)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(Some(line)),
            0x03 => return Ok(None),
            // Ctrl-D ends an empty line only, as in a shell.
            0x04 if line.is_empty() => return Ok(Some(line)),
            0x04 => {}
            // Backspace takes a whole character of UTF-8.
            0x08 | 0x7f => while line.pop().is_some_and(|b| b & 0xc0 == 0x80) {},
            // Ctrl-U takes all of it.
            0x15 => line.zeroize(),
            // Never beyond the capacity: growing would leave a copy behind.
            b if line.len() < limit => line.push(b),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_edited_as_people_expect() {
        let cases: [(&[u8], Option<&[u8]>); 9] = [
            (b"secret\n", Some(b"secret")),
            (b"secret\rmore\n", Some(b"secret")),
            (b"secret", Some(b"secret")),
            (b"secx\x7fret\n", Some(b"secret")),
            ("schlüü\x08ssel\n".as_bytes(), Some("schlüssel".as_bytes())),
            (b"\x7f\x7fwrong\x15secret\n", Some(b"secret")),
            (b"sec\x04ret\n", Some(b"secret")),
            (b"\x04never read\n", Some(b"")),
            (b"sec\x03ret\n", None),
        ];
        for (typed, expected) in cases {
            assert_eq!(read_line(typed, 100).unwrap().as_deref().map(Vec::as_slice), expected, "{typed:?}");
        }
    }

    #[test]
    fn the_buffer_never_grows() {
        let typed = [&[b'x'; 500][..], b"\x15", &[b'y'; 500]].concat();
        let line = read_line(&typed[..], 64).unwrap().unwrap();
        assert_eq!((line.as_slice(), line.capacity()), (&[b'y'; 64][..], 64));
    }
}
