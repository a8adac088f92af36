//! What every implementation does with a request before it touches anything.

use std::sync::Arc;

use crate::{AlignedBuf, Capabilities, Completion, DeviceError, ErrorKind, Op};

/// What a request is about, without its buffers; enough to report an error after they are gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) op: &'static str,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

fn total(bufs: &[AlignedBuf]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

impl Shape {
    pub(crate) fn of(op: &Op) -> Self {
        match op {
            Op::Read { offset, bufs } => Self { op: "read", offset: *offset, len: total(bufs) },
            Op::Write { offset, bufs, .. } => Self { op: "write", offset: *offset, len: total(bufs) },
            Op::Flush => Self { op: "flush", offset: 0, len: 0 },
            Op::Discard { offset, len } => Self { op: "discard", offset: *offset, len: *len },
        }
    }

    /// Asking for the size, or changing it to `size_bytes`.
    pub(crate) fn of_size(size_bytes: u64) -> Self {
        Self { op: "size", offset: 0, len: size_bytes }
    }

    pub(crate) fn error(self, device: &Arc<str>, kind: ErrorKind, errno: i32) -> DeviceError {
        DeviceError { device: device.clone(), op: self.op, offset: self.offset, len: self.len, kind, errno }
    }

    /// Aligned to the logical sector and within the device.
    fn fits(self, caps: &Capabilities) -> bool {
        let sector = u64::from(caps.logical_sector);
        let end = self.offset.checked_add(self.len);
        self.offset.is_multiple_of(sector)
            && self.len.is_multiple_of(sector)
            && end.is_some_and(|end| end <= caps.size_bytes)
    }
}

/// Whether a device with `caps` accepts the request at all.
pub(crate) fn admit(op: &Op, caps: &Capabilities) -> Result<Shape, (Shape, ErrorKind)> {
    let shape = Shape::of(op);
    if matches!(op, Op::Discard { .. }) && !caps.discard {
        return Err((shape, ErrorKind::Refused));
    }
    if shape.fits(caps) { Ok(shape) } else { Err((shape, ErrorKind::Misaligned)) }
}

/// One shared copy of a write's bytes.
pub(crate) fn concat(bufs: &[AlignedBuf]) -> Arc<[u8]> {
    match bufs {
        [one] => Arc::from(&one[..]),
        many => {
            let mut data = Vec::with_capacity(total(many) as usize);
            many.iter().for_each(|b| data.extend_from_slice(b));
            Arc::from(data)
        }
    }
}

/// Takes the buffers out of a request.
pub(crate) fn into_bufs(op: Op) -> Vec<AlignedBuf> {
    match op {
        Op::Read { bufs, .. } | Op::Write { bufs, .. } => bufs,
        Op::Flush | Op::Discard { .. } => Vec::new(),
    }
}

/// The completion of a request that was not done.
pub(crate) fn failed(op: Op, error: DeviceError) -> Completion {
    Completion { bufs: into_bufs(op), result: Err(error) }
}
