//! `dbfs tune` and the options of the page cache. Needs root and /dev/fuse.

use std::fs;

mod common;

use common::Volume;

/// The numbers that `dbfs tune --json` gives: capacity, pages in it.
fn cache(v: &Volume, args: &[&str]) -> (u64, u64) {
    let text = v.ok(&[&["tune", "--json"], args, &["MNT"]].concat());
    let number = |name: &str| {
        let rest = text.split(name).nth(1).unwrap_or_else(|| panic!("{name} is missing in {text}"));
        let digits: String =
            rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    (number("cache_bytes"), number("cached_bytes"))
}

#[test]
fn the_cache_is_resized_while_mounted() {
    for policy in ["LOG", "cache-policy=touch,cache-hot=30,cache-shards=4", "cache-policy=s3fifo"] {
        let v = Volume::made();
        v.ok(&["mount", "-o", "LOG", "-o", policy, "-o", "cache-size=32M", "IMAGE", "MNT"]);
        let bytes: Vec<u8> = (0..12u32 << 20).map(|i| (i / 999) as u8).collect();
        fs::write(v.mnt().join("f"), &bytes).unwrap();
        fs::File::open(v.mnt().join("f")).unwrap().sync_all().unwrap();
        let (capacity, cached) = cache(&v, &[]);
        assert_eq!(capacity, 32 << 20);
        assert!(cached >= 12 << 20, "{cached}");
        let (capacity, cached) = cache(&v, &["--cache-size", "4M"]);
        assert_eq!(capacity, 4 << 20);
        assert!(cached <= 4 << 20, "{cached}");
        assert_eq!(fs::read(v.mnt().join("f")).unwrap(), bytes);
        assert_eq!(cache(&v, &["--cache-size", "64M"]).0, 64 << 20);
        assert!(v.ok(&["tune", "MNT"]).contains("may take 64"));
        v.ok(&["umount", "MNT"]);
    }
}

#[test]
fn nonsense_is_refused() {
    let v = Volume::made();
    v.fails(&["tune", "MNT"], 1, &["no dbfs volume is mounted"]);
    v.fails(&["tune", "--cache-size", "1M", "MNT"], 2, &["at least 4"]);
    v.fails(&["tune", "--cache-size", "1E", "MNT"], 2, &["memory"]);
    v.fails(&["mount", "-o", "cache-policy=lru", "IMAGE", "MNT"], 1, &["touch or s3fifo"]);
    v.fails(&["mount", "-o", "cache-hot=20", "IMAGE", "MNT"], 1, &["cache-policy=touch"]);
}
