//! Pipes that bytes are moved through without being copied (splice). Nothing here waits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// A pipe, close-on-exec. It knows how many bytes are in it.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// A pipe for `bytes`; one of the kernel's usual size where it does not give as much. Errors: out of descriptors.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // All pipes of a user together are bounded: one that is smaller moves as well.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(bytes).unwrap_or(i32::MAX)));
        Ok(Self { read, write, held: 0 })
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most so many bytes from a socket into an empty pipe; 0 is the socket's end. `WouldBlock`: it has none.
    pub fn fill(&mut self, from: &impl AsFd, most: usize) -> io::Result<usize> {
        let moved = splice(from, None, &self.write, None, most, FLAGS)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what is in it to a socket, as much as that takes. `WouldBlock`: it takes nothing.
    pub fn empty(&mut self, to: &impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.read, None, to, None, self.held, FLAGS)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_pass_and_are_counted_on_their_way() {
        let (mut client, near) = connected();
        let (far, mut server) = connected();
        let mut pipe = Pipe::new(64 << 10).unwrap();
        near.set_nonblocking(true).unwrap();
        assert_eq!(pipe.fill(&near, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        near.set_nonblocking(false).unwrap();
        client.write_all(b"hello").unwrap();
        let mut peeked = [0; 5];
        while near.peek(&mut peeked).unwrap() < 5 {}
        assert_eq!((pipe.fill(&near, 2).unwrap(), pipe.held()), (2, 2));
        assert_eq!((pipe.empty(&far).unwrap(), pipe.held()), (2, 0));
        assert_eq!((pipe.fill(&near, 100).unwrap(), pipe.empty(&far).unwrap()), (3, 3));
        drop(client);
        near.peek(&mut peeked).unwrap();
        assert_eq!(pipe.fill(&near, 100).unwrap(), 0);
        drop(far);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
