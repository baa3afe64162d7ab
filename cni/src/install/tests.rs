use serde_json::Value;

use super::*;

struct Node {
    /// Removed at the end.
    _directory: tempfile::TempDir,
    places: Places,
    installer: Installer,
}

const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

impl Node {
    fn new(own_conflist: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let places =
            Places { bin_dir: directory.path().join("bin"), conf_dir: directory.path().join("conf"), own_conflist };
        for path in [&places.bin_dir, &places.conf_dir] {
            fs::create_dir(path).unwrap();
        }
        fs::write(directory.path().join("program"), "new").unwrap();
        let entry = Entry {
            log_level: "info".into(),
            run_dir: "/run/x".into(),
            state_dir: "/lib/x".into(),
            exclude_namespaces: BTreeSet::new(),
            pod_namespace: "m".into(),
        };
        let installer = Installer::new(places.clone(), directory.path().join("program"), entry);
        Self { _directory: directory, places, installer }
    }

    fn install(&mut self) -> Result<Installed, InstallError> {
        self.installer.install()
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.places.conf_dir.join(name)
    }

    fn types(&self, name: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(&fs::read_to_string(self.conf(name)).unwrap()).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = [&self.places.conf_dir, &self.places.bin_dir]
            .into_iter()
            .flat_map(|path| fs::read_dir(path).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn the_first_valid_configuration_gets_our_entry_once() {
    let mut node = Node::new(false);
    fs::write(node.conf("05-broken.conflist"), "{").unwrap();
    fs::write(node.conf("10-net.conflist"), BRIDGE).unwrap();
    fs::write(node.conf("20-other.conflist"), BRIDGE).unwrap();
    fs::set_permissions(node.conf("10-net.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
    let installed = node.install().unwrap();
    assert_eq!(installed, Installed { binary: true, entry: Some(node.conf("10-net.conflist")) });
    assert_eq!(node.types("10-net.conflist"), ["bridge", PLUGIN]);
    assert_eq!(node.types("20-other.conflist"), ["bridge"]);
    assert_eq!(fs::metadata(node.conf("10-net.conflist")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(node.install().unwrap(), Installed::default());

    remove(&node.places).unwrap();
    assert_eq!(node.types("10-net.conflist"), ["bridge"]);
    assert_eq!(node.files(), ["05-broken.conflist", "10-net.conflist", "20-other.conflist"]);
}

#[test]
fn whatever_somebody_takes_away_comes_back() {
    let mut node = Node::new(false);
    fs::write(node.conf("10-net.conflist"), BRIDGE).unwrap();
    node.install().unwrap();
    let binary = node.places.bin_dir.join(PLUGIN);

    fs::remove_file(&binary).unwrap();
    assert_eq!(node.install().unwrap(), Installed { binary: true, entry: None });
    fs::write(&binary, "old").unwrap();
    assert!(node.install().unwrap().binary);
    assert_eq!(fs::read(&binary).unwrap(), b"new");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(node.install().unwrap().binary);
    // The primary CNI starts anew, and another one that sorts first comes.
    fs::write(node.conf("10-net.conflist"), BRIDGE).unwrap();
    assert_eq!(node.install().unwrap().entry, Some(node.conf("10-net.conflist")));
    fs::write(node.conf("00-first.conflist"), BRIDGE).unwrap();
    assert_eq!(node.install().unwrap().entry, Some(node.conf("00-first.conflist")));
    remove(&node.places).unwrap();
    assert_eq!(node.files(), ["00-first.conflist", "10-net.conflist"]);
    assert_eq!(node.types("10-net.conflist"), ["bridge"]);
}

#[test]
fn without_a_configuration_there_is_no_entry_but_the_binary_is_ready() {
    let mut node = Node::new(false);
    assert!(matches!(node.install(), Err(InstallError::NoConfiguration(_))));
    assert_eq!(node.files(), [PLUGIN]);
}

#[test]
fn a_single_configuration_becomes_a_list_and_comes_back_at_the_end() {
    let mut node = Node::new(false);
    let single = r#"{"cniVersion": "0.4.0", "name": "p", "type": "ptp"}"#;
    fs::write(node.conf("10-p.conf"), single).unwrap();
    assert_eq!(node.install().unwrap().entry, Some(node.conf("10-p.conflist")));
    assert_eq!(node.types("10-p.conflist"), ["ptp", PLUGIN]);
    assert!(!node.conf("10-p.conf").exists());
    assert_eq!(node.install().unwrap(), Installed::default());
    // The primary CNI writes its file again.
    fs::write(node.conf("10-p.conf"), single).unwrap();
    assert_eq!(node.install().unwrap().entry, Some(node.conf("10-p.conflist")));
    assert!(!node.conf("10-p.conf").exists());

    remove(&node.places).unwrap();
    assert_eq!(fs::read_to_string(node.conf("10-p.conf")).unwrap(), single);
    assert_eq!(node.files(), ["10-p.conf"]);
}

#[test]
fn a_list_of_our_own_follows_the_first_one_and_leaves_it_alone() {
    let mut node = Node::new(true);
    fs::write(node.conf("10-net.conflist"), BRIDGE).unwrap();
    assert_eq!(node.install().unwrap().entry, Some(node.conf(OWN_CONFLIST)));
    assert_eq!(
        (node.types(OWN_CONFLIST), node.types("10-net.conflist")),
        (vec!["bridge".into(), PLUGIN.into()], vec!["bridge".into()])
    );
    assert_eq!(node.install().unwrap(), Installed::default());
    fs::write(node.conf("10-net.conflist"), BRIDGE.replace("bridge", "ptp")).unwrap();
    assert_eq!(node.install().unwrap().entry, Some(node.conf(OWN_CONFLIST)));
    assert_eq!(node.types(OWN_CONFLIST), ["ptp", PLUGIN]);

    // From one way to the other and back: our entry is there once.
    node.installer.places.own_conflist = false;
    node.install().unwrap();
    assert_eq!(node.types("10-net.conflist"), ["ptp", PLUGIN]);
    assert!(!node.conf(OWN_CONFLIST).exists());
    node.installer.places.own_conflist = true;
    node.install().unwrap();
    assert_eq!(node.types("10-net.conflist"), ["ptp"]);
    remove(&node.places).unwrap();
    assert_eq!(node.files(), ["10-net.conflist"]);
}

#[test]
fn istio_is_seen_where_it_is_active() {
    let node = Node::new(false);
    fs::write(node.conf("10-net.conflist"), BRIDGE).unwrap();
    assert_eq!(istio(&node.places).unwrap(), None);
    fs::write(node.conf("02-x.conflist"), BRIDGE.replace("bridge", "istio-cni")).unwrap();
    assert_eq!(istio(&node.places).unwrap(), Some(node.conf("02-x.conflist")));
}
