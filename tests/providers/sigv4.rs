//! AWS Signature Version 4 over a POST of the JSON protocol, as a client makes it. Knows no server and no operation.

use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// An access key.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub id: String,
    pub secret: String,
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The header lines of one signed request to `host`, each with CR LF, without `Host` and `Content-Length`.
pub fn headers(credentials: &Credentials, region: &str, host: &str, operation: &str, body: &[u8]) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time: String = now.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let day = &time[..8];
    let target = format!("TrentService.{operation}");
    let content = "application/x-amz-json-1.1";
    let signed = "content-type;host;x-amz-date;x-amz-target";
    let canonical = format!(
        "POST\n/\n\ncontent-type:{content}\nhost:{host}\nx-amz-date:{time}\nx-amz-target:{target}\n\n{signed}\n{}",
        HEXLOWER.encode(&Sha256::digest(body))
    );
    let scope = format!("{day}/{region}/kms/aws4_request");
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", HEXLOWER.encode(&Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{}", credentials.secret).into_bytes();
    for part in [day, region, "kms", "aws4_request", &to_sign] {
        key = mac(&key, part);
    }
    format!(
        "Content-Type: {content}\r\nX-Amz-Date: {time}\r\nX-Amz-Target: {target}\r\nAuthorization: AWS4-HMAC-SHA256 \
         Credential={}/{scope}, SignedHeaders={signed}, Signature={}\r\n",
        credentials.id,
        HEXLOWER.encode(&key)
    )
}
