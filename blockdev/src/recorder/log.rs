//! Reading a log.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::format::{self, HEADER, Header, RecordKind};

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its sequence number; ascending, with gaps where the recording process was killed.
    pub seq: u64,
    /// What it says.
    pub kind: RecordKind,
    /// Where in the file its payload is.
    pub(super) payload_at: u64,
    pub(super) payload_len: u32,
    payload_crc: u32,
}

/// A log file, open for reading. It may be still in use: what was complete when it was opened is
/// seen. Everything after the first damaged or incomplete record is ignored, as a killed process
/// leaves such a tail.
#[derive(Debug)]
pub struct Log {
    file: File,
    len: u64,
}

impl Log {
    /// Opens the log at `path`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::of_file(File::open(path)?)
    }

    pub(super) fn of_file(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// The records in order. Payloads are not read.
    pub fn iter(&self) -> Records<'_> {
        Records { log: self, at: 0, next_seq: 0, window: Vec::new(), window_at: 0 }
    }

    /// The payload of a record: a write's data, a mark's name. An error if it is damaged.
    pub fn payload(&self, record: &Record) -> io::Result<Vec<u8>> {
        let mut data = vec![0; record.payload_len as usize];
        self.file.read_exact_at(&mut data, record.payload_at)?;
        if crc32c::crc32c(&data) != record.payload_crc {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record of the log is damaged"));
        }
        Ok(data)
    }

    /// The name of a mark.
    pub fn name(&self, record: &Record) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.payload(record)?).into_owned())
    }
}

/// Iterator over the records of a [`Log`].
#[derive(Debug)]
pub struct Records<'a> {
    log: &'a Log,
    at: u64,
    next_seq: u64,
    /// Bytes of the file from `window_at` on, so that small records do not cost a call each.
    window: Vec<u8>,
    window_at: u64,
}

impl Records<'_> {
    /// Byte offset in the file behind the last record returned.
    pub(super) fn end(&self) -> u64 {
        self.at
    }

    fn header(&mut self) -> Option<Header> {
        const WINDOW: u64 = 64 << 10;
        let inside = |at: u64, window_at: u64, len: usize| {
            at >= window_at && at + HEADER as u64 <= window_at + len as u64
        };
        if !inside(self.at, self.window_at, self.window.len()) {
            let len = WINDOW.min(self.log.len.saturating_sub(self.at));
            self.window.resize(len as usize, 0);
            self.window_at = self.at;
            self.log.file.read_exact_at(&mut self.window, self.at).ok()?;
        }
        let from = (self.at - self.window_at) as usize;
        let bytes = self.window.get(from..from + HEADER)?;
        format::decode(bytes.try_into().ok()?)
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let header = self.header()?;
        let payload_at = self.at + HEADER as u64;
        let end = payload_at + u64::from(header.payload_len);
        let expected = match header.kind {
            RecordKind::Write { len, .. } => len,
            RecordKind::Mark => u64::from(header.payload_len),
            _ => 0,
        };
        // A record that contradicts itself is damaged, whatever its checksum says.
        if end > self.log.len || header.seq < self.next_seq || expected != u64::from(header.payload_len) {
            return None;
        }
        self.at = end;
        self.next_seq = header.seq + 1;
        let Header { seq, kind, payload_len, payload_crc } = header;
        Some(Record { seq, kind, payload_at, payload_len, payload_crc })
    }
}
