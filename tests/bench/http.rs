//! A minimal HTTP/1.1 client over one connection: the load generator must use less CPU than the service.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MAX_HEADERS: usize = 32;
const READ_AT_ONCE: usize = 16 * 1024;

/// A keep-alive connection to the service.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// One answer.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// A message in a buffer: the end of its head and the length of its body.
pub(crate) struct Frame {
    /// The status of an answer, or 0 for a request.
    pub(crate) status: u16,
    pub(crate) head: usize,
    pub(crate) body: usize,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(READ_AT_ONCE) })
    }

    /// Sends one rendered request and reads its answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if let Some(frame) = answer(&self.buffer)?
                && self.buffer.len() >= frame.head + frame.body
            {
                let body = &self.buffer[frame.head..frame.head + frame.body];
                return Ok(Answer { status: frame.status, body });
            }
            self.buffer.reserve(READ_AT_ONCE);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The answer at the start of the buffer, once its head is complete.
fn answer(buffer: &[u8]) -> io::Result<Option<Frame>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(buffer).map_err(io::Error::other)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(length) => {
            let body = content_length(head.headers)?;
            Ok(Some(Frame { status: head.code.unwrap_or_default(), head: length, body }))
        }
    }
}

/// The request at the start of the buffer with its method and path, once its head is complete.
pub(crate) fn request(buffer: &[u8]) -> io::Result<Option<(Frame, &str, &str)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(buffer).map_err(io::Error::other)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(length) => {
            let frame = Frame { status: 0, head: length, body: content_length(head.headers)? };
            Ok(Some((frame, head.method.unwrap_or_default(), head.path.unwrap_or_default())))
        }
    }
}

/// Every message with a body has a `Content-Length`.
fn content_length(headers: &[httparse::Header<'_>]) -> io::Result<usize> {
    let length = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let Some(length) = length else { return Ok(0) };
    std::str::from_utf8(length.value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a Content-Length that is not a number"))
}
