//! Traces of accesses, as text: a line for each access with the number of the file and the number of the
//! page in it, in decimal, separated by blanks. Empty lines and lines that begin with `#` say nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::workload::Access;

/// Longest line in bytes that is taken for one.
const MAX_LINE: u64 = 4096;

/// Reads a trace.
pub fn read(path: &Path) -> Result<Vec<Access>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the trace {shown}"))?;
    let accesses = parse(BufReader::new(file)).with_context(|| format!("in the trace {shown}"))?;
    if accesses.is_empty() {
        bail!("the trace {shown} has no accesses");
    }
    Ok(accesses)
}

fn parse(mut from: impl BufRead) -> Result<Vec<Access>> {
    let mut accesses = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let n = from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if n == 0 {
            break;
        }
        if n as u64 == MAX_LINE {
            bail!("line {number} is too long");
        }
        let Ok(text) = std::str::from_utf8(&line) else { bail!("line {number} is not text") };
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let [Ok(file), Ok(page)] = *words.iter().map(|w| w.parse()).collect::<Vec<Result<u64, _>>>() else {
            bail!("line {number} is not \"inode page\": {text:?}");
        };
        accesses.push(Access { file, page, scan: false });
    }
    Ok(accesses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_and_comments() {
        let text = "# a trace\n17 3\n\n  18\t4  \n17 3";
        let pages: Vec<_> = parse(text.as_bytes()).unwrap().iter().map(|a| (a.file, a.page)).collect();
        assert_eq!(pages, [(17, 3), (18, 4), (17, 3)]);
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let long = format!("1 1\n{}", "1".repeat(5000));
        for wrong in ["1 1\n17", "1 1\n1 2 3", "1 1\n-1 2", "1 1\nx y", "1 1\n1 99999999999999999999", &long]
        {
            let error = format!("{:#}", parse(wrong.as_bytes()).unwrap_err());
            assert!(error.contains("line 2"), "{error}");
        }
        assert!(parse(b"\xff\xff 1".as_slice()).is_err());
    }
}
