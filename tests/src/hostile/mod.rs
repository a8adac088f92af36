//! Damaged and hostile images (contracts C7 and C8).
//!
//! An aged volume is damaged in one place ([`damage`]): whatever is read from it afterwards must be
//! right or an error. Or structures are changed and their checksums made right again ([`forge`]): then
//! nothing is known about the content, but nothing may panic, hang or take all memory. Both are tried by
//! mounting the volume read-only and for writing, reading everything, changing something, and fsck
//! ([`probe`]); and by repairing it ([`mend`]).

pub mod aged;
pub mod damage;
mod deepen;
pub mod drive;
pub mod forge;
mod forge_items;
pub mod layout;
pub mod memory;
pub mod mend;
pub mod probe;
pub mod script;
pub mod targets;
