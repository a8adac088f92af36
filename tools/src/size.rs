//! Sizes as people write them.

/// Parses "4096", "16K", "8G", "1T", "64MiB": bytes, or powers of 1024.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = || format!("{text:?} is not a size; write it like 4096, 16K, 512M, 8G or 1T");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 16 EiB"))
}

/// Shows a size in the largest unit that keeps it exact, or with one digit behind the point.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (63 - (bytes | 1).leading_zeros()) / 10;
    let (whole, rest) = (bytes >> (10 * unit), bytes & ((1 << (10 * unit)) - 1));
    let name = UNITS[unit as usize];
    if rest == 0 {
        return format!("{whole} {name}");
    }
    let tenths = (u128::from(rest) * 10) >> (10 * unit);
    format!("{whole}.{tenths} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("4096", 4096),
            ("16K", 16 << 10),
            ("16k", 16 << 10),
            ("64MiB", 64 << 20),
            ("8G", 8 << 30),
            ("8GB", 8 << 30),
            ("1T", 1 << 40),
            ("15E", 15 << 60),
            ("512B", 512),
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1.5G", "-1", "16E", "1X", "1KK", "99999999999999999999", "1 G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (8 << 30, "8 GiB")];
        for (bytes, text) in cases {
            assert_eq!(show(bytes), text);
        }
        assert_eq!(show(u64::MAX), "15.9 EiB");
    }
}
