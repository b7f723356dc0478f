//! GenerateRandom. Knows no keys.

use data_encoding::BASE64;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::Call;
use crate::crypto::random;
use crate::kms::wire::ApiError;

pub fn generate_random(call: &Call<'_>) -> Result<Value, ApiError> {
    call.no_recipient()?;
    if call.input.has("CustomKeyStoreId") {
        return Err(ApiError::unsupported("Custom key stores are not supported by this service."));
    }
    call.allow_resource("*", "GenerateRandom", |context| context)?;
    let len = call.input.integer("NumberOfBytes").and_then(|n| usize::try_from(n).ok());
    let Some(len) = len else {
        return Err(ApiError::validation(
            "1 validation error detected: Value at 'numberOfBytes' failed to satisfy constraint: Member must not be null",
        ));
    };
    let mut bytes = Zeroizing::new(vec![0; len]);
    random::fill(&mut bytes);
    Ok(json!({"Plaintext": BASE64.encode(&bytes)}))
}
