//! A volume that has been used for a while: three levels of tree, page maps, names that came and
//! went, a journal that has come round and is not empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blockdev::sim::{Image, SimDevice, SimOptions};
use fs_core::api::{FsOps, IoFlags, Owner};
use fs_core::{FormatOptions, Ino, MountOptions, PageSize, Volume};

use crate::clock::Clock;
use crate::rng::Rng;

const VOLUME_BYTES: u64 = 96 << 20;
const PAGE: usize = 8192;
/// A target of this length fills a leaf with four of its kind.
const TARGET: usize = 3900;
const LINKS: u64 = 1900;
const FILES: u64 = 240;
const OWNER: Owner = Owner { uid: 0, gid: 0, umask: 0 };

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Link(Vec<u8>),
    /// A regular file and its bytes.
    File(Vec<u8>),
}

/// A file with its names.
#[derive(Clone, Debug)]
pub struct File {
    /// Paths that lead to it.
    pub paths: BTreeSet<String>,
    /// What it is.
    pub content: Content,
}

/// The volume and what is on it.
#[derive(Debug)]
pub struct Aged {
    /// The device after a kill: synced, not unmounted.
    pub image: Image,
    /// All files by inode number.
    pub files: BTreeMap<u64, File>,
    /// Inodes that were changed since the last checkpoint but one: what a damaged journal may lose.
    pub recent: BTreeSet<u64>,
}

struct Maker {
    volume: Arc<Volume>,
    files: BTreeMap<u64, File>,
    recent: BTreeSet<u64>,
    dirs: Vec<(Ino, String)>,
    rng: Rng,
}

impl Aged {
    /// Makes it; the same each time.
    pub fn make() -> Self {
        let device = SimDevice::with_options(SimOptions::new(VOLUME_BYTES, 1));
        let format = FormatOptions {
            page_size: PageSize::new(PAGE as u32).expect("a page size"),
            journal_bytes: Some(2 << 20),
            ..FormatOptions::default()
        };
        let clock = Arc::new(Clock::new(5));
        Volume::format(&device, &format, clock.as_ref()).expect("a new volume");
        let options = MountOptions { cache_bytes: 16 << 20, ..MountOptions::default() };
        let volume = Volume::mount(Arc::new(device.clone()), options, clock).expect("mount");
        let mut maker = Maker {
            volume,
            files: BTreeMap::new(),
            recent: BTreeSet::new(),
            dirs: vec![(Ino::ROOT, String::new())],
            rng: Rng::new(77),
        };
        maker.fill();
        for round in 0..5 {
            maker.age(round);
            maker.volume.checkpoint().expect("checkpoint");
            if round < 3 {
                maker.recent.clear();
            }
        }
        maker.age(5);
        maker.volume.sync_all().expect("sync");
        let Maker { files, recent, .. } = maker;
        Aged { image: device.current(), files, recent }
    }
}

impl Maker {
    fn fill(&mut self) {
        for i in 0..12 {
            let (parent, path) = self.rng.pick(&self.dirs).clone();
            let name = format!("dir{i}");
            let ino = self.volume.mkdir(parent, name.as_bytes(), 0o755, OWNER).expect("mkdir").ino;
            let path = format!("{path}/{name}");
            self.add(ino, path.clone(), Content::Directory);
            self.dirs.push((ino, path));
        }
        for i in 0..LINKS {
            self.link(i);
            if i % 300 == 299 {
                self.volume.checkpoint().expect("checkpoint");
            }
        }
        for i in 0..FILES {
            self.file(i);
        }
        self.volume.sync_all().expect("sync");
        self.volume.checkpoint().expect("checkpoint");
    }

    fn add(&mut self, ino: Ino, path: String, content: Content) {
        self.recent.insert(ino.0);
        self.files.insert(ino.0, File { paths: BTreeSet::from([path]), content });
    }

    fn dir(&mut self) -> (Ino, String) {
        let dir = self.rng.pick(&self.dirs).clone();
        self.recent.insert(dir.0.0);
        dir
    }

    fn link(&mut self, i: u64) {
        let (dir, path) = self.dir();
        let name = format!("link{i}");
        let mut target = format!("{i}/").into_bytes();
        while target.len() < TARGET {
            target.push(b'a' + self.rng.below(26) as u8);
        }
        let ino = self.volume.symlink(dir, name.as_bytes(), &target, OWNER).expect("symlink").ino;
        self.add(ino, format!("{path}/{name}"), Content::Link(target));
    }

    fn file(&mut self, i: u64) {
        let (dir, path) = self.dir();
        let name = format!("file{i}");
        let ino = self.volume.create(dir, name.as_bytes(), 0o644, OWNER).expect("create").ino;
        let len = [100, 5000, 40_000, 90_000][self.rng.below(4) as usize] + self.rng.below(100) as usize;
        let bytes = self.bytes(len);
        self.volume.write(ino, 0, &bytes, IoFlags::default()).expect("write");
        self.volume.close(ino);
        self.add(ino, format!("{path}/{name}"), Content::File(bytes));
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.rng.next_u64().to_le_bytes()).take(len).collect()
    }

    /// Overwrites pages, makes and removes files, writes synchronously into the journal.
    fn age(&mut self, round: u64) {
        let regular: Vec<u64> = self.of_kind(|c| matches!(c, Content::File(_)));
        for i in 0..150 {
            let ino = *self.rng.pick(&regular);
            let Some(Content::File(old)) = self.files.get(&ino).map(|f| f.content.clone()) else { continue };
            let at = self.rng.below(old.len() as u64) as usize / 512 * 512;
            let n = (1 + self.rng.below(9000) as usize).min(old.len() - at).max(1);
            let new = self.bytes(n);
            let sync = i % 5 == 0;
            self.write(ino, at, &new, sync);
        }
        self.volume.sync_all().expect("sync");
        let links: Vec<u64> = self.of_kind(|c| matches!(c, Content::Link(_)));
        for _ in 0..20 {
            let ino = *self.rng.pick(&links);
            self.unlink(ino);
            let i = 10_000 * (round + 1) + self.rng.below(9000);
            self.link(i);
        }
        for i in 0..4 {
            let ino = *self.rng.pick(&regular);
            self.unlink(ino);
            self.file(1000 * (round + 1) + i);
        }
        self.hard_link(round);
    }

    fn of_kind(&self, kind: impl Fn(&Content) -> bool) -> Vec<u64> {
        self.files.iter().filter(|(_, f)| kind(&f.content)).map(|(ino, _)| *ino).collect()
    }

    fn write(&mut self, ino: u64, at: usize, new: &[u8], sync: bool) {
        let flags = IoFlags { dsync: sync, ..IoFlags::default() };
        self.volume.write(Ino(ino), at as u64, new, flags).expect("write");
        self.recent.insert(ino);
        let Some(File { content: Content::File(bytes), .. }) = self.files.get_mut(&ino) else { return };
        bytes.resize(bytes.len().max(at + new.len()), 0);
        bytes[at..at + new.len()].copy_from_slice(new);
    }

    fn parent(&mut self, path: &str) -> (Ino, String) {
        let (dir, name) = path.rsplit_once('/').expect("an absolute path");
        let found = self.dirs.iter().find(|(_, p)| p == dir).expect("a directory of ours").0;
        self.recent.insert(found.0);
        (found, name.to_owned())
    }

    fn unlink(&mut self, ino: u64) {
        let Some(file) = self.files.remove(&ino) else { return };
        self.recent.insert(ino);
        for path in file.paths {
            let (dir, name) = self.parent(&path);
            self.volume.unlink(dir, name.as_bytes()).expect("unlink");
        }
    }

    fn hard_link(&mut self, round: u64) {
        let regular = self.of_kind(|c| matches!(c, Content::File(_)));
        let ino = *self.rng.pick(&regular);
        let (dir, path) = self.dir();
        let name = format!("hard{round}");
        self.volume.link(Ino(ino), dir, name.as_bytes()).expect("link");
        self.recent.insert(ino);
        if let Some(file) = self.files.get_mut(&ino) {
            file.paths.insert(format!("{path}/{name}"));
        }
    }
}
