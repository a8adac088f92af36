//! Making a failing history shorter.

use crate::ops::Op;

/// Drops operations from `ops` as long as `fails` still says so, in at most `tries` tries. Halves
/// first, then ever smaller pieces.
pub fn shrink(ops: &[Op], mut tries: usize, mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let mut best = ops.to_vec();
    let mut piece = (best.len() / 2).max(1);
    loop {
        let mut at = 0;
        let mut progress = false;
        while at < best.len() && tries > 0 {
            let mut shorter = best.clone();
            shorter.drain(at..(at + piece).min(best.len()));
            tries -= 1;
            if fails(&shorter) {
                best = shorter;
                progress = true;
            } else {
                at += piece;
            }
        }
        if tries == 0 || (piece == 1 && !progress) {
            return best;
        }
        piece = (piece / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_needed() {
        let ops: Vec<Op> = (0..100).map(|ms| Op::Pass { ms }).collect();
        let needed = [Op::Pass { ms: 13 }, Op::Pass { ms: 77 }];
        let shrunk = shrink(&ops, 10_000, |ops| needed.iter().all(|n| ops.contains(n)));
        assert_eq!(shrunk, needed);
    }
}
