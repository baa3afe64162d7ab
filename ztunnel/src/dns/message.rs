//! Questions out of bytes and answers into bytes. Pure; what is malformed is refused here.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::answer::Family;

/// How long clients may keep an answer, seconds (contract 4.6).
const TTL: u32 = 30;

/// What fits a UDP answer without EDNS, bytes (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;

/// Largest UDP answer that we send, bytes: what passes any path without fragments (RFC 9715).
const LARGEST_UDP: u16 = 1232;

/// A well-formed question.
#[derive(Clone, Debug)]
pub struct Question {
    metadata: Metadata,
    query: Query,
    edns: bool,
    payload: u16,
}

/// Bytes that are not a question that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not even the header of a query: no answer.
    Silence,
    /// To be answered with this.
    Reply(Vec<u8>),
}

impl Question {
    /// Reads exactly one question of class IN.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => return Err(unreadable(bytes)),
        };
        let metadata = message.metadata;
        if metadata.message_type != MessageType::Query {
            return Err(Malformed::Silence);
        }
        let refuse = |code| Err(refusal(metadata.id, metadata.op_code, code));
        if metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let payload = message.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, LARGEST_UDP));
        Ok(Self { metadata, query: query.clone(), edns: message.edns.is_some(), payload })
    }

    /// The name asked for.
    pub fn name(&self) -> String {
        self.query.name().to_ascii()
    }

    /// The type asked for, as in zone files.
    pub fn query_type(&self) -> RecordType {
        self.query.query_type()
    }

    /// Which addresses are asked for, if addresses are.
    pub fn family(&self) -> Option<Family> {
        match self.query.query_type() {
            RecordType::A => Some(Family::V4),
            RecordType::AAAA => Some(Family::V6),
            _ => None,
        }
    }

    /// The answer of a name that is known; no addresses is an answer too.
    pub fn answered(&self, canonical: Option<&str>, addresses: &[IpAddr], transport: Transport) -> Option<Vec<u8>> {
        let mut message = self.reply(ResponseCode::NoError);
        message.metadata.authoritative = true;
        let mut owner = self.query.name().clone();
        if let Some(canonical) = canonical.filter(|_| !addresses.is_empty()) {
            let mut name = Name::from_ascii(canonical).ok()?;
            name.set_fqdn(true);
            message.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(name.clone()))));
            owner = name;
        }
        for address in addresses {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            message.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        self.encode(message, transport)
    }

    /// An answer that says why there is none.
    pub fn failed(&self, code: ResponseCode) -> Option<Vec<u8>> {
        self.encode(self.reply(code), Transport::Udp)
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_UDP);
            message.set_edns(edns);
        }
        message
    }

    fn encode(&self, message: Message, transport: Transport) -> Option<Vec<u8>> {
        let bytes = message.to_vec().ok()?;
        match transport {
            Transport::Udp if bytes.len() > usize::from(self.payload) => message.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }
}

/// What carries a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, each message after its length.
    Tcp,
}

impl Transport {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Whether `reply` answers `query`: same id, a response, the same question.
pub fn answers(query: &[u8], reply: &[u8]) -> bool {
    let (Ok(query), Ok(reply)) = (Message::from_vec(query), Message::from_vec(reply)) else { return false };
    reply.metadata.message_type == MessageType::Response
        && reply.metadata.id == query.metadata.id
        && reply.queries.first() == query.queries.first()
}

/// The response code of a reply, if it can be read.
pub fn response_code(reply: &[u8]) -> Option<ResponseCode> {
    Message::from_vec(reply).ok().map(|message| message.metadata.response_code)
}

/// Replaces a message's id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(first) = message.get_mut(..2) {
        first.copy_from_slice(&id.to_be_bytes());
    }
}

/// A message's id.
pub fn id(message: &[u8]) -> Option<u16> {
    message.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// The answer to a question for which there is no room.
pub fn overloaded(bytes: &[u8]) -> Option<Vec<u8>> {
    let is_query = bytes.len() >= HEADER && bytes.get(2).is_some_and(|flags| flags & RESPONSE == 0);
    if !is_query {
        return None;
    }
    Message::error_msg(id(bytes)?, OpCode::Query, ResponseCode::Refused).to_vec().ok()
}

const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;

fn unreadable(bytes: &[u8]) -> Malformed {
    let is_query = bytes.len() >= HEADER && bytes.get(2).is_some_and(|flags| flags & RESPONSE == 0);
    match id(bytes) {
        Some(id) if is_query => refusal(id, OpCode::Query, ResponseCode::FormErr),
        _ => Malformed::Silence,
    }
}

fn refusal(id: u16, op_code: OpCode, code: ResponseCode) -> Malformed {
    Message::error_msg(id, op_code, code).to_vec().map_or(Malformed::Silence, Malformed::Reply)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    #[test]
    fn a_search_domain_answer_is_a_cname_and_its_addresses() {
        let question = Question::parse(&query("web.example.com.shop.svc.cluster.local.", RecordType::A)).unwrap();
        let addresses = ["240.240.0.1".parse().unwrap()];
        let bytes = question.answered(Some("web.example.com"), &addresses, Transport::Udp).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::NoError));
        assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
        let [alias, address] = reply.answers.as_slice() else { panic!("{reply:?}") };
        assert_eq!(alias.data, RData::CNAME(CNAME(Name::from_ascii("web.example.com.").unwrap())));
        assert_eq!(address.name.to_ascii(), "web.example.com.");
        assert_eq!(address.ttl, 30);
    }

    #[test]
    fn no_address_of_the_family_is_an_empty_answer() {
        let question = Question::parse(&query("page.shop.svc.cluster.local.", RecordType::AAAA)).unwrap();
        let reply = Message::from_vec(&question.answered(None, &[], Transport::Udp).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty());
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_truncated_and_goes_over_tcp() {
        let question = Question::parse(&query("many.shop.svc.cluster.local.", RecordType::A)).unwrap();
        let addresses: Vec<IpAddr> = (0..64).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let udp = question.answered(None, &addresses, Transport::Udp).unwrap();
        assert!(udp.len() <= 512);
        assert!(Message::from_vec(&udp).unwrap().metadata.truncation);
        let tcp = question.answered(None, &addresses, Transport::Tcp).unwrap();
        assert_eq!(Message::from_vec(&tcp).unwrap().answers.len(), 64);
    }

    #[test]
    fn garbage_is_refused_or_met_with_silence() {
        assert_eq!(Question::parse(b"").unwrap_err(), Malformed::Silence);
        assert_eq!(Question::parse(&[0; 5]).unwrap_err(), Malformed::Silence);
        let mut response = query("a.", RecordType::A);
        response[2] |= 0x80;
        assert_eq!(Question::parse(&response).unwrap_err(), Malformed::Silence);
        let mut cut = query("page.shop.", RecordType::A);
        cut.truncate(20);
        let Malformed::Reply(reply) = Question::parse(&cut).unwrap_err() else { panic!() };
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::FormErr));
        let mut none = query("a.", RecordType::A);
        none[5] = 0;
        none.truncate(12);
        assert!(matches!(Question::parse(&none).unwrap_err(), Malformed::Reply(_)));
    }

    #[test]
    fn only_a_response_to_the_same_question_answers() {
        let question = query("example.com.", RecordType::A);
        let parsed = Question::parse(&question).unwrap();
        let mut reply = parsed.failed(ResponseCode::NXDomain).unwrap();
        assert!(answers(&question, &reply));
        assert!(!answers(&question, &question));
        assert!(!answers(&query("example.org.", RecordType::A), &reply));
        set_id(&mut reply, 8);
        assert!(!answers(&question, &reply));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_question_a_refusal_or_silence(bytes: Vec<u8>) {
            match Question::parse(&bytes) {
                Ok(question) => proptest::prop_assert!(question.failed(ResponseCode::ServFail).is_some()),
                Err(Malformed::Reply(reply)) => proptest::prop_assert!(Message::from_vec(&reply).is_ok()),
                Err(Malformed::Silence) => {}
            }
        }
    }
}
