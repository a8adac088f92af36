//! What goes over the control socket: one JSON object a line, a request from the client, then
//! responses until the last one.

use std::io::{self, BufRead, Read, Write};

use fs_core::GrowTo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::status::{Explained, Extent, SlowSync, Status};

/// Longest line in bytes. Longer ones end the connection.
pub const MAX_LINE: u64 = 64 << 10;

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What is mounted, and how it is.
    Status,
    /// The status, and again and again, with the latencies in between.
    Watch {
        /// Milliseconds in between.
        every_ms: u32,
    },
    /// The slowest recent syncs.
    Slow,
    /// Where a file lies.
    Explain {
        /// The file.
        ino: u64,
        /// How many extents are to be listed; all are counted.
        extents: u64,
    },
    /// Verify everything, reading at most `rate` MiB a second.
    Scrub {
        /// MiB a second.
        rate: u32,
    },
    /// Change what can be changed.
    Tune {
        /// Size of the page cache; absent: it stays.
        cache_bytes: Option<u64>,
    },
    /// Make the volume larger.
    Grow {
        /// How large.
        to: GrowTo,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Response {
    /// How the volume is doing; the last line, unless it was to be watched.
    Status(Box<Status>),
    /// The slowest recent syncs; the last line.
    Slow {
        /// The slowest first.
        syncs: Vec<SlowSync>,
    },
    /// An extent of a file.
    Extent(Extent),
    /// The file is explained; the last line.
    Explained(Explained),
    /// Something that a scrub has found.
    Finding {
        /// The file.
        ino: Option<u64>,
        /// Byte offset in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// How far a scrub is.
    Progress {
        /// Bytes read.
        bytes: u64,
    },
    /// The scrub has ended; the last line.
    Scrubbed {
        /// Tree nodes read.
        nodes: u64,
        /// Pages of data read.
        pages: u64,
        /// Bytes read.
        bytes: u64,
        /// Things found.
        findings: u64,
        /// Everything was read.
        complete: bool,
    },
    /// Answer to a tune request: how it is now; the last line.
    Tuned {
        /// What the page cache may take.
        cache_bytes: u64,
        /// Bytes of the pages in it.
        cached_bytes: u64,
    },
    /// The volume has grown, or had the size already; the last line.
    Grown {
        /// Its size before.
        old_bytes: u64,
        /// Its size now.
        new_bytes: u64,
    },
    /// The request cannot be answered; the last line.
    Error {
        /// Why.
        message: String,
    },
}

/// Sends a line.
pub fn send(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// Receives a line; `None`: the other side has ended.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let n = from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) if n as u64 == MAX_LINE => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"))
        }
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> io::Result<Option<Request>> {
        receive(&mut io::BufReader::new(bytes))
    }

    #[test]
    fn messages_go_through() {
        let mut line = Vec::new();
        send(&mut line, &Request::Scrub { rate: 7 }).unwrap();
        assert_eq!(line, b"{\"op\":\"scrub\",\"rate\":7}\n");
        assert_eq!(parse(&line).unwrap(), Some(Request::Scrub { rate: 7 }));
        assert_eq!(parse(b"").unwrap(), None);
        for to in [GrowTo::Device, GrowTo::Size(u64::MAX), GrowTo::By(1)] {
            let mut line = Vec::new();
            send(&mut line, &Request::Grow { to }).unwrap();
            assert_eq!(parse(&line).unwrap(), Some(Request::Grow { to }));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = vec![b'x'; 2 * MAX_LINE as usize];
        let numbers = ["-1", "1.5", "1e30", "99999999999999999999", "\"1\"", "null", "[1]"];
        for number in numbers {
            let line = format!("{{\"op\":\"grow\",\"to\":{{\"size\":{number}}}}}\n");
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
        for to in ["\"all\"", "{}", "{\"size\":1,\"by\":1}", "7"] {
            assert!(parse(format!("{{\"op\":\"grow\",\"to\":{to}}}\n").as_bytes()).is_err(), "{to}");
        }
        let deep = [vec![b'['; 60_000], b"\n".to_vec()].concat();
        for bytes in
            [b"{}\n".as_slice(), b"\n", b"{\"op\":\"format\"}\n", b"{\"op\":\"status\"", &long, &deep]
        {
            assert!(parse(bytes).is_err());
        }
    }
}
