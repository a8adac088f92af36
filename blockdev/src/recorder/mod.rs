//! A decorator that records what a device is told to do, to rebuild the images of power cuts.
//!
//! [`Recorder`] appends each write (with its data), flush and discard to a log file when it is
//! submitted, and a second record when its submitter has learned that it is done. From the log,
//! [`rebuild`] makes an image that a power cut at a given sequence number could have left, by the
//! same rules as the simulator: a flush covers the writes whose completion had been waited for
//! when it was submitted, and everything not covered survives or not, by seed.
//!
//! A change is in the log file before the device sees it, and a promise (a completed flush or FUA
//! write) before the submitter does; both survive a kill of the recording process. A recorder
//! that is opened on an existing log goes on with it: it cuts off an incomplete last record, and
//! settles the writes whose fate the log does not tell by reading the device.

mod format;
mod log;
mod rebuild;
mod seqfile;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

pub use format::{DoneKind, Geometry, RecordKind};
pub use log::{Log, Record, Records};
pub use rebuild::{Base, Summary, rebuild};
pub use seqfile::SeqFile;

use crate::check::{Shape, admit, failed};
use crate::{
    AlignedBuf, BlockDevice, Capabilities, Completion, DeviceError, EngineCounts, ErrorKind, IoClass, Op,
    Pending, Registration, Request,
};
use writer::{Unsettled, Writer, kind_of, seq_path};

/// Records what goes through it to a log file. The device must not be written by anybody else.
pub struct Recorder<D> {
    device: D,
    log: Arc<SharedLog>,
    path: PathBuf,
}

struct SharedLog {
    writer: Mutex<Writer>,
    device: Arc<str>,
}

/// A recorded request in flight.
#[derive(Clone, Copy)]
struct Started {
    shape: Shape,
    seq: u64,
    /// Its success is a promise, and has to be in the file before anybody hears of it.
    promise: bool,
}

impl<D: BlockDevice> Recorder<D> {
    /// Records `device` to the file `log`, which is made or continued. Blocks for reading the
    /// headers of an existing log.
    pub fn open(device: D, log: impl AsRef<Path>) -> io::Result<Self> {
        let path = log.as_ref().to_owned();
        let (mut writer, unsettled) = Writer::open(&path)?;
        for write in unsettled {
            settle(&device, &mut writer, &write)?;
        }
        writer.opened(Geometry::of(&device.capabilities()))?;
        let log = SharedLog { writer: Mutex::new(writer), device: device.name() };
        Ok(Self { device, log: Arc::new(log), path })
    }

    /// The file that shows the sequence number to others; open it with [`SeqFile::open`].
    pub fn seq_file(&self) -> PathBuf {
        seq_path(&self.path)
    }

    /// The number of the next record.
    pub fn seq(&self) -> u64 {
        self.log.writer.lock().seq()
    }

    /// The recorded device. What is written to it directly is missing in the log.
    pub fn inner(&self) -> &D {
        &self.device
    }
}

/// Records what a write whose fate is unknown has left: it was in flight when the recording
/// process died, and has landed by now, or never will.
fn settle<D: BlockDevice>(device: &D, writer: &mut Writer, write: &Unsettled) -> io::Result<()> {
    let end = write.offset.checked_add(write.len);
    if end.is_none_or(|end| end > device.capabilities().size_bytes) {
        return Ok(());
    }
    let buf = AlignedBuf::zeroed(usize::try_from(write.len).map_err(|_| io::ErrorKind::FileTooLarge)?);
    match device.read_at(write.offset, buf, IoClass::Data) {
        Ok(buf) => {
            let kind = RecordKind::Write { offset: write.offset, len: write.len, fua: false };
            let seq = writer.append(kind, &[&buf])?;
            writer.done(seq, DoneKind::Ok)
        }
        // What cannot be read, nobody can rely on.
        Err(error) => {
            tracing::warn!(%error, "the fate of a recorded write stays unknown");
            Ok(())
        }
    }
}

impl<D: BlockDevice> Recorder<D> {
    /// Records the size if it has changed.
    fn follow_size(&self, caps: Capabilities) -> Result<Capabilities, DeviceError> {
        let recorded = self.log.writer.lock().follow_size(&caps);
        recorded.map_err(|error| self.log.error(Shape::of_size(caps.size_bytes), &error))?;
        Ok(caps)
    }
}

impl SharedLog {
    /// Records the submission of a batch; on an error none of it may be submitted.
    fn start(&self, requests: &[Request], caps: &Capabilities) -> io::Result<Vec<Option<Started>>> {
        let mut writer = self.writer.lock();
        writer.follow_size(caps)?;
        let started =
            requests.iter().map(|r| start_one(&mut writer, &r.op, caps)).collect::<Result<_, _>>()?;
        writer.sync()?;
        Ok(started)
    }

    /// Records how a request went. A success that cannot be recorded is none.
    fn finish(&self, started: Option<Started>, mut completion: Completion) -> Completion {
        let Some(Started { shape, seq, promise }) = started else { return completion };
        let outcome = match &completion.result {
            Ok(()) => DoneKind::Ok,
            Err(e) if matches!(e.kind, ErrorKind::Misaligned | ErrorKind::Refused) => DoneKind::Untouched,
            Err(_) => DoneKind::Failed,
        };
        let mut writer = self.writer.lock();
        let mut recorded = writer.done(seq, outcome);
        // That it did nothing must not be forgotten either: the log has it as submitted.
        if promise || outcome != DoneKind::Ok {
            recorded = recorded.and_then(|()| writer.sync());
        }
        if let Err(error) = recorded {
            completion.result = Err(self.error(shape, &error));
        }
        completion
    }

    fn error(&self, shape: Shape, error: &io::Error) -> DeviceError {
        tracing::error!(device = %self.device, %error, "cannot write the device's log");
        shape.error(&self.device, ErrorKind::Io, error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn refuse(&self, request: Request, error: &io::Error) -> Completion {
        let error = self.error(Shape::of(&request.op), error);
        failed(request.op, error)
    }
}

/// Requests that the device will refuse anyway must not show up in any image.
fn start_one(writer: &mut Writer, op: &Op, caps: &Capabilities) -> io::Result<Option<Started>> {
    let Ok(shape) = admit(op, caps) else { return Ok(None) };
    let fua = matches!(op, Op::Write { fua: true, .. });
    let Some(kind) = kind_of(shape, fua) else { return Ok(None) };
    let payload: Vec<&[u8]> = match op {
        Op::Write { bufs, .. } => bufs.iter().map(|b| &b[..]).collect(),
        _ => Vec::new(),
    };
    let seq = writer.append(kind, &payload)?;
    let promise = fua || matches!(op, Op::Flush) || !caps.volatile_write_cache;
    Ok(Some(Started { shape, seq, promise }))
}

impl<D: BlockDevice> BlockDevice for Recorder<D> {
    fn name(&self) -> Arc<str> {
        self.device.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn submit(&self, requests: Vec<Request>) -> Vec<Pending> {
        let started = match self.log.start(&requests, &self.device.capabilities()) {
            Ok(started) => started,
            Err(error) => {
                let refuse = |r| Pending::ready(self.log.refuse(r, &error));
                return requests.into_iter().map(refuse).collect();
            }
        };
        let finish = |(pending, started): (Pending, Option<Started>)| match started {
            None => pending,
            Some(_) => {
                let log = self.log.clone();
                Pending::driven(move || log.finish(started, pending.wait()))
            }
        };
        self.device.submit(requests).into_iter().zip(started).map(finish).collect()
    }

    fn execute(&self, request: Request) -> Completion {
        if matches!(request.op, Op::Read { .. }) {
            return self.device.execute(request);
        }
        let request = [request];
        let started = self.log.start(&request, &self.device.capabilities());
        let [request] = request;
        match started {
            Ok(mut started) => self.log.finish(started.pop().flatten(), self.device.execute(request)),
            Err(error) => self.log.refuse(request, &error),
        }
    }

    fn engine_counts(&self) -> EngineCounts {
        self.device.engine_counts()
    }

    unsafe fn register_memory(&self, start: NonNull<u8>, len: usize) -> Option<Registration> {
        // SAFETY: the caller answers for the memory.
        unsafe { self.device.register_memory(start, len) }
    }

    fn refresh_size(&self) -> Result<Capabilities, DeviceError> {
        self.follow_size(self.device.refresh_size()?)
    }

    fn extend(&self, size_bytes: u64) -> Result<Capabilities, DeviceError> {
        self.follow_size(self.device.extend(size_bytes)?)
    }

    fn mark(&self, name: &str) {
        let marked = self.log.writer.lock().append(RecordKind::Mark, &[name.as_bytes()]);
        if let Err(error) = marked {
            tracing::error!(%error, name, "cannot write a mark to the device's log");
        }
        self.device.mark(name);
    }
}

impl<D: BlockDevice> fmt::Debug for Recorder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder({:?} to {})", self.device, self.path.display())
    }
}
