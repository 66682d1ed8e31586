//! One HTTP exchange: dial, TLS, request, reply. A connection serves one request; TLS sessions are resumed.

use crate::timing;
use bytes::Bytes;
use holdfast_model::net::Uplink;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{error::Elapsed, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where the controller is.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// Name or address, as the certificate has it.
    pub(crate) name: ServerName<'static>,
    /// The same as text.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Instead of a name lookup.
    pub(crate) address: Option<IpAddr>,
}

impl Server {
    /// Reads `name`, `name:port`, `address`, `address:port` or `[address]:port`; the port is 443 when not given.
    pub(crate) fn parse(text: &str, address: Option<IpAddr>) -> Option<Self> {
        let text = text.trim();
        let (host, port) = if let Ok(ip) = text.parse::<IpAddr>() {
            (ip.to_string(), 443)
        } else if let Some((host, port)) = text.rsplit_once(':') {
            (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port.parse().ok()?)
        } else {
            (text.to_owned(), 443)
        };
        let name = ServerName::try_from(host.clone()).ok()?;
        Some(Self { name, host, port, address })
    }

    /// The text of the Host header.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

/// A request.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Path from the root.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'static str, String)],
    pub(crate) body: Bytes,
    /// Largest reply body in bytes.
    pub(crate) limit: usize,
}

/// A reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// No reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error("name {name} cannot be resolved: {reason}")]
    Lookup { name: String, reason: String },
    #[error("{address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("{address}: TLS: {source}")]
    Tls { address: SocketAddr, source: std::io::Error },
    #[error("HTTP: {0}")]
    Http(String),
    #[error("{what} took longer than {} s", .after.as_secs_f32())]
    Timeout { what: &'static str, after: Duration },
    #[error("reply too large")]
    TooLarge,
}

impl TransportError {
    /// The remote side is there but not ready.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() == std::io::ErrorKind::ConnectionRefused,
            Self::Tls { source, .. } => crate::tls::not_valid_yet(source),
            _ => false,
        }
    }
}

/// Times of one exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    pub(crate) dial: Duration,
    pub(crate) send: Duration,
}

/// Sends `call` to `server` over `uplink` and reads the reply.
pub(crate) async fn exchange(
    tls: &Arc<rustls::ClientConfig>,
    server: &Server,
    uplink: &Uplink,
    deadlines: Deadlines,
    call: &Call<'_>,
) -> Result<Reply, TransportError> {
    let whole = async {
        let stream = dial(tls, server, uplink, deadlines.dial).await?;
        send(stream, server, call).await
    };
    let late = |_: Elapsed| TransportError::Timeout { what: "the request", after: deadlines.send };
    timeout(deadlines.send, whole).await.map_err(late)?
}

async fn dial(
    tls: &Arc<rustls::ClientConfig>,
    server: &Server,
    uplink: &Uplink,
    after: Duration,
) -> Result<TlsStream<TcpStream>, TransportError> {
    let addresses = timeout(after, addresses(server, uplink))
        .await
        .map_err(|_| TransportError::Timeout { what: "the name lookup", after })??;
    let mut last =
        TransportError::Lookup { name: server.host.clone(), reason: "no address of a usable family".to_owned() };
    for address in addresses {
        let connected = async {
            let stream =
                connect(address, uplink).await.map_err(|source| TransportError::Connect { address, source })?;
            let connector = TlsConnector::from(Arc::clone(tls));
            connector
                .connect(server.name.clone(), stream)
                .await
                .map_err(|source| TransportError::Tls { address, source })
        };
        match timeout(after, connected).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = TransportError::Timeout { what: "connecting", after },
        }
    }
    Err(last)
}

async fn addresses(server: &Server, uplink: &Uplink) -> Result<Vec<SocketAddr>, TransportError> {
    let fits = |ip: IpAddr| uplink.source.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
    if let Some(ip) = server.address.or_else(|| server.host.parse().ok()) {
        return Ok(vec![SocketAddr::new(ip, server.port)]);
    }
    let found = tokio::net::lookup_host((server.host.as_str(), server.port))
        .await
        .map_err(|error| TransportError::Lookup { name: server.host.clone(), reason: error.to_string() })?;
    Ok(found.filter(|address| fits(address.ip())).take(timing::MAX_ADDRESSES).collect())
}

async fn connect(address: SocketAddr, uplink: &Uplink) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(interface) = &uplink.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(source) = uplink.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn send(stream: TlsStream<TcpStream>, server: &Server, call: &Call<'_>) -> Result<Reply, TransportError> {
    let http = |error: hyper::Error| TransportError::Http(chain(&error));
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(call.path)
        .header("Host", server.authority())
        .header("Connection", "close")
        .header("User-Agent", concat!("holdfast/", env!("CARGO_PKG_VERSION")));
    if call.method == Method::POST {
        request = request.header("Content-Type", "application/x-proto-binary");
    }
    for (name, value) in call.headers {
        request = request.header(*name, value);
    }
    let request =
        request.body(Full::new(call.body.clone())).map_err(|error| TransportError::Http(error.to_string()))?;

    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await.map_err(http)?;
    let reply = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), call.limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                TransportError::TooLarge
            } else {
                TransportError::Http(chain(error.as_ref()))
            }
        })?;
        Ok(Reply { status, body: body.to_bytes() })
    };
    tokio::pin!(connection, reply);
    // The connection does the work for the reply; it may end before the last of the reply is taken from its buffer.
    tokio::select! {
        reply = &mut reply => reply,
        _ = &mut connection => reply.await,
    }
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_text_is_read_in_all_its_forms() {
        for (text, host, port, authority) in [
            ("zedcloud.example", "zedcloud.example", 443, "zedcloud.example"),
            (" mydomain.adam:3333\n", "mydomain.adam", 3333, "mydomain.adam:3333"),
            ("192.0.2.1", "192.0.2.1", 443, "192.0.2.1"),
            ("192.0.2.1:8080", "192.0.2.1", 8080, "192.0.2.1:8080"),
            ("[2001:db8::1]:8080", "2001:db8::1", 8080, "[2001:db8::1]:8080"),
            ("2001:db8::1", "2001:db8::1", 443, "[2001:db8::1]"),
        ] {
            let server = Server::parse(text, None).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((server.host.as_str(), server.port, server.authority().as_str()), (host, port, authority));
        }
        for text in ["", "name:port", "name:70000", "two words"] {
            assert!(Server::parse(text, None).is_none(), "{text:?}");
        }
    }
}
