//! Where the CA is kept: `ca-key.pem` (mode 0600), `ca-cert.pem` and `root-cert.pem` in one directory (contract 6.4).
//!
//! Each file appears whole or not at all. The key is written first: a key without a certificate is a first start
//! that was interrupted, and gets its certificate now.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::KeyPair;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_core::model::TrustDomain;

use super::Issuer;
use crate::BundleError;

const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-cert.pem";
const ROOT: &str = "root-cert.pem";

/// The longest file that is read.
const MAX_FILE_BYTES: u64 = 64 * 1024;

pub(super) fn load_or_create(dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Issuer, IssuerError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| IssuerError::File { path: dir.to_owned(), source })?;
    let (key, certificate) = (read(&dir.join(KEY))?, read(&dir.join(CERTIFICATE))?);
    let inside = |problem: IssuerError| IssuerError::Kept { dir: dir.to_owned(), source: Box::new(problem) };
    let issuer = match (key, certificate) {
        (Some(key), Some(certificate)) => Issuer::from_pem(&certificate, &key, trust_domain).map_err(inside)?,
        (None, Some(_)) => return Err(inside(IssuerError::NoKey)),
        (None, None) => {
            let issuer = Issuer::create(trust_domain, now)?;
            write(dir, KEY, &issuer.key_pem(), 0o600)?;
            write(dir, CERTIFICATE, issuer.root_pem(), 0o644)?;
            issuer
        }
        (Some(key), None) => {
            let key =
                KeyPair::from_pem(&key).map_err(|problem| inside(IssuerError::Key { problem: problem.to_string() }))?;
            let issuer = Issuer::create_with(key, trust_domain, super::ROOT_LIFE, now)?;
            write(dir, CERTIFICATE, issuer.root_pem(), 0o644)?;
            issuer
        }
    };
    if read(&dir.join(ROOT))?.as_deref() != Some(issuer.root_pem()) {
        write(dir, ROOT, issuer.root_pem(), 0o644)?;
    }
    Ok(issuer)
}

/// A whole file as text; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, IssuerError> {
    let failed = |source| IssuerError::File { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Writes beside the file, makes it durable, then renames.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), IssuerError> {
    let path = dir.join(name);
    let beside = dir.join(format!(".{name}.new"));
    let written = (|| {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|source| IssuerError::File { path, source })
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is kept in a directory is unusable. Nothing is overwritten.
    #[error("the CA kept in {} cannot be used", dir.display())]
    Kept {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<IssuerError>,
    },
    /// A certificate without its key.
    #[error("there is {CERTIFICATE} without {KEY}")]
    NoKey,
    /// The key cannot be read.
    #[error("{KEY} is not a private key: {problem}")]
    Key {
        /// What is wrong.
        problem: String,
    },
    /// The certificate cannot be a root.
    #[error("{CERTIFICATE} cannot be used")]
    Root(#[source] BundleError),
    /// Several certificates where one is expected.
    #[error("{CERTIFICATE} holds {found} certificates; exactly one is accepted")]
    NotOneRoot {
        /// How many.
        found: usize,
    },
    /// The certificate cannot be read.
    #[error("{CERTIFICATE} cannot be used: {problem}")]
    Certificate {
        /// What is wrong.
        problem: String,
    },
    /// The key is another certificate's.
    #[error("{KEY} is not the key of {CERTIFICATE}")]
    Mismatch,
    /// The signing certificate does not lead to a root.
    #[error("{CERTIFICATE} does not lead to a root of {ROOT}: {problem}")]
    Chain {
        /// What is wrong.
        problem: String,
    },
    /// What a Secret holds is not what this version, or any, writes.
    #[error("{key}: {problem}")]
    Content {
        /// Which of its keys.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Signing failed.
    #[error("the root could not be made: {problem}")]
    Crypto {
        /// What the library says.
        problem: String,
    },
}

impl IssuerError {
    pub(super) fn crypto(problem: rcgen::Error) -> Self {
        Self::Crypto { problem: problem.to_string() }
    }
}

impl Diagnose for IssuerError {
    fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "IDT050",
            Self::Kept { source, .. } => source.code(),
            Self::NoKey => "IDT051",
            Self::Key { .. } => "IDT052",
            Self::Root(_) | Self::NotOneRoot { .. } | Self::Certificate { .. } => "IDT053",
            Self::Mismatch => "IDT054",
            Self::Crypto { .. } => "IDT055",
            Self::Chain { .. } => "IDT056",
            Self::Content { .. } => "IDT057",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Crypto { .. } => Fault::Internal,
            _ => Fault::Config,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Crypto { .. } => "report this: the CA could not sign itself",
            Self::File { .. } => "check that the CA directory can be read and written by the controller",
            Self::Chain { .. } => "put the intermediates into cert-chain.pem and the roots into root-cert.pem",
            Self::Content { .. } => "restore the Secret from a backup, or delete it to begin with a new root",
            _ => "restore the CA directory from a backup, or move it away to begin with a new root",
        }
    }
}
