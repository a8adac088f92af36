//! The control socket of a daemon: how commands talk to the volume that it has mounted.
//!
//! It is `/run/dbfs/UUID.sock`, for an ordinary user's daemon in `dbfs` below his `XDG_RUNTIME_DIR`. Only
//! the owner and root get at it: the directory has mode 0700, the socket 0600.

pub mod client;
pub mod protocol;
pub mod server;
pub mod status;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Where the sockets of this user's daemons are.
fn directory() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/run/dbfs".into());
    }
    let run = std::env::var_os("XDG_RUNTIME_DIR").context("XDG_RUNTIME_DIR is not set")?;
    Ok(PathBuf::from(run).join("dbfs"))
}

/// The socket of the daemon that has mounted the volume `uuid`.
fn socket(uuid: &str) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{uuid}.sock")))
}
