//! A web server and registry for the tests: TLS on loopback, with faults that the tests ask for.
#![allow(dead_code)] // each test file uses its own part

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};

use holdfast_model::contract::fetch::Server;

/// What the server does wrong. Counts go down as they are used.
#[derive(Default)]
pub struct Faults {
    /// Answers that are 503.
    pub unavailable: u32,
    /// Large answers that are cut after half.
    pub cut: u32,
    /// Ignore Range.
    pub no_ranges: bool,
    /// Blobs are elsewhere.
    pub redirect: bool,
}

/// How the server wants to be asked.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    #[default]
    None,
    Basic,
    Bearer,
}

#[derive(Default)]
pub struct State {
    pub files: HashMap<String, Vec<u8>>,
    pub faults: Faults,
    pub auth: Auth,
    pub log: Vec<String>,
}

/// A running server; it ends with its runtime.
pub struct WebServer {
    pub state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    pub ca_pem: String,
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

impl WebServer {
    pub async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move { Ok::<_, Infallible>(answer(&state, &request, address)) }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self { state, address, ca_pem: certificate.pem() }
    }

    pub fn server(&self) -> Server {
        Server {
            base_url: format!("https://localhost:{}", self.address.port()),
            user: String::new(),
            password: String::new(),
            ca_pem: vec![self.ca_pem.clone()],
        }
    }

    pub fn put(&self, path: &str, body: Vec<u8>) {
        self.state.lock().unwrap().files.insert(path.into(), body);
    }

    pub fn requests(&self, containing: &str) -> usize {
        self.state.lock().unwrap().log.iter().filter(|l| l.contains(containing)).count()
    }

    /// Stores a blob, and returns its digest.
    pub fn blob(&self, repository: &str, body: Vec<u8>) -> String {
        let digest = format!("sha256:{}", sha256(&body));
        self.put(&format!("/v2/{repository}/blobs/{digest}"), body);
        digest
    }

    /// Stores an image of these tars under `tag`; returns the digest of its manifest.
    pub fn image(&self, repository: &str, tag: &str, layers: &[Vec<u8>], gzipped: bool) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|l| format!("\"sha256:{}\"", sha256(l))).collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"{}","config":{{"Entrypoint":["/bin/app"],"Cmd":null,"Env":["A=b"],"User":"7","WorkingDir":"/w"}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            holdfast_fetch::manifest::architecture(),
            diff_ids.join(",")
        );
        let size = config.len();
        let config = self.blob(repository, config.into_bytes());
        let layers: Vec<String> = layers
            .iter()
            .map(|tar| {
                let body = if gzipped { gzip(tar) } else { tar.clone() };
                let size = body.len();
                let media_type = if gzipped { "tar+gzip" } else { "tar" };
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.layer.v1.{media_type}","digest":"{}","size":{size}}}"#,
                    self.blob(repository, body)
                )
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[{}]}}"#,
            layers.join(",")
        );
        let digest = format!("sha256:{}", sha256(manifest.as_bytes()));
        for reference in [tag, &digest] {
            self.put(&format!("/v2/{repository}/manifests/{reference}"), manifest.clone().into_bytes());
        }
        digest
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A tar of regular files and directories (names that end with a slash).
pub fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in entries {
        let mut h = [0u8; 512];
        h[..name.len()].copy_from_slice(name.as_bytes());
        h[100..107].copy_from_slice(b"0000755");
        h[108..115].copy_from_slice(b"0000000");
        h[116..123].copy_from_slice(b"0000000");
        h[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        h[136..147].copy_from_slice(b"00000000000");
        h[156] = if name.ends_with('/') { b'5' } else { b'0' };
        h[257..265].copy_from_slice(b"ustar\x0000");
        h[148..156].copy_from_slice(b"        ");
        let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
        h[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(h);
        out.extend(*data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn answer(state: &Mutex<State>, request: &Request<Incoming>, address: SocketAddr) -> Response<Body> {
    let mut state = state.lock().unwrap();
    let path = request.uri().path().to_owned();
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let authorization = header("authorization");
    let range: Option<usize> =
        header("range").strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).and_then(|r| r.parse().ok());
    state.log.push(format!("{} range={range:?} authorization={authorization:?} {}", request.uri(), header("if-range")));

    if path == "/token" {
        let good = authorization == "Basic dXNlcjpwYXNz"; // user:pass
        let body = r#"{"token":"let-me-in"}"#;
        return if good { plain(StatusCode::OK, body.into()) } else { plain(StatusCode::FORBIDDEN, Vec::new()) };
    }
    let wanted = match state.auth {
        Auth::None => None,
        Auth::Basic => Some(("Basic dXNlcjpwYXNz", "Basic realm=\"test\"".to_owned())),
        Auth::Bearer => Some((
            "Bearer let-me-in",
            format!(
                "Bearer realm=\"https://localhost:{}/token\",service=\"test\",scope=\"repository:a/b:pull\"",
                address.port()
            ),
        )),
    };
    if let Some((wanted, challenge)) = wanted
        && authorization != wanted
    {
        let mut refused = plain(StatusCode::UNAUTHORIZED, Vec::new());
        refused.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        return refused;
    }
    if state.faults.unavailable > 0 {
        state.faults.unavailable -= 1;
        let mut busy = plain(StatusCode::SERVICE_UNAVAILABLE, Vec::new());
        busy.headers_mut().insert("retry-after", "0".parse().unwrap());
        return busy;
    }
    if state.faults.redirect && path.contains("/blobs/") {
        let mut moved = plain(StatusCode::TEMPORARY_REDIRECT, Vec::new());
        // Another authority, as a content network would be: no credentials may go there.
        let elsewhere = format!("https://127.0.0.1:{}{}", address.port(), path.replace("/blobs/", "/elsewhere/"));
        moved.headers_mut().insert("location", elsewhere.parse().unwrap());
        return moved;
    }
    let key = path.replace("/elsewhere/", "/blobs/");
    let Some(body) = state.files.get(&key).cloned() else {
        return plain(StatusCode::NOT_FOUND, Vec::new());
    };
    let total = body.len();
    let start = if state.faults.no_ranges { 0 } else { range.unwrap_or(0).min(total) };
    let rest = body[start..].to_vec();
    let cut = state.faults.cut > 0 && rest.len() > 1000;
    if cut {
        state.faults.cut -= 1;
    }
    let mut builder =
        Response::builder().header("etag", format!("\"{}\"", sha256(&body))).header("content-length", rest.len());
    if start > 0 {
        builder = builder
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {start}-{}/{total}", total - 1));
    }
    let body: Body = if cut {
        let half = Bytes::from(rest[..rest.len() / 2].to_vec());
        let moment = Box::pin(tokio::time::sleep(std::time::Duration::from_millis(100)));
        CutBody { half: Some(half), moment }.boxed()
    } else {
        http_body_util::Full::new(Bytes::from(rest)).map_err(|e| match e {}).boxed()
    };
    builder.body(body).unwrap()
}

fn plain(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(body)).map_err(|e| match e {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

/// Half an answer, a moment for it to leave, then a broken connection.
struct CutBody {
    half: Option<Bytes>,
    moment: std::pin::Pin<Box<tokio::time::Sleep>>,
}

impl hyper::body::Body for CutBody {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        use std::task::Poll;
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        match self.moment.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
            Poll::Pending => Poll::Pending,
        }
    }
}
