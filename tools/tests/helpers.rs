//! The command by its other names, as mount(8), umount(8), mkfs(8) and fsck(8) call it.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod common;

use common::{Volume, expecting, is_mounted, patient};

/// A volume, and a folder with the helpers' names.
struct Rig {
    v: Volume,
    bin: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let v = Volume::new();
        let bin = v.dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in
            ["mkfs.dbfs", "fsck.dbfs", "mount.dbfs", "mount.fuse.dbfs", "umount.dbfs", "umount.fuse.dbfs"]
        {
            symlink(env!("CARGO_BIN_EXE_dbfs"), bin.join(name)).unwrap();
        }
        Self { v, bin }
    }

    fn made() -> Self {
        let rig = Self::new();
        rig.ok("mkfs.dbfs IMAGE 65536");
        rig
    }

    /// A line with IMAGE, MNT and LOG (the option) replaced: exit code and output.
    fn run(&self, line: &str) -> (i32, String) {
        let log = format!("log={}", self.v.dir.path().join("log").display());
        let place = |word: &str| {
            let image = self.v.image();
            word.replace("IMAGE", image.to_str().unwrap())
                .replace("MNT", self.v.mnt().to_str().unwrap())
                .replace("LOG", &log)
        };
        let mut words = line.split(' ');
        let mut command = Command::new(self.bin.join(words.next().unwrap()));
        let output = command.args(words.map(place)).stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("not killed"), String::from_utf8(text).unwrap())
    }

    fn ok(&self, line: &str) -> String {
        let (code, text) = patient(|| self.run(line));
        assert_eq!(code, 0, "{line}: {text}{}", self.v.log());
        text
    }

    fn fails(&self, line: &str, wanted: i32, words: &[&str]) {
        let (code, text) = expecting(words, || self.run(line));
        assert_eq!(code, wanted, "{line}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is missing in: {text}"));
    }
}

/// Type and options of the mount on `dir`.
fn mount_entry(dir: &Path) -> (String, String, String) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(1) == dir.to_str()).expect("mounted");
    let fields: Vec<_> = line.split(' ').map(str::to_owned).collect();
    (fields[0].clone(), fields[2].clone(), fields[3].clone())
}

#[test]
fn mkfs_takes_what_mkfs_passes() {
    let rig = Rig::new();
    let text = rig.ok("mkfs.dbfs -L orders IMAGE 65536");
    assert!(text.contains("64 MiB"), "{text}");
    assert!(rig.v.ok(&["info", "IMAGE"]).contains("orders"));
    rig.fails("mkfs.dbfs IMAGE", 1, &["dbfs", "--force"]);
    assert_eq!(rig.ok("mkfs.dbfs -q -F IMAGE"), "");
    rig.fails("mkfs.dbfs --frob IMAGE", 1, &["--frob", "mkfs.dbfs"]);
    assert!(rig.ok("mkfs.dbfs -V").starts_with("mkfs.dbfs "));
}

#[test]
fn mount_takes_the_options_of_fstab_and_shows_source_and_type() {
    let rig = Rig::made();
    rig.ok("mount.fuse.dbfs IMAGE MNT -n -v -o rw,noauto,nofail,_netdev,user,exec,x-systemd.automount,LOG");
    let (source, kind, options) = mount_entry(&rig.v.mnt());
    assert_eq!((source.as_str(), kind.as_str()), (rig.v.image().to_str().unwrap(), "fuse.dbfs"));
    assert!(
        options.contains("nodev") && options.contains("nosuid") && !options.contains("noexec"),
        "{options}"
    );
    fs::write(rig.v.mnt().join("f"), b"kept").unwrap();
    assert!(rig.ok("umount.fuse.dbfs MNT -v").contains("unmounted"));
    // All is at home: the bytes alone are enough.
    fs::copy(rig.v.image(), rig.v.dir.path().join("copy")).unwrap();
    fs::rename(rig.v.dir.path().join("copy"), rig.v.image()).unwrap();
    rig.ok("mount.dbfs -r -o noatime,nodev,nosuid,noexec,defaults,LOG IMAGE MNT");
    assert!(mount_entry(&rig.v.mnt()).2.starts_with("ro,nosuid,nodev,noexec,noatime"));
    assert_eq!(fs::read(rig.v.mnt().join("f")).unwrap(), b"kept");
    rig.ok("umount.dbfs MNT");
}

#[test]
fn mount_refuses_what_it_does_not_know_unless_told_to_be_sloppy() {
    let rig = Rig::made();
    rig.fails("mount.dbfs IMAGE MNT -o ro,frobnicate", 1, &["frobnicate"]);
    rig.fails("mount.dbfs IMAGE", 1, &["DIR"]);
    rig.fails("mount.dbfs IMAGE nowhere", 32, &["nowhere"]);
    rig.ok("mount.dbfs IMAGE MNT -f -o LOG");
    assert!(!is_mounted(&rig.v.mnt()));
    rig.ok("mount.dbfs IMAGE MNT -s -o frobnicate,LOG");
    rig.ok("umount.dbfs MNT");
    rig.fails("umount.dbfs MNT", 32, &["no dbfs volume"]);
}

#[test]
fn remounting_changes_flags_and_never_opens_a_volume_for_writing() {
    let rig = Rig::made();
    rig.ok("mount.dbfs IMAGE MNT -o LOG");
    rig.ok("mount.dbfs IMAGE MNT -o remount,ro,noexec");
    let refused = fs::write(rig.v.mnt().join("f"), b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    rig.ok("mount.dbfs IMAGE MNT -o remount,rw");
    fs::write(rig.v.mnt().join("f"), b"x").unwrap();
    rig.ok("umount.dbfs MNT");
    rig.ok("mount.dbfs IMAGE MNT -o ro,LOG");
    rig.fails("mount.dbfs IMAGE MNT -o remount,rw", 32, &["read-only"]);
    rig.ok("umount.dbfs MNT");
    rig.fails("mount.dbfs IMAGE MNT -o remount,rw", 32, &["no dbfs volume"]);
}

#[test]
fn umount_knows_the_ways_of_umount() {
    let rig = Rig::made();
    rig.ok("mount.dbfs IMAGE MNT -o LOG");
    let f = File::create(rig.v.mnt().join("f")).unwrap();
    rig.fails("umount.dbfs MNT", 32, &["in use"]);
    // Lazily: out of the tree at once, and the last user ends it.
    rig.ok("umount.dbfs MNT -l -n -t fuse.dbfs");
    assert!(!is_mounted(&rig.v.mnt()));
    f.write_all_at(b"late", 0).unwrap();
    drop(f);
    rig.ok("mount.dbfs IMAGE MNT -o LOG");
    let f = File::open(rig.v.mnt().join("f")).unwrap();
    rig.ok("umount.dbfs MNT -r");
    assert!(mount_entry(&rig.v.mnt()).2.starts_with("ro"));
    rig.ok("umount.dbfs MNT -f");
    assert!(f.read_at(&mut [0; 4], 0).is_err());
    drop(f);
    rig.ok("mount.dbfs IMAGE MNT -o LOG");
    assert_eq!(fs::read(rig.v.mnt().join("f")).unwrap(), b"late");
    // By its volume.
    rig.ok("umount.dbfs IMAGE");
    assert!(!is_mounted(&rig.v.mnt()));
}

#[test]
fn fsck_takes_what_fsck_and_the_boot_pass() {
    let rig = Rig::made();
    for line in ["fsck.dbfs -a IMAGE", "fsck.dbfs -p -C0 IMAGE", "fsck.dbfs -a -C 2 -T IMAGE"] {
        assert!(rig.ok(line).contains("clean"), "{line}");
    }
    for line in ["fsck.dbfs -n IMAGE", "fsck.dbfs -f -y IMAGE", "fsck.dbfs -a -f IMAGE"] {
        assert!(rig.ok(line).contains("clean"), "{line}");
    }
    rig.fails("fsck.dbfs -n -y IMAGE", 16, &["-y"]);
    rig.fails("fsck.dbfs -Q IMAGE", 16, &["-Q"]);
    rig.fails("fsck.dbfs -a nowhere", 8, &["nowhere"]);
    File::options().write(true).open(rig.v.image()).unwrap().set_len(32 << 20).unwrap();
    rig.fails("fsck.dbfs -a IMAGE", 4, &["cannot be mounted"]);
}

#[test]
fn fsck_tells_a_program_how_far_it_is() {
    let rig = Rig::made();
    let text = rig.ok("fsck.dbfs -f -y -C 1 IMAGE");
    let image = rig.v.image();
    let lines = text.lines().filter_map(|l| l.strip_suffix(image.to_str().unwrap()));
    let lines: Vec<Vec<u64>> =
        lines.map(|l| l.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
    let (first, last) = (&lines[0], lines.last().unwrap());
    assert_eq!((first[0], first[1]), (1, 0), "{text}");
    assert!(last[0] == 1 && last[1] == last[2] && last[2] > 0, "{text}");
    assert!(lines.iter().all(|l| l.len() == 3 && l[1] <= l[2]), "{text}");
    assert!(!rig.ok("fsck.dbfs -f -C -1 IMAGE").contains("1 0 "), "not before SIGUSR1");
    for bad in ["-C 77", "-C -2147483648", "-a -C 77"] {
        rig.fails(&format!("fsck.dbfs {bad} IMAGE"), 16, &["-C", "descriptor"]);
    }
}

/// mount(8) itself finds the helper only in /sbin: a name space of its own has it there.
#[test]
fn mount_and_umount_find_their_helpers() {
    let rig = Rig::made();
    let script = "
        mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work &&
        mount -t overlay -o lowerdir=/usr/sbin,upperdir=/mnt/upper,workdir=/mnt/work none /usr/sbin &&
        ln -s $DBFS /usr/sbin/mount.fuse.dbfs && ln -s $DBFS /usr/sbin/umount.fuse.dbfs &&
        ln -s $DBFS /usr/sbin/mount.dbfs &&
        mount -t fuse.dbfs $IMAGE $MNT -o noatime,$LOG &&
        mount | grep \"^$IMAGE on $MNT type fuse.dbfs (rw,.*noatime\" &&
        echo hello >$MNT/f && umount $MNT && fsck.dbfs -n $IMAGE &&
        mount -t dbfs -o ro,$LOG $IMAGE $MNT && grep hello $MNT/f && umount $MNT &&
        ! mount -t dbfs -o frob $IMAGE $MNT";
    let path = format!("{}:{}", rig.bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", script])
        .env("PATH", path)
        .env("DBFS", env!("CARGO_BIN_EXE_dbfs"))
        .env("IMAGE", rig.v.image())
        .env("MNT", rig.v.mnt())
        .env("LOG", format!("log={}", rig.v.dir.path().join("log").display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}{}", rig.v.log());
    assert!(text.contains("frob"), "{text}");
}

#[test]
fn noatime_leaves_access_times_alone() {
    let rig = Rig::made();
    let f = rig.v.mnt().join("f");
    let access_after_read = |option: &str| {
        rig.ok(&format!("mount.dbfs IMAGE MNT -o {option},LOG"));
        fs::write(&f, b"x").unwrap();
        File::open(&f).unwrap().set_times(fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH)).unwrap();
        fs::read(&f).unwrap();
        let time = fs::metadata(&f).unwrap().accessed().unwrap();
        rig.ok("umount.dbfs MNT");
        time
    };
    assert_eq!(access_after_read("noatime"), std::time::UNIX_EPOCH);
    assert!(access_after_read("relatime") > std::time::UNIX_EPOCH);
}

/// What systemd hears of a service of type notify.
#[test]
fn a_service_says_when_the_mount_is_live_and_when_it_ends() {
    let rig = Rig::made();
    let socket = rig.v.dir.path().join("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mut mount = rig.v.command(&["mount", "--foreground", "-o", "LOG", "IMAGE", "MNT"]);
    let mut daemon = mount.env("NOTIFY_SOCKET", &socket).spawn().unwrap();
    let heard = || {
        let mut buf = [0; 4096];
        let n = systemd.recv(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    };
    assert!(heard().starts_with("READY=1\nSTATUS="));
    assert!(is_mounted(&rig.v.mnt()));
    fs::write(rig.v.mnt().join("f"), b"x").unwrap();
    // While it serves, nobody is kept waiting for an answer.
    rig.fails("fsck.dbfs -n IMAGE", 8, &["in use", rig.v.mnt().to_str().unwrap()]);
    rig.ok("umount.dbfs MNT");
    assert!(heard().starts_with("STOPPING=1\n"));
    assert!(daemon.wait().unwrap().success());
}
