//! Bytes on disk: geometry, blocks, headers, names, directory ids, sealed small objects, the volume file.
//! Pure: bytes in, bytes out, randomness passed in. Must not know files, descriptors or providers.
//! `doc/FORMAT.md` is the specification; golden vectors in `tests/vectors` hold both to it.

pub mod block;
mod dek_wrap;
pub mod dir_id;
pub mod geometry;
pub mod header;
mod key_ref;
pub mod names;
pub mod small;
pub mod volume;

pub use key_ref::{KeyGroup, KeyRef};

/// 16 random bytes that name a volume.
pub type VolumeId = [u8; 16];
/// 32 random bytes that name a file's content; the salt of its key derivation.
pub type FileId = [u8; 32];
/// 16 random bytes that name a branch key.
pub type BranchId = [u8; 16];
/// 16 random bytes that name a directory.
pub type DirId = [u8; 16];
/// Cipher suite 1: AES-256-GCM blocks, HKDF/HMAC-SHA256.
pub const SUITE_AES256_GCM: u16 = 1;
/// Content copied and not encrypted, everything else as in suite 1: for measuring what the cipher costs.
pub const SUITE_INSECURE_NULL: u16 = 0xff00;
/// The one suite that this build writes and reads; headers and volume files of another are refused.
pub const SUITE: u16 = if cfg!(feature = "insecure-null-cipher") { SUITE_INSECURE_NULL } else { SUITE_AES256_GCM };
/// Whether this build encrypts no content.
pub const NULL_CIPHER: bool = SUITE == SUITE_INSECURE_NULL;
