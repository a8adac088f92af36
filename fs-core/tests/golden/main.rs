//! Golden images: volumes made by each released version of the format, kept for ever, opened by
//! every version of the code.

mod attributes;
mod image;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;

use blockdev::{BlockDevice, RamDevice};
use dbfs_fs_core::fsck::{CheckOptions, Report, check};
use dbfs_fs_core::{MountOptions, Volume};
use workload::FixedEnv;

/// An image, and how it was made.
#[derive(Clone, Copy)]
struct Golden {
    name: &'static str,
    page_size: u32,
    make: fn(u64, u32) -> RamDevice,
    verify: fn(&Volume, u32),
}

const IMAGES: [Golden; 3] = [
    Golden { name: "v1-16k", page_size: 16384, make: workload::make, verify: workload::verify },
    Golden { name: "v1-4k", page_size: 4096, make: workload::make, verify: workload::verify },
    Golden { name: "v1-8k-attributes", page_size: 8192, make: attributes::make, verify: attributes::verify },
];

const SIZE: u64 = 64 << 20;

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("{name}.img")].iter().collect()
}

fn mount(device: &Arc<dyn BlockDevice>) -> Arc<Volume> {
    Volume::mount(device.clone(), MountOptions::default(), Arc::new(FixedEnv::default())).unwrap()
}

fn clean(device: &Arc<dyn BlockDevice>) -> Report {
    let report = check(device, &CheckOptions { data: true, progress: None }).unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    report
}

#[test]
fn images_of_all_versions_are_read() {
    for Golden { name, page_size, verify, .. } in IMAGES {
        let ram = RamDevice::new(SIZE, 512);
        image::unpack(&std::fs::read(path(name)).unwrap(), &ram);
        let device: Arc<dyn BlockDevice> = Arc::new(ram);
        let report = clean(&device);
        let summary = report.volume.unwrap();
        assert_eq!((summary.label.as_str(), summary.page_size), ("golden", page_size), "{name}");
        assert_eq!((report.stats.orphans, report.stats.inline_pages), (1, 1), "{name}");
        assert!(report.stats.records > 1 && report.stats.height > 0, "{name}");
        let v = mount(&device);
        verify(&v, page_size);
        v.shutdown().unwrap();
        assert_eq!(clean(&device).stats.orphans, 0, "{name}");
        verify(&mount(&device), page_size);
    }
}

/// Today's code makes a volume with the same content; the bytes may differ.
#[test]
fn the_recipe_still_works() {
    for Golden { page_size, make, verify, .. } in IMAGES {
        let ram = make(SIZE, page_size);
        let copy = RamDevice::new(SIZE, 512);
        let packed = image::pack(&ram, SIZE);
        image::unpack(&packed, &copy);
        assert_eq!(image::pack(&copy, SIZE), packed, "packing loses nothing");
        let device: Arc<dyn BlockDevice> = Arc::new(copy);
        clean(&device);
        verify(&mount(&device), page_size);
    }
}

/// Makes the images that do not exist yet. Those that do are never made again: that a later version
/// still reads them is what they are for.
#[test]
#[ignore = "writes into the source tree; run once for each new version of the format"]
fn make_missing_images() {
    for Golden { name, page_size, make, .. } in IMAGES {
        if !path(name).exists() {
            std::fs::write(path(name), image::pack(&make(SIZE, page_size), SIZE)).unwrap();
        }
    }
}
