//! Clients for outgoing HTTP. Their TLS is rustls: OpenSSL would parse all certificates of the machine for every client,
//! which took most of the start.

use reqwest::{Client, ClientBuilder};

/// A client for `http://` and `https://` addresses. It trusts the certificates of the machine, or those of `SSL_CERT_FILE`.
pub fn builder() -> ClientBuilder {
    install_crypto_provider();
    Client::builder()
}

/// A client for `http://` addresses. It trusts no certificate, and so reads none.
pub fn plain_builder() -> ClientBuilder {
    builder().tls_certs_only([])
}

/// Chooses ring for rustls in this process. `reqwest` panics without a choice.
pub(crate) fn install_crypto_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
