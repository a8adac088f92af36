//! The whole check after a power cut: names, attributes, data, orphans.

use std::collections::BTreeMap;
use std::sync::Arc;

use fs_core::Ino;
use fs_core::api::{FileType, FsOps, Timestamp};

use super::data::FileCheck;
use super::expect::Expectation;
use crate::fail_with;
use crate::model::{Body, Content, Node, State};
use crate::run::{Failure, InoMap, Reached, Tree, read_file};

/// What was found, as the start of another run.
#[derive(Debug)]
pub struct Recovered {
    /// The state; nothing is open.
    pub state: State,
    /// Inode numbers.
    pub inos: InoMap,
    /// Number of operations whose names are there.
    pub prefix: usize,
}

/// Checks a recovered file system against what was promised.
pub fn check(fs: &dyn FsOps, expect: &Expectation) -> Result<Recovered, Failure> {
    let tree = Tree::read(fs).map_err(|f| f.within("walk after recovery"))?;
    let prefix = find_prefix(&tree, expect)?;
    let files = read_files(fs, &tree)?;
    for (ino, bytes) in &files {
        let Some(model) = expect.inos.model(*ino) else { continue };
        let told = |f: Failure| {
            let story = expect.story(model, expect.data_floor(model));
            f.within(format!("data of model inode {model} (inode {ino}):\n    {story}"))
        };
        FileCheck::new(expect, model, bytes).run().map_err(told)?;
    }
    for (ino, node) in &tree.nodes {
        let Some(model) = expect.inos.model(*ino) else { continue };
        check_times(model, node.attr.kind, (node.attr.mtime, node.attr.ctime), expect)?;
    }
    check_gone(fs, &tree, expect)?;
    let (state, inos) = adopt(&tree, files, expect);
    Ok(Recovered { state, inos, prefix })
}

/// The names are those after some number of operations, no fewer than was promised.
fn find_prefix(tree: &Tree, expect: &Expectation) -> Result<usize, Failure> {
    let floor = expect.names_floor();
    let last = expect.last();
    let differs = |i: usize| tree.difference(&expect.states[i], |ino| expect.inos.subject(ino));
    if let Some(found) = (floor..=last).rev().find(|i| differs(*i).is_none()) {
        return Ok(found);
    }
    if let Some(early) = (0..floor).rev().find(|i| differs(*i).is_none()) {
        fail_with!(
            "names are those of state {early}, but state {floor} was promised (of {last}):\n    {}",
            expect.log(early, last)
        );
    }
    let why = |i: usize| differs(i).unwrap_or_default();
    fail_with!(
        "names are those of no state from {floor} to {last}:\n    state {last}: {}\n    state {floor}: {}\n    {}",
        why(last),
        why(floor),
        expect.log(floor, last)
    )
}

fn read_files(fs: &dyn FsOps, tree: &Tree) -> Result<BTreeMap<Ino, Vec<u8>>, Failure> {
    let regular = tree.nodes.iter().filter(|(_, n)| n.attr.kind == FileType::Regular);
    regular.map(|(ino, node)| Ok((*ino, read_file(fs, *ino, node.attr.size)?))).collect()
}

/// Times are such as the inode had since they were last promised.
fn check_times(
    ino: Ino,
    kind: FileType,
    (mtime, ctime): (Timestamp, Timestamp),
    expect: &Expectation,
) -> Result<(), Failure> {
    // The names of a directory are ordered, its times only travel with them: they are promised
    // where everything is.
    let floor = expect.times_floor(ino);
    let versions = expect.versions(ino, floor);
    let known =
        |wanted: &dyn Fn(&Node) -> bool| versions.iter().filter_map(|v| v.node.as_deref()).any(wanted);
    if !known(&|n| n.mtime == mtime) {
        fail_with!(
            "mtime of model inode {ino} ({kind:?}) is {mtime:?}, which it was not since state {floor}"
        );
    }
    if !known(&|n| n.ctime == ctime) {
        fail_with!(
            "ctime of model inode {ino} ({kind:?}) is {ctime:?}, which it was not since state {floor}"
        );
    }
    Ok(())
}

/// What has no name is gone.
fn check_gone(fs: &dyn FsOps, tree: &Tree, expect: &Expectation) -> Result<(), Failure> {
    for (model, ino) in expect.inos.pairs().filter(|(_, ino)| !tree.nodes.contains_key(ino)) {
        match fs.getattr(ino) {
            Err(e) if e.errno() == libc::ESTALE => {}
            Err(e) => fail_with!("getattr of model inode {model} (inode {ino}), which is gone: {e}"),
            Ok(attr) => fail_with!("model inode {model} has no name and still exists: {attr:?}"),
        }
    }
    Ok(())
}

/// The model's state for what users see of `fs`, whose names are `tree`. A file that cannot be read
/// counts as what it last was.
pub fn read_state(fs: &dyn FsOps, tree: &Tree, expect: &Expectation) -> (State, InoMap) {
    let last = &expect.states[expect.last()];
    let regular = tree.nodes.iter().filter(|(_, n)| n.attr.kind == FileType::Regular);
    let read = |(ino, node): (&Ino, &Reached)| {
        let known = || {
            let content = last.get(expect.inos.model(*ino)?)?.content()?;
            let mut bytes = vec![0; content.size() as usize];
            content.copy_to(0, &mut bytes);
            Some(bytes)
        };
        let bytes = read_file(fs, *ino, node.attr.size).ok().or_else(known);
        (*ino, bytes.unwrap_or_default())
    };
    adopt(tree, regular.map(read).collect(), expect)
}

/// The model's state for what was found.
fn adopt(tree: &Tree, mut files: BTreeMap<Ino, Vec<u8>>, expect: &Expectation) -> (State, InoMap) {
    let mut inos = InoMap::default();
    let mut next = expect.states[expect.last()].next_ino();
    for ino in tree.nodes.keys().filter(|ino| **ino != Ino::ROOT) {
        let model = expect.inos.model(*ino).unwrap_or_else(|| {
            next += 1;
            Ino(next - 1)
        });
        inos.insert(model, *ino);
    }
    let to_model = |ino: Ino| inos.model(ino).unwrap_or(ino);
    let mut nodes = BTreeMap::new();
    for (ino, found) in &tree.nodes {
        let a = &found.attr;
        let body = match a.kind {
            FileType::Regular => Body::File(file_content(files.remove(ino).unwrap_or_default())),
            FileType::Directory => Body::Dir {
                entries: found.entries.iter().map(|(n, i)| (n.clone(), to_model(*i))).collect(),
                parent: to_model(found.parent),
            },
            FileType::Symlink => Body::Symlink(found.target.clone()),
            _ => Body::Special,
        };
        let node = Node {
            kind: a.kind,
            perm: a.perm,
            uid: a.uid,
            gid: a.gid,
            rdev: a.rdev,
            nlink: a.nlink,
            atime: a.atime,
            mtime: a.mtime,
            ctime: a.ctime,
            btime: a.btime,
            xattrs: found.xattrs.clone(),
            body,
            linkable: false,
            umask: 0,
        };
        nodes.insert(to_model(*ino), Arc::new(node));
    }
    (State::from_nodes(nodes, next), inos)
}

fn file_content(bytes: Vec<u8>) -> Content {
    let mut content = Content::default();
    content.write(0, &Arc::from(bytes));
    content
}
