//! What every block device has to do, run against each implementation.

mod suite;

use dbfs_blockdev::sim::{Discarded, SimDevice, SimOptions};
use dbfs_blockdev::{
    BlockDevice, Capabilities, DeviceError, Direct, Engine, FileDevice, OpenOptions, Pending, RamDevice,
    Recorder, Request,
};
use std::sync::Arc;
use tempfile::TempDir;

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

fn file(engine: Engine, direct: Direct) -> Made<TempDir> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("image");
    std::fs::File::create(&path).and_then(|f| f.set_len(SIZE)).expect("image");
    let options = OpenOptions { engine, direct, ..OpenOptions::default() };
    let device = FileDevice::open(&path, &options).expect("open");
    assert!(engine == Engine::Auto || device.engine() == engine);
    (Arc::new(device), dir)
}

/// Takes every request through `submit`, even where the device has a shorter way for a single one.
#[derive(Debug)]
struct Submitted(Arc<dyn BlockDevice>);

impl BlockDevice for Submitted {
    fn name(&self) -> Arc<str> {
        self.0.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        self.0.submit(requests)
    }
    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        self.0.refresh_size()
    }
}

fn submitted<K>((device, keep): Made<K>) -> Made<K> {
    (Arc::new(Submitted(device)), keep)
}

fn recorded<K>((device, keep): Made<K>) -> Made<(K, TempDir)> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let recorder = Recorder::open(device, dir.path().join("log")).expect("log");
    (Arc::new(recorder), (keep, dir))
}

conformance!(recorded_ram, || recorded(ram(512)));
conformance!(recorded_sim, || submitted(recorded(sim(Discarded::Mixed))));
conformance!(recorded_file, || recorded(file(Engine::Auto, Direct::Auto)));
conformance!(file_auto, || file(Engine::Auto, Direct::Auto));
conformance!(file_auto_buffered, || file(Engine::Auto, Direct::Off));
conformance!(file_uring, || submitted(file(Engine::Uring, Direct::Auto)));
conformance!(file_uring_buffered, || submitted(file(Engine::Uring, Direct::Off)));
conformance!(file_threads, || submitted(file(Engine::Pread, Direct::Auto)));
conformance!(ram_512, || ram(512));
conformance!(ram_4096, || ram(4096));
conformance!(sim_mixed, || sim(Discarded::Mixed));
conformance!(sim_poison, || sim(Discarded::Poison));
