//! Serving HTTP/1.1: over TLS or plain, with bounded bodies and deadlines, and with connections that can be cut.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections of one server at a time.
const MAX_CONNECTIONS: usize = 256;
/// Time for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Time for the body of a request.
const BODY: Duration = Duration::from_secs(120);

/// The connection of a request, so that a handler can cut it.
#[derive(Debug)]
pub struct Connection {
    left: AtomicU64,
}

impl Connection {
    fn new() -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(u64::MAX) })
    }

    /// Closes the connection after so many more bytes went out, heads included.
    pub fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }
}

/// A stream that stops in the middle when its connection is to be cut.
struct Cuttable<S> {
    inner: S,
    connection: Arc<Connection>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Cuttable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cuttable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let left = self.connection.left.load(Ordering::Relaxed);
        if left == 0 {
            // What was allowed must really be out before the connection ends.
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault rule")));
        }
        let count = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &buf[..count]))?;
        if left != u64::MAX {
            self.connection.left.fetch_sub(written as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.left.load(Ordering::Relaxed) == 0 {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Body of an answer.
#[derive(Debug)]
pub enum Reply {
    /// All at once.
    Full(Option<Bytes>),
    /// Piece by piece, as somebody sends them.
    Stream(mpsc::Receiver<Bytes>),
    /// Part of a file.
    File(FileReply),
}

/// Part of a file, perhaps spoilt.
#[derive(Debug)]
pub struct FileReply {
    file: File,
    offset: u64,
    left: u64,
    /// Ends the body with an error once so many bytes are left.
    stop_at: u64,
    corrupt: Option<u64>,
    bytes_per_second: Option<u64>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// How a file is spoilt while it is sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileFault {
    /// Bytes after which the body ends with an error.
    pub truncate: Option<u64>,
    /// Offset in the file of a byte with a wrong bit.
    pub corrupt: Option<u64>,
    /// Speed limit.
    pub bytes_per_second: Option<u64>,
}

impl FileReply {
    /// Sends `length` bytes from `offset`.
    pub fn new(mut file: File, offset: u64, length: u64, fault: FileFault) -> io::Result<Self> {
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self {
            file,
            offset,
            left: length,
            stop_at: fault.truncate.map_or(0, |bytes| length.saturating_sub(bytes)),
            corrupt: fault.corrupt,
            bytes_per_second: fault.bytes_per_second,
            pause: None,
        })
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let sendable = self.left - self.stop_at;
        if sendable == 0 {
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "truncated by a fault rule"))));
        }
        let most = self.bytes_per_second.map_or(64 * 1024, |rate| (rate / 10).clamp(1, 64 * 1024));
        let count = sendable.min(most);
        let mut chunk = vec![0; usize::try_from(count).unwrap_or(64 * 1024)];
        if let Err(error) = self.file.read_exact(&mut chunk) {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(at) = self.corrupt.and_then(|at| at.checked_sub(self.offset)).filter(|at| *at < count) {
            chunk[usize::try_from(at).unwrap_or(0)] ^= 1;
        }
        self.offset += count;
        self.left -= count;
        if let Some(rate) = self.bytes_per_second {
            self.pause = Some(Box::pin(tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64))));
        }
        Poll::Ready(Some(Ok(chunk.into())))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(receiver) => receiver.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
            Self::File(file) => file.poll_chunk(cx).map(|chunk| chunk.map(|c| c.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(_) => false,
            Self::File(file) => file.left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
            Self::File(file) => SizeHint::with_exact(file.left),
        }
    }
}

/// An answer with a status, headers and a body.
pub fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Reply> {
    let body: Bytes = body.into();
    let mut builder =
        Response::builder().status(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    for (name, value) in headers {
        // A value with a control character in it is left out rather than sent.
        if let Ok(value) = hyper::header::HeaderValue::from_str(value) {
            builder = builder.header(*name, value);
        }
    }
    let body = Reply::Full((!body.is_empty()).then_some(body));
    builder.body(body).unwrap_or_else(|_| Response::new(Reply::Full(None)))
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Larger than allowed: 413.
    TooLarge,
    /// Slower than allowed: 408.
    TooSlow,
    /// The connection ended.
    Broken,
}

/// Reads a body of at most `limit` bytes.
pub async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    match tokio::time::timeout(BODY, Limited::new(body, limit).collect()).await {
        Err(_) => Err(BodyError::TooSlow),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(BodyError::TooLarge),
        Ok(Err(_)) => Err(BodyError::Broken),
    }
}

/// TLS settings that can be replaced while serving.
#[derive(Clone)]
pub struct TlsSettings(Arc<Mutex<Arc<rustls::ServerConfig>>>);

impl TlsSettings {
    /// Settings for one server certificate (DER, with what leads to the root) and its key (PKCS#8 DER).
    pub fn new(identity: &crate::pki::Identity) -> Result<Self, rustls::Error> {
        Ok(Self(Arc::new(Mutex::new(Self::config(identity)?))))
    }

    /// New connections get another certificate.
    pub fn replace(&self, identity: &crate::pki::Identity) -> Result<(), rustls::Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Self::config(identity)?;
        Ok(())
    }

    fn current(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn config(identity: &crate::pki::Identity) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![rustls_pki_types::CertificateDer::from(identity.cert.der.clone())],
                rustls_pki_types::PrivatePkcs8KeyDer::from(identity.key_der()).into(),
            )?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Serves until `stop` becomes true or goes away. Connections still open then are closed.
pub async fn serve<H, F>(listener: TcpListener, tls: Option<TlsSettings>, handler: H, mut stop: watch::Receiver<bool>)
where
    H: Fn(Arc<Connection>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Reply>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: wait for some to be free.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            continue;
        };
        let (tls, handler) = (tls.clone(), handler.clone());
        tasks.spawn(async move {
            serve_one(stream, tls, handler).await;
            drop(permit);
        });
    }
}

async fn serve_one<H, F>(stream: TcpStream, tls: Option<TlsSettings>, handler: H)
where
    H: Fn(Arc<Connection>, Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Reply>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    match tls {
        None => run(stream, handler).await,
        Some(tls) => {
            // A failed handshake is the client's to report.
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.current().accept(stream)).await {
                run(stream, handler).await;
            }
        }
    }
}

async fn run<S, H, F>(stream: S, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Arc<Connection>, Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Reply>> + Send + 'static,
{
    let connection = Connection::new();
    let io = TokioIo::new(Cuttable { inner: stream, connection: connection.clone() });
    let service = service_fn(|request| {
        let answer = handler(connection.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // Errors here are broken connections, ours by a fault rule included.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(Duration::from_secs(300))
        .max_buf_size(64 * 1024)
        .serve_connection(io, service)
        .await;
}
