//! Counts what the kernel has open, so that opens whose release never comes (the kernel drops
//! queued releases when a mount goes away) are still closed.

use std::collections::HashMap;

use fs_core::Ino;
use parking_lot::Mutex;

/// Shards, so that threads rarely meet at one lock.
const SHARDS: usize = 16;

/// Number of opens for each open inode.
#[derive(Default)]
pub(crate) struct OpenTable {
    shards: [Mutex<HashMap<Ino, u64>>; SHARDS],
}

impl OpenTable {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, u64>> {
        &self.shards[ino.get() as usize % SHARDS]
    }

    /// Counts one more open of `ino`.
    pub(crate) fn opened(&self, ino: Ino) {
        *self.shard(ino).lock().entry(ino).or_insert(0) += 1;
    }

    /// Counts one less; false if there was none.
    pub(crate) fn released(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(count) = shard.get_mut(&ino) else { return false };
        *count -= 1;
        if *count == 0 {
            shard.remove(&ino);
        }
        true
    }

    /// Forgets all, calling `close` once for each open.
    pub(crate) fn drain(&self, mut close: impl FnMut(Ino)) {
        for shard in &self.shards {
            let opens = std::mem::take(&mut *shard.lock());
            for (ino, count) in opens {
                (0..count).for_each(|_| close(ino));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_open_is_closed_once() {
        let table = OpenTable::default();
        for ino in [5, 5, 21, 7] {
            table.opened(Ino(ino));
        }
        assert!(table.released(Ino(5)));
        assert!(table.released(Ino(7)));
        assert!(!table.released(Ino(7)));
        let mut left = Vec::new();
        table.drain(|ino| left.push(ino.get()));
        left.sort_unstable();
        assert_eq!(left, [5, 21]);
        assert!(!table.released(Ino(21)));
    }
}
