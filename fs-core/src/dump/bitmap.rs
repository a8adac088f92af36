//! Which blocks are in use, by the bitmaps.

use std::sync::Arc;

use blockdev::BlockDevice;
use serde_json::Value;

use super::doc::Doc;
use crate::error::Result;
use crate::fsck::marked_blocks;
use crate::types::BlockRun;

/// The used blocks of each block group, as a mount would see them: the checkpoint's bitmaps with
/// its pending list, the journal's changes, and the journals themselves.
pub fn bitmap(device: &Arc<dyn BlockDevice>) -> Result<String> {
    bitmap_doc(device).map(|d| d.text())
}

/// See [`bitmap`].
pub fn bitmap_json(device: &Arc<dyn BlockDevice>) -> Result<Value> {
    bitmap_doc(device).map(|d| d.json())
}

fn bitmap_doc(device: &Arc<dyn BlockDevice>) -> Result<Doc> {
    let (sb, runs) = marked_blocks(device)?;
    let size = u64::from(sb.group_blocks);
    let mut groups: Vec<(u64, u64, Vec<Doc>)> = Vec::new();
    for run in runs {
        for part in parts(run, size) {
            let group = part.start.0 / size;
            if groups.last().is_none_or(|g| g.0 != group) {
                groups.push((group, 0, Vec::new()));
            }
            if let Some((_, used, list)) = groups.last_mut() {
                *used += u64::from(part.len);
                list.push(format!("{} to {}", part.start, part.end().0 - 1).into());
            }
        }
    }
    let used: u64 = groups.iter().map(|g| g.1).sum();
    let groups = groups.into_iter().map(|(group, used, list)| {
        let fields = vec![("group", group.into()), ("used", used.into()), ("blocks", list.into())];
        Doc::Fields(fields)
    });
    let groups: Vec<Doc> = groups.collect();
    Ok(Doc::Fields(vec![
        ("group_blocks", size.into()),
        ("used_blocks", used.into()),
        ("groups", groups.into()),
    ]))
}

/// Cuts a run at the borders of groups.
fn parts(run: BlockRun, size: u64) -> impl Iterator<Item = BlockRun> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let room = size - rest.start.0 % size;
        let len = u64::from(rest.len).min(room) as u32;
        let part = BlockRun::new(rest.start, len);
        rest = BlockRun::new(part.end(), rest.len - len);
        (len > 0).then_some(part)
    })
}
