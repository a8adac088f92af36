//! What every block device has to do, run against each implementation.

mod suite;

use dbfs_blockdev::sim::{Discarded, SimDevice, SimOptions};
use dbfs_blockdev::{BlockDevice, RamDevice};
use std::sync::Arc;

const SIZE: u64 = 64 << 20;

/// One test per item of the suite for a way to make a fresh, zeroed device of `SIZE` bytes.
macro_rules! conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            conformance!(@tests $make;
                reads_what_it_wrote vectored_in_order misaligned_is_rejected beyond_the_end_is_rejected
                batches_complete_in_request_order threads_with_disjoint_ranges dropped_requests_still_run
                flush_and_fua_succeed discard_then_write empty_requests random_operations_match_a_model
                large_transfers dropped_device_with_requests_in_flight);
        }
    };
    (@tests $make:expr; $($test:ident)*) => {
        $(#[test] fn $test() {
            let make = $make;
            let (device, _keep) = make();
            suite::$test(device);
        })*
    };
}

type Made<K> = (Arc<dyn BlockDevice>, K);

fn ram(sector: u32) -> Made<()> {
    (Arc::new(RamDevice::new(SIZE, sector)), ())
}

fn sim(discarded: Discarded) -> Made<()> {
    (Arc::new(SimDevice::with_options(SimOptions { discarded, ..SimOptions::new(SIZE, 1) })), ())
}

conformance!(ram_512, || ram(512));
conformance!(ram_4096, || ram(4096));
conformance!(sim_mixed, || sim(Discarded::Mixed));
conformance!(sim_poison, || sim(Discarded::Poison));
