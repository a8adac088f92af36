//! Finding free runs in allocation bits (bit set = not available). Pure functions of the words.

/// First `n` free bits in a row at or behind `from` that start at a multiple of `align`.
///
/// `word(i)` gives the bits of word `i` (of `words`); each is read once. O(words).
pub(super) fn find(word: impl Fn(usize) -> u64, words: usize, from: u32, n: u32, align: u32) -> Option<u32> {
    // Start of the free run that reaches the end of the word before.
    let mut tail: Option<u32> = None;
    for i in (from / 64) as usize..words {
        let base = i as u32 * 64;
        let free = !word(i) & above(from, base);
        if free == 0 {
            tail = None;
            continue;
        }
        if let Some(start) = tail {
            let head = free.trailing_ones();
            let start = start.next_multiple_of(align);
            if base + head >= start + n {
                return Some(start);
            }
            if head == 64 {
                continue;
            }
        }
        if n <= 64 {
            let starts = starts(free, n) & aligned(base, align);
            if starts != 0 {
                return Some(base + starts.trailing_zeros());
            }
        }
        let lead = free.leading_ones();
        tail = (lead > 0).then(|| base + 64 - lead);
    }
    None
}

/// First `n` (1 to 3) free bits in a row within an aligned unit of four that is partly used
/// already. Filling those first keeps whole units for pages and tree nodes.
pub(super) fn find_in_broken_unit(
    word: impl Fn(usize) -> u64,
    words: usize,
    from: u32,
    n: u32,
) -> Option<u32> {
    for i in (from / 64) as usize..words {
        let base = i as u32 * 64;
        let all_free = !word(i);
        let whole = (starts(all_free, 4) & aligned(0, 4)) * 0xf;
        let starts = starts(all_free & !whole & above(from, base), n);
        if starts != 0 {
            return Some(base + starts.trailing_zeros());
        }
    }
    None
}

/// Number of free bits in a row from `start`, at most `max`.
pub(super) fn run_at(word: impl Fn(usize) -> u64, words: usize, start: u32, max: u32) -> u32 {
    let mut at = start;
    let end = start.saturating_add(max).min(words as u32 * 64);
    while at < end {
        let free = !word((at / 64) as usize) >> (at % 64);
        let ones = free.trailing_ones().min(64 - at % 64);
        at += ones;
        if ones == 0 || !at.is_multiple_of(64) {
            break;
        }
    }
    at.min(end).saturating_sub(start)
}

/// Bit positions at which `n` set bits in a row start within `bits`.
fn starts(bits: u64, n: u32) -> u64 {
    let mut found = bits;
    let mut have = 1;
    while have < n {
        let step = have.min(n - have);
        found &= found >> step;
        have += step;
    }
    found
}

/// Bits of the word at `base` that are at or behind `from`.
fn above(from: u32, base: u32) -> u64 {
    if from <= base { !0 } else { (!0u64).checked_shl(from - base).unwrap_or(0) }
}

/// Bits of the word at `base` that are multiples of `align` (a power of two).
fn aligned(base: u32, align: u32) -> u64 {
    match align {
        1 => !0,
        2 => 0x5555_5555_5555_5555,
        4 => 0x1111_1111_1111_1111,
        8 => 0x0101_0101_0101_0101,
        16 => 0x0001_0001_0001_0001,
        32 => 0x0000_0001_0000_0001,
        _ => base.is_multiple_of(align) as u64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::cases;
    use super::*;

    fn naive(words: &[u64], from: u32, n: u32, align: u32) -> Option<u32> {
        let free = |i: u32| words[(i / 64) as usize] >> (i % 64) & 1 == 0;
        let end = words.len() as u32 * 64;
        (from..end).find(|&s| s % align == 0 && s + n <= end && (s..s + n).all(free))
    }

    /// Words with long runs as well as noise.
    fn words() -> impl Strategy<Value = Vec<u64>> {
        let word = prop_oneof![
            3 => Just(0u64),
            2 => Just(!0u64),
            2 => any::<u64>(),
            2 => (0u32..64).prop_map(|n| !0 << n),
            2 => (0u32..64).prop_map(|n| !0 >> n),
            1 => (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a & b & c),
        ];
        proptest::collection::vec(word, 8)
    }

    proptest! {
        #![proptest_config(cases(2000))]

        #[test]
        fn find_is_first_fit(words in words(), from in 0u32..512, n in 1u32..300, align in 0u32..9) {
            let align = 1 << align;
            prop_assert_eq!(
                find(|i| words[i], words.len(), from, n, align),
                naive(&words, from, n, align)
            );
        }

        #[test]
        fn small_runs_too(words in words(), from in 0u32..512, n in 1u32..9, align in 0u32..4) {
            let align = 1 << align;
            prop_assert_eq!(
                find(|i| words[i], words.len(), from, n, align),
                naive(&words, from, n, align)
            );
        }

        #[test]
        fn run_length(words in words(), start in 0u32..512, max in 1u32..600) {
            let free = |i: u32| words[(i / 64) as usize] >> (i % 64) & 1 == 0;
            let expect = (start..512).take(max as usize).take_while(|&i| free(i)).count() as u32;
            prop_assert_eq!(run_at(|i| words[i], words.len(), start, max), expect);
        }

        #[test]
        fn broken_units_only(words in words(), from in 0u32..512, n in 1u32..4) {
            let free = |i: u32| words[(i / 64) as usize] >> (i % 64) & 1 == 0;
            if let Some(s) = find_in_broken_unit(|i| words[i], words.len(), from, n) {
                prop_assert!(s >= from);
                for i in s..s + n {
                    prop_assert!(free(i));
                    let unit = i / 4 * 4;
                    prop_assert!((unit..unit + 4).any(|b| !free(b)));
                }
            } else if n == 1 {
                for i in from..512 {
                    let unit = i / 4 * 4;
                    prop_assert!(!free(i) || (unit..unit + 4).all(free));
                }
            }
        }
    }
}
