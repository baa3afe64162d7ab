//! What of a path is the same for many requests.

/// Most parts of a path that are kept; what follows is `…`.
const PARTS: usize = 8;
/// Longer parts are no words.
const LONGEST_WORD: usize = 40;
/// Parts of so many characters that have a digit are no words.
const LONG_TOKEN: usize = 20;
/// Hexadecimal parts of so many characters that have a digit are ids.
const HEX: usize = 8;

/// The template of a path: of its parts between slashes, those that are ids or tokens become `{id}`. Such are: digits alone; a
/// UUID; eight or more hexadecimal characters with a digit among them; twenty or more characters with a digit among them; more
/// than forty; and what has an `@`. Eight parts are kept. An empty path stays empty.
pub fn template(path: &str) -> String {
    let mut whole = String::with_capacity(path.len());
    write(&mut whole, path);
    whole
}

/// Adds the template of a path to a text.
pub(super) fn write(whole: &mut String, path: &str) {
    for (number, part) in path.split('/').enumerate() {
        if number > 0 {
            whole.push('/');
        }
        if number > PARTS {
            whole.push('…');
            break;
        }
        whole.push_str(if is_id(part) { "{id}" } else { part });
    }
}

fn is_id(part: &str) -> bool {
    if part.len() > LONGEST_WORD {
        return true;
    }
    let (mut has_digit, mut has_at, mut is_number, mut is_hex) = (false, false, true, true);
    for byte in part.bytes() {
        let is_digit = byte.is_ascii_digit();
        has_digit |= is_digit;
        has_at |= byte == b'@';
        is_number &= is_digit;
        is_hex &= byte.is_ascii_hexdigit() || byte == b'-';
    }
    has_at || (has_digit && (is_number || part.len() >= LONG_TOKEN || (is_hex && part.len() >= HEX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_tokens_are_one_and_words_stay() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("/items/42", "/items/{id}"),
            ("/v1/items/0123abcd/price", "/v1/items/{id}/price"),
            ("/u/me@example.org", "/u/{id}"),
            ("/o/123e4567-e89b-12d3-a456-426614174000", "/o/{id}"),
            ("/t/eyJhbGciOiJIUzI1NiJ9abc/x", "/t/{id}/x"),
            ("/decade/facade", "/decade/facade"),
            ("/api/v2.1/list-of-things", "/api/v2.1/list-of-things"),
            ("/a/b/c/d/e/f/g/h/i/j", "/a/b/c/d/e/f/g/h/…"),
        ] {
            assert_eq!(template(path), expected, "{path}");
        }
        assert_eq!(template(&format!("/{}", "a".repeat(41))), "/{id}");
    }
}
