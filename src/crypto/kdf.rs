//! HKDF-SHA256 (RFC 5869) with labels, and HMAC-SHA256 (RFC 2104). Knows no key's purpose but the label it is given.

use std::convert::Infallible;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret::{Secret32, wiping_stack};

/// A pseudorandom key from which labelled sub-keys are expanded.
pub struct Prk(Secret32);

impl Prk {
    /// HKDF-Extract.
    pub fn extract(salt: &[u8], ikm: &Secret32) -> Self {
        Self(mac(salt, &[ikm.expose()]))
    }
    /// A key that is uniformly random already: RFC 5869 section 3.3 lets it skip the extract step.
    pub fn from_uniform(key: &Secret32) -> Self {
        Self(key.duplicate())
    }
    /// HKDF-Expand to 32 bytes; `parts` are concatenated as the info string, so each part must have a fixed length or be last.
    pub fn expand(&self, parts: &[&[u8]]) -> Secret32 {
        let Ok(key) = Secret32::written_by::<Infallible>(|out| {
            wiping_stack(|| {
                let hkdf = Hkdf::<Sha256>::from_prk(self.0.expose()).expect("a key of 32 bytes");
                hkdf.expand_multi_info(parts, out).expect("32 bytes are one step of HKDF");
            });
            Ok(())
        });
        key
    }
}

/// HMAC-SHA256 of the concatenated `parts`.
pub fn hmac_sha256(key: &Secret32, parts: &[&[u8]]) -> [u8; 32] {
    *mac(key.expose(), parts).expose()
}

/// Constant-time comparison of two MACs; unequal lengths are unequal MACs.
pub fn mac_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Secret32 {
    let Ok(secret) = Secret32::written_by::<Infallible>(|out| {
        wiping_stack(|| {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
            for part in parts {
                mac.update(part);
            }
            out.copy_from_slice(&mac.finalize().into_bytes());
        });
        Ok(())
    });
    secret
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    fn hex<const N: usize>(s: &str) -> [u8; N] {
        HEXLOWER.decode(s.as_bytes()).unwrap().try_into().unwrap()
    }

    /// RFC 5869 appendix A.1 has a 22-byte IKM, so its PRK stands in for the extract step; the first 32 bytes of its
    /// OKM are HKDF's first step, which is all that is used here.
    #[test]
    fn rfc5869_case_1_expand() {
        let prk = Prk(Secret32::from_bytes(hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")));
        let info: [u8; 10] = hex("f0f1f2f3f4f5f6f7f8f9");
        let okm = prk.expand(&[&info[..3], &info[3..]]);
        assert_eq!(HEXLOWER.encode(okm.expose()), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
    }

    /// RFC 5869 appendix A.1, extract step, through the same MAC that `extract` uses.
    #[test]
    fn rfc5869_case_1_extract() {
        let salt: [u8; 13] = hex("000102030405060708090a0b0c");
        let prk = mac(&salt, &[&[0x0b; 22]]);
        assert_eq!(HEXLOWER.encode(prk.expose()), "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
    }

    #[test]
    fn extract_matches_the_hkdf_crate() {
        let ikm = Secret32::from_bytes([9; 32]);
        let (prk, _) = Hkdf::<Sha256>::extract(Some(b"salt"), ikm.expose());
        assert_eq!(Prk::extract(b"salt", &ikm).0.expose()[..], prk[..]);
    }

    /// RFC 4231 test case 2 has a short key; test case 3 has a 20-byte one: HMAC pads both.
    #[test]
    fn rfc4231_cases_2_and_3() {
        let two = mac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(HEXLOWER.encode(two.expose()), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let three = mac(&[0xaa; 20], &[&[0xdd; 50]]);
        assert_eq!(HEXLOWER.encode(three.expose()), "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    }

    #[test]
    fn mac_comparison() {
        assert!(mac_eq(&[1; 12], &[1; 12]));
        assert!(!mac_eq(&[1; 12], &[2; 12]));
        assert!(!mac_eq(&[1; 12], &[1; 11]));
    }
}
