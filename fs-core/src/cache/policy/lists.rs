//! Doubly linked lists through an array: each frame is in one of `N` lists, or in none.

use super::FrameNr;

const NIL: u32 = u32::MAX;
const NO_LIST: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    /// Towards the head.
    younger: u32,
    /// Towards the tail.
    older: u32,
    list: u8,
}

const UNLINKED: Link = Link { younger: NIL, older: NIL, list: NO_LIST };

#[derive(Clone, Copy, Debug)]
struct Ends {
    head: u32,
    tail: u32,
    len: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lists<const N: usize> {
    links: Vec<Link>,
    ends: [Ends; N],
}

impl<const N: usize> Lists<N> {
    /// Empty lists, with room for `frames` frames; it grows if there are more.
    pub(super) fn new(frames: usize) -> Self {
        Self { links: vec![UNLINKED; frames], ends: [Ends { head: NIL, tail: NIL, len: 0 }; N] }
    }

    /// Frames in a list.
    pub(super) fn len(&self, list: usize) -> usize {
        self.ends[list].len
    }

    /// Frames in all lists.
    pub(super) fn total(&self) -> usize {
        self.ends.iter().map(|e| e.len).sum()
    }

    /// The list that the frame is in.
    pub(super) fn list_of(&self, frame: FrameNr) -> Option<usize> {
        let list = self.links.get(frame.index())?.list;
        (list != NO_LIST).then_some(list.into())
    }

    /// The oldest frame of a list.
    pub(super) fn tail(&self, list: usize) -> Option<FrameNr> {
        let tail = self.ends[list].tail;
        (tail != NIL).then_some(FrameNr(tail))
    }

    /// Puts a frame at the head of a list, taking it out of the one it is in.
    pub(super) fn push(&mut self, list: usize, frame: FrameNr) {
        self.remove(frame);
        if frame.index() >= self.links.len() {
            self.links.resize(frame.index() + 1, UNLINKED);
        }
        let head = std::mem::replace(&mut self.ends[list].head, frame.0);
        self.links[frame.index()] = Link { younger: NIL, older: head, list: list as u8 };
        match head {
            NIL => self.ends[list].tail = frame.0,
            head => self.links[head as usize].younger = frame.0,
        }
        self.ends[list].len += 1;
    }

    /// Takes a frame out of its list; false if it was in none.
    pub(super) fn remove(&mut self, frame: FrameNr) -> bool {
        let Some(list) = self.list_of(frame) else { return false };
        let Link { younger, older, .. } = std::mem::replace(&mut self.links[frame.index()], UNLINKED);
        match younger {
            NIL => self.ends[list].head = older,
            younger => self.links[younger as usize].older = older,
        }
        match older {
            NIL => self.ends[list].tail = younger,
            older => self.links[older as usize].younger = younger,
        }
        self.ends[list].len -= 1;
        true
    }

    /// The frames of a list from head to tail, checked against their links.
    #[cfg(test)]
    pub(super) fn checked(&self, list: usize) -> Vec<FrameNr> {
        let mut frames = Vec::new();
        let (mut at, mut younger) = (self.ends[list].head, NIL);
        while at != NIL {
            let link = self.links[at as usize];
            assert_eq!((usize::from(link.list), link.younger), (list, younger));
            frames.push(FrameNr(at));
            assert!(frames.len() <= self.ends[list].len, "the list has a cycle, or its length is wrong");
            (younger, at) = (at, link.older);
        }
        assert_eq!((self.ends[list].tail, self.ends[list].len), (younger, frames.len()));
        frames
    }
}
