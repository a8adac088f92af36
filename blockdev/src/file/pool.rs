//! A few threads that run requests with plain system calls: the engine for hosts where io_uring is
//! refused, and the place for operations that io_uring does not have.
//!
//! Requests wait by class for a thread ([`super::classes`]): each class has threads of its own to wait for.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::device::Slot;
use crate::{Completion, IoClass, Pending};

use super::classes::{Classes, Limit, depth};

type Job = Box<dyn FnOnce() -> Completion + Send>;

/// Threads for each class, the most urgent one first; more of them only queue up in the kernel.
pub(super) const THREADS: [Limit; 4] = [threads(4), threads(8), threads(2), threads(2)];

/// One thread does everything, in the order of its urgency.
pub(super) const ONE_THREAD: [Limit; 4] = [threads(0), threads(0), threads(0), threads(1)];

const fn threads(requests: usize) -> Limit {
    Limit { requests, bytes: u64::MAX }
}

struct Queue {
    jobs: Classes<(Job, Arc<Slot>)>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

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
    /// A pool with a thread for each request that `limits` allow.
    pub(super) fn new(limits: [Limit; 4]) -> Self {
        let queue = Queue { jobs: Classes::new(limits), idle: 0, threads: Vec::new(), closed: false };
        let shared = Shared { queue: Mutex::new(queue), work: Condvar::new() };
        Self { shared: Arc::new(shared), limit: depth(&limits) }
    }

    /// Queues `job`, of a class that has threads. Never blocks on I/O. If no thread can be started at all, the
    /// caller's thread runs what waits: slow, but nothing hangs.
    pub(super) fn submit(
        &self,
        class: IoClass,
        bytes: u64,
        job: impl FnOnce() -> Completion + Send + 'static,
    ) -> Pending {
        let slot = Arc::new(Slot::default());
        let mut queue = self.shared.queue.lock();
        queue.jobs.push(class, bytes, (Box::new(job), slot.clone()));
        if queue.idle < queue.jobs.waiting() && queue.threads.len() < self.limit {
            self.start_thread(&mut queue);
        }
        if queue.threads.is_empty() {
            drop(run_all(&self.shared, queue));
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
        queue = run_all(shared, queue);
        if queue.closed {
            // What still waits does so for a request of its class, whose thread will come by here.
            return;
        }
        queue.idle += 1;
        shared.work.wait(&mut queue);
        queue.idle -= 1;
    }
}

/// Runs requests as long as there are any whose class has room.
fn run_all<'a>(shared: &'a Shared, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
    while let Some((class, bytes, (job, slot))) = queue.jobs.next() {
        drop(queue);
        slot.complete(job());
        queue = shared.queue.lock();
        queue.jobs.over(class, bytes);
    }
    queue
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
