//! The one writer of snapshots: takes what the control plane sends, publishes, has what is open decided again ([`Pass`]),
//! and only then lets the response be acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmesh_api::xds::{Batch, Rejected, Sink};
use stillmesh_core::snapshot::{Change, Snapshot, Stage, Touched, UnknownPolicies};
use tokio::sync::{mpsc, oneshot};

use crate::Snapshots;
use crate::control::XdsMetrics;

/// What has to be done under a new snapshot before whoever sent it is told that it is in force.
pub trait Pass: Send + 'static {
    /// Decides again what is open and was touched. `snapshot` is published already.
    fn pass(&mut self, snapshot: &Snapshot, touched: Touched) -> impl Future<Output = ()> + Send;
}

/// Shortest time between two passes over what is open.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// When passes run: the first at once, the next after [`INTERVAL`], and what changed meanwhile comes with it.
#[derive(Debug, Default)]
pub struct Turns {
    last: Option<tokio::time::Instant>,
}

impl Turns {
    /// Waits until the next pass may run.
    pub async fn next(&self) {
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + INTERVAL).await;
        }
    }

    /// A pass has run.
    pub fn done(&mut self) {
        self.last = Some(tokio::time::Instant::now());
    }
}

/// Batches that wait; more make the control plane's stream wait.
const INBOX: usize = 4;

struct Job {
    changes: Vec<Change>,
    unknown: UnknownPolicies,
    done: oneshot::Sender<()>,
}

/// Sends batches to the writer.
#[derive(Clone, Debug)]
pub struct Publisher {
    inbox: mpsc::Sender<Job>,
    /// What was asked for; else as whoever sends the changes does it.
    unknown: Option<UnknownPolicies>,
    metrics: XdsMetrics,
}

impl Publisher {
    /// Publishes changes; returns when they are enforced.
    async fn publish(&self, changes: Vec<Change>, unknown: UnknownPolicies) {
        let (done, enforced) = oneshot::channel();
        // The writer ends only with the process; then nobody reads the answer.
        if self.inbox.send(Job { changes, unknown, done }).await.is_ok() {
            let _ = enforced.await;
        }
    }
}

impl Sink for Publisher {
    async fn apply(&mut self, batch: Batch) -> Vec<Rejected> {
        self.metrics.received(&batch);
        // Istiod names policies that it never sends; ours does not.
        let of_sender = if batch.ours { UnknownPolicies::Refuse } else { UnknownPolicies::Allow };
        self.publish(batch.changes, self.unknown.unwrap_or(of_sender)).await;
        Vec::new()
    }
}

/// The writer's state.
#[derive(Debug)]
pub struct Writer<P> {
    inbox: mpsc::Receiver<Job>,
    stage: Stage,
    snapshots: Arc<Snapshots>,
    pass: P,
}

impl<P: Pass> Writer<P> {
    /// A writer and what sends to it. Without `unknown`, a foreign control plane's policies that do not arrive are passed
    /// over, as Istio's ztunnel does.
    pub fn new(
        initial: Snapshot,
        unknown: Option<UnknownPolicies>,
        snapshots: Arc<Snapshots>,
        pass: P,
        metrics: XdsMetrics,
    ) -> (Self, Publisher) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let stage = Stage::new(initial, unknown.unwrap_or(UnknownPolicies::Refuse));
        (Self { inbox, stage, snapshots, pass }, Publisher { inbox: sender, unknown, metrics })
    }

    /// Runs until every publisher is dropped.
    pub async fn run(mut self) {
        loop {
            let held_back = self.stage.deadline();
            let (changes, done) = tokio::select! {
                job = self.inbox.recv() => match job {
                    Some(Job { changes, unknown, done }) => {
                        self.stage.set_unknown_policies(unknown);
                        (changes, Some(done))
                    }
                    None => return,
                },
                () = until(held_back) => (Vec::new(), None),
            };
            let (snapshot, touched) = self.stage.apply(changes, Instant::now());
            self.snapshots.publish(snapshot.clone());
            self.pass.pass(&snapshot, touched).await;
            if let Some(done) = done {
                // The stream that sent the batch may be gone.
                let _ = done.send(());
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use stillmesh_api::xds::ResourceType;
    use stillmesh_core::fixtures;
    use stillmesh_core::model::WorkloadUid;

    use super::*;

    /// Passes that say when they begin, and end when they are let.
    struct Gate {
        begun: mpsc::Sender<bool>,
        go: mpsc::Receiver<()>,
        snapshots: Arc<Snapshots>,
        uid: WorkloadUid,
    }

    impl Pass for Gate {
        async fn pass(&mut self, _: &Snapshot, _: Touched) {
            let published = self.snapshots.load().workload(&self.uid).is_some();
            let _ = self.begun.send(published).await;
            let _ = self.go.recv().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_is_acknowledged_after_it_is_published_and_what_is_open_was_decided_again() {
        let workload = fixtures::workload("shop/a");
        let uid = workload.uid.clone();
        let snapshots = Arc::new(Snapshots::new(Snapshot::empty("")));
        let ((begun, mut began), (let_go, go)) = (mpsc::channel(1), mpsc::channel(1));
        let gate = Gate { begun, go, snapshots: Arc::clone(&snapshots), uid };
        let (writer, mut publisher) =
            Writer::new(Snapshot::empty(""), None, Arc::clone(&snapshots), gate, XdsMetrics::default());
        let running = stillmesh_runtime::Tasks::new("test");
        let _writing = running.spawn("writer", writer.run());
        let changes = vec![Change::Workload(Arc::new(workload))];
        let batch = Batch { kind: ResourceType::Address, changes, first: true, ours: true, bytes: 0 };
        let mut applied = std::pin::pin!(publisher.apply(batch));
        let published = tokio::select! {
            published = began.recv() => published,
            _ = &mut applied => panic!("acknowledged before what is open was decided again"),
        };
        assert_eq!(published, Some(true), "what is open is decided again by what new connections see");
        // However long the pass takes.
        let waited = tokio::time::timeout(Duration::from_secs(3600), &mut applied).await;
        assert!(waited.is_err(), "acknowledged while what is open is being decided again");
        let_go.send(()).await.unwrap();
        assert_eq!(applied.await, Vec::new());
    }
}
