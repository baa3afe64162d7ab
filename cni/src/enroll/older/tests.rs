use super::*;

fn socket(state: State, local: &str, remote: &str, cookie: u64) -> TcpSocket {
    TcpSocket {
        state,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        inode: 100 + u32::try_from(cookie).unwrap(),
        uid: 0,
        mark: Some(0),
        cgroup: None,
        cookie,
    }
}

fn marked(socket: TcpSocket) -> TcpSocket {
    TcpSocket { mark: Some(0x539), ..socket }
}

fn cookies(connections: &[Connection]) -> Vec<Option<u64>> {
    connections.iter().map(|connection| connection.cookie).collect()
}

#[test]
fn open_connections_with_the_outside_are_counted_in_both_directions() {
    let sockets = [
        socket(State::Established, "10.0.0.1:40000", "10.0.0.9:80", 1),
        socket(State::Established, "10.0.0.1:80", "10.0.0.8:50000", 2),
        socket(State::CloseWait, "[fd00::1]:40001", "[fd00::9]:80", 3),
        socket(State::FinWait1, "10.0.0.1:40002", "10.0.0.9:80", 4),
        socket(State::Listen, "0.0.0.0:80", "0.0.0.0:0", 5),
        socket(State::TimeWait, "10.0.0.1:40003", "10.0.0.9:80", 6),
        socket(State::SynSent, "10.0.0.1:40004", "10.0.0.9:80", 7),
    ];
    let found = uncaptured(&Facts::default(), &sockets);
    assert_eq!(cookies(&found), [Some(1), Some(2), Some(3), Some(4)]);
}

#[test]
fn what_stays_in_the_pod_is_not_counted() {
    let sockets = [
        socket(State::Established, "127.0.0.1:40000", "127.0.0.1:80", 1),
        socket(State::Established, "127.0.0.1:80", "127.0.0.1:40000", 2),
        socket(State::Established, "10.0.0.1:40001", "10.0.0.1:80", 3),
        socket(State::Established, "10.0.0.1:80", "10.0.0.1:40001", 4),
    ];
    assert_eq!(uncaptured(&Facts::default(), &sockets), []);
}

#[test]
fn what_the_tunnel_carries_is_not_counted() {
    let sockets = [
        // The application's end and the tunnel's end of a redirected connection.
        socket(State::Established, "10.0.0.1:40000", "10.0.0.9:80", 1),
        marked(socket(State::Established, "127.0.0.1:15001", "10.0.0.1:40000", 2)),
        // One that the tunnel opened to the application with its client's address.
        socket(State::Established, "10.0.0.1:80", "10.0.0.8:50000", 3),
        marked(socket(State::Established, "10.0.0.8:50000", "10.0.0.1:80", 4)),
        // The tunnel's own, in and out.
        marked(socket(State::Established, "10.0.0.1:41000", "10.0.0.9:15008", 5)),
        marked(socket(State::Established, "10.0.0.1:15008", "10.0.0.8:42000", 6)),
        socket(State::Established, "10.0.0.1:15006", "10.0.0.8:42001", 7),
    ];
    assert_eq!(uncaptured(&Facts::default(), &sockets), []);
    assert_eq!(in_tunnel(&sockets), 3);
}

#[test]
fn what_the_facts_leave_alone_is_not_counted() {
    let sockets = [
        socket(State::Listen, "0.0.0.0:80", "0.0.0.0:0", 1),
        socket(State::Established, "10.0.0.1:80", "10.0.0.8:50000", 2),
        socket(State::Established, "10.0.0.1:40000", "10.0.0.9:80", 3),
        socket(State::Established, "10.0.0.1:80", "169.254.7.127:50000", 4),
    ];
    assert_eq!(cookies(&uncaptured(&Facts::default(), &sockets)), [Some(2), Some(3)]);
    let bypassed = Facts { inbound: Inbound::Bypassed, ..Facts::default() };
    assert_eq!(cookies(&uncaptured(&bypassed, &sockets)), [Some(3)]);
}

#[test]
fn a_connection_counts_until_its_socket_is_gone() {
    let open = socket(State::Established, "10.0.0.1:40000", "10.0.0.9:80", 1);
    let other = socket(State::Established, "10.0.0.1:40001", "10.0.0.9:80", 2);
    let older = uncaptured(&Facts::default(), &[open.clone(), other.clone()]);
    let closing = TcpSocket { state: State::FinWait1, ..open };
    assert_eq!(cookies(&remaining(&older, &[closing.clone(), other])), [Some(1), Some(2)]);
    let orphan = TcpSocket { state: State::FinWait2, inode: 0, ..closing };
    assert_eq!(remaining(&older, &[orphan]), []);
}

#[test]
fn another_connection_with_the_same_ends_is_not_an_older_one() {
    let before = socket(State::Established, "10.0.0.1:40000", "10.0.0.9:80", 1);
    let after = socket(State::Established, "10.0.0.1:40000", "10.0.0.9:80", 9);
    let older = uncaptured(&Facts::default(), &[before]);
    assert_eq!(remaining(&older, &[after]), []);
}

#[test]
fn a_half_open_inbound_connection_is_followed_by_its_ends() {
    let half = TcpSocket { inode: 0, ..socket(State::NewSynReceived, "10.0.0.1:80", "10.0.0.8:50000", 1) };
    let older = uncaptured(&Facts::default(), &[half]);
    assert_eq!(cookies(&older), [None]);
    let open = socket(State::Established, "10.0.0.1:80", "10.0.0.8:50000", 2);
    let now = remaining(&older, &[open]);
    assert_eq!(cookies(&now), [Some(2)]);
    let reused = socket(State::Established, "10.0.0.1:80", "10.0.0.8:50000", 3);
    assert_eq!(remaining(&now, &[reused]), []);
}
