#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dbfs_tests::hostile::targets::run("image", data));
