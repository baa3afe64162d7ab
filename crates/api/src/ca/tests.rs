use stillmesh_runtime::drain::Mode;
use tokio::sync::mpsc;
use tonic::Code;
use tonic::service::Routes;

use super::*;
use crate::fixtures::{Authority, OneToken, Server, caller};
use crate::serve::Limits;
use crate::{Root, Token};

const NAME: &str = "istiod.istio-system.svc";
const TTL: Duration = Duration::from_secs(86_400);

/// Answers by the CSR's text and writes requests down.
struct Signer(mpsc::Sender<CertificateRequest>);

impl SignRequest for Signer {
    fn sign(&self, request: CertificateRequest) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let answer = match request.csr_pem.as_str() {
            "bad" => Err(SignError::Invalid("not a CSR".into())),
            "not yours" => Err(SignError::Impersonation("no such pod here".into())),
            "broken" => Err(SignError::Internal("no key".into())),
            "rootless" => Ok(vec!["leaf".into()]),
            "slow" => return Box::pin(std::future::pending()),
            _ => Ok(vec!["leaf".into(), "root".into()]),
        };
        self.0.try_send(request).unwrap();
        Box::pin(std::future::ready(answer))
    }
}

fn routes() -> (Routes, mpsc::Receiver<CertificateRequest>) {
    let (sender, requests) = mpsc::channel(64);
    (Routes::new(service(Arc::new(Signer(sender)), Arc::new(OneToken))), requests)
}

fn identity() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/page".parse().unwrap()
}

#[tokio::test]
async fn a_node_gets_a_chain_for_the_identity_it_names() {
    let (authority, (routes, mut requests)) = (Authority::new(), routes());
    let server = Server::start(authority.server(&[NAME]), routes, Limits::default()).await;
    let client = Client::new(server.control_plane(&authority));
    assert_eq!(client.sign("csr", Some(&identity()), TTL).await.unwrap(), ["leaf", "root"]);
    let request = requests.recv().await.unwrap();
    assert_eq!((request.csr_pem.as_str(), request.caller), ("csr", caller()));
    assert_eq!((request.impersonated, request.ttl), (Some(identity()), Some(TTL)));
    assert_eq!(request.cluster_id.as_deref(), Some("Kubernetes"));

    client.sign("csr", None, Duration::ZERO).await.unwrap();
    let request = requests.recv().await.unwrap();
    assert_eq!((request.impersonated, request.ttl), (None, None));
}

#[tokio::test]
async fn refusals_have_the_contracts_codes() {
    let (authority, (routes, _requests)) = (Authority::new(), routes());
    let server = Server::start(authority.server(&[NAME]), routes, Limits::default()).await;
    let client = Client::new(server.control_plane(&authority));
    let expected = [
        ("bad", Code::InvalidArgument, "not a CSR"),
        ("not yours", Code::Unauthenticated, "request impersonation authentication failure: no such pod here"),
        ("broken", Code::Internal, "no key"),
        ("rootless", Code::Internal, "the signer gave no root"),
    ];
    for (csr, expected_code, expected_message) in expected {
        match client.sign(csr, Some(&identity()), TTL).await.unwrap_err() {
            CaError::Refused { code, message } => {
                assert_eq!((code, message.as_str()), (expected_code, expected_message))
            }
            other => panic!("{other:?}"),
        }
    }
    let stranger = ControlPlane { token: Token::Literal("wrong".into()), ..server.control_plane(&authority) };
    match Client::new(stranger).sign("csr", None, TTL).await.unwrap_err() {
        CaError::Refused { code, message } => {
            assert_eq!((code, message.as_str()), (Code::Unauthenticated, "request authenticate failure: who are you"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_root_file_makes_a_new_channel_and_a_lost_connection_is_made_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let (first, _requests) = routes();
    let server = Server::start(old.server(&[NAME]), first, Limits::default()).await;
    let root = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&root, old.pem()).unwrap();
    let client = Client::new(ControlPlane { root: Root::File(root.path().to_owned()), ..server.control_plane(&old) });
    client.sign("csr", None, TTL).await.unwrap();

    // The controller comes back with a certificate of another root: refused until the file says so too.
    let (second, _requests) = routes();
    let _server = server.replace(Mode::Immediate, new.server(&[NAME]), second).await;
    let refused = client.sign("csr", None, TTL).await.unwrap_err().to_string();
    assert!(
        refused.contains("UnknownIssuer") || refused.contains("transport") || refused.contains("clos"),
        "{refused}"
    );
    std::fs::write(&root, new.pem()).unwrap();
    client.sign("csr", None, TTL).await.unwrap();
}

#[test]
fn what_is_impersonated_must_be_an_identity() {
    let of = |kind| {
        let fields = [(IMPERSONATED.to_owned(), Value { kind })].into();
        impersonated(Some(&Struct { fields }))
    };
    assert_eq!(impersonated(None).unwrap(), None);
    assert_eq!(of(Some(Kind::StringValue(String::new()))).unwrap(), None);
    assert_eq!(of(Some(Kind::StringValue(identity().to_string()))).unwrap(), Some(identity()));
    for bad in [Some(Kind::StringValue("spiffe://x".into())), Some(Kind::BoolValue(true)), None] {
        let refused = of(bad).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().starts_with("request impersonation authentication failure: "));
    }
}
