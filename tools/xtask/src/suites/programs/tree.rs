//! A tree of files of all kinds, and what it looks like from outside.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::XattrFlags;

use super::shell;
use crate::rng::Rng;

/// Makes `files` files in directories below `root`, with odd names, links, holes, modes and times.
pub fn make(root: &Path, files: u64, rng: &mut Rng) -> Result<()> {
    fs::create_dir(root)?;
    let mut dir = root.to_path_buf();
    for i in 0..files {
        if i % 25 == 0 {
            let parent = if rng.percent(40) { &dir } else { root };
            dir = parent.join(OsStr::from_bytes(&name(i, "d", rng)));
            fs::create_dir(&dir)?;
        }
        let path = dir.join(OsStr::from_bytes(&name(i, "f", rng)));
        match rng.range(0, 12) {
            0 => symlink(format!("../f{i} nowhere"), &path)?,
            1 => make_sparse(&path, rng)?,
            _ => fs::write(&path, content(rng.range(0, 60_000), rng))?,
        }
        if path.is_symlink() {
            continue;
        }
        if rng.percent(10) {
            fs::hard_link(&path, dir.join(format!("hard{i}")))?;
        }
        if rng.percent(20) {
            let value = content(rng.range(1, 300), rng);
            rustix::fs::setxattr(&path, "user.note", &value, XattrFlags::empty())?;
        }
        if rng.percent(20) {
            shell(
                &dir,
                &format!("setfacl -m u:{}:rw,g:{}:r -- \"$1\"", rng.range(1, 99), rng.range(1, 99)),
                &[&path],
            )?;
        }
        chown(&path, Some(rng.range(0, 3000) as u32), Some(rng.range(0, 3000) as u32))?;
        fs::set_permissions(&path, Permissions::from_mode(0o400 | rng.range(0, 0o7777) as u32))?;
        let time =
            UNIX_EPOCH + Duration::new(rng.range(1, 2_000_000_000), rng.range(0, 1_000_000_000) as u32);
        File::open(&path)?.set_modified(time)?;
    }
    Ok(())
}

/// Most are plain; some have blanks, line ends, or bytes that are no text.
fn name(i: u64, kind: &str, rng: &mut Rng) -> Vec<u8> {
    let odd: &[u8] = match rng.range(0, 20) {
        0 => b" with blanks ",
        1 => b"\nline",
        2 => b"\xff\xfe",
        3 => "\u{fc}ml\u{e4}ut".as_bytes(),
        4 => &[b'x'; 200],
        _ => b"",
    };
    [kind.as_bytes(), i.to_string().as_bytes(), odd].concat()
}

fn make_sparse(path: &Path, rng: &mut Rng) -> Result<()> {
    let file = File::create(path)?;
    for _ in 0..3 {
        file.write_all_at(&content(5000, rng), rng.range(0, 2 << 20))?;
    }
    file.set_len(3 << 20).context("cannot make a sparse file")
}

/// Bytes that do not repeat.
pub fn content(len: u64, rng: &mut Rng) -> Vec<u8> {
    let words = (0..len.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes());
    words.take(len as usize).collect()
}

/// Extended attributes and access control lists of every file.
pub fn labels(root: &Path) -> Result<String> {
    // find has them in an order of its own.
    shell(root, "find . -type f -print0 | sort -z | xargs -0 getfattr -d -m - -e hex -h --", &[])
}

/// A line for each file: path, type, mode, owner, links, size, times and link target. Directories take no
/// part in sizes and links: file systems differ there.
pub fn manifest(root: &Path) -> Result<String> {
    let line = "find . -mindepth 1 \\( -type d -printf '%P|%y|%m|%U|%G|%T@\\0' \\) \
                -o -printf '%P|%y|%m|%U|%G|%n|%s|%T@|%l\\0' | sort -z | tr '\\n\\0' '?\\n' | LC_ALL=C tr -d '\\200-\\377'";
    shell(root, line, &[])
}

/// Every byte of every file.
pub fn same_content(a: &Path, b: &Path) -> Result<()> {
    shell(Path::new("/"), "diff -r --no-dereference \"$1\" \"$2\"", &[a, b]).map(drop)
}
