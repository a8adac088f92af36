//! A bounded memory of pages that were evicted lately.

/// Entries of a bucket: they share a cache line.
const WAYS: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    fingerprint: u32,
    /// Number of the insertion; 0: free.
    stamp: u32,
}

/// Remembers the last `capacity` pages by fingerprints in a hash table of fixed size, as in the S3-FIFO
/// paper (section 4.2): an entry is forgotten when as many others came after it, or when its bucket is
/// needed. Two pages with one fingerprint are taken for one, once in 2^29 questions.
#[derive(Debug)]
pub(super) struct Ghost {
    buckets: Box<[[Entry; WAYS]]>,
    capacity: u32,
    stamp: u32,
}

impl Ghost {
    pub(super) fn new(capacity: usize) -> Self {
        // Twice as many entries as are remembered, so that few buckets overflow.
        let buckets = (capacity * 2).div_ceil(WAYS).max(1).next_power_of_two();
        let capacity = u32::try_from(capacity).unwrap_or(u32::MAX / 2).min(u32::MAX / 2);
        Self { buckets: vec![[Entry::default(); WAYS]; buckets].into(), capacity, stamp: 0 }
    }

    /// Remembers a page.
    pub(super) fn insert(&mut self, page: u64) {
        if self.stamp == u32::MAX {
            // After four thousand million evictions the numbers are used up: it begins anew.
            self.buckets.fill([Entry::default(); WAYS]);
            self.stamp = 0;
        }
        self.stamp += 1;
        let entry = Entry { fingerprint: fingerprint(page), stamp: self.stamp };
        let bucket = self.bucket(page);
        let same = bucket.iter().position(|e| e.stamp > 0 && e.fingerprint == entry.fingerprint);
        let oldest = || bucket.iter().enumerate().min_by_key(|(_, e)| e.stamp).map_or(0, |(i, _)| i);
        let at = same.unwrap_or_else(oldest);
        bucket[at] = entry;
    }

    /// Forgets a page; whether it was remembered.
    pub(super) fn take(&mut self, page: u64) -> bool {
        let (stamp, capacity) = (self.stamp, self.capacity);
        let fingerprint = fingerprint(page);
        let known = |e: &&mut Entry| e.fingerprint == fingerprint && e.stamp > 0;
        let Some(entry) = self.bucket(page).iter_mut().find(known) else { return false };
        let fresh = stamp - entry.stamp < capacity;
        *entry = Entry::default();
        fresh
    }

    fn bucket(&mut self, page: u64) -> &mut [Entry; WAYS] {
        let mask = self.buckets.len() as u64 - 1;
        &mut self.buckets[(page & mask) as usize]
    }

    /// Pages that it remembers.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let fresh = |e: &&Entry| e.stamp > 0 && self.stamp - e.stamp < self.capacity;
        self.buckets.iter().flatten().filter(fresh).count()
    }
}

/// The half of the hash that does not choose the bucket (of less than 2^32).
fn fingerprint(page: u64) -> u32 {
    (page >> 32) as u32
}
