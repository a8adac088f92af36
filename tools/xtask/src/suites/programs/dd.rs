//! dd in its ways of writing, and a file larger than the disk below it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::{Result, bail};

use super::{Bench, Plan, expect_same, shell, tree};
use crate::rng::Rng;
use crate::suites::{Tally, close};
use crate::target::Volume;
use crate::workdir::WorkDir;

/// Options of dd for writing, and those for reading it back.
const WAYS: [(&str, &str); 7] = [
    ("bs=1M oflag=direct", "bs=1M iflag=direct"),
    ("bs=16k oflag=direct,dsync", "bs=64k"),
    ("bs=1M conv=fsync", "bs=4k iflag=direct"),
    ("bs=64k conv=sparse,fdatasync", "bs=1M"),
    ("bs=7777 oflag=sync", "bs=3333"),
    ("bs=256k oflag=append conv=notrunc", "bs=128k"),
    ("bs=4k oflag=direct conv=sparse", "bs=1M iflag=fullblock,direct"),
];

/// Writes and reads back in each way.
pub fn run(bench: &mut Bench, tally: &mut Tally) -> Result<()> {
    let source = bench.work.join("dd.source");
    let mut bytes = tree::content(bench.amount(6, 64) << 20, &mut bench.rng);
    // Holes for `sparse` to find, aligned and not.
    bytes[1 << 20..2 << 20].fill(0);
    bytes[(3 << 20) + 777..(3 << 20) + 300_000].fill(0);
    std::fs::write(&source, &bytes)?;
    for (write, read) in WAYS {
        tally.step(&format!("dd {write}"), || {
            let line = format!(
                "rm -f dd && dd if=\"$1\" of=dd {write} status=none && dd if=dd {read} status=none | cmp - \"$1\""
            );
            shell(bench.dir(), &line, &[&source])
        })?;
    }
    tally.step("dd into the middle", || {
        let line = "dd if=\"$1\" of=dd bs=64k seek=3 skip=5 count=9 conv=notrunc oflag=direct status=none && \
                    cmp -n 589824 -i 196608:327680 dd \"$1\" && cmp -n 196608 dd \"$1\" && test $(stat -c %s dd) = $(stat -c %s \"$1\") && rm dd";
        shell(bench.dir(), line, &[&source])
    })?;
    Ok(())
}

/// 100 GiB in a file, of which little is written, on an image that is sparse as well.
pub fn large_sparse_file(plan: &Plan, work: &WorkDir, tally: &mut Tally) -> Result<()> {
    const SIZE: u64 = 100 << 30;
    let image = work.join("volume.img");
    std::fs::remove_file(&image)?;
    let mut target = plan.create(work, &Volume { size: 120 << 30, page_size: 16 << 10 })?;
    let path = target.dir().join("large");
    let spots = places(SIZE, if plan.full { 2_000 } else { 200 }, plan.seed);
    tally.step("100 GiB sparse: write", || {
        let file = File::create(&path)?;
        file.set_len(SIZE)?;
        for (i, at) in spots.iter().enumerate() {
            file.write_all_at(&tree::content(5_000, &mut Rng::new(i as u64)), *at)?;
        }
        Ok(file.sync_all()?)
    })?;
    target.unmount()?;
    target.mount()?;
    tally.step("100 GiB sparse: read back", || verify(&path, SIZE, &spots))?;
    tally.step("100 GiB sparse: little space is used", || {
        for (what, path) in [("file", &path), ("image", &image)] {
            let used = std::fs::metadata(path)?.blocks() * 512;
            if used > 1 << 30 {
                bail!("the {what} uses {used} bytes");
            }
        }
        Ok(())
    })?;
    tally.step("100 GiB sparse: truncate and delete", || {
        shell(
            target.dir(),
            "truncate -s 50G large && truncate -s 100G large && tail -c 1M large | tr -d '\\0' | wc -c",
            &[],
        )
        .and_then(|left| expect_same("bytes behind a truncation", "0\n", &left))?;
        Ok(std::fs::remove_file(&path)?)
    })?;
    close(target.as_mut(), tally)
}

/// Offsets from start to end, in steps that keep what is written apart.
fn places(size: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed);
    let step = (size - 8192) / (count - 1);
    (0..count).map(|i| (i * step + rng.range(0, 4096)).min(size - 5_000)).collect()
}

fn verify(path: &Path, size: u64, spots: &[u64]) -> Result<()> {
    let file = File::open(path)?;
    if file.metadata()?.len() != size {
        bail!("the file has another size");
    }
    for (i, at) in spots.iter().enumerate() {
        // Zeros before it, its bytes, zeros behind it.
        let start = at.saturating_sub(3_000);
        let lead = (at - start) as usize;
        let mut buf = vec![1; (lead + 8_000).min((size - start) as usize)];
        file.read_exact_at(&mut buf, start)?;
        let wanted = tree::content(5_000, &mut Rng::new(i as u64));
        let (before, rest) = buf.split_at(lead);
        let (found, behind) = rest.split_at(5_000);
        if found != wanted || before.iter().chain(behind).any(|&b| b != 0) {
            bail!("wrong bytes around offset {at}");
        }
    }
    Ok(())
}
