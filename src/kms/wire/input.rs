//! A request's members after they were checked: typed access, wiped when dropped. Knows no operation.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

use super::{
    ApiError,
    shape::{self, Member},
};

/// Members that were checked against their shapes. A member of another type counts as absent.
pub struct Input(Map<String, Value>);

impl Input {
    pub fn new(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// An empty body stands for no members.
    pub fn parse(body: &[u8], members: &[Member]) -> Result<Self, ApiError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            shape::check(members, &Map::new())?;
            return Ok(Self(Map::new()));
        }
        // The parser's message could quote the body.
        let input: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|_| ApiError::new("SerializationException", "the body is not a JSON object"))?;
        let input = Self(input);
        shape::check(members, &input.0)?;
        Ok(input)
    }

    pub fn members(&self) -> &Map<String, Value> {
        &self.0
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A member that its operation requires.
    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.text(name).ok_or_else(|| absent(name))
    }

    pub fn integer(&self, name: &str) -> Option<i64> {
        let value = self.0.get(name)?;
        value.as_i64().or_else(|| value.as_f64().map(|n| n as i64))
    }

    pub fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Milliseconds since the epoch.
    pub fn time(&self, name: &str) -> Option<i64> {
        self.0.get(name)?.as_f64().map(|seconds| (seconds * 1000.0) as i64)
    }

    pub fn blob(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match BASE64.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(_) => Err(ApiError::new("SerializationException", "a member is not a base64 text")),
        }
    }

    pub fn required_blob(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        self.blob(name)?.ok_or_else(|| absent(name))
    }

    pub fn texts(&self, name: &str) -> Vec<&str> {
        self.0.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub fn structures(&self, name: &str) -> impl Iterator<Item = &Map<String, Value>> {
        self.0.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
    }

    pub fn structure(&self, name: &str) -> Option<&Map<String, Value>> {
        self.0.get(name)?.as_object()
    }

    pub fn pairs(&self, name: &str) -> BTreeMap<String, String> {
        self.0.get(name).map(pairs).unwrap_or_default()
    }
}

/// Text members of an object.
pub fn pairs(value: &Value) -> BTreeMap<String, String> {
    let members = value.as_object().into_iter().flatten();
    members.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn absent(name: &str) -> ApiError {
    ApiError::validation(format!("{name} is missing"))
}

impl Drop for Input {
    fn drop(&mut self) {
        for value in self.0.values_mut() {
            if let Value::String(text) = value {
                text.zeroize();
            }
        }
    }
}
