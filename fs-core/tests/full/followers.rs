//! Followers that read the volume as of an earlier moment, while it is full.

use dbfs_fs_core::api::FsOps;
use dbfs_fs_core::{ClaimLost, FollowerPosition, Lsn};

use crate::rig::{BUFFERED, DIRECT, MIB, PAGES, Rig, bytes};

/// Overwrites pieces of a file, `mib` in all.
fn churn(rig: &mut Rig, mib: usize, version: u64) {
    for n in 0..mib * 4 {
        let flags = [BUFFERED, DIRECT][n % 2];
        rig.put(b"kept", n * 5 % 8 * (256 << 10), &bytes(version + n as u64, 256 << 10), flags).unwrap();
    }
    rig.v.sync_all().unwrap();
    rig.v.publish_durable().unwrap();
}

/// Nobody waits for a follower that has stopped: data is overwritten many times over, files are deleted and
/// written again.
#[test]
fn a_full_volume_goes_on_without_its_follower() {
    for page in PAGES {
        let mut rig = Rig::new(page);
        rig.create(b"data");
        let claim = rig.v.claim_for_follower("stopped").unwrap();
        assert!(rig.append_until_full(b"data", 256 << 10, BUFFERED) > 100);
        rig.v.fsync(rig.ino(b"data"), false).unwrap();
        for round in 0..3 {
            churn(&mut rig, 20, round * 100);
            rig.overwrite_all(round * 1000);
        }
        assert!(claim.lost().is_some());
        assert!(claim.advance(claim.start()).is_err());
        assert!(rig.v.counters().claims_revoked > 0);
        let again = rig.v.claim_for_follower("the same, from a new root").unwrap();
        assert!(again.start().applied > claim.start().applied);
        rig.unlink(b"data");
        rig.create(b"data");
        assert!(rig.append_until_full(b"data", 256 << 10, DIRECT) > 100, "what was deleted came back");
        assert!(again.lost().is_some());
        rig.goes_on(&[b"data".to_vec()]);
    }
}

/// What a follower keeps is for whoever finds no other space.
#[test]
fn new_data_takes_what_a_follower_keeps() {
    let mut rig = Rig::new(16384);
    rig.create(b"small");
    rig.put(b"small", 0, &bytes(1, 3 * MIB), DIRECT).unwrap();
    rig.create(b"data");
    rig.append_until_full(b"data", 16 << 10, DIRECT);
    rig.v.sync_all().unwrap();
    rig.v.publish_durable().unwrap();
    let claim = rig.v.claim_for_follower("slow").unwrap();
    rig.unlink(b"small");
    rig.v.sync_all().unwrap();
    rig.v.publish_durable().unwrap();
    assert_eq!(claim.lost(), None, "nobody needs the blocks yet");
    rig.create(b"small");
    rig.put(b"small", 0, &bytes(2, 2 * MIB), DIRECT).unwrap();
    assert_eq!(claim.lost(), Some(ClaimLost::Space));
    rig.goes_on(&[b"data".to_vec()]);
}

/// Without pressure a claim is honoured until too much waits for it.
#[test]
fn a_claim_holds_as_long_as_there_is_space() {
    let mut rig = Rig::new(16384);
    let (slow, quick) =
        (rig.v.claim_for_follower("slow").unwrap(), rig.v.claim_for_follower("quick").unwrap());
    let reused = rig.v.counters().blocks_reused;
    for round in 0..3 {
        churn(&mut rig, 1, round);
        rig.v.checkpoint().unwrap();
        let end = FollowerPosition { applied: quick.start().applied, root: Lsn(0) };
        quick.advance(end).unwrap();
        assert_eq!((slow.lost(), quick.lost()), (None, None));
    }
    assert_eq!(rig.v.counters().blocks_reused, reused, "followers may read all of it");
    // One of them keeps up.
    for round in 0..40 {
        let now = rig.v.claim_for_follower("a look at where the volume is").unwrap().start();
        quick.advance(now).unwrap();
        churn(&mut rig, 1, round);
        rig.v.checkpoint().unwrap();
    }
    assert_eq!((slow.lost(), quick.lost()), (Some(ClaimLost::Behind), None));
    assert!(rig.v.counters().blocks_reused > reused + 1000);
    assert_eq!(rig.v.counters().claims_revoked, 1);
    drop(quick);
    rig.goes_on(&[]);
}

/// A claim that is given up keeps nothing.
#[test]
fn a_follower_that_leaves_takes_its_claim_along() {
    let mut rig = Rig::new(16384);
    let claim = rig.v.claim_for_follower("leaves").unwrap();
    churn(&mut rig, 2, 1);
    let reused = rig.v.counters().blocks_reused;
    drop(claim);
    churn(&mut rig, 2, 2);
    assert!(rig.v.counters().blocks_reused > reused);
    assert_eq!(rig.v.counters().claims_revoked, 0);
    rig.goes_on(&[]);
}
