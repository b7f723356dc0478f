//! Checks a request against the members of its operation, and words what is wrong as the service does. Knows no operation.

use serde_json::{Map, Value};

use super::{ApiError, pattern::Pattern};

/// What a member may be. Lengths of texts are in UTF-16 units as the service counts (its Java strings), of blobs in bytes after decoding.
pub enum Kind {
    Text {
        min: usize,
        max: usize,
        pattern: Option<&'static Pattern>,
    },
    Choice(&'static [&'static str]),
    Blob {
        min: usize,
        max: usize,
    },
    Integer {
        min: i64,
        max: i64,
    },
    Flag,
    /// Seconds since the epoch, as a number.
    Time,
    /// Text to text, as an encryption context is.
    Pairs,
    List {
        item: &'static Kind,
        min: usize,
        max: usize,
    },
    Structure(&'static [Member]),
}

pub struct Member {
    pub name: &'static str,
    pub required: bool,
    pub kind: Kind,
}

/// The first mistake of type ends the check (SerializationException); broken constraints are collected into one
/// ValidationException.
pub fn check(members: &[Member], input: &Map<String, Value>) -> Result<(), ApiError> {
    let mut broken = Vec::new();
    structure(members, input, "", &mut broken)?;
    if broken.is_empty() {
        return Ok(());
    }
    let plural = if broken.len() == 1 { "" } else { "s" };
    Err(ApiError::validation(format!("{} validation error{plural} detected: {}", broken.len(), broken.join("; "))))
}

/// More complaints than this help nobody and could make a large answer out of a small request.
const BROKEN_MAX: usize = 20;

fn structure(
    members: &[Member],
    input: &Map<String, Value>,
    at: &str,
    broken: &mut Vec<String>,
) -> Result<(), ApiError> {
    for member in members {
        match input.get(member.name) {
            None | Some(Value::Null) => {
                if member.required && broken.len() < BROKEN_MAX {
                    broken.push(complaint("Value", &path(at, member.name), "Member must not be null"));
                }
            }
            Some(value) => one(&member.kind, value, &|| path(at, member.name), broken)?,
        }
    }
    Ok(())
}

fn one(kind: &Kind, value: &Value, at: &dyn Fn() -> String, broken: &mut Vec<String>) -> Result<(), ApiError> {
    let mut wrong = |shown: &str, what: String| {
        if broken.len() < BROKEN_MAX {
            broken.push(complaint(shown, &at(), &what));
        }
    };
    match (kind, value) {
        (Kind::Text { min, max, pattern }, Value::String(text)) => {
            let shown = quoted(text);
            if text.len() > *max || text.len() < *min {
                length(text.encode_utf16().count(), *min, *max, &shown, &mut wrong);
            }
            if let Some(pattern) = pattern
                && !(pattern.matches)(text)
            {
                wrong(&shown, format!("Member must satisfy regular expression pattern: {}", pattern.text));
            }
        }
        (Kind::Choice(known), Value::String(text)) => {
            if !known.contains(&text.as_str()) {
                wrong(&quoted(text), format!("Member must satisfy enum value set: [{}]", known.join(", ")));
            }
        }
        (Kind::Blob { min, max }, Value::String(text)) => {
            let len = decoded_len(text).ok_or_else(|| mismatch("a base64 text"))?;
            length(len, *min, *max, "Value", &mut wrong);
        }
        (Kind::Integer { min, max }, Value::Number(number)) => {
            // A client may write 7.0; a fraction is no integer.
            let number = number
                .as_i64()
                .or_else(|| number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64))
                .ok_or_else(|| mismatch("an integer"))?;
            let shown = format!("Value '{number}'");
            if number < *min {
                wrong(&shown, format!("Member must have value greater than or equal to {min}"));
            }
            if number > *max {
                wrong(&shown, format!("Member must have value less than or equal to {max}"));
            }
        }
        (Kind::Flag, Value::Bool(_)) => {}
        (Kind::Time, Value::Number(number)) => {
            if !number.as_f64().is_some_and(|n| n.is_finite() && n.abs() < 1e12) {
                return Err(mismatch("a time in seconds"));
            }
        }
        (Kind::Pairs, Value::Object(pairs)) => {
            if !pairs.values().all(Value::is_string) {
                return Err(mismatch("a map of texts"));
            }
        }
        (Kind::List { item, min, max }, Value::Array(items)) => {
            length(items.len(), *min, *max, "Value", &mut wrong);
            if items.len() <= *max {
                for (number, value) in items.iter().enumerate() {
                    one(item, value, &|| format!("{}.{}.member", at(), number + 1), broken)?;
                }
            }
        }
        (Kind::Structure(members), Value::Object(input)) => structure(members, input, &at(), broken)?,
        _ => return Err(mismatch(kind.noun())),
    }
    Ok(())
}

impl Kind {
    fn noun(&self) -> &'static str {
        match self {
            Self::Text { .. } | Self::Choice(_) => "a text",
            Self::Blob { .. } => "a base64 text",
            Self::Integer { .. } => "an integer",
            Self::Flag => "true or false",
            Self::Time => "a time in seconds",
            Self::Pairs => "a map of texts",
            Self::List { .. } => "a list",
            Self::Structure(_) => "a structure",
        }
    }
}

fn mismatch(wanted: &str) -> ApiError {
    ApiError::new("SerializationException", format!("a member is not {wanted}, as this operation's input has it"))
}

fn length(len: usize, min: usize, max: usize, shown: &str, wrong: &mut dyn FnMut(&str, String)) {
    if len < min {
        wrong(shown, format!("Member must have length greater than or equal to {min}"));
    }
    if len > max {
        wrong(shown, format!("Member must have length less than or equal to {max}"));
    }
}

fn complaint(shown: &str, at: &str, what: &str) -> String {
    format!("{shown} at '{at}' failed to satisfy constraint: {what}")
}

fn quoted(text: &str) -> String {
    const SHOWN: usize = 256;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("Value '{}...'", &text[..end]),
        None => format!("Value '{text}'"),
    }
}

/// Members are told with a small first letter.
fn path(at: &str, name: &str) -> String {
    let mut chars = name.chars();
    let small: String = chars.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(chars).collect();
    if at.is_empty() { small } else { format!("{at}.{small}") }
}

/// Bytes that a base64 text holds (RFC 4648, padded), without decoding it; `None` where its length or padding is wrong.
fn decoded_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let padding = bytes.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    Some(bytes.len() / 4 * 3 - padding)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kms::wire::pattern;

    const MEMBERS: &[Member] = &[
        Member { name: "KeyId", required: true, kind: Kind::Text { min: 1, max: 4, pattern: Some(&pattern::ALIAS) } },
        Member { name: "Limit", required: false, kind: Kind::Integer { min: 1, max: 1000 } },
        Member { name: "Plaintext", required: false, kind: Kind::Blob { min: 1, max: 3 } },
        Member { name: "Spec", required: false, kind: Kind::Choice(&["A", "B"]) },
        Member {
            name: "Tags",
            required: false,
            kind: Kind::List {
                item: &Kind::Structure(&[Member {
                    name: "TagKey",
                    required: true,
                    kind: Kind::Text { min: 1, max: 2, pattern: None },
                }]),
                min: 0,
                max: 2,
            },
        },
        Member { name: "Context", required: false, kind: Kind::Pairs },
    ];

    fn checked(value: Value) -> Result<(), ApiError> {
        check(MEMBERS, value.as_object().unwrap())
    }

    #[test]
    fn what_is_right_passes() {
        checked(json!({"KeyId": "abc", "Limit": 5, "Plaintext": "AAAA", "Spec": "B", "Tags": [{"TagKey": "a"}],
            "Context": {"a": "b"}, "Unknown": 7, "Other": null}))
        .unwrap();
        checked(json!({"KeyId": "abc", "Limit": 5.0})).unwrap();
    }

    #[test]
    fn texts_of_the_service() {
        let text = |value: Value| checked(value).unwrap_err().message.unwrap();
        assert_eq!(
            text(json!({})),
            "1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member must not be null"
        );
        assert_eq!(
            text(json!({"KeyId": "a", "Limit": 1001, "Plaintext": "AAAAAA=="})),
            "2 validation errors detected: Value '1001' at 'limit' failed to satisfy constraint: Member must have value \
             less than or equal to 1000; Value at 'plaintext' failed to satisfy constraint: Member must have length less \
             than or equal to 3"
        );
        assert!(text(json!({"KeyId": "a", "Spec": "C"})).ends_with("Member must satisfy enum value set: [A, B]"));
        assert!(
            text(json!({"KeyId": "a", "Tags": [{"TagKey": "a"}, {"TagKey": "abc"}]}))
                .contains("'tags.2.member.tagKey'")
        );
        assert!(text(json!({"KeyId": "ä"})).contains("regular expression pattern"));
    }

    #[test]
    fn wrong_types_do_not_reach_operations() {
        for bad in [
            json!({"KeyId": 1}),
            json!({"KeyId": "a", "Limit": "1"}),
            json!({"KeyId": "a", "Limit": 1.5}),
            json!({"KeyId": "a", "Limit": 1e300}),
            json!({"KeyId": "a", "Plaintext": "AAA"}),
            json!({"KeyId": "a", "Plaintext": "A==="}),
            json!({"KeyId": "a", "Tags": {}}),
            json!({"KeyId": "a", "Tags": ["x"]}),
            json!({"KeyId": "a", "Context": {"a": 1}}),
        ] {
            assert_eq!(checked(bad.clone()).unwrap_err().code, "SerializationException", "{bad}");
        }
    }

    #[test]
    fn a_small_request_makes_no_large_answer() {
        let long = "é".repeat(5000);
        let text = checked(json!({"KeyId": long})).unwrap_err().message.unwrap();
        assert!(text.len() < 2000);
    }
}
