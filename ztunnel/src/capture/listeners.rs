//! The listening sockets of a pod, made inside its network namespace by the thread that lives there.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use stillmesh_runtime::sys::netns::NetnsThread;
use stillmesh_runtime::sys::socket::{self, Mark, Options};

use crate::config::Config;

/// Where captured outbound connections are redirected to.
pub const OUTBOUND: u16 = 15001;
/// Where captured inbound connections are redirected to.
pub const INBOUND_PLAIN: u16 = 15006;
/// Where HBONE peers connect.
pub const INBOUND_HBONE: u16 = 15008;

/// All of them.
#[derive(Debug)]
pub struct Listeners {
    /// [`OUTBOUND`].
    pub outbound: TcpListener,
    /// [`INBOUND_PLAIN`].
    pub inbound_plain: TcpListener,
    /// [`INBOUND_HBONE`].
    pub inbound_hbone: TcpListener,
    /// The DNS proxy's, both transports per address.
    pub dns: Vec<(UdpSocket, TcpListener)>,
}

/// A listener that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {what} in the pod's namespace: {source}")]
pub struct ListenError {
    /// Which one.
    pub what: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// Makes all listeners of a pod.
pub async fn listen(thread: &NetnsThread, config: &Config) -> Result<Listeners, ListenError> {
    let mark = Some(Mark(config.mark.get()));
    let plain = Options { mark, transparent: false, reuse_port: config.port_reuse };
    let transparent = Options { transparent: true, ..plain };
    let dns: Vec<SocketAddr> = config.dns.as_ref().map(|dns| dns.listen.clone()).unwrap_or_default();
    let made = thread.run(move || {
        let any = |port: u16, options| {
            socket::tcp_listener_any(port, options)
                .map_err(|source| ListenError { what: format!("port {port}"), source })
        };
        Ok(Listeners {
            outbound: any(OUTBOUND, plain)?,
            inbound_plain: any(INBOUND_PLAIN, transparent)?,
            inbound_hbone: any(INBOUND_HBONE, transparent)?,
            dns: dns
                .into_iter()
                .filter_map(|address| dns_pair(address, plain).transpose())
                .collect::<Result<_, _>>()?,
        })
    });
    made.await.map_err(|source| ListenError { what: "any port".to_owned(), source })?
}

/// `None` for an IPv6 address where the namespace has no IPv6.
fn dns_pair(address: SocketAddr, options: Options) -> Result<Option<(UdpSocket, TcpListener)>, ListenError> {
    let pair = socket::udp_socket(address, options).and_then(|udp| Ok((udp, socket::tcp_listener(address, options)?)));
    match pair {
        Ok(pair) => Ok(Some(pair)),
        Err(error) if address.is_ipv6() && no_family(&error) => Ok(None),
        Err(source) => Err(ListenError { what: address.to_string(), source }),
    }
}

fn no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}
