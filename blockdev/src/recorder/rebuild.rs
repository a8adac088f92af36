//! Power-cut images from a log.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::powercut::{CutOptions, Fate, Grain, choose, some_pieces, survive};
use crate::rng::Rng;

use super::format::{DoneKind, Geometry, RecordKind};
use super::log::{Log, Record};

/// What the recorded device held before the first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Zeroes.
    Zeroed,
    /// The content of this image file.
    Image(PathBuf),
}

/// What went into a rebuilt image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records before the cut.
    pub records: u64,
    /// Writes and discards that were durable.
    pub durable: u64,
    /// Of the others, how many survived at least in part.
    pub survived: u64,
    /// And how many did not.
    pub dropped: u64,
}

/// A recorded change of the device's content.
struct Change {
    record: Record,
    /// Number of the record that says it succeeded.
    done: Option<u64>,
    failed: bool,
    untouched: bool,
    poisoned: bool,
}

/// What the records before the cut say.
struct History {
    geometry: Option<Geometry>,
    changes: Vec<Change>,
    /// A change that was done before this number is covered by a completed flush.
    covered: u64,
    records: u64,
}

/// Writes to the file `out` (replaced, sparse) an image that a power cut could have left when the recorder's sequence
/// number was `cut`; a larger one means the end of the log. `CutOptions::in_flight` has no
/// meaning here: what was submitted is in the log. Discarded ranges are old or zero.
pub fn rebuild(log: &Log, base: &Base, cut: u64, options: &CutOptions, out: &Path) -> io::Result<Summary> {
    let history = read_history(log, cut);
    let geometry = history.geometry.ok_or_else(|| io::Error::other("the log names no device"))?;
    let open: Vec<u64> =
        history.changes.iter().filter(|c| history.is_open(c, &geometry)).map(|c| c.record.seq).collect();
    let fates = choose(&open, options);
    let image = start_image(base, geometry.size, out)?;
    let mut builder = Builder { log, image, geometry, options };
    let mut next = fates.iter().peekable();
    for change in history.changes.iter().filter(|c| !c.untouched) {
        let fate = next.next_if(|(seq, _)| *seq == change.record.seq).map_or(Fate::Whole, |(_, fate)| *fate);
        builder.apply(change, fate)?;
    }
    let dropped = fates.iter().filter(|(_, fate)| *fate == Fate::Dropped).count() as u64;
    let all = history.changes.iter().filter(|c| !c.untouched).count() as u64;
    let open = open.len() as u64;
    Ok(Summary { records: history.records, durable: all - open, survived: open - dropped, dropped })
}

fn read_history(log: &Log, cut: u64) -> History {
    let mut history = History { geometry: None, changes: Vec::new(), covered: 0, records: 0 };
    for record in log.iter() {
        if record.seq >= cut && history.geometry.is_some() {
            break;
        }
        history.records += 1;
        match record.kind {
            RecordKind::Device { geometry, .. } => history.geometry = Some(geometry),
            RecordKind::Write { .. } | RecordKind::Discard { .. } => {
                let (done, failed, untouched, poisoned) = (None, false, false, false);
                history.changes.push(Change { record, done, failed, untouched, poisoned });
            }
            RecordKind::Done { of, outcome } => history.done(record.seq, of, outcome),
            RecordKind::Flush | RecordKind::Mark => {}
        }
    }
    history
}

impl History {
    /// Record `seq` says how request `of` went: a change in the list, or else a flush.
    fn done(&mut self, seq: u64, of: u64, outcome: DoneKind) {
        if let Ok(index) = self.changes.binary_search_by_key(&of, |c| c.record.seq) {
            let change = &mut self.changes[index];
            match outcome {
                DoneKind::Ok => change.done = Some(seq),
                DoneKind::Failed => change.failed = true,
                DoneKind::Untouched => change.untouched = true,
            }
            return;
        }
        match outcome {
            DoneKind::Ok => self.covered = self.covered.max(of),
            // What this flush had to cover, no later one covers.
            DoneKind::Failed | DoneKind::Untouched => {
                let covered = self.covered;
                for change in &mut self.changes {
                    change.poisoned |= change.done.is_some_and(|at| at < of && at > covered);
                }
            }
        }
    }

    /// The change was not durable at the cut.
    fn is_open(&self, change: &Change, geometry: &Geometry) -> bool {
        let fua = matches!(change.record.kind, RecordKind::Write { fua: true, .. });
        let at_once = fua || !geometry.volatile_write_cache;
        let durable = change.done.is_some_and(|at| at_once || (at < self.covered && !change.poisoned));
        !durable && !change.untouched
    }
}

struct Builder<'a> {
    log: &'a Log,
    image: File,
    geometry: Geometry,
    options: &'a CutOptions,
}

impl Builder<'_> {
    fn apply(&mut self, change: &Change, fate: Fate) -> io::Result<()> {
        if fate == Fate::Dropped {
            return Ok(());
        }
        let rng = Rng::derived(self.options.seed, change.record.seq);
        match change.record.kind {
            RecordKind::Discard { offset, len } => self.discard(offset, len, rng),
            RecordKind::Write { offset, len, .. } => {
                // A damaged log must not make the image larger than the device was.
                if offset.checked_add(len).is_none_or(|end| end > self.geometry.size) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a recorded write is out of range",
                    ));
                }
                let data = self.log.payload(&change.record)?;
                self.write(offset, &data, change.failed, fate, rng)
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], failed: bool, fate: Fate, mut rng: Rng) -> io::Result<()> {
        let Geometry { logical_sector: sector, atomic_write_unit: atomic, .. } = self.geometry;
        let mut result = Ok(());
        let image = &self.image;
        let put = |at, bytes: &[u8]| {
            if result.is_ok() {
                result = image.write_all_at(bytes, at);
            }
        };
        if failed {
            some_pieces((offset, data), u64::from(sector), || rng.chance(0.5), put);
        } else {
            survive((offset, data), fate, (self.options, Grain { sector, atomic }), &mut rng, put);
        }
        result
    }

    /// Large discards read as zero, smaller ones per 64 KiB as before or as zero.
    fn discard(&mut self, offset: u64, len: u64, mut rng: Rng) -> io::Result<()> {
        const PIECE: u64 = 64 << 10;
        const LARGE: u64 = 64 << 20;
        let end = offset.saturating_add(len).min(self.geometry.size);
        let mut at = offset;
        while at < end {
            let n = if len > LARGE { end - at } else { (PIECE - at % PIECE).min(end - at) };
            if len > LARGE || rng.chance(0.5) {
                zero(&self.image, at, n)?;
            }
            at += n;
        }
        Ok(())
    }
}

fn zero(image: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(image, flags, offset, len).is_ok() {
        return Ok(());
    }
    let zeroes = [0; 65536];
    let mut at = offset;
    while at < offset + len {
        let n = (offset + len - at).min(zeroes.len() as u64);
        image.write_all_at(&zeroes[..n as usize], at)?;
        at += n;
    }
    Ok(())
}

fn start_image(base: &Base, size: u64, out: &Path) -> io::Result<File> {
    // A new file: some file systems flush one that was cut to nothing and written again.
    match std::fs::remove_file(out) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut image = File::options().read(true).write(true).create_new(true).open(out)?;
    if let Base::Image(path) = base {
        copy_sparse(&mut File::open(path)?, &mut image)?;
    }
    image.set_len(size)?;
    Ok(image)
}

/// Copies what is no hole.
fn copy_sparse(from: &mut File, to: &mut File) -> io::Result<()> {
    use rustix::fs::SeekFrom as At;
    let len = from.metadata()?.len();
    let mut at = 0;
    while at < len {
        // A file system that cannot tell has one piece of data up to the end.
        let data = match rustix::fs::seek(&*from, At::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let hole = rustix::fs::seek(&*from, At::Hole(data)).unwrap_or(len);
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        io::copy(&mut Read::take(&mut *from, hole - data), to)?;
        at = hole;
    }
    to.flush()
}
