//! The safety rules of the engine, one module each: deterministic runs on the simulated device whose
//! every write is inspected, and whose power cuts are recovered.
//!
//! With the feature `mutants`, `mutants.rs` proves that these tests notice when a rule is broken.

mod airspace;
mod audit;
mod rig;
mod trace;

mod c1_durability;
mod c2_atomic;
mod c3_names;
mod c7_checksums;
mod c8_hostile;
mod flights;
mod mutants;
mod r1_reuse;
mod r2_epochs;
mod r4_durable;
mod r5_torn_or_corrupt;
mod r6_failures;
mod r7_grow;
mod r7_order;
mod r8_homing;
mod recovery;
mod sync_flights;
