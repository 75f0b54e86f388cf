//! What hyper refuses before the router sees it, in the one shape of all refusals.
//!
//! A request that hyper cannot parse, it answers by itself: a head without a body. [`Refusals`] stands between
//! hyper and the socket, knows such a head when it is written, and writes a problem in its place. Our own
//! answers pass as they are: all of them carry `x-request-id`, and hyper's never do.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tracing::info;
use uuid::Uuid;

use super::observe::REQUEST_ID;
use super::problem::{MEDIA_TYPE, Problem};

/// hyper's heads have about 100 bytes; nothing longer is looked at.
const LONGEST_HEAD: usize = 256;
/// How long a refused client that is still writing is listened to, so that it gets to read the answer instead
/// of a broken connection.
const LINGER: Duration = Duration::from_secs(2);

/// A connection on which hyper's own refusals are replaced.
pub(super) struct Refusals<S> {
    stream: S,
    /// What is still to be written of the problem.
    problem: Vec<u8>,
    /// There once a refusal was replaced, and running since then.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Refusals<S> {
    pub(super) fn on(stream: S) -> Self {
        Self { stream, problem: Vec::new(), linger: None }
    }

    /// Takes the problem for `head` in, to be written before anything else.
    fn refuse(&mut self, head: &Head<'_>) {
        self.problem = head.problem();
        self.linger = Some(Box::pin(sleep(LINGER)));
    }

    fn poll_write_problem(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.problem.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.problem))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.problem.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away until the client ends, too, or has had its time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(linger) = &mut self.linger else { return Poll::Ready(()) };
        let mut buffer = [0; 4096];
        while linger.as_mut().poll(cx).is_pending() {
            let mut read = ReadBuf::new(&mut buffer);
            let ended = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)).is_err();
            if ended || read.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Refusals<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Refusals<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_problem(cx))?;
        if let Some(head) = Head::of_refusal(bytes) {
            self.refuse(&head);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_problem(cx))?;
        // A bare head is one slice; where there is more, there is a body, so the answer is ours.
        if let [bytes] = slices
            && let Some(head) = Head::of_refusal(bytes)
        {
            self.refuse(&head);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_problem(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_problem(cx))?;
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        self.poll_linger(cx).map(Ok)
    }
}

/// The head of one of hyper's refusals.
struct Head<'a> {
    status: StatusCode,
    lines: Vec<&'a str>,
}

const NO_BODY: &str = "content-length: 0";

impl<'a> Head<'a> {
    /// Reads `bytes` if they are such a head and nothing else. For other answers it looks at ten bytes.
    fn of_refusal(bytes: &'a [u8]) -> Option<Self> {
        let is_error = bytes.starts_with(b"HTTP/1.") && matches!(bytes.get(9), Some(b'4' | b'5'));
        if !is_error || bytes.len() > LONGEST_HEAD {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
        let status = StatusCode::from_bytes(text.get(9..12)?.as_bytes()).ok()?;
        let lines: Vec<&str> = text.split("\r\n").collect();
        let ours = |line: &str| {
            line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(REQUEST_ID.as_str()))
        };
        let bare = lines.contains(&NO_BODY) && !lines.iter().any(|line| line.is_empty() || ours(line));
        bare.then_some(Self { status, lines })
    }

    /// The same refusal with a problem, findable in the log. The request has no path that could be read, so
    /// its id stands for it.
    fn problem(&self) -> Vec<u8> {
        let request_id = Uuid::now_v7();
        let problem = Problem::of_framework(self.status);
        let (status, code) = (self.status.as_u16(), problem.code());
        info!(%request_id, status, code, "request refused");
        let body = problem.document(&request_id.urn().to_string());
        let length = body.len();
        let kept = self.lines.iter().filter(|line| **line != NO_BODY).map(|line| format!("{line}\r\n"));
        let mut answer = kept.collect::<String>().into_bytes();
        answer.extend(
            format!(
                "content-type: {MEDIA_TYPE}\r\ncontent-length: {length}\r\n{REQUEST_ID}: {request_id}\r\n\r\n"
            )
            .bytes(),
        );
        answer.extend(body);
        answer
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Sun, 22 Nov 2026 13:00:00 GMT\r\n\r\n";

    /// What arrives when each of `writes` is written, through a pipe that takes only `room` bytes at a time.
    async fn arrives(writes: &[&[&str]], room: usize) -> String {
        let (mut client, server) = tokio::io::duplex(room);
        let writes: Vec<Vec<String>> =
            writes.iter().map(|slices| slices.iter().map(|&slice| slice.to_owned()).collect()).collect();
        let server = tokio::spawn(async move {
            let mut server = Refusals::on(server);
            for slices in writes {
                write_slices(&mut server, &slices).await.unwrap();
            }
            server.shutdown().await.unwrap();
        });
        let mut arrived = String::new();
        client.read_to_string(&mut arrived).await.unwrap();
        drop(client);
        server.await.unwrap();
        arrived
    }

    /// As hyper does it: whatever was not taken is offered again.
    async fn write_slices(server: &mut (impl AsyncWrite + Unpin), slices: &[String]) -> io::Result<()> {
        let mut slices: Vec<&[u8]> = slices.iter().map(String::as_bytes).collect();
        while !slices.is_empty() {
            let offered: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            let mut taken = server.write_vectored(&offered).await?;
            slices.retain_mut(|slice| {
                let part = taken.min(slice.len());
                (taken, *slice) = (taken - part, &slice[part..]);
                !slice.is_empty()
            });
        }
        server.flush().await
    }

    #[tokio::test]
    async fn a_bare_refusal_arrives_as_a_problem_however_little_the_socket_takes() {
        for room in [1, 7, 4096] {
            let arrived = arrives(&[&[BARE]], room).await;
            let (head, body) = arrived.split_once("\r\n\r\n").unwrap();
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(
                head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n")
            );
            assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            assert!(!head.contains("content-length: 0"), "{head}");
            assert_eq!(problem["type"], "urn:problem:order-service:invalid-request");
            assert_eq!(problem["status"], 431);
            let id = problem["instance"].as_str().unwrap().strip_prefix("urn:uuid:").unwrap();
            assert!(head.contains(&format!("x-request-id: {id}")), "{head}");
        }
    }

    #[tokio::test]
    async fn an_answer_before_the_refusal_is_untouched() {
        let ours = "HTTP/1.1 200 OK\r\nx-request-id: 1\r\ncontent-length: 2\r\n\r\n[]";
        let arrived = arrives(&[&[ours], &[BARE]], 16).await;
        let refusal = arrived.strip_prefix(ours).unwrap();
        assert!(refusal.starts_with("HTTP/1.1 431 ") && refusal.ends_with('}'), "{refusal}");
    }

    #[tokio::test]
    async fn our_own_answers_arrive_as_they_are() {
        let ours: [&[&str]; 6] = [
            &["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nx-request-id: 1\r\n\r\n"],
            &["HTTP/1.1 404 Not Found\r\nX-Request-Id: 1\r\ncontent-length: 2\r\n\r\n{}"],
            &["HTTP/1.1 404 Not Found\r\nx-request-id: 1\r\ncontent-length: 2\r\n\r\n", "{}"],
            &["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
            &["HTTP/1.1 100 Continue\r\n\r\n"],
            &["HTTP/1.1 400 ", "Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n"],
        ];
        for slices in ours {
            for room in [1, 4096] {
                assert_eq!(arrives(&[slices], room).await, slices.concat());
            }
        }
    }
}
