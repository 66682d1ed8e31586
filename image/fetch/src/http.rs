//! Requests over HTTPS (and HTTP for plain files): one connection each, redirects followed, credentials for the server they
//! belong to only.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, ETAG, HOST, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
    WWW_AUTHENTICATE,
};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::auth::{Challenge, TokenAnswer, basic};
use crate::failure::Failure;
use holdfast_model::contract::fetch::Server;

/// Resolving a name and opening a connection, each.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// From the request to the head of the answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Between two pieces of a body.
pub const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Redirects followed for one request.
const REDIRECTS: u32 = 5;
/// Longest answer of a token server.
const TOKEN_MAX: usize = 64 << 10;

/// One server with its credentials and authorities.
pub struct Client {
    base: Uri,
    user: String,
    password: String,
    tls: Option<TlsConnector>,
    /// Authorization for requests to `base`, once one is known to be needed.
    authorization: RefCell<Option<String>>,
}

/// What to ask for.
#[derive(Debug, Clone, Default)]
pub struct Get {
    /// URL, or path on the base server.
    pub target: String,
    /// Accept header; empty = none.
    pub accept: &'static str,
    /// First byte wanted.
    pub offset: u64,
    /// ETag that a continued transfer must still have.
    pub if_range: Option<String>,
}

/// The head of an answer, and its body to come.
#[derive(Debug)]
pub struct Answer {
    /// URL it came from, after redirects.
    pub url: String,
    /// 200 or 206.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
}

/// A failure with how long the server wants us to wait.
#[derive(Debug)]
pub struct RequestFailure {
    /// What failed.
    pub failure: Failure,
    /// Retry-After, at most a minute.
    pub wait: Option<Duration>,
    /// Asking again at once gives the same answer: the other side's certificate is not accepted.
    pub hopeless: bool,
}

impl From<Failure> for RequestFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, wait: None, hopeless: false }
    }
}

impl Client {
    /// A client for one server.
    ///
    /// # Errors
    /// A bad URL or certificate.
    pub fn new(server: &Server) -> Result<Self, Failure> {
        let base: Uri = server
            .base_url
            .trim_end_matches('/')
            .parse()
            .map_err(|e| Failure::local(format!("server URL {:?}: {e}", server.base_url)))?;
        check_url(&base)?;
        let tls = if server.ca_pem.is_empty() { None } else { Some(tls_connector(&server.ca_pem)?) };
        Ok(Self {
            base,
            user: server.user.clone(),
            password: server.password.clone(),
            tls,
            authorization: RefCell::new(None),
        })
    }

    /// The full URL of a path on this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}{}", self.base.to_string().trim_end_matches('/'), path)
    }

    /// Whether this server is reached over TLS.
    pub fn is_https(&self) -> bool {
        self.base.scheme_str() == Some("https")
    }

    /// Sends a request, follows redirects, answers a challenge once.
    ///
    /// # Errors
    /// [`RequestFailure`] naming the URL.
    pub async fn get(&self, get: &Get) -> Result<Answer, RequestFailure> {
        let target = if get.target.starts_with('/') { self.url(&get.target) } else { get.target.clone() };
        let mut challenged = false;
        loop {
            let answer = self.follow(get, &target).await?;
            if answer.status != StatusCode::UNAUTHORIZED || challenged || !self.is_own(&answer.url) {
                return check_status(answer);
            }
            challenged = true;
            let found = answer.headers.get_all(WWW_AUTHENTICATE).iter();
            let challenge = found.filter_map(|v| v.to_str().ok()).find_map(Challenge::parse);
            let authorization = match challenge {
                Some(Challenge::Basic) if !self.user.is_empty() => basic(&self.user, &self.password),
                Some(Challenge::Bearer { realm, service, scope }) => self.token(&realm, &service, &scope).await?,
                _ => return check_status(answer),
            };
            *self.authorization.borrow_mut() = Some(authorization);
        }
    }

    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<String, RequestFailure> {
        let url = Challenge::token_url(realm, service, scope);
        let uri: Uri =
            url.parse().map_err(|e| Failure::refused(format!("token server {realm:?} named by {}: {e}", self.base)))?;
        if uri.scheme_str() != Some("https") {
            let text = format!("token server {realm:?} named by {}: expected an https URL", self.base);
            return Err(Failure::refused(text).into());
        }
        let credentials = (!self.user.is_empty()).then(|| basic(&self.user, &self.password));
        let answer = self.send(&uri, &Get::default(), credentials.as_deref()).await?;
        let mut answer = check_status(answer)?;
        let body = answer.read_all(TOKEN_MAX).await?;
        let token: Option<String> = serde_json::from_slice::<TokenAnswer>(&body).ok().and_then(|t| t.authorization());
        Ok(token.ok_or_else(|| Failure::refused(format!("token server {realm}: its answer holds no token")))?)
    }

    async fn follow(&self, get: &Get, target: &str) -> Result<Answer, RequestFailure> {
        let mut uri: Uri = target.parse().map_err(|e| Failure::local(format!("URL {target:?}: {e}")))?;
        for _hop in 0..=REDIRECTS {
            check_url(&uri)?;
            // A redirect to elsewhere carries its own authorisation in the URL; ours is not for strangers.
            let authorization = if self.is_own(&uri.to_string()) { self.authorization.borrow().clone() } else { None };
            let answer = self.send(&uri, get, authorization.as_deref()).await?;
            if !answer.status.is_redirection() || answer.status == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let location = answer.headers.get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let next = redirect(&uri, location)
                .ok_or_else(|| Failure::transport(format!("{uri}: redirected to {location:?}, which is no URL")))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Failure::refused(format!("{uri}: redirected from https to {next}")).into());
            }
            uri = next;
        }
        Err(Failure::transport(format!("{target}: more than {REDIRECTS} redirects")).into())
    }

    async fn send(&self, uri: &Uri, get: &Get, authorization: Option<&str>) -> Result<Answer, RequestFailure> {
        let failed = |what: &str, e: String| Failure::transport(format!("{uri}: {what}: {e}"));
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let tcp = connect(&host, port).await.map_err(|e| failed("connect", e))?;
        let io: Box<dyn Stream> = if https {
            let tls = self.tls.as_ref().ok_or_else(|| {
                Failure::local(format!("{uri}: no certificate authority is configured for this server"))
            })?;
            let name = ServerName::try_from(host.clone()).map_err(|e| failed("host name", e.to_string()))?;
            let handshake = timeout(CONNECT_LIMIT, tls.connect(name, tcp)).await;
            let stream = handshake
                .map_err(|_| failed("TLS handshake", format!("no end within {CONNECT_LIMIT:?}")))?
                .map_err(|e| RequestFailure {
                    failure: failed("TLS handshake", e.to_string()),
                    wait: None,
                    hopeless: e.kind() == std::io::ErrorKind::InvalidData,
                })?;
            Box::new(stream)
        } else {
            Box::new(tcp)
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(256 << 10)
            .max_headers(100)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| failed("HTTP", e.to_string()))?;
        // It ends by itself when the answer is read or dropped.
        tokio::spawn(connection);

        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        let mut request = Request::get(path).header(HOST, authority).header(USER_AGENT, "holdfast-fetch");
        if !get.accept.is_empty() {
            request = request.header(ACCEPT, get.accept);
        }
        if get.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", get.offset));
            if let Some(etag) = &get.if_range {
                request = request.header(IF_RANGE, etag);
            }
        }
        if let Some(value) = authorization {
            let mut value = HeaderValue::try_from(value).map_err(|e| failed("credentials", e.to_string()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed("request", e.to_string()))?;
        let answer = timeout(ANSWER_LIMIT, sender.send_request(request)).await;
        let answer = answer
            .map_err(|_| failed("answer", format!("none within {ANSWER_LIMIT:?}")))?
            .map_err(|e| failed("answer", error_chain(&e)))?;
        let (head, body) = answer.into_parts();
        Ok(Answer { url: uri.to_string(), status: head.status, headers: head.headers, body })
    }

    fn is_own(&self, url: &str) -> bool {
        url.parse::<Uri>().is_ok_and(|u| u.scheme() == self.base.scheme() && u.authority() == self.base.authority())
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// A broken or stalled transfer.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = timeout(STALL_LIMIT, self.body.frame()).await.map_err(|_| {
                Failure::transport(format!("{}: expected more bytes, none came within {STALL_LIMIT:?}", self.url))
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => {
                    return Err(Failure::transport(format!("{}: transfer broken: {}", self.url, error_chain(&e))));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, at most `max` bytes.
    ///
    /// # Errors
    /// A broken transfer or a longer body.
    pub async fn read_all(&mut self, max: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > max {
                return Err(Failure::content(format!("{}: expected at most {max} bytes, more came", self.url)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// A strong ETag.
    pub fn etag(&self) -> Option<String> {
        let etag = self.headers.get(ETAG)?.to_str().ok()?;
        etag.starts_with('"').then(|| etag.to_owned())
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn check_status(answer: Answer) -> Result<Answer, RequestFailure> {
    let (status, url) = (answer.status, &answer.url);
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
        return Ok(answer);
    }
    let wait = answer
        .headers
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds.min(60)));
    let text = format!("{url}: expected status 200, found {status}");
    let failure = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failure::transport(text),
        _ if status.is_server_error() => Failure::transport(text),
        _ => Failure::refused(text),
    };
    Err(RequestFailure { failure, wait, hopeless: false })
}

fn check_url(uri: &Uri) -> Result<(), Failure> {
    let known = matches!(uri.scheme_str(), Some("https" | "http"));
    if !known || uri.host().is_none_or(str::is_empty) {
        return Err(Failure::local(format!("URL {uri}: expected https://host[:port]/...")));
    }
    Ok(())
}

fn redirect(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        return format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok();
    }
    location.parse::<Uri>().ok().filter(|u| u.scheme().is_some() && u.authority().is_some())
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let resolved = timeout(CONNECT_LIMIT, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| format!("name {host} not resolved within {CONNECT_LIMIT:?}"))?
        .map_err(|e| format!("name {host}: {e}"))?;
    let mut last = format!("name {host} has no address");
    for address in resolved.take(6) {
        match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => last = format!("{address}: {e}"),
            Err(_) => last = format!("{address}: no answer within {CONNECT_LIMIT:?}"),
        }
    }
    Err(last)
}

fn tls_connector(ca_pem: &[String]) -> Result<TlsConnector, Failure> {
    let bad = |e: String| Failure::local(format!("certificate authorities of the server: {e}"));
    let mut roots = rustls::RootCertStore::empty();
    for pem in ca_pem {
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|e| bad(e.to_string()))?;
            roots.add(der).map_err(|e| bad(e.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(bad("expected PEM certificates, found none".into()));
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// An error with its causes: hyper's own text alone says little.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_absolute_or_paths() {
        let from: Uri = "https://a:5000/x?y".parse().unwrap();
        for (location, wanted) in [
            ("/z", Some("https://a:5000/z")),
            ("https://b/z?q=1", Some("https://b/z?q=1")),
            ("//b/z", None),
            ("z", None),
            ("", None),
        ] {
            assert_eq!(redirect(&from, location).map(|u| u.to_string()).as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn urls_without_host_or_of_other_schemes_are_refused() {
        for url in ["ftp://a", "/path", "a:80"] {
            let server = Server { base_url: url.into(), user: String::new(), password: String::new(), ca_pem: vec![] };
            assert!(Client::new(&server).is_err(), "{url}");
        }
    }
}
