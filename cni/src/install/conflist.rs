//! CNI configuration as text in, text out: our entry put in, kept current, taken out. Pure.
//!
//! Other entries keep their order and every key and value.

use serde_json::{Map, Value, json};

use super::Entry;

/// Type and name of our entry, and name of the plugin's binary.
pub const PLUGIN: &str = "stillmesh-cni";
/// Type of the entry of Istio's plugin.
const ISTIO: &str = "istio-cni";
/// Name of a list that is made of a single configuration without a name.
const DEFAULT_NAME: &str = "k8s-pod-network";

/// Why a text cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is no JSON object.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// It configures no plugin.
    #[error("it configures no plugin")]
    Empty,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflist {
    list: Map<String, Value>,
    /// Whether the file held a single configuration, not a list.
    pub single: bool,
}

impl Conflist {
    /// Reads a list of plugins, or one plugin's configuration as a list of one.
    pub fn read(text: &str) -> Result<Self, Unusable> {
        let value: Value = serde_json::from_str(text).map_err(|error| Unusable::Json(error.to_string()))?;
        let Value::Object(object) = value else { return Err(Unusable::Json("not an object".to_owned())) };
        let single = !object.contains_key("plugins");
        let list = if single { listed(object)? } else { object };
        let read = Self { list, single };
        if read.plugins().is_empty() { Err(Unusable::Empty) } else { Ok(read) }
    }

    /// Puts our entry last, in the place of any that is there. Whether anything is different now.
    pub fn insert(&mut self, entry: &Entry) -> bool {
        let ours = entry.json();
        let last_is_ours = self.plugins().last() == Some(&ours);
        let count = self.plugins().iter().filter(|plugin| is(plugin, PLUGIN)).count();
        if last_is_ours && count == 1 {
            return false;
        }
        self.retain_others();
        if let Some(Value::Array(plugins)) = self.list.get_mut("plugins") {
            plugins.push(ours);
        }
        true
    }

    /// Takes our entry out. Whether it was there.
    pub fn remove(&mut self) -> bool {
        let before = self.plugins().len();
        self.retain_others();
        self.plugins().len() != before
    }

    /// Whether our entry is there.
    pub fn has_ours(&self) -> bool {
        self.plugins().iter().any(|plugin| is(plugin, PLUGIN))
    }

    /// Whether the entry of Istio's plugin is there.
    pub fn has_istio(&self) -> bool {
        self.plugins().iter().any(|plugin| is(plugin, ISTIO))
    }

    /// The file's text.
    pub fn text(&self) -> String {
        // Plain JSON always serializes.
        let mut text = serde_json::to_string_pretty(&self.list).unwrap_or_default();
        text.push('\n');
        text
    }

    fn plugins(&self) -> &[Value] {
        self.list.get("plugins").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn retain_others(&mut self) {
        if let Some(Value::Array(plugins)) = self.list.get_mut("plugins") {
            plugins.retain(|plugin| !is(plugin, PLUGIN));
        }
    }
}

fn is(plugin: &Value, kind: &str) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(kind)
}

/// A single configuration as a list: name and version are the list's.
fn listed(mut plugin: Map<String, Value>) -> Result<Map<String, Value>, Unusable> {
    if plugin.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Unusable::Empty);
    }
    let name = plugin.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAME);
    let mut list = Map::from_iter([("name".to_owned(), json!(name))]);
    if let Some(version) = plugin.remove("cniVersion") {
        list.insert("cniVersion".to_owned(), version);
    }
    list.insert("plugins".to_owned(), json!([plugin]));
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "disableCheck": true, "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}]], "z": 1.5, "a": null}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn entry() -> Entry {
        Entry {
            log_level: "info".into(),
            run_dir: "/var/run/stillmesh-cni".into(),
            state_dir: "/var/lib/stillmesh-cni".into(),
            exclude_namespaces: ["kube-system".to_owned()].into(),
            pod_namespace: "stillmesh-system".into(),
        }
    }

    #[test]
    fn our_entry_is_the_last_and_the_others_are_as_before() {
        let before: Value = serde_json::from_str(LIST).unwrap();
        let mut list = Conflist::read(LIST).unwrap();
        assert!(list.insert(&entry()) && !list.insert(&entry()));
        let after: Value = serde_json::from_str(&list.text()).unwrap();
        assert_eq!(after["plugins"].as_array().unwrap()[..2], before["plugins"].as_array().unwrap()[..]);
        assert_eq!(
            after["plugins"][2],
            json!({
                "type": "stillmesh-cni", "name": "stillmesh-cni", "plugin_log_level": "info",
                "cni_agent_run_dir": "/var/run/stillmesh-cni", "state_dir": "/var/lib/stillmesh-cni",
                "exclude_namespaces": ["kube-system"], "pod_namespace": "stillmesh-system",
            })
        );
        assert_eq!((&after["name"], &after["disableCheck"]), (&json!("net"), &json!(true)));
        let mut again = Conflist::read(&list.text()).unwrap();
        assert!(!again.insert(&entry()) && again.remove() && !again.remove());
        assert_eq!(serde_json::from_str::<Value>(&again.text()).unwrap(), before);
    }

    #[test]
    fn an_entry_that_is_not_last_or_not_current_or_there_twice_is_put_right() {
        let mut list = Conflist::read(LIST).unwrap();
        list.insert(&entry());
        let right = list.text();
        let value: Value = serde_json::from_str(&right).unwrap();
        let (bridge, portmap, ours) = (&value["plugins"][0], &value["plugins"][1], &value["plugins"][2]);
        let mut old = ours.clone();
        old["pod_namespace"] = json!("elsewhere");
        for plugins in
            [json!([bridge, ours, portmap]), json!([bridge, portmap, old]), json!([ours, bridge, portmap, ours])]
        {
            let mut wrong = value.clone();
            wrong["plugins"] = plugins;
            let mut list = Conflist::read(&wrong.to_string()).unwrap();
            assert!(list.insert(&entry()));
            assert_eq!(list.text(), right);
        }
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let list = Conflist::read(r#"{"cniVersion": "0.4.0", "name": "p", "type": "ptp", "mtu": 1400}"#).unwrap();
        assert!(list.single);
        assert_eq!(
            serde_json::from_str::<Value>(&list.text()).unwrap(),
            json!({"cniVersion": "0.4.0", "name": "p", "plugins": [{"name": "p", "type": "ptp", "mtu": 1400}]})
        );
        let unnamed = Conflist::read(r#"{"type": "ptp"}"#).unwrap();
        assert!(unnamed.text().contains("k8s-pod-network"));
    }

    #[test]
    fn what_a_runtime_would_not_take_is_not_taken() {
        for text in ["", "{", "[]", "{}", r#"{"name": "x"}"#, r#"{"name": "x", "plugins": []}"#, r#"{"plugins": 1}"#] {
            assert!(Conflist::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn istios_entry_is_seen() {
        assert!(!Conflist::read(LIST).unwrap().has_istio());
        let list = r#"{"name": "x", "plugins": [{"type": "ptp"}, {"type": "istio-cni"}]}"#;
        assert!(Conflist::read(list).unwrap().has_istio());
    }
}
