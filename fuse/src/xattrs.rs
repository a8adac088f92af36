//! Extended attributes: the ways in which the kernel asks for values and lists.

use fs_core::api::XattrFlags;
use fuser::{Errno, ReplyXattr};

/// Answers with `bytes`, or with their number if the kernel has no room for them and only asks how much
/// it needs.
pub(crate) fn answer(reply: ReplyXattr, room: u32, bytes: Result<Vec<u8>, Errno>) {
    match bytes {
        Ok(bytes) if room == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(e),
    }
}

/// What setxattr(2) was called with; `None` if there is a flag that dbfs does not know.
pub(crate) fn flags(flags: i32) -> Option<XattrFlags> {
    let known = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    (flags & !known == 0).then_some(XattrFlags {
        create: flags & libc::XATTR_CREATE != 0,
        replace: flags & libc::XATTR_REPLACE != 0,
        clear_setgid: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_setxattr() {
        let create = XattrFlags { create: true, ..XattrFlags::default() };
        assert_eq!(flags(libc::XATTR_CREATE), Some(create));
        assert_eq!(
            flags(libc::XATTR_REPLACE | libc::XATTR_CREATE),
            Some(XattrFlags { replace: true, ..create })
        );
        assert_eq!(flags(0), Some(XattrFlags::default()));
        assert_eq!(flags(8), None);
    }
}
