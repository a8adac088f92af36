//! A small volume with some of everything, and the means to put wrong things on it with right
//! checksums: through the engine's own encoders, behind the back of its rules.

use std::sync::Arc;

use blockdev::{AlignedBuf, BlockDevice, IoClass, RamDevice};

use super::workload::OWNER;
use super::{full_check, mount};
use crate::api::{Fallocate, FsOps, IoFlags};
use crate::env::SystemEnv;
use crate::format::dirent::{NameEntry, decode_bucket, encode_bucket, name_hash};
use crate::format::{Change, InodeItem, ItemKind, Key, MappedRun, PageBlocks, PageEntry, RootSlot};
use crate::fsck::{Problem, ProblemKind};
use crate::types::{BLOCK_SIZE, BlockNr, Epoch, Ino, PageNr};
use crate::volume::{FormatOptions, Volume, recover};

pub(crate) struct Rig {
    pub(crate) ram: RamDevice,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) v: Arc<Volume>,
    pub(crate) dir: Ino,
    pub(crate) file: Ino,
    pub(crate) other: Ino,
    pub(crate) link: Ino,
    pub(crate) sub: Ino,
    pub(crate) inner: Ino,
}

impl Rig {
    /// A mounted volume: /d, /d/f (5 pages), /d/g (1 page and preallocated ones), /d/l, /d/s, /d/s/t.
    /// Half of it is in the tree, half in the journal only.
    pub(crate) fn new() -> Self {
        let ram = RamDevice::new(64 << 20, 512);
        let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
        Volume::format(device.as_ref(), &FormatOptions::default(), &SystemEnv).unwrap();
        let v = mount(&device);
        let dir = v.mkdir(Ino::ROOT, b"d", 0o755, OWNER).unwrap().ino;
        let direct = IoFlags { direct: true, ..IoFlags::default() };
        let file = v.create(dir, b"f", 0o644, OWNER).unwrap().ino;
        v.write(file, 0, &[7; 5 * 16384], direct).unwrap();
        v.close(file);
        let link = v.symlink(dir, b"l", b"f", OWNER).unwrap().ino;
        v.checkpoint().unwrap();
        let other = v.create(dir, b"g", 0o644, OWNER).unwrap().ino;
        v.write(other, 0, &[8; 10_000], direct).unwrap();
        v.fallocate(other, Fallocate::KeepSize, 0, 100_000).unwrap();
        v.close(other);
        let sub = v.mkdir(dir, b"s", 0o755, OWNER).unwrap().ino;
        let inner = v.mkdir(sub, b"t", 0o755, OWNER).unwrap().ino;
        v.commit().unwrap();
        Self { ram, device, v, dir, file, other, link, sub, inner }
    }

    /// Applies changes that no operation would make.
    pub(crate) fn apply(&self, changes: Vec<Change>) {
        self.v.meta.apply(changes, 0).unwrap();
        self.v.commit().unwrap();
    }

    pub(crate) fn put(&self, key: Key, value: Vec<u8>) {
        self.apply(vec![Change::PutItem { key, value }]);
    }

    pub(crate) fn edit_inode(&self, ino: Ino, edit: impl FnOnce(&mut InodeItem)) {
        let key = Key::new(ino, ItemKind::Inode, 0);
        let mut item = InodeItem::decode(&self.v.meta.item(&key).unwrap().unwrap()).unwrap();
        edit(&mut item);
        self.put(key, item.encode());
    }

    pub(crate) fn name_key(&self, dir: Ino, name: &[u8]) -> Key {
        Key::new(dir, ItemKind::DirEntry, name_hash(&self.v.superblock.hash_key, name))
    }

    pub(crate) fn edit_bucket(&self, dir: Ino, name: &[u8], edit: impl FnOnce(&mut Vec<NameEntry>)) {
        let key = self.name_key(dir, name);
        let old = self.v.meta.item(&key).unwrap();
        let mut entries = old.map_or(Vec::new(), |v| decode_bucket(&v).unwrap());
        edit(&mut entries);
        if entries.is_empty() {
            self.apply(vec![Change::DelItem { key }]);
        } else {
            self.put(key, encode_bucket(&entries));
        }
    }

    /// A page's blocks.
    pub(crate) fn blocks(&self, ino: Ino, page: u64) -> PageBlocks {
        let mut out = [PageEntry::Hole];
        self.v.meta.pages(ino, PageNr(page), &mut out).unwrap();
        *out[0].blocks().unwrap()
    }

    /// Maps a page, with the right checksum of what is there.
    pub(crate) fn map(&self, ino: Ino, page: u64, start: BlockNr) {
        let bytes = self.read(start, 4);
        let run = MappedRun { start, pages: 1, last_blocks: 4, crcs: Some(vec![crc32c::crc32c(&bytes)]) };
        self.apply(vec![Change::MapRun { ino, page: PageNr(page), run }]);
    }

    pub(crate) fn read(&self, at: BlockNr, blocks: usize) -> AlignedBuf {
        read(self.device.as_ref(), at, blocks)
    }

    pub(crate) fn flip(&self, at: BlockNr, byte: usize) {
        flip(self.device.as_ref(), at, byte);
    }

    /// The problems found now.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        full_check(&self.device).problems
    }

    /// The check finds a problem of this kind whose text has `words` in it, now and, if a
    /// checkpoint can be made of the state, when it is in the tree.
    pub(crate) fn expect(&self, kind: ProblemKind, words: &str) {
        expect(&self.problems(), kind, words);
        if self.v.checkpoint().is_ok() {
            expect(&self.problems(), kind, words);
        }
    }
}

pub(crate) fn expect(problems: &[Problem], kind: ProblemKind, words: &str) {
    let found = problems.iter().any(|p| p.kind == kind && p.to_string().contains(words));
    assert!(found, "no {kind:?} with {words:?} in {problems:#?}");
}

pub(crate) fn read(device: &dyn BlockDevice, at: BlockNr, blocks: usize) -> AlignedBuf {
    device.read_at(at.offset(), AlignedBuf::zeroed(blocks * BLOCK_SIZE), IoClass::Data).unwrap()
}

pub(crate) fn write(device: &dyn BlockDevice, at: BlockNr, bytes: &[u8]) {
    device.write_at(at.offset(), AlignedBuf::from_slice(bytes), false, IoClass::Data).unwrap();
}

pub(crate) fn flip(device: &dyn BlockDevice, at: BlockNr, byte: usize) {
    let mut buf = read(device, at, 1);
    buf[byte] ^= 0x10;
    write(device, at, &buf);
}

/// Replaces both root slots of the running epoch by an edited one.
pub(crate) fn edit_slot(device: &dyn BlockDevice, edit: impl FnOnce(&mut RootSlot)) {
    let r = recover(device).unwrap();
    let (sb, mut slot) = (r.superblock, r.slot);
    edit(&mut slot);
    let epoch: Epoch = slot.epoch;
    for index in 0..2 {
        let own = RootSlot::address(sb.slots_start, sb.slot_rows, epoch, index);
        let copy = RootSlot { seq: slot.seq / 2 * 2 + index, ..slot.clone() };
        write(device, own, &copy.encode(&sb.uuid, own).unwrap());
    }
}
