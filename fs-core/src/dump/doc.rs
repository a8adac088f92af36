//! A little tree of named values, shown as text or as JSON.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::fsck::escape;

/// A value to show.
#[derive(Clone, Debug)]
pub(super) enum Doc {
    /// A number.
    Num(u64),
    /// A text.
    Text(String),
    /// A yes or no.
    Flag(bool),
    /// Several of the same kind.
    List(Vec<Doc>),
    /// Named values, in the order in which they are shown.
    Fields(Vec<(&'static str, Doc)>),
}

impl From<u64> for Doc {
    fn from(n: u64) -> Self {
        Doc::Num(n)
    }
}

impl From<u32> for Doc {
    fn from(n: u32) -> Self {
        Doc::Num(n.into())
    }
}

impl From<bool> for Doc {
    fn from(b: bool) -> Self {
        Doc::Flag(b)
    }
}

impl From<String> for Doc {
    fn from(s: String) -> Self {
        Doc::Text(s)
    }
}

impl From<&str> for Doc {
    fn from(s: &str) -> Self {
        Doc::Text(s.to_owned())
    }
}

impl From<Vec<Doc>> for Doc {
    fn from(list: Vec<Doc>) -> Self {
        Doc::List(list)
    }
}

impl Doc {
    /// As JSON.
    pub(super) fn json(&self) -> Value {
        match self {
            Doc::Num(n) => Value::from(*n),
            Doc::Text(s) => Value::from(s.as_str()),
            Doc::Flag(b) => Value::from(*b),
            Doc::List(list) => Value::Array(list.iter().map(Doc::json).collect()),
            Doc::Fields(fields) => {
                let pairs = fields.iter().map(|(name, doc)| ((*name).to_owned(), doc.json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// As indented text, one value a line; control characters of names are escaped.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Doc::List(list) => {
                for (i, doc) in list.iter().enumerate() {
                    if i > 0 && matches!(doc, Doc::Fields(_)) {
                        out.push('\n');
                    }
                    doc.write(out, depth);
                }
            }
            Doc::Fields(fields) => fields.iter().for_each(|(name, doc)| write_field(out, depth, name, doc)),
            scalar => {
                pad(out, depth);
                out.push_str(&scalar.scalar());
                out.push('\n');
            }
        }
    }

    fn scalar(&self) -> String {
        match self {
            Doc::Num(n) => n.to_string(),
            Doc::Flag(true) => "yes".into(),
            Doc::Flag(false) => "no".into(),
            Doc::Text(s) => escape(s),
            Doc::List(_) | Doc::Fields(_) => String::new(),
        }
    }
}

fn write_field(out: &mut String, depth: usize, name: &str, doc: &Doc) {
    pad(out, depth);
    // A string: writing to it cannot fail.
    let _ = match doc {
        Doc::List(list) if list.is_empty() => writeln!(out, "{name}: none"),
        Doc::List(_) | Doc::Fields(_) => writeln!(out, "{name}:"),
        scalar => writeln!(out, "{name}: {}", scalar.scalar()),
    };
    if let Doc::List(_) | Doc::Fields(_) = doc {
        doc.write(out, depth + 1);
    }
}

fn pad(out: &mut String, depth: usize) {
    (0..depth).for_each(|_| out.push_str("  "));
}
