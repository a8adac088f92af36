//! The nodes and items of the metadata tree.

use std::io::Write;
use std::sync::Arc;

use blockdev::BlockDevice;
use serde_json::{Value, json};

use crate::error::{FsError, Result};
use crate::format::Key;
use crate::format::node::{Expected, Node, NodePtr};
use crate::tree::{NodeCache, TreeReader, TreeVisitor};
use crate::volume::{best_slot, read_superblock, tree_root};

/// Writes the last checkpoint's tree, a line for each node and item, to `out`: trees can be larger
/// than memory. Damaged nodes are shown as such.
pub fn tree(device: &Arc<dyn BlockDevice>, out: &mut dyn Write) -> Result<()> {
    walk(device, out, Form::Text)
}

/// The same as one JSON object: fields of the root, and in `entries` an object for each node and
/// item, in the order of the tree.
pub fn tree_json(device: &Arc<dyn BlockDevice>, out: &mut dyn Write) -> Result<()> {
    walk(device, out, Form::Json)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

fn walk(device: &Arc<dyn BlockDevice>, out: &mut dyn Write, form: Form) -> Result<()> {
    let (sb, _) = read_superblock(device.as_ref())?;
    let (slot, _) = best_slot(device.as_ref(), &sb)?;
    let root = tree_root(&slot);
    let reader = TreeReader::new(Arc::new(NodeCache::new(device.clone(), sb.uuid, 1 << 20)));
    let mut lines = Lines { out, form, height: root.height, first: true, failed: None };
    let (epoch, lsn, levels) = (slot.epoch, slot.checkpoint_lsn, root.height);
    match form {
        Form::Text => lines.write(&format!("tree of epoch {epoch}, record {lsn}, {levels} levels\n")),
        Form::Json => lines.write(&format!(
            "{{\"epoch\": {epoch}, \"checkpoint_lsn\": {lsn}, \"levels\": {levels}, \"entries\": ["
        )),
    }
    crate::tree::verify(&reader, &root, &mut lines)?;
    if form == Form::Json {
        lines.write("\n]}\n");
    }
    match lines.failed {
        Some(e) => Err(FsError::Volume(format!("the output could not be written: {e}"))),
        None => Ok(()),
    }
}

struct Lines<'a> {
    out: &'a mut dyn Write,
    form: Form,
    height: u8,
    first: bool,
    failed: Option<std::io::Error>,
}

impl Lines<'_> {
    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(text.as_bytes()).err();
        }
    }

    /// One node or item, `level` levels above the items, in the form that is asked for.
    fn put(&mut self, level: u8, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self.form {
            Form::Text => {
                let pad = "  ".repeat(usize::from(self.height.saturating_sub(level)));
                self.write(&format!("{pad}{}\n", text()));
            }
            Form::Json => {
                let comma = if std::mem::take(&mut self.first) { "" } else { "," };
                self.write(&format!("{comma}\n{}", json()));
            }
        }
    }
}

impl TreeVisitor for Lines<'_> {
    fn is_done(&self) -> bool {
        self.failed.is_some()
    }

    fn node(&mut self, node: &Node, _: &Expected) {
        let ptr = node.ptr();
        let (level, entries, used) = (node.level(), node.len(), node.used());
        let text = || {
            format!(
                "node at block {}: level {level}, {entries} entries, {used} bytes used, epoch {}, born in record {}, crc {:08x}",
                ptr.addr,
                node.epoch(),
                ptr.birth,
                ptr.crc
            )
        };
        let json = || {
            json!({
                "node": ptr.addr.0, "level": level, "entries": entries, "used_bytes": used,
                "epoch": node.epoch().0, "birth": ptr.birth.0, "crc": format!("{:08x}", ptr.crc),
            })
        };
        self.put(level, text, json);
    }

    fn item(&mut self, key: Key, value: &[u8]) {
        let (kind, bytes) = (format!("{:?}", key.kind), value.len());
        let text = || format!("  inode {} {kind} {}: {bytes} bytes", key.ino, key.offset);
        let json = || json!({"item": kind, "ino": key.ino.0, "offset": key.offset, "bytes": bytes});
        self.put(0, text, json);
    }

    fn bad(&mut self, ptr: NodePtr, expected: &Expected, error: FsError) {
        let said = crate::fsck::text(&error);
        let damaged = || format!("DAMAGED node at block {}: {said}", ptr.addr);
        let json = || json!({"node": ptr.addr.0, "level": expected.level, "damaged": said});
        self.put(expected.level, damaged, json);
    }
}
