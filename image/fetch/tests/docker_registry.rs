//! A pull from a registry that is not ours: Debian's `docker-registry`, over TLS. Its storage is laid out by hand, as its
//! file system driver documents it, so that nothing of ours pushes.

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{gzip, noise, sha256, tar};
use holdfast_fetch::report::Reporter;
use holdfast_fetch::run::{Files, execute};
use holdfast_model::contract::Version;
use holdfast_model::contract::fetch::{Job, Outcome, Server, Task};

struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stores a blob and its link under the repository's `kind`; returns the hexadecimal digest.
fn store(root: &Path, repository: &str, kind: &str, body: &[u8]) -> String {
    let digest = sha256(body);
    let v2 = root.join("docker/registry/v2");
    let blob = v2.join("blobs/sha256").join(&digest[..2]).join(&digest);
    fs::create_dir_all(&blob).unwrap();
    fs::write(blob.join("data"), body).unwrap();
    let link = v2.join("repositories").join(repository).join(kind).join("sha256").join(&digest);
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), format!("sha256:{digest}")).unwrap();
    digest
}

#[tokio::test]
async fn an_image_is_pulled_from_debians_registry() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    let layer_tar = tar(&[("bin/", b""), ("bin/app", &noise(100_000))]);
    let layer = gzip(&layer_tar);
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/bin/app"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        holdfast_fetch::manifest::architecture(),
        sha256(&layer_tar)
    );
    let repository = "library/thing";
    let (layer_digest, config_digest) =
        (store(&storage, repository, "_layers", &layer), store(&storage, repository, "_layers", config.as_bytes()));
    let docker = "application/vnd.docker";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{docker}.distribution.manifest.v2+json","config":{{"mediaType":"{docker}.container.image.v1+json","size":{},"digest":"sha256:{config_digest}"}},"layers":[{{"mediaType":"{docker}.image.rootfs.diff.tar.gzip","size":{},"digest":"sha256:{layer_digest}"}}]}}"#,
        config.len(),
        layer.len()
    );
    let manifest_digest = store(&storage, repository, "_manifests/revisions", manifest.as_bytes());
    let tag = storage.join("docker/registry/v2/repositories/library/thing/_manifests/tags/1.0/current");
    fs::create_dir_all(&tag).unwrap();
    fs::write(tag.join("link"), format!("sha256:{manifest_digest}")).unwrap();

    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("cert.pem"), certificate.pem()).unwrap();
    fs::write(at("key.pem"), key.serialize_pem()).unwrap();
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    fs::write(
        at("config.yml"),
        format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n  tls:\n    certificate: {}\n    key: {}\n",
            storage.display(),
            at("cert.pem").display(),
            at("key.pem").display()
        ),
    )
    .unwrap();
    let started = Command::new("docker-registry")
        .arg("serve")
        .arg(at("config.yml"))
        .stdout(Stdio::null())
        .stderr(File::create(at("log")).unwrap())
        .spawn();
    let _registry = match started {
        Ok(child) => Registry(child),
        Err(e) => {
            println!("NOT RUN: docker-registry: {e} (install docker-registry)");
            return;
        }
    };
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = fs::read_to_string(at("log")).unwrap_or_default();
        assert!(start.elapsed() < Duration::from_secs(15), "docker-registry does not listen: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }

    let task = Task::Oci {
        repository: repository.into(),
        reference: "1.0".into(),
        sha256: manifest_digest.clone(),
        max_bytes: 0,
        output_fd: -1,
        spool_fd: -1,
    };
    let server = Server {
        base_url: format!("https://localhost:{port}"),
        user: String::new(),
        password: String::new(),
        ca_pem: vec![certificate.pem()],
    };
    let temp = || tempfile::tempfile().unwrap();
    let mut image = temp();
    let files = Files::Oci { output: image.try_clone().unwrap(), layer_spool: temp(), contents_spool: temp() };
    let mut reporter = Reporter::new(temp());
    let done = execute(&Job { version: Version, report_fd: -1, server, task }, files, &mut reporter).await.unwrap();
    let Outcome::Oci { manifest_sha256, size_bytes, config } = done else { panic!("{done:?}") };
    assert_eq!((manifest_sha256, config.cmd), (manifest_digest, vec!["/bin/app".to_owned()]));
    let mut bytes = Vec::new();
    image.rewind().unwrap();
    image.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, size_bytes);
    let wanted = &noise(100_000)[..64];
    assert!(bytes.windows(64).any(|w| w == wanted), "the file's contents are not in the image");
}
