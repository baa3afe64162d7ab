//! Who calls: join tokens, one per node or waypoint, kept as digests in a file.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::Value;
use stillmesh_api::{AuthError, Authenticate, Caller, Credentials};
use stillmesh_core::model::Str;
use tracing::warn;

/// The largest file of tokens that is read.
const MAX_BYTES: u64 = 4 << 20;
/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 4096;

/// The form in which a token is kept: SHA-256, lower-case hex.
pub fn token_digest(token: &str) -> String {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Authenticates node tunnels by join tokens. The file is read again when it has changed; one that cannot be read
/// leaves the tokens as they were.
pub struct JoinTokens {
    file: PathBuf,
    account: (Str, Str),
    cluster: Str,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    stamp: Option<(SystemTime, u64, u64)>,
    /// By token digest.
    holders: Arc<HashMap<String, Holder>>,
}

/// Whose a token is.
#[derive(Clone, Debug)]
enum Holder {
    /// The tunnel of this node.
    Node(Str),
    /// A waypoint under this account.
    Account { namespace: Str, account: Str },
}

impl Holder {
    fn read(value: &Value) -> Option<Self> {
        let text = |key: &str| Some(value.get(key)?.as_str()?.into());
        match value.as_str() {
            Some(node) => Some(Self::Node(node.into())),
            None => Some(Self::Account { namespace: text("namespace")?, account: text("account")? }),
        }
    }
}

impl JoinTokens {
    /// Tokens of a file. Callers that present one are node tunnels under `account` (namespace and name).
    pub fn new(file: impl Into<PathBuf>, account: (Str, Str), cluster: Str) -> Self {
        Self { file: file.into(), account, cluster, known: Mutex::default() }
    }

    fn holders(&self) -> Result<Arc<HashMap<String, Holder>>, io::Error> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(&self.file)?;
        let stamp = Some((metadata.modified()?, metadata.ino(), metadata.len()));
        let mut known = self.known.lock();
        if known.stamp != stamp {
            known.holders = Arc::new(read(&self.file)?);
            known.stamp = stamp;
        }
        Ok(Arc::clone(&known.holders))
    }

    fn find(&self, credentials: Credentials<'_>) -> Result<Caller, AuthError> {
        let refused = |why: &str| AuthError::Unauthenticated(why.to_owned());
        let token = credentials.bearer.ok_or_else(|| refused("no token"))?;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused("the token is too long"));
        }
        if credentials.cluster_id.is_some_and(|cluster| !cluster.is_empty() && *cluster != *self.cluster) {
            return Err(refused("another cluster's token"));
        }
        let holders = match self.holders() {
            Ok(holders) => holders,
            Err(error) => {
                warn!(%error, file = %self.file.display(), "join tokens cannot be read");
                let known = Arc::clone(&self.known.lock().holders);
                if known.is_empty() {
                    return Err(AuthError::Unavailable("the join tokens cannot be read".to_owned()));
                }
                known
            }
        };
        // A digest is looked up, so that the time taken tells nothing about tokens.
        let holder = holders.get(&token_digest(token.trim())).ok_or_else(|| refused("the token is not known"))?;
        Ok(match holder {
            Holder::Node(node) => {
                let (namespace, service_account) = self.account.clone();
                Caller { namespace, service_account, node: Some(node.clone()), pod: None }
            }
            Holder::Account { namespace, account } => {
                Caller { namespace: namespace.clone(), service_account: account.clone(), node: None, pod: None }
            }
        })
    }
}

impl Authenticate for JoinTokens {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>> {
        Box::pin(std::future::ready(self.find(credentials)))
    }
}

fn read(file: &Path) -> io::Result<HashMap<String, Holder>> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_BYTES).read_to_string(&mut text)?;
    let tokens: HashMap<String, Value> = serde_json::from_str(&text)?;
    let one = |(digest, value): (String, Value)| Some((digest.to_ascii_lowercase(), Holder::read(&value)?));
    let known: Option<_> = tokens.into_iter().map(one).collect();
    known.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a token is a node's or an account's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn with(token: Option<&'static str>) -> Credentials<'static> {
        Credentials { bearer: token, peer_certificates: &[], cluster_id: Some("Kubernetes") }
    }

    fn tokens(file: &tempfile::NamedTempFile) -> JoinTokens {
        JoinTokens::new(file.path(), ("istio-system".into(), "ztunnel".into()), "Kubernetes".into())
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        assert_eq!(token_digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_token_names_its_node() {
        let file = file(&format!("{{\"{}\": \"node-1\"}}", token_digest("secret")));
        let caller = tokens(&file).find(with(Some("secret"))).unwrap();
        assert_eq!(
            (&*caller.namespace, &*caller.service_account, caller.node.as_deref()),
            ("istio-system", "ztunnel", Some("node-1"))
        );
    }

    #[test]
    fn a_token_may_name_a_waypoints_account() {
        let holder = "{\"namespace\": \"shop\", \"account\": \"w\"}";
        let file = file(&format!("{{\"{}\": {holder}}}", token_digest("secret")));
        let caller = tokens(&file).find(with(Some("secret"))).unwrap();
        assert_eq!((&*caller.namespace, &*caller.service_account, caller.node), ("shop", "w", None));
    }

    #[test]
    fn no_token_a_wrong_one_and_another_clusters_are_refused() {
        let file = file(&format!("{{\"{}\": \"node-1\"}}", token_digest("secret")));
        let tokens = tokens(&file);
        let unauthenticated = |credentials| matches!(tokens.find(credentials), Err(AuthError::Unauthenticated(_)));
        assert!(unauthenticated(with(None)));
        assert!(unauthenticated(with(Some("other"))));
        assert!(unauthenticated(with(Some(""))));
        assert!(unauthenticated(Credentials { cluster_id: Some("other"), ..with(Some("secret")) }));
        assert!(tokens.find(Credentials { cluster_id: None, ..with(Some("secret")) }).is_ok());
    }

    #[test]
    fn the_file_is_followed_and_a_broken_one_changes_nothing() {
        let file = file("[");
        let tokens = tokens(&file);
        assert!(matches!(tokens.find(with(Some("secret"))), Err(AuthError::Unavailable(_))));
        std::fs::write(file.path(), format!("{{\"{}\": \"node-1\"}}", token_digest("secret"))).unwrap();
        assert!(tokens.find(with(Some("secret"))).is_ok());
        std::fs::write(file.path(), "[").unwrap();
        assert!(tokens.find(with(Some("secret"))).is_ok());
        std::fs::write(file.path(), "{}").unwrap();
        assert!(tokens.find(with(Some("secret"))).is_err());
    }
}
