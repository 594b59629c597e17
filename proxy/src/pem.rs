//! Certificates and keys in PEM files: read, and checked to belong together.
//!
//! Invariant: whatever passes here can be used by rustls and by pingora without a panic; a message
//! names the file and never holds key material.

pub mod kept;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Largest file, bytes: a chain of certificates has a few kilobytes, all of the web's roots 250.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct PemError {
    file: String,
    problem: String,
}

impl PemError {
    /// What is wrong with `file`.
    pub(crate) fn new(file: &Path, problem: impl ToString) -> Self {
        Self { file: file.display().to_string(), problem: problem.to_string() }
    }
}

/// A certificate chain (leaf first) and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    /// PEM file with the chain.
    pub certificate: PathBuf,
    /// PEM file with the key: PKCS #8, PKCS #1 or SEC1, not encrypted.
    pub key: PathBuf,
}

/// The provider that pingora uses too; named, because others may be compiled into the binary.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl KeyFiles {
    /// Both.
    pub fn paths(&self) -> [PathBuf; 2] {
        [self.certificate.clone(), self.key.clone()]
    }

    /// Reads both, and checks that the key is the certificate's. Errors: a file that cannot be
    /// read, holds nothing of its kind, or a pair that does not match.
    pub fn load(&self) -> Result<CertifiedKey, PemError> {
        Ok(self.load_with_der()?.0)
    }

    /// As [`KeyFiles::load`], with the key as DER, which pingora wants.
    pub fn load_with_der(&self) -> Result<(CertifiedKey, Vec<u8>), PemError> {
        let chain = certificates(&self.certificate)?;
        let bytes = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| PemError::new(&self.key, "no private key in PEM form"))?;
        let der = key.secret_der().to_vec();
        let pair = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            let problem = format!("does not fit {}: {error}", self.certificate.display());
            PemError::new(&self.key, problem)
        })?;
        Ok((pair, der))
    }
}

/// The certificates of a file, at least one. Errors: none, or one that is malformed.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let bytes = read(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => match all.iter().find(|one| expires_s(one).is_none()) {
            None => Ok(all),
            Some(_) => Err(PemError::new(file, "holds something that is no X.509 certificate")),
        },
        Ok(_) => Err(PemError::new(file, "no certificate in PEM form")),
        Err(error) => Err(PemError::new(file, error)),
    }
}

/// The certificates of a file, each usable as a root. Errors: as [`certificates`], or one that is
/// no X.509 certificate.
pub fn roots(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all = certificates(file)?;
    let mut store = RootCertStore::empty();
    for certificate in &all {
        store.add(certificate.clone()).map_err(|error| PemError::new(file, error))?;
    }
    Ok(all)
}

/// When a certificate ends, seconds since 1970; `None` if it is none.
pub fn expires_s(certificate: &CertificateDer<'_>) -> Option<i64> {
    // The parser that pingora uses, which panics at what this one refuses.
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn read(file: &Path) -> Result<Vec<u8>, PemError> {
    let size = std::fs::metadata(file).map_err(|error| PemError::new(file, error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(PemError::new(file, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(file).map_err(|error| PemError::new(file, error))
}
