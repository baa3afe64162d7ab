//! What the parts of one node say to each other beside pods: listeners to a successor, questions for probes.

use std::os::fd::OwnedFd;

use stillmesh_api::packets::{MOST_BYTES, Packet};
use stillmesh_api::probes;
use stillmesh_api::succession::{SuccessionError, protocol};

/// The hand-over of listeners: one packet, as a question and as an answer. The first byte is how many descriptors come
/// with it.
pub(crate) fn succession(input: &[u8]) -> bool {
    let Some((count, bytes)) = input.split_first() else { return false };
    let packet =
        |fds: usize| Packet { bytes: bytes.to_vec(), fds: (0..fds).map(|_| descriptor()).collect(), truncated: false };
    let asked = protocol::read_ask(&packet(0));
    if let Ok(ask) = &asked {
        let written = protocol::write_ask(ask).expect("what was read fits");
        assert!(written.len() <= MOST_BYTES);
        let again = protocol::read_ask(&Packet { bytes: written, fds: Vec::new(), truncated: false });
        assert_eq!(again.expect("what was written"), *ask);
    }
    assert!(protocol::read_ask(&packet(1)).is_err(), "a question has no descriptors");
    let fds = usize::from(count % 16);
    let answered = protocol::read_answer(packet(fds));
    if let Ok(sockets) = &answered {
        assert_eq!(sockets.len(), fds);
    }
    assert!(protocol::read_answer(Packet { truncated: true, ..packet(fds) }).is_err());
    asked.is_ok() || matches!(answered, Ok(_) | Err(SuccessionError::Refused(_)))
}

/// Questions for probes: one packet, as a question and as an answer.
pub(crate) fn probe(input: &[u8]) -> bool {
    let packet = |bytes: &[u8]| Packet { bytes: bytes.to_vec(), fds: Vec::new(), truncated: false };
    let _ = probes::read_verdict(&packet(input));
    if let Ok(probes::Said::Notice(notice)) = probes::read_said(&packet(input))
        && let Ok(written) = probes::write_notice(&notice)
    {
        assert_eq!(probes::read_said(&packet(&written)).expect("what was written"), probes::Said::Notice(notice));
    }
    let Ok(question) = probes::read_question(&packet(input)) else { return false };
    if let Ok(written) = probes::write_question(&question) {
        assert_eq!(probes::read_question(&packet(&written)).expect("what was written"), question);
    }
    true
}

fn descriptor() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("a descriptor").into()
}
