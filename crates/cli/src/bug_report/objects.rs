//! Objects on their way into the archive: read page by page, kept as text by file, one kind at a time and within bounds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::archive::{Archive, FILE, Keep};
use crate::cluster::objects::Pages;

/// All texts of a kind together, bytes.
const KIND: usize = 4 * FILE;

/// The objects of a kind, on their way here.
pub(super) enum Reading {
    /// All at once, from a mesh on this machine.
    Whole(Option<Vec<Value>>),
    /// Page by page, from each of these lists.
    Paged(Vec<Pages>),
}

impl Reading {
    /// The next objects; `None` where all have been.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Vec<Value>>> {
        let lists = match self {
            Self::Whole(all) => return Ok(all.take()),
            Self::Paged(lists) => lists,
        };
        while let Some(list) = lists.first_mut() {
            if let Some(page) = list.next().await? {
                return Ok(Some(page));
            }
            lists.remove(0);
        }
        Ok(None)
    }
}

/// The files of a kind, by path: each a list in YAML.
#[derive(Debug, Default)]
pub(super) struct Files {
    texts: BTreeMap<String, String>,
    bytes: usize,
    left_out: usize,
    /// Of which files something was left out.
    cut: BTreeSet<String>,
}

impl Files {
    /// Adds an object to a file, as a list of itself; one for which there is no room is counted.
    pub(super) fn add(&mut self, path: String, text: &str) {
        let before = self.texts.get(&path).map_or(0, String::len);
        if before + text.len() > FILE || self.bytes + text.len() > KIND {
            self.left_out += 1;
            self.cut.insert(path);
            return;
        }
        self.bytes += text.len();
        let file = self.texts.entry(path).or_default();
        file.push_str(text);
        if !file.ends_with('\n') {
            file.push('\n');
        }
    }

    /// Packs them. Says what was left out, if anything.
    pub(super) fn pack(self, kind: &str, archive: &mut Archive) -> std::io::Result<Vec<String>> {
        let mut missing = Vec::new();
        if self.left_out > 0 {
            let files: Vec<&str> = self.cut.iter().take(5).map(String::as_str).collect();
            missing.push(format!(
                "{} objects of kind {kind}, for which there is no room ({}): {} MiB are kept of a file, {} MiB of a kind; --include names \
                 fewer namespaces",
                self.left_out,
                files.join(", "),
                FILE >> 20,
                KIND >> 20
            ));
        }
        for (path, text) in self.texts {
            let cut = archive.add(&path, text, Keep::Head)?;
            missing.extend(cut.map(|cut| format!("{path}: {cut}")));
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted_and_the_rest_stays_whole() {
        let mut files = Files::default();
        let text = |bytes: usize| format!("- a: {}\n", "x".repeat(bytes - 6));
        files.add("objects/a/Pod.yaml".to_owned(), &text(FILE - 6));
        files.add("objects/a/Pod.yaml".to_owned(), &text(7));
        files.add("objects/a/Pod.yaml".to_owned(), "- b\n");
        for namespace in ["b", "c", "d"] {
            files.add(format!("objects/{namespace}/Pod.yaml"), &text(FILE));
        }
        files.add("objects/e/Pod.yaml".to_owned(), &text(7));
        assert!(files.bytes <= KIND && files.texts["objects/a/Pod.yaml"].ends_with("x\n- b\n"));
        let mut archive = Archive::new(1);
        let missing = files.pack("Pod", &mut archive).unwrap();
        let said = "2 objects of kind Pod, for which there is no room (objects/a/Pod.yaml, objects/e/Pod.yaml)";
        assert_eq!(missing.len(), 1);
        assert!(missing[0].starts_with(said), "{missing:?}");
        assert_eq!(archive.finish().unwrap().files, 4);
    }
}
