//! Scrubbing: all nodes and all data of a mounted volume are read from the device and verified, while
//! the volume is in use.
//!
//! What a slice of the work reads of the tree is kept from being reused by holding that tree; data
//! is not. So a page that is wrong is looked up again, and read where it is now, while it can neither move
//! nor be in flight: then it is really wrong.

use std::ops::ControlFlow;
use std::sync::Arc;

use blockdev::{AlignedBuf, IoClass, Request};

use super::Volume;
use crate::error::{FsError, Result};
use crate::format::node::{Expected, Node, NodePtr};
use crate::format::{ItemKind, Key, PageEntry};
use crate::tree::{NodeCache, TreeReader, TreeVisitor};
use crate::types::{CHUNK_PAGES, Ino, NODE_SIZE, PageNr};

/// Items that are looked at before the tree is let go.
const SLICE: usize = 512;

/// Memory for the nodes of a slice. Small: they have to come from the device.
const CACHE_BYTES: usize = 1 << 20;

/// Below and above all keys.
const FIRST: Key = Key::new(Ino(0), ItemKind::Inode, 0);
const LAST: Key = Key::new(Ino(u64::MAX), ItemKind::Snapshot, u64::MAX);

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubFinding {
    /// The file, if it is about one.
    pub ino: Option<Ino>,
    /// Byte offset in the file.
    pub offset: u64,
    /// What is wrong, for people.
    pub what: String,
}

/// What was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// Nodes of the tree that were read.
    pub nodes: u64,
    /// Pages of data.
    pub pages: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Things that are wrong.
    pub findings: u64,
    /// It was ended before everything was read.
    pub stopped: bool,
}

/// Told of each step with what was done so far, and may take its time: this is how a scrub is
/// throttled. Breaks to end it.
pub type Pace<'a> = dyn FnMut(&ScrubStats) -> ControlFlow<()> + 'a;

impl Volume {
    /// Reads everything and verifies it. Begins with a checkpoint, so that all that was written before the
    /// call is seen; changes nothing else, takes no lock for longer than a look-up, and
    /// reading a page that seems wrong. Blocks for as long as
    /// reading the volume takes.
    pub fn scrub(&self, pace: &mut Pace<'_>, found: &mut dyn FnMut(ScrubFinding)) -> Result<ScrubStats> {
        if !self.read_only() {
            // A volume that has stopped is still worth looking at, as of its last checkpoint.
            let _ = self.checkpoint();
        }
        let mut scrub = Scrub { volume: self, stats: ScrubStats::default(), pace, found };
        let mut from = Some(FIRST);
        while let Some(key) = from {
            from = scrub.slice(key)?;
            if scrub.stats.stopped {
                break;
            }
        }
        Ok(scrub.stats)
    }
}

struct Scrub<'a> {
    volume: &'a Volume,
    stats: ScrubStats,
    pace: &'a mut Pace<'a>,
    found: &'a mut dyn FnMut(ScrubFinding),
}

impl Scrub<'_> {
    /// Looks at the items from `from` on; gives where to go on.
    fn slice(&mut self, from: Key) -> Result<Option<Key>> {
        let (_, tree) = self.volume.meta.frozen();
        let reader = self.reader();
        let mut chunks = Vec::new();
        let mut next = None;
        let mut seen = 0;
        let scanned = reader.scan(&tree.root, from, LAST, &mut |key, _| {
            if seen == SLICE {
                next = Some(key);
                return ControlFlow::Break(());
            }
            seen += 1;
            if key.kind == ItemKind::Map {
                chunks.push(key);
            }
            ControlFlow::Continue(())
        });
        let read = reader.stats().reads;
        self.stats.nodes += read;
        self.step(read * NODE_SIZE as u64);
        for key in chunks {
            if self.stats.stopped {
                break;
            }
            self.chunk(key);
        }
        match scanned {
            Ok(()) => Ok(next),
            // Nobody has written to the nodes of a tree that is held.
            Err(e @ (FsError::Corrupt { .. } | FsError::Device(_))) => {
                let mut range = BadRange { from, found: None };
                crate::tree::verify(&self.reader(), &tree.root, &mut range)?;
                let Some((error, below)) = range.found else {
                    // It could be read this time.
                    self.report(None, 0, format!("{e} (but not when it was read again)"));
                    return Ok(next);
                };
                self.report(None, 0, error.to_string());
                Ok(below)
            }
            Err(e) => Err(e),
        }
    }

    /// Reads past all caches.
    fn reader(&self) -> TreeReader {
        let v = self.volume;
        let cache = NodeCache::new(v.device.clone(), v.superblock.uuid, CACHE_BYTES);
        TreeReader::new(Arc::new(cache)).with_class(IoClass::Background)
    }

    fn step(&mut self, bytes: u64) {
        self.stats.bytes += bytes;
        self.stats.stopped |= (self.pace)(&self.stats).is_break();
    }

    fn report(&mut self, ino: Option<Ino>, offset: u64, what: String) {
        self.stats.findings += 1;
        (self.found)(ScrubFinding { ino, offset, what });
    }

    /// Verifies the pages of a chunk, where they are now.
    fn chunk(&mut self, key: Key) {
        let mut entries = [PageEntry::Hole; CHUNK_PAGES as usize];
        let first = PageNr(key.offset.saturating_mul(CHUNK_PAGES));
        // A node that cannot be read is found where it is.
        if self.volume.meta.pages(key.ino, first, &mut entries).is_err() {
            return;
        }
        let mapped: Vec<(PageNr, PageEntry)> = entries
            .iter()
            .enumerate()
            .filter(|(_, e)| matches!(e, PageEntry::Mapped(..)))
            .map(|(i, e)| (PageNr(first.0 + i as u64), *e))
            .collect();
        let requests = mapped.iter().filter_map(|(_, e)| e.blocks()).map(|b| {
            let buf = AlignedBuf::zeroed(b.run().bytes());
            Request::read(b.start.offset(), vec![buf], IoClass::Background)
        });
        let pending = self.volume.device.submit(requests.collect());
        let mut bytes = 0;
        for ((page, entry), pending) in mapped.into_iter().zip(pending) {
            let completion = pending.wait();
            bytes += completion.bufs.iter().map(|b| b.len() as u64).sum::<u64>();
            self.stats.pages += 1;
            let wrong = judge(&entry, &completion.bufs, &completion.result);
            if let Some(wrong) = wrong.and_then(|w| self.look_again(key.ino, page, w)) {
                let offset = self.volume.page_size().start_of(page);
                self.report(Some(key.ino), offset, wrong);
            }
        }
        self.step(bytes);
    }

    /// The page was wrong; `Some`: it still is, where it is now. Nobody moves it meanwhile, and what was
    /// in flight has landed.
    fn look_again(&self, ino: Ino, page: PageNr, wrong: String) -> Option<String> {
        let inode = match self.volume.inodes.get(&self.volume.meta, ino) {
            Ok(inode) => inode,
            Err(FsError::Posix(libc::ESTALE)) => return None, // deleted
            Err(_) => return Some(wrong),
        };
        // Exclusively: a sync lets readers in while its data is in flight, as they find it in memory.
        let _range = self.volume.lock_pages(&inode, page, page, true);
        let mut now = [PageEntry::Hole];
        self.volume.meta.pages(ino, page, &mut now).ok()?;
        let PageEntry::Mapped(blocks, _) = &now[0] else { return None };
        let buf = AlignedBuf::zeroed(blocks.run().bytes());
        let request = Request::read(blocks.start.offset(), vec![buf], IoClass::Background);
        let completion = self.volume.device.execute(request);
        judge(&now[0], &completion.bufs, &completion.result)
    }
}

/// What is wrong with a page that was read.
fn judge(
    entry: &PageEntry,
    bufs: &[AlignedBuf],
    result: &std::result::Result<(), blockdev::DeviceError>,
) -> Option<String> {
    let PageEntry::Mapped(blocks, crc) = entry else { return None };
    if let Err(e) = result {
        return Some(e.to_string());
    }
    let found = bufs.iter().fold(0, |crc, buf| crc32c::crc32c_append(crc, buf));
    (found != *crc).then(|| format!("checksum mismatch at block {}", blocks.start))
}

/// Finds the first bad subtree at or behind a key.
struct BadRange {
    from: Key,
    found: Option<(FsError, Option<Key>)>,
}

impl TreeVisitor for BadRange {
    fn node(&mut self, _: &Node, _: &Expected) {}
    fn item(&mut self, _: Key, _: &[u8]) {}
    fn bad(&mut self, _: NodePtr, expected: &Expected, error: FsError) {
        if self.found.is_none() && expected.below.is_none_or(|below| below > self.from) {
            self.found = Some((error, expected.below));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use blockdev::{BlockDevice, RamDevice};

    use super::*;
    use crate::api::{FsOps, IoFlags};
    use crate::env::SystemEnv;
    use crate::volume::{FormatOptions, MountOptions};

    fn scrub(v: &Volume) -> (ScrubStats, Vec<ScrubFinding>) {
        let mut found = Vec::new();
        let stats = v.scrub(&mut |_| ControlFlow::Continue(()), &mut |f| found.push(f)).unwrap();
        (stats, found)
    }

    /// Pages that move while they are read are not taken for damaged ones; a rotten one is.
    #[test]
    fn changes_meanwhile_are_no_damage() {
        let ram = RamDevice::new(64 << 20, 512);
        Volume::format(&ram, &FormatOptions::default(), &SystemEnv).unwrap();
        let device: Arc<dyn BlockDevice> = Arc::new(ram.clone());
        let v = Volume::mount(device, MountOptions::default(), Arc::new(SystemEnv)).unwrap();
        let owner = crate::api::Owner { uid: 0, gid: 0, umask: 0 };
        let direct = IoFlags { direct: true, dsync: true, ..IoFlags::default() };
        let ino = v.create(Ino::ROOT, b"f", 0o644, owner).unwrap().ino;
        v.write(ino, 0, &vec![1; 1 << 20], direct).unwrap();
        v.checkpoint().unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in (0..=u8::MAX).cycle() {
                    v.write(ino, u64::from(n % 16) * 65536, &[n; 65536], direct).unwrap();
                    if n % 16 == 0 {
                        v.checkpoint().unwrap();
                    }
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    // All blocks are used again soon.
                    std::thread::yield_now();
                }
            });
            for _ in 0..40 {
                let (stats, found) = scrub(&v);
                assert_eq!(found, []);
                assert!(stats.nodes > 0 && stats.pages > 0 && !stats.stopped);
            }
            ended.store(true, Ordering::SeqCst);
        });
        v.checkpoint().unwrap();
        let mut entry = [PageEntry::Hole];
        v.meta.pages(ino, PageNr(2), &mut entry).unwrap();
        let at = entry[0].blocks().unwrap().start;
        let mut buf = ram.read_at(at.offset(), AlignedBuf::zeroed(4096), IoClass::Data).unwrap();
        buf[7] ^= 1;
        ram.write_at(at.offset(), buf, false, IoClass::Data).unwrap();
        let (_, found) = scrub(&v);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].ino, found[0].offset), (Some(ino), 2 * 16384));
        let stopped = v.scrub(&mut |_| ControlFlow::Break(()), &mut |_| {}).unwrap();
        assert!(stopped.stopped);
    }
}
