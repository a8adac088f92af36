//! Random use of a volume.

use std::sync::Arc;

use crate::api::{Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, SetAttr};
use crate::types::Ino;
use crate::volume::Volume;

pub(super) const OWNER: Owner = Owner::new(1, 1);

/// A seeded random source.
#[derive(Clone, Debug)]
pub(super) struct Rnd(u64);

impl Rnd {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let salt = self.below(251);
        (0..len as u64).map(|i| (i * 7 + salt) as u8).collect()
    }
}

/// Does random things, most of which succeed, some of which are refused.
pub(super) struct Workload {
    pub(super) rnd: Rnd,
    dirs: Vec<Ino>,
    open: Vec<Ino>,
}

impl Workload {
    pub(super) fn new(seed: u64) -> Self {
        Self { rnd: Rnd::new(seed), dirs: vec![Ino::ROOT], open: Vec::new() }
    }

    /// The volume was mounted anew.
    pub(super) fn forget_opens(&mut self) {
        self.open.clear();
    }

    fn dir(&mut self) -> Ino {
        self.dirs[self.rnd.below(self.dirs.len() as u64) as usize]
    }

    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.rnd.below(12)).into_bytes()
    }

    fn some_file(&mut self, v: &Volume) -> Option<Ino> {
        if !self.open.is_empty() && self.rnd.below(3) == 0 {
            return Some(self.open[self.rnd.below(self.open.len() as u64) as usize]);
        }
        let (dir, name) = (self.dir(), self.name());
        let found = v.lookup(dir, &name).ok()?;
        (found.kind == FileType::Regular).then_some(found.ino)
    }

    /// One operation.
    pub(super) fn step(&mut self, v: &Arc<Volume>) {
        match self.rnd.below(100) {
            0..25 => self.write(v),
            25..35 => self.create(v),
            35..42 => self.resize(v),
            42..48 => {
                let (Some(ino), at) = (self.some_file(v), self.rnd.below(300_000)) else { return };
                let len = 1 + self.rnd.below(200_000);
                let mode = if self.rnd.below(2) == 0 { Fallocate::Allocate } else { Fallocate::KeepSize };
                let _ = v.fallocate(ino, mode, at, len);
            }
            48..58 => {
                let (dir, name) = (self.dir(), self.name());
                let _ = v.unlink(dir, &name);
            }
            58..63 => {
                let (dir, name) = (self.dir(), self.name());
                if let Ok(attr) = v.mkdir(dir, &name, 0o755, OWNER) {
                    self.dirs.push(attr.ino);
                }
            }
            63..66 => {
                let (dir, name) = (self.dir(), self.name());
                let _ = v.rmdir(dir, &name);
            }
            66..76 => self.rename(v),
            76..80 => {
                let (ino, dir, name) = (self.some_file(v), self.dir(), self.name());
                if let Some(ino) = ino {
                    let _ = v.link(ino, dir, &name);
                }
            }
            80..83 => {
                let (dir, name) = (self.dir(), self.name());
                let _ = v.symlink(dir, &name, &vec![b'x'; 1 + self.rnd.below(4095) as usize], OWNER);
            }
            83..88 => {
                if let Some(ino) = self.open.pop() {
                    v.close(ino);
                }
            }
            88..94 => {
                if let Some(ino) = self.some_file(v) {
                    v.fsync(ino, self.rnd.below(2) == 0).unwrap();
                }
            }
            94..96 => v.checkpoint().unwrap(),
            96..98 => v.publish_durable().unwrap(),
            _ => v.sync_all().unwrap(),
        }
    }

    fn create(&mut self, v: &Volume) {
        let (dir, name) = (self.dir(), self.name());
        if let Ok(attr) = v.create(dir, &name, 0o644, OWNER) {
            self.open.push(attr.ino);
        }
    }

    fn write(&mut self, v: &Volume) {
        let Some(ino) = self.some_file(v) else { return };
        let dsync = self.rnd.below(4) == 0;
        let direct = self.rnd.below(3) == 0;
        let at = self.rnd.below(400_000);
        let len = if self.rnd.below(2) == 0 { self.rnd.below(5000) } else { self.rnd.below(100_000) };
        let data = self.rnd.bytes(1 + len as usize);
        let _ = v.write(ino, at, &data, IoFlags { direct, dsync, ..IoFlags::default() });
    }

    fn resize(&mut self, v: &Volume) {
        let Some(ino) = self.some_file(v) else { return };
        let size = Some(self.rnd.below(500_000));
        let _ = v.setattr(ino, &SetAttr { size, ..SetAttr::default() });
    }

    fn rename(&mut self, v: &Volume) {
        let (from, name, to, new_name) = (self.dir(), self.name(), self.dir(), self.name());
        let exchange = self.rnd.below(4) == 0;
        let _ =
            v.rename(from, &name, to, &new_name, RenameFlags { exchange, no_replace: false, whiteout: None });
    }
}
