//! Versions, and how far apart the parts of a mesh may be. Pure.

use std::cmp::Ordering;
use std::fmt;

/// A version, `MAJOR.MINOR.PATCH[-PRE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    numbers: [u64; 3],
    pre: String,
}

impl Version {
    /// Reads a version; a leading `v` and build metadata are passed over.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let text = text.split('+').next().unwrap_or(text);
        let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
        let mut parts = numbers.split('.').map(str::parse::<u64>);
        let mut next = || parts.next()?.ok();
        let numbers = [next()?, next()?, next()?];
        parts.next().is_none().then(|| Self { numbers, pre: pre.to_owned() })
    }

    fn minor(&self) -> (u64, u64) {
        (self.numbers[0], self.numbers[1])
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        // A pre-release comes before what it leads to.
        let pre = |version: &Self| (version.pre.is_empty(), version.pre.clone());
        self.numbers.cmp(&other.numbers).then_with(|| pre(self).cmp(&pre(other)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if self.pre.is_empty() { Ok(()) } else { write!(f, "-{}", self.pre) }
    }
}

/// Whether parts of two versions may work together: at most one minor version apart.
pub(crate) fn compatible(a: &Version, b: &Version) -> bool {
    a.numbers[0] == b.numbers[0] && a.numbers[1].abs_diff(b.numbers[1]) <= 1
}

/// Why one version must not follow another; `None` where it may.
pub(crate) fn refused(from: &Version, to: &Version, force: bool) -> Option<String> {
    if !compatible(from, to) {
        let ((major, minor), (_, target)) = (from.minor(), to.minor());
        let way = if from.numbers[0] != to.numbers[0] {
            "the major versions differ".to_owned()
        } else if target > minor {
            format!("upgrade to {major}.{}.x first", minor + 1)
        } else {
            format!("go back to {major}.{}.x first", minor.saturating_sub(1))
        };
        return Some(format!("from {from} to {to} is more than one minor version: {way}"));
    }
    (to < from && !force).then(|| format!("{to} is older than {from}, which is installed; to go back, use --force"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_are_read_and_ordered() {
        let order = ["0.1.0-dev", "0.1.0", "0.1.2", "0.2.0-rc.1", "0.2.0", "0.10.0", "1.0.0"];
        for pair in order.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
        assert_eq!(version("v1.2.3+abc").to_string(), "1.2.3");
        for wrong in ["", "1", "1.2", "1.2.3.4", "a.b.c", "1.2.x"] {
            assert_eq!(Version::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn one_minor_version_forward_is_fine_and_two_are_not() {
        assert_eq!(refused(&version("0.1.9"), &version("0.2.0"), false), None);
        assert_eq!(refused(&version("0.2.0"), &version("0.2.0"), false), None);
        let far = refused(&version("0.1.0"), &version("0.3.0"), true).unwrap();
        assert!(far.contains("upgrade to 0.2.x first"), "{far}");
        assert!(refused(&version("0.9.0"), &version("1.0.0"), true).unwrap().contains("major"));
    }

    #[test]
    fn going_back_one_minor_version_needs_force() {
        assert!(refused(&version("0.2.0"), &version("0.1.0"), false).unwrap().contains("--force"));
        assert_eq!(refused(&version("0.2.0"), &version("0.1.0"), true), None);
        assert!(refused(&version("0.3.0"), &version("0.1.0"), true).unwrap().contains("go back to 0.2.x first"));
    }
}
