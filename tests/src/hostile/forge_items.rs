//! Forgery of single items of the tree: each is well-formed, its node's checksum is right, and what it says does not agree with
//! the rest.

use std::collections::HashSet;

use blockdev::{AlignedBuf, RamDevice};
use fs_core::api::FileType;
use fs_core::format::bitmap::{decode_piece, encode_piece};
use fs_core::format::dirent::{decode_bucket, encode_bucket};
use fs_core::format::node::{CAPACITY, LEAF_OVERHEAD, Node, NodeBuilder, NodePtr, Stamp};
use fs_core::format::{Chunk, InodeItem, ItemKind, Key, PageBlocks, PageEntry};
use fs_core::{BlockNr, Ino, Lsn, NODE_SIZE};

use super::aged::Aged;
use super::forge::{Forger, number};
use super::layout::read;
use super::script::Script;

/// Types that a directory entry may claim.
const KINDS: [FileType; 4] = [FileType::Regular, FileType::Directory, FileType::Symlink, FileType::Fifo];

/// Items of a leaf.
type Items = Vec<(Key, Vec<u8>)>;

/// Changes items of a copy of the image, as the script says. Returns what was done, and the inodes that the items belong to: all
/// others are still whole.
pub fn forge_items(aged: &Aged, script: &mut Script<'_>) -> (RamDevice, String, HashSet<u64>) {
    let mut forger = Forger { aged, device: aged.image.snapshot(), done: Vec::new() };
    let touched = (0..1 + script.below(3)).filter_map(|_| forger.item(script)).collect();
    (forger.device, forger.done.join("; "), touched)
}

impl Forger<'_> {
    /// Changes one item. Gives the inode that it belongs to; 0: the volume.
    fn item(&mut self, script: &mut Script<'_>) -> Option<u64> {
        let leaves: Vec<usize> =
            self.aged.layout.nodes.iter().enumerate().filter(|(_, n)| n.level == 0).map(|(i, _)| i).collect();
        let at = *script.pick(&leaves);
        let node = self.open(at)?;
        let mut items: Items = (0..node.len()).map(|i| (node.key(i), node.value(i).to_vec())).collect();
        // The first key is in the parent, too.
        if items.len() < 2 {
            return None;
        }
        let index = 1 + script.below(items.len() - 1);
        let key = items[index].0;
        let what = match script.below(8) {
            0 => {
                items.remove(index);
                "removed"
            }
            1 => {
                let moved = Key { offset: key.offset.wrapping_add(1 + script.below(3) as u64), ..key };
                let follows = items.get(index + 1).is_none_or(|(next, _)| moved < *next);
                let value = items[index].1.clone();
                if follows && moved > key && index + 1 < items.len() {
                    items.insert(index + 1, (moved, value));
                }
                "there twice"
            }
            _ => {
                let others: Items = items.iter().filter(|(k, _)| k.kind == key.kind).cloned().collect();
                items[index].1 = self.value(key, &items[index].1, &others, script)?;
                "changed"
            }
        };
        let size: usize = items.iter().map(|(_, value)| LEAF_OVERHEAD + value.len()).sum();
        if size > CAPACITY || items.iter().any(|(_, value)| value.len() > fs_core::format::node::MAX_VALUE) {
            return None;
        }
        let stamp =
            Stamp { volume: self.aged.layout.superblock.uuid, epoch: node.epoch(), birth: node.ptr().birth };
        let mut builder = NodeBuilder::new(0);
        items.iter().for_each(|(key, value)| builder.push(key, value));
        let node = builder.finish(&stamp, self.aged.layout.nodes[at].addr);
        self.put_node(at, node.bytes().to_vec());
        self.note("item", format!("{key:?} {what}"));
        Some(key.ino.0)
    }

    fn open(&self, at: usize) -> Option<Node> {
        let addr = self.aged.layout.nodes[at].addr;
        let bytes = read(&self.device, addr.offset(), NODE_SIZE);
        let crc = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
        let birth = fs_core::Lsn(u64::from_le_bytes(bytes[48..56].try_into().ok()?));
        let ptr = NodePtr { addr, birth, crc };
        Node::open(AlignedBuf::from_slice(&bytes), ptr, self.aged.layout.superblock.uuid).ok()
    }

    /// Another value for an item. `others`: those of its kind in the same leaf.
    fn value(&self, key: Key, old: &[u8], others: &Items, script: &mut Script<'_>) -> Option<Vec<u8>> {
        match key.kind {
            ItemKind::Inode => Some(self.inode(InodeItem::decode(old)?, script).encode()),
            ItemKind::DirEntry => self.names(old, script),
            ItemKind::Map => self.map(old, others, script),
            ItemKind::Bitmap => {
                let mut words = decode_piece(old)?;
                for _ in 0..1 + script.below(8) {
                    let word = script.below(words.len());
                    words[word] ^= script.number();
                }
                encode_piece(&words)
            }
            _ => {
                let mut value = old.to_vec();
                match script.below(4) {
                    0 => value.truncate(script.below(value.len())),
                    1 => value.push(script.byte()),
                    2 => value = script.pick(others).1.clone(),
                    _ => {
                        let at = script.below(value.len());
                        *value.get_mut(at)? = script.byte();
                    }
                }
                Some(value)
            }
        }
    }

    /// Permissions and owners stay: nothing could tell that they are others.
    fn inode(&self, mut item: InodeItem, script: &mut Script<'_>) -> InodeItem {
        let n = number(self.aged, script);
        match script.below(6) {
            0 => item.nlink = *script.pick(&[0, 1, 2, 3, 70_000, u32::MAX]),
            1 => item.size = n % (1 << 63),
            2 => item.size = item.size.saturating_sub(1 + n % 10_000),
            3 => item.blocks = n,
            // A loop of parents, or one that is not there or no directory.
            4 => item.parent = Ino(script.below(60) as u64),
            _ => item.xattr_list = n as u32,
        }
        item
    }

    fn names(&self, old: &[u8], script: &mut Script<'_>) -> Option<Vec<u8>> {
        let mut names = decode_bucket(old)?;
        let at = script.below(names.len());
        let mut entry = names.get(at)?.clone();
        match script.below(7) {
            // To an inode that is not there, or to another one, perhaps a directory above.
            0 => names[at].ino = Ino(100_000 + u64::from(script.byte())),
            1 => names[at].ino = Ino(1 + script.below(60) as u64),
            2 => names[at].kind = *script.pick(&KINDS),
            3 => names[at].name = b"of another hash".to_vec(),
            // The same name twice.
            4 => {
                entry.slot = entry.slot.wrapping_add(1);
                names.push(entry);
            }
            // The same slot twice.
            5 => {
                entry.name = b"second".to_vec();
                names.push(entry);
            }
            _ => names[at].slot = script.byte(),
        }
        Some(encode_bucket(&names))
    }

    fn map(&self, old: &[u8], others: &Items, script: &mut Script<'_>) -> Option<Vec<u8>> {
        let layout = &self.aged.layout;
        let page_blocks = layout.superblock.page_size.blocks();
        let mut chunk = Chunk::decode(old, page_blocks)?;
        let mapped: Vec<usize> =
            (0..chunk.pages.len()).filter(|i| chunk.pages[*i].blocks().is_some()).collect();
        let page = *mapped.get(script.below(mapped.len()))?;
        let PageEntry::Mapped(blocks, crc) = chunk.pages[page] else { return None };
        let at = |start: BlockNr| PageEntry::Mapped(PageBlocks { start, ..blocks }, crc);
        chunk.pages[page] = match script.below(9) {
            0 => PageEntry::Unwritten(blocks),
            1 => PageEntry::Mapped(blocks, crc ^ 1),
            2 => PageEntry::Hole,
            3 => at(BlockNr(number(self.aged, script) % (1 << 44))),
            4 => at(script.pick(&layout.nodes).addr),
            5 => at(script.pick(&layout.records).addr),
            // Written in the future, or long ago.
            6 => PageEntry::Mapped(PageBlocks { birth: Lsn(script.number()), ..blocks }, crc),
            // Two pages, of one file or of two, in the same blocks, with the right checksum.
            7 => chunk.pages[*script.pick(&mapped)],
            _ => {
                let other = Chunk::decode(&script.pick(others).1, page_blocks)?;
                *script.pick(&other.pages)
            }
        };
        chunk.encode(page_blocks)
    }
}
