use std::collections::BTreeSet;
use std::fs::File;

use super::*;

/// Pods by UID with the name that they were started under; names that start with `bad` cannot be started.
#[derive(Default)]
struct Fake {
    running: BTreeMap<String, String>,
    refused: BTreeSet<String>,
}

impl Proxies for Fake {
    fn has(&self, uid: &str) -> bool {
        self.running.contains_key(uid)
    }
    async fn start(&mut self, uid: &str, info: &PodInfo, _netns: &OwnedFd) -> Result<(), String> {
        if self.refused.contains(uid) {
            return Err("no".to_owned());
        }
        self.running.insert(uid.to_owned(), info.name.clone());
        Ok(())
    }
    fn stop(&mut self, uid: &str) {
        self.running.remove(uid);
    }
    fn uids(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }
}

fn add(uid: &str) -> Request {
    let info = PodInfo { name: uid.to_owned(), namespace: "shop".to_owned(), service_account: "page".to_owned() };
    Request::Add { uid: uid.to_owned(), info, netns: File::open("/proc/self/ns/net").unwrap().into() }
}

fn keep(uid: &str) -> Request {
    Request::Keep { uid: uid.to_owned() }
}

fn del(uid: &str) -> Request {
    Request::Del { uid: uid.to_owned() }
}

#[tokio::test]
async fn the_snapshot_drops_what_it_did_not_name() {
    let mut fake = Fake::default();
    for uid in ["kept", "dropped"] {
        fake.running.insert(uid.to_owned(), uid.to_owned());
    }
    let mut session = Session::default();
    for request in [add("new"), keep("kept"), Request::SnapshotSent] {
        assert_eq!(session.handle(request, &mut fake).await, Ok(Ok(())));
    }
    assert_eq!(fake.uids(), ["kept", "new"]);
    assert!(session.ready());
}

#[tokio::test]
async fn nothing_is_dropped_before_the_snapshots_end() {
    let mut fake = Fake::default();
    fake.running.insert("old".to_owned(), "old".to_owned());
    let mut session = Session::default();
    assert_eq!(session.handle(del("old"), &mut fake).await, Ok(Ok(())));
    assert!(fake.has("old") && !session.ready());
    assert_eq!(session.handle(Request::SnapshotSent, &mut fake).await, Ok(Ok(())));
    assert!(!fake.has("old"));
}

#[tokio::test]
async fn a_pod_that_cannot_be_taken_up_is_nacked_and_tried_again() {
    let mut fake = Fake { refused: ["a".to_owned()].into(), ..Fake::default() };
    let mut session = Session::default();
    assert_eq!(session.handle(add("a"), &mut fake).await, Ok(Err("no".to_owned())));
    assert_eq!(session.handle(Request::SnapshotSent, &mut fake).await, Ok(Ok(())));
    assert!(!session.ready() && session.has_pending());
    session.retry(&mut fake).await;
    assert!(!session.ready());
    fake.refused.clear();
    session.retry(&mut fake).await;
    assert!(session.ready() && fake.has("a"));
}

#[tokio::test]
async fn a_pod_that_is_deleted_is_not_tried_again() {
    let mut fake = Fake { refused: ["a".to_owned()].into(), ..Fake::default() };
    let mut session = Session::default();
    for request in [Request::SnapshotSent, add("a"), del("a")] {
        let _ = session.handle(request, &mut fake).await;
    }
    assert!(session.ready());
}

#[tokio::test]
async fn a_pod_to_keep_that_is_not_known_is_asked_for() {
    let mut session = Session::default();
    assert!(matches!(session.handle(keep("a"), &mut Fake::default()).await, Ok(Err(_))));
}

#[tokio::test]
async fn keep_and_snapshot_after_the_snapshot_break_the_protocol() {
    let mut fake = Fake::default();
    let mut session = Session::default();
    assert_eq!(session.handle(Request::SnapshotSent, &mut fake).await, Ok(Ok(())));
    assert_eq!(session.handle(keep("a"), &mut fake).await, Err(Broken::LateKeep));
    assert_eq!(session.handle(Request::SnapshotSent, &mut fake).await, Err(Broken::SecondSnapshot));
}
