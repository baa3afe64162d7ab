//! Passing descriptors over a unix stream (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Most descriptors that [`recv`] takes at a time.
pub const MOST: usize = 16;

/// Sends bytes (at least one) with descriptors. Returns how many bytes were sent: the descriptors went with the first
/// of them; send the rest as ordinary bytes. Cancel-safe: cancelled means nothing was sent.
pub async fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() || fds.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "needs at least one byte and at most 16 descriptors"));
    }
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    stream
        .async_io(Interest::WRITABLE, || {
            let rights = [ControlMessage::ScmRights(&raw)];
            let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
        })
        .await
}

/// Receives bytes and the descriptors that came with them, close-on-exec. No bytes: the peer has closed.
///
/// More than [`MOST`] descriptors are an error; those received are closed. Cancel-safe: cancelled means nothing was
/// received.
pub async fn recv(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    stream.async_io(Interest::READABLE, || recv_now(stream.as_raw_fd(), buffer)).await
}

fn recv_now(socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket, &mut slices, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than are accepted"));
    }
    Ok((message.bytes, fds))
}

/// A file in memory, without a path, close-on-exec.
pub fn memory_file(name: &str) -> io::Result<OwnedFd> {
    Ok(nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn a_passed_descriptor_works_on_the_other_side() {
        let (left, right) = UnixStream::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(send(&left, b"hello", &[writer.as_fd()]).await.unwrap(), 5);
        drop(writer);
        let mut buffer = [0; 16];
        let (bytes, fds) = recv(&right, &mut buffer).await.unwrap();
        assert_eq!((&buffer[..bytes], fds.len()), (&b"hello"[..], 1));
        let mut passed = std::fs::File::from(fds.into_iter().next().unwrap());
        io::Write::write_all(&mut passed, b"through").unwrap();
        drop(passed);
        let mut text = String::new();
        std::fs::File::from(OwnedFd::from(reader)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[tokio::test]
    async fn bytes_alone_and_the_end_are_received_too() {
        let (left, right) = UnixStream::pair().unwrap();
        send(&left, b"x", &[]).await.unwrap();
        drop(left);
        let mut buffer = [0; 4];
        assert_eq!(recv(&right, &mut buffer).await.unwrap().0, 1);
        assert_eq!(recv(&right, &mut buffer).await.unwrap().0, 0);
    }
}
