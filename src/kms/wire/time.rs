//! Times on the wire and in the trail. Milliseconds since the epoch inside; knows no clock.

use serde_json::Value;

pub const DAY: i64 = 24 * 3600 * 1000;

/// Seconds since the epoch with a fraction, as the JSON protocol has timestamps.
pub fn seconds(millis: i64) -> Value {
    // 53 bits hold milliseconds for 280 000 years.
    serde_json::Number::from_f64(millis as f64 / 1000.0).map_or(Value::Null, Value::Number)
}

/// `2026-11-24T13:37:55Z` (RFC 3339, UTC).
pub fn rfc3339(millis: i64) -> String {
    let since = std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    // Beyond the year 9999 there is no such text; no clock that a service has gets there.
    let latest = std::time::Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since.min(latest)).to_string()
}

/// Milliseconds since the epoch of `2026-11-24`, `2026-11-24T13:37:55Z`, or of so long before `now`: `2h`, `7days`.
pub fn parse(text: &str, now: i64) -> Result<i64, String> {
    let millis = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| "before 1970".to_string())?;
        i64::try_from(since.as_millis()).map_err(|_| "too far away".to_string())
    };
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)));
    }
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    humantime::parse_rfc3339_weak(&full)
        .map_err(|_| format!("{text:?} is no time: write 2026-11-24, 2026-11-24T13:37:55Z, or an age such as 2h"))
        .and_then(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        assert_eq!(rfc3339(1_764_000_000_000), "2025-11-24T16:00:00Z");
        assert_eq!(parse("2025-11-24T16:00:00Z", 0), Ok(1_764_000_000_000));
        assert_eq!(parse("1970-01-02", 0), Ok(DAY));
        assert_eq!(parse("1day", 3 * DAY), Ok(2 * DAY));
        assert!(parse("soon", 0).is_err());
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(seconds(1500).to_string(), "1.5");
    }
}
