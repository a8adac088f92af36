//! What must hold in a database, whatever happened to the machine below it.

use anyhow::{Result, bail};

use super::Server;
use crate::cmd;

/// Checks that accounts, tellers, branches and history tell the same sum, and returns the number of
/// transactions in the history.
pub fn sums(server: &Server) -> Result<i64> {
    let mut connection = server.connect()?;
    let mut sum = |column: &str, table: &str| {
        connection.number(&format!("SELECT coalesce(sum({column}), 0) FROM pgbench_{table}"))
    };
    let accounts = sum("abalance", "accounts")?;
    let tellers = sum("tbalance", "tellers")?;
    let branches = sum("bbalance", "branches")?;
    let history = sum("delta", "history")?;
    if [tellers, branches, history] != [accounts; 3] {
        bail!(
            "the sums differ: accounts {accounts}, tellers {tellers}, branches {branches}, history {history}"
        );
    }
    connection.number("SELECT count(*) FROM pgbench_history")
}

/// Checks every heap and index with `pg_amcheck`; the server must run.
pub fn amcheck(server: &Server) -> Result<()> {
    server.connect()?.query("CREATE EXTENSION IF NOT EXISTS amcheck")?;
    let mut command = server.install().command("pg_amcheck");
    cmd::capture(command.args(server.client_args()).args(["--heapallindexed", "postgres"]))?;
    Ok(())
}

/// Checks the checksum of every page; the server must be stopped.
pub fn page_checksums(server: &Server) -> Result<()> {
    let mut command = server.install().command("pg_checksums");
    cmd::capture(command.arg("--check").arg("-D").arg(server.data()))?;
    Ok(())
}
