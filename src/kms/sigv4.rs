//! Interim.
use zeroize::Zeroizing;

use super::wire::ApiError;
pub fn verify(parts: &hyper::http::request::Parts, body: &[u8], region: &str, lookup: &dyn Fn(&str) -> Option<Zeroizing<String>>) -> Result<String, ApiError> {
    use crate::crypto::kdf::mac_eq;
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};
    let bad = || ApiError::new("InvalidSignatureException", "The request signature we calculated does not match");
    let auth = parts.headers.get("authorization").and_then(|v| v.to_str().ok()).ok_or_else(|| ApiError::new("MissingAuthenticationTokenException", "Missing Authentication Token"))?;
    let field = |n: &str| auth.split([' ', ',']).find_map(|p| p.trim().strip_prefix(n)).map(str::to_owned);
    let cred = field("Credential=").ok_or_else(bad)?;
    let signed = field("SignedHeaders=").ok_or_else(bad)?;
    let sig = field("Signature=").ok_or_else(bad)?;
    let (id, scope) = cred.split_once('/').ok_or_else(bad)?;
    let date = parts.headers.get("x-amz-date").and_then(|v| v.to_str().ok()).ok_or_else(bad)?;
    let mut canon = format!("{}\n{}\n\n", parts.method, parts.uri.path());
    for h in signed.split(';') {
        canon += &format!("{h}:{}\n", parts.headers.get(h).and_then(|v| v.to_str().ok()).unwrap_or("").trim());
    }
    let hex = |b: &[u8]| data_encoding::HEXLOWER.encode(b);
    canon += &format!("\n{signed}\n{}", hex(&Sha256::digest(body)));
    let sts = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canon.as_bytes())));
    let secret = lookup(id).ok_or_else(|| ApiError::new("UnrecognizedClientException", "The security token included in the request is invalid."))?;
    let mac = |k: &[u8], d: &str| { let mut m = Hmac::<Sha256>::new_from_slice(k).unwrap(); m.update(d.as_bytes()); m.finalize().into_bytes().to_vec() };
    let mut k = mac(format!("AWS4{}", *secret).as_bytes(), scope.split('/').next().unwrap_or(""));
    for p in scope.split('/').skip(1) { k = mac(&k, p); }
    let _ = region;
    if mac_eq(hex(&mac(&k, &sts)).as_bytes(), sig.as_bytes()) { Ok(id.to_owned()) } else { Err(bad()) }
}
