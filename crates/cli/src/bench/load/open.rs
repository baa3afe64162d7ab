//! Requests at a fixed rate. Each has a time at which it is due, written down beforehand, and its latency counts from then:
//! what waits behind a slow answer, or behind a sender that could not send, is latency («no coordinated omission»).

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::prctl::set_timerslack;

use super::closed::{open_bulk, pour, receive, wait};
use super::{Latency, MESSAGE, Measured, done, histogram, nanoseconds, ready, warm};

/// When requests are due, and on which connection. Request `n` is due `n` intervals after the start, on connection `n` modulo
/// their number.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start: Instant,
    interval: Duration,
    connections: usize,
    requests: usize,
}

impl Schedule {
    fn new(rate: u32, connections: usize, length: Duration) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        let requests = usize::try_from(length.as_nanos() / interval.as_nanos().max(1)).unwrap_or(usize::MAX);
        Self { start: Instant::now(), interval, connections, requests: requests.max(1) }
    }

    /// When a request is due.
    fn due(&self, request: usize) -> Instant {
        // At most an hour of them.
        self.start + self.interval.saturating_mul(u32::try_from(request).unwrap_or(u32::MAX))
    }

    /// Which request a connection's n-th is.
    fn request(&self, connection: usize, nth: usize) -> usize {
        connection + nth * self.connections
    }
}

/// One load.
pub(super) fn run(target: SocketAddr, connections: usize, rate: u32, length: Duration) -> anyhow::Result<()> {
    let mut opened = open(target, connections)?;
    ready()?;
    let started = Instant::now();
    let (times, late) = keep(&mut opened, rate, length)?;
    done(&measured(started, &times, &late))
}

/// Half of the time alone, half beside a stream of bulk; what is counted is the second half.
pub(super) fn beside_bulk(target: SocketAddr, connections: usize, rate: u32, length: Duration) -> anyhow::Result<()> {
    let mut opened = open(target, connections)?;
    let stream = open_bulk(target)?;
    ready()?;
    let (alone, _) = keep(&mut opened, rate, length / 2)?;
    let go_on = AtomicBool::new(true);
    let started = Instant::now();
    let (kept, bytes) = std::thread::scope(|scope| {
        let bulk = scope.spawn(|| pour(&stream, || go_on.load(Ordering::Relaxed)));
        let kept = keep(&mut opened, rate, length / 2);
        go_on.store(false, Ordering::Relaxed);
        (kept, bulk.join().unwrap_or_else(|_| bail!("the thread of bulk broke off")))
    });
    let (times, late) = kept?;
    done(&Measured { bytes: bytes?, alone: Some(Latency::of(&alone)), ..measured(started, &times, &late) })
}

fn open(target: SocketAddr, connections: usize) -> anyhow::Result<Vec<TcpStream>> {
    (0..connections).map(|_| warm(target)).collect()
}

fn measured(started: Instant, times: &Histogram<u64>, late: &Histogram<u64>) -> Measured {
    Measured {
        seconds: started.elapsed().as_secs_f64(),
        bytes: times.len() * MESSAGE as u64,
        exchanges: times.len(),
        latency: Latency::of(times),
        late_p99_us: Some(Latency::of(late).p99),
        ..Measured::default()
    }
}

/// Keeps a rate for a time: one thread sends, this one receives. Latencies, and by how much requests were sent late.
fn keep(streams: &mut [TcpStream], rate: u32, length: Duration) -> anyhow::Result<(Histogram<u64>, Histogram<u64>)> {
    let senders = streams.iter().map(TcpStream::try_clone).collect::<std::io::Result<Vec<_>>>()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, stream) in streams.iter().enumerate() {
        epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?))?;
    }
    let schedule = Schedule::new(rate, streams.len(), length);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&senders, schedule));
        let times = answers(&epoll, streams, schedule)?;
        let late = sender.join().unwrap_or_else(|_| bail!("the sending thread broke off"))?;
        Ok((times, late))
    })
}

fn send(senders: &[TcpStream], schedule: Schedule) -> anyhow::Result<Histogram<u64>> {
    // The kernel may be late by 50 µs else.
    set_timerslack(1).context("ask for exact timers")?;
    let mut late = histogram()?;
    for request in 0..schedule.requests {
        let due = schedule.due(request);
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        late.saturating_record(nanoseconds(due.elapsed()));
        let mut stream = senders.get(request % schedule.connections).context("a connection")?;
        stream.write_all(&[7; MESSAGE]).context("send a request")?;
    }
    Ok(late)
}

fn answers(epoll: &Epoll, streams: &mut [TcpStream], schedule: Schedule) -> anyhow::Result<Histogram<u64>> {
    let mut times = histogram()?;
    let mut come = vec![0; streams.len()];
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = [0; 16 * MESSAGE];
    let mut open = schedule.requests;
    while open > 0 {
        for event in wait(epoll, &mut events)? {
            let index = usize::try_from(event.data())?;
            let (Some(stream), Some(come)) = (streams.get_mut(index), come.get_mut(index)) else { continue };
            let before = *come / MESSAGE;
            *come += receive(stream, &mut buffer)?;
            let now = Instant::now();
            for nth in before..*come / MESSAGE {
                let due = schedule.due(schedule.request(index, nth));
                times.saturating_record(nanoseconds(now.saturating_duration_since(due)));
                open = open.saturating_sub(1);
            }
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_due_on_its_connection_at_its_time() {
        let schedule = Schedule::new(1000, 4, Duration::from_secs(1));
        assert_eq!((schedule.requests, schedule.interval), (1000, Duration::from_millis(1)));
        // The third request of connection 2 is the eleventh of all.
        assert_eq!(schedule.request(2, 2), 10);
        assert_eq!(schedule.due(10) - schedule.start, Duration::from_millis(10));
    }

    #[test]
    fn a_late_answer_makes_those_behind_it_late() {
        // A server that holds the first answer back for 50 ms, and answers the others at once, on one connection.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            use std::io::Read as _;
            let (mut stream, _) = listener.accept().unwrap();
            let mut message = [0; MESSAGE];
            for number in 0..100 {
                stream.read_exact(&mut message).unwrap();
                if number == 0 {
                    std::thread::sleep(Duration::from_millis(50));
                }
                stream.write_all(&message).unwrap();
            }
        });
        let mut streams = [TcpStream::connect(address).unwrap()];
        let (times, _) = keep(&mut streams, 1000, Duration::from_millis(100)).unwrap();
        server.join().unwrap();
        // Counted from when they were sent only, one of a hundred would be slow: those due within the 50 ms waited, too.
        assert_eq!(times.len(), 100);
        assert!(times.value_at_quantile(0.7) > 10_000_000, "{:?}", Latency::of(&times));
    }
}
