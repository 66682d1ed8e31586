//! A registry that is not ours: Debian's `docker-registry` over TLS, and the little of a push client that fills it.

use anyhow::{Context, Result, bail, ensure};
use holdfast_harness::process::Process;
use holdfast_harness::{ports, secs};
use holdfast_test_controller::artifacts::registry::MANIFEST;
use holdfast_test_controller::oci_build::Built;
use holdfast_test_controller::pki::{Pki, PkiOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait for a step of a request.
const STEP: Duration = Duration::from_secs(30);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 1 << 20;

/// A running registry; ended when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    port: u16,
    ca_pem: String,
    client: Arc<ClientConfig>,
    log: PathBuf,
}

/// What the registry answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let (_, value) =
            self.head.lines().filter_map(|l| l.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        Some(value.trim())
    }

    fn expect(self, what: &str, status: u16) -> Result<Self> {
        ensure!(self.status == status, "{what}: expected status {status}, found {}: {}", self.status, self.body);
        Ok(self)
    }
}

impl Registry {
    /// Starts it with an empty storage in `folder`, on a port of 127.0.0.1; `names` are the addresses and names by which others reach it.
    ///
    /// # Errors
    /// When the program is not installed or does not listen in time.
    pub fn start(folder: &Path, names: &[String]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let at = |name: &str| folder.join(name);
        let mut server_names = vec![Ipv4Addr::LOCALHOST.to_string()];
        server_names.extend(names.iter().cloned());
        let pki = Pki::generate(&PkiOptions { server_names, intermediate: false })?;
        fs::write(at("cert.pem"), &pki.tls.cert.pem)?;
        fs::write(at("key.pem"), &pki.tls.key_pem)?;
        let port = ports::free()?;
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: {}:{port}\n  tls: {{certificate: {}, key: {}}}\n",
            at("storage").display(),
            Ipv4Addr::LOCALHOST,
            at("cert.pem").display(),
            at("key.pem").display(),
        );
        fs::write(at("config.yml"), config)?;
        let log = at("registry.log");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(at("config.yml"));
        let process = Process::start("docker-registry", command, &log)?;
        let ca_pem = pki.root.cert.pem.clone();
        let mut registry = Self { process, port, client: Arc::new(trusting(&ca_pem)?), ca_pem, log };
        registry.wait_listening()?;
        Ok(registry)
    }

    fn wait_listening(&mut self) -> Result<()> {
        let (began, limit) = (Instant::now(), secs(30));
        loop {
            self.process.check()?;
            match TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
                Ok(_) => return Ok(()),
                Err(e) if began.elapsed() > limit => {
                    bail!("docker-registry: port {}: {e}; its messages are in {}", self.port, self.log.display())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate authority that its clients must trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Requests and messages so far, one a line.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Pushes an image as `repository:tag` (OCI distribution spec 1.1, "Push"): blobs, then the manifest.
    ///
    /// # Errors
    /// When the registry refuses something or names another digest than ours.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) -> Result<()> {
        let blob = |digest: &str| image.layout.join("blobs").join(digest.replace(':', "/"));
        let manifest = fs::read(blob(&image.manifest_digest))?;
        let document: serde_json::Value = serde_json::from_slice(&manifest).context("our manifest")?;
        let layers = document["layers"].as_array().into_iter().flatten();
        for descriptor in std::iter::once(&document["config"]).chain(layers) {
            let digest = descriptor["digest"].as_str().context("our manifest: expected a digest")?;
            self.push_blob(repository, digest, &blob(digest))?;
        }
        let kind = document["mediaType"].as_str().context("our manifest: expected a media type")?;
        let target = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.send("PUT", &target, kind, manifest.len() as u64, &mut manifest.as_slice())?;
        let answer = answer.expect(&format!("PUT {target}"), 201)?;
        let digest = answer.header("docker-content-digest");
        ensure!(
            digest == Some(&image.manifest_digest),
            "{target}: expected {}, found {digest:?}",
            image.manifest_digest
        );
        Ok(())
    }

    fn push_blob(&self, repository: &str, digest: &str, path: &Path) -> Result<()> {
        let begin = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.send("POST", &begin, "", 0, &mut io::empty())?.expect(&format!("POST {begin}"), 202)?;
        let location = answer.header("location").with_context(|| format!("POST {begin}: expected a location"))?;
        // The location is absolute, by whatever name; we know where the registry is.
        let path_and_query = location.find("/v2/").map_or(location, |start| &location[start..]);
        let joint = if path_and_query.contains('?') { '&' } else { '?' };
        let target = format!("{path_and_query}{joint}digest={digest}");
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        self.send("PUT", &target, "application/octet-stream", length, &mut file)?
            .expect(&format!("PUT of blob {digest}"), 201)
            .map(drop)
    }

    fn send(&self, method: &str, target: &str, kind: &str, length: u64, body: &mut dyn Read) -> Result<Answer> {
        self.exchange(method, target, kind, length, body).with_context(|| format!("docker-registry: {method} {target}"))
    }

    fn exchange(&self, method: &str, target: &str, kind: &str, length: u64, body: &mut dyn Read) -> Result<Answer> {
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        tcp.set_read_timeout(Some(STEP))?;
        tcp.set_write_timeout(Some(STEP))?;
        let name = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST)));
        let mut stream = StreamOwned::new(ClientConnection::new(self.client.clone(), name)?, tcp);
        let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nhost: localhost:{}\r\naccept: {MANIFEST}\r\nconnection: close\r\n{kind}content-length: {length}\r\n\r\n",
            self.port
        )?;
        let sent = io::copy(body, &mut stream)?;
        ensure!(sent == length, "expected a body of {length} bytes, found {sent}");
        stream.flush()?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").context("expected an HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("expected a status")?;
        Ok(Answer { status, head: head.into(), body: body.into() })
    }
}

fn trusting(ca_pem: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).context("the registry's CA")?)?;
    Ok(ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_test_controller::oci_build::{Entry, ImageConfig, from_files};

    #[test]
    fn what_is_pushed_is_served_by_tag_and_by_digest() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("bin/app".to_owned(), Entry { mode: 0o755, content: vec![7; 100_000] })].into();
        let built = from_files(&files, &ImageConfig::default(), "1", &dir.path().join("image")).unwrap();
        let registry = Registry::start(&dir.path().join("registry"), &["10.0.2.2".into()]).unwrap();
        registry.push("a/b", "1", &built).unwrap();
        let get = |target: &str| registry.send("GET", target, "", 0, &mut io::empty()).unwrap();
        for reference in ["1", &built.manifest_digest] {
            let answer = get(&format!("/v2/a/b/manifests/{reference}")).expect("manifest", 200).unwrap();
            assert!(answer.body.contains(&built.layer_digest), "{}", answer.body);
        }
        assert_eq!(get("/v2/a/b/manifests/2").status, 404);
        assert!(registry.log().contains("GET /v2/a/b/manifests/1 "), "{}", registry.log());

        fs::write(dir.path().join("image/blobs").join(built.layer_digest.replace(':', "/")), "else").unwrap();
        let error = format!("{:#}", registry.push("a/c", "1", &built).unwrap_err());
        assert!(error.contains("expected status 201, found 400"), "{error}");
    }
}
