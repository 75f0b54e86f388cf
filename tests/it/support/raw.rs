//! Raw requests over TCP, including malformed ones.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Answer, PATIENCE, Shop};

impl Shop {
    /// Sends one request and reads until the service closes the connection; returns the answer. The request must ask
    /// for the close, or cause an error after which the service closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Answer {
        parse(&self.raw_text(bytes).await)
    }

    /// The same, but returns all received bytes.
    pub(crate) async fn raw_text(&self, bytes: &[u8]) -> String {
        let address = self.url.strip_prefix("http://").unwrap();
        let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        let mut answer = Vec::new();
        let exchange = async {
            // The service may answer and close before it has read everything.
            let (_, received) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer));
            received
        };
        timeout(PATIENCE, exchange).await.expect("the end of the connection").unwrap();
        String::from_utf8(answer).expect("UTF-8")
    }

    /// A request head: the request line, the customer's identity, these headers, and `Connection: close`.
    pub(crate) fn head(request: &str, headers: &[&str]) -> String {
        let own = ["Host: it", "X-User-Email: ada@example.com", "X-User-Role: CUSTOMER", "Connection: close"];
        let lines = [&[request], &own[..], headers].concat();
        format!("{}\r\n\r\n", lines.join("\r\n"))
    }
}

fn parse(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let headers: HeaderMap = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").expect("a header");
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        })
        .collect();
    let length = headers.get("content-length").map(|value| value.to_str().unwrap().parse::<usize>().unwrap());
    assert_eq!(length, Some(body.len()), "{answer}");
    Answer {
        status: status.parse().unwrap(),
        headers,
        body: serde_json::from_str(body).unwrap_or(Value::Null),
        text: body.to_owned(),
    }
}
