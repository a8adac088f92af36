//! Names from a volume, for people and programs: they may hold any byte but `/` and 0, and must
//! neither command a terminal nor be mistaken for something else.

use std::io::IsTerminal;

use serde_json::{Map, Value};

/// How names are printed on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Byte by byte, for programs.
    Raw,
    /// Quoted for a shell where needed, as `ls` does on a terminal.
    Quoted,
}

impl Style {
    /// Quoted if standard output is a terminal.
    pub fn of_stdout() -> Self {
        if std::io::stdout().is_terminal() { Style::Quoted } else { Style::Raw }
    }

    /// The bytes to print for `name`.
    pub fn bytes(self, name: &[u8]) -> Vec<u8> {
        match self {
            Style::Raw => name.to_vec(),
            Style::Quoted => quoted(name).into_bytes(),
        }
    }
}

/// The name in a form that a shell takes back: as it is, in single quotes, or, with characters that
/// cannot be shown, as `$'...'`.
pub fn quoted(name: &[u8]) -> String {
    let clean = std::str::from_utf8(name).ok().filter(|text| !text.chars().any(is_hidden));
    match clean {
        Some(text) if is_plain(text) => text.to_owned(),
        Some(text) if !text.contains('\'') => format!("'{text}'"),
        _ => escaped(name),
    }
}

/// Characters that move the cursor, change what is shown, or are not seen.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Nothing in it means anything to a shell.
fn is_plain(text: &str) -> bool {
    let special = |c: char| c.is_whitespace() || "\"'\\$`*?[]{}()<>|&;!#~^".contains(c);
    !text.is_empty() && !text.starts_with('-') && !text.contains(special)
}

fn escaped(name: &[u8]) -> String {
    let mut out = String::from("$'");
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\'' | '\\' => out.extend(['\\', c]),
                c if is_hidden(c) => {
                    let mut bytes = [0; 4];
                    c.encode_utf8(&mut bytes).bytes().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
                }
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out.push('\'');
    out
}

/// An error message that cannot command a terminal, whatever names are in it.
pub fn message(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c != '\n' && is_hidden(c) { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// Puts bytes into a JSON object as `field`. If they are not UTF-8, that is for people only, and
/// `field_hex` has them exactly.
pub fn put(object: &mut Map<String, Value>, field: &str, bytes: &[u8]) {
    object.insert(field.into(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        object.insert(format!("{field}_hex"), hex.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_a_shell_takes_them_back() {
        let cases: [(&[u8], &str); 8] = [
            (b"plain.txt", "plain.txt"),
            (b"a b", "'a b'"),
            (b"it's", "$'it\\'s'"),
            (b"\x1b[2Jx\n", "$'\\x1b[2Jx\\n'"),
            (b"caf\xe9", "$'caf\\xe9'"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
            ("a\u{202e}b".as_bytes(), "$'a\\xe2\\x80\\xaeb'"),
            (b"-rf", "'-rf'"),
        ];
        for (name, shown) in cases {
            assert_eq!(quoted(name), shown);
        }
    }

    #[test]
    fn messages_lose_their_control_characters() {
        assert_eq!(message("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\nc");
    }

    #[test]
    fn json_has_the_bytes_of_names_that_are_not_text() {
        let mut object = Map::new();
        put(&mut object, "name", b"ok");
        put(&mut object, "target", b"\xffx");
        assert_eq!(
            Value::Object(object),
            serde_json::json!({"name": "ok", "target": "\u{fffd}x", "target_hex": "ff78"})
        );
    }
}
