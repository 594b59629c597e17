//! Certificates for tests, and TLS connections that use them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hone_proxy::KeyFiles;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// An authority that tests trust, or not.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
    dir: tempfile::TempDir,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Identity {
    chain: String,
    key: String,
}

const DAY: Duration = Duration::from_secs(86_400);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "hone test authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self { issuer, certificate, dir: tempfile::tempdir().unwrap() }
    }

    /// The PEM file of the authority itself.
    pub fn file(&self) -> PathBuf {
        let file = self.dir.path().join("ca.pem");
        std::fs::write(&file, self.certificate.pem()).unwrap();
        file
    }

    /// A certificate for names or addresses that is valid now.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_until(names, SystemTime::now() + 30 * DAY)
    }

    pub fn issue_until(&self, names: &[&str], end: SystemTime) -> Identity {
        let mut params = leaf(names);
        params.not_before = (end - 60 * DAY).into();
        params.not_after = end.into();
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { chain, key: key.serialize_pem() }
    }

    /// Writes the files of an identity.
    pub fn files(&self, identity: &Identity) -> KeyFiles {
        let name = |end: &str| self.dir.path().join(format!("leaf.{end}"));
        let files = KeyFiles { certificate: name("pem"), key: name("key") };
        identity.write(&files);
        files
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        roots
    }

    /// Connects and verifies `name`; the result of the handshake.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_provider(hone_proxy::pem::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// A server's configuration that shows `identity`, and asks for a certificate of this authority
    /// if `asks`.
    pub fn server(&self, identity: &Identity, asks: bool, protocols: &[&str]) -> Arc<ServerConfig> {
        let provider = hone_proxy::pem::provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(self.roots()),
                provider,
            );
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = identity.der();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A certificate that vouches for itself.
pub fn self_signed(names: &[&str]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let chain = leaf(names).self_signed(&key).unwrap().pem();
    Identity { chain, key: key.serialize_pem() }
}

fn leaf(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
}

impl Identity {
    fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        use rustls::pki_types::pem::PemObject;
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        (chain.collect::<Result<_, _>>().unwrap(), key)
    }

    /// The leaf, as clients see it.
    pub fn leaf(&self) -> CertificateDer<'static> {
        self.der().0.remove(0)
    }

    pub fn write(&self, files: &KeyFiles) {
        write_file(&files.certificate, &self.chain);
        write_file(&files.key, &self.key);
    }
}

/// Replaces a file as deployment tools do: whole or not at all.
pub fn write_file(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// An engine that speaks TLS: shakes hands, then hands the bytes to `origin`. Its address, and the
/// names that clients asked for.
pub async fn terminate(
    origin: SocketAddr,
    config: Arc<ServerConfig>,
) -> (SocketAddr, Arc<std::sync::Mutex<Vec<Option<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let names = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (acceptor, asked) = (TlsAcceptor::from(config), Arc::clone(&names));
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, asked) = (acceptor.clone(), Arc::clone(&asked));
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let name = tls.get_ref().1.server_name().map(str::to_owned);
                asked.lock().unwrap().push(name);
                let mut plain = TcpStream::connect(origin).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    (address, names)
}
