//! Recognises scans: whoever reads the pages of a file one after the other, or at equal distances.
//!
//! Only reads that miss the cache are told: what is cached needs no reading ahead, and a hit pays nothing. Each
//! stream remembers its last read and what has been asked for ahead of it. Its window doubles each time that half
//! of it has been read.

use std::ops::Range;

/// Streams of a file at a time.
const STREAMS: usize = 8;
/// Pages that the first window has at least.
const FIRST_WINDOW: u64 = 4;
/// Pages that a sequential stream may have found in the cache since its last miss.
const GAP: u64 = 8;
/// Reads further apart than so many pages belong to different streams.
const FARTHEST: u64 = 256;
/// Reads at equal distances behind the first two, to be taken for a scan.
const REPEATS: u32 = 2;
/// Reads after which a stream that none of them belonged to gives way.
const STALE: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// One read.
    Unknown,
    /// Each read begins where the one before ended.
    Sequential,
    /// Each read begins so many pages behind (or before) the one before.
    Strided { distance: i64, repeats: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    pattern: Pattern,
    /// Pages of its last read.
    first: u64,
    end: u64,
    /// Pages to be read ahead.
    window: u64,
    /// Sequential: the page up to which was read ahead. Strided: reads that have been done ahead.
    ahead: u64,
    /// The read that it was part of last.
    used: u64,
}

/// The scans of one file.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    reads: u64,
}

impl Streams {
    /// Pages `first..end` are read, and some of them were not in the cache. Returns what to read ahead, at
    /// most `most` pages; they may be behind the file's end.
    pub(crate) fn note(&mut self, first: u64, end: u64, most: u64) -> Vec<Range<u64>> {
        self.reads += 1;
        let reads = self.reads;
        if let Some(stream) = self.streams.iter_mut().find(|s| s.continues(first, end)) {
            stream.used = reads;
            return stream.go_on(first, end, most);
        }
        let near = |s: &&mut Stream| !s.is_scan() && s.first.abs_diff(first) <= FARTHEST && s.first != first;
        if let Some(stream) = self.streams.iter_mut().filter(near).min_by_key(|s| s.first.abs_diff(first)) {
            let distance = first as i64 - stream.first as i64;
            let pattern = Pattern::Strided { distance, repeats: 0 };
            *stream = Stream { pattern, used: reads, ..Stream::new(first, end) };
            return Vec::new();
        }
        self.begin(Stream { used: reads, ..Stream::new(first, end) });
        Vec::new()
    }

    /// A new stream, if need be in place of one that nobody seems to follow any more.
    fn begin(&mut self, stream: Stream) {
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
            return;
        }
        let oldest = self.streams.iter_mut().min_by_key(|s| (s.is_scan(), s.used));
        if let Some(oldest) = oldest.filter(|s| !s.is_scan() || s.used + STALE < stream.used) {
            *oldest = stream;
        }
    }
}

impl Stream {
    fn new(first: u64, end: u64) -> Self {
        Self { pattern: Pattern::Unknown, first, end, window: 0, ahead: 0, used: 0 }
    }

    fn is_scan(&self) -> bool {
        match self.pattern {
            Pattern::Unknown => false,
            Pattern::Sequential => true,
            Pattern::Strided { repeats, .. } => repeats >= REPEATS,
        }
    }

    /// The read is what was expected next of this stream.
    fn continues(&self, first: u64, end: u64) -> bool {
        // A read may begin in the page that the one before ended in.
        let adjacent = first + 1 >= self.end && first <= self.end && end > self.end;
        match self.pattern {
            Pattern::Unknown => adjacent,
            Pattern::Sequential => {
                end > self.end && first + 1 >= self.end && first <= self.end.saturating_add(GAP)
            }
            Pattern::Strided { distance, repeats } => {
                self.first.checked_add_signed(distance) == Some(first) || (repeats == 0 && adjacent)
            }
        }
    }

    fn go_on(&mut self, first: u64, end: u64, most: u64) -> Vec<Range<u64>> {
        let strided = match self.pattern {
            Pattern::Strided { distance, repeats }
                if self.first.checked_add_signed(distance) == Some(first) =>
            {
                Some((distance, repeats))
            }
            _ => None,
        };
        (self.first, self.end) = (first, end);
        let Some((distance, repeats)) = strided else {
            self.pattern = Pattern::Sequential;
            return self.ahead_of_sequential(most);
        };
        let repeats = repeats.saturating_add(1);
        self.pattern = Pattern::Strided { distance, repeats };
        if repeats < REPEATS {
            return Vec::new();
        }
        self.ahead_of_strided(distance, most)
    }

    /// The window for the next time: twice as large.
    fn grow(&mut self, most: u64) {
        let least = FIRST_WINDOW.max((self.end - self.first) * 2);
        self.window = (self.window * 2).max(least).min(most);
    }

    fn ahead_of_sequential(&mut self, most: u64) -> Vec<Range<u64>> {
        if self.ahead > self.end.saturating_add(self.window / 2) {
            return Vec::new();
        }
        self.grow(most);
        let from = self.ahead.max(self.end);
        self.ahead = from.max(self.end.saturating_add(self.window));
        (from < self.ahead).then_some(from..self.ahead).into_iter().collect()
    }

    fn ahead_of_strided(&mut self, distance: i64, most: u64) -> Vec<Range<u64>> {
        let pages = self.end - self.first;
        self.ahead = self.ahead.saturating_sub(1);
        if self.ahead > self.window / pages / 2 {
            return Vec::new();
        }
        self.grow(most);
        let reads = self.window / pages;
        let nth = |n: u64| {
            let first = self.first.checked_add_signed(distance.checked_mul(n as i64)?)?;
            Some(first..first.checked_add(pages)?)
        };
        let ranges = (self.ahead + 1..=reads).map_while(nth).collect();
        self.ahead = self.ahead.max(reads);
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MOST: u64 = 64;

    /// Tells of reads of `pages` pages each; returns what was read ahead, page by page.
    fn pages_ahead(streams: &mut Streams, reads: impl Iterator<Item = u64>, pages: u64) -> Vec<u64> {
        reads.flat_map(|first| streams.note(first, first + pages, MOST)).flatten().collect()
    }

    #[test]
    fn a_sequential_scan_asks_for_each_page_once_in_growing_windows() {
        let mut streams = Streams::default();
        let mut asked: Vec<u64> = Vec::new();
        let mut largest = 0;
        for page in 0..500 {
            for range in streams.note(page, page + 1, MOST) {
                assert!(range.start > page, "{range:?} is not ahead of {page}");
                assert!(range.end <= page + 1 + MOST, "{range:?} is too far ahead of {page}");
                largest = largest.max(range.end - range.start);
                asked.extend(range);
            }
            if page >= 2 {
                assert!(asked.contains(&page), "{page} was not read ahead");
            }
        }
        assert!(asked.windows(2).all(|two| two[0] + 1 == two[1]), "once each, in order");
        assert_eq!(asked[0], 2);
        assert!(largest >= MOST / 2);
    }

    /// Reads of parts of pages, and of several pages that do not begin at their borders.
    #[test]
    fn reads_that_share_a_page_are_sequential() {
        let mut streams = Streams::default();
        let mut asked = BTreeSet::new();
        for i in 0..50u64 {
            // 40 KiB at a time from pages of 16 KiB.
            let (from, to) = (i * 40, (i + 1) * 40);
            asked.extend(streams.note(from / 16, to.div_ceil(16), MOST).into_iter().flatten());
        }
        assert!((6..125).all(|page| asked.contains(&page)), "{asked:?}");
    }

    #[test]
    fn strides_are_found_in_both_directions() {
        for distance in [7i64, -5, -1] {
            let mut streams = Streams::default();
            let start = if distance > 0 { 10 } else { 2000 };
            let nth = |n: i64| (start + distance * n) as u64;
            let asked = pages_ahead(&mut streams, (0..200).map(nth), 1);
            let wanted: Vec<u64> = (4..200).map(nth).collect();
            assert_eq!(asked[..wanted.len()], wanted, "distance {distance}");
            assert!(asked.len() <= wanted.len() + MOST as usize);
        }
        // Two pages of every ten.
        let asked = pages_ahead(&mut Streams::default(), (0..40).map(|n| n * 10), 2);
        assert!(asked.iter().all(|page| page % 10 < 2) && asked.contains(&391));
    }

    #[test]
    fn scans_beside_each_other_and_beside_random_reads() {
        let mut streams = Streams::default();
        let mut asked = BTreeSet::new();
        let starts = [0u64, 10_000, 20_000, 30_000];
        let mut random = 1u64;
        for i in 0..200 {
            for start in starts {
                asked.extend(streams.note(start + i, start + i + 1, MOST).into_iter().flatten());
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let elsewhere = 1_000_000 + (random >> 40);
                assert!(streams.note(elsewhere, elsewhere + 1, MOST).is_empty());
            }
        }
        for start in starts {
            assert!((start + 3..start + 200).all(|page| asked.contains(&page)));
        }
        assert!(streams.streams.len() <= STREAMS);
    }

    #[test]
    fn random_reads_ask_for_little() {
        let mut streams = Streams::default();
        let mut random = 5u64;
        let reads = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % 100_000
        });
        let asked = pages_ahead(&mut streams, reads.take(10_000), 1);
        assert!(asked.len() < 100, "{} pages", asked.len());
    }

    /// Whatever is read: nothing overflows, and no more is asked for than may be.
    #[test]
    fn borders() {
        let mut streams = Streams::default();
        for (first, end) in
            [(u64::MAX - 3, u64::MAX - 2), (u64::MAX - 2, u64::MAX - 1), (u64::MAX - 1, u64::MAX)]
        {
            streams.note(first, end, MOST);
        }
        let mut streams = Streams::default();
        for first in [6, 4, 2, 0u64] {
            assert!(streams.note(first, first + 1, MOST).is_empty(), "there is nothing before page 0");
        }
        for first in 100..200 {
            assert!(streams.note(first, first + 1, 0).is_empty(), "no page may be read ahead");
        }
    }
}
