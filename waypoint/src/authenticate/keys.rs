//! Issuers' keys: read once where they are written down, else fetched, kept, and fetched again. One fetch at a time per
//! issuer; one that fails, and a token whose key nobody knows, ask again only after a while. Keys that were good stay while
//! newer ones cannot be had.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use serde_json::Value;
use stillmesh_core::model::Str;
use stillmesh_core::model::access::{JwtKeys, JwtRule};
use stillmesh_runtime::tasks::Tasks;
use tokio::time::{Instant, timeout};

use super::fetch::Fetcher;

/// One key of an issuer.
pub struct Key {
    /// Its name.
    pub id: Option<String>,
    /// The one algorithm that it is for.
    pub alg: Option<Algorithm>,
    /// The key.
    pub key: DecodingKey,
}

/// Why there are no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysError {
    /// They cannot be fetched.
    Unavailable,
    /// What there is, is no keys.
    Invalid,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// After this long keys are fetched anew, before they are used again.
    pub refresh: Duration,
    /// How often an unknown key may have keys fetched, per issuer.
    pub rotation: Duration,
    /// How long a failed fetch is not tried again.
    pub retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(300), rotation: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// How many issuers are remembered; of more, those that were not asked for the longest are forgotten.
const MOST_ISSUERS: usize = 256;
/// How many keys of one issuer are looked at.
const MOST_KEYS: usize = 64;
/// What a rule may ask for at most.
const LONGEST_FETCH: Duration = Duration::from_secs(30);

type Set = Arc<Vec<Key>>;

/// All issuers' keys.
pub struct Keys {
    issuers: Mutex<HashMap<Source, Arc<Issuer>>>,
    fetcher: Arc<Fetcher>,
    settings: Settings,
    tasks: Tasks,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Inline(Str),
    At(Str),
    Discovered(Str),
}

struct Issuer {
    state: Mutex<State>,
    /// Held by who fetches.
    fetching: tokio::sync::Mutex<()>,
}

struct State {
    keys: Option<Set>,
    /// When they were fetched.
    at: Instant,
    /// When a fetch failed last.
    failed: Option<Instant>,
    asked: Instant,
}

impl Keys {
    /// `tasks` owns what is fetched in the background.
    pub fn new(settings: Settings, extra_root: Option<&std::path::Path>, tasks: Tasks) -> Arc<Self> {
        let fetcher = Arc::new(Fetcher::new(extra_root));
        Arc::new(Self { issuers: Mutex::default(), fetcher, settings, tasks })
    }

    /// The keys of a rule's issuer; newer ones where none of those that are known has this name.
    pub(super) async fn of(&self, rule: &JwtRule, kid: Option<&str>) -> Result<Set, KeysError> {
        let source = match &rule.keys {
            JwtKeys::Inline(text) => Source::Inline(text.clone()),
            JwtKeys::At(uri) => Source::At(uri.clone()),
            JwtKeys::Discovered => Source::Discovered(rule.issuer.clone()),
        };
        let issuer = self.issuer(&source);
        if let Source::Inline(text) = &source {
            let known = issuer.state.lock().keys.clone();
            let set = match known {
                Some(set) => set,
                None => {
                    let set = read(text.as_bytes()).unwrap_or_default();
                    issuer.state.lock().keys.get_or_insert(Arc::new(set)).clone()
                }
            };
            return if set.is_empty() { Err(KeysError::Invalid) } else { Ok(set) };
        }
        let limit = rule.timeout.min(LONGEST_FETCH);
        let now = Instant::now();
        let (keys, at) = {
            let mut state = issuer.state.lock();
            state.asked = now;
            (state.keys.clone(), state.at)
        };
        let Some(set) = keys else { return self.fetched(&source, &issuer, limit, now, self.settings.retry).await };
        let is_known = kid.is_none_or(|kid| set.iter().any(|key| key.id.as_deref().is_none_or(|id| id == kid)));
        if !is_known && now.duration_since(at) >= self.settings.rotation {
            // Whatever comes of it, the keys that are there may still be the right ones for others.
            return self.fetched(&source, &issuer, limit, now, self.settings.rotation).await.or(Ok(set));
        }
        if now.duration_since(at) >= self.settings.refresh && issuer.fetching.try_lock().is_ok() {
            let (fetcher, issuer, retry) = (self.fetcher.clone(), issuer.clone(), self.settings.retry);
            self.tasks.spawn("keys of an issuer", async move {
                drop(fetch(&fetcher, &source, &issuer, limit, now, retry).await);
            });
        }
        Ok(set)
    }

    async fn fetched(
        &self,
        source: &Source,
        issuer: &Arc<Issuer>,
        limit: Duration,
        since: Instant,
        pause: Duration,
    ) -> Result<Set, KeysError> {
        let fetching = fetch(&self.fetcher, source, issuer, limit, since, pause);
        // Who waits for somebody else's fetch waits no longer than for its own.
        timeout(limit, fetching).await.unwrap_or(Err(KeysError::Unavailable))
    }

    fn issuer(&self, source: &Source) -> Arc<Issuer> {
        let mut issuers = self.issuers.lock();
        if let Some(issuer) = issuers.get(source) {
            return issuer.clone();
        }
        if issuers.len() >= MOST_ISSUERS {
            let oldest = issuers.iter().min_by_key(|(_, issuer)| issuer.state.lock().asked);
            if let Some(oldest) = oldest.map(|(source, _)| source.clone()) {
                issuers.remove(&oldest);
            }
        }
        let now = Instant::now();
        let state = State { keys: None, at: now, failed: None, asked: now };
        let issuer = Arc::new(Issuer { state: Mutex::new(state), fetching: tokio::sync::Mutex::new(()) });
        issuers.insert(source.clone(), issuer.clone());
        issuer
    }
}

/// Fetches, unless somebody has since, or it failed a moment ago.
async fn fetch(
    fetcher: &Fetcher,
    source: &Source,
    issuer: &Issuer,
    limit: Duration,
    since: Instant,
    pause: Duration,
) -> Result<Set, KeysError> {
    let _one = issuer.fetching.lock().await;
    {
        let state = issuer.state.lock();
        if let Some(keys) = state.keys.clone().filter(|_| state.at >= since) {
            return Ok(keys);
        }
        if state.failed.is_some_and(|at| at.elapsed() < pause) {
            return state.keys.clone().ok_or(KeysError::Unavailable);
        }
    }
    let body = match source {
        Source::Inline(_) => return Err(KeysError::Invalid),
        Source::At(uri) => fetcher.get(uri, limit).await,
        Source::Discovered(issuer) => fetcher.discover(issuer, limit).await,
    };
    let read =
        body.and_then(|body| read(&body).filter(|set| !set.is_empty()).ok_or_else(|| "no usable key".to_owned()));
    let mut state = issuer.state.lock();
    match read {
        Ok(set) => {
            let set = Arc::new(set);
            (state.keys, state.at, state.failed) = (Some(set.clone()), Instant::now(), None);
            Ok(set)
        }
        Err(problem) => {
            tracing::warn!(
                ?source,
                problem,
                "an issuer's keys cannot be had; its tokens are refused unless older keys verify them"
            );
            state.failed = Some(Instant::now());
            state.keys.clone().ok_or(KeysError::Unavailable)
        }
    }
}

/// Reads a JSON Web Key Set; keys that cannot be used are left out. `None` where it is none.
fn read(bytes: &[u8]) -> Option<Vec<Key>> {
    let whole: Value = serde_json::from_slice(bytes).ok()?;
    let keys = whole.get("keys")?.as_array()?;
    Some(keys.iter().take(MOST_KEYS).filter_map(key).collect())
}

fn key(value: &Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|one| *one != PublicKeyUse::Signature) {
        return None;
    }
    let alg = match jwk.common.key_algorithm {
        None => None,
        Some(alg) => Some(algorithm(alg)?),
    };
    Some(Key { id: jwk.common.key_id.clone(), alg, key: DecodingKey::from_jwk(&jwk).ok()? })
}

fn algorithm(alg: KeyAlgorithm) -> Option<Algorithm> {
    Some(match alg {
        KeyAlgorithm::HS256 => Algorithm::HS256,
        KeyAlgorithm::HS384 => Algorithm::HS384,
        KeyAlgorithm::HS512 => Algorithm::HS512,
        KeyAlgorithm::ES256 => Algorithm::ES256,
        KeyAlgorithm::ES384 => Algorithm::ES384,
        KeyAlgorithm::RS256 => Algorithm::RS256,
        KeyAlgorithm::RS384 => Algorithm::RS384,
        KeyAlgorithm::RS512 => Algorithm::RS512,
        KeyAlgorithm::PS256 => Algorithm::PS256,
        KeyAlgorithm::PS384 => Algorithm::PS384,
        KeyAlgorithm::PS512 => Algorithm::PS512,
        KeyAlgorithm::EdDSA => Algorithm::EdDSA,
        _ => return None,
    })
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("issuers", &self.issuers.lock().len()).finish_non_exhaustive()
    }
}
