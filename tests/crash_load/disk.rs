//! A disk with a volatile write cache, served over NBD to one guest: what was not flushed is lost at the cut, whole, in part,
//! or out of order. The only thing that a flush promises is what a real disk's does. Must not know what is stored on it.
//!
//! Source: the NBD protocol (fixed newstyle negotiation, simple replies), github.com/NetworkBlockDevice/nbd doc/proto.md.
//!
//! The model: a page of 4096 bytes is written whole or not at all; a smaller write is the page with it applied. Every
//! unflushed version of a page is kept, with the number of its request.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::Random;

const PAGE: usize = 4096;
/// The largest request that is served.
const LARGEST: u32 = 64 << 20;

struct Disk {
    image: File,
    size: u64,
    /// Unflushed versions by page number, oldest first, each with the number of its request.
    unflushed: BTreeMap<u64, Vec<(u64, Vec<u8>)>>,
    requests: u64,
    flushes: u64,
    armed: Option<Armed>,
    /// What the cut left, once it has happened: nothing is answered any more.
    report: Option<String>,
}

/// A cut that waits for its moment: the unflushed writes are most just before a flush.
struct Armed {
    seed: u64,
    /// Counts flushes, or writes.
    flushes: bool,
    left: u64,
}

/// NBD_CMD_WRITE and NBD_CMD_FLUSH.
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

impl Disk {
    fn new(image: File, size: u64) -> Self {
        Self { image, size, unflushed: BTreeMap::new(), requests: 0, flushes: 0, armed: None, report: None }
    }
    fn page(&self, number: u64) -> io::Result<Vec<u8>> {
        if let Some((_, bytes)) = self.unflushed.get(&number).and_then(|versions| versions.last()) {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; PAGE];
        self.image.read_exact_at(&mut bytes, number * PAGE as u64)?;
        Ok(bytes)
    }
    fn read(&self, mut offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let within = (offset % PAGE as u64) as usize;
            let part = (PAGE - within).min(len - out.len());
            out.extend(&self.page(offset / PAGE as u64)?[within..within + part]);
            offset += part as u64;
        }
        Ok(out)
    }
    /// `through`: durable when it returns (FUA), which says nothing about other writes.
    fn write(&mut self, mut offset: u64, mut bytes: &[u8], through: bool) -> io::Result<()> {
        self.requests += 1;
        while !bytes.is_empty() {
            let (number, within) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
            let part = (PAGE - within).min(bytes.len());
            let mut page = if part == PAGE { vec![0; PAGE] } else { self.page(number)? };
            page[within..within + part].copy_from_slice(&bytes[..part]);
            if through {
                self.image.write_all_at(&page, number * PAGE as u64)?;
                self.unflushed.remove(&number);
            } else {
                self.unflushed.entry(number).or_default().push((self.requests, page));
            }
            offset += part as u64;
            bytes = &bytes[part..];
        }
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        for (number, versions) in std::mem::take(&mut self.unflushed) {
            let (_, bytes) = versions.last().expect("no page without a version");
            self.image.write_all_at(bytes, number * PAGE as u64)?;
        }
        Ok(())
    }
    /// Whether the power is off when a request of this kind comes in.
    fn is_off(&mut self, kind: u16) -> io::Result<bool> {
        if let Some(armed) = &mut self.armed
            && kind == if armed.flushes { FLUSH } else { WRITE }
        {
            armed.left -= 1;
            if armed.left == 0 {
                self.cut()?;
            }
        }
        Ok(self.report.is_some())
    }
    fn cut(&mut self) -> io::Result<()> {
        if let Some(armed) = self.armed.take() {
            self.report = Some(self.lose(armed.seed)?);
        }
        Ok(())
    }
    /// What of the cache reached the medium by itself before the power went.
    fn lose(&mut self, seed: u64) -> io::Result<String> {
        let mut random = Random::new(seed);
        let unflushed = std::mem::take(&mut self.unflushed);
        let first = unflushed.values().flatten().map(|(request, _)| *request).min().unwrap_or(self.requests);
        let span = self.requests - first + 1;
        let kind = *random.pick(&["nothing", "pages", "pages", "requests", "requests", "prefix", "prefix", "all"]);
        let prefix = first + random.below(span + 1);
        let salt = random.next();
        let survives = |request: u64| match kind {
            "nothing" => false,
            "requests" => Random::new(salt ^ request).below(2) == 0,
            "prefix" => request < prefix,
            _ => true,
        };
        let mut kept = 0;
        let pages = unflushed.len();
        for (number, versions) in unflushed {
            let version = if kind == "pages" {
                let choice = random.below(versions.len() as u64 + 1) as usize;
                choice.checked_sub(1).map(|index| &versions[index])
            } else {
                versions.iter().rev().find(|(request, _)| survives(*request))
            };
            if let Some((_, bytes)) = version {
                self.image.write_all_at(bytes, number * PAGE as u64)?;
                kept += 1;
            }
        }
        Ok(format!(
            "{kind}: {kept} of {pages} unflushed pages kept, {span} requests since the oldest, {} flushes",
            self.flushes
        ))
    }
}

/// For the self test: over many cuts a flushed page stays, and unflushed ones are each seen lost and kept, also the later alone.
pub fn loses_what_was_not_flushed(image: &Path) -> io::Result<bool> {
    let page = |byte: u8| vec![byte; PAGE];
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(image)?;
        file.set_len(8 * PAGE as u64)?;
        let mut disk = Disk::new(file, 8 * PAGE as u64);
        disk.write(0, &page(1), false)?;
        disk.write(PAGE as u64, &page(1), false)?;
        disk.flush()?;
        disk.write(PAGE as u64, &page(2), false)?;
        disk.write(2 * PAGE as u64, &page(3), false)?;
        // What a program reads is what it wrote.
        let read = disk.read(PAGE as u64, 2 * PAGE)?;
        disk.lose(seed)?;
        let left: Vec<u8> = [0, 1, 2].map(|number| disk.page(number).map_or(255, |page| page[7])).to_vec();
        if left[0] != 1 || read != [page(2), page(3)].concat() {
            return Ok(false);
        }
        seen.insert((left[1], left[2]));
    }
    Ok(seen.into_iter().eq([(1, 0), (1, 3), (2, 0), (2, 3)]))
}

/// Serves `image` at `socket` until standard input ends. A line `cut SEED` there cuts the power, at one of the next flushes
/// or writes: from then on no request is answered, and the image is what the cut left. The answer is one line on standard output.
pub fn serve(socket: &Path, image: &Path) -> io::Result<()> {
    let image = OpenOptions::new().read(true).write(true).open(image)?;
    let size = image.metadata()?.len() / PAGE as u64 * PAGE as u64;
    let disk = Arc::new(Mutex::new(Disk::new(image, size)));
    let listener = UnixListener::bind(socket)?;
    println!("serving");
    let shared = disk.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), disk) = (stream, shared.clone()) else { return };
            std::thread::spawn(move || {
                if let Err(error) =
                    negotiate(&stream, size).and_then(|go| if go { transmit(&stream, &disk) } else { Ok(()) })
                {
                    eprintln!("connection: {error}");
                }
            });
        }
    });
    for line in io::stdin().lines() {
        let line = line?;
        let Some(seed) = line.strip_prefix("cut ").and_then(|seed| seed.parse::<u64>().ok()) else {
            return Err(io::Error::other(format!("what is {line:?}?")));
        };
        let mut random = Random::new(!seed);
        let armed = Armed { seed, flushes: random.below(3) > 0, left: 1 + random.below(20) };
        disk.lock().expect("no panic holds it").armed = Some(armed);
        // A machine that is quiet is cut without a request.
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end && disk.lock().expect("no panic holds it").report.is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut disk = disk.lock().expect("no panic holds it");
        disk.cut()?;
        println!("{}", disk.report.as_deref().unwrap_or("cut before"));
    }
    Ok(())
}

fn number<const N: usize>(mut stream: &UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// NBD_FLAG_HAS_FLAGS, SEND_FLUSH, SEND_FUA.
const FLAGS: u16 = 1 | 4 | 8;

/// True where the client goes on to transmission.
fn negotiate(mut stream: &UnixStream, size: u64) -> io::Result<bool> {
    // NBD_FLAG_FIXED_NEWSTYLE and NO_ZEROES.
    stream.write_all(&[&b"NBDMAGIC"[..], &OPTION_MAGIC.to_be_bytes(), &3_u16.to_be_bytes()].concat())?;
    let without_zeroes = u32::from_be_bytes(number(stream)?) & 2 != 0;
    loop {
        if u64::from_be_bytes(number(stream)?) != OPTION_MAGIC {
            return Err(io::Error::other("not NBD"));
        }
        let option = u32::from_be_bytes(number(stream)?);
        let len = u32::from_be_bytes(number(stream)?);
        if len > 65_536 {
            return Err(io::Error::other("an option too long"));
        }
        stream.read_exact(&mut vec![0; len as usize])?;
        let reply = |kind: u32, data: &[u8]| {
            let head = [&0x3_e889_0455_65a9_u64.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
            [&head[..], &(data.len() as u32).to_be_bytes(), data].concat()
        };
        let export = [&size.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
        match option {
            // NBD_OPT_EXPORT_NAME
            1 => {
                stream.write_all(&export)?;
                stream.write_all(&vec![0; if without_zeroes { 0 } else { 124 }])?;
                return Ok(true);
            }
            // NBD_OPT_ABORT
            2 => {
                stream.write_all(&reply(1, &[]))?;
                return Ok(false);
            }
            // NBD_OPT_INFO, NBD_OPT_GO: NBD_INFO_EXPORT, NBD_INFO_BLOCK_SIZE (smallest, preferred, largest), acknowledged.
            6 | 7 => {
                let blocks = [512_u32, PAGE as u32, LARGEST / 2].map(u32::to_be_bytes).concat();
                stream.write_all(&reply(3, &[&[0, 0], &export[..]].concat()))?;
                stream.write_all(&reply(3, &[&[0, 3], &blocks[..]].concat()))?;
                stream.write_all(&reply(1, &[]))?;
                if option == 7 {
                    return Ok(true);
                }
            }
            // NBD_REP_ERR_UNSUP
            _ => stream.write_all(&reply(0x8000_0001, &[]))?,
        }
    }
}

fn transmit(mut stream: &UnixStream, disk: &Mutex<Disk>) -> io::Result<()> {
    loop {
        let head: [u8; 28] = number(stream)?;
        let (magic, flags, kind) =
            (&head[..4], u16::from_be_bytes([head[4], head[5]]), u16::from_be_bytes([head[6], head[7]]));
        let handle = &head[8..16];
        let offset = u64::from_be_bytes(head[16..24].try_into().expect("eight bytes"));
        let len = u32::from_be_bytes(head[24..].try_into().expect("four bytes"));
        if magic != 0x2560_9513_u32.to_be_bytes() || len > LARGEST {
            return Err(io::Error::other("not a request"));
        }
        let mut data = Vec::new();
        if kind == WRITE {
            data.resize(len as usize, 0);
            stream.read_exact(&mut data)?;
        }
        // Requests are served one after another: each is complete before the next is looked at.
        let mut disk = disk.lock().expect("no panic holds it");
        if disk.is_off(kind)? {
            drop(disk);
            loop {
                std::thread::park();
            }
        }
        let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= disk.size);
        let (error, answer): (u32, Vec<u8>) = match kind {
            0 | WRITE if !inside => (22, vec![]),
            0 => (0, disk.read(offset, len as usize)?),
            WRITE => {
                disk.write(offset, &data, flags & 1 != 0)?;
                (0, vec![])
            }
            2 => return Ok(()),
            FLUSH => {
                disk.flush()?;
                (0, vec![])
            }
            _ => (22, vec![]),
        };
        let reply = [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), handle, &answer].concat();
        stream.write_all(&reply)?;
    }
}
