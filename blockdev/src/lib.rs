//! Block devices for dbfs.
//!
//! One trait, [`BlockDevice`], hides what the volume lives on. Requests own their buffers
//! ([`AlignedBuf`]), are submitted without waiting, and are completed through [`Pending::wait`].
//! Nothing in this crate knows about files or the on-disk format.

mod aligned;
mod check;
mod device;
mod file;
mod powercut;
mod ram;
pub mod recorder;
mod rng;
pub mod sim;
mod sparse;

pub use aligned::{AlignedBuf, BufOwner};
pub use device::{
    BlockDevice, Capabilities, Completion, DeviceError, EngineCounts, ErrorKind, IoClass, Op, Pending,
    Registration, Request,
};
pub use file::{Direct, Engine, FileDevice, OpenError, OpenOptions};
pub use ram::RamDevice;
pub use recorder::Recorder;
