//! DNS: questions of pods to the node tunnel and to the cluster's DNS, replies of resolvers.

use std::sync::{Arc, OnceLock};

use hickory_proto::op::{Message, ResponseCode};
use stillmesh_core::fixtures::World;
use stillmesh_core::model::Workload;
use stillmesh_core::snapshot::Snapshot;
use stillmesh_ztunnel::dns::answer::{Answer, Family, Zone};
use stillmesh_ztunnel::dns::message::{self, Malformed, Question, Transport};

/// What passes any path without fragments, bytes.
const LARGEST_UDP: usize = 1232;

struct Known {
    snapshot: Snapshot,
    client: Arc<Workload>,
    zone: Zone,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let world = World::new().workload("shop/page").service("shop/details", &[(80, 80)], &["shop/page"]);
        let world = world.service_with("shop/many", &[(80, 80)], &[], |service| {
            service.vips = std::iter::repeat_n(service.vips.clone(), 40).flatten().collect();
        });
        Known {
            client: world.get("shop/page"),
            snapshot: world.snapshot(),
            zone: Zone::new("cluster.local", &["corp.example".to_owned()], true),
        }
    })
}

/// A question of a pod, answered by the node tunnel and by the cluster's DNS.
pub(crate) fn question(input: &[u8]) -> bool {
    let known = known();
    #[cfg(feature = "cluster-dns")]
    cluster::question(input);
    if let Some(refusal) = message::overloaded(input) {
        assert_eq!(message::response_code(&refusal), Some(ResponseCode::Refused));
        assert_eq!(message::id(&refusal), message::id(input));
    }
    let question = match Question::parse(input) {
        Ok(question) => question,
        Err(Malformed::Reply(reply)) => {
            assert!(Message::from_vec(&reply).is_ok());
            assert_eq!(message::id(&reply), message::id(input));
            return false;
        }
        Err(Malformed::Silence) => return false,
    };
    let family = question.family().unwrap_or(Family::V4);
    let (canonical, addresses) = match known.zone.answer(&known.snapshot, &known.client, &question.name(), family, 7) {
        Answer::Known { canonical, addresses, .. } => (canonical, addresses),
        Answer::Unknown => (None, Vec::new()),
    };
    let answered = [Transport::Udp, Transport::Tcp]
        .map(|transport| (transport, question.answered(canonical.as_deref(), &addresses, transport)));
    for (transport, reply) in answered {
        let reply = reply.expect("an answer can be written");
        assert!(transport == Transport::Tcp || reply.len() <= LARGEST_UDP, "{} bytes", reply.len());
        assert!(message::answers(input, &reply), "the answer is to another question");
    }
    let failed = question.failed(ResponseCode::ServFail).expect("a failure can be written");
    assert_eq!(message::response_code(&failed), Some(ResponseCode::ServFail));
    true
}

/// What a resolver sends back to a question of ours: its first two bytes are the question's id.
pub(crate) fn reply(input: &[u8]) -> bool {
    let question = include_bytes!("../corpus/dns-question/ok-service-a");
    let mut question = question.to_vec();
    message::set_id(&mut question, message::id(input).unwrap_or_default());
    let code = message::response_code(input);
    let answers = message::answers(&question, input);
    assert!(!answers || code.is_some());
    let mut other = input.to_vec();
    let id = message::id(input).unwrap_or_default().wrapping_add(1);
    message::set_id(&mut other, id);
    assert!(!message::answers(&question, &other), "the reply to another id was taken");
    if input.len() >= 2 {
        assert_eq!(message::id(&other), Some(id));
    }
    answers
}

#[cfg(feature = "cluster-dns")]
mod cluster {
    use std::sync::OnceLock;

    use hickory_proto::op::{Message, MessageType};
    use stillmesh_cli::cluster_dns::Names;
    use stillmesh_objects::Change;
    use stillmesh_ztunnel::dns::message;

    use super::LARGEST_UDP;

    /// What a client that says nothing about it takes, bytes.
    const PLAIN_UDP: u16 = 512;

    /// The cluster's own DNS: every answer is one to this question, and fits.
    pub(super) fn question(input: &[u8]) {
        static NAMES: OnceLock<Names> = OnceLock::new();
        let names = NAMES.get_or_init(|| {
            let names = Names::new("cluster.local");
            let manifests = include_str!("../corpus/manifests/ok-names");
            let objects = stillmesh_k8s::parse::documents("names", manifests).objects;
            names.take(&objects.into_iter().map(Change::Set).collect::<Vec<_>>());
            names
        });
        for limit in [None, Some(PLAIN_UDP)] {
            if let Some(reply) = names.respond(input, limit) {
                let read = Message::from_vec(&reply).expect("our own words");
                assert_eq!(read.metadata.message_type, MessageType::Response);
                assert_eq!(message::id(&reply), message::id(input));
                assert!(limit.is_none() || reply.len() <= LARGEST_UDP);
            }
        }
    }
}
