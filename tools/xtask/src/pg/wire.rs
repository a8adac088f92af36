//! A PostgreSQL client of just the size the harnesses need: simple queries over a local socket.
//!
//! Speaking the protocol here, rather than through a client library, shows the very moment at which
//! the server acknowledges a commit, and keeps a hundred crates out of every build.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Protocol version 3.0.
const PROTOCOL: u32 = 3 << 16;

/// A query that takes longer counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// No message of the server may be larger.
const MAX_MESSAGE: u32 = 64 << 20;

/// Rows of a result; columns in text form, NULL as `None`.
pub type Rows = Vec<Vec<Option<String>>>;

/// A session.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Opens a session; the server must trust the user without a password.
    pub fn open(socket: &Path, user: &str, database: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("cannot connect to PostgreSQL")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self { stream: BufReader::new(stream) };
        let mut body = PROTOCOL.to_be_bytes().to_vec();
        for text in ["user", user, "database", database] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        connection.send(None, &body)?;
        connection.read_answer()?;
        Ok(connection)
    }

    /// Runs one or more statements (more than one is one transaction) and returns the rows of all.
    pub fn query(&mut self, sql: &str) -> Result<Rows> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.send(Some(b'Q'), &body)?;
        self.read_answer()
    }

    /// A query whose result is one number.
    pub fn number(&mut self, sql: &str) -> Result<i64> {
        let rows = self.query(sql)?;
        let value = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
        value.context("no value")?.parse().with_context(|| format!("not a number: {sql}"))
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let length = u32::try_from(body.len() + 4).context("message too long")?;
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message).context("cannot send to PostgreSQL")
    }

    /// Reads up to the server's "ready for query"; an error answer becomes an error.
    fn read_answer(&mut self) -> Result<Rows> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let (kind, body) = self.receive()?;
            match kind {
                b'D' => rows.push(data_row(&body).context("malformed row")?),
                b'E' => {
                    let text = error_text(&body);
                    // After a fatal error the server closes without another word.
                    if text.starts_with("FATAL") || text.starts_with("PANIC") {
                        bail!("{text}");
                    }
                    error = Some(text);
                }
                b'R' if body != 0u32.to_be_bytes() => bail!("the server asks for a password"),
                b'Z' => match error {
                    Some(text) => bail!("{text}"),
                    None => return Ok(rows),
                },
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).context("PostgreSQL closed the connection")?;
        let [kind, length @ ..] = header;
        let length = u32::from_be_bytes(length);
        if !(4..=MAX_MESSAGE).contains(&length) {
            bail!("malformed message of {length} bytes");
        }
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body).context("PostgreSQL closed the connection")?;
        Ok((kind, body))
    }
}

/// Columns of a DataRow message: a count, then a length (or -1 for NULL) and bytes for each.
fn data_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let Ok(length) = usize::try_from(length) else {
            row.push(None);
            rest = tail;
            continue;
        };
        let (value, tail) = tail.split_at_checked(length)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = tail;
    }
    Some(row)
}

/// "SEVERITY: message" of an ErrorResponse: fields of a type byte and a zero-terminated text.
fn error_text(body: &[u8]) -> String {
    let field = |wanted: u8| {
        let mut fields = body.split(|byte| *byte == 0);
        let found = fields.find(|f| f.first() == Some(&wanted))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    };
    let severity = field(b'V').or_else(|| field(b'S')).unwrap_or_else(|| "ERROR".into());
    format!("{severity}: {}", field(b'M').unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parsed_and_bounds_checked() {
        let body = [0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, b'4', b'2'];
        assert_eq!(data_row(&body), Some(vec![None, Some("42".into())]));
        assert_eq!(data_row(&body[..11]), None);
        assert_eq!(data_row(&[]), None);
    }

    #[test]
    fn errors_carry_severity_and_message() {
        assert_eq!(error_text(b"SFEHLER\0VERROR\0C42P01\0Mno such table\0\0"), "ERROR: no such table");
    }
}
