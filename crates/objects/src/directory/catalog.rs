//! Which file holds which object. Pure: told what each file holds, it answers with what changed for the outside.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use indexmap::IndexMap;
use stillmesh_k8s::{Finding, ObjectKey, Placed, Position, Severity};

use crate::Change;

/// What changed for the outside; at most one entry per object.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub changes: IndexMap<ObjectKey, Change>,
    pub moved: IndexMap<ObjectKey, Position>,
}

impl Difference {
    /// Adds what happened later.
    pub fn merge(&mut self, later: Difference) {
        for (key, change) in later.changes {
            self.moved.shift_remove(&key);
            self.changes.insert(key, change);
        }
        for (key, at) in later.moved {
            match self.changes.get_mut(&key) {
                Some(Change::Set(placed)) => placed.at = at,
                _ => {
                    self.moved.insert(key, at);
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.moved.is_empty()
    }
}

/// The objects of all files. Of several objects with one key the one that came first stays.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    files: BTreeMap<Arc<str>, File>,
    /// The files that hold an object of a key, in order of arrival.
    claims: HashMap<ObjectKey, Vec<Arc<str>>>,
    contested: BTreeSet<ObjectKey>,
}

#[derive(Debug, Default)]
struct File {
    objects: IndexMap<ObjectKey, Placed>,
    findings: Vec<Finding>,
}

impl Catalog {
    /// What a file holds from now on.
    pub fn set(&mut self, file: &Arc<str>, objects: Vec<Placed>, mut findings: Vec<Finding>) -> Difference {
        let mut held: IndexMap<ObjectKey, Placed> = IndexMap::with_capacity(objects.len());
        for placed in objects {
            let key = placed.object.key();
            match held.get(&key) {
                Some(first) => findings.push(duplicate(&key, &placed.at, &first.at)),
                None => {
                    held.insert(key, placed);
                }
            }
        }
        let before = std::mem::take(&mut self.files.entry(file.clone()).or_default().objects);
        let mut difference = Difference::default();
        for key in before.keys().filter(|key| !held.contains_key(*key)) {
            self.unclaim(key, file, &mut difference);
        }
        for (key, placed) in &held {
            let claims = self.claims.entry(key.clone()).or_default();
            if !claims.contains(file) {
                claims.push(file.clone());
            }
            if claims.len() > 1 {
                self.contested.insert(key.clone());
            }
            if claims.first() != Some(file) {
                continue;
            }
            match before.get(key) {
                Some(old) if old.object == placed.object => {
                    if old.at != placed.at {
                        difference.moved.insert(key.clone(), placed.at.clone());
                    }
                }
                _ => {
                    difference.changes.insert(key.clone(), Change::Set(placed.clone()));
                }
            }
        }
        self.files.insert(file.clone(), File { objects: held, findings });
        difference
    }

    /// A file is gone.
    pub fn remove(&mut self, file: &Arc<str>) -> Difference {
        let mut difference = Difference::default();
        if let Some(gone) = self.files.remove(file) {
            for key in gone.objects.keys() {
                self.unclaim(key, file, &mut difference);
            }
        }
        difference
    }

    /// The objects of a file.
    pub fn objects<'a>(&'a self, file: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Placed)> {
        self.files.get(file).into_iter().flat_map(|file| file.objects.iter())
    }

    /// The files that hold an object of this key.
    pub fn holders(&self, key: &ObjectKey) -> &[Arc<str>] {
        self.claims.get(key).map_or(&[], Vec::as_slice)
    }

    /// Everything that is wrong now, in order of place.
    pub fn findings(&self) -> Vec<Finding> {
        let mut all: Vec<Finding> = self.files.values().flat_map(|file| file.findings.iter().cloned()).collect();
        for key in &self.contested {
            let mut places =
                self.holders(key).iter().filter_map(|file| Some(&self.files.get(file)?.objects.get(key)?.at));
            if let Some(first) = places.next() {
                all.extend(places.map(|place| duplicate(key, place, first)));
            }
        }
        all.sort();
        all
    }

    fn unclaim(&mut self, key: &ObjectKey, file: &Arc<str>, difference: &mut Difference) {
        let Some(claims) = self.claims.get_mut(key) else { return };
        let held = claims.first() == Some(file);
        claims.retain(|one| one != file);
        if claims.len() < 2 {
            self.contested.remove(key);
        }
        let heir = claims.first().and_then(|heir| self.files.get(heir)).and_then(|heir| heir.objects.get(key)).cloned();
        if claims.is_empty() {
            self.claims.remove(key);
        }
        if held {
            let change = heir.map_or_else(|| Change::Removed(key.clone()), Change::Set);
            difference.changes.insert(key.clone(), change);
        }
    }
}

fn duplicate(key: &ObjectKey, at: &Position, first: &Position) -> Finding {
    Finding {
        at: at.clone(),
        severity: Severity::Error,
        code: "MAN010",
        object: key.to_string(),
        path: String::new(),
        message: format!("this object is already at {first}"),
        hint: "the one there stays; rename or delete one of them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn service(name: &str, port: u16, file: &str, line: u32) -> Placed {
        let text =
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n");
        let mut placed = stillmesh_k8s::parse::documents(file, &text).objects.remove(0);
        placed.at.line = line;
        placed
    }

    fn told(difference: &Difference) -> Vec<String> {
        let changes = difference.changes.values().map(|change| match change {
            Change::Set(placed) => format!("set {} {}", placed.object.key(), placed.at),
            Change::Removed(key) => format!("removed {key}"),
        });
        changes.chain(difference.moved.iter().map(|(key, at)| format!("moved {key} {at}"))).collect()
    }

    #[test]
    fn one_edited_object_is_one_change_and_lines_that_shift_are_none() {
        let mut catalog = Catalog::default();
        let file: Arc<str> = "a.yaml".into();
        catalog.set(&file, vec![service("a", 80, "a.yaml", 1), service("b", 80, "a.yaml", 9)], vec![]);
        let edited = catalog.set(&file, vec![service("a", 81, "a.yaml", 1), service("b", 80, "a.yaml", 11)], vec![]);
        assert_eq!(told(&edited), ["set Service default/a a.yaml:1:1", "moved Service default/b a.yaml:11:1"]);
    }

    #[test]
    fn of_two_objects_with_one_name_the_first_stays_and_the_error_names_both_places() {
        let mut catalog = Catalog::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a.yaml".into(), "b.yaml".into());
        catalog.set(&a, vec![service("x", 80, "a.yaml", 1)], vec![]);
        assert_eq!(told(&catalog.set(&b, vec![service("x", 90, "b.yaml", 5)], vec![])), [""; 0]);
        let findings: Vec<String> = catalog.findings().iter().map(ToString::to_string).collect();
        assert_eq!(
            findings,
            [
                "b.yaml:5:1: Service default/x: this object is already at a.yaml:1:1; the one there stays; rename or delete one of them"
            ]
        );
        assert_eq!(told(&catalog.remove(&a)), ["set Service default/x b.yaml:5:1"]);
        assert_eq!(catalog.findings(), []);
        assert_eq!(told(&catalog.remove(&b)), ["removed Service default/x"]);
    }

    #[test]
    fn twice_in_one_file_is_told_too() {
        let mut catalog = Catalog::default();
        let both = vec![service("x", 80, "a.yaml", 1), service("x", 90, "a.yaml", 7)];
        assert_eq!(told(&catalog.set(&"a.yaml".into(), both, vec![])), ["set Service default/x a.yaml:1:1"]);
        assert_eq!(catalog.findings()[0].at.line, 7);
    }

    proptest! {
        #[test]
        fn changes_add_up_to_what_the_files_hold(
            steps in proptest::collection::vec((0..3_u8, proptest::collection::btree_map(0..3_u8, 1..3_u16, 0..3)), 0..20)
        ) {
            let mut catalog = Catalog::default();
            let mut outside: BTreeMap<ObjectKey, Placed> = BTreeMap::new();
            for (file, content) in steps {
                let name: Arc<str> = format!("{file}.yaml").into();
                let objects: Vec<Placed> =
                    content.iter().map(|(name_of, port)| service(&format!("s{name_of}"), *port, &name, 1)).collect();
                let difference = if objects.is_empty() { catalog.remove(&name) } else { catalog.set(&name, objects, vec![]) };
                for change in difference.changes.into_values() {
                    match change {
                        Change::Set(placed) => { outside.insert(placed.object.key(), placed); }
                        Change::Removed(key) => { prop_assert!(outside.remove(&key).is_some()); }
                    }
                }
                let held: BTreeMap<ObjectKey, Placed> = catalog
                    .claims
                    .iter()
                    .map(|(key, claims)| (key.clone(), catalog.files[&claims[0]].objects[key].clone()))
                    .collect();
                prop_assert_eq!(&outside, &held);
                let contested: BTreeSet<ObjectKey> =
                    catalog.claims.iter().filter(|(_, claims)| claims.len() > 1).map(|(key, _)| key.clone()).collect();
                prop_assert_eq!(&catalog.contested, &contested);
            }
        }
    }
}
