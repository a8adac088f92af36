//! A second copy of the model in the place of the engine: it tries the harness itself. Its power
//! cuts lose all that may be lost; with a [`Flaw`] also something that may not.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use fs_core::api::{
    Attr, DirEntry, Fallocate, FileType, FsOps, IoFlags, Owner, RenameFlags, Seek, SetAttr, StatFs,
    XattrFlags,
};
use fs_core::env::Env;
use fs_core::{Ino, Result};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::crash::Coverage;
use crate::model::{Body, Content, ModelFs, Node, State};
use crate::ops::Maintenance;
use crate::rng::Rng;
use crate::run::{Config, Subject};

/// What a flawed stand-in does wrong at a power cut (or, the last two, always).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    #[default]
    None,
    /// Loses synced data of a file.
    LostData,
    /// Loses synced names.
    LostNames,
    /// Leaves half of a write.
    TornFile,
    /// Loses one name, and keeps later ones.
    LostName,
    /// Bytes of another file show up.
    ForeignBytes,
    /// A file comes back with a wrong size.
    WrongSize,
    /// An inode without a name stays.
    KeptOrphan,
    /// Permission bits come back wrong.
    WrongPerm,
    /// A change of size leaves a byte that nobody wrote.
    StaleTail,
    /// A new link reports a wrong count.
    WrongLinkCount,
}

thread_local! {
    static FLAW: Cell<Flaw> = const { Cell::new(Flaw::None) };
}

/// Sets the flaw of the stand-ins of this thread.
pub fn set_flaw(flaw: Flaw) {
    FLAW.with(|f| f.set(flaw));
}

/// What a call made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Synced {
    Nothing,
    File(Ino),
    All,
}

#[derive(Clone, Debug)]
struct Moment {
    state: State,
    synced: Synced,
}

/// The stand-in.
pub struct StandIn {
    model: ModelFs,
    clock: Arc<Clock>,
    /// State at mount and after each change.
    log: Mutex<Vec<Moment>>,
}

impl StandIn {
    fn note<T>(&self, result: Result<T>, synced: Synced) -> Result<T> {
        if result.is_ok() {
            self.log.lock().push(Moment { state: self.model.snapshot(), synced });
        }
        result
    }

    fn done<T>(&self, result: Result<T>) -> Result<T> {
        self.note(result, Synced::Nothing)
    }
}

impl Subject for StandIn {
    type Medium = State;

    fn format(_config: &Config, clock: &Arc<Clock>) -> std::result::Result<State, String> {
        // Other numbers than the model's, so that a mix-up shows.
        let root = State::empty(clock.now()).nodes().clone();
        Ok(State::from_nodes(root, 1000))
    }

    fn mount(
        medium: State,
        _config: &Config,
        clock: &Arc<Clock>,
        _salt: u64,
    ) -> std::result::Result<Self, String> {
        let model = ModelFs::new(medium.clone(), clock.clone());
        let log = Mutex::new(vec![Moment { state: medium, synced: Synced::All }]);
        Ok(Self { model, clock: clock.clone(), log })
    }

    fn fs(&self) -> &dyn FsOps {
        self
    }

    fn seq(&self) -> u64 {
        self.log.lock().len() as u64 - 1
    }

    fn maintain(&self, _work: Maintenance) -> Result<()> {
        Ok(())
    }

    fn remount(self) -> std::result::Result<Self, String> {
        self.model.close_all();
        self.note(Ok(()), Synced::All).map_err(|e| e.to_string())?;
        let model = ModelFs::new(self.model.snapshot(), self.clock.clone());
        Ok(Self { model, ..self })
    }

    fn stall_after(&self, _n: u64) {}

    fn is_stalled(&self) -> bool {
        false
    }

    fn take_over(self, _exclusive: bool) -> std::result::Result<Self, String> {
        self.remount()
    }

    fn land_late(&self, _n: usize) -> usize {
        0
    }

    fn shutdown(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    fn power_cut(&self, cut: u64, seed: u64) -> State {
        let log = self.log.lock();
        let mut image = Loss { log: &log[..=cut as usize], rng: Rng::new(seed), flaw: FLAW.with(Cell::get) };
        image.build()
    }

    fn current(&self) -> State {
        let model = ModelFs::new(self.model.snapshot(), self.clock.clone());
        model.close_all();
        model.snapshot()
    }

    fn interesting_cuts(&self) -> Vec<u64> {
        Vec::new()
    }

    fn checkpoints(&self) -> Vec<std::ops::Range<u64>> {
        Vec::new()
    }

    fn fsck(_medium: &State) -> std::result::Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    fn cover(&self, coverage: &mut Coverage) {
        coverage.add("stand-in runs", 1);
    }
}

/// A power cut.
struct Loss<'a> {
    log: &'a [Moment],
    rng: Rng,
    flaw: Flaw,
}

impl Loss<'_> {
    fn floor(&self, covers: impl Fn(Synced) -> bool) -> usize {
        self.log.iter().rposition(|m| covers(m.synced)).unwrap_or(0)
    }

    fn between(&mut self, floor: usize) -> usize {
        floor + self.rng.below((self.log.len() - floor) as u64) as usize
    }

    fn build(&mut self) -> State {
        let floor = self.floor(|s| s != Synced::Nothing);
        let at = match self.flaw {
            Flaw::LostNames => self.rng.below(floor as u64 + 1) as usize,
            _ => self.between(floor),
        };
        let names = self.log[at].state.clone();
        let mut nodes = names.nodes().clone();
        let inos: Vec<Ino> = nodes.iter().filter(|(_, n)| n.nlink > 0).map(|(i, _)| *i).collect();
        if self.flaw != Flaw::KeptOrphan {
            nodes.retain(|_, n| n.nlink > 0);
        }
        for ino in &inos {
            self.lose_data(*ino, &mut nodes);
        }
        self.damage(&inos, &mut nodes);
        State::from_nodes(nodes, names.next_ino())
    }

    /// Any version of the file's data since its last sync.
    fn lose_data(&mut self, ino: Ino, nodes: &mut BTreeMap<Ino, Arc<Node>>) {
        let floor = self.floor(|s| s == Synced::All || s == Synced::File(ino));
        let at = match self.flaw {
            Flaw::LostData => self.rng.below(floor as u64 + 1) as usize,
            _ => self.between(floor),
        };
        let Some(version) = self.log[at].state.get(ino).cloned() else { return };
        if let (Some(node), Body::File(_)) = (nodes.get_mut(&ino), &version.body) {
            let node = Arc::make_mut(node);
            node.body = version.body.clone();
            (node.mtime, node.ctime) = (version.mtime, version.ctime);
        }
    }

    fn damage(&mut self, inos: &[Ino], nodes: &mut BTreeMap<Ino, Arc<Node>>) {
        let ino = *self.rng.pick(inos);
        let other = nodes.get(self.rng.pick(inos)).and_then(|n| n.content()).cloned();
        let old = self.log[0].state.get(ino).and_then(|n| n.content()).cloned();
        let Some(node) = nodes.get_mut(&ino).map(Arc::make_mut) else { return };
        match (self.flaw, &mut node.body) {
            (Flaw::WrongPerm, _) => node.perm ^= 0o111,
            (Flaw::LostName, Body::Dir { entries, .. }) => {
                entries.pop_first();
            }
            (Flaw::WrongSize, Body::File(content)) => content.set_size(content.size() + 1),
            (Flaw::TornFile, Body::File(content)) => mix(content, &old.unwrap_or_default(), 4096),
            (Flaw::ForeignBytes, Body::File(content)) => mix(content, &other.unwrap_or_default(), 512),
            _ => {}
        }
    }
}

/// The first `len` bytes come from `other`.
fn mix(content: &mut Content, other: &Content, len: u64) {
    let mut bytes = vec![0; len.min(content.size()) as usize];
    other.copy_to(0, &mut bytes);
    content.write(0, &Arc::from(bytes));
}

impl FsOps for StandIn {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.model.lookup(parent, name)
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.model.getattr(ino)
    }
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let result = self.model.setattr(ino, changes);
        if let (Some(size @ 1..), Ok(_), Flaw::StaleTail) = (changes.size, &result, FLAW.with(Cell::get)) {
            self.model.write(ino, size - 1, &[0xAA], IoFlags::default())?;
        }
        self.done(result)
    }
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.model.readlink(ino)
    }
    fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: FileType,
        perm: u32,
        rdev: u32,
        owner: Owner,
    ) -> Result<Attr> {
        self.done(self.model.mknod(parent, name, kind, perm, rdev, owner))
    }
    fn mkdir(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        self.done(self.model.mkdir(parent, name, perm, owner))
    }
    fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], owner: Owner) -> Result<Attr> {
        self.done(self.model.symlink(parent, name, target, owner))
    }
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let mut result = self.done(self.model.link(ino, parent, name));
        if let (Ok(attr), Flaw::WrongLinkCount) = (&mut result, FLAW.with(Cell::get)) {
            attr.nlink += 1;
        }
        result
    }
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.done(self.model.unlink(parent, name))
    }
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.done(self.model.rmdir(parent, name))
    }
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        self.done(self.model.rename(parent, name, new_parent, new_name, flags))
    }
    fn open(&self, ino: Ino) -> Result<Attr> {
        self.model.open(ino)
    }
    fn create(&self, parent: Ino, name: &[u8], perm: u32, owner: Owner) -> Result<Attr> {
        self.done(self.model.create(parent, name, perm, owner))
    }
    fn tmpfile(&self, parent: Ino, perm: u32, owner: Owner) -> Result<Attr> {
        self.done(self.model.tmpfile(parent, perm, owner))
    }
    fn close(&self, ino: Ino) {
        self.model.close(ino);
    }
    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], flags: IoFlags) -> Result<usize> {
        self.model.read(ino, offset, buf, flags)
    }
    fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: IoFlags) -> Result<usize> {
        let synced = if flags.dsync { Synced::File(ino) } else { Synced::Nothing };
        self.note(self.model.write(ino, offset, data, flags), synced)
    }
    fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        self.note(self.model.fsync(ino, datasync), Synced::File(ino))
    }
    fn fallocate(&self, ino: Ino, mode: Fallocate, offset: u64, len: u64) -> Result<()> {
        self.done(self.model.fallocate(ino, mode, offset, len))
    }
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        self.done(self.model.setxattr(ino, name, value, flags))
    }
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.model.getxattr(ino, name)
    }
    fn listxattr(&self, ino: Ino, trusted: bool) -> Result<Vec<u8>> {
        self.model.listxattr(ino, trusted)
    }
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.done(self.model.removexattr(ino, name))
    }
    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        match what {
            Seek::Data => self.model.seek(ino, offset, what),
            // The model's holes begin anywhere, those of a file system where a page does. There is always
            // one behind the end (lseek(2)).
            Seek::Hole => {
                self.model.seek(ino, offset, what)?;
                Ok(self.model.getattr(ino)?.size)
            }
        }
    }
    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        flags: IoFlags,
    ) -> Result<u64> {
        self.done(self.model.copy_range(from, from_offset, to, to_offset, len, flags))
    }
    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        self.model.readdir(ino, cookie, emit)
    }
    fn statfs(&self) -> Result<StatFs> {
        self.model.statfs()
    }
    fn sync_all(&self) -> Result<()> {
        self.note(self.model.sync_all(), Synced::All)
    }
}
