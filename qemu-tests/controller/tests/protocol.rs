//! The device API as a device sees it. Wrong way to see it: through the controller's own envelope code, which would
//! agree with itself.

mod device;

use device::*;
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_test_controller::config::DeviceConfig;
use holdfast_test_controller::endpoints::Quirks;
use holdfast_test_controller::pki::Role;
use holdfast_test_controller::{Action, Controller, ControllerError, Endpoint, Options, Rule};
use std::time::Duration;

#[test]
fn a_device_without_tpm_joins_gets_its_configuration_and_reports() {
    let site = Site::with(|options| options.intermediate = true);
    assert_eq!(site.status("ping", b""), 200);
    let keys = Keys::self_signed(site.dir.path(), "early");
    assert_eq!(site.status("uuid", &keys.envelope(b"")), 401, "uuid before register");
    assert_eq!(site.status("register", &site.register_envelope(&keys, "early")), 403, "not onboarded");

    let device = site.join("S1");
    assert_eq!(site.controller.wait_device(WAIT).expect("device"), device.uuid);
    assert_eq!(site.status("register", &site.register_envelope(&device.keys, "S1")), 200, "again");
    let other = Keys::self_signed(site.dir.path(), "other");
    assert_eq!(site.status("register", &site.register_envelope(&other, "S1")), 409, "serial taken");

    assert_eq!(device.config("", b"").status, 403, "no token");
    let token = device.attest_without_tpm();
    assert_eq!(device.config("", &token).status, 404, "nothing set yet");
    site.controller.set_config(device.uuid, DeviceConfig::quick()).expect("config");
    assert_eq!(device.config("", b"wrong").status, 403);
    let answer = device.config("", &token);
    assert_eq!(answer.status, 200);
    let response = site.open(&answer);
    let hash = String::from_utf8(get(&response, 2)).expect("hash");
    let config = get(&response, 1);
    assert_eq!(get(&get(&config, 1), 1), device.uuid.to_string().as_bytes());
    assert!(!get(&config, 22).is_empty(), "controllercert_confighash");
    assert_eq!(get(&get(&config, 13), 4), b"eth0");
    let early = site.controller.wait_config_accepted(device.uuid, Duration::ZERO);
    assert!(matches!(early, Err(ControllerError::Timeout { .. })));
    let answer = device.config(&hash, &token);
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    site.controller.wait_config_accepted(device.uuid, WAIT).expect("accepted");

    assert_eq!(device.status("info", &device.info_device(1)), 201);
    site.controller
        .wait_info(
            device.uuid,
            "the device to be online",
            WAIT,
            |message| matches!(&message.info_content, Some(InfoContent::Dinfo(dinfo)) if dinfo.state == 1),
        )
        .expect("info");
    let metrics = bytes(1, device.uuid.to_string());
    assert_eq!(device.status("metrics", &metrics), 201);
    assert_eq!(site.controller.metrics(device.uuid).expect("metrics").len(), 1);
    assert_eq!(device.status("flowlog", b""), 201);
    assert_eq!(device.status("hardwarehealth", b""), 201);
    assert_eq!(device.status("newlogs", &device_log(&device, "boot done")), 201);
    assert_eq!(site.controller.device_logs(device.uuid).expect("logs")[0].line.content, "boot done");
    let app = holdfast_test_controller::config::object_id(device.uuid, "app", "web");
    let log = member(0x08, "web", &line("hello from web"));
    assert_eq!(device.status(&format!("apps/instanceid/{app}/newlogs"), &log), 201);
    site.controller.wait_app_log(device.uuid, "web", "hello", WAIT).expect("app log");
    assert_eq!(device.status(&format!("apps/instances/id/{app}/newlogs"), &log), 404);
}

fn line(content: &str) -> String {
    format!(
        r#"{{"severity":"info","source":"s","iid":"1","content":"{content}","msgid":1,"timestamp":{{"seconds":1,"nanos":2}}}}"#
    )
}

fn device_log(device: &Device<'_>, content: &str) -> Vec<u8> {
    let comment = format!(r#"{{"devID":"{}","image":"IMGA","eveVersion":"1"}}"#, device.uuid);
    member(0x10, &comment, &line(content))
}

/// A gzip member with a name (flag 8) or a comment (flag 16) in its header, RFC 1952: the header is made by hand, the
/// rest by gzip.
fn member(flag: u8, field: &str, text: &str) -> Vec<u8> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child =
        Command::new("gzip").args(["-c", "-n"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("gzip");
    let plain = child.wait_with_output().expect("gzip").stdout;
    assert_eq!(plain[3], 0, "gzip -n writes no names");
    let mut out = plain[..10].to_vec();
    out[3] = flag;
    out.extend(field.as_bytes());
    out.push(0);
    out.extend(&plain[10..]);
    out
}

#[test]
fn a_wrong_envelope_is_refused_at_every_endpoint() {
    let site = Site::start();
    let device = site.join("S1");
    let stranger = Keys::self_signed(site.dir.path(), "stranger");
    let (hash, signature) = (device.keys.der_hash(), device.keys.sign_raw(b"x"));
    let parts = |hash: &[u8], algo: u64, signature: &[u8]| {
        [bytes(1, bytes(1, b"x")), num(2, algo), bytes(3, hash), bytes(4, signature)].concat()
    };
    let cases = [
        ("no envelope", b"\x08\x01".to_vec()),
        ("no protobuf", b"\xff\xff\xff".to_vec()),
        ("empty", Vec::new()),
        ("16 bytes of hash", parts(&hash[..16], 1, &signature)),
        ("algo 1", parts(&hash, 1, &signature)),
        ("ASN.1 signature", parts(&hash, 2, &device.keys.sign_der(b"x"))),
        ("signature of other bytes", parts(&hash, 2, &device.keys.sign_raw(b"y"))),
        ("hash of nobody", parts(&stranger.der_hash(), 2, &stranger.sign_raw(b"x"))),
        ("key of somebody else", parts(&hash, 2, &stranger.sign_raw(b"x"))),
    ];
    let id = format!("id/{}", device.uuid);
    let endpoints = ["attest", "config", "info", "metrics", "newlogs", "flowlog", "hardwarehealth"];
    for (what, body) in &cases {
        assert_eq!(site.status("uuid", body), 401, "uuid: {what}");
        for endpoint in endpoints {
            assert_eq!(site.status(&format!("{id}/{endpoint}"), body), 401, "{endpoint}: {what}");
        }
    }
    let foreign = uuid::Uuid::new_v4();
    assert_eq!(site.status(&format!("id/{foreign}/config"), &device.keys.envelope(b"")), 401, "UUID of another");
}

#[test]
fn a_malformed_message_is_refused_at_every_endpoint() {
    let site = Site::start();
    let device = site.join("S1");
    let broken = b"\x0a\xff";
    for endpoint in ["attest", "config", "info", "metrics", "newlogs", "flowlog", "hardwarehealth"] {
        assert_eq!(device.status(endpoint, broken), 400, "{endpoint}");
    }
    assert_eq!(device.status("attest", &num(1, 9)), 400, "unknown type");
    assert_eq!(device.status("info", &[num(1, 1), bytes(2, "another"), bytes(3, b"")].concat()), 400);
    assert_eq!(device.status("metrics", &bytes(1, "another")), 400);
    let huge = vec![0; 5 << 20];
    // The connection may break while the controller refuses to read on.
    assert!(site.ask("uuid", &huge).map_or(true, |answer| answer.status == 413));
    let text = https(
        site.controller.device_addr(),
        &site.controller.root_pem(),
        "POST",
        "/api/v2/edgedevice/uuid",
        &[("content-type", "text/plain")],
        &device.keys.envelope(b""),
    );
    assert_eq!(text.expect("an answer").status, 415);
    assert_eq!(site.status("nonsense", b""), 404);
}

#[test]
fn a_registration_that_is_not_in_order_is_refused() {
    let site = Site::start();
    let (cert, _) = site.controller.onboarding_material();
    site.controller.onboard(&cert, "GOOD, SOFT").expect("onboard");
    let keys = Keys::self_signed(site.dir.path(), "d");
    let sender = openssl(&["base64", "-A"], &site.onboarding.cert_pem());
    let send =
        |message: Vec<u8>| site.status("register", &[site.onboarding.envelope(&message), bytes(5, &sender)].concat());
    assert_eq!(send(site.register_message(&keys, "BAD")), 403, "serial");
    let soft = |serial: &str| [site.register_message(&keys, "BAD"), bytes(4, serial)].concat();
    assert_eq!(send(soft("soft serial")), 400, "characters of softSerial");
    assert_eq!(send(site.register_message(&keys, &"x".repeat(257))), 400, "length of serial");
    assert_eq!(send([bytes(2, b"short"), bytes(3, "GOOD")].concat()), 400, "pemCert");
    let issued = Keys::signed_by(site.dir.path(), "issued", &keys);
    assert_eq!(send(site.register_message(&issued, "GOOD")), 400, "not self-signed");
    let bare = site.onboarding.envelope(&site.register_message(&keys, "GOOD"));
    assert_eq!(site.status("register", &bare), 401, "no senderCert");
    assert_eq!(send(soft("SOFT")), 201, "soft serial");
}

#[test]
fn quirks_answer_as_the_reference_controller() {
    let site = Site::with(|options| {
        options.quirks = Quirks { reregister_500: true, hardwarehealth_200: true, config_404_first: true };
    });
    let device = site.join("S1");
    assert_eq!(site.status("register", &site.register_envelope(&device.keys, "S1")), 500);
    assert_eq!(device.config("", b"").status, 404);
    assert_eq!(device.status("hardwarehealth", b""), 200);
}

#[test]
fn what_was_accepted_survives_a_restart() {
    let site = Site::start();
    let device = site.join("S1");
    let token = device.attest_without_tpm();
    site.controller.set_config(device.uuid, DeviceConfig::quick()).expect("config");
    assert_eq!(device.status("info", &device.info_device(1)), 201);
    assert_eq!(device.status("newlogs", &device_log(&device, "kept")), 201);
    assert_eq!(device.status("metrics", &bytes(1, device.uuid.to_string())), 201);
    let (uuid, request) = (device.uuid, device.keys.envelope(&bytes(2, &token)));
    let before = site.controller.served_config(uuid).expect("config").expect("config");
    let Site { dir, controller, onboarding } = site;
    drop(controller);
    let controller = Controller::start(Options::loopback(dir.path().join("controller"))).expect("again");
    let site = Site { dir, controller, onboarding };
    assert_eq!(site.controller.devices(), [uuid]);
    assert_eq!(site.controller.served_config(uuid).expect("config").expect("config"), before);
    assert_eq!(site.status(&format!("id/{uuid}/config"), &request), 200, "token and configuration");
    assert_eq!(site.controller.info(uuid).expect("info").len(), 1);
    assert_eq!(site.controller.metrics(uuid).expect("metrics").len(), 1);
    assert_eq!(site.controller.device_logs(uuid).expect("logs").len(), 1);
    assert!(site.controller.requests().iter().any(|request| request.endpoint == Endpoint::Register));
}

#[test]
fn each_fault_spoils_an_answer_as_it_says() {
    let site = Site::start();
    let device = site.join("S1");
    let token = device.attest_without_tpm();
    site.controller.set_config(device.uuid, DeviceConfig::quick()).expect("config");
    let signing = site.signing_cert();
    let fault = |action: Action| site.controller.add_fault(Rule::new(Endpoint::Config, action).times(1)).expect("rule");
    let open = |answer: &Answer| open_answer(site.dir.path(), &answer.body, &signing);
    let first = device.config("", &token);

    fault(Action::Status { code: 503 });
    assert_eq!(device.config("", &token).status, 503);
    fault(Action::BadSignature);
    assert_eq!(open(&device.config("", &token)), Err("signature".into()));
    fault(Action::WrongSenderHash);
    assert_eq!(open(&device.config("", &token)), Err("sender hash".into()));
    let mut config = DeviceConfig::quick();
    config.device_name = "renamed".into();
    site.controller.set_config(device.uuid, config).expect("config");
    fault(Action::Replay);
    let replayed = device.config("", &token);
    assert_eq!(open(&replayed), open(&first), "the answer before the change, good signature and all");
    assert_ne!(open(&device.config("", &token)), open(&first));
    fault(Action::CutBefore);
    let request = [bytes(2, &token)].concat();
    assert!(device.ask("config", &request).is_err());
    fault(Action::CutAfter { bytes: 150 });
    assert!(device.ask("config", &request).is_err());
    fault(Action::Delay { ms: 300 });
    let start = std::time::Instant::now();
    assert_eq!(device.config("", &token).status, 200);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(site.controller.faults().iter().all(|fault| fault.used == 1));
    assert_eq!(site.controller.remove_faults(None), 7);
}

#[test]
fn a_rotated_signing_certificate_shows_in_config_and_certs() {
    let site = Site::start();
    let device = site.join("S1");
    let token = device.attest_without_tpm();
    site.controller.set_config(device.uuid, DeviceConfig::quick()).expect("config");
    let old = site.signing_cert();
    let hash = get(&site.open(&device.config("", &token)), 2);
    site.controller.rotate(Role::Signing).expect("rotated");
    let answer = device.config(std::str::from_utf8(&hash).expect("text"), &token);
    assert_eq!(answer.status, 200, "controllercert_confighash changed, so the configuration did");
    assert!(open_answer(site.dir.path(), &answer.body, &old).is_err());
    assert_ne!(site.signing_cert(), old);
    site.open(&answer);
    site.controller.rotate(Role::Tls).expect("rotated");
    assert_eq!(site.status("ping", b""), 200, "the new TLS leaf leads to the same root");
}

#[test]
fn a_revoked_token_or_a_removed_device_is_turned_away() {
    let site = Site::start();
    let device = site.join("S1");
    let token = device.attest_without_tpm();
    site.controller.set_config(device.uuid, DeviceConfig::quick()).expect("config");
    assert_eq!(device.config("", &token).status, 200);
    site.controller.revoke_token(device.uuid).expect("revoked");
    assert_eq!(device.config("", &token).status, 403);
    site.controller.remove_device(device.uuid).expect("removed");
    assert_eq!(device.config("", &token).status, 401);
    let other = Keys::self_signed(site.dir.path(), "other");
    assert_eq!(site.status("register", &site.register_envelope(&other, "S1")), 201, "the serial is free again");
}

#[test]
fn a_data_folder_serves_one_controller_at_a_time() {
    let site = Site::start();
    let again = || Controller::start(Options::loopback(site.controller.data_dir()));
    let error = again().err().expect("refused").to_string();
    assert!(error.contains("another controller"), "{error}");
}

#[test]
fn a_wait_that_ends_says_what_was_seen() {
    let site = Site::start();
    let error = site.controller.wait_device(Duration::from_millis(50)).expect_err("no device").to_string();
    assert!(error.contains("a device to register") && error.contains("none"), "{error}");
    let device = site.join("S1");
    assert_eq!(device.status("info", &device.info_device(1)), 201);
    let error = site
        .controller
        .wait_app_state(device.uuid, "web", "RUNNING", Duration::from_millis(50))
        .expect_err("no app")
        .to_string();
    assert!(error.contains("ZDEVICE_STATE_ONLINE") && error.contains("/info: 201"), "{error}");
}
