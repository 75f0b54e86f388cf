# The order service:             docker build -t order-service .
# The demo Product Service:      docker build -t demo-products --target demo-products .
#
# Build and runtime are the same Debian, because the binary links its glibc, OpenSSL and zlib.

FROM rust:1.95-slim-trixie AS dependencies
# What librdkafka is compiled with and links; ring needs the C compiler, too.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ gcc libc6-dev libssl-dev make pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# With nothing of our own in it, this layer is built anew only when the dependencies change.
RUN mkdir -p src tests/it \
    && echo 'fn main() {}' | tee src/main.rs > tests/it/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --no-default-features \
    && cargo clean --release --locked --package order-service \
    && rm -r src tests

FROM dependencies AS build
COPY migrations migrations
COPY src src
RUN cargo build --release --locked --no-default-features

# What is in the binary: every crate with version, licence and checksum, as a CycloneDX document.
FROM dependencies AS sbom
RUN cargo install --locked cargo-cyclonedx@0.5.9
COPY src src
RUN cargo cyclonedx --format json --spec-version 1.5 --no-default-features --override-filename order-service.cdx

# The embedded stack is compiled in here, and nowhere else.
FROM dependencies AS build-demo
COPY migrations migrations
COPY src src
RUN cargo build --release --locked

# glibc, libgcc, OpenSSL, zlib and the certificates of the public authorities; no shell, no package manager.
FROM gcr.io/distroless/cc-debian13:nonroot AS runtime
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# By number, so that a platform can see that it is not root. Nothing is ever written to the file system.
USER 65532:65532
ENTRYPOINT ["order-service"]
# Liveness alone: a platform that restarts what is unhealthy must not do so because the database is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["order-service", "healthcheck", "--live"]

FROM runtime AS demo-products
COPY --from=build-demo /build/target/release/order-service /usr/local/bin/order-service
# `healthcheck` asks at the port of BIND_ADDRESS.
ENV DEMO_PRODUCTS_ADDRESS=0.0.0.0:8081 BIND_ADDRESS=0.0.0.0:8081
EXPOSE 8081
CMD ["demo-products"]

FROM runtime AS order-service
COPY --from=build /build/target/release/order-service /usr/local/bin/order-service
COPY --from=sbom /build/order-service.cdx.json /usr/share/doc/order-service/sbom.cdx.json
ENV BIND_ADDRESS=0.0.0.0:8080
EXPOSE 8080
CMD ["serve"]
