//! What is committed under `deploy/crds` is what the types say.

#[test]
fn committed_crds_are_the_ones_of_the_types() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let files = stillmesh_k8s::istio::crd_files().expect("CRDs can be written as YAML");
    for (name, text) in files {
        let committed = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(
            committed == text,
            "{name} differs from the types: run cargo run -p stillmesh-k8s --example crds -- deploy/crds"
        );
    }
}

#[test]
fn all_versions_are_served_and_the_first_is_stored() {
    let crds = stillmesh_k8s::istio::crds();
    let names: Vec<&str> = crds.iter().map(|crd| crd.spec.names.plural.as_str()).collect();
    assert_eq!(
        names,
        [
            "authorizationpolicies",
            "peerauthentications",
            "requestauthentications",
            "virtualservices",
            "destinationrules",
            "telemetries",
            "bypasses",
            "quarantines"
        ]
    );
    for crd in crds {
        let versions: Vec<(&str, bool, bool)> =
            crd.spec.versions.iter().map(|one| (one.name.as_str(), one.served, one.storage)).collect();
        let all = [("v1", true, true), ("v1beta1", true, false), ("v1alpha3", true, false)];
        let of_telemetry = [("v1", true, true), ("v1alpha1", true, false)];
        match crd.spec.group.as_str() {
            "security.istio.io" => assert_eq!(versions, all[..2]),
            "networking.istio.io" => assert_eq!(versions, all),
            "telemetry.istio.io" => assert_eq!(versions, of_telemetry),
            _ => assert_eq!(versions, [("v1alpha1", true, true)]),
        }
    }
}
