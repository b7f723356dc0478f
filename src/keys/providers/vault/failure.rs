//! What went wrong with a request, in the terms of `KeyError`, and the server's words made fit to show. Knows no request.

use crate::keys::KeyError;

/// As the variants of `KeyError`, before the key's name is put to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    Refused(String),
    Unreachable(String),
    BadBlob(String),
    Config(String),
}

impl Failure {
    pub fn about(self, key: &str) -> KeyError {
        let key = key.to_string();
        match self {
            Self::Refused(reason) => KeyError::Refused { key, reason },
            Self::Unreachable(reason) => KeyError::Unreachable { key, reason },
            Self::BadBlob(reason) => KeyError::BadBlob { key, reason },
            Self::Config(text) => KeyError::Config(format!("CMK {key}: {text}")),
        }
    }
}

/// Longest piece of a server's text in an error, in characters.
const WORDS_MAX: usize = 200;

/// A server's text on one line: bounded, without control characters.
pub fn words(text: &str) -> String {
    let mut out = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
            length += 1;
        }
        for c in word.chars() {
            if length >= WORDS_MAX {
                out.push('…');
                return out;
            }
            if c.is_control() || (!c.is_ascii() && !c.is_alphanumeric()) {
                out.extend(c.escape_unicode());
            } else {
                out.push(c);
            }
            length += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_text_is_bounded_and_printable() {
        assert_eq!(words("1 error occurred:\n\t* permission denied\n\n"), "1 error occurred: * permission denied");
        assert_eq!(words("a\u{1b}[2Jb\u{202e}c ü"), "a\\u{1b}[2Jb\\u{202e}c ü");
        assert_eq!(words(&"x".repeat(5000)).chars().count(), WORDS_MAX + 1);
        assert_eq!(words(""), "");
    }
}
