//! Requests to the admin API of a running controller.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::time::Duration;

/// Time to connect and to get the head of an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Errors are for people here: one text that says what failed.
pub type Failure = Box<dyn std::error::Error>;

/// A controller's admin API.
pub struct Client {
    admin: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    pub fn new(admin: SocketAddr) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { admin, runtime })
    }

    pub fn get(&self, path: &str) -> Result<Bytes, Failure> {
        self.send("GET", path, "application/json", Bytes::new())
    }

    pub fn json(&self, path: &str) -> Result<serde_json::Value, Failure> {
        Ok(serde_json::from_slice(&self.get(path)?)?)
    }

    pub fn post(&self, path: &str, value: &serde_json::Value) -> Result<Bytes, Failure> {
        self.send("POST", path, "application/json", value.to_string().into())
    }

    pub fn put(&self, path: &str, content_type: &str, body: Vec<u8>) -> Result<Bytes, Failure> {
        self.send("PUT", path, content_type, body.into())
    }

    pub fn delete(&self, path: &str) -> Result<Bytes, Failure> {
        self.send("DELETE", path, "application/json", Bytes::new())
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: Bytes) -> Result<Bytes, Failure> {
        self.runtime.block_on(async {
            let answer = self.open(method, path, content_type, body).await?;
            let collected = tokio::time::timeout(LIMIT, answer.collect())
                .await
                .map_err(|_| format!("{method} {path}: no whole answer within {LIMIT:?}"))?;
            Ok(collected?.to_bytes())
        })
    }

    /// Calls `each` for every piece of an answer that may never end.
    pub fn stream(&self, path: &str, mut each: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let mut answer = self.open("GET", path, "application/json", Bytes::new()).await?;
            while let Some(frame) = answer.frame().await {
                if let Some(data) = frame?.data_ref() {
                    each(data)?;
                }
            }
            Ok(())
        })
    }

    async fn open(&self, method: &str, path: &str, content_type: &str, body: Bytes) -> Result<Incoming, Failure> {
        let asked = async {
            let stream = tokio::net::TcpStream::connect(self.admin).await.map_err(|error| {
                format!("admin API at {}: {error}; is `holdfast-controller serve` running there?", self.admin)
            })?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", self.admin.to_string())
                .header("content-type", content_type)
                .body(Full::new(body))?;
            Ok::<_, Failure>(sender.send_request(request).await?)
        };
        let response = tokio::time::timeout(LIMIT, asked)
            .await
            .map_err(|_| format!("{method} {path}: no answer within {LIMIT:?}"))??;
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok(body);
        }
        let text = body.collect().await?.to_bytes();
        let said = serde_json::from_slice::<serde_json::Value>(&text)
            .ok()
            .and_then(|value| value["error"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
        Err(format!("{method} {path}: {status}: {said}").into())
    }
}
