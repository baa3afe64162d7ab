//! Splitting a text into documents, so that a bad one does not spoil the others, and guessing what a document that
//! cannot be read was about.

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub text: &'a str,
    /// Lines of the text before it.
    pub lines_before: u32,
}

/// The documents of a text: what is between lines that start with `---` or are `...` (YAML 1.2, section 9.1.2: such
/// a line is never inside a document). Documents with nothing but comments are left out.
pub(super) fn documents(text: &str) -> Vec<Part<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut first_line, mut offset, mut line) = (0, 0_u32, 0, 0_u32);
    for one in text.split_inclusive('\n') {
        if marks(one, "---") || marks(one, "...") {
            parts.push((start, offset, first_line));
            (start, first_line) = (offset, line);
        }
        offset += one.len();
        line = line.saturating_add(1);
    }
    parts.push((start, offset, first_line));
    parts
        .into_iter()
        .filter_map(|(start, end, lines_before)| Some(Part { text: text.get(start..end)?, lines_before }))
        .filter(|part| part.text.lines().any(says_something))
        .collect()
}

fn marks(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn says_something(line: &str) -> bool {
    let line = ["---", "..."].iter().find(|marker| marks(line, marker)).map_or(line, |_| line.get(3..).unwrap_or(""));
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
}

/// What an unreadable document seems to be: `kind namespace/name` as far as lines tell. Only for messages.
pub(super) fn guess(text: &str) -> String {
    let mut kind = "";
    let (mut namespace, mut name) = ("", "");
    let mut in_metadata = false;
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.split(" #").next().unwrap_or("").trim().trim_matches(['"', '\'', ',']);
        match (indented, key.trim().trim_matches('"')) {
            (false, "kind") => kind = value,
            (false, key) => in_metadata = key == "metadata",
            (true, "name") if in_metadata && name.is_empty() => name = value,
            (true, "namespace") if in_metadata && namespace.is_empty() => namespace = value,
            _ => {}
        }
    }
    let named = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !named(name) || !named(kind) {
        let kind = if named(kind) { kind } else { "" };
        return kind.to_owned();
    }
    match crate::object::Kind::named(kind) {
        Some(kind) => {
            let namespace = if namespace.is_empty() { crate::object::DEFAULT_NAMESPACE } else { namespace };
            crate::object::ObjectKey::new(kind, namespace, name).to_string()
        }
        None => format!("{kind} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines_and_empty_ones_are_left_out() {
        let text = "# head\n---\na: 1\n--- # next\nb: |\n  --- inside\n  ...\n...\n---\n# nothing\n---\nc: 3";
        let found: Vec<(u32, &str)> = documents(text).iter().map(|part| (part.lines_before, part.text)).collect();
        assert_eq!(found, [(1, "---\na: 1\n"), (3, "--- # next\nb: |\n  --- inside\n  ...\n"), (10, "---\nc: 3")]);
    }

    #[test]
    fn a_document_may_start_on_the_marker_line_and_with_a_byte_order_mark() {
        assert_eq!(documents("\u{feff}--- {a: 1}\n---\n").len(), 1);
        assert_eq!(documents("").len(), 0);
        assert_eq!(documents("---x: 1\n").len(), 1);
    }

    #[test]
    fn broken_documents_are_named_as_far_as_their_lines_tell() {
        assert_eq!(guess("kind: Service\nmetadata:\n  name: page # x\nspec: [\n"), "Service default/page");
        assert_eq!(guess("kind: Pod\nmetadata:\n  name: a\n  namespace: shop\n{"), "Pod shop/a");
        assert_eq!(guess("kind: Widget\nmetadata:\n  name: a\n"), "Widget a");
        assert_eq!(guess("nothing"), "");
    }
}
