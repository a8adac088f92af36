//! A volume with a past: everything that the format knows is on it, some of it in the journal only.

use std::sync::Arc;

use blockdev::RamDevice;
use fs_core::api::{Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, SetAttr, XattrFlags};
use fs_core::{FormatOptions, Ino, MountOptions, PageSize, Volume};

use super::deepen::deepen;
use super::layout::Layout;
use super::probe::{Content, read_all};
use crate::clock::Clock;
use crate::rng::Rng;

/// Size of the volume in bytes: the smallest one.
pub const SIZE: u64 = 64 << 20;
/// Bytes of a page.
pub const PAGE: usize = 4096;

const OWNER: Owner = Owner { uid: 7, gid: 8, umask: 0 };
const BUFFERED: IoFlags = IoFlags { direct: false, dsync: false, sync: false, kill_priv: false };
const DIRECT: IoFlags = IoFlags { direct: true, ..BUFFERED };
const DSYNC: IoFlags = IoFlags { dsync: true, ..BUFFERED };

/// A file that a probe may overwrite, and one that it may remove.
pub const VICTIM: &str = "victim";
/// See [`VICTIM`].
pub const DOOMED: &str = "doomed";

/// An aged volume that was not unmounted.
#[derive(Debug)]
pub struct Aged {
    /// The image. To be copied (`snapshot`) before it is touched.
    pub image: RamDevice,
    /// What it was at earlier moments.
    pub older: Vec<RamDevice>,
    /// What is on it.
    pub want: Content,
    /// Where everything is.
    pub layout: Layout,
}

/// How the volume is mounted, here and in the probes: small caches, so that the device is read.
pub fn options(read_only: bool) -> MountOptions {
    MountOptions {
        read_only,
        cache_bytes: 8 << 20,
        node_cache_bytes: 4 << 20,
        dirty_bytes: 4 << 20,
        ..MountOptions::default()
    }
}

/// Mounts an image.
pub fn mount(device: &RamDevice, read_only: bool, seed: u64) -> fs_core::Result<Arc<Volume>> {
    Volume::mount(Arc::new(device.clone()), options(read_only), Arc::new(Clock::new(seed)))
}

/// Builds the volume, with a tree of three levels. `deep`: it has become so by itself, with hundreds of nodes; else the tree has
/// few, so that each byte of it can have a turn ([`deepen`]). Always the same for a seed.
pub fn build(seed: u64, deep: bool) -> Aged {
    let device = RamDevice::new(SIZE, 4096);
    let mut older = vec![];
    let page_size = PageSize::new(PAGE as u32).expect("4 KiB is a page size");
    let format = FormatOptions { page_size, label: "aged".into(), ..FormatOptions::default() };
    Volume::format(&device, &format, &Clock::new(seed)).expect("format");
    older.push(device.snapshot());
    let mut rng = Rng::new(seed);
    {
        let v = mount(&device, false, seed ^ 1).expect("first mount");
        grow_up(&v, &mut rng, if deep { 1800 } else { 12 }).expect("first epoch");
        older.push(device.snapshot());
        v.checkpoint().expect("checkpoint");
        overwrite(&v, &mut rng).expect("overwrites");
        v.shutdown().expect("shutdown");
    }
    older.push(device.snapshot());
    let v = mount(&device, false, seed ^ 2).expect("second mount");
    overwrite(&v, &mut rng).expect("more overwrites");
    v.checkpoint().expect("checkpoint");
    older.push(device.snapshot());
    overwrite(&v, &mut rng).expect("last overwrites");
    v.checkpoint().expect("checkpoint");
    in_the_journal_only(&v, &mut rng).expect("changes in the journal");
    // Nothing is left that could be taken for a torn tail, even if two blocks are damaged.
    v.commit().expect("commit");
    older.push(device.snapshot());
    (0..3).for_each(|_| v.publish_durable().expect("publish"));
    drop(v);
    let image = device.snapshot();
    if !deep {
        deepen(&image, &Layout::of(&image));
    }
    let layout = Layout::of(&image);
    let want = read_all(&image).expect("the volume can be read");
    Aged { image, older, want, layout }
}

fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    out.truncate(len);
    out
}

fn put(v: &Volume, ino: Ino, at: u64, data: &[u8], flags: IoFlags) -> fs_core::Result<()> {
    v.write(ino, at, data, flags).map(|_| ())
}

fn file(v: &Volume, parent: Ino, name: &str) -> fs_core::Result<Ino> {
    Ok(v.mknod(parent, name.as_bytes(), FileType::Regular, 0o644, 0, OWNER)?.ino)
}

fn grow_up(v: &Volume, rng: &mut Rng, links: u64) -> fs_core::Result<()> {
    let mut dir = Ino::ROOT;
    for depth in 0..4 {
        dir = v.mkdir(dir, format!("dir{depth}").as_bytes(), 0o755, OWNER)?.ino;
        for i in 0..5 {
            let ino = file(v, dir, &format!("small{i}"))?;
            put(v, ino, 0, &bytes(rng, 10 + 700 * i), BUFFERED)?;
            v.link(ino, Ino::ROOT, format!("link to {depth} {i}").as_bytes())?;
        }
        v.symlink(dir, b"up", b"../..", OWNER)?;
    }
    let many = v.mkdir(Ino::ROOT, b"many", 0o700, OWNER)?.ino;
    for i in 0..links {
        let target: Vec<u8> = bytes(rng, 3990).iter().map(|b| b'a' + b % 26).collect();
        v.symlink(many, format!("{i:0>200}").as_bytes(), &target, OWNER)?;
        if i % 300 == 299 {
            v.checkpoint()?;
        }
    }
    let large = file(v, Ino::ROOT, "large")?;
    for i in 0..8 {
        put(v, large, i << 17, &bytes(rng, 1 << 17), DIRECT)?;
    }
    let scattered = file(v, Ino::ROOT, "scattered")?;
    for i in 0..192 {
        put(v, scattered, (i * 37 % 192) * PAGE as u64, &bytes(rng, PAGE), DIRECT)?;
    }
    let sparse = file(v, Ino::ROOT, "sparse")?;
    put(v, sparse, 1 << 40, b"far away", BUFFERED)?;
    let room = file(v, Ino::ROOT, "room")?;
    v.fallocate(room, Fallocate::Allocate, 0, 500_000)?;
    put(v, room, 100_000, &bytes(rng, 5000), BUFFERED)?;
    for name in [VICTIM, DOOMED, "truncated", "inline", "orphan1", "orphan2"] {
        let ino = file(v, Ino::ROOT, name)?;
        put(v, ino, 0, &bytes(rng, 90_000), DIRECT)?;
    }
    for (name, len) in [("user.short", 3), ("user.long", 9000), ("security.selinux", 60)] {
        v.setxattr(large, name.as_bytes(), &bytes(rng, len), XattrFlags::default())?;
        v.setxattr(dir, name.as_bytes(), &bytes(rng, len), XattrFlags::default())?;
    }
    v.mknod(dir, b"pipe", FileType::Fifo, 0o600, 0, OWNER)?;
    v.mknod(dir, b"device", FileType::CharDevice, 0o600, 0x103, OWNER)?;
    v.sync_all()
}

fn find(v: &Volume, name: &str) -> fs_core::Result<Ino> {
    Ok(v.lookup(Ino::ROOT, name.as_bytes())?.ino)
}

fn overwrite(v: &Volume, rng: &mut Rng) -> fs_core::Result<()> {
    let (large, scattered) = (find(v, "large")?, find(v, "scattered")?);
    for _ in 0..40 {
        let page = rng.below(192);
        put(v, scattered, page * PAGE as u64, &bytes(rng, PAGE), DIRECT)?;
    }
    for _ in 0..6 {
        let at = rng.below(1_000_000);
        put(v, large, at, &bytes(rng, 3000), BUFFERED)?;
    }
    let name = format!("later {}", rng.next_u64());
    let ino = file(v, Ino::ROOT, &name)?;
    put(v, ino, 0, &bytes(rng, 20_000), DIRECT)?;
    v.sync_all()
}

fn in_the_journal_only(v: &Volume, rng: &mut Rng) -> fs_core::Result<()> {
    let inline = find(v, "inline")?;
    for i in 0..12 {
        put(v, inline, 60_000 + i * 3000, &bytes(rng, 900), DSYNC)?;
    }
    overwrite(v, rng)?;
    v.setattr(find(v, "truncated")?, &SetAttr { size: Some(30_001), ..SetAttr::default() })?;
    v.rename(Ino::ROOT, b"link to 1 1", Ino::ROOT, b"renamed", RenameFlags::default())?;
    v.unlink(Ino::ROOT, b"link to 2 2")?;
    for name in ["orphan1", "orphan2"] {
        v.open(find(v, name)?)?;
        v.unlink(Ino::ROOT, name.as_bytes())?;
    }
    v.setxattr(find(v, "large")?, b"user.late", b"in the journal", XattrFlags::default())?;
    v.mkdir(Ino::ROOT, b"young", 0o711, OWNER)?;
    let ino = find(v, "room")?;
    put(v, ino, 7, b"in unwritten space", DSYNC)
}
