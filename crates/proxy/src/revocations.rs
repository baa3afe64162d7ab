//! Keeps what is revoked as the operator's file says.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stillmesh_core::Diagnose;
use stillmesh_identity::Revocations;
use tokio::time::sleep;

/// How often the file is looked at: a mounted ConfigMap changes by a swap of links, which tells nobody.
const LOOK: Duration = Duration::from_secs(1);
/// Longest file, bytes.
const MOST: u64 = 64 << 20;

/// Follows the file for ever. One that cannot be read changes nothing, nor does one that is gone.
pub async fn follow(path: PathBuf, revocations: Arc<Revocations>) {
    let mut known = None;
    loop {
        let read = read(&path).await;
        let seen = read.as_ref().map(fingerprint).map_err(std::io::Error::kind);
        if known != Some(seen) {
            match &read {
                Ok(pem) => match revocations.set(pem) {
                    Ok(count) => tracing::info!(count, path = %path.display(), "revoked certificates are known"),
                    Err(error) => {
                        tracing::error!(error.code = error.code(), %error, "revoked certificates stay as they were")
                    }
                },
                // A mesh that has never revoked anything.
                Err(error) if known.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), "no file of revoked certificates")
                }
                Err(error) => tracing::warn!(%error, path = %path.display(), "revoked certificates stay as they were"),
            }
            known = Some(seen);
        }
        sleep(LOOK).await;
    }
}

/// Tells contents apart without keeping them.
fn fingerprint(text: &String) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

async fn read(path: &std::path::Path) -> std::io::Result<String> {
    let size = tokio::fs::metadata(path).await?.len();
    if size > MOST {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "more than 64 MiB"));
    }
    tokio::fs::read_to_string(path).await
}
