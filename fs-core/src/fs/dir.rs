//! Directories: buckets of names by hash.

use std::sync::Arc;

use crate::api::{DirEntry, FileType};
use crate::error::{FsError, Result};
use crate::format::dirent::{
    BUCKET_MAX, NAME_MAX, NameEntry, decode_bucket, encode_bucket, name_hash, valid_name,
};
use crate::format::{Change, ItemKind, Key};
use crate::fs::Inode;
use crate::types::{BlockNr, Ino};
use crate::volume::Volume;

/// Buckets read at once by readdir.
const READDIR_STEP: usize = 128;

/// The names that share a hash.
pub(crate) struct Bucket {
    key: Key,
    entries: Vec<NameEntry>,
}

impl Bucket {
    /// The entry of a name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<&NameEntry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The change that adds a name; ENOSPC if too many names share its hash.
    pub(crate) fn add(&mut self, name: &[u8], ino: Ino, kind: FileType) -> Result<Change> {
        let slot = (0..=u8::MAX).find(|s| self.entries.iter().all(|e| e.slot != *s));
        match slot {
            Some(slot) if self.entries.len() < BUCKET_MAX => {
                self.entries.push(NameEntry { ino, kind, slot, name: name.to_vec() });
                Ok(self.change())
            }
            _ => Err(FsError::NO_SPACE),
        }
    }

    /// The change that removes a name.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Change {
        self.entries.retain(|e| e.name != name);
        self.change()
    }

    /// The change that lets a name lead elsewhere.
    pub(crate) fn point(&mut self, name: &[u8], ino: Ino, kind: FileType) -> Change {
        for e in self.entries.iter_mut().filter(|e| e.name == name) {
            (e.ino, e.kind) = (ino, kind);
        }
        self.change()
    }

    fn change(&self) -> Change {
        if self.entries.is_empty() {
            Change::DelItem { key: self.key }
        } else {
            Change::PutItem { key: self.key, value: encode_bucket(&self.entries) }
        }
    }

    /// Where it is.
    pub(crate) fn key(&self) -> Key {
        self.key
    }
}

/// Checks a name that is to be made: ENAMETOOLONG, or EEXIST/EINVAL for what cannot be a name.
pub(crate) fn check_new_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(FsError::NAME_TOO_LONG);
    }
    match name {
        b"" => Err(FsError::NOT_FOUND),
        b"." | b".." => Err(FsError::EXISTS),
        _ if !valid_name(name) => Err(FsError::INVALID),
        _ => Ok(()),
    }
}

impl Volume {
    /// The bucket that `name` is or would be in.
    pub(crate) fn bucket(&self, dir: Ino, name: &[u8]) -> Result<Bucket> {
        let key = Key::new(dir, ItemKind::DirEntry, name_hash(&self.superblock.hash_key, name));
        let entries = match self.meta.item(&key)? {
            Some(value) => decode(&key, &value)?,
            None => Vec::new(),
        };
        Ok(Bucket { key, entries })
    }

    /// The bucket of a name that is to be removed: ENAMETOOLONG.
    pub(crate) fn bucket_of_old(&self, dir: Ino, name: &[u8]) -> Result<Bucket> {
        if name.len() > NAME_MAX {
            return Err(FsError::NAME_TOO_LONG);
        }
        self.bucket(dir, name)
    }

    /// The entry of `name` in `dir`; ENOENT.
    pub(crate) fn find_name(&self, dir: Ino, name: &[u8]) -> Result<NameEntry> {
        self.bucket_of_old(dir, name)?.find(name).cloned().ok_or(FsError::NOT_FOUND)
    }

    /// See [`FsOps::readdir`](crate::api::FsOps::readdir).
    pub(crate) fn list(
        &self,
        dir: &Inode,
        cookie: u64,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let parent = {
            let state = dir.state.lock();
            if state.item.kind != FileType::Directory {
                return Err(FsError::NOT_DIR);
            }
            state.item.parent
        };
        let dots = [(dir.ino, &b"."[..]), (parent, &b".."[..])];
        for (i, (ino, name)) in dots.into_iter().enumerate().skip(cookie as usize) {
            let entry =
                DirEntry { ino, kind: FileType::Directory, next_cookie: i as u64 + 1, name: name.to_vec() };
            if !emit(&entry) {
                return Ok(());
            }
        }
        let mut from = Key::new(dir.ino, ItemKind::DirEntry, cookie >> 8);
        let to = Key::new(dir.ino, ItemKind::DirEntry, u64::MAX);
        loop {
            let (items, next) = self.meta.scan(from, to, READDIR_STEP)?;
            for (key, value) in items {
                let mut entries = decode(&key, &value)?;
                entries.sort_unstable_by_key(|e| e.slot);
                for e in entries {
                    let at = key.offset << 8 | u64::from(e.slot);
                    if at < cookie {
                        continue;
                    }
                    let entry = DirEntry {
                        ino: e.ino,
                        kind: e.kind,
                        next_cookie: at.saturating_add(1),
                        name: e.name,
                    };
                    if !emit(&entry) {
                        return Ok(());
                    }
                }
            }
            match next {
                Some(key) => from = key,
                None => return Ok(()),
            }
        }
    }
}

fn decode(key: &Key, value: &Arc<[u8]>) -> Result<Vec<NameEntry>> {
    decode_bucket(value).ok_or_else(|| {
        FsError::corrupt("directory item", BlockNr(0), format!("directory {}: impossible values", key.ino))
    })
}
