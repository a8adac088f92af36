//! A user who is not root mounts an image of his own, through `fusermount3`.
//!
//! Needs root (to become that user), /dev/fuse and package fuse3.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

mod common;

use common::{expecting, is_mounted, patient};

/// "nobody" on every system.
const USER: u32 = 65534;

/// A directory of the user's, with the program, an image and a place to mount it.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        // As udev does on every system that has it.
        fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).unwrap();
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(home.mnt()).unwrap();
        // The build's directory may be closed to the user. Another process copies: this one's threads fork,
        // and a child that still has the copy open for writing would keep it from being run (ETXTBSY).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_dbfs")).arg(home.path("dbfs")).status();
        assert!(copied.unwrap().success());
        for path in [home.path(""), home.mnt()] {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
        home.ok(&["mkfs", "--size", "64M", "IMAGE"]);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// Any program as the user.
    fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.uid(USER).gid(USER).current_dir("/").stdin(Stdio::null());
        command
    }

    fn dbfs(&self, args: &[&str]) -> Command {
        let mut command = self.program(self.path("dbfs").to_str().unwrap());
        let log = format!("log={}", self.path("log").display());
        for arg in args {
            match *arg {
                "IMAGE" => command.arg(self.path("volume.img")),
                "MNT" => command.arg(self.mnt()),
                other => command.arg(other.replace("LOG", &log)),
            };
        }
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String) {
        let output = self.dbfs(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("not killed"), String::from_utf8(text).unwrap())
    }

    fn ok(&self, args: &[&str]) {
        let (code, text) = patient(|| self.run(args));
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        assert_eq!(code, 0, "{args:?}: {text}\n{log}");
    }

    fn fails(&self, args: &[&str], wanted: i32, words: &[&str]) {
        let (code, text) = expecting(words, || self.run(args));
        assert_eq!(code, wanted, "{args:?}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is missing in: {text}"));
    }

    /// A shell line of the user's in the mount.
    fn shell(&self, line: &str) -> bool {
        self.program("sh")
            .args(["-c", line])
            .current_dir("/")
            .env("MNT", self.mnt())
            .status()
            .unwrap()
            .success()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if is_mounted(&self.mnt()) {
            let _ = Command::new("umount").args(["-i", "-l"]).arg(self.mnt()).status();
        }
    }
}

#[test]
fn a_user_mounts_uses_and_unmounts_his_own_image() {
    let home = Home::new();
    home.ok(&["mount", "-o", "LOG,noexec", "IMAGE", "MNT"]);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(1) == home.mnt().to_str()).unwrap();
    assert!(line.starts_with(home.path("volume.img").to_str().unwrap()), "{line}");
    for word in ["fuse.dbfs", "nosuid", "nodev", "noexec", "user_id=65534", "default_permissions"] {
        assert!(line.contains(word), "{line}");
    }
    assert!(home.shell("mkdir $MNT/d && echo mine >$MNT/d/f && test $(stat -c %u $MNT/d/f) = 65534"));
    // It is his alone: not even root gets in.
    assert!(fs::metadata(home.mnt().join("d")).is_err());
    assert!(
        home.shell(
            "exec 9>$MNT/busy; ! $0 umount $MNT 2>/dev/null"
                .replace("$0", home.path("dbfs").to_str().unwrap())
                .as_str()
        )
    );
    home.ok(&["umount", "MNT"]);
    assert!(!is_mounted(&home.mnt()));
    home.ok(&["fsck", "-n", "IMAGE"]);
    home.ok(&["mount", "-o", "LOG,ro", "IMAGE", "MNT"]);
    assert!(home.shell("test \"$(cat $MNT/d/f)\" = mine && ! touch $MNT/g 2>/dev/null"));
    home.ok(&["umount", "MNT"]);
}

#[test]
fn a_users_daemon_ends_by_signal_with_everything_at_home() {
    let home = Home::new();
    let mut daemon = home.dbfs(&["mount", "--foreground", "-o", "LOG", "IMAGE", "MNT"]).spawn().unwrap();
    while !is_mounted(&home.mnt()) {
        assert_eq!(daemon.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(home.shell("echo kept >$MNT/f"));
    common::signal(&daemon, "-TERM");
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(!is_mounted(&home.mnt()));
    // A dead mount of his makes way as well.
    let mut daemon = home.dbfs(&["mount", "--foreground", "-o", "LOG", "IMAGE", "MNT"]).spawn().unwrap();
    while !is_mounted(&home.mnt()) {
        assert_eq!(daemon.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(2));
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    home.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    assert!(home.shell("test \"$(cat $MNT/f)\" = kept"));
    // Root may end it.
    let output = Command::new(home.path("dbfs")).arg("umount").arg(home.mnt()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_a_user_may_not_do_is_refused_in_clear_words() {
    let home = Home::new();
    let config = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !config.lines().any(|line| line.trim() == "user_allow_other") {
        home.fails(
            &["mount", "-o", "LOG,allow_other", "IMAGE", "MNT"],
            32,
            &["user_allow_other", "/etc/fuse.conf"],
        );
    }
    // A directory of root's.
    let other = tempfile::tempdir().unwrap();
    fs::set_permissions(other.path(), Permissions::from_mode(0o755)).unwrap();
    home.fails(&["mount", "-o", "LOG", "IMAGE", other.path().to_str().unwrap()], 32, &["write access"]);
    // An image of root's.
    let image = home.path("roots.img");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    assert_eq!(fs::metadata(&image).unwrap().uid(), 0);
    home.fails(
        &["mount", "-o", "LOG", image.to_str().unwrap(), "MNT"],
        32,
        &["roots.img", "ermission denied"],
    );
    home.fails(&["umount", "MNT"], 32, &["no dbfs volume"]);
    assert!(!is_mounted(&home.mnt()));
    // Nothing of this has touched his image.
    let mut start = [0; 8];
    File::open(home.path("volume.img")).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"dbfsSB\r\n");
}
