//! Pages of lists: Limit and Marker in, Truncated and NextMarker out. Knows not what is listed.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::{ApiError, Input};

/// The part of `items` (in ascending order of `key`) that this request asked for, as members of its answer.
/// A marker names the last item of the page before, so that what is added or removed between two pages neither repeats nor hides others.
pub fn page<T>(
    input: &Input,
    default_limit: usize,
    member: &str,
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> &str,
    show: impl Fn(T) -> Value,
) -> Result<Map<String, Value>, ApiError> {
    let limit = input.integer("Limit").and_then(|n| usize::try_from(n).ok()).unwrap_or(default_limit);
    let after = input.text("Marker").map(decode).transpose()?;
    let mut rest = items.filter(|item| after.as_deref().is_none_or(|after| key(item) > after));
    let mut shown = Vec::new();
    let mut last = String::new();
    for item in rest.by_ref().take(limit) {
        last.clear();
        last.push_str(key(&item));
        shown.push(show(item));
    }
    let more = rest.next().is_some();
    let mut answer = Map::new();
    answer.insert(member.into(), Value::Array(shown));
    answer.insert("Truncated".into(), more.into());
    if more {
        answer.insert("NextMarker".into(), BASE64URL_NOPAD.encode(last.as_bytes()).into());
    }
    Ok(answer)
}

fn decode(marker: &str) -> Result<String, ApiError> {
    BASE64URL_NOPAD
        .decode(marker.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| ApiError::new("InvalidMarkerException", "Invalid marker provided."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(input: Value) -> Result<Value, ApiError> {
        let names: Vec<String> = (0..5).map(|n| format!("n{n}")).collect();
        let input = Input::new(input.as_object().unwrap().clone());
        page(&input, 100, "Names", names.iter(), |n| n.as_str(), |n| json!(n)).map(Value::Object)
    }

    #[test]
    fn pages_follow_each_other() {
        assert_eq!(ask(json!({})).unwrap(), json!({"Names": ["n0", "n1", "n2", "n3", "n4"], "Truncated": false}));
        let first = ask(json!({"Limit": 2})).unwrap();
        assert_eq!(first["Names"], json!(["n0", "n1"]));
        let second = ask(json!({"Limit": 3, "Marker": first["NextMarker"]})).unwrap();
        assert_eq!(second, json!({"Names": ["n2", "n3", "n4"], "Truncated": false}));
        assert_eq!(ask(json!({"Marker": "&"})).unwrap_err().code, "InvalidMarkerException");
    }
}
