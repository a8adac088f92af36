//! Appending to a log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Capabilities;
use crate::check::Shape;

use super::format::{DoneKind, Geometry, HEADER, Header, RecordKind, encode};
use super::log::{Log, Record};
use super::seqfile::SeqFile;

/// Records that need not be in the file yet are kept up to this many bytes.
const BUFFER: usize = 256 << 10;

/// The writing end of a log. Records get their numbers in the order they are appended; they are in
/// the file after [`Writer::sync`].
pub(super) struct Writer {
    file: File,
    buffer: Vec<u8>,
    next: u64,
    seq: SeqFile,
    /// The device's size as it was last recorded.
    size: Option<u64>,
    /// A write to the log failed: what came after it would have a hole before it.
    failed: bool,
}

/// A write that was recorded as submitted, but not as successful, when the log was last used.
pub(super) struct Unsettled {
    pub(super) offset: u64,
    pub(super) len: u64,
}

pub(super) fn seq_path(log: &Path) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(".seq");
    path.into()
}

impl Writer {
    /// Opens or creates the log; cuts off what a killed process left incomplete at its end.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Unsettled>)> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let log = Log::of_file(file.try_clone()?)?;
        let (end, next, unsettled) = scan(&log)?;
        file.set_len(end)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(end))?;
        let seq = SeqFile::create(&seq_path(path))?;
        // Numbers whose records were lost may be known to others: they are not given out again.
        let next = if end == 0 { 0 } else { next.max(seq.get()) };
        seq.set(next);
        Ok((Self { file, buffer: Vec::new(), next, seq, size: None, failed: false }, unsettled))
    }

    pub(super) fn seq(&self) -> u64 {
        self.next
    }

    /// Appends a record; returns its number.
    pub(super) fn append(&mut self, kind: RecordKind, payload: &[&[u8]]) -> io::Result<u64> {
        let len: usize = payload.iter().map(|p| p.len()).sum();
        let payload_len = u32::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let payload_crc = payload.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let seq = self.next;
        self.buffer.reserve(HEADER + len);
        self.buffer.extend(encode(&Header { seq, kind, payload_len, payload_crc }));
        payload.iter().for_each(|part| self.buffer.extend_from_slice(part));
        self.next += 1;
        self.seq.set(self.next);
        if self.buffer.len() >= BUFFER {
            self.sync()?;
        }
        Ok(seq)
    }

    /// Records that the device was opened; everything before is settled.
    pub(super) fn opened(&mut self, geometry: Geometry) -> io::Result<()> {
        self.size = Some(geometry.size);
        self.append(RecordKind::Device { geometry, opened: true }, &[])?;
        self.sync()
    }

    /// Records the device's size if it is another one than before.
    pub(super) fn follow_size(&mut self, caps: &Capabilities) -> io::Result<()> {
        if self.size.replace(caps.size_bytes) == Some(caps.size_bytes) {
            return Ok(());
        }
        let geometry = Geometry::of(caps);
        self.append(RecordKind::Device { geometry, opened: false }, &[]).map(drop)
    }

    pub(super) fn done(&mut self, of: u64, outcome: DoneKind) -> io::Result<()> {
        self.append(RecordKind::Done { of, outcome }, &[]).map(drop)
    }

    /// Hands everything to the operating system: from there it survives a kill of this process.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to the log failed"));
        }
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        self.failed = result.is_err();
        result
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            tracing::error!(%error, "the end of the device's log is lost");
        }
    }
}

/// End of the last good record, next number, writes whose fate is not known.
fn scan(log: &Log) -> io::Result<(u64, u64, Vec<Unsettled>)> {
    let mut open: BTreeMap<u64, Unsettled> = BTreeMap::new();
    let mut next = 0;
    let mut end = 0;
    let mut last: Option<(u64, Record)> = None;
    let mut records = log.iter();
    while let Some(record) = records.next() {
        match &record.kind {
            RecordKind::Write { offset, len, .. } if *len > 0 => {
                open.insert(record.seq, Unsettled { offset: *offset, len: *len });
            }
            RecordKind::Done { of, outcome } if *outcome != DoneKind::Failed => {
                open.remove(of);
            }
            // Whoever opened it settled everything before.
            RecordKind::Device { opened: true, .. } => open.clear(),
            _ => {}
        }
        next = record.seq + 1;
        last = Some((end, record));
        end = records.end();
    }
    if let Some((start, record)) = last
        && log.payload(&record).is_err()
    {
        open.remove(&record.seq);
        end = start;
    }
    Ok((end, next, open.into_values().collect()))
}

/// The record kind of a request that is about to be submitted; `None` for what is not recorded.
pub(super) fn kind_of(shape: Shape, fua: bool) -> Option<RecordKind> {
    let Shape { op, offset, len } = shape;
    match op {
        "write" => Some(RecordKind::Write { offset, len, fua }),
        "discard" => Some(RecordKind::Discard { offset, len }),
        "flush" => Some(RecordKind::Flush),
        _ => None,
    }
}
