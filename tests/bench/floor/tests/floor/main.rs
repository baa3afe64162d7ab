//! Both ends of the floor as processes, on loopback: what goes in comes out, and what breaks is seen to break.

mod process;
mod tap;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use socket2::{Domain, SockRef, Socket, Type};

use process::{DEADLINE, Floor, with_deadlines};
use tap::Tap;

const ANY: &str = "127.0.0.1:0";

/// A client end, a server end, and the application behind them.
struct Chain {
    client: Floor,
    server: Floor,
    application: TcpListener,
}

impl Chain {
    fn start(on: &str) -> Result<Self> {
        let application = TcpListener::bind(on)?;
        let server = Floor::start("server", on, application.local_addr()?)?;
        let client = Floor::start("client", on, server.address)?;
        Ok(Self { client, server, application })
    }

    /// A connection through both, at both of its ends.
    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let near = with_deadlines(TcpStream::connect_timeout(&self.client.address, DEADLINE)?)?;
        Ok((near, process::accept(&self.application)?))
    }
}

/// As many bytes as these, always the same for a seed.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Writes all of it, in pieces of up to `most` bytes, and then ends this direction.
fn send(mut to: &TcpStream, bytes: &[u8], most: usize, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(random.random_range(1..=most).min(rest.len()));
        to.write_all(now).context("send")?;
        rest = later;
    }
    to.shutdown(Shutdown::Write).context("end")
}

/// Reads to the end, in pieces of up to `most` bytes.
fn receive(mut from: &TcpStream, most: usize, seed: u64) -> Result<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; most]);
    loop {
        let length = random.random_range(1..=most);
        match from.read(&mut buffer[..length]).with_context(|| format!("receive, after {}", bytes.len()))? {
            0 => return Ok(bytes),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Bytes both ways at once through a connection, in random pieces, to the end of both.
fn exchange(near: TcpStream, far: TcpStream, seed: u64, length: usize, most: usize) -> Result<()> {
    let (there, back) = (bytes(seed, length), bytes(seed + 1, length));
    let (come, answer) = thread::scope(|scope| {
        let sent = [scope.spawn(|| send(&near, &there, most, seed)), scope.spawn(|| send(&far, &back, most, seed + 1))];
        let come = scope.spawn(|| receive(&far, most, seed + 2));
        let answer = receive(&near, most, seed + 3);
        for sent in sent {
            joined(sent)?;
        }
        Ok::<_, anyhow::Error>((joined(come)?, answer?))
    })?;
    ensure!(come == there, "{} bytes came of {} there", come.len(), there.len());
    ensure!(answer == back, "{} bytes came of {} back", answer.len(), back.len());
    Ok(())
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("panicked"))?
}

/// The most bytes that the kernel buffers for a socket, by this setting.
fn most_buffered(setting: &str) -> Result<usize> {
    let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{setting}"))?;
    Ok(setting.split_whitespace().last().context("three numbers")?.parse()?)
}

/// Whether a read says that the connection was reset, and not that it ended.
fn is_reset(mut stream: &TcpStream) -> Result<bool> {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error).context("neither end nor reset"),
    }
}

#[test]
fn bytes_arrive_unchanged_both_ways_on_several_connections_at_once() -> Result<()> {
    for on in [ANY, "[::1]:0"] {
        let chain = Chain::start(on)?;
        thread::scope(|scope| -> Result<()> {
            let mut running = Vec::new();
            for number in 0..8 {
                let (near, far) = chain.connect()?;
                // Some in many small pieces, some in few large ones.
                let (length, most) = if number % 2 == 0 { (100_000, 300) } else { (3_000_000, 200_000) };
                running.push(scope.spawn(move || exchange(near, far, 10 * number, length, most)));
            }
            running.into_iter().try_for_each(joined)
        })?;
        assert_eq!(chain.client.stop()?, "");
        assert_eq!(chain.server.stop()?, "");
    }
    Ok(())
}

#[test]
fn a_half_close_passes_on_and_the_other_half_goes_on() -> Result<()> {
    let chain = Chain::start(ANY)?;
    for turn in 0..2 {
        let (near, far) = chain.connect()?;
        let (first, second) = if turn == 0 { (near, far) } else { (far, near) };
        send(&first, b"question", 9, 0)?;
        assert_eq!(receive(&second, 100, 0)?, b"question");
        send(&second, b"answer", 9, 0)?;
        assert_eq!(receive(&first, 100, 0)?, b"answer");
    }
    // Nothing at all, either way.
    let (near, far) = chain.connect()?;
    send(&near, b"", 1, 0)?;
    assert_eq!(receive(&far, 1, 0)?, b"");
    drop(far);
    assert_eq!(receive(&near, 1, 0)?, b"");
    assert_eq!(chain.server.stop()?, "");
    Ok(())
}

#[test]
fn a_slow_reader_bounds_the_sender_and_nothing_is_lost() -> Result<()> {
    // The kernel's buffers may take much, on six sockets.
    let too_much = 6 * (most_buffered("tcp_rmem")? + most_buffered("tcp_wmem")?);
    let chain = Chain::start(ANY)?;
    let (near, far) = chain.connect()?;
    for (mut writer, reader) in [(&near, &far), (&far, &near)] {
        writer.set_write_timeout(Some(Duration::from_millis(500)))?;
        let chunk = bytes(7, 1 << 16);
        let mut sent = 0;
        let left = loop {
            match writer.write(&chunk[sent % chunk.len()..]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break sent,
                Err(error) => return Err(error.into()),
            }
            ensure!(sent < too_much, "{sent} bytes were taken and nothing was read");
        };
        for floor in [&chain.client, &chain.server] {
            ensure!(floor.most_memory_kib()? < 32 << 10, "{} KiB of memory", floor.most_memory_kib()?);
        }
        // Others are not held up.
        let (second_near, second_far) = chain.connect()?;
        exchange(second_near, second_far, 3, 50_000, 1_000)?;

        writer.set_write_timeout(Some(DEADLINE))?;
        writer.shutdown(Shutdown::Write)?;
        let come = receive(reader, 1 << 17, 1)?;
        ensure!(come.len() == left, "{} of {left} bytes came", come.len());
        ensure!(come.chunks(chunk.len()).all(|part| part == &chunk[..part.len()]), "other bytes came");
    }
    Ok(())
}

#[test]
fn records_arrive_in_pieces_and_nothing_is_seen_on_the_way() -> Result<()> {
    let application = TcpListener::bind(ANY)?;
    let server = Floor::start("server", ANY, application.local_addr()?)?;
    let tap = Tap::start(server.address)?;
    let client = Floor::start("client", ANY, tap.address)?;
    let near = with_deadlines(TcpStream::connect(client.address)?)?;
    let crossing = tap.carry(|bytes, number| {
        // Each byte alone at first, then pieces that end anywhere.
        bytes.chunks(if number < 20 { 1 } else { 977 }).map(<[u8]>::to_vec).collect()
    });
    let far = process::accept(&application)?;
    near.set_nodelay(true)?;
    exchange(near, far, 5, 200_000, 5_000)?;
    let seen = crossing.seen()?;
    assert_eq!(seen[..3], [23, 3, 3]);
    let secret = bytes(5, 200_000);
    ensure!(!seen.windows(16).any(|part| part == &secret[..16]), "the bytes are on the wire as they are");
    Ok(())
}

#[test]
fn a_changed_record_ends_the_connection_on_both_sides() -> Result<()> {
    let application = TcpListener::bind(ANY)?;
    let server = Floor::start("server", ANY, application.local_addr()?)?;
    let tap = Tap::start(server.address)?;
    let client = Floor::start("client", ANY, tap.address)?;
    let mut near = with_deadlines(TcpStream::connect(client.address)?)?;
    let _crossing = tap.carry(|bytes, number| {
        let mut bytes = bytes.to_vec();
        if let (true, Some(last)) = (number > 0, bytes.last_mut()) {
            *last ^= 0x10;
        }
        vec![bytes]
    });
    let mut far = process::accept(&application)?;
    near.write_all(b"whole")?;
    let mut come = [0; 5];
    far.read_exact(&mut come)?;
    assert_eq!(&come, b"whole");
    near.write_all(b"changed")?;
    assert!(is_reset(&far)?);
    assert!(is_reset(&near)?);
    let told = server.stop()?;
    assert_eq!(told, "1 of 1 connections broke off; the last: tunnel: record 1 does not open\n");
    Ok(())
}

#[test]
fn a_tunnel_that_is_cut_off_is_not_the_end_of_the_stream() -> Result<()> {
    let application = TcpListener::bind(ANY)?;
    let server = Floor::start("server", ANY, application.local_addr()?)?;
    let mut tunnel = with_deadlines(TcpStream::connect(server.address)?)?;
    let far = process::accept(&application)?;
    tunnel.write_all(&[23, 3])?;
    tunnel.shutdown(Shutdown::Write)?;
    assert!(is_reset(&far)?);
    assert_eq!(server.stop()?, "1 of 1 connections broke off; the last: tunnel: closed without END_STREAM\n");
    Ok(())
}

#[test]
fn a_reset_passes_on() -> Result<()> {
    let chain = Chain::start(ANY)?;
    for turn in 0..2 {
        let (near, far) = chain.connect()?;
        let (first, second) = if turn == 0 { (near, far) } else { (far, near) };
        SockRef::from(&first).set_linger(Some(Duration::ZERO))?;
        drop(first);
        assert!(is_reset(&second)?);
    }
    Ok(())
}

#[test]
fn a_next_hop_that_is_not_there_resets_and_the_next_connection_is_carried() -> Result<()> {
    // A port that is taken, and that nobody listens on.
    let place = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    place.bind(&ANY.parse::<SocketAddr>()?.into())?;
    let to = place.local_addr()?.as_socket().context("an address")?;
    let server = Floor::start("server", ANY, to)?;
    let client = Floor::start("client", ANY, server.address)?;
    assert!(is_reset(&with_deadlines(TcpStream::connect(client.address)?)?)?);
    place.listen(1)?;
    let chain = Chain { client, server, application: place.into() };
    let (near, far) = chain.connect()?;
    exchange(near, far, 1, 10_000, 100)?;
    let told = chain.server.stop()?;
    ensure!(told.starts_with("1 of 2 connections broke off; the last: plain side: Connection refused"), "{told}");
    Ok(())
}

#[test]
fn an_idle_connection_holds_no_buffer() -> Result<()> {
    let chain = Chain::start(ANY)?;
    let mut idle = Vec::new();
    let mut before = Vec::new();
    for number in 0..100 {
        let (near, far) = chain.connect()?;
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            let chunk = bytes(number, 200_000);
            let mut come = vec![0; chunk.len()];
            thread::scope(|scope| {
                let sent = scope.spawn(|| from.write_all(&chunk).context("send"));
                to.read_exact(&mut come)?;
                joined(sent)
            })?;
            ensure!(come == chunk);
        }
        idle.push((near, far));
        if number == 9 {
            before = vec![chain.client.most_memory_kib()?, chain.server.most_memory_kib()?];
        }
    }
    let after = [chain.client.most_memory_kib()?, chain.server.most_memory_kib()?];
    // One buffer each would be 96 KiB.
    ensure!(
        before.iter().zip(after).all(|(before, after)| after < before + 90 * 24),
        "from {before:?} to {after:?} KiB"
    );
    Ok(())
}

#[test]
fn connections_beyond_the_descriptors_wait_for_those_before_them() -> Result<()> {
    // Some are its own, then two for each connection: once they run out between connections, once within one.
    for descriptors in [15, 16] {
        let application = TcpListener::bind(ANY)?;
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), process::FLOOR]);
        let server = Floor::start_with(&mut limited, "server", ANY, application.local_addr()?)?;
        let client = Floor::start("client", ANY, server.address)?;
        let mut waiting = Vec::new();
        for number in 0..12_u8 {
            let mut near = with_deadlines(TcpStream::connect(client.address)?)?;
            near.write_all(&[number])?;
            waiting.push(near);
        }
        // Each that ends makes room for another.
        for _ in 0..waiting.len() {
            let mut far = process::accept(&application)?;
            let mut number = [0];
            far.read_exact(&mut number)?;
            far.write_all(b"served")?;
            drop(far);
            let near = &waiting[usize::from(number[0])];
            assert_eq!(receive(near, 10, 0)?, b"served");
            near.shutdown(Shutdown::Write)?;
        }
        assert_eq!(server.stop()?, "");
    }
    Ok(())
}

#[test]
fn what_it_cannot_do_is_said() -> Result<()> {
    let taken = TcpListener::bind(ANY)?.local_addr()?;
    let _listener = TcpListener::bind(taken)?;
    let cases: [(&[&str], i32, &str); 4] = [
        (&["middle", "--listen", ANY, "--to", ANY], 2, "[possible values: client, server]"),
        (&["client", "--listen", ANY], 2, "--to <ADDRESS:PORT>"),
        (&["client", "--listen", "localhost", "--to", ANY], 2, "invalid socket address syntax"),
        (
            &["client", "--listen", &taken.to_string(), "--to", ANY],
            1,
            "name an address of this machine and a free port",
        ),
    ];
    for (arguments, code, said) in cases {
        let output = Command::new(process::FLOOR).args(arguments).output()?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(code) && told.contains(said), "{arguments:?}: {}: {told}", output.status);
        ensure!(output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn it_ends_when_told_and_resets_what_is_open() -> Result<()> {
    let chain = Chain::start(ANY)?;
    let (near, _far) = chain.connect()?;
    chain.client.stop()?;
    assert!(is_reset(&near)?);
    Ok(())
}
