use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;

const TIMES: Times = Times {
    life: Duration::from_secs(1_000_000),
    announce: Duration::from_secs(1000),
    retain: Duration::from_secs(5000),
};

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A replica and what the API server holds; both may be lost.
struct Replica {
    memory: Memory,
    leads: bool,
}

#[derive(Default)]
struct Server {
    held: Held,
    now: u64,
}

impl Server {
    fn at(&mut self, now: u64) -> SystemTime {
        self.now = now;
        start() + Duration::from_secs(now)
    }

    /// One look of a replica, and what it writes comes to be.
    fn look(&mut self, replica: &mut Replica, now: u64) -> Decision {
        let now = self.at(now);
        let mut decision = decide(&self.held, &mut replica.memory, replica.leads, &TrustDomain::default(), &TIMES, now);
        match decision.write.take() {
            Some(Write::First(kept) | Write::Back(kept)) if self.held.own.is_none() => {
                self.held.own = Some(Arc::new(secret(kept.write(), self.now)));
            }
            Some(Write::Instead(before, kept)) => {
                let after = super::super::changed(&before, &kept);
                self.held.own = Some(Arc::new(after));
            }
            _ => {}
        }
        decision
    }

    /// Looks until somebody signs.
    fn settled(&mut self, replica: &mut Replica, now: u64) -> Issuer {
        let first = self.look(replica, now).issuer;
        first.or_else(|| self.look(replica, now).issuer).expect("it signs")
    }

    fn damage(&mut self) {
        self.held.own = Some(Arc::new(secret([("ca-key.pem", "garbage".to_owned())], self.now)));
    }
}

fn replica(leads: bool) -> Replica {
    Replica { memory: Memory::default(), leads }
}

fn secret<'a>(content: impl IntoIterator<Item = (&'a str, String)>, created: u64) -> Secret {
    let data = content.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    let mut secret = Secret { data: Some(data.collect()), ..Secret::default() };
    let created = k8s_openapi::jiff::Timestamp::try_from(start() + Duration::from_secs(created)).unwrap();
    secret.metadata.creation_timestamp = Some(Time(created));
    secret
}

fn roots(issuer: &Issuer) -> Vec<Vec<u8>> {
    issuer.bundle().roots().iter().map(|root| root.to_vec()).collect()
}

#[test]
fn the_first_secret_is_anybodys_and_all_sign_with_it() {
    let mut server = Server::default();
    let (mut one, mut other) = (replica(false), replica(false));
    let first = server.settled(&mut one, 0);
    assert!(server.settled(&mut other, 1).same(&first));
}

#[test]
fn a_secret_that_is_deleted_or_damaged_is_written_back_by_the_leader_and_nothing_changes_meanwhile() {
    let mut server = Server::default();
    let (mut leader, mut other) = (replica(true), replica(false));
    let first = server.settled(&mut leader, 0);
    server.settled(&mut other, 0);
    for break_it in [|server: &mut Server| server.held.own = None, Server::damage] {
        break_it(&mut server);
        assert!(server.look(&mut other, 10).issuer.unwrap().same(&first), "it goes on");
        let broken = server.held.own.as_ref().is_none_or(|secret| secret.data.as_ref().unwrap().len() == 1);
        assert!(broken, "only the leader writes it back");
        assert!(server.look(&mut leader, 10).issuer.unwrap().same(&first));
        assert!(server.settled(&mut replica(false), 11).same(&first), "a new replica reads it");
    }
}

#[test]
fn garbage_at_the_start_is_not_replaced_by_a_new_root() {
    let mut server = Server::default();
    server.damage();
    let decision = server.look(&mut replica(true), 100);
    assert!(decision.issuer.is_none());
    assert!(decision.problems[0].to_string().contains("ca-cert.pem: missing"), "{:?}", decision.problems);
    assert_eq!(server.held.own.as_ref().unwrap().data.as_ref().unwrap().len(), 1, "it stays as it is");
}

#[test]
fn a_lost_key_is_waited_for_and_its_root_stays_trusted() {
    let mut server = Server::default();
    let lost = server.settled(&mut replica(true), 0);
    server.held.own = None;
    let data = Some([(ROOT_KEY.to_owned(), lost.root_pem().to_owned())].into());
    let map = ConfigMap { data, ..ConfigMap::default() };
    server.held.distributed = Some(Arc::new(map));
    let mut new = replica(true);
    assert!(server.look(&mut new, 10).issuer.is_none());
    assert!(server.held.own.is_none(), "somebody may still know the key");
    let issuer = server.settled(&mut new, 30);
    assert!(roots(&issuer).contains(&roots(&lost)[0]), "what the lost key signed stays trusted");
    assert!(!issuer.same(&lost));
}

#[test]
fn another_valid_root_put_in_place_leaves_the_former_trusted() {
    let mut server = Server::default();
    let mut leader = replica(true);
    let first = server.settled(&mut leader, 0);
    let other = Kept::create(&TrustDomain::default(), &TIMES, start()).unwrap();
    server.held.own = Some(Arc::new(secret(other.write(), 0)));
    server.look(&mut leader, 10);
    let after = server.look(&mut leader, 11).issuer.unwrap();
    assert_eq!(roots(&after)[1], roots(&first)[0]);
    assert!(server.settled(&mut replica(false), 12).same(&after));
}

#[test]
fn a_rotation_is_asked_for_by_an_annotation_and_done_by_the_leader() {
    let mut server = Server::default();
    let (mut leader, mut other) = (replica(true), replica(false));
    let first = server.settled(&mut leader, 0);
    let mut asked = Secret::clone(server.held.own.as_ref().unwrap());
    asked.metadata.annotations = Some([(ROTATE.to_owned(), "one".to_owned())].into());
    server.held.own = Some(Arc::new(asked));
    server.look(&mut other, 10);
    assert!(server.look(&mut other, 10).issuer.unwrap().same(&first), "only the leader rotates");
    server.look(&mut leader, 10);
    let announced = server.look(&mut leader, 11);
    let until = announced.again.unwrap();
    let announced = announced.issuer.unwrap();
    assert_eq!((roots(&announced).len(), &roots(&announced)[0]), (2, &roots(&first)[0]));
    assert_eq!(until, start() + Duration::from_secs(1010));
    server.look(&mut leader, 1010);
    let switched = server.look(&mut other, 1011).issuer.unwrap();
    assert_eq!(roots(&switched), [roots(&announced)[1].clone(), roots(&first)[0].clone()]);
    server.look(&mut leader, 6011);
    assert_eq!(roots(&server.look(&mut other, 6012).issuer.unwrap()).len(), 1);
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = (start() - Duration::from_secs(10)).into();
    params.not_after = (start() + Duration::from_secs(900_000)).into();
    params
}

/// Content of `cacerts` under a root.
fn plug(root: &CertifiedIssuer<'static, KeyPair>, more_roots: &str) -> Vec<(&'static str, String)> {
    let signing = CertifiedIssuer::signed_by(ca("signing"), KeyPair::generate().unwrap(), root).unwrap();
    vec![
        ("ca-cert.pem", signing.pem()),
        ("ca-key.pem", signing.key().serialize_pem()),
        ("cert-chain.pem", format!("{}{}", signing.pem(), root.pem())),
        ("root-cert.pem", format!("{}{more_roots}", root.pem())),
    ]
}

fn root(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(ca(name), KeyPair::generate().unwrap()).unwrap()
}

#[test]
fn what_is_plugged_in_from_the_start_signs_at_once_and_no_own_root_is_made() {
    let mut server = Server::default();
    let acme = root("acme");
    server.held.plugged = Some(Arc::new(secret(plug(&acme, ""), 0)));
    let issuer = server.look(&mut replica(true), 10).issuer.unwrap();
    assert_eq!(roots(&issuer), [acme.der().to_vec()]);
    assert!(server.held.own.is_none());
}

#[test]
fn the_other_form_of_keys_is_read_too() {
    let mut server = Server::default();
    let acme = root("acme");
    let content = plug(&acme, "").into_iter().filter_map(|(key, text)| match key {
        "ca-cert.pem" => Some(("tls.crt", text)),
        "ca-key.pem" => Some(("tls.key", text)),
        "root-cert.pem" => Some(("ca.crt", text)),
        _ => None,
    });
    server.held.plugged = Some(Arc::new(secret(content, 0)));
    assert!(server.look(&mut replica(true), 10).issuer.is_some());
}

#[test]
fn what_is_plugged_into_a_running_mesh_signs_once_its_roots_are_known_everywhere() {
    let mut server = Server::default();
    let mut leader = replica(true);
    let own = server.settled(&mut leader, 0);
    let acme = root("acme");
    server.held.plugged = Some(Arc::new(secret(plug(&acme, ""), 100)));
    let announced = server.look(&mut leader, 100);
    assert_eq!(announced.again, Some(start() + Duration::from_secs(1100)));
    assert_eq!(roots(&announced.issuer.unwrap()), [roots(&own)[0].clone(), acme.der().to_vec()]);
    let switched = server.look(&mut leader, 1100).issuer.unwrap();
    assert_eq!(roots(&switched), [acme.der().to_vec(), roots(&own)[0].clone()]);
    assert!(server.look(&mut replica(false), 1101).issuer.unwrap().same(&switched));
}

#[test]
fn bad_content_of_what_is_plugged_in_keeps_the_last_good_and_is_told() {
    let mut server = Server::default();
    let (acme, other) = (root("acme"), root("other"));
    let mut leader = replica(true);
    server.held.plugged = Some(Arc::new(secret(plug(&acme, ""), 0)));
    let good = server.look(&mut leader, 10).issuer.unwrap();
    let mut broken = plug(&acme, "");
    broken[1].1 = "garbage".to_owned();
    for content in [broken, plug(&other, "")] {
        server.held.plugged = Some(Arc::new(secret(content, 0)));
        let decision = server.look(&mut leader, 20);
        assert!(decision.issuer.unwrap().same(&good));
        assert_eq!(decision.problems.len(), 1);
    }
    server.held.plugged = Some(Arc::new(secret(plug(&other, &acme.pem()), 0)));
    let both = server.look(&mut leader, 30);
    assert_eq!((roots(&both.issuer.unwrap()).len(), both.problems.len()), (2, 0));
    server.held.plugged = None;
    let gone = server.look(&mut leader, 40);
    assert!(gone.issuer.is_some() && gone.problems[0].message.contains("it is gone"));
}

#[test]
fn garbage_plugged_in_at_the_start_signs_nothing() {
    let mut server = Server::default();
    server.settled(&mut replica(true), 0);
    server.held.plugged = Some(Arc::new(secret([("ca-cert.pem", "x".to_owned())], 10)));
    let decision = server.look(&mut replica(true), 20);
    assert!(decision.issuer.is_none());
    assert!(decision.problems[0].to_string().contains("ca-key.pem is missing"), "{:?}", decision.problems);
}

#[test]
fn a_list_of_revoked_certificates_is_read_and_a_bad_one_leaves_the_one_before() {
    let mut server = Server::default();
    let acme = root("acme");
    let mut leader = replica(true);
    let list = rcgen::CertificateRevocationListParams {
        this_update: start().into(),
        next_update: (start() + Duration::from_secs(100)).into(),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let mut params = ca("crl");
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign, rcgen::KeyUsagePurpose::KeyCertSign];
    let signer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pem = list.signed_by(&signer).unwrap().pem().unwrap();
    let with = |crl: &str| {
        let mut content = plug(&acme, "");
        content.push((CRL, crl.to_owned()));
        Some(Arc::new(secret(content, 0)))
    };
    server.held.plugged = with(&pem);
    assert_eq!(server.look(&mut leader, 10).crl.as_deref(), Some(&*pem));
    server.held.plugged = with("garbage");
    let bad = server.look(&mut leader, 20);
    assert_eq!((bad.crl.as_deref(), bad.problems.len()), (Some(&*pem), 1));
    server.held.plugged = Some(Arc::new(secret(plug(&acme, ""), 0)));
    assert_eq!(server.look(&mut leader, 30).crl, None);
}
