//! Indexes by label, so that selecting costs what is selected and not everything there is.

use std::collections::{BTreeSet, HashMap};

use stillmesh_core::model::Str;
use stillmesh_k8s::labels::Labels;

use super::world::Name;

/// Names of objects by namespace and label.
#[derive(Debug, Default)]
pub(super) struct Labelled(HashMap<Str, HashMap<String, HashMap<String, BTreeSet<Str>>>>);

impl Labelled {
    fn add(&mut self, name: &Name, key: &str, value: &str) {
        let values = self.0.entry(name.0.clone()).or_default().entry(key.to_owned()).or_default();
        values.entry(value.to_owned()).or_default().insert(name.1.clone());
    }

    fn take(&mut self, name: &Name, key: &str, value: &str) {
        let Some(keys) = self.0.get_mut(&name.0) else { return };
        let Some(values) = keys.get_mut(key) else { return };
        if let Some(names) = values.get_mut(value) {
            names.remove(&name.1);
            if names.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            keys.remove(key);
        }
        if keys.is_empty() {
            self.0.remove(&name.0);
        }
    }

    fn get(&self, namespace: &str, key: &str, value: &str) -> Option<&BTreeSet<Str>> {
        self.0.get(namespace)?.get(key)?.get(value)
    }
}

/// Objects that have labels.
#[derive(Debug, Default)]
pub(super) struct Having(Labelled);

impl Having {
    /// An object's labels have changed.
    pub fn replace(&mut self, name: &Name, old: Option<&Labels>, new: Option<&Labels>) {
        if old == new {
            return;
        }
        old.into_iter().flatten().for_each(|(key, value)| self.0.take(name, key, value));
        new.into_iter().flatten().for_each(|(key, value)| self.0.add(name, key, value));
    }

    /// The objects of a namespace that may have all of these labels: those with the rarest of them. `None` where
    /// nothing is wanted, which every object has.
    pub fn candidates(&self, namespace: &str, wanted: &Labels) -> Option<impl Iterator<Item = &Str>> {
        if wanted.is_empty() {
            return None;
        }
        let sets = wanted.iter().map(|(key, value)| self.0.get(namespace, key, value));
        // An absent set is the smallest one.
        let rarest = sets.min_by_key(|set| set.map_or(0, BTreeSet::len)).flatten();
        Some(rarest.into_iter().flatten())
    }
}

/// Objects that ask for labels. Each is found by the first of them; one that asks for nothing always.
#[derive(Debug, Default)]
pub(super) struct Asking(Labelled);

impl Asking {
    /// What an object asks for has changed; `None` asks nobody.
    pub fn replace(&mut self, name: &Name, old: Option<&Labels>, new: Option<&Labels>) {
        if old == new {
            return;
        }
        if let Some((key, value)) = old.map(first) {
            self.0.take(name, key, value);
        }
        if let Some((key, value)) = new.map(first) {
            self.0.add(name, key, value);
        }
    }

    /// The objects of a namespace that may ask for an object with these labels.
    pub fn candidates(&self, namespace: &str, labels: &Labels) -> impl Iterator<Item = &Str> {
        let pairs = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        pairs.chain([("", "")]).filter_map(|(key, value)| self.0.get(namespace, key, value)).flatten()
    }
}

fn first(wanted: &Labels) -> (&str, &str) {
    wanted.first_key_value().map_or(("", ""), |(key, value)| (key, value))
}
