//! POSIX access control lists: what their entries mean together with permission bits, as acl(5) and the
//! withdrawn POSIX.1e say.
//!
//! They are kept as values of extended attributes, in the form in which Linux passes them: version (4),
//! then for each entry its tag (2), permissions (2) and id (4), little endian.

use crate::format::bytes::{Reader, Writer};

/// Attribute that holds the list that is checked at each access.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";

/// Attribute that holds the list that files made in a directory inherit.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// The list in an attribute's value; `None` if it is not one that Linux would accept. A list without
    /// entries is not valid either: it stands for "no list".
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut r = Reader::new(value);
        if r.u32()? != VERSION {
            return None;
        }
        let mut entries = Vec::new();
        while !r.is_empty() {
            entries.push(Entry { tag: r.u16()?, perm: r.u16()?, id: r.u32()? });
        }
        is_valid(&entries).then_some(Self(entries))
    }

    /// A value that says "no list".
    pub(crate) fn is_none(value: &[u8]) -> bool {
        value.is_empty() || value == VERSION.to_le_bytes()
    }

    /// The value of the attribute.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + 8 * self.0.len());
        out.put_u32(VERSION);
        for e in &self.0 {
            out.put_u16(e.tag);
            out.put_u16(e.perm);
            out.put_u32(e.id);
        }
        out
    }

    /// The entry that the group's permission bits show: the mask if there is one.
    fn group_class(&mut self) -> Option<&mut Entry> {
        let at = self.0.iter().position(|e| e.tag == MASK);
        let at = at.or_else(|| self.0.iter().position(|e| e.tag == GROUP_OBJ))?;
        self.0.get_mut(at)
    }

    /// Permissions of the first entry with this tag.
    fn perm(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|e| e.tag == tag).map(|e| e.perm.into())
    }

    /// The nine permission bits that it amounts to.
    pub(crate) fn bits(&self) -> u32 {
        let group = self.perm(MASK).or(self.perm(GROUP_OBJ));
        self.perm(USER_OBJ).unwrap_or(0) << 6 | group.unwrap_or(0) << 3 | self.perm(OTHER).unwrap_or(0)
    }

    /// Permission bits say all that it says.
    pub(crate) fn is_trivial(&self) -> bool {
        self.0.iter().all(|e| matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Follows a chmod to these permission bits.
    pub(crate) fn set_bits(&mut self, perm: u32) {
        let bits = |shift: u32| (perm >> shift & 7) as u16;
        if let Some(e) = self.group_class() {
            e.perm = bits(3);
        }
        for e in &mut self.0 {
            match e.tag {
                USER_OBJ => e.perm = bits(6),
                OTHER => e.perm = bits(0),
                _ => {}
            }
        }
    }

    /// Becomes the access list of a file that is made with permission bits `perm` under this default
    /// list; returns the bits that the file gets.
    pub(crate) fn inherit(&mut self, perm: u32) -> u32 {
        let bits = self.bits() & perm;
        self.set_bits(bits);
        perm & !0o777 | bits
    }
}

/// In the order of their tags, each that must be there once, a mask if there is something to mask.
fn is_valid(entries: &[Entry]) -> bool {
    let count = |tag| entries.iter().filter(|e| e.tag == tag).count();
    let named = count(USER) + count(GROUP);
    entries.iter().all(|e| {
        let known = matches!(e.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER);
        let id = !matches!(e.tag, USER | GROUP) || e.id != u32::MAX;
        known && id && e.perm <= 7
    }) && entries.is_sorted_by_key(|e| e.tag)
        && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
        && (count(MASK) == 1 || named == 0 && count(MASK) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect()).encode()
    }

    #[test]
    fn only_whole_lists_are_accepted() {
        let plain = [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)];
        let decoded = Acl::decode(&acl(&plain)).unwrap();
        assert!(decoded.is_trivial());
        assert_eq!((decoded.bits(), decoded.encode()), (0o640, acl(&plain)));
        let named = [(USER_OBJ, 6, 0), (USER, 7, 5), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)];
        assert_eq!(Acl::decode(&acl(&named)), None, "nothing masks the named user");
        assert_eq!(Acl::decode(&acl(&plain[..2])), None);
        assert_eq!(Acl::decode(&acl(&[plain[1], plain[0], plain[2]])), None);
        assert_eq!(Acl::decode(&acl(&[(USER_OBJ, 8, 0), plain[1], plain[2]])), None);
        assert_eq!(Acl::decode(&acl(&plain)[..11]), None);
        assert_eq!(Acl::decode(&[]), None);
        assert!(Acl::is_none(&acl(&[])));
    }

    #[test]
    fn the_mask_is_what_the_groups_bits_show() {
        let mut list = Acl::decode(&acl(&[
            (USER_OBJ, 7, 0),
            (USER, 7, 5),
            (GROUP_OBJ, 1, 0),
            (MASK, 5, 0),
            (OTHER, 0, 0),
        ]))
        .unwrap();
        assert_eq!((list.bits(), list.is_trivial()), (0o750, false));
        list.set_bits(0o631);
        assert_eq!((list.bits(), list.perm(GROUP_OBJ), list.perm(USER)), (0o631, Some(1), Some(7)));
        assert_eq!(list.inherit(0o2666), 0o2620);
        assert_eq!((list.bits(), list.perm(MASK), list.perm(GROUP_OBJ)), (0o620, Some(2), Some(1)));
    }
}
