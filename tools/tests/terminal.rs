//! `dbfs fsck` on a terminal: questions, answers, Ctrl-C, and the progress bar.
//!
//! Needs util-linux's setsid(1), which gives a process its terminal; root and /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

mod common;

use common::Volume;

const BLOCK: usize = 4096;
const CTRL_C: &[u8] = b"\x03";

/// A volume that is not mounted, with a copy of its superblock gone.
fn damaged() -> Volume {
    let v = Volume::made();
    zero(&v, 8 * BLOCK as u64);
    v
}

fn zero(v: &Volume, at: u64) {
    OpenOptions::new().write(true).open(v.image()).unwrap().write_all_at(&[0; BLOCK], at).unwrap();
}

fn bytes(v: &Volume) -> Vec<u8> {
    fs::read(v.image()).unwrap()
}

/// Ctrl-C shall not take away what was written before it is through: the kernel sends the signal, and clears the screen's
/// queue then, with what the program has said about it meanwhile.
fn keep_output(terminal: &OwnedFd) {
    let mut settings = tcgetattr(terminal).unwrap();
    settings.local_modes |= LocalModes::NOFLSH;
    tcsetattr(terminal, OptionalActions::Now, &settings).unwrap();
}

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    screen: File,
    seen: String,
}

impl Terminal {
    /// Runs `dbfs` with IMAGE replaced.
    fn run(v: &Volume, args: &[&str]) -> Self {
        Self::start(&v.command(args), None)
    }

    /// Runs `program`; `stdout`: not on the terminal.
    fn start(program: &Command, stdout: Option<OwnedFd>) -> Self {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        keep_output(&screen);
        let path = ptsname(&screen, Vec::new()).unwrap();
        let open = || {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            rustix::fs::open(path.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap()
        };
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args());
        let stdout = stdout.unwrap_or_else(open);
        let child = command.stdin(open()).stderr(open()).stdout(stdout).spawn().unwrap();
        Self { child, screen: screen.into(), seen: String::new() }
    }

    /// Reads until `text` is on the screen; false if the program ends before.
    fn see(&mut self, text: &str) -> bool {
        let mut buf = [0; 4096];
        while !self.seen.contains(text) {
            match self.screen.read(&mut buf) {
                // With nobody on the other side.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return false,
                Ok(0) => return false,
                n => self.seen.push_str(&String::from_utf8_lossy(&buf[..n.unwrap()])),
            }
        }
        true
    }

    /// At the text, types an answer.
    fn answer(&mut self, at: &str, keys: &[u8]) {
        assert!(self.see(at), "{at:?} is missing in: {}", self.seen);
        self.seen.clear();
        self.screen.write_all(keys).unwrap();
    }

    /// Waits until the program takes SIGINT itself: it is blocked, for a thread that waits for it.
    fn wait_until_interrupts_are_taken(&self) {
        let path = format!("/proc/{}/status", self.child.id());
        let blocked = || {
            let status = fs::read_to_string(&path).unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap().trim();
            u64::from_str_radix(mask, 16).unwrap()
        };
        while blocked() & 1 << (libc::SIGINT - 1) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// The exit code, and all that was on the screen since the last answer.
    fn end(mut self) -> (i32, String) {
        self.see("\0");
        let status = self.child.wait().unwrap();
        (status.code().unwrap_or_else(|| panic!("{status}: {}", self.seen)), self.seen)
    }
}

#[test]
fn each_kind_of_repair_is_asked_about() {
    let v = damaged();
    let before = bytes(&v);
    let mut t = Terminal::run(&v, &["fsck", "IMAGE"]);
    t.answer("May I write the damaged copies of the superblock again (1 times)? [y/n/a(ll)] ", b"perhaps\n");
    t.answer("May I", b"n\n");
    let (code, text) = t.end();
    assert!(code == 4 && text.contains("NOT REPAIRED, nothing was written"), "{code}: {text}");
    // Ctrl-D: nobody answers any more.
    let mut t = Terminal::run(&v, &["fsck", "IMAGE"]);
    t.answer("May I", b"\x04");
    assert_eq!(t.end().0, 4);
    assert!(before == bytes(&v), "nothing was agreed to");
    let mut t = Terminal::run(&v, &["fsck", "IMAGE"]);
    t.answer("May I", b"y\n");
    let (code, text) = t.end();
    assert!(code == 1 && text.contains("nothing is lost"), "{code}: {text}");
    assert!(v.ok(&["fsck", "-n", "--data", "IMAGE"]).contains("clean"));
}

#[test]
fn all_means_all_that_follows() {
    let v = Volume::made();
    v.ok(&["mount", "-o", "LOG", "IMAGE", "MNT"]);
    fs::create_dir(v.mnt().join("d")).unwrap();
    fs::write(v.mnt().join("d/f"), vec![7; 100_000]).unwrap();
    v.ok(&["umount", "MNT"]);
    zero(&v, 8 * BLOCK as u64);
    for (i, block) in bytes(&v).chunks(BLOCK).enumerate() {
        if block.starts_with(b"dbfsnode") {
            zero(&v, (i * BLOCK) as u64);
        }
    }
    let mut t = Terminal::run(&v, &["fsck", "IMAGE"]);
    t.answer("May I", b"y\n");
    t.answer("May I", b"n\n");
    assert_eq!(t.end().0, 4);
    let mut t = Terminal::run(&v, &["fsck", "IMAGE"]);
    t.answer("May I", b"a\n");
    let (code, text) = t.end();
    assert!(code == 1 && !text.contains("May I"), "{code}: {text}");
    assert!(v.ok(&["fsck", "-n", "--data", "IMAGE"]).contains("clean"));
}

#[test]
fn a_bar_shows_how_far_it_is() {
    let v = Volume::made();
    let (code, text) = Terminal::run(&v, &["fsck", "-y", "--data", "IMAGE"]).end();
    assert_eq!(code, 0, "{text}");
    let bar = text.split("looking for tree nodes [").nth(1).unwrap_or_else(|| panic!("no bar: {text}"));
    assert!(bar.contains("] ") && bar.contains(" %"), "{text}");
    assert!(text.contains("\r\u{1b}[K"), "it is taken away: {text:?}");
    assert!(!v.ok(&["fsck", "-y", "--data", "IMAGE"]).contains("looking"), "no terminal, no bar");
}

#[test]
fn ctrl_c_at_a_question_ends_it() {
    let v = damaged();
    let before = bytes(&v);
    let mut t = Terminal::run(&v, &["fsck", "IMAGE"]);
    t.answer("May I", CTRL_C);
    let (code, text) = t.end();
    assert!(code == 32 && text.contains("cancelled by SIGINT: nothing was written"), "{code}: {text}");
    assert!(before == bytes(&v));
}

/// The check waits for the reader of its progress, so it is not over when Ctrl-C comes.
#[test]
fn ctrl_c_during_the_check_ends_it() {
    let v = damaged();
    let before = bytes(&v);
    let (_reader, pipe) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    while rustix::io::write(&pipe, &[0; BLOCK]).is_ok() {}
    rustix::io::ioctl_fionbio(&pipe, false).unwrap();
    let helper = v.dir.path().join("fsck.dbfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_dbfs"), &helper).unwrap();
    let mut command = Command::new(helper);
    command.args(["-y", "-C", "1"]).arg(v.image());
    let mut t = Terminal::start(&command, Some(pipe));
    t.wait_until_interrupts_are_taken();
    t.screen.write_all(CTRL_C).unwrap();
    let (code, text) = t.end();
    assert!(code == 32 && text.contains("nothing was written"), "{code}: {text}");
    assert!(before == bytes(&v));
}
