//! Keeps most serving threads off the kernel's queue as long as few are needed.
//!
//! All threads wait in the kernel for requests, and it wakes them in turn: with many threads, each
//! request meets one whose memory has gone cold in the CPU's caches (unlinking a file took 32 us
//! with 16 threads, 25 us with 2). So a thread that has done its work and finds enough others
//! waiting does not go back to the queue but parks here, and the last one that leaves the queue
//! calls one of those that park.
//!
//! A parked thread does not see that the connection has ended. Only threads that have been here
//! count as waiting, so that whenever one is parked, some thread that knows the gate is left to see
//! the end; when it exits, it opens the gate for all.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;

use parking_lot::Mutex;

/// Threads that wait for requests when there are none. With one, two requests at once would always
/// have to call another thread.
const WAITING: usize = 2;

/// See the module's description.
#[derive(Default)]
pub(crate) struct Gate {
    /// Threads that have been here and wait for a request now.
    waiting: AtomicUsize,
    /// Threads that are parked, or about to be.
    parked: AtomicUsize,
    /// The parked threads; the one that parked last is the warmest.
    stack: Mutex<Stack>,
}

#[derive(Default)]
struct Stack {
    sleepers: Vec<Arc<Sleeper>>,
    open: bool,
}

struct Sleeper {
    thread: Thread,
    called: AtomicBool,
}

/// A thread that is working on a request. When it is dropped, the thread may park.
pub(crate) struct Busy<'a>(&'a Gate);

/// Opens the gate when its thread ends.
struct Leaver(Arc<Gate>);

impl Drop for Leaver {
    fn drop(&mut self) {
        self.0.open();
    }
}

thread_local! {
    static KNOWN: RefCell<Option<Leaver>> = const { RefCell::new(None) };
}

impl Gate {
    /// Called when a thread has got a request.
    pub(crate) fn enter(self: &Arc<Self>) -> Busy<'_> {
        let was_waiting = KNOWN.with_borrow_mut(|known| {
            let was = known.as_ref().is_some_and(|l| Arc::ptr_eq(&l.0, self));
            if !was {
                *known = Some(Leaver(self.clone()));
            }
            was
        });
        if was_waiting {
            let left = self.waiting.fetch_sub(1, Ordering::SeqCst) - 1;
            if left == 0 && self.parked.load(Ordering::SeqCst) > 0 {
                self.call_one();
            }
        }
        Busy(self)
    }

    /// Sends the thread that parked last back to the queue.
    fn call_one(&self) {
        let Some(sleeper) = self.stack.lock().sleepers.pop() else { return };
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.parked.fetch_sub(1, Ordering::SeqCst);
        sleeper.wake();
    }

    /// Lets everybody go, now and later.
    fn open(&self) {
        let sleepers = {
            let mut stack = self.stack.lock();
            stack.open = true;
            std::mem::take(&mut stack.sleepers)
        };
        for sleeper in sleepers {
            self.parked.fetch_sub(1, Ordering::SeqCst);
            self.waiting.fetch_add(1, Ordering::SeqCst);
            sleeper.wake();
        }
    }

    /// Called when a thread has answered its request.
    fn leave(&self) {
        if self.waiting.fetch_add(1, Ordering::SeqCst) < WAITING || std::thread::panicking() {
            return;
        }
        // In this order: who takes the last place in the queue then sees that there is somebody to
        // call.
        self.parked.fetch_add(1, Ordering::SeqCst);
        let enough = |n: usize| (n > WAITING).then(|| n - 1);
        if self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_err() {
            self.parked.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        self.park();
    }

    fn park(&self) {
        let sleeper = Arc::new(Sleeper { thread: std::thread::current(), called: AtomicBool::new(false) });
        {
            let mut stack = self.stack.lock();
            // The second: who wanted to call somebody did not find this thread yet.
            if stack.open || self.waiting.load(Ordering::SeqCst) == 0 {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.parked.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            stack.sleepers.push(sleeper.clone());
        }
        while !sleeper.called.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

impl Sleeper {
    fn wake(&self) {
        self.called.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::JoinHandle;

    use super::*;

    type Job = Box<dyn FnOnce() + Send>;

    /// Threads that take jobs from a queue as the real ones take requests from the kernel.
    struct Server {
        gate: Arc<Gate>,
        jobs: mpsc::Sender<Job>,
        threads: Vec<JoinHandle<usize>>,
    }

    impl Server {
        fn start(threads: usize) -> Self {
            let gate = Arc::new(Gate::default());
            let (jobs, queue) = mpsc::channel::<Job>();
            let queue = Arc::new(Mutex::new(queue));
            let serve = |_| {
                let (gate, queue) = (gate.clone(), queue.clone());
                std::thread::spawn(move || {
                    let mut done = 0;
                    loop {
                        let Ok(job) = queue.lock().recv() else { return done };
                        let _busy = gate.enter();
                        job();
                        done += 1;
                    }
                })
            };
            Self { threads: (0..threads).map(serve).collect(), gate, jobs }
        }

        /// Runs a job and waits for its end.
        fn run(&self) {
            let (done, end) = mpsc::channel();
            self.jobs.send(Box::new(move || done.send(()).unwrap())).unwrap();
            end.recv().unwrap();
        }

        /// Ends the queue; the number of jobs done.
        fn end(self) -> usize {
            drop(self.jobs);
            self.threads.into_iter().map(|t| t.join().unwrap()).sum()
        }
    }

    #[test]
    fn most_threads_park_and_all_end() {
        for jobs in 0..40 {
            let server = Server::start(8);
            (0..jobs).for_each(|_| server.run());
            assert!(server.gate.parked.load(Ordering::SeqCst) <= 8 - WAITING);
            assert_eq!(server.end(), jobs);
        }
    }

    #[test]
    fn parked_threads_come_when_the_others_are_blocked() {
        const THREADS: usize = 6;
        let server = Server::start(THREADS);
        (0..50).for_each(|_| server.run());
        for _ in 0..20 {
            let latches: Vec<_> = (1..THREADS)
                .map(|_| {
                    let (begun, began) = mpsc::channel();
                    let (open, latch) = mpsc::channel::<()>();
                    let job = move || {
                        begun.send(()).unwrap();
                        latch.recv().unwrap();
                    };
                    server.jobs.send(Box::new(job)).unwrap();
                    began.recv().unwrap();
                    open
                })
                .collect();
            // One thread is left, and it works.
            (0..10).for_each(|_| server.run());
            latches.iter().for_each(|open| open.send(()).unwrap());
        }
        assert_eq!(server.end(), 50 + 20 * (THREADS - 1 + 10));
    }

    #[test]
    fn many_at_once() {
        let server = Server::start(8);
        let (done, end) = mpsc::channel();
        for n in 0..20_000u32 {
            let done = done.clone();
            let job = move || {
                if n % 7 == 0 {
                    std::thread::yield_now();
                }
                done.send(()).unwrap();
            };
            server.jobs.send(Box::new(job)).unwrap();
        }
        assert_eq!(end.iter().take(20_000).count(), 20_000);
        assert_eq!(server.end(), 20_000);
    }
}
