//! The `dbfs` command.
fn main() {}
