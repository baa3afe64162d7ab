//! The client: one operation, checked, reported as one JSON line.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::data::{Sum, receive, send};

/// No single read or write may stall longer.
const STALL: Duration = Duration::from_secs(60);

/// Runs `operation` against `address` (`host:port`).
pub fn run(operation: &str, address: &str, rest: &[&str]) -> Result {
    let number = |at: usize| -> Result<u64> { Ok(rest.get(at).ok_or("an argument is missing")?.parse()?) };
    match operation {
        "who" => println!("{{\"seen\":\"{}\"}}", ask(address, "who")?),
        "echo" => echo(address)?,
        "banner" => banner(address)?,
        "sink" => sink(address, number(0)?)?,
        "source" => source(address, number(0)?)?,
        "duplex" => duplex(address, number(0)?)?,
        "many" => many(address, number(0)?)?,
        "hold" => {
            let word = rest.get(2).copied().unwrap_or("still here");
            hold(address, &Hold { lines: number(0)?, every: Duration::from_millis(number(1)?), word })?;
        }
        "connect" => drop(connect(address)?),
        "http" => http(address, rest)?,
        "repeat" => repeat(address, Duration::from_millis(number(0)?))?,
        other => return Err(format!("unknown operation {other}").into()),
    }
    Ok(())
}

fn connect(address: &str) -> Result<TcpStream> {
    let mut last: Box<dyn std::error::Error + Send + Sync> = format!("{address} has no address").into();
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, Duration::from_secs(15)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(STALL))?;
                stream.set_write_timeout(Some(STALL))?;
                return Ok(stream);
            }
            Err(error) => last = format!("connect to {candidate}: {error}").into(),
        }
    }
    Err(last)
}

fn open(address: &str, operation: &str) -> Result<TcpStream> {
    let mut stream = connect(address)?;
    stream.write_all(format!("{operation}\n").as_bytes())?;
    Ok(stream)
}

fn ask(address: &str, operation: &str) -> Result<String> {
    let mut answer = String::new();
    open(address, operation)?.read_to_string(&mut answer)?;
    if answer.is_empty() { Err("the connection ended without an answer".into()) } else { Ok(answer) }
}

fn expect_echo(stream: &mut TcpStream, message: &[u8]) -> Result {
    stream.write_all(message)?;
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back)?;
    if back == message { Ok(()) } else { Err("the echo differs".into()) }
}

fn echo(address: &str) -> Result {
    let mut stream = open(address, "echo")?;
    let started = Instant::now();
    for length in [1, 10, 1000, 100_000] {
        expect_echo(&mut stream, &vec![0x61; length])?;
    }
    println!("{{\"echoed\":101011,\"us\":{}}}", started.elapsed().as_micros());
    Ok(())
}

/// The server speaks first; the client is silent until it has heard it.
fn banner(address: &str) -> Result {
    let mut stream = connect(address)?;
    let mut banner = [0; 24];
    stream.read_exact(&mut banner)?;
    if !banner.starts_with(b"220 ") {
        return Err(format!("not a banner: {banner:?}").into());
    }
    expect_echo(&mut stream, b"thanks")?;
    println!("{{\"banner\":true}}");
    Ok(())
}

/// Sends, closes its half, and reads the answer through the other half.
fn sink(address: &str, bytes: u64) -> Result {
    let mut stream = open(address, "sink")?;
    let sent = send(&mut stream, 1, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let expected = format!("{} {}", sent.bytes, sent.value());
    if answer != expected {
        return Err(format!("the server got {answer:?}, sent {expected:?}").into());
    }
    println!("{{\"sent\":{bytes}}}");
    Ok(())
}

/// Receives to the server's half-close, then still speaks through its own half.
fn source(address: &str, bytes: u64) -> Result {
    let mut stream = open(address, &format!("source 2 {bytes}"))?;
    let received = receive(&mut stream)?;
    check(received, 2, bytes)?;
    stream.write_all(received.value().to_string().as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    println!("{{\"received\":{bytes}}}");
    Ok(())
}

fn duplex(address: &str, bytes: u64) -> Result {
    let mut stream = open(address, &format!("duplex 3 {bytes}"))?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || -> Result {
        send(&mut writer, 4, bytes)?;
        Ok(writer.shutdown(Shutdown::Write)?)
    });
    let received = receive(&mut stream)?;
    sender.join().map_err(|_| "the sender panicked")??;
    check(received, 3, bytes)?;
    println!("{{\"both\":{bytes}}}");
    Ok(())
}

/// Whether what came is the pattern of `seed`.
fn check(received: Sum, seed: u64, bytes: u64) -> Result {
    let expected = send(&mut std::io::sink(), seed, bytes)?;
    if (received.bytes, received.value()) == (expected.bytes, expected.value()) {
        return Ok(());
    }
    Err(format!("{} bytes came, {bytes} were to come, or their sum differs", received.bytes).into())
}

/// Opens `count` connections, all at the same time, and uses each.
fn many(address: &str, count: u64) -> Result {
    let mut streams = Vec::new();
    let openers: Vec<_> = (0..16)
        .map(|opener| {
            let address = address.to_owned();
            thread::spawn(move || -> Result<Vec<TcpStream>> {
                (0..count).filter(|index| index % 16 == opener).map(|_| open(&address, "echo")).collect()
            })
        })
        .collect();
    for opener in openers {
        streams.extend(opener.join().map_err(|_| "an opener panicked")??);
    }
    for stream in &mut streams {
        expect_echo(stream, b"all of us at once")?;
    }
    println!("{{\"connections\":{}}}", streams.len());
    Ok(())
}

/// A connection that is used now and then for a long time.
struct Hold<'a> {
    lines: u64,
    every: Duration,
    word: &'a str,
}

/// Echoes a line at a time on one connection, each on its own line of output as soon as it is back.
fn hold(address: &str, hold: &Hold<'_>) -> Result {
    let mut stream = open(address, "echo")?;
    for line in 0..hold.lines {
        expect_echo(&mut stream, hold.word.as_bytes())?;
        println!("{{\"held\":{line}}}");
        std::io::stdout().flush()?;
        thread::sleep(hold.every);
    }
    Ok(())
}

/// One HTTP/1.1 request; prints status and body.
fn http(address: &str, rest: &[&str]) -> Result {
    let path = rest.first().unwrap_or(&"/");
    let mut stream = connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).ok_or("no status line")?;
    if status != "200" {
        return Err(format!("status {status}").into());
    }
    print!("{}", answer.split_once("\r\n\r\n").ok_or("no body")?.1);
    Ok(())
}

/// New connections, one after another, until `length` has passed; counts what failed.
fn repeat(address: &str, length: Duration) -> Result {
    let started = Instant::now();
    let (mut tried, mut failed, mut last) = (0_u64, 0_u64, String::new());
    while started.elapsed() < length {
        tried += 1;
        let began = started.elapsed();
        if let Err(error) = open(address, "echo").and_then(|mut stream| expect_echo(&mut stream, b"again")) {
            failed += 1;
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            last = format!("{error} (begun {:?} ago, now {} s)", started.elapsed() - began, now.as_secs_f64());
            thread::sleep(Duration::from_millis(10));
        }
    }
    println!("{{\"tried\":{tried},\"failed\":{failed},\"last\":\"{last}\"}}");
    Ok(())
}
