//! A whole name space as its users see it: read through the interface, in the model's numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use fs_core::Ino;
use fs_core::api::{Attr, DirEntry, FileType, FsOps};

use super::failure::Failure;
use crate::fail_with;
use crate::model::State;

/// A reachable inode.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Attributes, with the subject's inode number.
    pub attr: Attr,
    /// Names, if it is a directory, with the subject's inode numbers.
    pub entries: BTreeMap<Vec<u8>, Ino>,
    /// Where "..", if it is a directory, leads.
    pub parent: Ino,
    /// Target, if it is a symbolic link.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Arc<[u8]>>,
}

/// Everything that is reachable from the root, by the subject's inode numbers.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Inodes.
    pub nodes: BTreeMap<Ino, Reached>,
}

impl Tree {
    /// Walks `fs` from its root.
    pub fn read(fs: &dyn FsOps) -> Result<Self, Failure> {
        let mut tree = Self::default();
        let mut todo = vec![Ino::ROOT];
        while let Some(ino) = todo.pop() {
            if tree.nodes.contains_key(&ino) {
                continue;
            }
            let node = read_node(fs, ino)?;
            todo.extend(node.entries.values().copied());
            tree.nodes.insert(ino, node);
        }
        Ok(tree)
    }

    /// Why the names and attributes are not those of `state`, or `None` if they are. Sizes of
    /// files and times are not looked at.
    pub fn difference(&self, state: &State, to_subject: impl Fn(Ino) -> Ino) -> Option<String> {
        let linked = state.nodes().iter().filter(|(_, n)| n.nlink > 0);
        let mut count = 0;
        for (ino, node) in linked {
            count += 1;
            let at = to_subject(*ino);
            let Some(got) = self.nodes.get(&at) else {
                return Some(format!("model inode {ino} ({at}) is missing: {:?}", node.attr(*ino)));
            };
            let a = &got.attr;
            let seen = (a.kind, a.perm, a.nlink, a.uid, a.gid, a.rdev);
            let want = (node.kind, node.perm, node.nlink, node.uid, node.gid, node.rdev);
            if seen != want {
                return Some(format!("model inode {ino} ({at}) is {seen:?}, should be {want:?}"));
            }
            if let Some(text) = xattr_difference(&got.xattrs, &node.xattrs) {
                return Some(format!("model inode {ino} ({at}): {text}"));
            }
            if let Some(text) = body_difference(got, &node.body, &to_subject) {
                return Some(format!("model inode {ino} ({at}): {text}"));
            }
        }
        let extra = || self.nodes.keys().collect::<Vec<_>>();
        (count != self.nodes.len()).then(|| format!("{count} inodes expected, there are {:?}", extra()))
    }
}

fn body_difference(
    got: &Reached,
    body: &crate::model::Body,
    to_subject: &impl Fn(Ino) -> Ino,
) -> Option<String> {
    use crate::model::Body;
    match body {
        Body::Symlink(target) if *target != got.target => Some("wrong symlink target".into()),
        Body::Dir { parent, .. } if to_subject(*parent) != got.parent => {
            Some(format!("\"..\" leads to {}, should to {}", got.parent, to_subject(*parent)))
        }
        Body::Dir { entries, .. } => {
            let same = entries.len() == got.entries.len()
                && entries.iter().zip(&got.entries).all(|(w, g)| w.0 == g.0 && to_subject(*w.1) == *g.1);
            (!same).then(|| format!("names are {}, should be {}", show(&got.entries), show(entries)))
        }
        _ => None,
    }
}

fn show(entries: &BTreeMap<Vec<u8>, Ino>) -> String {
    let one = |(name, ino): (&Vec<u8>, &Ino)| {
        format!("{}={ino}", String::from_utf8_lossy(&name[..name.len().min(8)]))
    };
    format!("[{}]", entries.iter().map(one).collect::<Vec<_>>().join(" "))
}

fn read_node(fs: &dyn FsOps, ino: Ino) -> Result<Reached, Failure> {
    let told = |what: &str, e: fs_core::FsError| Failure::new(format!("{what} of inode {ino}: {e}"));
    let attr = fs.getattr(ino).map_err(|e| told("getattr", e))?;
    let xattrs = read_xattrs(fs, ino).map_err(|e| told("extended attributes", e))?;
    let mut node = Reached { attr, entries: BTreeMap::new(), parent: ino, target: Vec::new(), xattrs };
    match node.attr.kind {
        FileType::Directory => {
            let listed = list(fs, ino, 50)?;
            for entry in listed {
                match entry.name.as_slice() {
                    b"." if entry.ino == ino => {}
                    b"." => fail_with!("\".\" of inode {ino} leads to {}", entry.ino),
                    b".." => node.parent = entry.ino,
                    _ => add_entry(&mut node, entry)?,
                }
            }
        }
        FileType::Symlink => node.target = fs.readlink(ino).map_err(|e| told("readlink", e))?,
        _ => {}
    }
    Ok(node)
}

/// All extended attributes with their values.
pub fn read_xattrs(fs: &dyn FsOps, ino: Ino) -> fs_core::Result<BTreeMap<Vec<u8>, Arc<[u8]>>> {
    let list = fs.listxattr(ino, true)?;
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((name.to_vec(), Arc::from(fs.getxattr(ino, name)?)))).collect()
}

/// Why extended attributes are not those that they should be.
pub fn xattr_difference(
    got: &BTreeMap<Vec<u8>, Arc<[u8]>>,
    want: &BTreeMap<Vec<u8>, Arc<[u8]>>,
) -> Option<String> {
    let show = |all: &BTreeMap<Vec<u8>, Arc<[u8]>>| {
        let one = |(name, value): (&Vec<u8>, &Arc<[u8]>)| {
            format!("{} ({} bytes)", String::from_utf8_lossy(name), value.len())
        };
        format!("[{}]", all.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    (got != want).then(|| format!("attributes are {}, should be {}", show(got), show(want)))
}

fn add_entry(node: &mut Reached, entry: DirEntry) -> Result<(), Failure> {
    let name = String::from_utf8_lossy(&entry.name).into_owned();
    match node.entries.insert(entry.name, entry.ino) {
        Some(_) => fail_with!("name {name} is listed twice"),
        None => Ok(()),
    }
}

/// Lists a directory in batches of `batch` entries, as getdents does.
pub fn list(fs: &dyn FsOps, ino: Ino, batch: usize) -> Result<Vec<DirEntry>, Failure> {
    let mut all: Vec<DirEntry> = Vec::new();
    loop {
        let cookie = all.last().map_or(0, |e| e.next_cookie);
        let mut got = Vec::new();
        let mut emit = |entry: &DirEntry| {
            let room = got.len() < batch;
            if room {
                got.push(entry.clone());
            }
            room
        };
        if let Err(e) = fs.readdir(ino, cookie, &mut emit) {
            fail_with!("readdir of inode {ino}: {e}");
        }
        if got.is_empty() {
            return Ok(all);
        }
        all.append(&mut got);
        if all.len() > 100_000 {
            fail_with!("readdir of inode {ino} does not end");
        }
    }
}
