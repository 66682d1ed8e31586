//! Texts of a config on their way into the model: bounded, and without characters that would mean something to a file or a terminal.

use super::limits;

/// A text that is only shown. Control characters (line breaks too) are replaced, what is too long is cut off.
pub(super) fn shown(text: &str) -> String {
    cut(text, limits::SHOWN)
}

/// A text short enough to be quoted in a fault.
pub(super) fn quoted(text: &str) -> String {
    cut(text, limits::QUOTED)
}

fn cut(text: &str, most: usize) -> String {
    let clean = |text: &str| text.replace(char::is_control, "\u{fffd}");
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", clean(&text[..end])),
        None => clean(text),
    }
}

/// A text that names something to the device, on one line.
pub(super) fn name(what: &str, text: &str) -> Result<String, String> {
    line(what, text, limits::NAME)
}

/// A domain name, or several in one line; empty when none.
pub(super) fn domain(what: &str, text: &str) -> Result<String, String> {
    line(what, text, limits::DOMAIN)
}

fn line(what: &str, text: &str, most: usize) -> Result<String, String> {
    let found = text.chars().count();
    if found > most {
        return Err(format!("{what}: expected at most {most} characters, found {found}"));
    }
    if text.contains(char::is_control) {
        return Err(format!("{what}: expected a text on one line, found control characters in {:?}", quoted(text)));
    }
    Ok(text.to_owned())
}

/// A certificate, key or password, which may have several lines.
pub(super) fn secret(what: &str, text: &str) -> Result<String, String> {
    if text.len() > limits::SECRET {
        return Err(format!("{what}: expected at most {} bytes, found {}", limits::SECRET, text.len()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_cut_and_cleaned_and_what_is_used_is_refused() {
        assert_eq!(shown("a\nb\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(shown(&"x".repeat(limits::SHOWN + 1)), format!("{}...", "x".repeat(limits::SHOWN)));
        assert_eq!(quoted(&"ä".repeat(200)).chars().count(), limits::QUOTED + 3);
        assert_eq!(name("path", "/a b/c"), Ok("/a b/c".to_owned()));
        for text in ["a\nb", "a\0", "tab\t", &"x".repeat(limits::NAME + 1)] {
            assert!(name("path", text).unwrap_err().starts_with("path: expected"), "{text:?}");
        }
        assert!(domain("domain", &"x".repeat(254)).is_err());
        assert_eq!(secret("password", "two\nlines"), Ok("two\nlines".to_owned()));
    }
}
