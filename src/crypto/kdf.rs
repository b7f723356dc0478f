//! HKDF-SHA256 (RFC 5869) with labels. Knows no key's purpose but the label it is given.

use super::secret::Secret32;

/// A pseudorandom key from which labelled sub-keys are expanded.
pub struct Prk(Secret32);

impl Prk {
    /// HKDF-Extract.
    pub fn extract(salt: &[u8], ikm: &Secret32) -> Self {
        let _ = (salt, ikm);
        todo!()
    }
    /// HKDF-Expand to 32 bytes; `parts` are concatenated as the info string, so each part must have a fixed length or be last.
    pub fn expand(&self, parts: &[&[u8]]) -> Secret32 {
        let _ = (parts, &self.0);
        todo!()
    }
}

/// HMAC-SHA256.
pub fn hmac_sha256(key: &Secret32, parts: &[&[u8]]) -> [u8; 32] {
    let _ = (key, parts);
    todo!()
}

/// Constant-time comparison of two MACs of equal length.
pub fn mac_eq(a: &[u8], b: &[u8]) -> bool {
    let _ = (a, b);
    todo!()
}
