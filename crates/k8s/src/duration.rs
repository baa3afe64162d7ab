//! Durations as users write them.

use std::time::Duration;

/// A duration as Istio reads it: Go's notation (`1h30m`, `0.5s`, `100ms`), of at least a millisecond or zero.
pub(crate) fn istio(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: 1h30m, 10s, 0.5s or 500ms are");
    let mut left = text;
    let mut nanos: u128 = 0;
    if left == "0" {
        return Ok(Duration::ZERO);
    }
    // No more parts than there are units, and a few for who repeats one.
    for _ in 0..8 {
        let end = left.find(|one: char| !one.is_ascii_digit() && one != '.').unwrap_or(left.len());
        let (number, rest) = left.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if number.len() > 18 || (whole.is_empty() && part.is_empty()) || part.contains('.') {
            return Err(wrong());
        }
        let units: [(&str, u128); 7] = [
            ("ms", 1_000_000),
            ("us", 1000),
            ("µs", 1000),
            ("ns", 1),
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
        ];
        let unit = units.into_iter().find_map(|(unit, nanos)| Some((rest.strip_prefix(unit)?, nanos)));
        let (rest, unit) = unit.ok_or_else(wrong)?;
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        let scale = 10_u128.pow(u32::try_from(part.len()).map_err(|_| wrong())?);
        let part: u128 = if part.is_empty() { 0 } else { part.parse().map_err(|_| wrong())? };
        nanos += whole * unit + part * unit / scale;
        left = rest;
        if left.is_empty() {
            let whole = u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| wrong())?;
            return if whole.is_zero() || whole >= Duration::from_millis(1) { Ok(whole) } else { Err(wrong()) };
        }
    }
    Err(wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in [
            ("0s", 0),
            ("0", 0),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("0.5s", 500),
            (".25s", 250),
            ("1.5h", 5_400_000),
            ("1s1s", 2000),
            ("1000us", 1),
        ] {
            assert_eq!(istio(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "1", "s", "-1s", "1d", "1..5s", "1 s", "1S", ".s", "1ns", "99999999999999999h", "9999999999999999999s"]
        {
            assert!(istio(text).is_err(), "{text}");
        }
    }
}
