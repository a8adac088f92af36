//! Extended attributes: those that are complete stay.

use crate::format::xattr::{decode_xattr, xattr_hash, xattr_place};
use crate::format::{Key, Superblock};

/// An item with what the tree has of it.
pub(super) type Part = (Key, Vec<u8>, Option<Vec<u8>>);

/// What becomes of items.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// They stay.
    pub(super) kept: Vec<Part>,
    /// They go.
    pub(super) dropped: Vec<Part>,
}

/// The attributes of the inode whose items pass.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    /// Bytes of the names of those that are complete.
    pub(super) list: u32,
    open: Option<Open>,
}

/// An attribute that has items to come.
#[derive(Debug)]
struct Open {
    hash: u64,
    parts: u64,
    /// Bytes of the value to come.
    missing: usize,
    name: usize,
    items: Vec<Part>,
}

impl Xattrs {
    /// The next item.
    pub(super) fn item(&mut self, sb: &Superblock, item: Part) -> Settled {
        let (hash, part) = xattr_place(item.0.offset);
        let mut settled = Settled::default();
        if part == 0 {
            settled = self.end();
            match begin(sb, hash, &item.1) {
                Some(open) => self.open = Some(open),
                None => {
                    settled.dropped.push(item);
                    return settled;
                }
            }
        }
        let Some(open) = &mut self.open else {
            settled.dropped.push(item);
            return settled;
        };
        let first = part == 0;
        let last = part + 1 == open.parts;
        let follows = open.hash == hash && open.items.len() as u64 == part;
        let fits = first || (item.1.len() <= open.missing && last == (item.1.len() == open.missing));
        if !follows || !fits {
            settled.dropped.append(&mut self.end().dropped);
            settled.dropped.push(item);
            return settled;
        }
        if !first {
            open.missing -= item.1.len();
        }
        open.items.push(item);
        if last && let Some(done) = self.open.take() {
            self.list += done.name as u32 + 1;
            settled.kept = done.items;
        }
        settled
    }

    /// No more items come: what is open is not complete.
    pub(super) fn end(&mut self) -> Settled {
        let dropped = self.open.take().map(|open| open.items).unwrap_or_default();
        Settled { kept: Vec::new(), dropped }
    }
}

fn begin(sb: &Superblock, hash: u64, value: &[u8]) -> Option<Open> {
    let head = decode_xattr(value)?;
    let parts = crate::format::xattr::xattr_parts(head.name.len(), head.size);
    let missing = head.size - head.start.len();
    let right = xattr_hash(&sb.hash_key, head.name) == hash;
    right.then(|| Open { hash, parts, missing, name: head.name.len(), items: Vec::new() })
}
