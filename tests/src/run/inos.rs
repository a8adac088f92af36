//! Which inode of the file system under test is which inode of the model.

use std::collections::BTreeMap;

use fs_core::Ino;

/// A one-to-one mapping between the model's inode numbers and the subject's.
#[derive(Clone, Debug)]
pub struct InoMap {
    to_subject: BTreeMap<Ino, Ino>,
    to_model: BTreeMap<Ino, Ino>,
}

impl Default for InoMap {
    /// Only the root is known.
    fn default() -> Self {
        let root = BTreeMap::from([(Ino::ROOT, Ino::ROOT)]);
        Self { to_subject: root.clone(), to_model: root }
    }
}

impl InoMap {
    /// Notes a new pair; false if either is known already (a number was given out twice).
    pub fn insert(&mut self, model: Ino, subject: Ino) -> bool {
        let fresh = !self.to_subject.contains_key(&model) && !self.to_model.contains_key(&subject);
        self.to_subject.insert(model, subject);
        self.to_model.insert(subject, model);
        fresh
    }

    /// The subject's number; a number that it cannot know for an unknown one.
    pub fn subject(&self, model: Ino) -> Ino {
        self.to_subject.get(&model).copied().unwrap_or(Ino(u64::MAX - model.0))
    }

    /// The model's number, if known.
    pub fn model(&self, subject: Ino) -> Option<Ino> {
        self.to_model.get(&subject).copied()
    }

    /// All pairs (model, subject).
    pub fn pairs(&self) -> impl Iterator<Item = (Ino, Ino)> {
        self.to_subject.iter().map(|(m, s)| (*m, *s))
    }
}
