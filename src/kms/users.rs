//! Users of the account and their access keys: made, rotated, disabled. Knows no requests and no policies' meaning.

use data_encoding::{BASE32_NOPAD, BASE64};
use zeroize::Zeroizing;

use super::store::records::{AccessKeyRecord, UserRecord};
use super::store::sealing::StoreKeys;
use super::view::{ROOT, access_key_context};
use crate::crypto::random;

/// As in IAM.
pub const ACCESS_KEYS_MAX: usize = 2;
pub const USERS_MAX: usize = 5000;

/// Shown once.
pub struct NewAccessKey {
    pub id: String,
    pub secret: Zeroizing<String>,
}

/// An access key for `user`, wrapped for the store, and once in the open.
pub fn new_access_key(keys: &StoreKeys, user: &str, now: i64) -> (AccessKeyRecord, NewAccessKey) {
    // 20 characters as AWS has them: `AKIA` and 16 of base 32.
    let id = format!("AKIA{}", BASE32_NOPAD.encode(&random::array::<10>()));
    // 240 random bits make 40 characters of base 64.
    let bytes = Zeroizing::new(random::array::<30>());
    let secret = Zeroizing::new(BASE64.encode(&bytes[..]));
    let wrapped = BASE64.encode(&keys.wrap(&access_key_context(user, &id), secret.as_bytes()));
    (AccessKeyRecord { id: id.clone(), wrapped, created: now, active: true }, NewAccessKey { id, secret })
}

pub fn new_user(keys: &StoreKeys, name: &str, service: bool, now: i64) -> (UserRecord, NewAccessKey) {
    let (access_key, secret) = new_access_key(keys, name, now);
    let user = UserRecord {
        name: name.into(),
        created: now,
        service,
        enabled: true,
        access_keys: vec![access_key],
        policy: None,
    };
    (user, secret)
}

/// A user's name as IAM has it: up to 64 letters, digits and `+=,.@_-`; `root` is the account itself.
pub fn check_name(name: &str) -> Result<(), String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fine) {
        return Err(format!("{name:?} is no user name: up to 64 letters, digits and +=,.@_-"));
    }
    if name.eq_ignore_ascii_case(ROOT) {
        return Err("root is the account itself, which exists already".into());
    }
    Ok(())
}
