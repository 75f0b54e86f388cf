//! Limits on connections: the deadlines of a connection that waits for its client, and the choice of the connection to
//! close when there are too many.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Counted;

/// The deadlines of a connection that waits for its client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    /// The time for a request head, from its first byte on; for the first head, from the start of the connection.
    pub(super) head: Duration,
    /// The time for the client to read a part of the response.
    pub(super) write: Duration,
}

/// The activity of a connection, shared by its socket, its requests and the list of open connections.
pub(super) struct Activity {
    epoch: Instant,
    /// The number of request heads received.
    requests: AtomicU32,
    /// Whether a request is being answered.
    answering: AtomicBool,
    /// 0 while the service works; else the time since when it waits for its client, in microseconds of the epoch, with
    /// the bit [`IDLE`] while it waits for the next request.
    waiting: AtomicU64,
}

const IDLE: u64 = 1 << 63;

impl Activity {
    fn new(epoch: Instant) -> Self {
        let activity = Self {
            epoch,
            requests: AtomicU32::new(0),
            answering: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
        };
        activity.wait_for_request();
        activity
    }

    /// A request head was received.
    pub(super) fn begin(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.answering.store(true, Ordering::Release);
        self.work();
    }

    /// The service waits for the rest of a request.
    pub(super) fn wait_for_request(&self) {
        self.waiting.store(now(self.epoch), Ordering::Relaxed);
    }

    /// The request was received completely.
    pub(super) fn work(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// The response is ready to be written.
    pub(super) fn end(&self) {
        self.answering.store(false, Ordering::Release);
        self.waiting.store(now(self.epoch) | IDLE, Ordering::Relaxed);
    }
}

/// Microseconds since the epoch, never 0.
fn now(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_micros()).map_or(IDLE - 1, |micros| (micros + 1).min(IDLE - 1))
}

/// The open connections of one listener.
pub(super) struct Connections {
    epoch: Instant,
    permits: Arc<Semaphore>,
    open: Mutex<Open>,
    count: Gauge,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, (Arc<Activity>, CancellationToken)>,
}

/// The entry of a connection in the list; its drop removes the entry.
pub(super) struct Entry {
    id: u64,
    connections: Arc<Connections>,
    pub(super) activity: Arc<Activity>,
    /// Cancelled when the connection is closed to make room for another.
    pub(super) closed: CancellationToken,
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Connections {
    pub(super) fn new(most: usize, count: Gauge) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(most));
        Arc::new(Self { epoch: Instant::now(), permits, open: Mutex::default(), count })
    }

    /// Adds a new connection. At the maximum, closes the connection that has waited longest for its client, so that
    /// slow clients do not block others. If none waits for its client, the service is about to answer one.
    pub(super) async fn enter(self: &Arc<Self>, cut: &CancellationToken) -> Option<Entry> {
        const NEXT_TRY: Duration = Duration::from_millis(10);
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                break permit;
            }
            self.close_longest_waiting();
            if let Ok(permit) = timeout(NEXT_TRY, Arc::clone(&self.permits).acquire_owned()).await {
                // The semaphore is never closed, so this is always a permit.
                break permit.ok()?;
            }
        };
        let (activity, closed) = (Arc::new(Activity::new(self.epoch)), cut.child_token());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let id = open.next;
        open.next += 1;
        open.connections.insert(id, (Arc::clone(&activity), closed.clone()));
        let counted = Counted::new(&self.count);
        Some(Entry {
            id,
            connections: Arc::clone(self),
            activity,
            closed,
            _permit: permit,
            _counted: counted,
        })
    }

    /// Closes one connection that waits for its client: the oldest that has waited for the rest of a request for more
    /// than a second, or else the oldest of all that wait.
    pub(super) fn close_longest_waiting(&self) {
        const SECOND: u64 = 1_000_000;
        let long_ago = now(self.epoch).saturating_sub(SECOND);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = open.connections.iter().filter_map(|(id, (activity, _))| {
            let waiting = activity.waiting.load(Ordering::Relaxed);
            // With the bit IDLE, an idle connection counts as one that has waited for less than a second.
            (waiting > 0).then_some((waiting > long_ago, waiting & !IDLE, *id))
        });
        let longest = waiting.min().map(|(.., id)| id);
        if let Some((_, closed)) = longest.and_then(|id| open.connections.remove(&id)) {
            closed.cancel();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.connections.remove(&self.id);
    }
}

/// A socket whose reads and writes fail when the client exceeds a deadline.
pub(super) struct Socket<S> {
    stream: S,
    activity: Arc<Activity>,
    waits: Waits,
    running: Running,
    /// The number of the request to which `running` belongs.
    request: u32,
    timer: Pin<Box<Sleep>>,
}

/// The deadline that is running.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    None,
    Head,
    Write,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, waits: Waits) -> Self {
        let timer = Box::pin(sleep(waits.head));
        Self { stream, activity, waits, running: Running::Head, request: 0, timer }
    }

    /// Starts a deadline, unless it is running.
    fn start(&mut self, deadline: Running) {
        let wait = match deadline {
            _ if self.running == deadline => return,
            Running::None => return,
            Running::Head => self.waits.head,
            Running::Write => self.waits.write,
        };
        self.running = deadline;
        self.timer.as_mut().reset(Instant::now() + wait);
    }

    /// Fails once the running deadline has passed.
    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Applies the write deadline to the result of a write.
    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_pending() {
            self.start(Running::Write);
            return self.poll_deadline(cx);
        }
        if self.running == Running::Write {
            self.running = Running::None;
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let request = this.activity.requests.load(Ordering::Relaxed);
        if request != this.request {
            (this.request, this.running) = (request, Running::None);
        }
        // While a request is answered, its body and its response have their own deadlines.
        if this.activity.answering.load(Ordering::Acquire) {
            return read;
        }
        if buffer.filled().len() > before {
            this.start(Running::Head);
        }
        if read.is_pending() && this.running != Running::None {
            return this.poll_deadline(cx);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
