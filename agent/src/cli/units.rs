//! Numbers for humans. JSON has them raw.

/// Microseconds, as `870 µs`, `1.2 ms` or `3.4 s`; `-` for none.
pub(super) fn micros(us: u64) -> String {
    match us {
        0 => "-".into(),
        1..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", tenths(us, 1_000)),
        _ => format!("{} s", tenths(us, 1_000_000)),
    }
}

/// Nanoseconds, as `8.2 µs` if there are few of them, else as [`micros`].
pub(super) fn nanos(ns: u64) -> String {
    if ns < 100_000 { format!("{} µs", tenths(ns, 1_000)) } else { micros(ns / 1_000) }
}

/// An age, as `850ms`, `12s`, `3m12s`, `5h7m` or `2d3h`.
pub(super) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Bytes, as `512 B` or `3.4 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(size, _)| bytes >= *size);
    unit.map_or_else(|| format!("{bytes} B"), |(size, name)| format!("{} {name}", tenths(bytes, size)))
}

/// A count, as `1,234,567`.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A share from 0 to 1, as `12.5 %`.
pub(super) fn percent(share: f64) -> String {
    if share > 0.0 && share < 0.000_5 { "< 0.1 %".to_owned() } else { format!("{} %", (share * 1000.0).round() / 10.0) }
}

/// What callers say can't move the terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn tenths(value: u64, unit: u64) -> String {
    let tenths = u128::from(value) * 10 / u128::from(unit);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_few_digits_and_a_unit() {
        assert_eq!([0, 870, 1_234, 3_456_789].map(micros), ["-", "870 µs", "1.2 ms", "3.4 s"]);
        assert_eq!([0, 1_280, 98_304, 114_688, 5_242_880].map(nanos), ["0.0 µs", "1.2 µs", "98.3 µs", "114 µs", "5.2 ms"]);
        assert_eq!([850, 12_345, 192_000, 18_420_000, 183_600_000].map(age), ["850ms", "12s", "3m12s", "5h7m", "2d3h"]);
        assert_eq!([0, 1023, 1024, 3_565_158, u64::MAX].map(bytes), ["0 B", "1023 B", "1.0 KiB", "3.3 MiB", "16777215.9 TiB"]);
        assert_eq!([0.0, 0.00005, 0.125, 1.0 / 3.0, 1.0].map(percent), ["0 %", "< 0.1 %", "12.5 %", "33.3 %", "100 %"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
