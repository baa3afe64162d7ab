//! The floor as a process, and sockets that do not wait for ever.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::SockRef;

pub const FLOOR: &str = env!("CARGO_BIN_EXE_floor");
/// Of each wait.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Floor {
    pub address: SocketAddr,
    child: Child,
    ended: Receiver<String>,
}

impl Floor {
    pub fn start(role: &str, listen: &str, to: SocketAddr) -> Result<Self> {
        Self::start_with(&mut Command::new(FLOOR), role, listen, to)
    }

    /// Started by a command that takes its arguments.
    pub fn start_with(command: &mut Command, role: &str, listen: &str, to: SocketAddr) -> Result<Self> {
        command.args([role, "--listen", listen, "--to", &to.to_string()]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("its stdout")?);
        let (tell, told) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = tell.send(line);
            // To its end, which is the process's: nothing more may be printed.
            let mut rest = String::new();
            let _ = stdout.read_to_string(&mut rest);
            let _ = tell.send(rest);
        });
        let mut floor = Self { address: listen.parse()?, child, ended: told };
        let line = floor.ended.recv_timeout(DEADLINE).context("its address")?;
        floor.address = line.strip_suffix('\n').context("a whole line")?.parse().context("an address")?;
        ensure!(floor.address.port() != 0, "a port that was bound");
        Ok(floor)
    }

    /// Tells it to end, and returns what it has said.
    pub fn stop(mut self) -> Result<String> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let rest = self.ended.recv_timeout(DEADLINE).context("its end")?;
        ensure!(rest.is_empty(), "printed more: {rest}");
        let status = self.child.wait()?;
        let mut said = String::new();
        self.child.stderr.take().context("its stderr")?.read_to_string(&mut said)?;
        ensure!(status.success(), "{status}: {said}");
        Ok(said)
    }

    /// The most memory that was resident at a time.
    pub fn most_memory_kib(&self) -> Result<usize> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.child.id().try_into()?))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn with_deadlines(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Accepts one connection.
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    // What an accept waits at most is the listener's deadline for reads.
    SockRef::from(listener).set_read_timeout(Some(DEADLINE))?;
    with_deadlines(listener.accept().context("nobody has connected")?.0)
}
