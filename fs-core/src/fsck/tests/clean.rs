//! Good volumes have no problems, whatever was done on them and whenever they were left.

use super::workload::Workload;
use super::{assert_clean, mount, new_volume};

#[test]
fn a_new_volume_is_clean() {
    for page_size in [4096, 8192, 16384, 32768, 65536] {
        let device = new_volume(64, page_size);
        let report = assert_clean(&device, "new");
        assert_eq!((report.stats.inodes, report.stats.directories), (1, 1));
        let volume = report.volume.unwrap();
        assert_eq!((volume.page_size, volume.epoch, volume.label.as_str()), (page_size, 1, "test"));
    }
}

#[test]
fn random_histories_are_clean_at_every_moment() {
    let mut orphans = 0;
    let mut data = 0;
    for (seed, page_size) in [(1, 4096), (2, 16384), (3, 8192), (4, 65536)] {
        let device = new_volume(64, page_size);
        let mut load = Workload::new(seed);
        for mount_no in 0..4 {
            let v = mount(&device);
            load.forget_opens();
            for step in 0..150 {
                load.step(&v);
                if step % 10 == 0 {
                    let report =
                        assert_clean(&device, &format!("seed {seed}, mount {mount_no}, step {step}"));
                    orphans += report.stats.orphans;
                    data += report.stats.verified_pages;
                }
            }
            if mount_no == 1 {
                v.shutdown().unwrap();
            }
        }
        assert_clean(&device, &format!("seed {seed}, at the end"));
    }
    assert!(orphans > 0 && data > 1000, "the histories are too tame: {orphans}, {data}");
}
