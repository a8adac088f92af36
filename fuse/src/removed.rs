//! Directories that were removed while the kernel remembers them.
//!
//! A process may have one as its working directory: then the kernel has no open handle of it, and yet
//! asks for its attributes. So it is kept open here until the kernel forgets it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use fs_core::Ino;
use parking_lot::Mutex;

/// The directories that are kept open.
#[derive(Default)]
pub(crate) struct Removed {
    inos: Mutex<HashSet<Ino>>,
    /// Their number, so that forgetting other inodes takes no lock.
    count: AtomicUsize,
}

impl Removed {
    /// Notes that `ino` was removed and has been opened; false if that is known: then the open is one too
    /// many.
    pub(crate) fn keep(&self, ino: Ino) -> bool {
        let new = self.inos.lock().insert(ino);
        if new {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        new
    }

    /// The kernel has forgotten `ino`; true if it has to be closed now.
    pub(crate) fn forgotten(&self, ino: Ino) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let kept = self.inos.lock().remove(&ino);
        if kept {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_closed_once() {
        let removed = Removed::default();
        assert!(!removed.forgotten(Ino(5)));
        assert!(removed.keep(Ino(5)));
        assert!(!removed.keep(Ino(5)));
        assert!(!removed.forgotten(Ino(6)));
        assert!(removed.forgotten(Ino(5)));
        assert!(!removed.forgotten(Ino(5)));
    }
}
