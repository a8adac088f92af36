//! The table of mounts.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What the kernel calls the type of our mounts.
const TYPE: &str = "fuse.dbfs";

/// A mounted dbfs volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbfsMount {
    /// Where the volume lives.
    pub volume: PathBuf,
    /// Where it is mounted.
    pub dir: PathBuf,
    /// Mounted for reading only.
    pub read_only: bool,
}

/// All mounted dbfs volumes that this process sees, in the order of their mounting.
pub fn dbfs_mounts() -> io::Result<Vec<DbfsMount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The dbfs volume mounted on `dir`: the latest, if several are.
pub fn mounted_on(dir: &Path) -> io::Result<Option<DbfsMount>> {
    Ok(dbfs_mounts()?.into_iter().rfind(|m| m.dir == dir))
}

/// Where the volume on `path` is mounted, as far as this process sees.
pub fn mount_of(path: &Path) -> Option<DbfsMount> {
    let path = path.canonicalize().ok()?;
    dbfs_mounts().ok()?.into_iter().rfind(|m| m.volume == path)
}

/// A line: "36 35 0:98 /root /where options optional... - type source options".
fn parse(table: &[u8]) -> Vec<DbfsMount> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<DbfsMount> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let (kind, source) = (fields.get(dash + 1)?, fields.get(dash + 2)?);
    let (dir, options) = (fields.get(4)?, fields.get(5)?);
    let read_only = options.split(|&b| b == b',').any(|o| o == b"ro");
    (*kind == TYPE.as_bytes()).then(|| DbfsMount { volume: unescape(source), dir: unescape(dir), read_only })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[4..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = bytes else { return None };
    Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
}

/// An absolute path for `dir` that a mount table would show. A mount whose daemon has died still
/// has one, and so has another user's mount, into which not even root may look.
pub fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match dir.canonicalize() {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::EACCES)) => {
            let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Err(e) };
            let parent = if parent.as_os_str().as_bytes().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_ours() {
        let table = b"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            36 21 0:98 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.dbfs /images/v\\0541 rw\n\
            37 21 0:99 / /mnt/c rw - fuse.sshfs host: rw\n\
            38 21 0:99 / /mnt/a\\040b noatime,ro - fuse.dbfs /dev/vdb rw\n\
            broken line\n\n39 21 0:1 /";
        let found = parse(table);
        let mount =
            |volume: &str, read_only| DbfsMount { volume: volume.into(), dir: "/mnt/a b".into(), read_only };
        assert_eq!(found, [mount("/images/v,1", false), mount("/dev/vdb", true)]);
    }

    #[test]
    fn escapes_at_the_end() {
        assert_eq!(unescape(b"a\\"), Path::new("a\\"));
        assert_eq!(unescape(b"a\\04"), Path::new("a\\04"));
        assert_eq!(unescape(b"\\134"), Path::new("\\"));
        assert_eq!(unescape(b"\\999"), Path::new("\\999"));
    }
}
