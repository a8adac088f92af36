//! Lists of block groups for root slots, which have room for a few ranges only.

use crate::format::GroupRange;
use crate::types::GroupNr;

/// Joins the nearest ranges until there are at most `most`, for a root slot: the result covers the
/// input, but no group of `room`, if that can be.
pub(super) fn compact(mut ranges: Vec<GroupRange>, most: usize, room: &[GroupNr]) -> Vec<GroupRange> {
    let between = |r: &[GroupRange], i: usize| r[i].first.0 + u64::from(r[i].count)..r[i + 1].first.0;
    let cost = |r: &[GroupRange], i: usize| {
        let gap = between(r, i);
        (room.iter().any(|group| gap.contains(&group.0)), gap.end - gap.start)
    };
    while ranges.len() > most {
        let Some(i) = (0..ranges.len() - 1).min_by_key(|i| cost(&ranges, *i)) else { break };
        let next = ranges.remove(i + 1);
        ranges[i].count = (next.first.0 + u64::from(next.count) - ranges[i].first.0) as u32;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_ranges_are_joined_but_not_over_the_room_for_a_takeover() {
        let range = |first, count| GroupRange { first: GroupNr(first), count };
        let ranges = vec![range(0, 2), range(3, 1), range(10, 1), range(13, 2)];
        assert_eq!(compact(ranges.clone(), 4, &[]), ranges);
        assert_eq!(compact(ranges.clone(), 3, &[]), [range(0, 4), range(10, 1), range(13, 2)]);
        assert_eq!(compact(ranges.clone(), 3, &[GroupNr(2)]), [range(0, 2), range(3, 1), range(10, 5)]);
        assert_eq!(compact(ranges.clone(), 2, &[GroupNr(12)]), [range(0, 11), range(13, 2)]);
        assert_eq!(compact(ranges, 1, &[GroupNr(12)]), [range(0, 15)]);
    }
}
