//! Proof that no I/O in flight can touch a freed block any more (rule R1).

use std::sync::Arc;

use parking_lot::Mutex;

/// Counts I/O in flight in two generations. A block freed in generation `g` can be touched only by
/// I/O that began in `g` or before; the gate gets to `g + 2` only when all of that has ended.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    /// I/O in flight that began in an even and in an odd generation.
    active: [u64; 2],
}

impl Gate {
    pub fn enter(self: &Arc<Self>) -> IoGuard {
        let mut state = self.state.lock();
        let side = (state.generation % 2) as usize;
        state.active[side] += 1;
        IoGuard { gate: self.clone(), side }
    }

    /// The generation in which something is freed now.
    pub fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Goes on as far as the I/O in flight allows, at most two generations; returns the newest
    /// generation whose freed blocks no I/O can touch any more, plus one.
    pub fn advance(&self) -> u64 {
        let mut state = self.state.lock();
        for _ in 0..2 {
            let other = ((state.generation + 1) % 2) as usize;
            if state.active[other] == 0 {
                state.generation += 1;
            }
        }
        state.generation.saturating_sub(1)
    }
}

/// Keeps blocks that are freed from now on from being used again. Take it before looking up where
/// data is, drop it when the I/O on it has ended; it may move to another thread. One that is never
/// dropped keeps all of limbo from coming free.
#[derive(Debug)]
pub struct IoGuard {
    gate: Arc<Gate>,
    side: usize,
}

impl Drop for IoGuard {
    fn drop(&mut self) {
        self.gate.state.lock().active[self.side] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_gates_open_at_once() {
        let gate = Gate::default();
        for _ in 0..5 {
            let freed = gate.generation();
            assert!(gate.advance() > freed);
        }
    }

    #[test]
    fn only_io_that_began_before_the_free_counts() {
        let gate = Arc::new(Gate::default());
        let before = gate.enter();
        let freed = gate.generation();
        for _ in 0..3 {
            assert!(gate.advance() <= freed);
        }
        let after = gate.enter();
        drop(before);
        assert!(gate.advance() > freed, "later I/O does not hold it up");
        let freed = gate.generation();
        assert!(gate.advance() <= freed);
        drop(after);
        assert!(gate.advance() > freed);
    }

    #[test]
    fn a_stream_of_io_does_not_starve_it() {
        let gate = Arc::new(Gate::default());
        let mut flying = gate.enter();
        for _ in 0..20 {
            let freed = gate.generation();
            let mut rounds = 0;
            while gate.advance() <= freed {
                // Always one in flight: the next begins before the last ends.
                let next = gate.enter();
                flying = next;
                rounds += 1;
                assert!(rounds < 5);
            }
        }
        drop(flying);
    }
}
