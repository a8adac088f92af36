//! A few threads that run requests with plain system calls: the engine for hosts where io_uring is
//! refused, and the place for operations that io_uring does not have.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use crate::device::Slot;
use crate::{Completion, Pending};

type Job = Box<dyn FnOnce() -> Completion + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Job, Arc<Slot>)>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

/// Threads are started as they are needed, up to a limit, and stay.
pub(super) struct Pool {
    shared: Arc<Shared>,
    limit: usize,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self { shared: Arc::default(), limit }
    }

    /// Queues `job`. Never blocks on I/O. If no thread can be started at all, the caller's thread
    /// runs the job: slow, but nothing hangs.
    pub(super) fn submit(&self, job: impl FnOnce() -> Completion + Send + 'static) -> Pending {
        let slot = Arc::new(Slot::default());
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back((Box::new(job), slot.clone()));
        if queue.idle < queue.jobs.len() && queue.threads.len() < self.limit {
            self.start_thread(&mut queue);
        }
        if queue.threads.is_empty() {
            let job = queue.jobs.pop_back();
            drop(queue);
            if let Some((job, slot)) = job {
                slot.complete(job());
            }
        } else {
            drop(queue);
            self.shared.work.notify_one();
        }
        Pending::shared(slot)
    }

    fn start_thread(&self, queue: &mut Queue) {
        let shared = self.shared.clone();
        match thread::Builder::new().name("blockdev-io".into()).spawn(move || work(&shared)) {
            Ok(thread) => queue.threads.push(thread),
            Err(error) => tracing::warn!(%error, "cannot start an I/O thread"),
        }
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.queue.lock();
    loop {
        if let Some((job, slot)) = queue.jobs.pop_front() {
            drop(queue);
            slot.complete(job());
            queue = shared.queue.lock();
        } else if queue.closed {
            return;
        } else {
            queue.idle += 1;
            shared.work.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

impl Drop for Pool {
    /// Waits until everything queued is done, so that nothing is in flight afterwards.
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        let threads = std::mem::take(&mut queue.threads);
        drop(queue);
        self.shared.work.notify_all();
        for thread in threads {
            // A job never panics; if one did, its waiter is lost, the others are not.
            let _ = thread.join();
        }
    }
}
