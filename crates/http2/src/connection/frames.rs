//! What frames mean that are put together: all but DATA.

use http::StatusCode;

use super::receive::CONTINUATIONS;
use super::{Block, Connection, DRAIN, Leaving, Role};
use crate::error::Fault;
use crate::frame::{self, Head, LARGEST, LARGEST_MAX_FRAME, SMALLEST_MAX_FRAME, flag, kind, setting};
use crate::head::{Fields, Part};
use crate::streams::Stream;
use crate::{EARLY_DATA, Event, Reason};

/// Informational responses to one request; more are too many.
pub(crate) const INFORMATIONAL: u8 = 8;

impl Connection {
    /// One frame, whose length was checked.
    pub(super) fn understand(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        match head.kind {
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::PRIORITY => frame::depends(head.stream, payload),
            kind::RST_STREAM => self.reset_received(head.stream, Reason(frame::number(payload)?)),
            kind::SETTINGS if head.has(flag::ACK) => self.settings_acknowledged(),
            kind::SETTINGS => self.settings(payload),
            kind::PING => self.ping_received(head, payload),
            kind::GOAWAY => self.go_away_received(payload),
            kind::WINDOW_UPDATE => self.window_update(head.stream, frame::number(payload)? & LARGEST),
            _ => Ok(()),
        }
    }

    // ---- header blocks ----

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let end_stream = head.has(flag::END_STREAM);
        let bytes = frame::fragment(head, payload)?;
        if head.has(flag::END_HEADERS) {
            return self.block(head.stream, end_stream, bytes);
        }
        self.block = Some(Block { stream: head.stream, end_stream, frames: 0, bytes: bytes.to_vec() });
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let Some(block) = &mut self.block else { return Ok(()) };
        block.frames += 1;
        if block.frames > CONTINUATIONS {
            return Err(Fault::calm("a header block in more frames than anybody needs"));
        }
        block.bytes.extend_from_slice(payload);
        match self.block.take_if(|_| head.has(flag::END_HEADERS)) {
            Some(block) => self.block(block.stream, block.end_stream, &block.bytes),
            None => Ok(()),
        }
    }

    /// A whole header block. It is decoded in any case: the next one depends on it.
    fn block(&mut self, stream: u32, end_stream: bool, bytes: &[u8]) -> Result<(), Fault> {
        self.empty_frames = 0;
        let open = self.streams.get(stream).map(|state| (state.receives, state.answered));
        let part = match (open, self.role) {
            (None, _) => Part::Request,
            (Some((_, false)), Role::Client) => Part::Response,
            (Some(_), _) => Part::Trailers,
        };
        let mut fields = Fields::new(part, self.config.max_header_list);
        let decoded = self.decoder.decode(bytes, |name, value| fields.add(name, value));
        decoded.map_err(|error| Fault::connection(Reason::COMPRESSION_ERROR, error.0))?;
        match open {
            None => self.request(stream, end_stream, fields),
            Some((false, _)) => Err(Fault::Stream {
                stream,
                reason: Reason::STREAM_CLOSED,
                why: "headers after the end of their stream",
            }),
            Some(_) if part == Part::Response => self.response(stream, end_stream, fields),
            Some(_) => self.trailers(stream, end_stream, fields),
        }
    }

    /// Headers on a stream that is not open.
    fn request(&mut self, stream: u32, end_stream: bool, fields: Fields) -> Result<(), Fault> {
        if self.role == Role::Client || stream.is_multiple_of(2) || stream <= self.last {
            return self.check_gone(stream);
        }
        self.last = stream;
        if matches!(self.leaving, Leaving::Last(last) if stream > last) {
            // The peer was told that it is not processed, or will be.
            return Ok(());
        }
        let fault = |reason, why| Fault::Stream { stream, reason, why };
        let (request, content) = fields.request().map_err(|why| fault(Reason::PROTOCOL_ERROR, why))?;
        if content.is_some_and(|content| end_stream && content > 0) {
            return Err(fault(Reason::PROTOCOL_ERROR, "a body that is not as long as its content-length says"));
        }
        if self.streams.len() >= self.config.max_streams as usize {
            return Err(fault(Reason::REFUSED_STREAM, "more streams than SETTINGS_MAX_CONCURRENT_STREAMS"));
        }
        let mut state = Stream::new(stream, self.peer.initial_window, self.initial_window);
        state.content = content;
        self.streams.push(state);
        self.accepted = stream;
        self.told.push_back(Event::Request { stream, request });
        if end_stream {
            self.ended(stream);
        }
        Ok(())
    }

    fn response(&mut self, stream: u32, end_stream: bool, fields: Fields) -> Result<(), Fault> {
        let fault = |why| Fault::Stream { stream, reason: Reason::PROTOCOL_ERROR, why };
        let (status, headers) = fields.response().map_err(fault)?;
        let Some(state) = self.streams.get_mut(stream) else { return Ok(()) };
        if status.is_informational() {
            state.informational += 1;
            if end_stream || status == StatusCode::SWITCHING_PROTOCOLS || state.informational > INFORMATIONAL {
                return Err(fault("an informational response that cannot be, or too many of them"));
            }
            return Ok(());
        }
        state.answered = true;
        self.told.push_back(Event::Response { stream, status, headers });
        if end_stream {
            self.ended(stream);
        }
        Ok(())
    }

    fn trailers(&mut self, stream: u32, end_stream: bool, fields: Fields) -> Result<(), Fault> {
        let fault = |why| Fault::Stream { stream, reason: Reason::PROTOCOL_ERROR, why };
        fields.trailers().map_err(fault)?;
        if !end_stream {
            return Err(fault("headers in the middle of a stream"));
        }
        if self.streams.get(stream).and_then(|state| state.content).is_some_and(|content| content > 0) {
            return Err(fault("a body that is not as long as its content-length says"));
        }
        self.ended(stream);
        Ok(())
    }

    // ---- streams that are not open ----

    /// Whether the stream has not been opened.
    fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.last
    }

    /// DATA or headers on a stream that is not open: ignored where they may have been on their way, an error otherwise (RFC
    /// 9113 section 5.1).
    pub(super) fn check_gone(&self, stream: u32) -> Result<(), Fault> {
        if self.is_idle(stream) {
            return Err(Fault::protocol("a frame on a stream that is not open"));
        }
        let refused = matches!(self.leaving, Leaving::Last(last) if self.role == Role::Server && stream > last);
        if refused || self.streams.ignores(stream) {
            return Ok(());
        }
        Err(Fault::connection(Reason::STREAM_CLOSED, "a frame on a stream that is closed"))
    }

    fn reset_received(&mut self, stream: u32, reason: Reason) -> Result<(), Fault> {
        if self.is_idle(stream) {
            return Err(Fault::protocol("RST_STREAM of a stream that is not open"));
        }
        let Some(state) = self.streams.get(stream) else { return self.bring_nothing() };
        let rapid = self.role == Role::Server && !state.answered;
        self.forget(stream);
        self.told.push_back(Event::Reset { stream, reason });
        if rapid { self.lose_patience() } else { Ok(()) }
    }

    // ---- settings ----

    fn settings(&mut self, payload: &[u8]) -> Result<(), Fault> {
        for (name, value) in frame::settings(payload) {
            match name {
                setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                    return Err(Fault::protocol("a SETTINGS_ENABLE_PUSH that cannot be"));
                }
                setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
                setting::INITIAL_WINDOW_SIZE => self.shift_send_windows(value)?,
                setting::MAX_FRAME_SIZE if (SMALLEST_MAX_FRAME..=LARGEST_MAX_FRAME).contains(&value) => {
                    self.peer.max_frame = value;
                }
                setting::MAX_FRAME_SIZE => return Err(Fault::protocol("a SETTINGS_MAX_FRAME_SIZE that cannot be")),
                setting::MAX_HEADER_LIST_SIZE => self.peer.max_header_list = value,
                EARLY_DATA if self.role == Role::Client => self.peer.early_data = value,
                // Nor does SETTINGS_HEADER_TABLE_SIZE matter: we use no table.
                _ => {}
            }
        }
        if !std::mem::replace(&mut self.greeted, true)
            && !frame::settings(payload).any(|(name, _)| name == setting::MAX_CONCURRENT_STREAMS)
        {
            self.peer.max_streams = u32::MAX;
        }
        self.told.push_back(Event::Settings);
        self.answer(kind::SETTINGS, flag::ACK, 0, &[])
    }

    /// All streams may be sent more, or less, than before.
    fn shift_send_windows(&mut self, to: u32) -> Result<(), Fault> {
        let large =
            || Fault::connection(Reason::FLOW_CONTROL_ERROR, "a SETTINGS_INITIAL_WINDOW_SIZE that is too large");
        if to > LARGEST {
            return Err(large());
        }
        let by = i64::from(to) - i64::from(self.peer.initial_window);
        self.peer.initial_window = to;
        for stream in self.streams.iter_mut() {
            stream.send_window = i32::try_from(i64::from(stream.send_window) + by).map_err(|_| large())?;
            if stream.send_window > 0 && std::mem::take(&mut stream.waits) {
                self.told.push_back(Event::StreamRoom { stream: stream.id });
            }
        }
        Ok(())
    }

    fn settings_acknowledged(&mut self) -> Result<(), Fault> {
        let window = self.unacknowledged.take();
        let window = window.ok_or(Fault::protocol("SETTINGS are acknowledged that were not sent"))?;
        self.decoder.forbid_table();
        if window < self.initial_window {
            self.shift_windows(window);
        }
        self.told.push_back(Event::SettingsAcknowledged);
        Ok(())
    }

    // ---- the connection ----

    fn ping_received(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if !head.has(flag::ACK) {
            return self.answer(kind::PING, flag::ACK, 0, payload);
        }
        let Some(payload) = payload.first_chunk::<8>().filter(|_| self.pings > 0) else { return self.bring_nothing() };
        self.pings -= 1;
        if *payload == DRAIN && self.leaving == Leaving::Announced {
            self.go_away_now();
        } else {
            self.told.push_back(Event::Pong { payload: *payload });
        }
        Ok(())
    }

    fn go_away_received(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let last_stream = frame::number(payload)? & LARGEST;
        let reason = Reason(frame::number(payload.get(4..).unwrap_or_default())?);
        let debug = payload.get(8..).unwrap_or_default();
        let debug = debug.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' }).collect();
        self.bring_nothing()?;
        self.told.push_back(Event::GoAway { last_stream, reason, debug });
        if self.role == Role::Server {
            // It says which pushes were processed.
            self.peer_last = Some(0);
            return Ok(());
        }
        let last_stream = self.peer_last.map_or(last_stream, |before| before.min(last_stream));
        self.peer_last = Some(last_stream);
        for stream in self.streams.remove_above(last_stream) {
            self.due.retain(|due| *due != stream);
            self.streams.remember(stream);
            self.told.push_back(Event::NotProcessed { stream });
        }
        Ok(())
    }

    fn window_update(&mut self, stream: u32, more: u32) -> Result<(), Fault> {
        let wider = |window: i32| i32::try_from(i64::from(window) + i64::from(more)).ok();
        if stream == 0 {
            if more == 0 {
                return Err(Fault::protocol("a WINDOW_UPDATE of 0"));
            }
            let large = Fault::connection(Reason::FLOW_CONTROL_ERROR, "a connection window that is too large");
            self.send_window = wider(self.send_window).ok_or(large)?;
            if std::mem::take(&mut self.waits) {
                self.told.push_back(Event::ConnectionRoom);
            }
            return Ok(());
        }
        if self.is_idle(stream) {
            return Err(Fault::protocol("WINDOW_UPDATE of a stream that is not open"));
        }
        let Some(state) = self.streams.get_mut(stream) else { return self.bring_nothing() };
        let fault = |reason, why| Fault::Stream { stream, reason, why };
        if more == 0 {
            return Err(fault(Reason::PROTOCOL_ERROR, "a WINDOW_UPDATE of 0"));
        }
        let large = fault(Reason::FLOW_CONTROL_ERROR, "a stream window that is too large");
        state.send_window = wider(state.send_window).ok_or(large)?;
        if state.send_window > 0 && std::mem::take(&mut state.waits) {
            self.told.push_back(Event::StreamRoom { stream });
        }
        Ok(())
    }
}
