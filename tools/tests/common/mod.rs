//! A volume in an image file, and the command run on it.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub fn dbfs(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_dbfs"));
    c.args(args).stdin(Stdio::null());
    c
}

/// A volume in an image file and a place to mount it.
pub struct Volume {
    pub dir: tempfile::TempDir,
}

impl Volume {
    pub fn new() -> Self {
        let v = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(v.mnt()).unwrap();
        v
    }

    pub fn made() -> Self {
        let v = Self::new();
        v.ok(&["mkfs", "--size", "64M", "IMAGE"]);
        v
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("volume.img")
    }

    pub fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The command with IMAGE, MNT and LOG replaced.
    pub fn command(&self, args: &[&str]) -> Command {
        let (image, mnt) = (self.image(), self.mnt());
        let log = format!("log={}", self.dir.path().join("log").display());
        let place = |a: &&str| match *a {
            "IMAGE" => image.to_str().unwrap().to_owned(),
            "MNT" => mnt.to_str().unwrap().to_owned(),
            "LOG" => log.clone(),
            other => other.to_owned(),
        };
        let args: Vec<String> = args.iter().map(place).collect();
        dbfs(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn run(&self, args: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        let text = [stdout, stderr].concat();
        (status.code().expect("not killed"), String::from_utf8(text).unwrap())
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let (code, text) = patient(|| self.run(args));
        assert_eq!(code, 0, "{args:?}: {text}\n{}", self.log());
        text
    }

    /// Expects an exit code and the words in the message.
    pub fn fails(&self, args: &[&str], wanted: i32, words: &[&str]) {
        let (code, text) = expecting(words, || self.run(args));
        assert_eq!(code, wanted, "{args:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
    }

    /// A daemon in the foreground, once it is mounted.
    pub fn foreground(&self) -> Child {
        let mut child =
            self.command(&["mount", "--foreground", "-o", "LOG", "IMAGE", "MNT"]).spawn().unwrap();
        while !is_mounted(&self.mnt()) {
            assert_eq!(child.try_wait().unwrap(), None, "{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

/// What a command comes to when nobody uses the mount any more: a file that a test has closed may still be open
/// in a child that another test's thread has forked, until that child becomes the program it is to be.
pub fn patient(run: impl Fn() -> (i32, String)) -> (i32, String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let outcome = run();
        if outcome.0 == 0 || !outcome.1.contains("is in use (") || Instant::now() > deadline {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`patient`], unless that is what the words are about.
pub fn expecting(words: &[&str], run: impl Fn() -> (i32, String)) -> (i32, String) {
    if words.iter().any(|w| w.contains("in use")) { run() } else { patient(run) }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if is_mounted(&self.mnt()) {
            let _ = self.command(&["umount", "--force", "MNT"]).status();
        }
    }
}

/// A loop device over an image file.
pub struct Loop(pub String);

impl Loop {
    pub fn new(image: &Path, sector: &str) -> Self {
        let out = Command::new("losetup").args(["-f", "--show", "-b", sector]).arg(image).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(String::from_utf8(out.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

pub fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().any(|l| l.split(' ').nth(1) == dir.to_str())
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").arg(name).arg(child.id().to_string()).status().unwrap().success());
}
