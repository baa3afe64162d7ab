//! The server: the first line of a connection says what it is for, except on ports given as `banner:PORT`, where the
//! server speaks first.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use crate::Result;
use crate::data::{receive, send};

/// Serves until the process is killed.
pub fn serve(ports: &[&str]) -> Result {
    let mut listeners = Vec::new();
    for port in ports {
        let (banner, port) = match port.strip_prefix("banner:") {
            Some(port) => (true, port),
            None => (false, *port),
        };
        let port: u16 = port.parse()?;
        let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
        listeners.push(thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    // What goes wrong shows at the client.
                    let _ = if banner { speak_first(stream) } else { answer(stream) };
                });
            }
        }));
    }
    for listener in listeners {
        listener.join().map_err(|_| "a listener ended")?;
    }
    Ok(())
}

fn speak_first(mut stream: TcpStream) -> Result {
    stream.write_all(b"220 ready when you are\r\n")?;
    echo(stream)
}

fn echo(mut stream: TcpStream) -> Result {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(stream.shutdown(Shutdown::Write)?),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn answer(mut stream: TcpStream) -> Result {
    stream.set_nodelay(true)?;
    let line = first_line(&mut stream)?;
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["echo"] => echo(stream),
        // Who is connected, as TCP sees it, and who answers.
        ["who"] => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            Ok(write!(stream, "{} {}", stream.peer_addr()?, name.trim())?)
        }
        // Takes everything until the client's half-close, then answers with the sum: the other half still open.
        ["sink"] => {
            let sum = receive(&mut stream)?;
            Ok(write!(stream, "{} {}", sum.bytes, sum.value())?)
        }
        // Sends everything and closes its half first; the client's half is still open: what it says then is the answer
        // that the server wants to hear.
        ["source", seed, bytes] => {
            let sent = send(&mut stream, seed.parse()?, bytes.parse()?)?;
            stream.shutdown(Shutdown::Write)?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            if said != sent.value().to_string() {
                eprintln!("source: the client says {said:?}, sent {}", sent.value());
            }
            Ok(())
        }
        // Both directions at once.
        ["duplex", seed, bytes] => {
            let (seed, bytes) = (seed.parse()?, bytes.parse()?);
            let mut writer = stream.try_clone()?;
            let sender = thread::spawn(move || -> Result {
                send(&mut writer, seed, bytes)?;
                Ok(writer.shutdown(Shutdown::Write)?)
            });
            let received = receive(&mut stream)?;
            sender.join().map_err(|_| "the sender panicked")??;
            // Its own half is closed: the result goes to the log, the client has checked its side.
            println!("duplex {} {}", received.bytes, received.value());
            Ok(())
        }
        // Resets the connection: linger 0 discards what is unread.
        ["reset"] => Ok(()),
        other => Err(format!("unknown operation {other:?}").into()),
    }
}

/// Reads up to the first newline, a byte at a time: nothing after it may be swallowed.
fn first_line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    BufReader::with_capacity(1, stream).take(256).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8(line)?.trim_end().to_owned())
}
