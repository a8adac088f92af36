//! Content of one file after a power cut: is every page a version that it may be?
//!
//! A page may be as it was after any operation since the last sync that covers it; it is that
//! version as a whole. Two mixtures are legitimate as well, because neither is a tear of a page by
//! the cut: a truncation that survived although an earlier write to the page did not, and a
//! synchronous write that survived although earlier buffered bytes around it did not.

use std::collections::BTreeSet;
use std::ops::Range;

use fs_core::Ino;

use super::expect::{Expectation, Version};
use crate::fail_with;
use crate::model::Content;
use crate::ops::origin;
use crate::run::Failure;

/// One file after recovery.
pub struct FileCheck<'a> {
    page: u64,
    /// Oldest state that may show.
    floor: usize,
    versions: Vec<Version>,
    durable: Vec<(usize, Range<u64>)>,
    atomic: Vec<(usize, Range<u64>)>,
    /// Ends of the writes.
    ends: BTreeSet<u64>,
    /// What was recovered.
    bytes: &'a [u8],
}

/// States that a page is in agreement with, as ranges from first to last; `None` if it is a
/// legitimate mixture.
type Matched = Option<Vec<(usize, usize)>>;

static EMPTY: std::sync::LazyLock<Content> = std::sync::LazyLock::new(Content::default);

fn content(version: &Version) -> &Content {
    version.node.as_ref().and_then(|n| n.content()).unwrap_or(&EMPTY)
}

impl<'a> FileCheck<'a> {
    /// The check of model inode `ino`, of which `bytes` were recovered.
    pub fn new(expect: &Expectation, ino: Ino, bytes: &'a [u8]) -> Self {
        let floor = expect.data_floor(ino);
        let writes = expect.writes(ino, floor);
        Self {
            page: expect.page,
            floor,
            versions: expect.versions(ino, floor),
            durable: expect.durable_ranges(ino, floor),
            atomic: writes.iter().filter(|w| w.2).map(|w| (w.0, w.1.clone())).collect(),
            ends: writes.iter().map(|w| w.1.end).collect(),
            bytes,
        }
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Judges size, pages and atomic writes.
    pub fn run(&self) -> Result<(), Failure> {
        self.check_size()?;
        let longest = self.versions.iter().map(|v| content(v).size()).max().unwrap_or(0).max(self.size());
        let mut matched = Vec::new();
        for page in 0..longest.div_ceil(self.page) {
            matched.push(self.check_page(page)?);
        }
        self.atomic.iter().try_for_each(|(state, range)| self.check_atomic(*state, range, &matched))
    }

    fn check_size(&self) -> Result<(), Failure> {
        let sizes: BTreeSet<u64> = self.versions.iter().map(|v| content(v).size()).collect();
        let size = self.size();
        // A buffered write that spans pages may have been written back in part.
        let between = |v: &[Version]| content(&v[0]).size() < size && size < content(&v[1]).size();
        let partial = size.is_multiple_of(self.page) && self.versions.windows(2).any(between);
        // A write that survived, when the buffered ones before it, which had made the file longer, did not.
        let written = self.ends.contains(&size);
        let longer = sizes.first().is_none_or(|low| size > *low);
        let allowed = sizes.contains(&size) || partial || (written && longer);
        if !allowed {
            fail_with!("size is {size}, may be {sizes:?} (states from {})", self.floor);
        }
        Ok(())
    }

    fn check_page(&self, page: u64) -> Result<Matched, Failure> {
        let range = page * self.page..(page + 1) * self.page;
        let touching = self.durable.iter().filter(|(_, r)| r.start < range.end && range.start < r.end);
        let floor = touching.map(|(state, _)| *state).max().unwrap_or(self.floor);
        let candidates = self.versions.iter().filter(|v| v.last >= floor);
        let whole: Vec<_> =
            candidates.filter(|v| self.is_version(&range, v)).map(|v| (v.first.max(floor), v.last)).collect();
        if !whole.is_empty() {
            return Ok(Some(whole));
        }
        if self.versions.iter().any(|v| self.is_mixture(&range, v)) {
            return Ok(None);
        }
        fail_with!("page {page} is no version from state {floor} on: {}", self.describe(&range, floor))
    }

    /// The part of `range` that was recovered.
    fn recovered(&self, range: &Range<u64>) -> &[u8] {
        let end = range.end.min(self.size()) as usize;
        &self.bytes[(range.start as usize).min(end)..end]
    }

    /// `range` holds what it did in `version`, and nothing but zeros is cut off.
    fn is_version(&self, range: &Range<u64>, version: &Version) -> bool {
        let content = content(version);
        let end_in = |size: u64| size.min(range.end).max(range.start);
        let (have, had) = (end_in(self.size()), end_in(content.size()));
        content.matches(range.start, self.recovered(range)) && (have >= had || content.is_zero(have..had))
    }

    /// As [`Self::is_version`], or so after one of the later truncations.
    fn is_truncated_version(&self, range: &Range<u64>, version: &Version) -> bool {
        if self.is_version(range, version) {
            return true;
        }
        let mut lowest = content(version).size();
        for later in self.versions.iter().filter(|v| v.first > version.last) {
            let size = content(later).size();
            if size >= lowest {
                continue;
            }
            lowest = size;
            let kept = range.start..range.end.min(size).max(range.start);
            let gone = kept.end..range.end;
            if self.is_version(&kept, version) && EMPTY.matches(gone.start, self.recovered(&gone)) {
                return true;
            }
        }
        false
    }

    /// `range` is `version`, truncated later or not, overlaid by later writes that bypass the cache
    /// or are synchronous.
    fn is_mixture(&self, range: &Range<u64>, version: &Version) -> bool {
        let clip = |at: u64| at.clamp(range.start, range.end);
        let later = |all: &[(usize, Range<u64>)]| -> Vec<(usize, Range<u64>)> {
            all.iter().filter(|(state, _)| *state > version.last).cloned().collect()
        };
        let (durable, atomic) = (later(&self.durable), later(&self.atomic));
        let over = durable.iter().chain(&atomic);
        let mut edges: BTreeSet<u64> = over.flat_map(|(_, r)| [clip(r.start), clip(r.end)]).collect();
        edges.extend([range.start, range.end]);
        let edges: Vec<u64> = edges.into_iter().collect();
        edges.windows(2).all(|edge| {
            let part = edge[0]..edge[1];
            let covers = |r: &Range<u64>| r.start <= part.start && part.end <= r.end;
            let must = durable.iter().filter(|(_, r)| covers(r)).map(|(state, _)| *state).max();
            let may = atomic.iter().filter(|(_, r)| covers(r)).map(|(state, _)| *state).min();
            let newer = |floor: usize| {
                let mut newer = self.versions.iter().filter(|v| v.last >= floor);
                newer.any(|v| self.is_truncated_version(&part, v))
            };
            match (must, may) {
                (Some(floor), _) => newer(floor),
                (None, Some(floor)) => self.is_truncated_version(&part, version) || newer(floor),
                (None, None) => self.is_truncated_version(&part, version),
            }
        })
    }

    /// The write that made `state` is there on all of its pages or on none.
    fn check_atomic(&self, state: usize, range: &Range<u64>, matched: &[Matched]) -> Result<(), Failure> {
        let pages = range.start / self.page..range.end.div_ceil(self.page);
        let (mut before, mut after) = (None, None);
        for page in pages {
            let Some(Some(states)) = matched.get(page as usize) else { continue };
            if states.iter().all(|(_, last)| *last < state) {
                before = Some(page);
            }
            if states.iter().all(|(first, _)| *first >= state) {
                after = Some(page);
            }
        }
        match (before, after) {
            (Some(before), Some(after)) => fail_with!(
                "the atomic write of {range:?} by operation {} is torn: page {after} has it, page {before} has not",
                state - 1
            ),
            _ => Ok(()),
        }
    }

    /// Which writes the bytes of `range` come from, for the report.
    fn describe(&self, range: &Range<u64>, floor: usize) -> String {
        let bytes = self.recovered(range);
        let mut runs: Vec<String> = Vec::new();
        let mut last = None;
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let at = range.start + i as u64 * 8;
            let from = if word == [0; 8] { None } else { Some(origin(word.try_into().unwrap_or_default())) };
            let label = match from {
                None => "zeros".to_string(),
                Some((id, offset)) if offset == at && id < 1 << 24 => format!("write {id}"),
                Some((id, offset)) if id < 1 << 24 => {
                    format!("write {id} shifted by {}", at as i64 - offset as i64)
                }
                Some(_) => "unaligned or foreign bytes".to_string(),
            };
            if last.as_ref() != Some(&label) {
                runs.push(format!("from {at} {label}"));
                last = Some(label);
            }
        }
        runs.truncate(12);
        let differs = |v: &Version| {
            let first = content(v).first_difference(range.start, bytes);
            format!("state {}..{} (size {}) differs at {first:?}", v.first, v.last, content(v).size())
        };
        let versions = self.versions.iter().filter(|v| v.last >= floor);
        let versions: Vec<String> = versions.map(differs).collect();
        format!("size {}; bytes: {}; {}", self.size(), runs.join(", "), versions.join("; "))
    }
}
