//! A server for other programs to try: `cargo run -p stillmesh-http2 --example listen`. It says its port on loopback, answers
//! CONNECT with 200 and sends back what it gets, and answers everything else, once it has come, with 400. One thread each, for
//! as long as it is fed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use stillmesh_http2::{Config, Connection, Event, Room};

/// A silent client is left after that.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    writeln!(io::stdout(), "{}", listener.local_addr()?.port())?;
    for accepted in listener.incoming() {
        let stream = accepted?;
        std::thread::spawn(move || serve(stream));
    }
    Ok(())
}

/// What is to be sent back on a stream, and whether the end follows.
type Queue = (VecDeque<u8>, bool);

fn serve(mut io: TcpStream) -> io::Result<()> {
    io.set_read_timeout(Some(PATIENCE))?;
    io.set_write_timeout(Some(PATIENCE))?;
    io.set_nodelay(true)?;
    let mut connection = Connection::server(Config { max_frame: 1 << 14, ..Config::server() });
    let (mut tunnels, mut others) = (BTreeMap::<u32, Queue>::new(), BTreeSet::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        write(&mut connection, &mut tunnels, &mut io)?;
        if connection.is_done() {
            if let Some(error) = connection.failure() {
                writeln!(io::stderr(), "{error}")?;
            }
            return leave(&io);
        }
        let read = io.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        let mut input = buffer.get(..read).unwrap_or_default();
        // An error is the end: its GOAWAY goes out, and `is_done` says so.
        while let Ok(Some(event)) = connection.receive(&mut input) {
            match event {
                Event::Request { stream, request } if request.method == "CONNECT" => {
                    answer(&mut connection, stream, StatusCode::OK)?;
                    tunnels.insert(stream, Queue::default());
                }
                Event::Request { stream, .. } => drop(others.insert(stream)),
                Event::Data { stream, bytes } => {
                    connection.release(stream, u32::try_from(bytes.len()).unwrap_or(0));
                    if let Some((queue, _)) = tunnels.get_mut(&stream) {
                        queue.extend(bytes);
                    }
                }
                Event::End { stream } if others.remove(&stream) => {
                    answer(&mut connection, stream, StatusCode::BAD_REQUEST)?;
                }
                Event::End { stream } => {
                    if let Some((_, end)) = tunnels.get_mut(&stream) {
                        *end = true;
                    }
                }
                Event::Reset { stream, .. } | Event::Failed { stream, .. } => {
                    tunnels.remove(&stream);
                    others.remove(&stream);
                }
                _ => {}
            }
        }
    }
}

/// Lets the client read what was written last: what it has sent besides would make a reset of the end.
fn leave(io: &TcpStream) -> io::Result<()> {
    io.shutdown(Shutdown::Write)?;
    io.set_read_timeout(Some(Duration::from_secs(1)))?;
    io::copy(&mut io.take(1 << 20), &mut io::sink())?;
    Ok(())
}

fn answer(connection: &mut Connection, stream: u32, status: StatusCode) -> io::Result<()> {
    let end = status != StatusCode::OK;
    connection.respond(stream, status, &HeaderMap::new(), end).map_err(io::Error::other)
}

/// Writes what can be.
fn write(connection: &mut Connection, tunnels: &mut BTreeMap<u32, Queue>, io: &mut TcpStream) -> io::Result<()> {
    let mut out = connection.output().to_vec();
    connection.output_taken(out.len());
    tunnels.retain(|stream, (queue, end)| {
        while !queue.is_empty() || *end {
            let length = match connection.room(*stream) {
                Room::Bytes(room) => queue.len().min(room as usize),
                _ if queue.is_empty() => 0,
                _ => return true,
            };
            let last = *end && length == queue.len();
            let Ok(head) = connection.data(*stream, u32::try_from(length).unwrap_or(0), last) else { return false };
            out.extend_from_slice(&head);
            out.extend(queue.drain(..length));
            if last {
                return false;
            }
        }
        true
    });
    io.write_all(&out)
}
