//! The file header slot: fixed part, TLVs, HMAC, origin tag, CRC. Parsing is total and bounded; keys verify afterwards.
//! Knows no provider and does no I/O.

use bincode::{BorrowDecode, Encode};

use super::{
    BranchId, FileId, VolumeId,
    block::is_hole,
    geometry::{Geometry, MAX_HEADER_PAGES, PAGE},
    key_ref::well_formed,
};
use crate::crypto::{
    file_keys::FileKeys,
    kdf::{hmac_sha256, mac_eq},
    secret::Secret32,
};

pub const FLAG_HOLES_OK: u32 = 1;
pub const FLAG_REKEYING: u32 = 2;
pub const FLAG_SEALED: u32 = 4;

const KNOWN_FLAGS: u32 = FLAG_HOLES_OK | FLAG_REKEYING | FLAG_SEALED;

pub use super::SUITE_AES256_GCM;

const MAGIC: &[u8; 8] = b"ENVLPFS\0";
const FORMAT_VERSION: u16 = 1;

// Fixed part: each offset is the end of the field before. Integers are little-endian.
const VERSION: usize = MAGIC.len();
const SUITE: usize = VERSION + 2;
const HEADER_PAGES: usize = SUITE + 2;
const FLAGS: usize = HEADER_PAGES + 4;
const RESERVED_A: usize = FLAGS + 4;
const GENERATION: usize = RESERVED_A + 4;
const SIZE_FLOOR: usize = GENERATION + 8;
const SEALED_SIZE: usize = SIZE_FLOOR + 8;
const VOLUME_ID: usize = SEALED_SIZE + 8;
const FILE_ID: usize = VOLUME_ID + 16;
const COMMITMENT: usize = FILE_ID + 32;
const PREVIOUS_COMMITMENT: usize = COMMITMENT + 32;
const RESERVED_B: usize = PREVIOUS_COMMITMENT + 32;
/// First TLV; also the length of the fixed part.
const TLVS: usize = RESERVED_B + 32;
const _: () = assert!(TLVS == 192);

// Trailer at the end of the slot: HMAC 32, origin tag 32, reserved 4, CRC 4.
const TRAILER: usize = 72;
const TRAILER_ORIGIN: usize = 32;
const TRAILER_RESERVED: usize = 64;
const TRAILER_CRC: usize = 68;

/// A reader that does not know a TLV type with this bit must refuse the header.
const TLV_CRITICAL: u16 = 0x8000;
/// The whole TLV is part of the authenticated message, also for readers that do not know it.
const TLV_AUTHENTICATED: u16 = 0x4000;
const TLV_WRAPPED_DEK: u16 = TLV_CRITICAL | TLV_AUTHENTICATED | 1;
/// Of this one, only the type and the commitment are authenticated: a rewrap replaces the rest without any key.
const TLV_CMK_SLOT: u16 = TLV_CRITICAL | 2;
/// Type and length, two bytes each.
const TLV_HEADER: usize = 4;

/// What a CMK slot's blob wraps.
const TARGET_DEK: u8 = 0;
const TARGET_BRANCH: u8 = 1;

pub use super::key_ref::{KEY_REF_MAX, PROVIDER_MAX};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// All zero: no header was ever written here.
    #[error("header slot is empty")]
    Empty,
    #[error("header checksum mismatch (torn write or damage)")]
    Checksum,
    #[error("not an envelopefs header")]
    Magic,
    #[error("unsupported header version {0}")]
    Version(u16),
    #[error("unsupported cipher suite {0}")]
    Suite(u16),
    #[error("malformed header: {0}")]
    Malformed(&'static str),
    #[error("header authentication failed")]
    Auth,
    #[error("header origin tag does not belong to this volume")]
    Origin,
    #[error("wrapped keys need {needed} header pages, the volume has {have}")]
    TooLarge { needed: u32, have: u32 },
}

/// The DEK under its parent branch key (or, in per-file mode, absent: slots wrap the DEK itself).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedDek {
    pub branch_id: BranchId,
    pub salt: [u8; 16],
    /// `nonce 12 ‖ ciphertext 32 ‖ tag 16`
    pub wrapped: [u8; 60],
}

/// One CMK's wrapping of the branch key (or of the DEK in per-file mode).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmkSlot {
    /// Provider name, e.g. `keyfile`.
    pub provider: String,
    /// What the provider itself calls the key: never an alias, an endpoint or a path.
    pub key_ref: String,
    /// Opaque to everyone but the provider; up to 6144 bytes are legal.
    pub blob: Vec<u8>,
    /// Commitment of the wrapped key: `HMAC(target, label)`, checked after unwrap.
    pub commitment: [u8; 32],
}

/// Everything a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeader {
    pub volume_id: VolumeId,
    pub file_id: FileId,
    pub suite: u16,
    /// Rises with every change of keys; readers take the highest that verifies.
    pub generation: u64,
    /// Plaintext bytes known durable: below it no hole is legal (unless HOLES_OK) and no shorter file is.
    pub size_floor: u64,
    /// Exact size where SEALED is set, else 0.
    pub sealed_size: u64,
    pub flags: u32,
    pub commitment: [u8; 32],
    /// Commitment of the previous DEK during a rekey, else zero.
    pub previous_commitment: [u8; 32],
    pub wrapped_dek: Option<WrappedDek>,
    pub slots: Vec<CmkSlot>,
}

/// Body of TLV 0xC001: 92 bytes.
#[derive(Encode, BorrowDecode)]
struct WrappedDekBody {
    branch_id: [u8; 16],
    salt: [u8; 16],
    wrapped: [u8; 60],
}

/// Body of TLV 0x8002. Borrows, so that decoding allocates nothing whatever the lengths claim.
#[derive(Encode, BorrowDecode)]
struct CmkSlotBody<'a> {
    commitment: [u8; 32],
    target: u8,
    provider: &'a str,
    key_ref: &'a str,
    blob: &'a [u8],
}

/// Fixed-width little-endian integers; lengths are u64; never more than one TLV body.
fn body_coding() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<{ u16::MAX as usize }>()
}

fn decode_body<'a, T: BorrowDecode<'a, ()>>(body: &'a [u8]) -> Result<T, HeaderError> {
    match bincode::borrow_decode_from_slice(body, body_coding()) {
        Ok((value, read)) if read == body.len() => Ok(value),
        _ => Err(HeaderError::Malformed("TLV body")),
    }
}

fn push_tlv(tlvs: &mut Vec<u8>, kind: u16, body: &impl Encode) -> Result<(), HeaderError> {
    let body =
        bincode::encode_to_vec(body, body_coding()).map_err(|_| HeaderError::Malformed("wrapped key too long"))?;
    let len = u16::try_from(body.len()).map_err(|_| HeaderError::Malformed("wrapped key too long"))?;
    tlvs.extend_from_slice(&kind.to_le_bytes());
    tlvs.extend_from_slice(&len.to_le_bytes());
    tlvs.extend_from_slice(&body);
    Ok(())
}

/// One TLV of a slot: `raw` is type, length and body.
struct Tlv<'a> {
    kind: u16,
    raw: &'a [u8],
    body: &'a [u8],
}

/// Splits the TLV area; type 0 ends it and only zeros may follow.
fn split_tlvs(mut area: &[u8]) -> Result<Vec<Tlv<'_>>, HeaderError> {
    let mut found = Vec::new();
    while let Some((head, rest)) = area.split_first_chunk::<TLV_HEADER>() {
        let kind = u16::from_le_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if kind == 0 {
            break;
        }
        let body = rest.get(..len).ok_or(HeaderError::Malformed("TLV length"))?;
        found.push(Tlv { kind, raw: &area[..TLV_HEADER + len], body });
        area = &rest[len..];
    }
    if is_hole(area) { Ok(found) } else { Err(HeaderError::Malformed("bytes after the last TLV")) }
}

/// What HMAC and origin tag cover: the fixed part, every TLV marked authenticated, and of each CMK slot its type and
/// commitment. Each piece tells its own length, so two different headers never give the same message.
fn authenticated_message(fixed: &[u8], tlvs: &[Tlv<'_>]) -> Vec<u8> {
    let mut message = fixed.to_vec();
    for tlv in tlvs {
        if tlv.kind & TLV_AUTHENTICATED != 0 {
            message.extend_from_slice(tlv.raw);
        } else if tlv.kind == TLV_CMK_SLOT {
            message.extend_from_slice(&tlv.kind.to_le_bytes());
            message.extend_from_slice(tlv.body.get(..32).unwrap_or_default());
        }
    }
    message
}

/// The number of pages per slot that the first page of a slot claims, for files whose volume file is lost.
/// Unauthenticated: `Unverified::parse` with that geometry decides.
pub fn claimed_pages(first_page: &[u8]) -> Option<u32> {
    if !first_page.starts_with(MAGIC) || first_page.len() < TLVS || u16_at(first_page, VERSION) != FORMAT_VERSION {
        return None;
    }
    Some(u32_at(first_page, HEADER_PAGES)).filter(|pages| (1..=MAX_HEADER_PAGES).contains(pages))
}

/// Whether a file's header area (slots A and B) holds no header that was ever made durable: it is all zero, or slot B is and
/// of slot A, longer than a page, a page never reached the disk. Says nothing where slot A is damaged otherwise.
pub fn was_never_durable(area: &[u8], geometry: Geometry) -> bool {
    let Some((a, b)) = area.split_at_checked(geometry.slot_len()) else { return false };
    let torn = || {
        let broken = matches!(Unverified::parse(a, geometry), Err(HeaderError::Magic | HeaderError::Checksum));
        broken && a.chunks(PAGE).any(is_hole)
    };
    is_hole(b) && (is_hole(a) || torn())
}

/// A slot that parsed and whose CRC holds; nothing in it is authentic yet.
pub struct Unverified {
    header: FileHeader,
    message: Vec<u8>,
    mac: [u8; 32],
    origin_tag: [u8; 32],
}

impl Unverified {
    /// Total and bounded: any input gives a value or an error, and what is allocated is a small multiple of the slot.
    pub fn parse(slot: &[u8], geometry: Geometry) -> Result<Self, HeaderError> {
        if slot.len() != geometry.slot_len() || slot.len() < TLVS + TRAILER {
            return Err(HeaderError::Malformed("slot length"));
        }
        if is_hole(slot) {
            return Err(HeaderError::Empty);
        }
        if !slot.starts_with(MAGIC) {
            return Err(HeaderError::Magic);
        }
        // Another version may keep its checksum elsewhere.
        match u16_at(slot, VERSION) {
            FORMAT_VERSION => {}
            other => return Err(HeaderError::Version(other)),
        }
        let trailer = &slot[slot.len() - TRAILER..];
        if crc32fast::hash(&slot[..slot.len() - 4]) != u32_at(trailer, TRAILER_CRC) {
            return Err(HeaderError::Checksum);
        }
        if u32_at(slot, HEADER_PAGES) != geometry.header_pages {
            return Err(HeaderError::Malformed("header pages differ from the volume's"));
        }
        if !is_hole(&slot[RESERVED_A..GENERATION])
            || !is_hole(&slot[RESERVED_B..TLVS])
            || !is_hole(&trailer[TRAILER_RESERVED..TRAILER_CRC])
        {
            return Err(HeaderError::Malformed("reserved bytes"));
        }

        let tlvs = split_tlvs(&slot[TLVS..slot.len() - TRAILER])?;
        let (wrapped_dek, slots) = read_tlvs(&tlvs)?;
        let header = FileHeader {
            volume_id: array_at(slot, VOLUME_ID),
            file_id: array_at(slot, FILE_ID),
            suite: u16_at(slot, SUITE),
            generation: u64_at(slot, GENERATION),
            size_floor: u64_at(slot, SIZE_FLOOR),
            sealed_size: u64_at(slot, SEALED_SIZE),
            flags: u32_at(slot, FLAGS),
            commitment: array_at(slot, COMMITMENT),
            previous_commitment: array_at(slot, PREVIOUS_COMMITMENT),
            wrapped_dek,
            slots,
        };
        header.check(geometry)?;
        Ok(Self {
            header,
            message: authenticated_message(&slot[..TLVS], &tlvs),
            mac: array_at(trailer, 0),
            origin_tag: array_at(trailer, TRAILER_ORIGIN),
        })
    }

    /// The claims, for choosing keys and for keyless display. Do not act on sizes before `verify`.
    pub fn claims(&self) -> &FileHeader {
        &self.header
    }

    /// Checks commitment, HMAC and (where `origin` is given) the origin tag.
    pub fn verify(self, keys: &FileKeys, origin: Option<&Secret32>) -> Result<FileHeader, HeaderError> {
        if !mac_eq(&self.header.commitment, &keys.commitment()) || !mac_eq(&self.mac, &keys.header_mac(&self.message)) {
            return Err(HeaderError::Auth);
        }
        if let Some(origin) = origin
            && !mac_eq(&self.origin_tag, &hmac_sha256(origin, &[&self.message]))
        {
            return Err(HeaderError::Origin);
        }
        Ok(self.header)
    }
}

/// The TLVs of this version; unknown ones are skipped unless they are critical.
fn read_tlvs(tlvs: &[Tlv<'_>]) -> Result<(Option<WrappedDek>, Vec<CmkSlot>), HeaderError> {
    let mut wrapped_dek = None;
    let mut slots = Vec::new();
    let mut targets = Vec::new();
    for tlv in tlvs {
        match tlv.kind {
            TLV_WRAPPED_DEK => {
                let WrappedDekBody { branch_id, salt, wrapped } = decode_body(tlv.body)?;
                if wrapped_dek.replace(WrappedDek { branch_id, salt, wrapped }).is_some() {
                    return Err(HeaderError::Malformed("two wrapped keys"));
                }
            }
            TLV_CMK_SLOT => {
                let body: CmkSlotBody<'_> = decode_body(tlv.body)?;
                targets.push(body.target);
                slots.push(CmkSlot {
                    provider: body.provider.to_owned(),
                    key_ref: body.key_ref.to_owned(),
                    blob: body.blob.to_owned(),
                    commitment: body.commitment,
                });
            }
            other if other & TLV_CRITICAL != 0 => return Err(HeaderError::Malformed("unknown critical TLV")),
            _ => {}
        }
    }
    if targets.iter().any(|t| *t != target_of(&wrapped_dek)) {
        return Err(HeaderError::Malformed("CMK slot for another kind of key"));
    }
    Ok((wrapped_dek, slots))
}

fn target_of(wrapped_dek: &Option<WrappedDek>) -> u8 {
    if wrapped_dek.is_some() { TARGET_BRANCH } else { TARGET_DEK }
}

impl CmkSlot {
    /// Whether the names in it are ones that a header may carry: they end up in logs and on terminals.
    pub fn is_well_formed(&self) -> bool {
        well_formed(&self.provider, &self.key_ref)
    }
}

impl FileHeader {
    /// What holds of every header, read or written.
    fn check(&self, geometry: Geometry) -> Result<(), HeaderError> {
        if self.suite != super::SUITE {
            return Err(HeaderError::Suite(self.suite));
        }
        if self.flags & !KNOWN_FLAGS != 0 {
            return Err(HeaderError::Malformed("unknown flags"));
        }
        if self.size_floor > geometry.max_size() || self.sealed_size > geometry.max_size() {
            return Err(HeaderError::Malformed("impossible size"));
        }
        if self.flags & FLAG_SEALED == 0 && self.sealed_size != 0 {
            return Err(HeaderError::Malformed("sealed size of a file that is not sealed"));
        }
        if self.flags & FLAG_REKEYING == 0 && self.previous_commitment != [0; 32] {
            return Err(HeaderError::Malformed("previous key of a file that is not being rekeyed"));
        }
        if !self.slots.iter().all(CmkSlot::is_well_formed) {
            return Err(HeaderError::Malformed("provider or key reference"));
        }
        Ok(())
    }

    /// One slot's bytes, `geometry.slot_len()` long. `origin`: the volume's origin key (zero tag where unknown).
    pub fn encode(
        &self,
        keys: &FileKeys,
        origin: Option<&Secret32>,
        geometry: Geometry,
    ) -> Result<Vec<u8>, HeaderError> {
        self.check(geometry)?;
        let tlvs = self.encode_tlvs()?;
        let len = geometry.slot_len();
        let needed = TLVS + tlvs.len() + TRAILER;
        if needed > len {
            let needed = u32::try_from(needed.div_ceil(PAGE)).unwrap_or(u32::MAX);
            return Err(HeaderError::TooLarge { needed, have: geometry.header_pages });
        }

        let mut slot = vec![0u8; len];
        let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(VERSION, &FORMAT_VERSION.to_le_bytes());
        put(SUITE, &self.suite.to_le_bytes());
        put(HEADER_PAGES, &geometry.header_pages.to_le_bytes());
        put(FLAGS, &self.flags.to_le_bytes());
        put(GENERATION, &self.generation.to_le_bytes());
        put(SIZE_FLOOR, &self.size_floor.to_le_bytes());
        put(SEALED_SIZE, &self.sealed_size.to_le_bytes());
        put(VOLUME_ID, &self.volume_id);
        put(FILE_ID, &self.file_id);
        put(COMMITMENT, &self.commitment);
        put(PREVIOUS_COMMITMENT, &self.previous_commitment);
        put(TLVS, &tlvs);

        let message = authenticated_message(&slot[..TLVS], &split_tlvs(&tlvs)?);
        let (body, trailer) = slot.split_at_mut(len - TRAILER);
        trailer[..TRAILER_ORIGIN].copy_from_slice(&keys.header_mac(&message));
        if let Some(origin) = origin {
            trailer[TRAILER_ORIGIN..TRAILER_RESERVED].copy_from_slice(&hmac_sha256(origin, &[&message]));
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(body);
        crc.update(&trailer[..TRAILER_CRC]);
        trailer[TRAILER_CRC..].copy_from_slice(&crc.finalize().to_le_bytes());
        Ok(slot)
    }

    fn encode_tlvs(&self) -> Result<Vec<u8>, HeaderError> {
        let mut tlvs = Vec::new();
        if let Some(dek) = &self.wrapped_dek {
            let body = WrappedDekBody { branch_id: dek.branch_id, salt: dek.salt, wrapped: dek.wrapped };
            push_tlv(&mut tlvs, TLV_WRAPPED_DEK, &body)?;
        }
        for slot in &self.slots {
            let body = CmkSlotBody {
                commitment: slot.commitment,
                target: target_of(&self.wrapped_dek),
                provider: &slot.provider,
                key_ref: &slot.key_ref,
                blob: &slot.blob,
            };
            push_tlv(&mut tlvs, TLV_CMK_SLOT, &body)?;
        }
        Ok(tlvs)
    }
}

// Callers give offsets inside a slot whose length they have checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests;
