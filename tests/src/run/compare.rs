//! Comparing answers.

use fs_core::api::{Attr, FileType};

use super::failure::Failure;
use super::inos::InoMap;
use crate::fail_with;

/// The errors are the same, or both succeeded.
pub fn same_outcome<T, U>(got: &fs_core::Result<T>, want: &fs_core::Result<U>) -> Result<(), Failure> {
    match (got, want) {
        (Ok(_), Ok(_)) => Ok(()),
        (Err(got), Err(want)) if got.errno() == want.errno() => Ok(()),
        (Err(got), Err(want)) => Err(Failure::refused_otherwise(got, want)),
        (Err(got), Ok(_)) => Err(Failure::refused(got)),
        (Ok(_), Err(want)) => fail_with!("succeeded, should fail with \"{want}\""),
    }
}

/// The attributes are the same, but for the access time (relatime), the space used, and the size of
/// a directory, which are the implementation's own affair.
pub fn same_attr(got: &Attr, want: &Attr, inos: &InoMap) -> Result<(), Failure> {
    let mut expected = want.clone();
    expected.ino = inos.subject(want.ino);
    expected.atime = got.atime;
    expected.blocks = got.blocks;
    if want.kind == FileType::Directory {
        expected.size = got.size;
    }
    if *got != expected {
        fail_with!("attributes are\n    {got:?}, should be\n    {expected:?}");
    }
    Ok(())
}
