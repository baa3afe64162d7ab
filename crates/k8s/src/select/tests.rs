use super::*;
use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

fn namespace(mode: Option<&str>) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.labels = mode.map(|mode| [(DATAPLANE_MODE.to_owned(), mode.to_owned())].into());
    namespace
}

fn pod(mode: Option<&str>) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.namespace = Some("shop".to_owned());
    pod.metadata.labels = mode.map(|mode| [(DATAPLANE_MODE.to_owned(), mode.to_owned())].into());
    pod
}

#[test]
fn labels_decide_as_istio_does() {
    let table = [
        (None, None, false),
        (None, Some("ambient"), true),
        (None, Some("none"), false),
        (Some("ambient"), None, true),
        (Some("ambient"), Some("none"), true),
        (Some("none"), Some("ambient"), false),
        (Some("sidecar"), Some("ambient"), true),
        (Some("sidecar"), None, false),
    ];
    for (on_pod, on_namespace, expected) in table {
        let answer = enrolled(&pod(on_pod), Some(&namespace(on_namespace)), &Enrolment::default());
        assert_eq!(answer, expected, "pod {on_pod:?} in namespace {on_namespace:?}");
    }
}

#[test]
fn a_pod_that_opts_in_needs_no_known_namespace() {
    assert!(enrolled(&pod(Some("ambient")), None, &Enrolment::default()));
    assert!(!enrolled(&pod(None), None, &Enrolment::default()));
}

#[test]
fn exclusions_beat_labels() {
    let refused = |change: fn(&mut Pod)| {
        let mut pod = pod(Some("ambient"));
        change(&mut pod);
        why_not(&pod, Some(&namespace(Some("ambient"))), &Enrolment::default())
    };
    let host = |pod: &mut Pod| pod.spec = Some(PodSpec { host_network: Some(true), ..PodSpec::default() });
    let sidecar = |pod: &mut Pod| pod.metadata.annotations = Some([(SIDECAR_STATUS.to_owned(), String::new())].into());
    let system = |pod: &mut Pod| pod.metadata.namespace = Some("kube-system".to_owned());
    let ended =
        |pod: &mut Pod| pod.status = Some(PodStatus { phase: Some("Failed".to_owned()), ..PodStatus::default() });
    let tunnel = |pod: &mut Pod| {
        pod.metadata.namespace = Some("istio-system".to_owned());
        pod.metadata.labels.get_or_insert_default().insert("app".to_owned(), "ztunnel".to_owned());
    };
    let other_app = |pod: &mut Pod| {
        pod.metadata.labels.get_or_insert_default().insert("app".to_owned(), "ztunnel".to_owned());
    };
    assert_eq!(refused(host), Some(NotEnrolled::HostNetwork));
    assert_eq!(refused(sidecar), Some(NotEnrolled::Sidecar));
    assert_eq!(refused(system), Some(NotEnrolled::ExcludedNamespace));
    assert_eq!(refused(ended), Some(NotEnrolled::Terminal));
    assert_eq!(refused(tunnel), Some(NotEnrolled::NodeTunnel));
    assert_eq!(refused(other_app), None);
}
