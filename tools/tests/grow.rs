//! `dbfs grow`, mounted and not. Needs root, /dev/fuse and loop devices.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

mod common;

use common::{Loop, Volume};

const MIB: u64 = 1 << 20;
const PAGE: usize = 16 << 10;

/// What statfs says of a mount: bytes in all and free ones.
fn space(dir: &Path) -> (u64, u64) {
    let out = Command::new("stat").args(["-f", "-c", "%S %b %a"]).arg(dir).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let n: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    (n[0] * n[1], n[0] * n[2])
}

/// Bytes that tell their place and version.
fn page(at: u64, version: u64) -> Vec<u8> {
    (0..PAGE as u64 / 8)
        .flat_map(|i| ((at << 40 | version << 20 | i) ^ 0x5EED_0000_5EED).to_le_bytes())
        .collect()
}

/// Writes pages of a file all over, each made durable, until it is told to stop. Gives the version of each.
fn load(path: &Path, pages: u64, stop: &AtomicBool) -> Vec<u64> {
    let file = File::create(path).unwrap();
    let mut versions = vec![0; pages as usize];
    let mut n = 0u64;
    while !stop.load(Ordering::SeqCst) || n < 2 * pages {
        let at = n * 7 % pages;
        versions[at as usize] = n + 1;
        file.write_all_at(&page(at, n + 1), at * PAGE as u64).unwrap();
        file.sync_data().unwrap();
        n += 1;
    }
    versions
}

fn compare(path: &Path, versions: &[u64]) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len(), versions.len() * PAGE);
    for (at, version) in versions.iter().enumerate() {
        assert!(bytes[at * PAGE..][..PAGE] == page(at as u64, *version), "page {at}");
    }
}

/// Makes a file of whole MiB, each made durable.
fn write_file(path: &Path, mib: u64) {
    let mut file = File::create(path).unwrap();
    for n in 0..mib {
        (0..64).for_each(|i| file.write_all(&page(n * 64 + i, 1)).unwrap());
    }
    file.sync_all().unwrap();
}

fn compare_file(path: &Path, mib: u64) {
    compare(path, &vec![1; (mib * 64) as usize]);
}

/// Grows the volume under load with each of the calls, and uses the new space. Every call gives its size.
fn grow_under_load(v: &Volume, volume: &str, calls: &[(&dyn Fn() -> String, u64)]) {
    v.ok(&["mount", "-o", "LOG", volume, "MNT"]);
    let stop = AtomicBool::new(false);
    let busy = v.mnt().join("busy");
    let versions = std::thread::scope(|scope| {
        let writer = scope.spawn(|| load(&busy, 300, &stop));
        for (i, (grow, size)) in calls.iter().enumerate() {
            let (all, free) = space(&v.mnt());
            let said = grow();
            assert!(said.contains("grown from"), "{said}");
            let (now, now_free) = space(&v.mnt());
            assert!(now > all && now <= *size && now + size / 4 > *size, "{all} to {now} of {size}");
            // More than there was room for.
            let mib = free.min(now_free) / MIB + 5;
            write_file(&v.mnt().join(format!("new{i}")), mib.min((now_free / MIB).saturating_sub(8)));
        }
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    compare(&busy, &versions);
    v.ok(&["umount", "MNT"]);
    assert!(v.ok(&["fsck", "-n", "--data", volume]).contains("clean"));
    v.ok(&["mount", "-o", "LOG", volume, "MNT"]);
    compare(&busy, &versions);
    for i in 0..calls.len() {
        let path = v.mnt().join(format!("new{i}"));
        let mib = fs::metadata(&path).unwrap().len() / MIB;
        assert!(mib > 0);
        compare_file(&path, mib);
    }
    v.ok(&["umount", "MNT"]);
}

#[test]
fn an_image_file_grows_under_load() {
    let v = Volume::made();
    let image = v.image();
    grow_under_load(
        &v,
        "IMAGE",
        &[
            (&|| v.ok(&["grow", "MNT", "--size", "96M"]), 96 * MIB),
            (&|| v.ok(&["grow", "--size", "+40M", "IMAGE"]), 136 * MIB),
            (
                &|| {
                    File::options().write(true).open(&image).unwrap().set_len(200 * MIB + 77).unwrap();
                    v.ok(&["grow", "MNT"])
                },
                200 * MIB,
            ),
        ],
    );
    assert_eq!(fs::metadata(&image).unwrap().len(), 200 * MIB + 77);
    assert!(v.ok(&["info", "--json", "IMAGE"]).contains(&format!("\"size_bytes\": {}", 200 * MIB)));
}

#[test]
fn a_block_device_is_read_again() {
    let v = Volume::new();
    let backing = v.image();
    File::create(&backing).unwrap().set_len(64 * MIB).unwrap();
    let device = Loop::new(&backing, "512");
    let dev = device.0.as_str();
    v.ok(&["mkfs", dev]);
    let larger = |bytes: u64| {
        File::options().write(true).open(&backing).unwrap().set_len(bytes).unwrap();
        assert!(Command::new("losetup").args(["-c", dev]).status().unwrap().success());
    };
    v.ok(&["mount", "-o", "LOG", dev, "MNT"]);
    assert!(v.ok(&["grow", "MNT"]).contains("nothing to do"));
    v.fails(&["grow", "--size", "80M", "MNT"], 1, &[dev, "no image file", "larger first"]);
    v.ok(&["umount", "MNT"]);
    grow_under_load(
        &v,
        dev,
        &[
            (
                &|| {
                    larger(100 * MIB);
                    v.ok(&["grow", "MNT", "--size", "80M"])
                },
                80 * MIB,
            ),
            (&|| v.ok(&["grow", dev]), 100 * MIB),
        ],
    );
    larger(130 * MIB);
    let said: serde_json::Value = serde_json::from_str(&v.ok(&["grow", "--json", dev])).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"volume": dev, "old_bytes": 100 * MIB, "new_bytes": 130 * MIB}),
        "not mounted"
    );
    assert!(v.ok(&["fsck", "-n", "--data", dev]).contains("clean"));
}

#[test]
fn an_image_that_is_not_mounted_grows_sparsely() {
    let v = Volume::made();
    let said = v.ok(&["grow", "--size", "1T", "IMAGE"]);
    assert!(said.contains("grown from 64 MiB to 1 TiB"), "{said}");
    let meta = fs::metadata(v.image()).unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 < 20 * MIB, "{} KiB are allocated", meta.blocks() / 2);
    assert!(v.ok(&["fsck", "-n", "IMAGE"]).contains("clean"));
    assert!(v.ok(&["grow", "IMAGE"]).contains("nothing to do"));
    v.fails(&["grow", "--size", "64M", "IMAGE"], 1, &["not shrink"]);
    v.fails(&["grow", "--size", "15E", "IMAGE"], 1, &["cannot grow to"]);
    v.fails(&["grow", "--size", "much", "IMAGE"], 1, &["much"]);
    v.fails(&["grow", "MNT"], 1, &["no dbfs volume is mounted"]);
    v.fails(&["grow", "nowhere.img"], 1, &["cannot find nowhere.img"]);
    let plain = v.dir.path().join("plain");
    fs::write(&plain, vec![7; 100_000]).unwrap();
    v.fails(&["grow", "--size", "1G", plain.to_str().unwrap()], 1, &["plain"]);
    assert_eq!(fs::metadata(&plain).unwrap().len(), 100_000, "what is no volume stays as it is");
    v.ok(&["mount", "-o", "LOG", "-o", "ro", "IMAGE", "MNT"]);
    v.fails(&["grow", "--size", "2T", "MNT"], 1, &["Read-only file system"]);
    v.ok(&["umount", "MNT"]);
}

/// A file system of its own for an image, full but for some KiB.
struct FullHost(tempfile::TempDir);

impl FullHost {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=80m", "host"]).arg(host.0.path());
        assert!(mount.status().unwrap().success());
        host
    }

    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).unwrap();
        let error = loop {
            if let Err(e) = file.write_all(&[1; 4096]) {
                break e;
            }
        };
        assert_eq!(error.raw_os_error(), Some(28), "{error}");
    }
}

impl Drop for FullHost {
    fn drop(&mut self) {
        // Lazily: after a failed test the daemon still has the image open.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// The file system under the image has no room: nothing has happened, and the volume goes on.
#[test]
fn a_host_without_space_is_reported() {
    let v = Volume::new();
    let host = FullHost::new();
    let image = host.0.path().join("volume.img");
    let image = image.to_str().unwrap();
    v.ok(&["mkfs", "--size", "64M", image]);
    v.ok(&["mount", "-o", "LOG", image, "MNT"]);
    write_file(&v.mnt().join("f"), 5);
    // Only what growing adds is to meet the full host: the image has no holes, so that what the daemon
    // writes by itself meanwhile (a slot, a checkpoint) finds room.
    assert!(Command::new("fallocate").args(["-l", "64M", image]).status().unwrap().success());
    let before = space(&v.mnt()).0;
    host.fill();
    v.fails(&["grow", "--size", "1G", "MNT"], 1, &["volume.img", "No space left"]);
    assert_eq!(space(&v.mnt()).0, before);
    compare_file(&v.mnt().join("f"), 5);
    fs::remove_file(host.0.path().join("filler")).unwrap();
    assert!(v.ok(&["grow", "--size", "1G", "MNT"]).contains("to 1 GiB"));
    write_file(&v.mnt().join("g"), 5);
    v.ok(&["umount", "MNT"]);
    assert!(v.ok(&["fsck", "-n", "--data", image]).contains("clean"));
}
