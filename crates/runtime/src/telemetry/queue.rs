//! Lines on their way to a file or pipe. Who writes one never waits for who reads it: lines go into a buffer, and a thread of its own
//! writes what has gathered there. A line that finds no room is dropped and counted.

use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes that may wait in one queue.
pub const ROOM: usize = 1 << 20;

/// How long the first line waits for others, unless half of the room is used: a write costs as much as formatting several lines.
const GATHER: Duration = Duration::from_millis(20);

/// Room that is kept when nothing waits, bytes.
const KEPT: usize = 16 << 10;

/// Lines that wait for one file. It ends with the last of its lines when it is dropped.
pub struct Queue {
    shared: Arc<Shared>,
}

type Sink = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to do for the thread.
    work: Condvar,
    /// What was waiting is written.
    done: Condvar,
    /// Held by who writes, and taken before `waiting` is: lines stay in their order.
    out: Mutex<Out>,
}

struct Out {
    sink: Sink,
    /// What is written now; kept for its room.
    batch: Vec<u8>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Bytes that have come and that have gone so far.
    come: u64,
    gone: u64,
    /// Lines that found no room since this was told.
    lost: u64,
    /// It is not waited for more lines.
    is_urgent: bool,
    is_ending: bool,
}

impl Queue {
    /// Starts a thread of this name that writes to `sink`, which is given whole lines, and tells `lost` how many lines found no room or could not be
    /// written. Errors: there is no thread to be had.
    pub fn start(
        name: &str,
        sink: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
        lost: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            out: Mutex::new(Out { sink: Box::new(sink), batch: Vec::new() }),
        });
        let own = shared.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || own.run(&lost))?;
        Ok(Self { shared })
    }

    /// Has a line written, soon: what is pushed first is written first. Without room it is lost.
    pub fn push(&self, line: &[u8]) {
        let mut waiting = self.shared.waiting.lock();
        let (before, after) = (waiting.lines.len(), waiting.lines.len().saturating_add(line.len()));
        if after > ROOM {
            waiting.lost += 1;
            return;
        }
        waiting.lines.extend_from_slice(line);
        waiting.come += line.len() as u64;
        let is_much = after >= ROOM / 2 && !waiting.is_urgent;
        waiting.is_urgent |= is_much;
        drop(waiting);
        if before == 0 || is_much {
            self.shared.work.notify_one();
        }
    }

    /// Writes a line at once, behind all that was pushed before. Waits for who reads.
    pub fn write(&self, line: &[u8]) -> io::Result<()> {
        self.shared.write(line)
    }

    /// Waits until all that was pushed before is written, at most so long.
    pub fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut waiting = self.shared.waiting.lock();
        let come = waiting.come;
        waiting.is_urgent = true;
        self.shared.work.notify_one();
        // Who is not done by then is not waited for.
        self.shared.done.wait_while_until(&mut waiting, |waiting| waiting.gone < come, end);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock();
        (waiting.is_ending, waiting.is_urgent) = (true, true);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn run(&self, lost: &dyn Fn(u64)) {
        loop {
            let mut waiting = self.waiting.lock();
            self.work.wait_while(&mut waiting, |waiting| waiting.lines.is_empty() && !waiting.is_ending);
            if waiting.lines.is_empty() {
                return;
            }
            self.work.wait_while_for(&mut waiting, |waiting| !waiting.is_urgent, GATHER);
            drop(waiting);
            // Nobody else is to be told how a write without a line of its own fared: its lines are counted.
            let _ = self.write(&[]);
            let count = mem::take(&mut self.waiting.lock().lost);
            if count > 0 {
                lost(count);
            }
        }
    }

    /// Writes what waits and then `line`, and says how that fared.
    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut out = self.out.lock();
        let Out { sink, batch } = &mut *out;
        let mut waiting = self.waiting.lock();
        mem::swap(&mut waiting.lines, batch);
        waiting.is_urgent = waiting.is_ending;
        drop(waiting);
        let is_lost = !batch.is_empty() && sink(batch).is_err();
        let mut waiting = self.waiting.lock();
        if is_lost {
            // Some of them may have been written: nobody can say.
            waiting.lost += batch.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        waiting.gone += batch.len() as u64;
        drop(waiting);
        self.done.notify_all();
        batch.clear();
        batch.shrink_to(KEPT);
        if line.is_empty() { Ok(()) } else { sink(line) }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A file that takes what it is given when it is let.
    #[derive(Clone, Default)]
    struct File(Arc<Mutex<Vec<u8>>>);

    impl File {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }

        fn sink(&self) -> impl FnMut(&[u8]) -> io::Result<()> + use<> {
            let file = self.clone();
            move |lines| {
                file.0.lock().extend_from_slice(lines);
                Ok(())
            }
        }
    }

    fn counter() -> (Arc<AtomicU64>, impl Fn(u64) + Send) {
        let counter = Arc::new(AtomicU64::new(0));
        let own = counter.clone();
        (counter, move |count| {
            own.fetch_add(count, Ordering::Relaxed);
        })
    }

    #[test]
    fn lines_are_written_in_their_order_and_none_is_lost_at_the_end() {
        let file = File::default();
        let (lost, count) = counter();
        let queue = Queue::start("test", file.sink(), count).unwrap();
        let mut expected = String::new();
        for number in 0..10_000 {
            let line = format!("{number}\n");
            expected += &line;
            if number % 1000 == 7 {
                queue.write(line.as_bytes()).unwrap();
                assert_eq!(file.text(), expected, "what is written at once is behind all that came before");
            } else {
                queue.push(line.as_bytes());
            }
        }
        queue.flush(LONG);
        assert_eq!(file.text(), expected);
        queue.push(b"last\n");
        let shared = Arc::downgrade(&queue.shared);
        drop(queue);
        while shared.strong_count() > 0 {
            std::thread::yield_now();
        }
        assert_eq!(file.text(), expected + "last\n");
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    }

    /// A sink that tells of each write and waits until it is let.
    fn held() -> (Queue, Receiver<Vec<u8>>, Sender<()>, Arc<AtomicU64>) {
        let (told, writes) = channel();
        let (let_go, gate) = channel();
        let (lost, count) = counter();
        let sink = move |lines: &[u8]| {
            told.send(lines.to_vec()).map_err(io::Error::other)?;
            gate.recv().map_err(io::Error::other)
        };
        (Queue::start("test", sink, count).unwrap(), writes, let_go, lost)
    }

    #[test]
    fn nobody_waits_for_a_slow_reader_and_what_finds_no_room_is_counted() {
        let (queue, writes, let_go, lost) = held();
        queue.push(b"first\n");
        assert_eq!(writes.recv().unwrap(), b"first\n");
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<_>>();
        for _ in 0..ROOM / line.len() + 5 {
            queue.push(&line);
        }
        queue.flush(Duration::ZERO);
        let_go.send(()).unwrap();
        assert_eq!(writes.recv().unwrap().len(), ROOM, "all that there is room for, at once");
        let_go.send(()).unwrap();
        queue.flush(LONG);
        queue.push(b"last\n");
        assert_eq!(writes.recv().unwrap(), b"last\n", "then there is room again");
        assert_eq!(lost.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let (queue, writes, let_go, lost) = held();
        drop((writes, let_go));
        queue.push(b"one\n");
        queue.push(b"two\n");
        queue.flush(LONG);
        let shared = Arc::downgrade(&queue.shared);
        drop(queue);
        while shared.strong_count() > 0 {
            std::thread::yield_now();
        }
        assert_eq!(lost.load(Ordering::Relaxed), 2);
    }
}
