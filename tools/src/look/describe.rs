//! Attributes as text and as JSON.

use fs_core::api::{Attr, FileType, Timestamp};
use serde_json::{Map, Value, json};

use super::{Entry, Look};
use crate::shown;

/// The letter of a type in `ls -l`.
pub fn letter(kind: FileType) -> char {
    match kind {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::BlockDevice => 'b',
        FileType::CharDevice => 'c',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
    }
}

/// The word for a type.
pub fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::BlockDevice => "block-device",
        FileType::CharDevice => "char-device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// Type and permission bits as `ls -l` has them: "drwxr-xr-x".
pub fn mode(attr: &Attr) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = String::from(letter(attr.kind));
    for (i, (bit, with_x, without)) in special.into_iter().enumerate() {
        let bits = attr.perm >> (6 - 3 * i);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (attr.perm & bit != 0, bits & 1 != 0) {
            (true, true) => with_x,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A time in UTC: "2026-11-22 04:30:00".
pub fn time(t: Timestamp) -> String {
    let (year, month, day) = date(t.secs.div_euclid(86_400));
    let second = t.secs.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970, in the Gregorian calendar. Counted from March, so that
/// the odd day of a leap year is the last one; 146,097 days are 400 years.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day_of_month)
}

/// Seconds since 1970 with nanoseconds, exact.
fn seconds(t: Timestamp) -> String {
    format!("{}.{:09}", t.secs, t.nanos)
}

/// Major and minor number of a device, in the form of the C library.
pub fn device_numbers(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xfff00)
}

/// The fields of an inode.
pub fn object(look: &Look, attr: &Attr) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.into(), value);
    put("ino", attr.ino.0.into());
    put("type", word(attr.kind).into());
    put("mode", format!("{:04o}", attr.perm).into());
    put("nlink", attr.nlink.into());
    put("uid", attr.uid.into());
    put("gid", attr.gid.into());
    put("size", attr.size.into());
    put("allocated", (attr.blocks * 512).into());
    put("atime", seconds(attr.atime).into());
    put("mtime", seconds(attr.mtime).into());
    put("ctime", seconds(attr.ctime).into());
    put("btime", seconds(attr.btime).into());
    if matches!(attr.kind, FileType::BlockDevice | FileType::CharDevice) {
        let (major, minor) = device_numbers(attr.rdev);
        put("device", json!({"major": major, "minor": minor}));
    }
    if attr.kind == FileType::Symlink {
        match look.link_target(attr.ino) {
            Ok(target) => shown::put(&mut fields, "target", &target),
            Err(e) => drop(fields.insert("error".into(), e.to_string().into())),
        }
    }
    fields
}

/// An entry of a directory: its name (or path) as `field`, and the inode or what is wrong with it.
pub fn entry_object(look: &Look, field: &str, name: &[u8], entry: &Entry) -> Map<String, Value> {
    let mut fields = Map::new();
    shown::put(&mut fields, field, name);
    match &entry.attr {
        Ok(attr) => fields.extend(object(look, attr)),
        Err(e) => {
            fields.insert("ino".into(), entry.ino.0.into());
            fields.insert("error".into(), e.to_string().into());
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_core::Ino;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |secs| time(Timestamp { secs, nanos: 0 });
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(-1), "1969-12-31 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_795_323_600), "2026-11-22 05:00:00");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00");
        at(i64::MIN);
        at(i64::MAX);
    }

    #[test]
    fn modes_are_those_of_ls() {
        let attr = |kind, perm| Attr {
            ino: Ino(1),
            generation: 0,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
        };
        assert_eq!(mode(&attr(FileType::Directory, 0o1777)), "drwxrwxrwt");
        assert_eq!(mode(&attr(FileType::Regular, 0o6640)), "-rwSr-S---");
        assert_eq!(mode(&attr(FileType::Regular, 0o4755)), "-rwsr-xr-x");
    }

    #[test]
    fn device_numbers_are_those_of_the_kernel() {
        assert_eq!(device_numbers(0x0000_0801), (8, 1));
        assert_eq!(device_numbers(0x0010_0102), (1, 0x102));
    }
}
