//! Where messages go.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::syslog::Syslog;

/// Environment variable with the filter, such as `debug` or `dbfs_fs_core=trace`.
const FILTER: &str = "DBFS_LOG";

/// Sends messages to `file`; without one to standard error, or, for a daemon in the background, to
/// the system's log. Panics are messages too.
pub fn start(file: Option<&Path>, background: bool) -> Result<()> {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match (file, background.then(Syslog::connect)) {
        (Some(path), _) => {
            let file = File::options().append(true).create(true).open(path);
            let file = file.with_context(|| format!("cannot open the log file {}", path.display()))?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
        (None, Some(Ok(log))) => builder.with_ansi(false).without_time().with_writer(log).init(),
        // Without a system log, messages are seen until the daemon lets go of the terminal.
        (None, _) => {
            let ansi = std::io::stderr().is_terminal();
            builder.with_ansi(ansi).with_writer(std::io::stderr).init();
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!("{panic}\n{backtrace}");
    }));
    Ok(())
}
