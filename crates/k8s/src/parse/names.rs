//! The rules for names (Kubernetes: "Object Names and IDs"; RFC 1123, RFC 1035, RFC 6335).

/// A rule that a name is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label.
    LetterFirst,
    /// Service name of RFC 6335, for ports.
    PortName,
    /// A label's value.
    LabelValue,
}

impl Rule {
    /// Whether the name obeys it.
    pub fn accepts(self, name: &str) -> bool {
        match self {
            Self::Subdomain => (1..=253).contains(&name.len()) && name.split('.').all(label_of_any_length),
            Self::Label => name.len() <= 63 && label_of_any_length(name),
            Self::LetterFirst => Self::Label.accepts(name) && name.starts_with(|c: char| c.is_ascii_lowercase()),
            Self::PortName => {
                (1..=15).contains(&name.len())
                    && label_of_any_length(name)
                    && name.contains(|c: char| c.is_ascii_lowercase())
                    && !name.contains("--")
            }
            Self::LabelValue => {
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                let end = |c: char| c.is_ascii_alphanumeric();
                name.is_empty()
                    || name.len() <= 63 && name.bytes().all(legal) && name.starts_with(end) && name.ends_with(end)
            }
        }
    }

    /// What it accepts, in words.
    pub fn accepted(self) -> &'static str {
        match self {
            Self::Subdomain => {
                "up to 253 of a-z, 0-9, '-' and '.' are accepted, with a letter or digit at both ends of every part"
            }
            Self::Label => "up to 63 of a-z, 0-9 and '-' are accepted, with a letter or digit at both ends",
            Self::LetterFirst => {
                "up to 63 of a-z, 0-9 and '-' are accepted, with a letter first and a letter or digit last"
            }
            Self::PortName => {
                "up to 15 of a-z, 0-9 and single '-' are accepted, with a letter or digit at both ends and a letter \
                 among them"
            }
            Self::LabelValue => {
                "up to 63 of letters, digits, '-', '_' and '.' are accepted, with a letter or digit at both ends"
            }
        }
    }
}

fn label_of_any_length(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(alphanumeric) && text.ends_with(alphanumeric) && text.chars().all(|c| alphanumeric(c) || c == '-')
}

/// Of the accepted words the one that was probably meant.
pub(super) fn nearest<'a>(word: &str, accepted: &[&'a str]) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    accepted
        .iter()
        .map(|one| (distance(&lower, &one.to_ascii_lowercase()), *one))
        .min()
        .filter(|(distance, one)| *distance <= 1 + one.len() / 4)
        .map(|(_, one)| one)
}

/// Edit distance, for short words; long ones are never near.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = usize::from(from != *to);
            let next = (diagonal + cost).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, next);
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_obey_their_rules() {
        for (rule, good, bad) in [
            (Rule::Subdomain, vec!["a", "a.b-c.9"], vec!["", ".", "a..b", "-a", "a-", "A", "a_b", "ä"]),
            (Rule::Label, vec!["a", "9-z"], vec!["", "a.b", "A", "-"]),
            (Rule::LetterFirst, vec!["a9"], vec!["9a", ""]),
            (Rule::PortName, vec!["http", "a-1"], vec!["", "80", "a--b", "http-", "a-name-too-long-", "HTTP"]),
            (Rule::LabelValue, vec!["", "V1.2_x"], vec!["-a", "a ", "a/b"]),
        ] {
            good.iter().for_each(|name| assert!(rule.accepts(name), "{rule:?} {name:?}"));
            bad.iter().for_each(|name| assert!(!rule.accepts(name), "{rule:?} {name:?}"));
        }
        assert!(!Rule::Label.accepts(&"a".repeat(64)) && Rule::Subdomain.accepts(&"a".repeat(253)));
    }

    #[test]
    fn the_nearest_word_is_offered_only_when_it_is_near() {
        assert_eq!(nearest("namspaces", &["namespaces", "principals"]), Some("namespaces"));
        assert_eq!(nearest("Selector", &["selector", "rules"]), Some("selector"));
        assert_eq!(nearest("banana", &["selector", "rules"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
