//! A packet socket: sees every frame of one interface, as an eavesdropper on the wire does (packet(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Kernel buffer asked for, in bytes; what it cannot hold is dropped and counted.
const RECEIVE_BUFFER: libc::c_int = 16 << 20;

/// A socket that receives every frame of an interface, both directions, Ethernet header included.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it in the calling thread's network namespace. Errors: no such interface; `CAP_NET_RAW` is missing.
    pub fn open(interface: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        // Protocol 0 receives nothing until the socket is bound, so that no frame of another interface slips in.
        // SAFETY: a plain system call; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by socket() and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::RcvBuf, &(RECEIVE_BUFFER as usize))?;
        // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: `address` is a sockaddr_ll of the length given and lives through the call.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast::<libc::sockaddr>(),
                std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    /// The next frame, cut to the buffer, or `None` where none came within `patience` (milliseconds count).
    pub fn receive(&self, frame: &mut [u8], patience: Duration) -> io::Result<Option<usize>> {
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], patience)? == 0 {
            return Ok(None);
        }
        match nix::sys::socket::recv(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many frames the kernel dropped since the last call.
    pub fn dropped(&self) -> io::Result<u64> {
        /// The kernel's `struct tpacket_stats`.
        #[repr(C)]
        #[derive(Default)]
        struct Statistics {
            packets: libc::c_uint,
            drops: libc::c_uint,
        }
        let mut statistics = Statistics::default();
        let mut length = std::mem::size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: the buffer is as long as `length` says and both live through the call.
        let read = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut statistics).cast::<libc::c_void>(),
                &raw mut length,
            )
        };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::from(statistics.drops))
    }
}
