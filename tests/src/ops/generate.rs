//! The generator: weighted, and biased to few names, files and offsets, so that operations meet.

use fs_core::api::{Fallocate, FileType, XattrFlags};

use super::{How, Maintenance, Moving, Op, Then};
use crate::rng::Rng;

/// What kind of history to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A bit of everything.
    Mixed,
    /// Mostly names.
    Names,
    /// Mostly data, direct and synchronous.
    Data,
    /// Small synchronous appends and overwrites, as a log is written.
    Wal,
    /// Larger ones, one after the other: the journal wraps.
    Log,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 5] = [Profile::Mixed, Profile::Names, Profile::Data, Profile::Wal, Profile::Log];

    /// Weights of the groups: names, attributes, queries, data, appends, sync, maintenance, remount.
    fn weights(self) -> [u32; 8] {
        match self {
            Profile::Mixed => [30, 6, 8, 28, 8, 10, 10, 1],
            Profile::Names => [60, 8, 8, 6, 2, 8, 8, 1],
            Profile::Data => [10, 4, 6, 55, 4, 10, 11, 1],
            Profile::Wal => [8, 2, 4, 20, 45, 10, 10, 1],
            Profile::Log => [6, 1, 1, 8, 80, 3, 4, 0],
        }
    }
}

/// Makes operations. The same seed makes the same ones.
pub struct Generator {
    rng: Rng,
    page: u64,
    profile: Profile,
}

/// A history of `len` operations for a volume with pages of `page` bytes.
pub fn history(seed: u64, len: usize, page: u64, profile: Profile) -> Vec<Op> {
    let mut generator = Generator::new(seed, page, profile);
    (0..len).map(|_| generator.op()).collect()
}

impl Generator {
    /// A generator for a volume with pages of `page` bytes.
    pub fn new(seed: u64, page: u64, profile: Profile) -> Self {
        Self { rng: Rng::new(seed), page, profile }
    }

    /// The next operation.
    pub fn op(&mut self) -> Op {
        match self.rng.weighted(&self.profile.weights()) {
            0 => self.names(),
            1 => self.attributes(),
            2 => self.query(),
            3 => self.data(),
            4 => self.append(),
            5 => self.sync(),
            6 => self.maintenance(),
            _ => Op::Remount,
        }
    }

    fn nth(&mut self) -> u8 {
        // Half of the time among the first few: most things happen to few files.
        if self.rng.one_in(2) { self.rng.below(4) as u8 } else { self.rng.below(256) as u8 }
    }

    fn dir(&mut self) -> u8 {
        if self.rng.one_in(2) { 0 } else { self.rng.below(16) as u8 }
    }

    fn name(&mut self) -> u8 {
        match self.rng.below(40) {
            0 => 241 + self.rng.below(15) as u8,
            1..=4 => self.rng.below(40) as u8,
            _ => self.rng.below(8) as u8,
        }
    }

    fn perm(&mut self) -> u32 {
        *self.rng.pick(&[0o644, 0o600, 0o755, 0o4755, 0o6711, 0o2755, 0o1777, 0o000])
    }

    fn names(&mut self) -> Op {
        let (dir, name) = (self.dir(), self.name());
        match self.rng.weighted(&[24, 6, 10, 5, 9, 18, 6, 24, 6]) {
            0 => Op::Create { dir, name, perm: self.perm() },
            1 => {
                let kinds = [FileType::Regular, FileType::Fifo, FileType::Socket, FileType::CharDevice];
                Op::Mknod { dir, name, kind: *self.rng.pick(&kinds), perm: self.perm() }
            }
            2 => Op::Mkdir { dir, name, perm: *self.rng.pick(&[0o755, 0o700, 0o2775, 0o1777]) },
            3 => {
                let len = *self.rng.pick(&[1, 7, 60, 300, 4095, 4096]);
                Op::Symlink { dir, name, len }
            }
            4 => Op::Link { node: self.nth(), dir, name },
            5 => Op::Unlink { dir, name },
            6 => Op::Rmdir { dir, name },
            8 => Op::Tmpfile { dir, perm: self.perm() },
            _ => self.rename(dir, name),
        }
    }

    fn rename(&mut self, dir: u8, name: u8) -> Op {
        let how = match self.rng.below(12) {
            0 => Moving::NoReplace,
            1..=3 => Moving::Exchange,
            4 if self.rng.one_in(4) => Moving::Nonsense,
            5 => Moving::Whiteout,
            _ => Moving::Replace,
        };
        Op::Rename { dir, name, to_dir: self.dir(), to_name: self.name(), how }
    }

    fn attributes(&mut self) -> Op {
        let node = self.nth();
        match self.rng.below(8) {
            4..=6 => self.set_xattr(node),
            7 if self.rng.one_in(2) => Op::RemoveXattr { node, attribute: self.nth() },
            7 => Op::GetXattr { node, attribute: self.nth() },
            0 | 1 => Op::Chmod { node, perm: self.perm() },
            2 => Op::Chown { node, uid: self.rng.below(3) as u32, gid: self.rng.below(3) as u32 },
            _ => Op::Utimes { node, secs: self.rng.below(4_000_000_000) as i64 - 1_000_000_000 },
        }
    }

    fn set_xattr(&mut self, node: u8) -> Op {
        let most = *self.rng.pick(&[20, 20, 300, 5_000, 65_537]);
        let flags = XattrFlags {
            create: self.rng.one_in(6),
            replace: self.rng.one_in(6),
            clear_setgid: self.rng.one_in(4),
        };
        Op::SetXattr { node, attribute: self.nth(), len: self.rng.below(most + 1) as u32, flags }
    }

    fn query(&mut self) -> Op {
        match self.rng.weighted(&[30, 10, 5, 20, 25, 4, 6]) {
            0 => Op::Lookup { dir: self.dir(), name: self.name() },
            1 => Op::List { dir: self.dir(), batch: self.rng.between(1, 9) as u8 },
            2 => Op::Readlink { node: self.nth() },
            3 => Op::Open { node: self.nth() },
            4 => Op::Close { nth: self.nth() },
            5 => Op::Statfs,
            _ => Op::Pass { ms: *self.rng.pick(&[1, 25, 1000, 40_000]) },
        }
    }

    fn data(&mut self) -> Op {
        let file = self.nth();
        match self.rng.weighted(&[34, 24, 14, 16, 10, 12, 4, 5]) {
            0 => self.buffered(file),
            1 => self.direct(file),
            2 => self.small(file),
            3 => self.read(file),
            4 => Op::Truncate { file, size: self.offset() },
            5 => self.fallocate(file),
            6 => Op::Seek { file, offset: self.offset() },
            _ => {
                let (from_offset, to, to_offset) = (self.offset(), self.nth(), self.offset());
                Op::Copy { from: file, from_offset, to, to_offset, len: self.rng.between(1, 6 * self.page) }
            }
        }
    }

    fn fallocate(&mut self, file: u8) -> Op {
        let modes = [
            Fallocate::Allocate,
            Fallocate::KeepSize,
            Fallocate::PunchHole,
            Fallocate::PunchHole,
            Fallocate::ZeroRange,
            Fallocate::ZeroRangeKeepSize,
        ];
        let mode = *self.rng.pick(&modes);
        let (offset, len) = match self.rng.one_in(3) {
            true => (self.page_start(), self.rng.between(1, 6) * self.page),
            false => (self.offset(), self.rng.between(1, 6 * self.page)),
        };
        Op::Fallocate { file, mode, offset, len }
    }

    /// Start of a page, usually among the first few.
    fn page_start(&mut self) -> u64 {
        let limit = *self.rng.pick(&[2, 6, 6, 16, 16, 80]);
        self.rng.below(limit) * self.page
    }

    fn offset(&mut self) -> u64 {
        let start = self.page_start();
        match self.rng.below(4) {
            0 => start,
            1 => start + self.rng.below(64),
            2 => start + self.page - self.rng.between(1, 64),
            _ => start + self.rng.below(self.page),
        }
    }

    fn buffered(&mut self, file: u8) -> Op {
        let offset = self.offset();
        let most = *self.rng.pick(&[16, 600, self.page, self.page, 3 * self.page, 9 * self.page]);
        let how = *self.rng.pick(&[How::Buffered, How::Buffered, How::Buffered, How::Dsync]);
        Op::Write { file, offset, len: self.rng.between(1, most) as u32, how, kill_priv: self.rng.one_in(8) }
    }

    fn direct(&mut self, file: u8) -> Op {
        let how = *self.rng.pick(&[How::Direct, How::DirectDsync]);
        let kill_priv = self.rng.one_in(20);
        let pages = match self.rng.below(40) {
            0 => (1 << 20) / self.page,
            1..=3 => self.rng.between(4, 20),
            4..=15 => self.rng.between(2, 4),
            _ => 1,
        };
        let (mut offset, mut len) = (self.page_start(), pages * self.page);
        if self.rng.one_in(4) {
            // Direct writes of a sector's granularity cut pages (and checksum blocks).
            let unit = *self.rng.pick(&[512, 4096]);
            offset += unit * self.rng.below(self.page / unit);
            len = unit * self.rng.between(1, 2 * self.page / unit);
        }
        Op::Write { file, offset, len: len as u32, how, kill_priv }
    }

    /// A small synchronous overwrite: the engine may put it into the journal.
    fn small(&mut self, file: u8) -> Op {
        let how = *self.rng.pick(&[How::Dsync, How::Dsync, How::Sync]);
        let len = *self.rng.pick(&[1, 8, 100, 512, 1000, 3000]);
        Op::Write { file, offset: self.offset(), len, how, kill_priv: false }
    }

    fn read(&mut self, file: u8) -> Op {
        let len = *self.rng.pick(&[1, 100, self.page, 4 * self.page, 1 << 18]) as u32;
        Op::Read { file, offset: self.offset(), len, direct: self.rng.one_in(3) }
    }

    fn append(&mut self) -> Op {
        let file = self.nth();
        let len = match self.profile {
            Profile::Log => *self.rng.pick(&[200, 20_000, 30_000, 40_000]),
            _ => *self.rng.pick(&[1, 30, 200, 1500, 4096, 8192]),
        };
        let (how, then) = *self.rng.pick(&[
            (How::Buffered, Then::Nothing),
            (How::Buffered, Then::Datasync),
            (How::Buffered, Then::Datasync),
            (How::Buffered, Then::Fsync),
            (How::Dsync, Then::Nothing),
            (How::Direct, Then::Datasync),
        ]);
        Op::Append { file, len, how, then }
    }

    fn sync(&mut self) -> Op {
        match self.rng.below(8) {
            0 => Op::SyncAll,
            n => Op::Fsync { node: self.nth(), datasync: n % 2 == 0 },
        }
    }

    fn maintenance(&mut self) -> Op {
        Op::Maintain(match self.rng.weighted(&[6, 6, 8, 6, 6, 1]) {
            0 => Maintenance::Checkpoint,
            1 => Maintenance::WritebackAll,
            2 => Maintenance::WritebackSome(self.rng.between(1, 20) as usize),
            3 => Maintenance::Publish,
            4 => Maintenance::Commit,
            // Groups have 512 blocks.
            _ => Maintenance::Grow(*self.rng.pick(&[1, 511, 512, 700, 1100])),
        })
    }
}
