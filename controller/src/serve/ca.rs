//! Who gets which certificate (contract 6.1): a node tunnel those of the identities that run on its node, as the
//! objects say; everybody else only their own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use stillmesh_api::Caller;
use stillmesh_api::ca::{CertificateRequest, SignError, SignRequest};
use stillmesh_core::model::{Identity, Str, TrustDomain};
use stillmesh_identity::IssueError;
use tracing::{debug, warn};

use super::Signing;
use crate::build::Running;
use crate::metrics::Metrics;

/// How long a request waits for its pod's object to be read here: a node may be faster than the directory.
const PATIENCE: Duration = Duration::from_secs(1);

/// The certificate authority of the mesh.
pub(crate) struct Authority {
    pub signing: Signing,
    pub running: Arc<Running>,
    pub trusted_node_accounts: Vec<(Str, Str)>,
    pub default_ttl: Duration,
    pub max_ttl: Duration,
    pub metrics: Arc<Metrics>,
}

impl Authority {
    async fn answer(&self, request: CertificateRequest) -> Result<Vec<String>, SignError> {
        self.metrics.csr_count.inc();
        let issuer = Arc::clone(&self.signing.borrow());
        let identity = self.permitted(&request, issuer.trust_domain()).await.inspect_err(|error| {
            self.metrics.identity_errors.inc();
            let node = request.caller.node.as_deref().unwrap_or_default();
            warn!(%error, node, "certificate refused");
        })?;
        let ttl = request.ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(self.default_ttl);
        if ttl > self.max_ttl {
            return Err(self.failed(&IssueError::TooLong { ttl }));
        }
        match issuer.issue(&request.csr_pem, &identity, Some(ttl), SystemTime::now()) {
            Ok(chain) => {
                self.metrics.issued.inc();
                debug!(%identity, node = request.caller.node.as_deref().unwrap_or_default(), "certificate issued");
                Ok(chain)
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The identity that this caller may have a certificate for.
    async fn permitted(&self, request: &CertificateRequest, domain: &TrustDomain) -> Result<Identity, SignError> {
        let caller = &request.caller;
        let node = self.node_of(caller).await?;
        let own = Identity::new(domain.clone(), caller.namespace.clone(), caller.service_account.clone());
        let Some(asked) = request.impersonated.clone().filter(|asked| *asked != own) else { return Ok(own) };
        let refused = |why: String| Err(SignError::Impersonation(why));
        let trusted = |one: &(Str, Str)| one.0 == caller.namespace && one.1 == caller.service_account;
        if !self.trusted_node_accounts.iter().any(trusted) {
            return refused(format!("{}/{} may not ask for others", caller.namespace, caller.service_account));
        }
        let Some(node) = node else {
            return refused("the caller's node is not known".to_owned());
        };
        if asked.trust_domain != own.trust_domain {
            return refused(format!("{asked} is not of the trust domain {}", own.trust_domain));
        }
        if !self.running.comes_to_run(&node, &asked.namespace, &asked.service_account, PATIENCE).await {
            return refused(format!("no pod of {}/{} runs on node {node}", asked.namespace, asked.service_account));
        }
        Ok(asked)
    }

    /// The node of a caller. One that speaks for a pod must be that very pod, alive, where it says that it is.
    async fn node_of(&self, caller: &Caller) -> Result<Option<Str>, SignError> {
        let Some((pod, uid)) = &caller.pod else { return Ok(caller.node.clone()) };
        let refused = |why: &str| Err(SignError::Impersonation(format!("pod {}/{pod} {why}", caller.namespace)));
        let Some(place) = self.running.comes_to_be(&caller.namespace, pod, uid, PATIENCE).await else {
            return refused("is not there, or another one of the same name is");
        };
        if place.account != caller.service_account {
            return refused("runs under another account");
        }
        if caller.node.as_ref().is_some_and(|node| *node != place.node) {
            return refused("runs on another node");
        }
        Ok(Some(place.node))
    }

    fn failed(&self, error: &IssueError) -> SignError {
        warn!(%error, "certificate not issued");
        match error {
            IssueError::BadCsr { .. } => {
                self.metrics.csr_parsing_errors.inc();
                SignError::Invalid(error.to_string())
            }
            IssueError::TooLong { .. } => SignError::Invalid(error.to_string()),
            IssueError::ForeignTrustDomain { .. } => SignError::Impersonation(error.to_string()),
            IssueError::Crypto { .. } | IssueError::Expired => {
                self.metrics.csr_signing_errors.inc();
                SignError::Internal(error.to_string())
            }
        }
    }
}

impl SignRequest for Authority {
    fn sign(&self, request: CertificateRequest) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        Box::pin(self.answer(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillmesh_identity::Issuer;
    use stillmesh_k8s::translate::Mesh;
    use stillmesh_objects as objects;

    fn authority(pods: &str) -> Authority {
        authority_over(crate::build::Builder::new(Mesh::default()), pods)
    }

    fn authority_over(mut builder: crate::build::Builder, pods: &str) -> Authority {
        let found = stillmesh_k8s::parse::documents("a", pods);
        assert_eq!(found.findings, []);
        let changes = found.objects.into_iter().map(objects::Change::Set).collect();
        builder.apply(&objects::Update { changes, ..objects::Update::default() });
        Authority {
            signing: tokio::sync::watch::channel(Arc::new(
                Issuer::create(&TrustDomain::default(), SystemTime::now()).unwrap(),
            ))
            .1,
            running: builder.running(),
            trusted_node_accounts: vec![("istio-system".into(), "ztunnel".into())],
            default_ttl: Duration::from_secs(3600),
            max_ttl: Duration::from_secs(90 * 24 * 3600),
            metrics: Arc::new(Metrics::new()),
        }
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {nodeName: n1, serviceAccountName: page, containers: \
                       [{name: a}]}\n";

    fn csr() -> String {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    }

    fn request(account: &str, node: Option<&str>, impersonated: Option<&str>) -> CertificateRequest {
        CertificateRequest {
            caller: Caller {
                namespace: "istio-system".into(),
                service_account: account.into(),
                node: node.map(Str::from),
                pod: None,
            },
            csr_pem: csr(),
            impersonated: impersonated.map(|text| text.parse().unwrap()),
            ttl: None,
            cluster_id: None,
        }
    }

    const TUNNEL: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: z, namespace: istio-system, uid: u1}\nspec: {nodeName: n1, \
                          serviceAccountName: ztunnel, containers: [{name: a}]}\n";

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_is_a_pod_must_be_that_very_pod() {
        let ask = |authority: &Authority, name: &str, uid: &str, node: Option<&str>| {
            let mut request = request("ztunnel", node, Some(PAGE));
            request.caller.pod = Some((name.into(), uid.into()));
            let (running, signing) = (Arc::clone(&authority.running), authority.signing.clone());
            let authority = Authority {
                signing,
                running,
                trusted_node_accounts: authority.trusted_node_accounts.clone(),
                metrics: Arc::clone(&authority.metrics),
                ..*authority
            };
            async move { authority.answer(request).await }
        };
        let here = authority(&format!("{POD}{TUNNEL}"));
        assert!(ask(&here, "z", "u1", None).await.is_ok(), "its node is that of its pod");
        assert!(ask(&here, "z", "u1", Some("n1")).await.is_ok());
        assert!(ask(&here, "z", "u1", Some("n2")).await.is_err(), "another node");
        assert!(ask(&here, "z", "u2", Some("n1")).await.is_err(), "re-created under the same name");
        assert!(ask(&here, "y", "u1", Some("n1")).await.is_err(), "no such pod");
        let other =
            authority(&format!("{POD}{}", TUNNEL.replace("serviceAccountName: ztunnel", "serviceAccountName: other")));
        assert!(ask(&other, "z", "u1", Some("n1")).await.is_err(), "another account");
        let ended = authority(&format!("{POD}{TUNNEL}status: {{phase: Failed}}\n"));
        assert!(ask(&ended, "z", "u1", Some("n1")).await.is_err(), "it has ended");
        let ended = authority(&format!("{POD}status: {{phase: Succeeded}}\n{TUNNEL}"));
        assert!(ask(&ended, "z", "u1", Some("n1")).await.is_err(), "whose certificate is asked for has ended");
    }

    const PAGE: &str = "spiffe://cluster.local/ns/shop/sa/page";

    #[tokio::test(start_paused = true)]
    async fn a_node_gets_the_certificates_of_its_pods_and_no_others() {
        let authority = authority(POD);
        let chain = authority.answer(request("ztunnel", Some("n1"), Some(PAGE))).await.unwrap();
        assert_eq!(chain.len(), 2);
        for (refused, why) in [
            (request("ztunnel", Some("n2"), Some(PAGE)), "no pod of shop/page runs on node n2"),
            (request("ztunnel", Some("n1"), Some("spiffe://cluster.local/ns/shop/sa/other")), "no pod of shop/other"),
            (request("ztunnel", Some("n1"), Some("spiffe://cluster.local/ns/other/sa/page")), "no pod of other/page"),
            (request("ztunnel", Some("n1"), Some("spiffe://elsewhere/ns/shop/sa/page")), "not of the trust domain"),
            (request("ztunnel", None, Some(PAGE)), "node is not known"),
            (request("page", Some("n1"), Some(PAGE)), "istio-system/page may not ask for others"),
        ] {
            let error = authority.answer(refused).await.unwrap_err();
            assert!(matches!(&error, SignError::Impersonation(text) if text.contains(why)), "{error}");
        }
        assert_eq!((authority.metrics.csr_count.get(), authority.metrics.issued.get()), (7, 1));
        assert_eq!(authority.metrics.identity_errors.get(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_a_kubelet_can_make_by_itself_gives_no_right() {
        let unnamed = POD.replace("serviceAccountName: page, ", "");
        let empty = POD.replace("serviceAccountName: page", "serviceAccountName: ''");
        let mirror = POD.replace("namespace: shop", "namespace: shop, annotations: {kubernetes.io/config.mirror: a}");
        let default = "spiffe://cluster.local/ns/shop/sa/default";
        for (pod, asked) in [(&unnamed, default), (&empty, default), (&mirror, PAGE)] {
            let answer = authority(pod).answer(request("ztunnel", Some("n1"), Some(asked))).await;
            assert!(matches!(answer, Err(SignError::Impersonation(_))), "{pod}");
        }
        // A manifest that no API server has completed.
        for pod in [&unnamed, &empty] {
            let authority = authority_over(crate::build::Builder::from_manifests(Mesh::default()), pod);
            let answer = authority.answer(request("ztunnel", Some("n1"), Some(default))).await;
            assert!(answer.is_ok(), "{pod}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_gets_their_own() {
        let authority = authority("");
        assert!(authority.answer(request("ztunnel", Some("n1"), None)).await.is_ok());
        let own = Some("spiffe://cluster.local/ns/istio-system/sa/ztunnel");
        assert!(authority.answer(request("ztunnel", Some("n1"), own)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn bad_requests_are_told_apart() {
        let authority = authority(POD);
        let garbage = CertificateRequest { csr_pem: "x".into(), ..request("ztunnel", Some("n1"), Some(PAGE)) };
        assert!(matches!(authority.answer(garbage).await, Err(SignError::Invalid(_))));
        let long = Some(Duration::from_secs(91 * 24 * 3600));
        let long = CertificateRequest { ttl: long, ..request("ztunnel", Some("n1"), Some(PAGE)) };
        assert!(matches!(authority.answer(long).await, Err(SignError::Invalid(_))));
        assert_eq!(authority.metrics.csr_parsing_errors.get(), 1);
    }
}
