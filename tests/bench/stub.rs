//! The stub of the Product Service, in its own process, so that its CPU is counted separately. It prints its
//! address and ends when its standard input closes.

use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{Result, http, work};

/// Answers look-ups with a price and a large stock, and every stock call with 200. It has no ledger: the benchmark
/// only measures, and the tests check the stock calls.
pub(crate) fn product_service() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        announce(&listener.local_addr()?.to_string())?;
        let answers: Arc<Vec<Vec<u8>>> = Arc::new((0..work::PRODUCTS).map(rendered).collect());
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream, Arc::clone(&answers)));
        }
    })
}

/// Prints its address, and ends with the parent process.
fn announce(address: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{address}")?;
    out.flush()?;
    std::thread::spawn(|| {
        // The parent never writes to the pipe: the read returns when the pipe closes.
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    Ok(())
}

fn rendered(product: u64) -> Vec<u8> {
    let body = format!(
        r#"{{"id":"{id}","name":"Product {product}","description":"A product of the benchmark","price":{price},"stock":1000000,"sku":"SKU-{id}","brand":"ShopVerse","category":"bench"}}"#,
        id = work::product_id(product),
        price = work::PRICE,
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn serve(mut stream: TcpStream, answers: Arc<Vec<Vec<u8>>>) -> io::Result<()> {
    const UNKNOWN: &[u8] = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        while let Some((frame, _, path)) = http::request(&buffer)?
            && buffer.len() >= frame.head + frame.body
        {
            let answer = product_of(path).and_then(|product| answers.get(product));
            stream.write_all(answer.map_or(UNKNOWN, Vec::as_slice)).await?;
            buffer.drain(..frame.head + frame.body);
        }
        buffer.reserve(4096);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// The number in `/api/products/P17` and in `/api/products/P17/reduce-stock`.
fn product_of(path: &str) -> Option<usize> {
    let id = path.strip_prefix("/api/products/P")?;
    id.split('/').next()?.parse().ok()
}
