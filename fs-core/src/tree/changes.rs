//! The stream of changes that goes into a new tree.

use std::collections::VecDeque;
use std::fmt;

use crate::error::{FsError, Result};
use crate::format::Key;
use crate::format::node::MAX_VALUE;

/// Changes taken from the source at a time; what prefetching can see.
const LOOKAHEAD: usize = 128;

/// Computes an item's new value from the one in the tree; `None` stands for "no item" both ways.
pub type Update<'a> = Box<dyn FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>> + 'a>;

/// What becomes of an item.
pub enum ItemChange<'a> {
    /// It gets this value of at most [`MAX_VALUE`] bytes, whether it existed or not.
    Put(Vec<u8>),
    /// It is removed, if it exists.
    Delete,
    /// It gets a value computed from the one it has. An error ends the whole
    /// [`apply`](super::apply).
    Update(Update<'a>),
}

impl<'a> ItemChange<'a> {
    /// A read-modify-write by `f`.
    pub fn update(f: impl FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>> + 'a) -> Self {
        Self::Update(Box::new(f))
    }

    /// The new value, given the old one.
    pub(super) fn resolve(self, old: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let new = match self {
            Self::Put(value) => Some(value),
            Self::Delete => None,
            Self::Update(f) => f(old)?,
        };
        match new {
            Some(value) if value.len() > MAX_VALUE => {
                Err(FsError::Volume(format!("an item of {} bytes is too long for the tree", value.len())))
            }
            new => Ok(new),
        }
    }
}

impl fmt::Debug for ItemChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(value) => write!(f, "Put({} bytes)", value.len()),
            Self::Delete => f.write_str("Delete"),
            Self::Update(_) => f.write_str("Update"),
        }
    }
}

/// The changes, with a bounded look ahead.
pub(super) struct Changes<'a, 'c> {
    source: &'a mut dyn Iterator<Item = (Key, ItemChange<'c>)>,
    ahead: VecDeque<(Key, ItemChange<'c>)>,
}

impl<'a, 'c> Changes<'a, 'c> {
    pub(super) fn new(source: &'a mut dyn Iterator<Item = (Key, ItemChange<'c>)>) -> Self {
        Self { source, ahead: VecDeque::new() }
    }

    /// Key of the next change.
    pub(super) fn peek(&mut self) -> Result<Option<Key>> {
        if self.ahead.len() <= 1 {
            self.refill()?;
        }
        Ok(self.ahead.front().map(|(key, _)| *key))
    }

    /// There is a change below `below` (`None`: no bound).
    pub(super) fn any_below(&mut self, below: Option<Key>) -> Result<bool> {
        Ok(self.peek()?.is_some_and(|key| is_below(&key, below)))
    }

    /// The next change if it is below `below`.
    pub(super) fn next_below(&mut self, below: Option<Key>) -> Result<Option<(Key, ItemChange<'c>)>> {
        if self.any_below(below)? { Ok(self.ahead.pop_front()) } else { Ok(None) }
    }

    /// The next change if it is for `key`.
    pub(super) fn next_at(&mut self, key: &Key) -> Result<Option<ItemChange<'c>>> {
        if self.peek()? != Some(*key) {
            return Ok(None);
        }
        Ok(self.ahead.pop_front().map(|(_, change)| change))
    }

    /// The keys below `below` that are known already.
    pub(super) fn known_below(&self, below: Option<Key>) -> impl Iterator<Item = &Key> {
        self.ahead.iter().map(|(key, _)| key).take_while(move |key| is_below(key, below))
    }

    /// Keeps one change back so that the order of the next ones is checked against it.
    fn refill(&mut self) -> Result<()> {
        while self.ahead.len() < LOOKAHEAD {
            let Some((key, change)) = self.source.next() else { break };
            if self.ahead.back().is_some_and(|(last, _)| *last >= key) {
                return Err(FsError::Volume(format!("changes out of order at {key:?}")));
            }
            self.ahead.push_back((key, change));
        }
        Ok(())
    }
}

fn is_below(key: &Key, below: Option<Key>) -> bool {
    below.is_none_or(|below| *key < below)
}
