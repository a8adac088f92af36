//! `dbfs ls`, `tree`, `stat`, `cat`, `cp` and `df`: from outside, on a volume whose daemon was killed, so
//! that the journal has to be replayed for them.
//!
//! Needs root and /dev/fuse.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

mod common;

use common::{Volume, is_mounted};

/// A name with a character that clears the screen, one that is not UTF-8, and a line end.
const HOSTILE: &[u8] = b"a\x1b[2J\xff\nb";

/// Fills a volume, syncs, and kills the daemon.
fn crashed() -> Volume {
    let v = Volume::made();
    let mut daemon = v.foreground();
    fill(&v.mnt());
    for entry in fs::read_dir(v.mnt().join("d")).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            File::open(entry.path()).unwrap().sync_all().unwrap();
        }
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(Command::new("umount").args(["-i", "-l"]).arg(v.mnt()).status().unwrap().success());
    assert!(!is_mounted(&v.mnt()));
    v
}

fn fill(root: &Path) {
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/small"), b"small content\n").unwrap();
    let big = File::create(root.join("d/big")).unwrap();
    big.write_all_at(&content(), 3 << 20).unwrap();
    big.set_len(1 << 30).unwrap();
    fs::write(root.join("d").join(OsStr::from_bytes(HOSTILE)), b"hostile").unwrap();
    fs::write(root.join(".hidden"), b"").unwrap();
    fs::hard_link(root.join("d/small"), root.join("d/second")).unwrap();
    symlink("small", root.join("d/link")).unwrap();
    symlink("/d/../d", root.join("to-d")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    assert!(Command::new("mkfifo").arg(root.join("d/fifo")).status().unwrap().success());
    fs::set_permissions(root.join("d/small"), Permissions::from_mode(0o4751)).unwrap();
    chown(root.join("d/big"), Some(1234), Some(5678)).unwrap();
    for name in ["d", "d/small"] {
        rustix::fs::setxattr(root.join(name), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    big.set_times(fs::FileTimes::new().set_modified(old)).unwrap();
}

fn content() -> Vec<u8> {
    (0..500_000u32).map(|i| (i * 7 % 253) as u8).collect()
}

fn image_bytes(v: &Volume) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(v.image()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn stdout(v: &Volume, args: &[&str]) -> Vec<u8> {
    let output = v.command(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn json(v: &Volume, args: &[&str]) -> Value {
    serde_json::from_slice(&stdout(v, args)).unwrap()
}

#[test]
fn looking_changes_nothing_and_sees_what_the_journal_has() {
    let v = crashed();
    let before = image_bytes(&v);
    assert_eq!(stdout(&v, &["ls", "IMAGE"]), b"d\nloop\nto-d\n");
    assert_eq!(stdout(&v, &["ls", "-a", "IMAGE", "to-d/."]).iter().filter(|&&b| b == b'\n').count(), 7);
    let long = String::from_utf8_lossy(&stdout(&v, &["ls", "-l", "IMAGE", "/d"])).into_owned();
    assert!(long.contains("-rwsr-x--x   2     0     0           14 "), "{long}");
    assert!(long.contains(" 2001-09-09 01:46:40 big\n") && long.contains("link -> small\n"), "{long}");
    assert!(stdout(&v, &["tree", "IMAGE"]).ends_with(b"loop -> loop\n  to-d -> /d/../d\n"));
    assert_eq!(stdout(&v, &["cat", "IMAGE", "to-d/link", "/d/second"]), b"small content\nsmall content\n");
    let big = stdout(&v, &["cat", "IMAGE", "d/big"]);
    let (start, end) = (3 << 20, (3 << 20) + content().len());
    assert!(big.len() == 1 << 30 && big[start..end] == content());
    assert!(big[..start].iter().chain(&big[end..]).all(|&b| b == 0));
    let stat = String::from_utf8(stdout(&v, &["stat", "IMAGE", "d/big"])).unwrap();
    assert!(stat.contains("size: 1073741824 bytes") && stat.contains("user 1234, group 5678"), "{stat}");
    assert!(stat.contains("modify: 2001-09-09 01:46:40.123456789 UTC"), "{stat}");
    assert!(String::from_utf8(stdout(&v, &["df", "IMAGE"])).unwrap().contains("volume.img"));
    v.fails(&["cat", "IMAGE", "/d/nothing"], 1, &["/d/nothing", "No such file"]);
    v.fails(&["cat", "IMAGE", "/d"], 1, &["/d", "directory"]);
    v.fails(&["cat", "IMAGE", "/loop"], 1, &["/loop", "ymbolic links"]);
    v.fails(&["ls", "nowhere"], 1, &["nowhere"]);
    assert!(image_bytes(&v) == before, "the image has changed");
}

#[test]
fn copies_have_content_attributes_links_and_holes() {
    let v = crashed();
    let before = image_bytes(&v);
    let out = v.dir.path().join("out");
    v.ok(&["cp", "-a", "IMAGE", "/", out.to_str().unwrap()]);
    assert!(image_bytes(&v) == before, "the image has changed");
    assert_eq!(fs::read(out.join("d/small")).unwrap(), b"small content\n");
    assert_eq!(fs::read(out.join("d").join(OsStr::from_bytes(HOSTILE))).unwrap(), b"hostile");
    let meta = |name: &str| fs::symlink_metadata(out.join("d").join(name)).unwrap();
    assert_eq!(meta("small").mode() & 0o7777, 0o4751);
    assert_eq!(meta("small").ino(), meta("second").ino());
    for name in ["d", "d/small"] {
        let mut value = [0; 10];
        let n = rustix::fs::getxattr(out.join(name), "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"kept");
    }
    assert_eq!((meta("big").uid(), meta("big").gid(), meta("big").len()), (1234, 5678, 1 << 30));
    assert_eq!((meta("big").mtime(), meta("big").mtime_nsec()), (1_000_000_000, 123_456_789));
    assert!(meta("big").blocks() * 512 < 1 << 20, "the holes are gone");
    let mut found = vec![0; content().len()];
    File::open(out.join("d/big")).unwrap().read_exact_at(&mut found, 3 << 20).unwrap();
    assert!(found == content());
    assert_eq!(fs::read_link(out.join("d/link")).unwrap(), Path::new("small"));
    assert!(meta("fifo").file_type().is_fifo());
    // Again, over what is there, and a file under a new name.
    v.ok(&["cp", "-r", "IMAGE", "d/small", "d/big", out.to_str().unwrap()]);
    v.ok(&["cp", "IMAGE", "d/link", out.join("renamed").to_str().unwrap()]);
    assert_eq!(fs::read(out.join("renamed")).unwrap(), b"small content\n");
    assert_eq!(fs::metadata(out.join("renamed")).unwrap().mode() & 0o7000, 0);
    v.fails(&["cp", "IMAGE", "d", out.to_str().unwrap()], 1, &["d: is a directory"]);
    v.fails(&["cp", "-r", "IMAGE", "d", out.to_str().unwrap()], 1, &["d/fifo", "-a"]);
    v.fails(&["cp", "IMAGE", "d/small", "/nowhere/at/all"], 1, &["/nowhere"]);
}

/// Of a user with his own rights: version 2, then tag, rights and number of each entry.
fn access_list() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1234), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// From one volume through its mount, out of it with `dbfs cp -a`, onto the mount of another.
#[test]
fn attributes_of_links_and_special_files_are_copied_too() {
    use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
    let (v, other) = (Volume::made(), Volume::made());
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    symlink("nowhere", v.mnt().join("link")).unwrap();
    assert!(Command::new("mkfifo").arg(v.mnt().join("fifo")).status().unwrap().success());
    let list = access_list();
    let kept: [(&str, &str, &[u8]); 4] = [
        ("link", "trusted.note", b"of the link"),
        ("link", "security.note", b"also"),
        ("fifo", "trusted.note", b"of the fifo"),
        ("fifo", "system.posix_acl_access", &list),
    ];
    for (name, attribute, value) in kept {
        lsetxattr(v.mnt().join(name), attribute, value, XattrFlags::empty()).unwrap();
    }
    v.ok(&["umount", "MNT"]);
    other.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    v.ok(&["cp", "-a", "IMAGE", "/", other.mnt().to_str().unwrap()]);
    for (name, attribute, value) in kept {
        let mut found = [0; 100];
        let n = lgetxattr(other.mnt().join(name), attribute, &mut found[..]).unwrap();
        assert_eq!(&found[..n], value, "{name} {attribute}");
    }
    let mode = fs::symlink_metadata(other.mnt().join("fifo")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o640);
    other.ok(&["umount", "MNT"]);
}

/// As with `| head`: the reader is gone before all is said.
#[test]
fn a_closed_pipe_ends_each_command_quietly() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::write(v.mnt().join("big"), content()).unwrap();
    // More than fits a buffer.
    (0..300).for_each(|i| drop(File::create(v.mnt().join(format!("{i:0>100}"))).unwrap()));
    v.ok(&["umount", "MNT"]);
    let out = v.dir.path().join("out");
    let lines = [
        "info IMAGE",
        "dump IMAGE superblock",
        "dump IMAGE slots",
        "dump IMAGE journal",
        "dump IMAGE inode 1",
        "dump IMAGE tree",
        "dump IMAGE bitmap",
        "ls -l IMAGE",
        "tree IMAGE",
        "stat IMAGE /big",
        "cat IMAGE /big /big",
        "cp -r IMAGE /big OUT",
        "df IMAGE",
        "fsck -n IMAGE",
        "--help",
    ];
    let with_json = lines[..14].iter().map(|l| format!("{l} --json"));
    for line in lines.iter().map(|l| (*l).to_owned()).chain(with_json) {
        let line = line.replace("OUT", out.to_str().unwrap());
        let mut command = v.command(&line.split(' ').collect::<Vec<_>>());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{line}: {}: {said}", output.status);
    }
    // With `2>&1 |`, there is no place for messages either.
    for (line, code) in
        [("stat IMAGE /none /big", 1), ("cat IMAGE /none", 1), ("fsck IMAGE", 0), ("ls IMAGE /none", 1)]
    {
        let mut command = v.command(&line.split(' ').collect::<Vec<_>>());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let status = command.stdout(writer.try_clone().unwrap()).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{line}");
    }
}

#[test]
fn copies_never_leave_their_target_through_links() {
    let v = crashed();
    let out = v.dir.path().join("out");
    let outside = v.dir.path().join("outside");
    fs::create_dir_all(&out).unwrap();
    fs::create_dir(&outside).unwrap();
    // As if the volume had a link and a directory of one name.
    symlink(&outside, out.join("d")).unwrap();
    v.fails(&["cp", "-r", "IMAGE", "d", out.to_str().unwrap()], 1, &["cannot write"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    symlink(outside.join("new"), out.join("small")).unwrap();
    v.fails(&["cp", "-r", "IMAGE", "d/small", out.to_str().unwrap()], 1, &["cannot write"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn hostile_names_are_raw_for_programs_escaped_for_people_and_exact_in_json() {
    let v = crashed();
    assert!(stdout(&v, &["ls", "IMAGE", "d"]).starts_with(HOSTILE));
    // On a terminal, which script(1) makes.
    let program = env!("CARGO_BIN_EXE_dbfs");
    let line = format!("{program} ls {image} d; {program} tree {image}", image = v.image().display());
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("$'a\\x1b[2J\\xff\\nb'").count(), 2, "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
    let hex: String = HOSTILE.iter().map(|b| format!("{b:02x}")).collect();
    for (command, list, field) in [("ls", "entries", "name"), ("tree", "entries", "path")] {
        let found = json(&v, &[command, "--json", "IMAGE", "d"]);
        let items = found[list].as_array().unwrap();
        let hostile: Vec<_> = items.iter().filter_map(|e| e[format!("{field}_hex")].as_str()).collect();
        assert_eq!(hostile.len(), 1, "{found}");
        assert!(hostile[0].ends_with(&hex));
        let small = items.iter().find(|e| e[field].as_str().unwrap().ends_with("small")).unwrap();
        assert_eq!(
            (&small["size"], &small["mode"], &small["nlink"]),
            (&14.into(), &"4751".into(), &2.into())
        );
    }
    // Errors name the file, and go to a terminal as well.
    let missing = OsStr::from_bytes(b"no\x1b[2Jsuch");
    let output = v.command(&["stat", "IMAGE"]).arg(missing).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.contains(&0x1b), "{output:?}");
}

#[test]
fn everything_speaks_json() {
    let v = crashed();
    let stat = json(&v, &["stat", "--json", "IMAGE", "d/big", "d/link"]);
    assert_eq!(stat["files"][0]["mtime"], "1000000000.123456789");
    assert_eq!(
        (&stat["files"][1]["type"], &stat["files"][1]["target"]),
        (&"symlink".into(), &"small".into())
    );
    let cat = json(&v, &["cat", "--json", "IMAGE", "d/small"]);
    assert_eq!(cat["files"][0]["content"], "small content\n");
    v.fails(&["cat", "--json", "IMAGE", "d/big"], 1, &["64 MiB"]);
    let out = v.dir.path().join("out");
    let cp = json(&v, &["cp", "-a", "--json", "IMAGE", "d", out.to_str().unwrap()]);
    assert_eq!((&cp["directories"], &cp["symlinks"], &cp["special"]), (&1.into(), &1.into(), &1.into()));
    assert_eq!(cp["errors"], Value::Array(Vec::new()));
    let df = json(&v, &["df", "--json", "IMAGE"]);
    let volume = &df["volumes"][0];
    let bytes = |field: &str| volume[field].as_u64().unwrap();
    assert_eq!(bytes("size_bytes"), bytes("used_bytes") + bytes("free_bytes"));
    assert_eq!(volume["mounted_on"], Value::Null);
}

#[test]
fn df_knows_mounted_volumes_by_volume_directory_and_file() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    let f: PathBuf = v.mnt().join("f");
    fs::write(&f, vec![1; 1 << 20]).unwrap();
    File::open(&f).unwrap().sync_all().unwrap();
    for place in [v.image(), v.mnt(), f] {
        let df = json(&v, &["df", "--json", place.to_str().unwrap()]);
        assert_eq!(df["volumes"][0]["mounted_on"], v.mnt().to_str().unwrap());
        assert_eq!(df["volumes"][0]["volume"], v.image().to_str().unwrap());
        assert!(df["volumes"][0]["used_bytes"].as_u64().unwrap() >= 1 << 20);
    }
    // Without an argument it is about all mounts of the machine: that of another test may be going away just now.
    let all = v.command(&["df"]).output().unwrap();
    assert!(String::from_utf8_lossy(&all.stdout).contains(v.mnt().to_str().unwrap()), "{all:?}");
    v.ok(&["umount", "MNT"]);
    v.fails(&["df", v.dir.path().to_str().unwrap()], 1, &["not on a mounted dbfs volume"]);
}
