//! Who calls, by the tokens of pods: TokenReview with the mesh's audience (contract 6.2).
//!
//! Answers are remembered for a short time under the token's digest, good and bad ones alike; the CA looks at the
//! caller's pod for every certificate all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use stillmesh_api::{AuthError, Authenticate, Caller, Credentials};
use stillmesh_cluster::Cluster;
use stillmesh_core::model::Str;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::build::Running;

/// How long a good answer is remembered.
const GOOD: Duration = Duration::from_secs(30);
/// How long a bad one is.
const BAD: Duration = Duration::from_secs(5);
/// How many answers are remembered; more are asked for again.
const REMEMBERED: usize = 4096;
/// How many tokens are reviewed at a time; more callers wait within their own deadline.
const AT_ONCE: usize = 32;
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// How long a caller's pod may be unknown here: a node may be faster than the watch.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

type Digest = [u8; 32];
type Answer = Result<Caller, AuthError>;

/// Authenticates pods by their projected tokens.
pub(crate) struct TokenReviews {
    api: Api<TokenReview>,
    audiences: Vec<String>,
    cluster: Str,
    running: Arc<Running>,
    known: Mutex<HashMap<Digest, (Answer, Instant)>>,
    reviewing: Semaphore,
}

impl TokenReviews {
    pub fn new(cluster: &Cluster, audiences: Vec<String>, id: Str, running: Arc<Running>) -> Self {
        Self {
            api: Api::all(cluster.client()),
            audiences,
            cluster: id,
            running,
            known: Mutex::default(),
            reviewing: Semaphore::new(AT_ONCE),
        }
    }

    async fn find(&self, credentials: Credentials<'_>) -> Answer {
        let token = credentials.bearer.filter(|token| !token.is_empty()).ok_or_else(|| refused("no token"))?;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused("the token is too long"));
        }
        if credentials.cluster_id.is_some_and(|cluster| !cluster.is_empty() && *cluster != *self.cluster) {
            return Err(refused("another cluster's token"));
        }
        let Ok(key) = Digest::try_from(digest::digest(&digest::SHA256, token.as_bytes()).as_ref()) else {
            return Err(AuthError::Unavailable("the token cannot be digested".to_owned()));
        };
        if let Some(answer) = self.remembered(&key) {
            return answer;
        }
        let place = self.reviewing.acquire().await;
        // Several calls of one node come together; the first one has asked for the others.
        if let Some(answer) = self.remembered(&key) {
            return answer;
        }
        let reviewed = self.review(token).await;
        drop(place);
        let answer = match reviewed {
            Ok(user) => self.caller(&user).await,
            Err(error) => Err(error),
        };
        self.remember(key, &answer);
        answer
    }

    async fn review(&self, token: &str) -> Result<UserInfo, AuthError> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(self.audiences.clone()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let parameters = PostParams::default();
        let asked = timeout(DEADLINE, self.api.create(&parameters, &review)).await;
        let unavailable = |why: String| AuthError::Unavailable(format!("the API server cannot review tokens: {why}"));
        let status = asked
            .map_err(|_| unavailable(format!("no answer within {DEADLINE:?}")))?
            .map_err(|error| unavailable(super::chain(&error)))?
            .status
            .unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(refused("the token is not accepted by the API server: it may have expired, or be for others"));
        }
        // Without audiences an old API server would have checked its own.
        if !status.audiences.iter().flatten().any(|one| self.audiences.contains(one)) {
            return Err(refused("the token is for others"));
        }
        status.user.ok_or_else(|| refused("the token names nobody"))
    }

    /// The caller that a token speaks for. Its pod must exist.
    async fn caller(&self, user: &UserInfo) -> Answer {
        let claim = claims(user).map_err(refused)?;
        let (namespace, service_account) = (Str::from(claim.namespace), Str::from(claim.account));
        let (pod, uid) = (Str::from(claim.pod), Str::from(claim.uid));
        let place = self.running.comes_to_be(&namespace, &pod, &uid, PATIENCE).await;
        let node = match (place, claim.node) {
            (Some(place), _) if place.account != service_account => {
                return Err(refused("the token's pod runs under another account"));
            }
            (Some(place), Some(claimed)) if *place.node != *claimed => {
                return Err(refused("the token's pod runs on another node"));
            }
            (Some(place), _) => place.node,
            (None, _) => return Err(refused("the token's pod is not known or has ended")),
        };
        Ok(Caller { namespace, service_account, node: Some(node), pod: Some((pod, uid)) })
    }

    fn remembered(&self, key: &Digest) -> Option<Answer> {
        let known = self.known.lock();
        known.get(key).filter(|(_, until)| Instant::now() < *until).map(|(answer, _)| answer.clone())
    }

    fn remember(&self, key: Digest, answer: &Answer) {
        let life = match answer {
            Ok(_) => GOOD,
            Err(AuthError::Unavailable(_)) => return,
            Err(_) => BAD,
        };
        let now = Instant::now();
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < REMEMBERED {
            known.insert(key, (answer.clone(), now + life));
        }
    }
}

impl Authenticate for TokenReviews {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Answer> {
        Box::pin(self.find(credentials))
    }
}

fn refused(why: impl Into<String>) -> AuthError {
    AuthError::Unauthenticated(why.into())
}

/// What a token says.
#[derive(Debug, PartialEq, Eq)]
struct Claims<'a> {
    namespace: &'a str,
    account: &'a str,
    pod: &'a str,
    uid: &'a str,
    node: Option<&'a str>,
}

/// Reads what the API server says about a token. Only tokens of pods are taken.
fn claims(user: &UserInfo) -> Result<Claims<'_>, &'static str> {
    if !user.groups.iter().flatten().any(|group| group == SERVICE_ACCOUNTS) {
        return Err("the token is not a service account's");
    }
    let name = user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:"));
    let (namespace, account) =
        name.and_then(|name| name.split_once(':')).ok_or("the token names no service account")?;
    let extra = |key: &str| user.extra.as_ref()?.get(key)?.first().map(String::as_str).filter(|text| !text.is_empty());
    let pod = extra(POD_NAME).ok_or("the token is not bound to a pod")?;
    let uid = extra(POD_UID).ok_or("the token is not bound to a pod")?;
    if namespace.is_empty() || account.is_empty() || account.contains(':') {
        return Err("the token names no service account");
    }
    Ok(Claims { namespace, account, pod, uid, node: extra(NODE_NAME) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, groups: &[&str], extra: &[(&str, &str)]) -> UserInfo {
        UserInfo {
            username: Some(name.to_owned()),
            groups: Some(groups.iter().map(|group| (*group).to_owned()).collect()),
            extra: Some(extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect()),
            ..UserInfo::default()
        }
    }

    const ACCOUNT: &str = "system:serviceaccount:mesh:ztunnel";
    const BOUND: [(&str, &str); 2] = [(POD_NAME, "z-1"), (POD_UID, "u")];

    #[test]
    fn a_pods_token_names_account_pod_and_node() {
        let extra = [BOUND[0], BOUND[1], (NODE_NAME, "n1")];
        let user = user(ACCOUNT, &["system:authenticated", SERVICE_ACCOUNTS], &extra);
        let expected = Claims { namespace: "mesh", account: "ztunnel", pod: "z-1", uid: "u", node: Some("n1") };
        assert_eq!(claims(&user), Ok(expected));
    }

    #[test]
    fn everything_else_is_refused() {
        for user in [
            user(ACCOUNT, &["system:authenticated"], &BOUND),
            user("system:node:n1", &[SERVICE_ACCOUNTS], &BOUND),
            user("system:serviceaccount:mesh", &[SERVICE_ACCOUNTS], &BOUND),
            user("system:serviceaccount:mesh:", &[SERVICE_ACCOUNTS], &BOUND),
            user("system:serviceaccount:mesh:a:b", &[SERVICE_ACCOUNTS], &BOUND),
            user(ACCOUNT, &[SERVICE_ACCOUNTS], &BOUND[..1]),
            user(ACCOUNT, &[SERVICE_ACCOUNTS], &BOUND[1..]),
            user(ACCOUNT, &[SERVICE_ACCOUNTS], &[(POD_NAME, ""), (POD_UID, "u")]),
        ] {
            assert!(claims(&user).is_err(), "{user:?}");
        }
    }
}
