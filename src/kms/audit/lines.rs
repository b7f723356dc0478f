//! One line of the trail: a record with its place in the chain. Knows no files.
//!
//! `{RECORD…,"envelopefs":{"sequence":N,"previous":"HEX","hash":"HEX"}}`, where the hash is HMAC-SHA256 under the trail's key
//! over a label, the previous hash, the sequence number and the record without its last brace.

use data_encoding::HEXLOWER;

use crate::crypto::{kdf, secret::Secret32};

pub type Hash = [u8; 32];

/// What the first record of all follows.
pub const NOTHING: Hash = [0; 32];

const LABEL: &[u8] = b"envelopefs kms trail v1";
const CHAIN: &str = ",\"envelopefs\":{\"sequence\":";

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub sequence: u64,
    pub previous: Hash,
    pub hash: Hash,
}

fn hash(key: &Secret32, previous: &Hash, sequence: u64, open: &[u8]) -> Hash {
    kdf::hmac_sha256(key, &[LABEL, previous, &sequence.to_le_bytes(), open])
}

/// The line of `record` (a JSON object) after `previous`, with its newline.
pub fn write(key: &Secret32, previous: &Hash, sequence: u64, record: &[u8]) -> (Vec<u8>, Hash) {
    let open = record.strip_suffix(b"}").unwrap_or(record);
    let hash = hash(key, previous, sequence, open);
    let mut line = Vec::with_capacity(open.len() + 256);
    line.extend_from_slice(open);
    line.extend_from_slice(CHAIN.as_bytes());
    line.extend_from_slice(sequence.to_string().as_bytes());
    line.extend_from_slice(b",\"previous\":\"");
    line.extend_from_slice(HEXLOWER.encode(previous).as_bytes());
    line.extend_from_slice(b"\",\"hash\":\"");
    line.extend_from_slice(HEXLOWER.encode(&hash).as_bytes());
    line.extend_from_slice(b"\"}}\n");
    (line, hash)
}

/// The link that a line (without its newline) claims, and the record that it covers.
pub fn read(line: &[u8]) -> Option<(Link, &[u8])> {
    // Quotes inside texts are escaped, so this cannot stand in one; and members of requests are texts, not objects.
    let at = line.windows(CHAIN.len()).rposition(|window| window == CHAIN.as_bytes())?;
    let (open, chain) = line.split_at(at);
    let chain = std::str::from_utf8(&chain[CHAIN.len()..]).ok()?;
    let (sequence, chain) = chain.split_once(",\"previous\":\"")?;
    let (previous, chain) = chain.split_once("\",\"hash\":\"")?;
    let claimed = chain.strip_suffix("\"}}")?;
    let hex = |text: &str| -> Option<Hash> { HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok() };
    let number: u64 = sequence.parse().ok()?;
    if number.to_string() != sequence {
        return None;
    }
    Some((Link { sequence: number, previous: hex(previous)?, hash: hex(claimed)? }, open))
}

/// Whether the line is what was written, where it says.
pub fn authentic(key: &Secret32, link: &Link, open: &[u8]) -> bool {
    kdf::mac_eq(&hash(key, &link.previous, link.sequence, open), &link.hash)
}

/// The record's own text again.
pub fn record(open: &[u8]) -> Vec<u8> {
    [open, b"}"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_altered_byte_is_noticed() {
        let key = Secret32::from_bytes([1; 32]);
        let (line, hash) = write(&key, &NOTHING, 7, b"{\"eventName\":\"Decrypt\",\"x\":\",\\\"envelopefs\\\":{\"}");
        let line = line.strip_suffix(b"\n").unwrap();
        serde_json::from_slice::<serde_json::Value>(line).unwrap();
        let (link, open) = read(line).unwrap();
        assert_eq!(link, Link { sequence: 7, previous: NOTHING, hash });
        assert!(authentic(&key, &link, open));
        for bit in 0..line.len() * 8 {
            let mut bad = line.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!read(&bad).is_some_and(|(link, open)| authentic(&key, &link, open)), "bit {bit}");
        }
        assert!(!authentic(&Secret32::from_bytes([2; 32]), &link, open));
    }
}
