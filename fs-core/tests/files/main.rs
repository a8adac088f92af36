//! What POSIX says about the data of files, and what failures must not do to it.

mod copy;
mod holes;
mod limits;
mod lost;
mod rig;
mod seek;
mod truncate;
