//! Jobs against a server of our own: what comes out, and what is left when it goes wrong.
//! The wrong way to see it would be to look at the report only: outputs are read, and erofs images checked by `fsck.erofs`.

mod common;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use common::{Auth, WebServer, gzip, noise, sha256, tar};
use holdfast_fetch::failure::Failure;
use holdfast_fetch::report::Reporter;
use holdfast_fetch::run::{Files, execute};
use holdfast_model::contract::Version;
use holdfast_model::contract::fetch::{FailureClass, Job, Outcome, Report, Server, Task};

fn temp() -> File {
    tempfile::tempfile().unwrap()
}

fn oci(reference: &str) -> Task {
    Task::Oci {
        repository: "a/b".into(),
        reference: reference.into(),
        sha256: String::new(),
        max_bytes: 64 << 20,
        output_fd: -1,
        spool_fd: -1,
    }
}

fn blob(path: &str, sha256: String) -> Task {
    Task::Blob { path: path.into(), sha256, max_bytes: 16 << 20, output_fd: -1 }
}

/// Runs a task that has one output; returns the result, the output and the reports.
async fn run(server: Server, task: Task) -> (Result<Outcome, Failure>, File, Vec<Report>) {
    let mut output = temp();
    output.write_all(b"what was there before").unwrap();
    let ours = output.try_clone().unwrap();
    let files = match &task {
        Task::Oci { .. } => Files::Oci { output, layer_spool: temp(), contents_spool: temp() },
        Task::Blob { .. } => Files::Blob { output },
        Task::Update { .. } => panic!("use `update`"),
    };
    let reports = temp();
    let mut reporter = Reporter::new(reports.try_clone().unwrap());
    let job = Job { version: Version, report_fd: -1, server, task };
    let result = execute(&job, files, &mut reporter).await;
    reporter.finish(&result).unwrap();
    (result, ours, read_reports(reports))
}

fn read_reports(mut file: File) -> Vec<Report> {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn length(file: &File) -> u64 {
    file.metadata().unwrap().len()
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[("bin/", b""), ("bin/app", &noise(200_000)), ("etc/", b""), ("etc/old", b"gone soon")]),
        tar(&[("etc/.wh.old", b""), ("etc/new", b"hello")]),
    ]
}

/// `fsck.erofs` reads the image and says whether it is one.
fn check_erofs(image: &File) {
    let mut copy = tempfile::NamedTempFile::new().unwrap();
    let mut image = image.try_clone().unwrap();
    image.rewind().unwrap();
    std::io::copy(&mut image, copy.as_file_mut()).unwrap();
    match Command::new("fsck.erofs").arg(copy.path()).output() {
        Ok(out) => assert!(out.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&out.stderr)),
        Err(e) => println!("NOT CHECKED with fsck.erofs: {e}"),
    }
}

#[tokio::test]
async fn an_image_becomes_one_erofs_with_its_configuration() {
    let web = WebServer::start().await;
    let digest = web.image("a/b", "latest", &two_layers(), true);
    let (result, image, reports) = run(web.server(), oci("latest")).await;
    let Outcome::Oci { manifest_sha256, size_bytes, config } = result.unwrap() else { panic!() };
    assert_eq!(format!("sha256:{manifest_sha256}"), digest);
    assert_eq!(
        (size_bytes, config.entrypoint, config.env),
        (length(&image), vec!["/bin/app".to_owned()], vec!["A=b".to_owned()])
    );
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("7", "/w"));
    check_erofs(&image);
    assert!(matches!(reports.last(), Some(Report::Done(Outcome::Oci { .. }))));

    // The same by digest, plain tar, and byte for byte the same image again.
    let (again, second, _) = run(web.server(), oci(&digest)).await;
    again.unwrap();
    let bytes = |f: &File| {
        let mut b = vec![0; usize::try_from(length(f)).unwrap()];
        f.read_exact_at(&mut b, 0).unwrap();
        b
    };
    assert!(bytes(&image) == bytes(&second));
}

#[tokio::test]
async fn an_index_leads_to_our_platform() {
    let web = WebServer::start().await;
    let digest = web.image("a/b", "ours", &two_layers(), false);
    let size = web.state.lock().unwrap().files["/v2/a/b/manifests/ours"].len();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
        holdfast_fetch::manifest::architecture()
    );
    let index_sha256 = sha256(index.as_bytes());
    web.put("/v2/a/b/manifests/latest", index.into_bytes());
    let Task::Oci { repository, reference, max_bytes, output_fd, spool_fd, .. } = oci("latest") else { panic!() };
    let task = |sha256| Task::Oci {
        repository: repository.clone(),
        reference: reference.clone(),
        sha256,
        max_bytes,
        output_fd,
        spool_fd,
    };
    let (result, _, _) = run(web.server(), task(index_sha256)).await;
    assert!(matches!(result, Ok(Outcome::Oci { manifest_sha256, .. }) if digest.ends_with(&manifest_sha256)));
    let (wrong, image, _) = run(web.server(), task("00".repeat(32))).await;
    let failure = wrong.unwrap_err();
    assert_eq!((failure.class, length(&image)), (FailureClass::Content, 0), "{failure}");
    assert!(failure.text.contains("expected sha256:0000"), "{failure}");
}

#[tokio::test]
async fn broken_transfers_go_on_where_they_stopped() {
    let web = WebServer::start().await;
    web.image("a/b", "latest", &two_layers(), true);
    {
        let faults = &mut web.state.lock().unwrap().faults;
        (faults.cut, faults.unavailable) = (3, 2);
    }
    let (result, image, _) = run(web.server(), oci("latest")).await;
    result.unwrap();
    check_erofs(&image);
    assert!(web.requests("range=Some(") >= 3, "{:?}", web.state.lock().unwrap().log);

    // A server that cannot go on starts over; what came already is not used twice.
    let body = noise(300_000);
    web.put("/file", body.clone());
    {
        let faults = &mut web.state.lock().unwrap().faults;
        (faults.cut, faults.no_ranges) = (2, true);
    }
    let (result, file, _) = run(web.server(), blob("/file", sha256(&body))).await;
    assert_eq!(result.unwrap(), Outcome::Blob { sha256: sha256(&body), size_bytes: 300_000 });
    assert_eq!(length(&file), 300_000);
}

#[tokio::test]
async fn credentials_are_given_to_the_registry_and_to_nobody_else() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let web = WebServer::start().await;
        web.image("a/b", "latest", &two_layers(), true);
        {
            let mut state = web.state.lock().unwrap();
            state.auth = auth;
        }
        let anonymous = run(web.server(), oci("latest")).await.0.unwrap_err();
        assert_eq!(anonymous.class, FailureClass::Refused, "{anonymous}");
        let server = Server { user: "user".into(), password: "pass".into(), ..web.server() };
        run(server.clone(), oci("latest")).await.0.unwrap();
        assert!(!anonymous.text.contains("pass"));
        // Redirected blobs: the other authority sees no authorization. (It refuses here, which is how we see it.)
        web.state.lock().unwrap().faults.redirect = true;
        assert!(run(server, oci("latest")).await.0.is_err());
        let state = web.state.lock().unwrap();
        let leaked: Vec<_> =
            state.log.iter().filter(|l| l.contains("/elsewhere/") && !l.contains("authorization=\"\"")).collect();
        assert!(leaked.is_empty(), "{leaked:?}");
        assert!(state.log.iter().any(|l| l.contains("/elsewhere/")));
    }
}

#[tokio::test]
async fn redirected_blobs_are_followed() {
    let web = WebServer::start().await;
    web.image("a/b", "latest", &two_layers(), true);
    web.state.lock().unwrap().faults.redirect = true;
    run(web.server(), oci("latest")).await.0.unwrap();
}

#[tokio::test]
async fn whatever_does_not_match_its_digest_leaves_nothing_behind() {
    let web = WebServer::start().await;
    let layers = two_layers();
    web.image("a/b", "latest", &layers, true);
    let altered = gzip(&tar(&[("evil", b"x")]));
    let path = format!("/v2/a/b/blobs/sha256:{}", sha256(&gzip(&layers[1])));
    {
        let mut state = web.state.lock().unwrap();
        let original = state.files.get_mut(&path).unwrap();
        let mut same_size = altered.clone();
        same_size.resize(original.len(), 0);
        *original = same_size;
    }
    let (result, image, reports) = run(web.server(), oci("latest")).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.class, length(&image)), (FailureClass::Content, 0), "{failure}");
    assert!(failure.text.contains(&path) && failure.text.contains("found sha256:"), "{failure}");
    assert!(matches!(reports.last(), Some(Report::Failed { class: FailureClass::Content, .. })));

    web.state.lock().unwrap().files.remove(&path);
    let (result, image, _) = run(web.server(), oci("latest")).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.class, length(&image)), (FailureClass::Refused, 0), "{failure}");
    assert!(failure.text.contains("expected status 200, found 404"), "{failure}");
}

#[tokio::test]
async fn limits_hold() {
    let web = WebServer::start().await;
    web.put("/file", noise(3000));
    let task = Task::Blob { path: "/file".into(), sha256: String::new(), max_bytes: 2999, output_fd: -1 };
    let (result, file, _) = run(web.server(), task).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.class, length(&file)), (FailureClass::Content, 0));
    assert!(failure.text.contains("expected at most 2999 bytes, found 3000"), "{failure}");

    // Half a megabyte of zeros in a layer of a few hundred bytes.
    web.image("a/b", "bomb", &[tar(&[("zeros", &[0; 500_000])])], true);
    let Task::Oci { repository, reference, sha256, output_fd, spool_fd, .. } = oci("bomb") else { panic!() };
    let task = Task::Oci { repository, reference, sha256, max_bytes: 100_000, output_fd, spool_fd };
    let (result, image, _) = run(web.server(), task).await;
    assert!(result.unwrap_err().text.contains("zeros: expected at most 100000 bytes"));
    assert_eq!(length(&image), 0);
}

#[tokio::test]
async fn strangers_certificates_and_missing_servers_are_transport_failures_with_the_url() {
    let (web, other) = (WebServer::start().await, WebServer::start().await);
    let server = Server { ca_pem: other.server().ca_pem, ..web.server() };
    let (result, _, _) = run(server, blob("/file", String::new())).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.class, FailureClass::Transport);
    assert!(failure.text.contains("TLS handshake") && failure.text.contains("/file"), "{failure}");

    let trusted_by_nobody = Server { ca_pem: vec![], ..web.server() };
    let failure = run(trusted_by_nobody, blob("/file", String::new())).await.0.unwrap_err();
    assert_eq!(failure.class, FailureClass::Local, "{failure}");
}

mod update {
    use super::*;
    use holdfast_format::payload::{Images, write};
    use holdfast_format::release::Release;
    use p256::ecdsa::SigningKey;

    fn key() -> SigningKey {
        SigningKey::from_slice(&[0x21; 32]).unwrap()
    }

    fn images() -> (Vec<u8>, Vec<u8>) {
        ([noise(900_000), vec![0; 2_500_000], noise(100_000)].concat(), noise(600_000))
    }

    fn payload(version: &str, epoch: u32) -> Vec<u8> {
        let (os, esp) = images();
        let release = Release {
            product: "holdfast-x86_64".into(),
            version: version.into(),
            epoch,
            kind: holdfast_format::release::Kind::Dev,
        };
        let mut out = Vec::new();
        write(&mut out, &release, Images { os: &os, esp: &esp }, &key()).unwrap();
        out
    }

    /// The partitions, full of something else before.
    fn slot() -> (File, File) {
        let partition = |size: usize| {
            let mut file = temp();
            file.write_all(&vec![0xa5; size]).unwrap();
            file
        };
        (partition(5_000_000), partition(1_000_000))
    }

    async fn install(web: &WebServer, sha256: String, min_epoch: u32, slot: &(File, File)) -> Result<Outcome, Failure> {
        let task = Task::Update {
            path: "/u".into(),
            sha256,
            max_bytes: 0,
            release_key_pem: holdfast_format::keys::public_pem(key().verifying_key()).unwrap(),
            product: "holdfast-x86_64".into(),
            min_epoch,
            version: "1.1".into(),
            esp_fd: -1,
            os_fd: -1,
        };
        let files = Files::Update { os: slot.0.try_clone().unwrap(), esp: slot.1.try_clone().unwrap() };
        let mut reporter = Reporter::new(temp());
        let job = Job { version: Version, report_fd: -1, server: web.server(), task };
        execute(&job, files, &mut reporter).await
    }

    fn untouched(slot: &(File, File)) -> bool {
        [&slot.0, &slot.1].iter().all(|f| {
            let mut bytes = vec![0; usize::try_from(length(f)).unwrap()];
            f.read_exact_at(&mut bytes, 0).unwrap();
            bytes.iter().all(|b| *b == 0xa5)
        })
    }

    #[tokio::test]
    async fn a_payload_arrives_whole_through_cuts_and_over_old_content() {
        let web = WebServer::start().await;
        let payload = payload("1.1", 3);
        web.put("/u", payload.clone());
        web.state.lock().unwrap().faults.cut = 2;
        let slot = slot();
        let done = install(&web, sha256(&payload), 3, &slot).await.unwrap();
        assert_eq!(done, Outcome::Update { version: "1.1".into(), epoch: 3 });
        let (os, esp) = images();
        for (file, image) in [(&slot.0, os), (&slot.1, esp)] {
            let mut found = vec![0; image.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == image);
        }
    }

    #[tokio::test]
    async fn what_the_release_did_not_sign_or_is_not_asked_for_touches_nothing() {
        let good = payload("1.1", 3);
        let mut altered = good.clone();
        altered[20] ^= 1;
        for (name, body, min_epoch, wanted) in [
            ("altered manifest", altered, 0, "not signed by any"),
            ("older epoch", good.clone(), 4, "downgrade refused"),
            ("another version", payload("1.2", 3), 0, "expected version \"1.1\", found \"1.2\""),
            ("not a payload", noise(5000), 0, "not an update payload"),
        ] {
            let web = WebServer::start().await;
            web.put("/u", body);
            let slot = slot();
            let failure = install(&web, String::new(), min_epoch, &slot).await.unwrap_err();
            assert_eq!(failure.class, FailureClass::Content, "{name}: {failure}");
            assert!(failure.text.contains(wanted), "{name}: {failure}");
            assert!(untouched(&slot), "{name}: a partition was written");
        }
    }

    #[tokio::test]
    async fn a_truncated_or_altered_body_is_an_error_that_says_where() {
        let good = payload("1.1", 3);
        let mut altered = good.clone();
        let last = altered.len() - 100;
        altered[last] ^= 1;
        for (body, wanted) in
            [(good[..good.len() - 50].to_vec(), "update payload ends after"), (altered, "chunk at byte")]
        {
            let web = WebServer::start().await;
            web.put("/u", body);
            let failure = install(&web, String::new(), 0, &slot()).await.unwrap_err();
            assert_eq!(failure.class, FailureClass::Content);
            assert!(failure.text.contains(wanted) && failure.text.contains("/u:"), "{failure}");
        }
    }
}
