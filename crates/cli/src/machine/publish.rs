//! The cluster directory: every object as JSON, one file each, put in place by renaming. What the controller, the agents
//! and the cluster DNS read; also what `get` shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use stillmesh_k8s::{Kind, Object, ObjectKey};
use twox_hash::XxHash64;

/// Longest name of a file without its ending, in bytes; with a dot before and the ending after it, file systems take it.
const LONGEST: usize = 240;

/// Writes the difference between what was published and what is to be.
#[derive(Debug)]
pub struct Publisher {
    directory: PathBuf,
    published: BTreeMap<ObjectKey, String>,
}

impl Publisher {
    /// Publishes into an empty directory.
    pub fn new(directory: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned(), published: BTreeMap::new() })
    }

    /// Makes these the published objects. Secrets stay where they are. What fails for one object holds up no other; the
    /// error is the first failure.
    pub fn publish(&mut self, objects: &BTreeMap<ObjectKey, Object>) -> anyhow::Result<bool> {
        let (mut changed, mut failed) = (false, None);
        // What pods are judged by comes before them.
        let of = |pods: bool| objects.iter().filter(move |(key, _)| (key.kind == Kind::Pod) == pods);
        for (key, object) in of(false).chain(of(true)).filter(|(key, _)| key.kind != Kind::Secret) {
            match self.write(key, object) {
                Ok(written) => changed |= written,
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        let gone: Vec<ObjectKey> = self.published.keys().filter(|key| !objects.contains_key(key)).cloned().collect();
        for key in gone {
            changed = true;
            let file = self.directory.join(file_name(&key));
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let error = anyhow::Error::new(error).context(format!("removing {}", file.display()));
                    let _ = failed.get_or_insert(error);
                }
                _ => drop(self.published.remove(&key)),
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    fn write(&mut self, key: &ObjectKey, object: &Object) -> anyhow::Result<bool> {
        let text = serde_json::to_string(object).with_context(|| format!("writing {key}"))?;
        if self.published.get(key) == Some(&text) {
            return Ok(false);
        }
        let name = file_name(key);
        let part = self.directory.join(format!(".{name}"));
        std::fs::write(&part, &text).with_context(|| format!("writing {}", part.display()))?;
        let file = self.directory.join(name);
        std::fs::rename(&part, &file).with_context(|| format!("writing {}", file.display()))?;
        self.published.insert(key.clone(), text);
        Ok(true)
    }

    /// The published objects of a kind, of one namespace or all.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Value> {
        self.published
            .iter()
            .filter(|(key, _)| key.kind == kind && namespace.is_none_or(|wanted| *key.namespace == *wanted))
            .filter_map(|(_, text)| serde_json::from_str(text).ok())
            .collect()
    }
}

/// Names are checked when objects are read: none has a slash. What is too long for a file's name ends in a digest.
fn file_name(key: &ObjectKey) -> String {
    let whole = format!("{}.{}.{}", key.kind, key.namespace, key.name);
    if whole.len() <= LONGEST {
        return format!("{whole}.json");
    }
    let digest = XxHash64::oneshot(0, whole.as_bytes());
    let begin: String = whole.chars().take(LONGEST - 17).collect();
    format!("{begin}.{digest:016x}.json")
}

/// Whether a file is one of this directory's, by its name: findings about those are the machine's own affair.
pub fn is_published(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    let kind = name.split('.').next().unwrap_or_default();
    file.ends_with(".json") && Kind::named(kind).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, value: &str) -> (ObjectKey, Object) {
        let map: k8s_openapi::api::core::v1::ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"}, "data": {"v": value}}))
                .unwrap();
        let object = Object::from(map);
        (object.key(), object)
    }

    #[test]
    fn names_as_long_as_kubernetes_allows_are_published() {
        let directory = tempfile::tempdir().unwrap();
        let mut publisher = Publisher::new(directory.path()).unwrap();
        let long = |end: &str| object(&format!("{}{end}", "a".repeat(252)), "1");
        assert!(publisher.publish(&BTreeMap::from([long("a"), long("b")])).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(
            std::fs::read_dir(directory.path())
                .unwrap()
                .all(|one| is_published(one.unwrap().file_name().to_str().unwrap()))
        );
    }

    #[test]
    fn only_what_changed_is_written_and_what_is_gone_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut publisher = Publisher::new(directory.path()).unwrap();
        let mut objects = BTreeMap::from([object("a", "1"), object("b", "1")]);
        assert!(publisher.publish(&objects).unwrap());
        assert!(!publisher.publish(&objects).unwrap());
        let inode = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(directory.path().join(name)).unwrap().ino()
        };
        let (a, b) = (inode("ConfigMap.n.a.json"), inode("ConfigMap.n.b.json"));
        objects.extend([object("b", "2")]);
        assert!(publisher.publish(&objects).unwrap());
        assert_eq!(inode("ConfigMap.n.a.json"), a);
        assert_ne!(inode("ConfigMap.n.b.json"), b);
        objects.remove(&object("a", "").0);
        assert!(publisher.publish(&objects).unwrap());
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(left, ["ConfigMap.n.b.json"]);
        assert_eq!(publisher.list(Kind::ConfigMap, Some("n"))[0]["data"]["v"], "2");
    }

    #[test]
    fn files_of_its_own_are_known_wherever_they_are() {
        assert!(is_published("/run/x/objects/DestinationRule.shop.odd.json") && is_published("Pod.shop.web.json"));
        assert!(!is_published("/home/me/shop.yaml") && !is_published("/home/me/Pod.shop.web.yaml"));
    }
}
