//! Our end of a connection: a session and its buffers, in memory. It moves to another process after every call that is told to.

use stillmesh_tls::record::{HEADER, MAX_CONTENT, TRAILER};
use stillmesh_tls::session::{KeyUpdateRequest, MAX_DUE};
use stillmesh_tls::{Established, Exported, Received, Session, SessionError};

pub struct End {
    session: Option<Session>,
    incoming: Vec<u8>,
    /// Whether each call begins with an export and an import.
    pub moves: bool,
    /// Records that held no application data.
    pub others: usize,
}

/// What came.
#[derive(Debug, Default, PartialEq)]
pub struct Came {
    pub data: Vec<u8>,
    pub closed: bool,
}

impl End {
    pub fn new(established: Established) -> Self {
        Self { session: Some(established.session), incoming: established.leftover, moves: false, others: 0 }
    }

    pub fn session(&mut self) -> &mut Session {
        let session = self.session.take().unwrap();
        let session = if self.moves {
            let bytes = session.export().to_bytes();
            Session::import(Exported::from_bytes(&bytes).unwrap()).unwrap()
        } else {
            session
        };
        self.session.insert(session)
    }

    /// What is due, then this as application data.
    pub fn send(&mut self, data: &[u8]) -> Vec<u8> {
        let mut wire = self.due();
        for content in data.chunks(MAX_CONTENT) {
            let start = wire.len();
            wire.extend([0; HEADER]);
            wire.extend(content);
            wire.extend([0; TRAILER]);
            assert_eq!(self.session().seal(&mut wire[start..], content.len()).unwrap(), wire.len() - start);
        }
        wire
    }

    pub fn due(&mut self) -> Vec<u8> {
        let mut room = vec![0; MAX_DUE];
        let length = self.session().seal_due(&mut room).unwrap();
        room.truncate(length);
        room
    }

    pub fn update(&mut self, request: KeyUpdateRequest) -> Vec<u8> {
        self.session().update_keys(request);
        self.due()
    }

    pub fn close(&mut self) -> Vec<u8> {
        self.session().close_notify();
        self.due()
    }

    pub fn receive(&mut self, bytes: &[u8]) -> Result<Came, SessionError> {
        self.incoming.extend(bytes);
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut rest = &mut incoming[..];
        let mut came = Came::default();
        loop {
            let length = match self.session().open(rest)? {
                Received::Incomplete => break,
                Received::Closed => {
                    came.closed = true;
                    break;
                }
                Received::Data { length, data } => {
                    came.data.extend(&rest[data]);
                    length
                }
                Received::Other { length } => {
                    self.others += 1;
                    length
                }
            };
            rest = &mut rest[length..];
        }
        self.incoming = rest.to_vec();
        Ok(came)
    }
}
