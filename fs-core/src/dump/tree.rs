//! The nodes and items of the metadata tree.

use std::io::Write;
use std::sync::Arc;

use blockdev::BlockDevice;

use crate::error::{FsError, Result};
use crate::format::Key;
use crate::format::node::{Expected, Node, NodePtr};
use crate::fsck::text;
use crate::tree::{NodeCache, TreeReader, TreeVisitor};
use crate::volume::{best_slot, read_superblock, tree_root};

/// Writes the last checkpoint's tree, a line for each node and item, to `out`: trees can be larger
/// than memory. Damaged nodes are shown as such.
pub fn tree(device: &Arc<dyn BlockDevice>, out: &mut dyn Write) -> Result<()> {
    let (sb, _) = read_superblock(device.as_ref())?;
    let (slot, _) = best_slot(device.as_ref(), &sb)?;
    let root = tree_root(&slot);
    let reader = TreeReader::new(Arc::new(NodeCache::new(device.clone(), sb.uuid, 1 << 20)));
    let mut lines = Lines { out, height: root.height, failed: None };
    lines.put(&format!(
        "tree of epoch {}, record {}, {} levels",
        slot.epoch, slot.checkpoint_lsn, root.height
    ));
    crate::tree::verify(&reader, &root, &mut lines)?;
    match lines.failed {
        Some(e) => Err(FsError::Volume(format!("the output could not be written: {e}"))),
        None => Ok(()),
    }
}

struct Lines<'a> {
    out: &'a mut dyn Write,
    height: u8,
    failed: Option<std::io::Error>,
}

impl Lines<'_> {
    fn put(&mut self, line: &str) {
        if self.failed.is_none() {
            self.failed = writeln!(self.out, "{line}").err();
        }
    }

    fn indent(&self, level: u8) -> String {
        "  ".repeat(usize::from(self.height.saturating_sub(level)))
    }
}

impl TreeVisitor for Lines<'_> {
    fn node(&mut self, node: &Node, _: &Expected) {
        let (ptr, pad) = (node.ptr(), self.indent(node.level()));
        self.put(&format!(
            "{pad}node at block {}: level {}, {} entries, {} bytes used, epoch {}, born in record {}, crc {:08x}",
            ptr.addr,
            node.level(),
            node.len(),
            node.used(),
            node.epoch(),
            ptr.birth,
            ptr.crc
        ));
    }

    fn item(&mut self, key: Key, value: &[u8]) {
        let pad = self.indent(0);
        self.put(&format!("{pad}  inode {} {:?} {}: {} bytes", key.ino, key.kind, key.offset, value.len()));
    }

    fn bad(&mut self, ptr: NodePtr, expected: &Expected, error: FsError) {
        let pad = self.indent(expected.level);
        self.put(&format!("{pad}DAMAGED node at block {}: {}", ptr.addr, text(&error)));
    }
}
