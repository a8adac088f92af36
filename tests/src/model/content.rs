//! Content of a file as a list of segments that share the writers' buffers: cheap to clone after
//! every operation, which is what the crash checks do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Part of one write.
#[derive(Clone, Debug)]
struct Segment {
    data: Arc<[u8]>,
    start: usize,
    len: usize,
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.start + self.len]
    }

    /// The part of this segment (which lies at `at` in the file) that is within `range`.
    fn part(&self, at: u64, range: &Range<u64>) -> Option<(u64, Segment)> {
        let from = at.max(range.start);
        let to = (at + self.len as u64).min(range.end);
        let skipped = from.checked_sub(at)? as usize;
        (from < to).then(|| {
            let start = self.start + skipped;
            (from, Segment { start, len: (to - from) as usize, data: self.data.clone() })
        })
    }
}

/// Bytes of a file; what no segment covers is zero.
#[derive(Clone, Debug, Default)]
pub struct Content {
    size: u64,
    segments: BTreeMap<u64, Segment>,
}

impl Content {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Truncates or extends with zeros.
    pub fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.cut(size..self.size);
        }
        self.size = size;
    }

    /// Writes `data` at `offset`, growing the file if needed.
    pub fn write(&mut self, offset: u64, data: &Arc<[u8]>) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        self.cut(offset..end);
        self.segments.insert(offset, Segment { data: data.clone(), start: 0, len: data.len() });
        self.size = self.size.max(end);
    }

    /// Makes `range` zeros; the size stays.
    pub fn zero(&mut self, range: Range<u64>) {
        self.cut(range.start..range.end.min(self.size).max(range.start));
    }

    /// The first byte at or behind `offset` that was written.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.overlapping(&(offset..self.size)).map(|(at, _)| at.max(offset)).next()
    }

    /// The first byte at or behind `offset` that was not written, or the end.
    pub fn next_hole(&self, offset: u64) -> u64 {
        let mut at = offset;
        for (start, segment) in self.overlapping(&(offset..self.size)) {
            if start > at {
                break;
            }
            at = start + segment.len as u64;
        }
        at
    }

    /// Removes the segments' bytes in `range`: it reads as zeros.
    fn cut(&mut self, range: Range<u64>) {
        let touched: Vec<u64> = self.overlapping(&range).map(|(at, _)| at).collect();
        for at in touched {
            let Some(old) = self.segments.remove(&at) else { continue };
            let before = old.part(at, &(0..range.start));
            let after = old.part(at, &(range.end..u64::MAX));
            self.segments.extend(before.into_iter().chain(after));
        }
    }

    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, &Segment)> {
        let first = self.segments.range(..=range.start).next_back().map_or(range.start, |(at, _)| *at);
        let start = range.start;
        self.segments
            .range(first..range.end.max(first))
            .filter(move |(at, s)| *at + s.len as u64 > start)
            .map(|(at, s)| (*at, s))
    }

    /// Copies the bytes from `offset` into `out`, zeros beyond the end included.
    pub fn copy_to(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let range = offset..offset + out.len() as u64;
        for (at, segment) in self.overlapping(&range) {
            if let Some((at, part)) = segment.part(at, &range) {
                let from = (at - offset) as usize;
                out[from..from + part.len].copy_from_slice(part.bytes());
            }
        }
    }

    /// Reads as read(2): the number of bytes before the end of the file.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let n = self.size.saturating_sub(offset).min(out.len() as u64) as usize;
        self.copy_to(offset, &mut out[..n]);
        n
    }

    /// Whether the bytes from `offset` are `bytes` (zeros beyond the end of the file).
    pub fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        self.first_difference(offset, bytes).is_none()
    }

    /// Nothing but zeros in `range`.
    pub fn is_zero(&self, range: Range<u64>) -> bool {
        let parts = self.overlapping(&range).filter_map(|(at, s)| s.part(at, &range));
        parts.into_iter().all(|(_, part)| nonzero(part.bytes()).is_none())
    }

    /// Offset in the file of the first byte that is not as in `bytes`.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let range = offset..offset + bytes.len() as u64;
        let mut done = offset;
        let slice = |from: u64, to: u64| &bytes[(from - offset) as usize..(to - offset) as usize];
        for (at, segment) in self.overlapping(&range) {
            let Some((at, part)) = segment.part(at, &range) else { continue };
            let end = at + part.len as u64;
            if let Some(bad) = nonzero(slice(done, at)) {
                return Some(done + bad);
            }
            if slice(at, end) != part.bytes() {
                let bad = slice(at, end).iter().zip(part.bytes()).position(|(a, b)| a != b);
                return Some(at + bad.unwrap_or(0) as u64);
            }
            done = end;
        }
        nonzero(slice(done, range.end)).map(|bad| done + bad)
    }
}

fn nonzero(bytes: &[u8]) -> Option<u64> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let chunk = bytes.chunks(ZEROS.len()).position(|c| c != &ZEROS[..c.len()])? * ZEROS.len();
    let within = bytes[chunk..].iter().position(|b| *b != 0)?;
    Some((chunk + within) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn behaves_like_a_vector() {
        let mut rng = Rng::new(3);
        let mut content = Content::default();
        let mut plain: Vec<u8> = Vec::new();
        for _ in 0..2000 {
            let offset = rng.below(300);
            if rng.one_in(4) {
                content.set_size(offset);
                plain.resize(offset as usize, 0);
            } else if rng.one_in(5) {
                let end = offset + rng.below(80);
                content.zero(offset..end);
                let len = plain.len();
                plain[len.min(offset as usize)..len.min(end as usize)].fill(0);
            } else {
                let data: Vec<u8> = (0..rng.between(1, 80)).map(|_| rng.next_u64() as u8).collect();
                let end = offset as usize + data.len();
                plain.resize(plain.len().max(end), 0);
                plain[offset as usize..end].copy_from_slice(&data);
                content.write(offset, &data.into());
            }
            assert_eq!(content.size(), plain.len() as u64);
            assert!(content.matches(0, &plain));
            let at = rng.below(400);
            let mut out = vec![9; rng.below(100) as usize];
            let n = content.read(at, &mut out);
            let from = plain.len().min(at as usize);
            assert_eq!(out[..n], plain[from..plain.len().min(from + out.len())]);
        }
    }

    #[test]
    fn finds_the_first_difference() {
        let mut content = Content::default();
        content.write(10, &vec![1; 10].into());
        let mut bytes = vec![0; 30];
        bytes[10..20].fill(1);
        assert_eq!(content.first_difference(0, &bytes), None);
        for i in [0, 9, 10, 15, 19, 20, 29] {
            let mut changed = bytes.clone();
            changed[i] ^= 4;
            assert_eq!(content.first_difference(0, &changed), Some(i as u64));
        }
    }
}
