//! An issuer of tokens, whose keys are on the web.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use parking_lot::Mutex;
use serde_json::json;
use stillmesh_core::fixtures::{policy_key, service_key};
use stillmesh_core::model::access::{Access, Attachment, JwtKeys, JwtRule, RequestAuthentication};
use stillmesh_core::snapshot::Change;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::World;

/// Whom tokens are from.
pub const ISSUER: &str = "https://issuer.example";

/// A key that signs.
pub struct Signer {
    id: String,
    key: EncodingKey,
    /// The set with this one key.
    pub keys: String,
}

impl Signer {
    /// A new key of this name.
    pub fn new(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("a key");
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("a public key");
        jwk.common.key_id = Some(id.to_owned());
        let keys = serde_json::to_string(&JwkSet { keys: vec![jwk] }).expect("JSON");
        Self { id: id.to_owned(), key, keys }
    }

    /// `Bearer` and a token of this subject.
    pub fn bearer(&self, subject: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let claims = json!({"iss": ISSUER, "sub": subject, "exp": now + 600});
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::ES256) };
        format!("Bearer {}", encode(&header, &claims, &self.key).expect("a token"))
    }
}

/// A web server with keys.
pub struct Web {
    /// Where it is.
    pub address: SocketAddr,
    served: Arc<(Mutex<String>, AtomicUsize)>,
}

impl Web {
    /// Serves these keys.
    pub async fn start(world: &World, keys: &str) -> Self {
        Self::over(world, keys, None).await
    }

    /// Serves these keys over TLS, where something says how.
    pub async fn over(world: &World, keys: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.5.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let served = Arc::new((Mutex::new(keys.to_owned()), AtomicUsize::new(0)));
        let (shared, tasks) = (served.clone(), world.tasks.clone());
        world.tasks.spawn("keys on the web", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let service = service_fn(move |_: Request<hyper::body::Incoming>| {
                    shared.1.fetch_add(1, Ordering::Relaxed);
                    let body = Full::new(Bytes::from(shared.0.lock().clone()));
                    async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
                });
                let tls = tls.clone();
                tasks.spawn("a reader of keys", async move {
                    let builder = http1::Builder::new();
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(builder.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, served }
    }

    /// From now on serves these.
    pub fn serve(&self, keys: &str) {
        keys.clone_into(&mut self.served.0.lock());
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.served.1.load(Ordering::Relaxed)
    }
}

/// Tokens of the issuer are believed at `shop/web`.
pub fn believed(keys: JwtKeys, change: impl FnOnce(&mut RequestAuthentication)) -> Change {
    let rule = JwtRule {
        issuer: ISSUER.into(),
        audiences: Vec::new(),
        keys,
        from: Vec::new(),
        forwards_token: false,
        payload_header: None,
        claim_headers: Vec::new(),
        timeout: Duration::from_secs(5),
    };
    let mut authentication = RequestAuthentication {
        key: policy_key("shop/jwt"),
        attached: Attachment::To(vec![service_key("shop/web")]),
        rules: vec![rule],
        unreadable: None,
    };
    change(&mut authentication);
    Change::Access(Arc::new(Access::Authentication(authentication)))
}
