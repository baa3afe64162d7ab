//! A point of time as text, by the letters of `strftime` that access logs are written with.

use std::fmt::Write as _;

/// Envoy's default: `2026-11-22T08:00:00.000Z`.
pub(super) const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

/// Writes a time, microseconds since 1970, in UTC. `Err` has what is not known.
pub(super) fn write(format: &str, micros: i64) -> Result<String, String> {
    let seconds = micros.div_euclid(1_000_000);
    let micros = micros.rem_euclid(1_000_000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, date) = civil(day);
    let mut text = String::new();
    let mut left = format.chars();
    while let Some(next) = left.next() {
        if next != '%' {
            text.push(next);
            continue;
        }
        let letter = left.next().ok_or_else(|| "%".to_owned())?;
        // Writing to a text cannot fail.
        let _ = match letter {
            'Y' => write!(text, "{year:04}"),
            'm' => write!(text, "{month:02}"),
            'd' => write!(text, "{date:02}"),
            'H' => write!(text, "{:02}", second / 3600),
            'M' => write!(text, "{:02}", second / 60 % 60),
            'S' => write!(text, "{:02}", second % 60),
            'F' => write!(text, "{year:04}-{month:02}-{date:02}"),
            'T' => write!(text, "{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60),
            'z' => write!(text, "+0000"),
            'Z' => write!(text, "UTC"),
            's' => write!(text, "{seconds}"),
            'f' => write!(text, "{micros:06}000"),
            digit @ '1'..='9' => {
                if left.next() != Some('f') {
                    return Err(format!("%{digit}"));
                }
                let nanos = format!("{micros:06}000");
                let digits = digit.to_digit(10).and_then(|digits| usize::try_from(digits).ok()).unwrap_or(9);
                text.extend(nanos.chars().take(digits));
                Ok(())
            }
            '%' => write!(text, "%"),
            other => return Err(format!("%{other}")),
        };
    }
    Ok(text)
}

/// Year, month and day of a day since 1970 (H. Hinnant, «chrono-compatible low-level date algorithms»).
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_part = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month_part + 2) / 5 + 1;
    let month = if month_part < 10 { month_part + 3 } else { month_part - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, date)
}
