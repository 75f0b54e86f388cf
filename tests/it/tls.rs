//! TLS to the Product Service and to PostgreSQL, with the certificates of a private authority.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio_rustls::TlsAcceptor;

use crate::support::{Replica, Shop, command, customer, lines, stack};

const ADA: &str = "ada@example.com";

/// A certificate authority, and the file of its certificate.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn file(&self) -> String {
        self.folder.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    /// A server for `localhost` with a certificate of this authority.
    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Arc::new(config).into()
    }

    /// A proxy that speaks TLS to its clients; returns its port. A client of PostgreSQL first asks for TLS.
    async fn proxy(&self, target: SocketAddr, is_postgres: bool) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = self.acceptor();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if is_postgres {
                        // SSLRequest has 8 bytes; `S` agrees.
                        client.read_exact(&mut [0; 8]).await?;
                        client.write_all(b"S").await?;
                    }
                    let mut client = acceptor.accept(client).await?;
                    let mut server = TcpStream::connect(target).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        port
    }

    /// The URL of the Product Service behind a proxy.
    async fn product_service(&self) -> String {
        let url: reqwest::Url = stack().product_service.parse().unwrap();
        let port = self.proxy(address_of(&url).await, false).await;
        format!("https://localhost:{port}{}", url.path())
    }

    /// The URL of the database behind a proxy. `trusted` is the file of the authority that the client trusts.
    async fn database(&self, url: &str, trusted: &str) -> String {
        let mut url: reqwest::Url = url.parse().unwrap();
        let port = self.proxy(address_of(&url).await, true).await;
        url.set_host(Some("localhost")).unwrap();
        url.set_port(Some(port)).unwrap();
        url.query_pairs_mut().append_pair("sslmode", "verify-full").append_pair("sslrootcert", trusted);
        url.into()
    }
}

async fn address_of(url: &reqwest::Url) -> SocketAddr {
    let host = (url.host_str().unwrap(), url.port_or_known_default().unwrap_or(5432));
    lookup_host(host).await.unwrap().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_order_is_placed_over_tls_to_the_product_service_and_to_the_database() {
    let authority = Authority::new();
    let database = Shop::new_database().await;
    let shop = Shop::builder()
        .database(&database)
        .with("DATABASE_URL", authority.database(&database, &authority.file()).await)
        .with("PRODUCT_SERVICE_URL", authority.product_service().await)
        .with("SSL_CERT_FILE", authority.file())
        .without_service()
        .await;
    let phone = shop.product("phone", "249.90", 10).await;
    let replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);

    shop.placed(ADA, &[(&phone, 2)]).await;

    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_product_service_with_an_untrusted_certificate_is_unavailable() {
    let (authority, other) = (Authority::new(), Authority::new());
    let shop = Shop::builder()
        .with("PRODUCT_SERVICE_URL", authority.product_service().await)
        .with("SSL_CERT_FILE", other.file())
        .without_service()
        .await;
    let phone = shop.product("phone", "249.90", 10).await;
    let replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);

    let refused = shop.place(customer(ADA), &lines(&[(&phone, 1)])).await;

    refused.expect_unavailable("product-service-unavailable");
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_database_with_an_untrusted_certificate_ends_the_start() {
    let (authority, other) = (Authority::new(), Authority::new());
    let database = Shop::empty_database().await;
    let url = authority.database(&database, &other.file()).await;
    let shop = Shop::builder()
        .database(&database)
        .with("DATABASE_URL", url)
        .with("STARTUP_TIMEOUT_MS", "600")
        .without_service()
        .await;

    let output = tokio::process::Command::from(command("migrate", &shop.environment)).output().await.unwrap();

    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("invalid peer certificate"), "{said}");
}
