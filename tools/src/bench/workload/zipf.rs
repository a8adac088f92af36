//! Zipf's distribution: item k is drawn with a probability proportional to 1/k^s.

use crate::bench::rng::Rng;

/// See the module.
#[derive(Clone, Debug)]
pub struct Zipf {
    /// Probability that a draw is at most this item.
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Over `items` items (at least 1), with exponent `s`.
    pub fn new(items: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=items.max(1)).map(|k| {
            sum += (k as f64).powf(-s);
            sum
        });
        let mut cumulative: Vec<f64> = weights.collect();
        cumulative.iter_mut().for_each(|c| *c /= sum);
        Self { cumulative }
    }

    /// An item, from 0; 0 is the most frequent.
    pub fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.unit();
        self.cumulative.partition_point(|c| *c <= at).min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_as_they_should() {
        let zipf = Zipf::new(100, 1.0);
        let mut rng = Rng::new(1);
        let mut counts = [0u32; 100];
        (0..200_000).for_each(|_| counts[zipf.draw(&mut rng)] += 1);
        // The 100th harmonic number is 5.187.
        for k in [1, 2, 5, 10] {
            let expected = 200_000.0 / 5.187 / k as f64;
            let seen = f64::from(counts[k - 1]);
            assert!((seen / expected - 1.0).abs() < 0.05, "{k}: {seen} of {expected}");
        }
        assert!(counts.iter().all(|c| *c > 0));
    }
}
