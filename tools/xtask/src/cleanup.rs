//! What has to be undone when a command ends, however it ends.
//!
//! A [`Guard`] undoes one thing (kill a process, unmount, remove a directory) when it is dropped.
//! Ctrl-C and SIGTERM run all living guards, the youngest first, and end the process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Action = Box<dyn FnOnce() + Send>;

static ACTIONS: Mutex<Vec<(u64, Action)>> = Mutex::new(Vec::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(0);
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Exit code after an interrupt, as a shell reports it for SIGINT.
const INTERRUPTED: i32 = 130;

/// Undoes one thing when dropped.
#[must_use = "dropping the guard runs its action at once"]
pub struct Guard {
    id: u64,
}

impl Guard {
    /// Registers `action`, to be run once: at drop, or on Ctrl-C.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        actions().push((id, Box::new(action)));
        if STOPPING.load(Ordering::SeqCst) {
            // The interrupt's sweep may have missed this one.
            run_all();
        }
        yield_to_interrupt();
        Self { id }
    }

    /// Forgets the action without running it.
    pub fn disarm(self) {
        take(self.id);
        std::mem::forget(self);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        yield_to_interrupt();
        if let Some(action) = take(self.id) {
            action();
        }
    }
}

/// Makes Ctrl-C and SIGTERM clean up before the process ends.
pub fn install_signal_handler() {
    let installed = ctrlc::set_handler(|| {
        eprintln!("\ninterrupted: cleaning up");
        STOPPING.store(true, Ordering::SeqCst);
        run_all();
        std::process::exit(INTERRUPTED);
    });
    if let Err(error) = installed {
        eprintln!("warning: an interrupt will not clean up: {error}");
    }
}

fn actions() -> std::sync::MutexGuard<'static, Vec<(u64, Action)>> {
    // An action never runs under the lock, so a poisoned list is still whole.
    ACTIONS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn take(id: u64) -> Option<Action> {
    let mut list = actions();
    let at = list.iter().position(|(other, _)| *other == id)?;
    Some(list.remove(at).1)
}

fn run_all() {
    loop {
        let Some((_, action)) = actions().pop() else { return };
        action();
    }
}

/// Does not return if an interrupt is cleaning up: its order is the right one, and it ends the process.
pub fn yield_to_interrupt() {
    while STOPPING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
