//! Slack: free blocks that new data leaves among itself, for what will replace it.
//!
//! Nothing is overwritten in place. So that a file whose pages are replaced again and again does not end up all
//! over the volume, the blocks are looked at in windows: new data leaves the last blocks of each window free, and
//! the replacement of a block that lies in a window is put into the same window, as long as there is room. The block
//! that it replaces is the window's room for the next one. The pages of a window change places, but all of them can
//! still be read at once.
//!
//! Slack is a wish, not a promise: when the volume is filling up it is space like any other.

use std::ops::Range;

use crate::types::BlockNr;

/// Smallest and largest window in blocks.
const WINDOWS: (u32, u32) = (64, 512);

/// Part of a window that is slack.
const PART: u32 = 8;

/// Pages that a window's slack has room for.
const PAGES: u32 = 4;

/// Windows on each side that are as good as the own one, if that is full.
const NEIGHBOURS: i64 = 4;

/// Slack is left while this part of the volume is available.
const ROOMY: u64 = 4;

/// Where slack is in a block group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slack {
    /// Blocks of a window, a power of two; 0: there is no slack.
    window: u32,
}

impl Slack {
    /// Nowhere.
    pub const NONE: Self = Self { window: 0 };

    /// With room for pages of so many blocks (a power of two).
    pub fn for_pages(page_blocks: u32) -> Self {
        Self { window: (page_blocks * PAGES * PART).clamp(WINDOWS.0, WINDOWS.1) }
    }

    /// Blocks at the end of each window that new data leaves free.
    pub fn blocks(self) -> u32 {
        self.window / PART
    }

    /// Longest run of blocks without slack.
    pub(super) fn longest_between(self) -> u32 {
        self.window - self.blocks()
    }

    /// The blocks of allocation word `i` of a group that are slack.
    pub(super) fn of_word(self, i: usize) -> u64 {
        let words = (self.window / 64) as usize;
        if words > 0 && i % words == words - 1 { !0 << (64 - self.blocks()) } else { 0 }
    }

    /// The words of the window that offset `at` of a group of so many blocks is in, and of those next to it, the
    /// nearest first.
    pub(super) fn windows_around(self, at: u32, group_blocks: u32) -> impl Iterator<Item = Range<usize>> {
        let words = (self.window / 64) as usize;
        let own = at.checked_div(self.window).map(i64::from);
        let windows = i64::from(group_blocks.checked_div(self.window).unwrap_or_default());
        let near = own.into_iter().flat_map(|own| {
            std::iter::once(own).chain((1..=NEIGHBOURS).flat_map(move |n| [own + n, own - n]))
        });
        near.filter(move |window| (0..windows).contains(window)).map(move |window| {
            let first = window as usize * words;
            first..first + words
        })
    }
}

/// Where the replacement of a page should be, by where the page before it, itself and the one behind it are: beside what
/// it replaces. But pages that have strayed, because there was no room, go back to their neighbours: otherwise a file's
/// pages would drift apart in the course of time.
pub fn beside(slack: Slack, before: Option<BlockNr>, own: BlockNr, behind: Option<BlockNr>) -> BlockNr {
    let window = |block: BlockNr| block.0.checked_div(slack.window.into()).unwrap_or_default();
    let astray = |other: BlockNr| window(other).abs_diff(window(own)) > 1;
    match (before, behind) {
        (Some(a), Some(b)) if window(a) == window(b) => a,
        (Some(a), _) if astray(a) => a,
        _ => own,
    }
}

/// Whether a volume of so many blocks, of which so many are available, has space to leave slack.
pub(super) fn is_roomy(available: u64, total: u64) -> bool {
    available >= total / ROOMY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_strayed_goes_back() {
        let slack = Slack::for_pages(2);
        let at = |before: Option<u64>, own, behind: Option<u64>| {
            beside(slack, before.map(BlockNr), BlockNr(own), behind.map(BlockNr)).0
        };
        assert_eq!(at(Some(4), 70, Some(12)), 4, "its neighbours are together");
        assert_eq!(at(Some(60), 64, Some(68)), 64, "they are in two windows");
        assert_eq!(at(Some(60), 128, Some(132)), 60, "the one before it is far away");
        assert_eq!((at(None, 700, Some(12)), at(Some(4), 70, None)), (700, 70));
        assert_eq!(beside(Slack::NONE, Some(BlockNr(100)), BlockNr(2), None), BlockNr(2));
    }

    #[test]
    fn windows_are_looked_at_by_their_distance() {
        let slack = Slack::for_pages(4);
        let around: Vec<usize> = slack.windows_around(300, 4 * 128).map(|words| words.start).collect();
        assert_eq!(around, [4, 6, 2, 0]);
        assert_eq!(Slack::NONE.windows_around(300, 512).count(), 0);
    }

    #[test]
    fn the_last_blocks_of_each_window_are_slack() {
        for (page_blocks, window) in [(1, 64), (2, 64), (4, 128), (8, 256), (16, 512)] {
            let slack = Slack::for_pages(page_blocks);
            assert_eq!((slack.blocks(), slack.longest_between()), (window / 8, window / 8 * 7));
            assert!(slack.blocks() >= PAGES * page_blocks);
            let is_slack = |block: u32| slack.of_word((block / 64) as usize) >> (block % 64) & 1 == 1;
            for block in 0..2048 {
                assert_eq!(is_slack(block), block % window >= window / 8 * 7, "block {block} of {window}");
                let words = slack.windows_around(block, 2048).next().unwrap();
                assert_eq!(words.len() as u32 * 64, window);
                assert!(words.contains(&((block / 64) as usize)));
            }
        }
        assert!((0..64).all(|i| Slack::NONE.of_word(i) == 0));
        assert!(is_roomy(256, 1024) && !is_roomy(255, 1024));
    }
}
