//! Time and randomness, behind a trait so that one seed replays a whole run.

use crate::api::Timestamp;

/// What the core needs from its surroundings.
pub trait Env: Send + Sync {
    /// Wall-clock time, for file timestamps.
    fn now(&self) -> Timestamp;
    /// Monotonic nanoseconds, for ages and deadlines.
    fn monotonic_ns(&self) -> u64;
    /// A random number (volume ids, hash keys).
    fn random(&self) -> u64;
}

/// The machine's own clock and randomness.
#[derive(Debug, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
    }

    fn monotonic_ns(&self) -> u64 {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64
    }

    fn random(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().0
    }
}
