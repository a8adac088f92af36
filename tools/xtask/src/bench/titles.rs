//! Names of the jobs that bars refer to.

pub const READ_16K_1: &str = "16 KiB direct random read, depth 1";
pub const READ_16K_16: &str = "16 KiB direct random read, depth 16";
pub const SYNCED_1: &str = "16 KiB direct random write + data sync, 1 thread";
pub const SYNCED_2: &str = "16 KiB direct random write + data sync, 2 threads";
/// The same with the promise that each write is all or nothing: where it costs nothing, the same figures.
pub const ATOMIC: &str = "16 KiB atomic direct random write + data sync, 1 thread";
pub const LOG: &str = "8 KiB write in place + fdatasync";
pub const APPEND: &str = "8 KiB append + fdatasync";
pub const SEQUENTIAL_READ: &str = "1 MiB direct sequential read";
pub const SEQUENTIAL_WRITE: &str = "1 MiB direct sequential write";
pub const AMPLIFICATION: &str = "bytes to the device for each byte of 16 KiB writes, 32 for each fdatasync";
pub const CREATE: &str = "create";
pub const STAT_COLD: &str = "stat, not cached";
pub const STAT: &str = "stat, cached";
pub const RENAME: &str = "rename";
pub const UNLINK: &str = "unlink";
pub const CREATE_DURABLY: &str = "create + write + fsync";
pub const RENAME_DURABLY: &str = "rename + fsync";
pub const RECOVERY: &str = "mount after a crash";
pub const PGBENCH_IN_CACHE: &str = "pgbench in cache";
pub const PGBENCH_OUT_OF_CACHE: &str = "pgbench out of cache";
