//! Loads that go as fast as they are answered: bulk, requests in a closed loop, new connections.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    BULK, CHUNK, Latency, MESSAGE, Measured, STALL, dial, done, first_exchange, histogram, nanoseconds, ready, warm,
};

/// Streams, each by a thread.
pub(super) fn bulk(target: SocketAddr, streams: usize, length: Duration) -> anyhow::Result<()> {
    let opened = (0..streams).map(|_| open_bulk(target)).collect::<anyhow::Result<Vec<_>>>()?;
    ready()?;
    let started = Instant::now();
    let bytes = each(opened, |stream| pour(&stream, || started.elapsed() < length))?.into_iter().sum();
    done(&Measured { seconds: started.elapsed().as_secs_f64(), bytes, ..Measured::default() })
}

/// A stream of bulk that has begun.
pub(super) fn open_bulk(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = dial(target)?;
    stream.write_all(&[BULK])?;
    Ok(stream)
}

/// Sends while it is to; how many bytes arrived.
pub(super) fn pour(mut stream: &TcpStream, go_on: impl Fn() -> bool) -> anyhow::Result<u64> {
    let chunk = vec![0x5a; CHUNK];
    let mut sent = 0_u64;
    while go_on() {
        stream.write_all(&chunk).context("bulk stalled or broke")?;
        sent += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).context("the end of bulk stalled or broke")?;
    let received = u64::from_be_bytes(answer);
    if received != sent {
        bail!("{sent} bytes were sent and {received} arrived");
    }
    Ok(sent)
}

/// Runs the same for each, in threads.
fn each<I: Send, O: Send>(items: Vec<I>, work: impl Fn(I) -> anyhow::Result<O> + Sync) -> anyhow::Result<Vec<O>> {
    std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| bail!("a thread broke off"))).collect()
    })
}

/// Requests: of one connection by blocking calls, of several by one thread.
pub(super) fn requests(target: SocketAddr, connections: usize, length: Duration) -> anyhow::Result<()> {
    let mut opened = (0..connections).map(|_| warm(target)).collect::<anyhow::Result<Vec<_>>>()?;
    ready()?;
    let started = Instant::now();
    let times = match opened.as_mut_slice() {
        [one] => turns(one, started, length)?,
        several => many(several, started, length)?,
    };
    done(&exchanges(started, &times))
}

/// What exchanges came to.
fn exchanges(started: Instant, times: &Histogram<u64>) -> Measured {
    Measured {
        seconds: started.elapsed().as_secs_f64(),
        bytes: times.len() * MESSAGE as u64,
        exchanges: times.len(),
        latency: Latency::of(times),
        ..Measured::default()
    }
}

fn turns(stream: &mut TcpStream, started: Instant, length: Duration) -> anyhow::Result<Histogram<u64>> {
    let mut times = histogram()?;
    let mut message = [7; MESSAGE];
    let mut since = started;
    while since.duration_since(started) < length {
        stream.write_all(&message)?;
        stream.read_exact(&mut message).context("an exchange stalled or broke")?;
        let now = Instant::now();
        times.saturating_record(nanoseconds(now.duration_since(since)));
        since = now;
    }
    Ok(times)
}

/// A connection with a request under way.
struct Asked<'a> {
    stream: &'a mut TcpStream,
    since: Instant,
    come: usize,
}

fn many(streams: &mut [TcpStream], started: Instant, length: Duration) -> anyhow::Result<Histogram<u64>> {
    let mut times = histogram()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let message = [7; MESSAGE];
    let mut asked = Vec::with_capacity(streams.len());
    for (index, stream) in streams.iter_mut().enumerate() {
        epoll.add(&*stream, EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?))?;
        let since = Instant::now();
        stream.write_all(&message)?;
        asked.push(Asked { stream, since, come: 0 });
    }
    let mut under_way = asked.len();
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = [0; MESSAGE];
    while under_way > 0 {
        for event in wait(&epoll, &mut events)? {
            let one = asked.get_mut(usize::try_from(event.data())?).context("a connection")?;
            one.come += receive(one.stream, &mut buffer)?;
            if one.come < MESSAGE {
                continue;
            }
            let now = Instant::now();
            times.saturating_record(nanoseconds(now.duration_since(one.since)));
            (one.come, one.since) = (0, now);
            if now.duration_since(started) < length {
                one.stream.write_all(&message)?;
            } else {
                under_way -= 1;
            }
        }
    }
    Ok(times)
}

/// Connections that can be read. Errors: none can for [`STALL`].
pub(super) fn wait<'a>(epoll: &Epoll, events: &'a mut [EpollEvent]) -> anyhow::Result<&'a [EpollEvent]> {
    let limit = EpollTimeout::try_from(STALL)?;
    loop {
        match epoll.wait(events, limit) {
            Ok(0) => bail!("no answer came for {STALL:?}"),
            Ok(count) => return events.get(..count).context("more events than there is room for"),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads once from a connection that can be read.
pub(super) fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => bail!("the server closed a connection"),
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Ok(0),
        Err(error) => Err(error).context("read an answer"),
    }
}

/// New connections, each with one exchange, so many at a time.
pub(super) fn connect(target: SocketAddr, at_a_time: usize, length: Duration) -> anyhow::Result<()> {
    // Thousands of connections a second would soon use up the ports of this pod's namespace: those of closed ones
    // may be used again after a second. Where that cannot be set, the kernel looks longer for free ones.
    let _ = std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
    // Whatever proxies keep between themselves is there.
    drop(warm(target)?);
    ready()?;
    let started = Instant::now();
    let one_by_one = |()| -> anyhow::Result<Histogram<u64>> {
        let mut times = histogram()?;
        let mut since = Instant::now();
        while since.duration_since(started) < length {
            let mut stream = dial(target)?;
            first_exchange(&mut stream)?;
            drop(stream);
            let now = Instant::now();
            times.saturating_record(nanoseconds(now.duration_since(since)));
            since = now;
        }
        Ok(times)
    };
    let mut times = histogram()?;
    for one in each(vec![(); at_a_time], one_by_one)? {
        times.add(one)?;
    }
    ensure!(!times.is_empty(), "no connection was made");
    done(&exchanges(started, &times))
}

/// One connection to each of others, with one exchange, so many at a time. They stay open until all were made: what closing costs
/// is not measured.
pub(super) fn cold(target: SocketAddr, others: &[SocketAddr], at_a_time: usize) -> anyhow::Result<()> {
    ensure!(!others.is_empty(), "nobody to connect to was named");
    // What a pod's first connection at all costs once, such as its certificate, is over.
    drop(warm(target)?);
    ready()?;
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let one_by_one = |()| -> anyhow::Result<(Histogram<u64>, Vec<TcpStream>)> {
        let (mut times, mut held) = (histogram()?, Vec::new());
        while let Some(other) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
            let since = Instant::now();
            let mut stream = dial(*other)?;
            first_exchange(&mut stream)?;
            times.saturating_record(nanoseconds(since.elapsed()));
            held.push(stream);
        }
        Ok((times, held))
    };
    let all = each(vec![(); at_a_time], one_by_one)?;
    let mut times = histogram()?;
    for (one, _) in &all {
        times.add(one)?;
    }
    done(&exchanges(started, &times))
}

/// What ends a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// Its time is over.
    End,
    /// A connection was refused.
    Refused,
    /// A connection was answered.
    Answered,
}

/// New connections, one after the other with a pause between them.
pub(super) fn probe(target: SocketAddr, until: Until, length: Duration) -> anyhow::Result<()> {
    if until != Until::Answered {
        drop(warm(target)?);
    }
    let (pause, length) = match until {
        Until::End => (Duration::from_millis(10), length),
        _ => (Duration::from_millis(1), STALL),
    };
    ready()?;
    let started = Instant::now();
    let mut measured = Measured::default();
    while started.elapsed() < length {
        let answered = dial(target).and_then(|mut stream| first_exchange(&mut stream)).is_ok();
        *(if answered { &mut measured.exchanges } else { &mut measured.refused }) += 1;
        if (until == Until::Answered && answered) || (until == Until::Refused && !answered) {
            return done(&Measured { seconds: started.elapsed().as_secs_f64(), ..measured });
        }
        std::thread::sleep(pause);
    }
    ensure!(until == Until::End, "no connection was {until:?} for {length:?}");
    done(&Measured { seconds: started.elapsed().as_secs_f64(), ..measured })
}
