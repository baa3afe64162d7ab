//! The threads that carry connections: one single-threaded runtime each. A connection lives on one of them from its
//! decision to its end, so that nothing in the data path wakes another thread.
//!
//! Which worker: the pod's, where its connections are accepted; nothing moves then. One that has clearly more to do than another
//! passes new connections on, by source identity and next hop, so that the tunnels between two ends are few workers'.

use std::hash::{BuildHasher, Hash, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// All workers of the process. Dropping it ends them.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Arc<Worker>>,
    hasher: RandomState,
    next: AtomicUsize,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Worker {
    index: usize,
    handle: Handle,
    load: AtomicUsize,
}

/// A worker chosen for a connection; it counts as the worker's load until dropped.
#[derive(Debug)]
pub struct Place {
    worker: Arc<Worker>,
}

impl Place {
    /// Which worker.
    pub fn index(&self) -> usize {
        self.worker.index
    }

    /// Its runtime.
    pub fn handle(&self) -> &Handle {
        &self.worker.handle
    }

    /// Whether this runs there.
    pub fn is_here(&self) -> bool {
        self.worker.handle.id() == Handle::current().id()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads, at least one.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let workers = (0..count.max(1)).map(|index| Worker::start(index, stop.clone())).collect::<io::Result<_>>()?;
        Ok(Self { workers, hasher: RandomState::new(), next: AtomicUsize::new(0), stop })
    }

    /// Their runtimes.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        self.workers.iter().map(|worker| worker.handle.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Tasks of all of them that have not ended.
    pub fn tasks(&self) -> usize {
        self.workers.iter().map(|worker| worker.handle.metrics().num_alive_tasks()).sum()
    }

    /// The worker of `key`, or a clearly less loaded one.
    pub fn of(&self, key: &impl Hash) -> Place {
        let count = self.workers.len() as u64;
        let home = usize::try_from(self.hasher.hash_one(key) % count).unwrap_or(0);
        self.place(home)
    }

    /// The worker that this runs on, unless it is clearly more loaded than another or none of these: then that of `key`.
    pub fn here_or_of(&self, key: &impl Hash) -> Place {
        let current = Handle::current().id();
        match self.workers.iter().position(|worker| worker.handle.id() == current) {
            Some(here) if !self.is_overloaded(here) => self.take(here),
            _ => self.of(key),
        }
    }

    /// The next worker in turn.
    pub fn next(&self) -> Place {
        self.place(self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len())
    }

    fn place(&self, home: usize) -> Place {
        self.take(if self.is_overloaded(home) { self.least() } else { home })
    }

    fn load(&self, index: usize) -> usize {
        self.workers.get(index).map_or(0, |worker| worker.load.load(Ordering::Relaxed))
    }

    fn least(&self) -> usize {
        (0..self.workers.len()).min_by_key(|index| self.load(*index)).unwrap_or(0)
    }

    /// Whether a worker has so much more to do than the least loaded one that its tunnels are worth splitting.
    fn is_overloaded(&self, index: usize) -> bool {
        self.load(index) > self.load(self.least()).saturating_mul(2).saturating_add(3)
    }

    fn take(&self, index: usize) -> Place {
        // Both indices are below the count; were they not, the first worker would do.
        let worker = self.workers.get(index).unwrap_or_else(|| &self.workers[0]);
        worker.load.fetch_add(1, Ordering::Relaxed);
        Place { worker: worker.clone() }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Worker {
    fn start(index: usize, stop: CancellationToken) -> io::Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_name(format!("worker-{index}"))
            .build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            runtime.block_on(stop.cancelled());
            runtime.shutdown_background();
        })?;
        Ok(Arc::new(Self { index, handle, load: AtomicUsize::new(0) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_stays_on_one_worker_until_it_is_overloaded() {
        let workers = Workers::start(2).unwrap();
        let key = ("identity", "10.0.0.1:15008");
        let places: Vec<_> = (0..4).map(|_| workers.of(&key)).collect();
        let home = places[0].index();
        assert!(places.iter().all(|place| place.index() == home));
        let spilled = workers.of(&key);
        assert_ne!(spilled.index(), home);
        drop((places, spilled));
        assert_eq!(workers.of(&key).index(), home);
    }

    #[test]
    fn futures_run_on_the_chosen_thread() {
        let workers = Workers::start(2).unwrap();
        let place = workers.next();
        let (done, name) = std::sync::mpsc::channel();
        place.handle().spawn(async move { done.send(std::thread::current().name().map(str::to_owned)) });
        assert_eq!(name.recv().unwrap(), Some(format!("worker-{}", place.index())));
    }
}
