//! The artifact server, the registry, the admin API and the command line, each from outside.

mod device;

use device::*;
use holdfast_test_controller::artifacts::Auth;
use holdfast_test_controller::config::DeviceConfig;
use holdfast_test_controller::oci_build::{self, Built, Entry, ImageConfig};
use holdfast_test_controller::{Action, Endpoint, Rule};
use std::collections::BTreeMap;
use std::process::Command;

fn site() -> Site {
    Site::with(|options| {
        let files = options.data_dir.parent().expect("parent").join("files");
        std::fs::create_dir_all(files.join("sub")).expect("mkdir");
        let content: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(files.join("sub/update.bin"), content).expect("write");
        options.files_dir = Some(files);
    })
}

fn fetch(site: &Site, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Answer> {
    let addr = site.controller.artifact_addr().expect("artifact server");
    https(addr, &site.controller.root_pem(), method, path, headers, b"")
}

fn image(site: &Site) -> Built {
    let files = BTreeMap::from([("bin/web".to_owned(), Entry { mode: 0o755, content: vec![7; 100_000] })]);
    let config = ImageConfig { entrypoint: vec!["/bin/web".into()], ..ImageConfig::default() };
    let built = oci_build::from_files(&files, &config, "1", &site.dir.path().join("layout")).expect("image");
    site.controller.publish_image("demo/web", &built.layout).expect("published");
    built
}

#[test]
fn files_are_served_whole_or_in_part() {
    let site = site();
    let whole = fetch(&site, "GET", "/files/sub/update.bin", &[]).expect("file");
    assert_eq!((whole.status, whole.body.len()), (200, 200_000));
    let part = fetch(&site, "GET", "/files/sub/update.bin", &[("range", "bytes=1000-1999")]).expect("part");
    assert_eq!((part.status, part.body.as_slice()), (206, &whole.body[1000..2000]));
    assert_eq!(part.header("content-range"), Some("bytes 1000-1999/200000"));
    let rest = fetch(&site, "GET", "/files/sub/update.bin", &[("range", "bytes=199999-")]).expect("rest");
    assert_eq!(rest.body, whole.body[199_999..]);
    let head = fetch(&site, "HEAD", "/files/sub/update.bin", &[]).expect("head");
    assert_eq!((head.status, head.header("content-length")), (200, Some("200000")));
    for (path, status) in [("/files/none", 404), ("/files/../pki/root.pem", 404), ("/files/%2e%2e/x", 404)] {
        assert_eq!(fetch(&site, "GET", path, &[]).expect("answer").status, status, "{path}");
    }
    assert_eq!(
        fetch(&site, "GET", "/files/sub/update.bin", &[("range", "bytes=200000-")]).expect("answer").status,
        416
    );
}

#[test]
fn faults_truncate_corrupt_and_slow_files_down() {
    let site = site();
    let good = fetch(&site, "GET", "/files/sub/update.bin", &[]).expect("file").body;
    let fault = |action| site.controller.add_fault(Rule::new(Endpoint::File, action).times(1)).expect("rule");
    let get = || fetch(&site, "GET", "/files/sub/update.bin", &[]);
    fault(Action::Truncate { bytes: 70_000 });
    assert!(get().is_err(), "length announced, less sent");
    fault(Action::Corrupt { offset: 150_000 });
    let bad = get().expect("file").body;
    let differing: Vec<usize> = (0..good.len()).filter(|i| good[*i] != bad[*i]).collect();
    assert_eq!(differing, [150_000]);
    fault(Action::Throttle { bytes_per_second: 400_000 });
    let start = std::time::Instant::now();
    assert_eq!(get().expect("file").body, good);
    assert!(start.elapsed().as_millis() >= 300, "{:?}", start.elapsed());
    fault(Action::Status { code: 500 });
    assert_eq!(get().expect("answer").status, 500);
}

#[test]
fn an_image_is_pulled_by_tag_and_by_digest() {
    let site = site();
    let built = image(&site);
    let get = |path: &str| fetch(&site, "GET", path, &[]).expect("answer");
    assert_eq!(get("/v2/").status, 200);
    let by_tag = get("/v2/demo/web/manifests/1");
    assert_eq!(by_tag.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
    assert_eq!(by_tag.header("docker-content-digest"), Some(built.manifest_digest.as_str()));
    assert_eq!(format!("sha256:{}", hex::encode(sha256(&by_tag.body))), built.manifest_digest);
    let by_digest = get(&format!("/v2/demo/web/manifests/{}", built.manifest_digest));
    assert_eq!(by_digest.body, by_tag.body);
    let manifest: serde_json::Value = serde_json::from_slice(&by_tag.body).expect("json");
    let layer = get(&format!("/v2/demo/web/blobs/{}", manifest["layers"][0]["digest"].as_str().expect("digest")));
    assert_eq!(layer.body.len() as u64, built.layer_bytes);
    assert_eq!(format!("sha256:{}", hex::encode(sha256(&layer.body))), built.layer_digest);
    assert!(String::from_utf8_lossy(&get("/v2/demo/web/tags/list").body).contains("\"1\""));
    let none = "0".repeat(64);
    for (path, status) in [
        ("/v2/demo/other/manifests/1".to_owned(), 404),
        ("/v2/demo/web/manifests/2".to_owned(), 404),
        (format!("/v2/demo/web/blobs/sha256:{none}"), 404),
        ("/v2/demo/web/blobs/sha256:../../index.json".to_owned(), 400),
    ] {
        assert_eq!(get(&path).status, status, "{path}");
    }
    site.controller.add_fault(Rule::new(Endpoint::Blob, Action::Corrupt { offset: 20 }).times(1)).expect("rule");
    let wrong = get(&format!("/v2/demo/web/blobs/{}", built.layer_digest));
    assert_ne!(format!("sha256:{}", hex::encode(sha256(&wrong.body))), built.layer_digest);
}

#[test]
fn the_registry_asks_for_a_password_or_a_token() {
    let site = site();
    image(&site);
    let path = "/v2/demo/web/manifests/1";
    let basic =
        |text: &str| format!("Basic {}", String::from_utf8(openssl(&["base64", "-A"], text.as_bytes())).expect("text"));
    let get = |path: &str, authorization: &str| {
        fetch(&site, "GET", path, &[("authorization", authorization)]).expect("answer")
    };
    let (user, password) = ("user".to_owned(), "pass".to_owned());
    site.controller.set_registry_auth(Auth::Basic { user: user.clone(), password: password.clone() });
    let refused = get(path, "");
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").expect("challenge").starts_with("Basic "));
    assert_eq!(get(path, &basic("user:wrong")).status, 401);
    assert_eq!(get(path, &basic("user:pass")).status, 200);

    site.controller.set_registry_auth(Auth::Bearer { user, password });
    let challenge = get(path, "").header("www-authenticate").expect("challenge").to_owned();
    assert!(challenge.contains("/token\"") && challenge.contains("repository:demo/web:pull"), "{challenge}");
    assert_eq!(get("/token", &basic("user:wrong")).status, 401);
    let answer = get("/token?service=holdfast&scope=repository:demo/web:pull", &basic("user:pass"));
    let token: serde_json::Value = serde_json::from_slice(&answer.body).expect("json");
    assert_eq!(get(path, &format!("Bearer {}", token["token"].as_str().expect("token"))).status, 200);
    assert_eq!(get(path, "Bearer made-up").status, 401);
}

/// Runs the program against the admin API of `site`.
fn cli(site: &Site, args: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_holdfast-controller"))
        .args(["--admin", &site.controller.admin_addr().expect("admin").to_string()])
        .args(args)
        .output()
        .expect("program");
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(text).expect("text"))
}

#[test]
fn the_command_line_does_what_the_library_does() {
    let site = site();
    let good = |args: &[&str]| {
        let (ok, text) = cli(&site, args);
        assert!(ok, "{args:?}: {text}");
        text
    };
    let (ok, text) = cli(&site, &["devices", "show"]);
    assert!(!ok && text.contains("no device has registered yet"), "{text}");
    let out = site.dir.path().join("material").display().to_string();
    good(&["material", &out]);
    assert_eq!(std::fs::read_to_string(format!("{out}/root.pem")).expect("root"), site.controller.root_pem());
    good(&["onboard", "--serial", "S1"]);
    let device = site.join("S1");
    assert!(good(&["devices", "list"]).contains(&device.uuid.to_string()));

    let file = site.dir.path().join("config.json").display().to_string();
    std::fs::write(&file, good(&["config", "example"])).expect("write");
    good(&["config", "set", &file]);
    assert!(good(&["config", "get", "--wire"]).contains("\"systemAdapterList\""));
    let wire = site.dir.path().join("wire.json").display().to_string();
    std::fs::write(&wire, r#"{"device_name":"raw","configItems":[{"key":"a","value":"b"}]}"#).expect("write");
    good(&["config", "set", &wire, "--wire"]);
    let served = site.controller.served_config(device.uuid).expect("known").expect("served");
    assert_eq!((served.device_name.as_str(), served.config_items.len()), ("raw", 1));
    std::fs::write(&file, r#"{"app":[]}"#).expect("write");
    let (ok, text) = cli(&site, &["config", "set", &file]);
    assert!(!ok && text.contains("unknown field `app`"), "{text}");

    assert_eq!(device.status("info", &device.info_device(1)), 201);
    assert!(good(&["info"]).contains("ZiDevice"));
    assert!(good(&["devices", "show"]).contains("ZDEVICE_STATE_ONLINE"));
    good(&["faults", "add", "--on", "info", "--action", "status=503", "--count", "1"]);
    assert_eq!(device.status("info", &device.info_device(1)), 503);
    assert!(good(&["faults", "list"]).contains("used 1 times"));
    good(&["faults", "remove"]);
    assert!(good(&["requests", "--on", "info"]).contains(" 503 "));
    good(&["rotate", "signing"]);
    assert!(good(&["logs"]).is_empty());
    site.controller.set_config(device.uuid, DeviceConfig::quick()).expect("config");
    good(&["devices", "remove"]);
    assert!(site.controller.devices().is_empty());
    let (ok, help) = cli(&site, &["--help"]);
    assert!(ok && help.contains("onboard") && help.contains("faults"));
}

#[test]
fn logs_can_be_followed() {
    use std::io::{BufRead, BufReader};
    let site = site();
    let device = site.join("S1");
    let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast-controller"))
        .args(["--admin", &site.controller.admin_addr().expect("admin").to_string(), "logs", "--follow", "--app"])
        .arg("web")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("program");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let app = holdfast_test_controller::config::object_id(device.uuid, "app", "web");
    for text in ["first", "second"] {
        let line = format!(r#"{{"content":"{text}","msgid":1,"timestamp":{{"seconds":1,"nanos":2}}}}"#);
        let log = gzip_named("web", &line);
        assert_eq!(device.status(&format!("apps/instanceid/{app}/newlogs"), &log), 201);
        let shown = lines.next().expect("a line").expect("text");
        assert!(shown.ends_with(text), "{shown}");
    }
    child.kill().expect("running");
    child.wait().expect("ended");
}

fn gzip_named(name: &str, text: &str) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::GzBuilder::new().filename(name).write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}
