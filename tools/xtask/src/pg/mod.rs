//! PostgreSQL: finding it, running it, putting it under a load that can be checked.

pub mod bench;
pub mod install;
pub mod ledger;
pub mod server;
pub mod source;
pub mod verify;
pub mod wire;

pub use install::Install;
pub use ledger::Ledger;
pub use server::Server;
