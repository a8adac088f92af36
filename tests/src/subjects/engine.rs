//! The engine on the simulator.

use std::ops::Range;
use std::sync::Arc;

use blockdev::BlockDevice;
use blockdev::sim::{CutOptions, Discarded, EventKind, Image, SimDevice, SimOptions};
use fs_core::api::FsOps;
use fs_core::cache::policy::{PolicyKind, S3FifoOptions, TouchOptions};
use fs_core::fsck::{CheckOptions, Report, check};
use fs_core::{FormatOptions, GrowTo, MountOptions, PageSize, Volume};

use crate::clock::Clock;
use crate::crash::Coverage;
use crate::ops::{Maintenance, Profile};
use crate::rng::Rng;
use crate::run::{Config, Subject};

/// Smallest volume there is: space and journal come round soon.
const VOLUME_BYTES: u64 = 64 << 20;
/// Smallest journal there is.
const JOURNAL_BYTES: u64 = 2 << 20;

/// A mounted volume and its device.
pub struct Engine {
    device: SimDevice,
    volume: Arc<Volume>,
    options: MountOptions,
    clock: Arc<Clock>,
    /// Coverage of the mounts before this one.
    earlier: Coverage,
    /// Handle of a killed process.
    killed: Option<SimDevice>,
}

/// A simulated device such as `config` asks for.
pub fn device(config: &Config) -> SimDevice {
    let mut rng = Rng::new(config.seed ^ 0x64_6576);
    let mut options = SimOptions::new(VOLUME_BYTES, config.seed);
    options.logical_sector = *rng.pick(&[512, 512, 4096]);
    options.atomic_write_unit = options.logical_sector.max(*rng.pick(&[512, 4096]));
    options.discarded = *rng.pick(&[Discarded::Mixed, Discarded::Poison, Discarded::Zero]);
    options.native_fua = *rng.pick(&[false, true]);
    SimDevice::with_options(options)
}

/// Small caches and limits, so that little data reaches all of them.
pub fn mount_options(config: &Config) -> MountOptions {
    let mut rng = Rng::new(config.seed ^ 0x6D_6E74);
    MountOptions {
        cache_bytes: *rng.pick(&[2 << 20, 8 << 20, 64 << 20]),
        node_cache_bytes: *rng.pick(&[256 << 10, 4 << 20]),
        dirty_bytes: *rng.pick(&[512 << 10, 4 << 20, 32 << 20]),
        inline_max: match config.profile {
            Profile::Log => 64 << 10,
            _ => *rng.pick(&[4 << 10, 16 << 10, 64 << 10]),
        },
        delta_bytes: *rng.pick(&[64 << 10, 1 << 20, 64 << 20]),
        cache_policy: *rng.pick(&[
            PolicyKind::Touch(TouchOptions::default()),
            PolicyKind::S3Fifo(S3FifoOptions::default()),
        ]),
        cache_shards: *rng.pick(&[1, 16]),
        ..MountOptions::default()
    }
}

/// What fsck says of `medium`, data included.
fn full_check(medium: &Image) -> Result<Report, String> {
    let device: Arc<dyn BlockDevice> = Arc::new(medium.clone().into_ram());
    check(&device, &CheckOptions { data: true, progress: None }).map_err(|e| e.to_string())
}

impl Engine {
    /// Mounts the volume on `device`.
    pub fn mount_device(
        device: SimDevice,
        options: MountOptions,
        clock: &Arc<Clock>,
    ) -> Result<Self, String> {
        let volume = Volume::mount(Arc::new(device.clone()), options.clone(), clock.clone())
            .map_err(|e| e.to_string())?;
        Ok(Self { device, volume, options, clock: clock.clone(), earlier: Coverage::default(), killed: None })
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The device.
    pub fn device(&self) -> &SimDevice {
        &self.device
    }

    /// Mounts the same device through another handle.
    fn successor(self, exclusive: bool) -> Result<Self, String> {
        let mut earlier = self.earlier.clone();
        self.cover_volume(&mut earlier);
        let Self { device, volume, options, clock, .. } = self;
        drop(volume);
        let next = Self::mount_device(device.handle(exclusive), options, &clock)?;
        Ok(Self { earlier, ..next })
    }

    fn cover_volume(&self, coverage: &mut Coverage) {
        self.volume.counters().list().into_iter().for_each(|(name, n)| coverage.add(name, n));
    }
}

impl Subject for Engine {
    type Medium = Image;

    fn format(config: &Config, clock: &Arc<Clock>) -> Result<Image, String> {
        let device = device(config);
        let page_size = PageSize::new(config.page as u32).ok_or("no such page size")?;
        let options =
            FormatOptions { page_size, journal_bytes: Some(JOURNAL_BYTES), ..FormatOptions::default() };
        Volume::format(&device, &options, clock.as_ref()).map_err(|e| e.to_string())?;
        Ok(device.current())
    }

    fn mount(medium: Image, config: &Config, clock: &Arc<Clock>, salt: u64) -> Result<Self, String> {
        Self::mount_device(medium.into_sim(config.seed ^ salt), mount_options(config), clock)
    }

    fn fs(&self) -> &dyn FsOps {
        self.volume.as_ref()
    }

    fn seq(&self) -> u64 {
        self.device.seq()
    }

    fn maintain(&self, work: Maintenance) -> fs_core::Result<()> {
        match work {
            Maintenance::Checkpoint => self.volume.checkpoint(),
            Maintenance::WritebackAll => self.volume.writeback_all(),
            Maintenance::WritebackSome(pages) => self.volume.writeback_some(pages).map(|_| ()),
            Maintenance::Publish => self.volume.publish_durable(),
            Maintenance::Commit => self.volume.commit(),
            Maintenance::Grow(_) if !self.device.capabilities().exclusive => Ok(()),
            Maintenance::Grow(blocks) => {
                let more = u64::from(blocks) * fs_core::BLOCK_SIZE as u64;
                self.volume.grow(GrowTo::By(more)).map(drop)
            }
        }
    }

    fn remount(self) -> Result<Self, String> {
        self.volume.shutdown().map_err(|e| format!("shutdown: {e}"))?;
        self.successor(true)
    }

    fn stall_after(&self, n: u64) {
        self.device.hold_writes_after(n);
    }

    fn is_stalled(&self) -> bool {
        self.device.held() > 0
    }

    fn take_over(self, exclusive: bool) -> Result<Self, String> {
        let killed = self.device.clone();
        Ok(Self { killed: Some(killed), ..self.successor(exclusive)? })
    }

    fn land_late(&self, n: usize) -> usize {
        self.killed.as_ref().map_or(0, |device| device.release_late(n))
    }

    fn shutdown(&self) -> Result<(), String> {
        self.volume.shutdown().map_err(|e| e.to_string())
    }

    fn power_cut(&self, cut: u64, seed: u64) -> Image {
        self.device.image_at(cut, &CutOptions::seeded(seed))
    }

    fn current(&self) -> Image {
        self.device.current()
    }

    fn interesting_cuts(&self) -> Vec<u64> {
        let events = self.device.events();
        let ends = events.iter().filter(|e| match &e.kind {
            EventKind::Flush { .. } => true,
            EventKind::Write { fua, .. } => *fua,
            _ => false,
        });
        ends.map(|e| e.seq.saturating_sub(2)).collect()
    }

    fn checkpoints(&self) -> Vec<Range<u64>> {
        let mut all = Vec::new();
        let mut begin = None;
        for event in self.device.events() {
            match &event.kind {
                EventKind::Name(name) if &**name == "checkpoint begin" => begin = Some(event.seq + 1),
                EventKind::Name(name) if &**name == "checkpoint end" => {
                    all.extend(begin.take().map(|begin| begin..event.seq));
                }
                _ => {}
            }
        }
        all.retain(|range| !range.is_empty());
        all
    }

    fn fsck(medium: &Image) -> Result<Vec<String>, String> {
        Ok(full_check(medium)?.problems.iter().map(|p| format!("{:?}: {p}", p.kind)).collect())
    }

    fn cover(&self, coverage: &mut Coverage) {
        coverage.merge(&self.earlier);
        self.cover_volume(coverage);
    }
}
