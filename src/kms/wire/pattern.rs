//! The patterns that the service model sets for texts, each as its regular expression for messages and as a test. Knows no members.

/// `text` is shown in validation errors, so it is spelled as clients know it.
pub struct Pattern {
    pub text: &'static str,
    pub matches: fn(&str) -> bool,
}

fn all(text: &str, of: fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(of)
}

pub static ALIAS: Pattern = Pattern {
    text: "^[a-zA-Z0-9:/_-]+$",
    matches: |text| all(text, |b| b.is_ascii_alphanumeric() || b":/_-".contains(&b)),
};
pub static POLICY: Pattern = Pattern {
    text: "[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+",
    matches: |text| {
        !text.is_empty() && text.chars().all(|c| matches!(c, '\t' | '\n' | '\r') || ('\u{20}'..='\u{ff}').contains(&c))
    },
};
pub static POLICY_NAME: Pattern =
    Pattern { text: "[\\w]+", matches: |text| all(text, |b| b.is_ascii_alphanumeric() || b == b'_') };
pub static MARKER: Pattern =
    Pattern { text: "[\\u0020-\\u00FF]*", matches: |text| text.chars().all(|c| ('\u{20}'..='\u{ff}').contains(&c)) };
pub static PRINCIPAL: Pattern = Pattern {
    text: "^[\\w+=,.@:/-]+$",
    matches: |text| all(text, |b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b)),
};
pub static SERVICE_PRINCIPAL: Pattern = Pattern {
    text: "^([A-Za-z0-9\\-]+)\\.([A-Za-z0-9\\-]+)(\\.[A-Za-z0-9\\-]+)+$",
    matches: |text| {
        text.split('.').count() >= 3
            && text.split('.').all(|part| all(part, |b| b.is_ascii_alphanumeric() || b == b'-'))
    },
};
pub static MATERIAL_ID: Pattern =
    Pattern { text: "^[a-f0-9]+$", matches: |text| all(text, |b| matches!(b, b'a'..=b'f' | b'0'..=b'9')) };
pub static MATERIAL_DESCRIPTION: Pattern = Pattern {
    text: "^[a-zA-Z0-9:/_\\s.-]+$",
    matches: |text| {
        all(text, |b| b.is_ascii_alphanumeric() || b":/_.-".contains(&b) || matches!(b, b' ' | b'\t' | b'\n' | b'\r'))
    },
};
pub static REGION: Pattern = Pattern {
    text: "^([a-z]+-){2,3}\\d+$",
    matches: |text| {
        let parts: Vec<&str> = text.split('-').collect();
        (3..=4).contains(&parts.len())
            && parts[..parts.len() - 1].iter().all(|part| all(part, |b| b.is_ascii_lowercase()))
            && all(parts[parts.len() - 1], |b| b.is_ascii_digit())
    },
};
pub static SOURCE_ARN: Pattern = Pattern {
    text: "^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$",
    matches: |text| {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().unwrap_or("");
        let word = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let (arn, partition, service, region, account, rest) = (next(), next(), next(), next(), next(), next());
        arn == "arn"
            && partition.strip_prefix("aws").is_some_and(word)
            && !service.is_empty()
            && word(service)
            && word(region)
            && account.len() == 12
            && all(account, |b| b.is_ascii_digit())
            && !rest.is_empty()
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_they_say() {
        for (pattern, good, bad) in [
            (&ALIAS, &["alias/a_B-9/x:y"][..], &["", "alias/ä", "alias/ x"][..]),
            (&POLICY, &["{ \"ü\" }\n"], &["", "\u{100}", "\u{1}"]),
            (&POLICY_NAME, &["default"], &["a-b", ""]),
            (&MARKER, &["", "AB="], &["\n"]),
            (&PRINCIPAL, &["arn:aws:iam::123456789012:user/a+b@c"], &["", "*", "a b"]),
            (&SERVICE_PRINCIPAL, &["mount.envelopefs.local"], &["a.b", "a..b.c", "a.b.c_"]),
            (&MATERIAL_ID, &["0af"], &["0AF", "g"]),
            (&MATERIAL_DESCRIPTION, &["first import, no".split(',').next().unwrap_or("")], &["a,b", ""]),
            (&REGION, &["us-east-1", "us-gov-west-1"], &["us-1", "US-east-1", "us-east-x", "local"]),
            (
                &SOURCE_ARN,
                &["arn:aws:s3:us-east-1:123456789012:x", "arn:aws-cn:s3::123456789012:x"],
                &["arn:aws:s3:::x", "x"],
            ),
        ] {
            for text in good {
                assert!((pattern.matches)(text), "{} refuses {text:?}", pattern.text);
            }
            for text in bad {
                assert!(!(pattern.matches)(text), "{} takes {text:?}", pattern.text);
            }
        }
    }
}
