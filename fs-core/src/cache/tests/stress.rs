//! Threads that hit, miss, drop and evict the same pages.

use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::AlignedBuf;

use super::super::PageCache;
use super::super::policy::{PolicyKind, TouchOptions};
use crate::types::{Ino, PageNr, PageSize};

const PAGES: u64 = 96;
const BYTES: usize = 4096;

fn bytes_of(page: PageNr) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(BYTES);
    buf.fill(page.0 as u8);
    buf
}

/// Numbers that look random enough, each thread its own.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

/// A pinned frame has its page's bytes, all of them, for as long as it is pinned; one whose bytes somebody
/// keeps is always found.
#[test]
fn pinned_frames_keep_their_pages() {
    let page_size = PageSize::new(BYTES as u32).unwrap();
    for kind in [PolicyKind::default(), PolicyKind::Touch(TouchOptions::default()), PolicyKind::Lru] {
        let cache = PageCache::new(page_size, 24 * BYTES, kind, 2);
        let kept = cache.insert(Ino(1), PageNr(PAGES), bytes_of(PageNr(PAGES)));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let resizer = scope.spawn(|| {
                for frames in [4, 64, 16, 200].iter().cycle() {
                    cache.set_capacity(frames * BYTES);
                    cache.remove_from(Ino(1), PageNr(PAGES + 1));
                    std::thread::yield_now();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let workers: Vec<_> = (1..=3u64)
                .map(|thread| {
                    let (cache, kept) = (&cache, &kept);
                    scope.spawn(move || {
                        let mut state = thread;
                        let mut held = Vec::new();
                        for _ in 0..4_000 {
                            let page = PageNr(random(&mut state) % PAGES);
                            if random(&mut state).is_multiple_of(16) {
                                cache.remove(Ino(1), page);
                            }
                            let found = cache.get(Ino(1), page);
                            let frame = found.unwrap_or_else(|| cache.insert(Ino(1), page, bytes_of(page)));
                            held.push((page, frame.clone()));
                            if held.len() > 4 {
                                held.swap_remove(random(&mut state) as usize % held.len());
                            }
                            for (page, frame) in &held {
                                let data = frame.read();
                                assert!(
                                    data.bytes().len() == BYTES
                                        && data.bytes().iter().all(|b| *b == page.0 as u8)
                                );
                            }
                            let found = cache.get(Ino(1), PageNr(PAGES)).expect("a pinned page is found");
                            assert!(found.is(kept));
                        }
                    })
                })
                .collect();
            let outcomes: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            stop.store(true, Ordering::Relaxed);
            resizer.join().unwrap();
            outcomes.into_iter().for_each(|outcome| outcome.unwrap());
        });
        drop(kept);
        cache.remove_from(Ino(1), PageNr(0));
        assert_eq!(cache.resident_pages(), 0);
        // Each page can come back, and is there once.
        (0..=PAGES).for_each(|page| drop(cache.insert(Ino(1), PageNr(page), bytes_of(PageNr(page)))));
        let found = (0..=PAGES).filter(|page| cache.contains(Ino(1), PageNr(*page))).count();
        assert_eq!(found, cache.resident_pages());
    }
}
