//! What goes: frames are put into records where these lie in the buffer, sealed there and written from there.
//!
//! ```text
//! | written | sealed records | header  frames so far …      | free |
//! 0         written          sealed          end of content
//! ```
//!
//! The last record stays open until it is full or everything is to be written: what several streams send at a time leaves in one
//! record and one write. What is written is taken out meanwhile ([`Flight`]), so that streams can put more into another buffer; what the
//! socket has not taken of it then stands before that.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use stillmesh_http2::HEAD;
use stillmesh_tls::record::{HEADER, MAX_CONTENT, TRAILER};
use stillmesh_tls::session::MAX_DUE;
use stillmesh_tls::{SealError, Session};

use super::buffers::{self, SIZE};
use crate::Transport;

/// No DATA frame is begun in a record that has less room than this left for it, bytes.
const LEAST: usize = 512;

/// Kept free of what comes in bulk, bytes: for those who have little to send, and for what HTTP/2 has to say.
pub(super) const RESERVE: usize = 16 << 10;

/// Bytes that are never given to frames: for what TLS itself has to say.
const KEPT: usize = 3 * MAX_DUE;

/// Most pieces of DATA that one read brings.
pub(super) const PIECES: usize = 8;

/// A place for the bytes of a DATA frame; the frame's head is right before it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) length: usize,
}

/// What is sealed, while it is written.
pub(super) struct Flight {
    buffer: Box<[u8]>,
    written: usize,
    sealed: usize,
}

impl Flight {
    fn is_over(&self) -> bool {
        self.written >= self.sealed
    }

    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.written..self.sealed).unwrap_or_default()
    }

    /// Writes it. Ready when all is written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, io: &mut dyn Transport) -> Poll<io::Result<()>> {
        while !self.is_over() {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, self.waiting()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        Poll::Ready(Ok(()))
    }
}

/// The bytes that wait to be written.
#[derive(Default)]
pub(super) struct Outgoing {
    /// What is written before all else. While there is some, nothing is added in bulk.
    before: Option<Flight>,
    /// Something is being written.
    is_flying: bool,
    buffer: Box<[u8]>,
    written: usize,
    sealed: usize,
    /// The end of what there is; above `sealed` while a record is open.
    end: usize,
    /// TLS said something of its own that is not written yet.
    said: bool,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.end == self.written && self.before.is_none() && !self.is_flying
    }

    /// Bytes of memory held.
    pub(super) fn held(&self) -> usize {
        let before = self.before.as_ref().map_or(0, |before| before.buffer.len());
        before + if self.end == self.written { 0 } else { self.buffer.len() }
    }

    /// The end of the content of the open record, or where that of the next one begins.
    fn content(&self) -> usize {
        self.end.max(self.sealed + HEADER)
    }

    /// Where the content of the open record has to end.
    fn limit(&self) -> usize {
        (self.sealed + HEADER + MAX_CONTENT).min((SIZE - KEPT).saturating_sub(TRAILER))
    }

    /// How many bytes of DATA there is room for at least, counted in one frame per record.
    pub(super) fn room(&self, tls: &Session) -> usize {
        if self.is_held_up(tls) || (!self.buffer.is_empty() && self.buffer.len() < SIZE) {
            return 0;
        }
        // What TLS has to say comes first, and takes of the same room.
        let due = if tls.due() { MAX_DUE } else { 0 };
        let free = (SIZE - KEPT - due).saturating_sub(self.content());
        let overhead = HEADER + HEAD + TRAILER;
        let room = free.saturating_sub(overhead * (2 + free / MAX_CONTENT));
        if self.before.is_some() { room.min(RESERVE) } else { room }
    }

    /// Has a buffer of the full size. What waits stays where it is.
    fn begin(&mut self) {
        if self.buffer.len() < SIZE {
            let small = std::mem::replace(&mut self.buffer, buffers::take());
            self.put(0, &small);
        }
    }

    /// Puts bytes behind each other into records; says how many there was room for.
    pub(super) fn append(&mut self, tls: &mut Session, mut bytes: &[u8]) -> Result<usize, SealError> {
        let length = bytes.len();
        if self.room(tls) == 0 {
            return Ok(0);
        }
        self.begin();
        if tls.due() {
            self.seal(tls)?;
        }
        while !bytes.is_empty() {
            let start = self.content();
            let room = self.limit().saturating_sub(start);
            if room == 0 {
                if self.end == self.sealed {
                    break;
                }
                self.seal_record(tls)?;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.put(start, now);
            self.end = start + now.len();
            bytes = later;
        }
        Ok(length - bytes.len())
    }

    /// Places for up to `wanted` bytes of DATA, at least one byte if there is [`Outgoing::room`]; says how many places there are.
    pub(super) fn places(
        &mut self,
        tls: &mut Session,
        mut wanted: usize,
        places: &mut [Place; PIECES],
    ) -> Result<usize, SealError> {
        if self.room(tls) == 0 {
            return Ok(0);
        }
        self.begin();
        if tls.due() || (self.end > self.sealed && self.limit() < self.content() + HEAD + LEAST.min(wanted)) {
            self.seal(tls)?;
        }
        let mut start = self.content() + HEAD;
        let mut limit = self.limit();
        let mut count = 0;
        for place in places {
            let length = limit.saturating_sub(start).min(wanted);
            if length == 0 {
                break;
            }
            *place = Place { start, length };
            count += 1;
            wanted -= length;
            let record = start + length + TRAILER;
            start = record + HEADER + HEAD;
            limit = (record + HEADER + MAX_CONTENT).min((SIZE - KEPT).saturating_sub(TRAILER));
        }
        Ok(count)
    }

    /// The bytes of a place.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The bytes at a place are a frame with this head: a record's last one unless it is the last place that is used.
    pub(super) fn commit(&mut self, tls: &mut Session, place: Place, head: [u8; HEAD]) -> Result<(), SealError> {
        if place.start != self.content() + HEAD {
            // Nothing may come between: what was read lies where the next records will be.
            self.seal_record(tls)?;
        }
        self.put(place.start - HEAD, &head);
        self.end = place.start + place.length;
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.buffer.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Whether nothing can be sealed before what there is is written: a peer that asks for new keys and does not read gets one
    /// answer.
    fn is_held_up(&self, tls: &Session) -> bool {
        self.said && tls.due()
    }

    /// Seals the open record, and what TLS has to say before it. What is [held up](Self::is_held_up) stays open.
    pub(super) fn seal(&mut self, tls: &mut Session) -> Result<(), SealError> {
        if self.is_held_up(tls) {
            return Ok(());
        }
        if tls.due() {
            self.said = true;
            self.begin();
            let mut due = [0; MAX_DUE];
            let length = tls.seal_due(&mut due)?;
            self.buffer.copy_within(self.sealed..self.end, self.sealed + length);
            self.put(self.sealed, due.get(..length).unwrap_or_default());
            self.sealed += length;
            self.end += length;
        }
        self.seal_record(tls)
    }

    fn seal_record(&mut self, tls: &mut Session) -> Result<(), SealError> {
        if self.end > self.sealed {
            let length = self.end - self.sealed - HEADER;
            self.sealed += tls.seal(self.buffer.get_mut(self.sealed..).unwrap_or_default(), length)?;
            self.end = self.sealed;
        }
        Ok(())
    }

    /// What is sealed is all that will be, but for TLS's last word: a record that is open is thrown away.
    pub(super) fn abandon(&mut self) {
        self.end = self.sealed;
        self.said = false;
    }

    /// Takes out what is to be written now; it has to be [put back](Self::put_back) before more is taken.
    pub(super) fn take(&mut self) -> Option<Flight> {
        let flight = match self.before.take() {
            Some(before) => before,
            None if self.written == self.sealed => return None,
            None if self.end == self.sealed => {
                let (written, sealed) = (self.written, self.sealed);
                (self.written, self.sealed, self.end) = (0, 0, 0);
                Flight { buffer: std::mem::take(&mut self.buffer), written, sealed }
            }
            // A record stays open that is held up.
            None => {
                let waiting: Box<[u8]> = self.buffer.get(self.written..self.sealed).unwrap_or_default().into();
                self.written = self.sealed;
                Flight { written: 0, sealed: waiting.len(), buffer: waiting }
            }
        };
        self.is_flying = true;
        Some(flight)
    }

    /// Takes back what was taken out: what is left of it is written next.
    pub(super) fn put_back(&mut self, flight: Flight) {
        self.is_flying = false;
        if flight.is_over() {
            buffers::give(flight.buffer);
            // Unless it lies in what is written next.
            self.said &= self.written < self.sealed;
        } else if self.end == self.written {
            self.release();
            let Flight { buffer, written, sealed } = flight;
            (self.buffer, self.written, self.sealed, self.end) = (buffer, written, sealed, sealed);
        } else {
            self.before = Some(flight);
        }
    }

    /// Gives the buffer back when nothing is in it.
    pub(super) fn release(&mut self) {
        if self.end == self.written {
            buffers::give(std::mem::take(&mut self.buffer));
            (self.written, self.sealed, self.end) = (0, 0, 0);
        }
    }

    /// Keeps no more memory than what waits, where all of it is sealed.
    pub(super) fn shrink(&mut self) {
        if let Some(before) = self.before.as_mut().filter(|before| before.buffer.len() == SIZE) {
            let waiting: Box<[u8]> = before.waiting().into();
            (before.written, before.sealed) = (0, waiting.len());
            buffers::give(std::mem::replace(&mut before.buffer, waiting));
        }
        if self.end == self.sealed && self.end > self.written && self.buffer.len() == SIZE {
            let waiting = self.buffer.get(self.written..self.sealed).unwrap_or_default();
            let waiting: Box<[u8]> = waiting.into();
            (self.written, self.sealed, self.end) = (0, waiting.len(), waiting.len());
            buffers::give(std::mem::replace(&mut self.buffer, waiting));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillmesh_tls::{Received, Role, Suite, TrafficSecret};
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    fn session(role: Role) -> Session {
        let secret = |byte: u8| {
            let bytes = vec![byte; Suite::Aes128GcmSha256.secret_length()];
            TrafficSecret::new(Suite::Aes128GcmSha256, bytes.into()).unwrap()
        };
        Session::new(role, secret(1), secret(2), 0).unwrap()
    }

    fn write(outgoing: &mut Outgoing, cx: &mut Context<'_>, io: &mut dyn Transport) -> Poll<io::Result<()>> {
        while let Some(mut flight) = outgoing.take() {
            let written = flight.poll_write(cx, io);
            outgoing.put_back(flight);
            ready!(written)?;
        }
        Poll::Ready(Ok(()))
    }

    #[tokio::test]
    async fn tls_has_its_say_behind_what_was_shrunk() {
        for last in [false, true] {
            let (mut ours, mut theirs) = (session(Role::Client), session(Role::Server));
            let (near, mut far) = duplex(10);
            let mut near: Box<dyn Transport> = Box::new(near);
            let mut context = Context::from_waker(std::task::Waker::noop());
            let mut outgoing = Outgoing::default();
            assert_eq!(outgoing.append(&mut ours, &[7; 100]).unwrap(), 100);
            outgoing.seal(&mut ours).unwrap();
            assert!(write(&mut outgoing, &mut context, &mut *near).is_pending());
            outgoing.shrink();
            if last {
                outgoing.abandon();
                ours.close_notify();
            } else {
                ours.update_keys(stillmesh_tls::session::KeyUpdateRequest::NotRequested);
            }
            outgoing.seal(&mut ours).unwrap();
            let writing = std::future::poll_fn(|cx| write(&mut outgoing, cx, &mut *near));
            let mut wire = vec![0; 122 + if last { 24 } else { 27 }];
            let (written, read) = tokio::join!(writing, far.read_exact(&mut wire));
            written.unwrap();
            read.unwrap();
            assert!(matches!(theirs.open(&mut wire).unwrap(), Received::Data { length: 122, .. }));
            let said = theirs.open(&mut wire[122..]).unwrap();
            assert!(if last { said == Received::Closed } else { said == Received::Other { length: 27 } }, "{said:?}");
        }
    }

    #[test]
    fn room_is_there_for_what_it_is_said_to_be_also_when_tls_has_to_say_something() {
        for wanted in 1..200 {
            let mut ours = session(Role::Client);
            let mut outgoing = Outgoing::default();
            while outgoing.room(&ours) > 300 {
                let piece = vec![0; outgoing.room(&ours) - 300];
                outgoing.append(&mut ours, &piece).unwrap();
            }
            while outgoing.room(&ours) > wanted {
                outgoing.append(&mut ours, &[0]).unwrap();
            }
            ours.update_keys(stillmesh_tls::session::KeyUpdateRequest::NotRequested);
            let room = outgoing.room(&ours);
            // An empty frame that ends a stream needs its head, whatever room there is said to be.
            if room > 0 {
                assert_eq!(outgoing.append(&mut ours, &[0; HEAD]).unwrap(), HEAD, "{room}");
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Frames of HTTP/2's own, bytes.
        Append(usize),
        /// DATA: how much room is asked for, and how much of it is used.
        Data(usize, usize),
        /// The peer asks for new keys.
        Update,
        /// What is sealed is taken out, to be written later.
        Take,
        Write,
        /// There is little memory.
        Shrink,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..40_000_usize).prop_map(Step::Append),
            (1..150_000_usize, 0..150_000_usize).prop_map(|(wanted, used)| Step::Data(wanted, used)),
            (1..3000_usize, 0..3000_usize).prop_map(|(wanted, used)| Step::Data(wanted, used)),
            Just(Step::Update),
            Just(Step::Take),
            Just(Step::Write),
            Just(Step::Shrink),
        ]
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out_of_records_in_order(steps in proptest::collection::vec(step(), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut ours, mut theirs) = (session(Role::Client), session(Role::Server));
                let (near, mut far) = duplex(10_000);
                let mut near: Box<dyn Transport> = Box::new(near);
                let (mut outgoing, mut sent, mut wire) = (Outgoing::default(), Vec::new(), Vec::new());
                let mut byte = 0_u8;
                let mut next = || { byte = byte.wrapping_mul(31).wrapping_add(7); byte };
                let mut context = Context::from_waker(std::task::Waker::noop());
                let mut flight = None;
                for step in steps {
                    match step {
                        Step::Append(length) => {
                            let bytes: Vec<u8> = (0..length).map(|_| next()).collect();
                            let put = outgoing.append(&mut ours, &bytes).unwrap();
                            sent.extend_from_slice(&bytes[..put]);
                        }
                        Step::Data(wanted, used) => {
                            let room = outgoing.room(&ours);
                            let wanted = wanted.min(room);
                            let mut places = [Place::default(); PIECES];
                            let count = outgoing.places(&mut ours, wanted, &mut places).unwrap();
                            prop_assert_eq!(count > 0, room > 0 && wanted > 0);
                            let mut used = used;
                            for place in &places[..count] {
                                let length = place.length.min(used);
                                if length == 0 {
                                    break;
                                }
                                used -= length;
                                let bytes: Vec<u8> = (0..length).map(|_| next()).collect();
                                outgoing.buffer()[place.start..place.start + length].copy_from_slice(&bytes);
                                let head: [u8; HEAD] = std::array::from_fn(|_| next());
                                sent.extend_from_slice(&head);
                                sent.extend_from_slice(&bytes);
                                outgoing.commit(&mut ours, Place { length, ..*place }, head).unwrap();
                            }
                            outgoing.release();
                        }
                        // Nothing is received while something is being written.
                        Step::Update if flight.is_some() => {}
                        Step::Update => ours.update_keys(stillmesh_tls::session::KeyUpdateRequest::NotRequested),
                        Step::Take if flight.is_some() => {}
                        Step::Take => {
                            outgoing.seal(&mut ours).unwrap();
                            flight = outgoing.take();
                        }
                        Step::Shrink => outgoing.shrink(),
                        Step::Write => {
                            if let Some(mut flight) = flight.take() {
                                let _ = flight.poll_write(&mut context, &mut *near);
                                outgoing.put_back(flight);
                            }
                            outgoing.seal(&mut ours).unwrap();
                            let _ = write(&mut outgoing, &mut context, &mut *near);
                            let mut piece = [0; 7_000];
                            if outgoing.held() > 0 {
                                let read = far.read(&mut piece).await.unwrap();
                                wire.extend_from_slice(&piece[..read]);
                            } else {
                                prop_assert_eq!(outgoing.buffer().len(), 0, "nothing is held");
                            }
                        }
                    }
                }
                if let Some(flight) = flight.take() {
                    outgoing.put_back(flight);
                }
                for round in 0..2 {
                    outgoing.seal(&mut ours).unwrap();
                    if round == 1 {
                        prop_assert_eq!(outgoing.end, outgoing.sealed, "nothing is held up for ever");
                        outgoing.shrink();
                    }
                    while write(&mut outgoing, &mut context, &mut *near).is_pending() {
                        let mut piece = [0; 7_000];
                        let read = far.read(&mut piece).await.unwrap();
                        wire.extend_from_slice(&piece[..read]);
                    }
                }
                drop(near);
                far.read_to_end(&mut wire).await.unwrap();
                let (mut rest, mut received) = (&mut wire[..], Vec::new());
                while !rest.is_empty() {
                    let length = match theirs.open(rest).unwrap() {
                        Received::Data { length, data } => { received.extend_from_slice(&rest[data]); length }
                        Received::Other { length } => length,
                        other => panic!("{other:?}"),
                    };
                    rest = &mut rest[length..];
                }
                prop_assert!(received == sent);
                Ok(())
            })?;
        }
    }
}
