//! Requests that fuser does not know, or of which it drops what matters.

use fs_core::Ino;
use fuser::{Errno, OpenFlags, ReplyData, Request};
use zerocopy::FromBytes;

use crate::adapter::{Adapter, TTL, owner};
use crate::convert;
use crate::wire::{self, CreateIn, SetattrIn, Setxattr};
use crate::xattrs;

/// What is sent back.
type Answer = Result<Vec<u8>, Errno>;

impl Adapter {
    /// Serves a request if it is one of those; false: fuser has to.
    pub(crate) fn serve_raw(
        &self,
        req: &Request,
        opcode: u32,
        ino: Ino,
        body: &[u8],
        reply: &dyn Fn() -> ReplyData,
    ) -> bool {
        let serve: fn(&Self, &Request, Ino, &[u8]) -> Answer = match opcode {
            wire::SETATTR => Self::raw_setattr,
            wire::SETXATTR if self.extended_setxattr() => Self::raw_setxattr,
            wire::TMPFILE => Self::raw_tmpfile,
            wire::STATX => Self::raw_statx,
            _ => return false,
        };
        let _busy = self.gate.enter();
        match serve(self, req, ino, body) {
            Ok(bytes) => reply().data(&bytes),
            Err(e) => reply().error(e),
        }
        true
    }

    fn raw_setattr(&self, _req: &Request, ino: Ino, body: &[u8]) -> Answer {
        let (request, _) = SetattrIn::read_from_prefix(body).map_err(|_| Errno::EIO)?;
        let attr = self.run("setattr", ino, |fs| fs.setattr(ino, &request.changes()))?;
        self.note_shown(&attr);
        Ok(wire::attr_out(&attr, TTL))
    }

    fn raw_setxattr(&self, _req: &Request, ino: Ino, body: &[u8]) -> Answer {
        let request = Setxattr::parse(body).ok_or(Errno::EIO)?;
        let mut flags = xattrs::flags(request.flags).ok_or(Errno::EINVAL)?;
        flags.clear_setgid = request.clear_setgid;
        self.run("setxattr", ino, |fs| fs.setxattr(ino, request.name, request.value, flags))?;
        Ok(Vec::new())
    }

    fn raw_tmpfile(&self, req: &Request, dir: Ino, body: &[u8]) -> Answer {
        let (request, _) = CreateIn::read_from_prefix(body).map_err(|_| Errno::EIO)?;
        let (perm, owner) = (convert::perm(request.mode), owner(req, request.umask));
        let attr = self.run("tmpfile", dir, |fs| fs.tmpfile(dir, perm, owner))?;
        self.opens.opened(attr.ino);
        self.note_shown(&attr);
        let open_flags = convert::fopen_flags(OpenFlags(request.flags), self.direct_handles);
        Ok(wire::create_out(&attr, TTL, open_flags.bits()))
    }

    fn raw_statx(&self, _req: &Request, ino: Ino, _body: &[u8]) -> Answer {
        let attr = self.run("statx", ino, |fs| fs.getattr(ino))?;
        self.note_shown(&attr);
        Ok(wire::statx_out(&attr, TTL))
    }
}
