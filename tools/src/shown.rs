//! Names from a volume, for people: they may hold any byte but `/` and 0, and must not command a
//! terminal.

/// Characters that move the cursor, change what is shown, or are not seen.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// An error message that cannot command a terminal, whatever names are in it.
pub fn message(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c != '\n' && is_hidden(c) { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_their_control_characters() {
        assert_eq!(message("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\nc");
    }
}
