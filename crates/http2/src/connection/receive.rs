//! What comes, in any split: frames are found, DATA is passed on as it lies, everything else is put together first.

use super::{Connection, Role};
use crate::error::{ConnectionError, Fault};
use crate::frame::{HEAD, Head, PREFACE, flag, kind};
use crate::{DEBUG, Event, Reason};

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// A client's preface; `partial` has what came of it.
    Preface,
    /// A frame's head; `partial` has what came of it.
    Head,
    /// The part of a payload that is put together; `partial` has what came of it.
    Payload(Head),
    /// The length of a DATA frame's padding; `left` is the payload with it.
    Padding { stream: u32, left: u32, end: bool },
    /// A DATA frame's bytes, then its padding, then perhaps the stream's end.
    Data { stream: u32, left: u32, padding: u32, end: bool },
    /// Bytes that nobody wants.
    Skip(u32),
}

/// How far one step came.
enum Step<'a> {
    Event(Event<'a>),
    More,
    Starved,
}

/// An empty or unknown frame brings nothing. More than this in a row are too many (CVE-2019-9518).
pub(crate) const EMPTY_FRAMES: u16 = 10_000;

/// CONTINUATION frames in one header block (CVE-2024-27316).
pub(crate) const CONTINUATIONS: u8 = 16;

/// Settings in one frame.
pub(crate) const SETTINGS: u32 = 64;

impl Connection {
    /// Takes bytes from the front of `input`, up to the next thing that there is to tell. `None`: all are taken, and there
    /// is no more to tell. Events borrow from the input only.
    ///
    /// Errors: the connection is over; [`Connection::output`] has the GOAWAY. What is left of the input is of no use.
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ConnectionError> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return Ok(Some(event));
            }
            if let Some(error) = self.failed {
                return Err(error);
            }
            let fault = match self.step(input) {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::More) => continue,
                Ok(Step::Starved) => return Ok(None),
                Err(fault) => fault,
            };
            if let Err(Fault::Connection(error)) = self.stream_fault(fault) {
                self.fail(error);
                return Err(error);
            }
        }
    }

    /// Resets the stream that a fault concerns. A fault of the connection comes back.
    fn stream_fault(&mut self, fault: Fault) -> Result<(), Fault> {
        let Fault::Stream { stream, reason, why } = fault else { return Err(fault) };
        if self.forget(stream) {
            self.told.push_back(Event::Failed { stream, reason, why });
        }
        self.streams.remember(stream);
        self.answer(kind::RST_STREAM, 0, stream, &reason.0.to_be_bytes())?;
        self.lose_patience()
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Fault> {
        match self.reading {
            Reading::Preface => self.preface(input),
            Reading::Head => {
                let head = match input.split_first_chunk::<HEAD>() {
                    Some((bytes, rest)) if self.partial.is_empty() => {
                        *input = rest;
                        Head::parse(*bytes)
                    }
                    _ => {
                        self.collect(input, HEAD);
                        let Some(bytes) = self.partial.first_chunk() else { return Ok(Step::Starved) };
                        let head = Head::parse(*bytes);
                        self.partial.clear();
                        head
                    }
                };
                self.begin(head)?;
                Ok(Step::More)
            }
            Reading::Payload(head) => self.payload(input, head),
            Reading::Padding { stream, left, end } => {
                let Some((&padding, rest)) = input.split_first() else { return Ok(Step::Starved) };
                *input = rest;
                let padding = u32::from(padding);
                let left = left.checked_sub(padding + 1).ok_or(Fault::protocol("more padding than there is frame"))?;
                self.skip_data(stream, 1);
                self.reading = Reading::Data { stream, left, padding, end };
                if left == 0 && !end {
                    self.bring_nothing()?;
                }
                Ok(Step::More)
            }
            Reading::Data { stream, left, padding, end } => Ok(self.data_piece(input, stream, left, padding, end)),
            Reading::Skip(left) => {
                let skipped = length(take(input, left));
                self.reading = if skipped == left { Reading::Head } else { Reading::Skip(left - skipped) };
                Ok(if skipped == left { Step::More } else { Step::Starved })
            }
        }
    }

    fn preface<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Fault> {
        self.collect(input, PREFACE.len());
        if !PREFACE.starts_with(&self.partial) {
            return Err(Fault::protocol("not the preface of HTTP/2"));
        }
        if self.partial.len() < PREFACE.len() {
            return Ok(Step::Starved);
        }
        self.partial = Vec::new();
        self.reading = Reading::Head;
        Ok(Step::More)
    }

    /// Fills `partial` up to `wanted` bytes.
    fn collect(&mut self, input: &mut &[u8], wanted: usize) {
        let missing = wanted.saturating_sub(self.partial.len());
        let (bytes, rest) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(bytes);
        *input = rest;
    }

    /// A frame begins.
    fn begin(&mut self, head: Head) -> Result<(), Fault> {
        if head.length > self.config.max_frame {
            return Err(Fault::size("a frame larger than SETTINGS_MAX_FRAME_SIZE"));
        }
        let of_block = self.block.as_ref().map(|block| block.stream);
        let continues = head.kind == kind::CONTINUATION && of_block == Some(head.stream);
        if continues != (of_block.is_some() || head.kind == kind::CONTINUATION) {
            return Err(Fault::protocol("a header block that is interrupted, or goes on without having begun"));
        }
        if !self.greeted && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Fault::protocol("the first frame is not SETTINGS"));
        }
        head.check()?;
        match head.kind {
            kind::DATA => return self.begin_data(head),
            kind::HEADERS | kind::CONTINUATION => {
                let before = self.block.as_ref().map_or(0, |block| block.bytes.len());
                // A frame has padding and priority besides.
                if before + head.length as usize > self.config.max_header_list as usize + 261 {
                    return Err(Fault::calm("a header block larger than SETTINGS_MAX_HEADER_LIST_SIZE"));
                }
            }
            kind::PUSH_PROMISE => return Err(Fault::protocol("a push that was not allowed")),
            kind::SETTINGS if head.length > SETTINGS * 6 => {
                return Err(Fault::calm("more settings than anybody needs"));
            }
            kind::PRIORITY => self.bring_nothing()?,
            kind::RST_STREAM | kind::SETTINGS | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE => {}
            _ => {
                self.bring_nothing()?;
                self.reading = Reading::Skip(head.length);
                return Ok(());
            }
        }
        self.reading = Reading::Payload(head);
        Ok(())
    }

    /// A frame that brings nothing.
    pub(super) fn bring_nothing(&mut self) -> Result<(), Fault> {
        self.empty_frames += 1;
        if self.empty_frames > EMPTY_FRAMES { Err(Fault::calm("frames that bring nothing")) } else { Ok(()) }
    }

    /// Puts the payload of a frame together, and has it understood.
    fn payload<'a>(&mut self, input: &mut &'a [u8], head: Head) -> Result<Step<'a>, Fault> {
        // What a GOAWAY says for people may be long.
        let wanted = if head.kind == kind::GOAWAY { head.length.min(8 + DEBUG) } else { head.length };
        let rest = head.length - wanted;
        let next = if rest == 0 { Reading::Head } else { Reading::Skip(rest) };
        let understood = if self.partial.is_empty() && input.len() >= wanted as usize {
            self.reading = next;
            self.understand(head, take(input, wanted))
        } else {
            self.collect(input, wanted as usize);
            if self.partial.len() < wanted as usize {
                return Ok(Step::Starved);
            }
            self.reading = next;
            let payload = std::mem::take(&mut self.partial);
            self.understand(head, &payload)
        };
        understood?;
        Ok(Step::More)
    }

    /// A DATA frame begins: whether it may.
    fn begin_data(&mut self, head: Head) -> Result<(), Fault> {
        let Head { length, stream, .. } = head;
        let (padded, end) = (head.has(flag::PADDED), head.has(flag::END_STREAM));
        if padded && length == 0 {
            return Err(Fault::size("padding without its length"));
        }
        if !self.window.allows(length) {
            return Err(Fault::connection(Reason::FLOW_CONTROL_ERROR, "more DATA than the connection's window allows"));
        }
        self.window.begin(length);
        // The frame is passed over or passed on by what the stream is at each of its pieces.
        self.reading = if padded {
            Reading::Padding { stream, left: length, end }
        } else {
            Reading::Data { stream, left: length, padding: 0, end }
        };
        if length == 0 && !end {
            self.bring_nothing()?;
        }
        let early = self.role == Role::Client;
        let fault = |reason, why| Err(Fault::Stream { stream, reason, why });
        let Some(state) = self.streams.get_mut(stream) else {
            return self.check_gone(stream);
        };
        if !state.receives {
            return fault(Reason::STREAM_CLOSED, "DATA after the end of its stream");
        }
        if early && !state.answered {
            return fault(Reason::PROTOCOL_ERROR, "DATA before the response");
        }
        if !state.window.allows(length) {
            return fault(Reason::FLOW_CONTROL_ERROR, "more DATA than the stream's window allows");
        }
        state.window.begin(length);
        state.look(&mut self.due);
        Ok(())
    }

    /// Passes on what is there of a DATA frame.
    fn data_piece<'a>(&mut self, input: &mut &'a [u8], stream: u32, left: u32, padding: u32, end: bool) -> Step<'a> {
        if left > 0 {
            let bytes = take(input, left);
            let piece = length(bytes);
            if piece == 0 {
                return Step::Starved;
            }
            self.reading = Reading::Data { stream, left: left - piece, padding, end };
            self.empty_frames = 0;
            let Some(state) = self.streams.get_mut(stream) else {
                self.skip_data(stream, piece);
                return Step::More;
            };
            if let Some(content) = &mut state.content {
                let Some(rest) = content.checked_sub(piece.into()) else {
                    self.window.skip(piece);
                    return self.wrong_content(stream);
                };
                *content = rest;
            }
            state.window.keep(piece);
            self.window.keep(piece);
            return Step::Event(Event::Data { stream, bytes });
        }
        if padding > 0 {
            let piece = length(take(input, padding));
            if piece == 0 {
                return Step::Starved;
            }
            self.reading = Reading::Data { stream, left, padding: padding - piece, end };
            self.skip_data(stream, piece);
            return Step::More;
        }
        self.reading = Reading::Head;
        if end { self.end(stream) } else { Step::More }
    }

    /// Bytes that count for flow control and that nobody gets.
    fn skip_data(&mut self, stream: u32, bytes: u32) {
        self.window.skip(bytes);
        if let Some(state) = self.streams.get_mut(stream) {
            state.window.skip(bytes);
            state.look(&mut self.due);
        }
    }

    /// The peer has ended its direction, by DATA.
    fn end<'a>(&mut self, stream: u32) -> Step<'a> {
        match self.streams.get(stream).map(|state| state.content.unwrap_or(0)) {
            None => Step::More,
            Some(0) => {
                self.ended(stream);
                Step::More
            }
            Some(_) => self.wrong_content(stream),
        }
    }

    /// A body is not what its content-length said (RFC 9113 section 8.1.1).
    fn wrong_content<'a>(&mut self, stream: u32) -> Step<'a> {
        let why = "a body that is not as long as its content-length says";
        let fault = Fault::Stream { stream, reason: Reason::PROTOCOL_ERROR, why };
        if let Err(Fault::Connection(error)) = self.stream_fault(fault) {
            self.fail(error);
        }
        Step::More
    }

    /// The peer has ended its direction of a stream that is open.
    pub(super) fn ended(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(stream) {
            state.receives = false;
            self.told.push_back(Event::End { stream });
        }
        self.forget_if_ended(stream);
    }
}

/// At most `most` bytes from the front.
fn take<'a>(input: &mut &'a [u8], most: u32) -> &'a [u8] {
    let (bytes, rest) = input.split_at(input.len().min(most as usize));
    *input = rest;
    bytes
}

/// The length of something that was at most a `u32` long.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
