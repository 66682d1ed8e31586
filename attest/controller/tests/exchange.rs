//! The client against a scripted controller on loopback: what it sends, what it accepts, and what faults become.
//!
//! Seeing only that a call succeeded would be the wrong way to look: the scripts check the bytes of each request.

mod support;

use flate2::read::GzDecoder;
use holdfast_api::proto::attest::*;
use holdfast_api::proto::auth::AuthContainer;
use holdfast_api::proto::config::{ConfigRequest, ConfigResponse, EdgeDevConfig, UuiDandVersion};
use holdfast_api::proto::info::ZInfoMsg;
use holdfast_api::proto::register::ZRegisterMsg;
use holdfast_api::proto::uuid::UuidResponse;
use holdfast_controller_client::attestation::AttestError;
use holdfast_controller_client::freshness::refusal;
use holdfast_controller_client::identity::EscrowKey;
use holdfast_controller_client::onboarding::{Progress, Step};
use holdfast_controller_client::{
    Class, ConfigAnswer, ConfigStore, DeviceIdentity, Failure, ReceivedConfig, ReportQueue, Timing, attest, onboard,
};
use holdfast_model::net::{Tried, Uplink};
use holdfast_model::observed::AttestationState;
use prost::Message;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use support::{Answer, Device, Key, Pki, Request, Server, certs_reply, envelope};
use uuid::Uuid;

const UUID: &str = "11111111-2222-4333-8444-555555555555";

fn config_response(revision: &str, seconds: i64) -> Vec<u8> {
    let config = EdgeDevConfig {
        id: Some(UuiDandVersion { uuid: UUID.to_owned(), version: revision.to_owned() }),
        config_timestamp: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..EdgeDevConfig::default()
    };
    ConfigResponse { config: Some(config), config_hash: format!("hash of {revision}") }.encode_to_vec()
}

/// Times short enough for tests.
fn short() -> Timing {
    Timing { send: Duration::from_millis(400), dial: Duration::from_millis(400), ..Timing::default() }
}

/// Answers `/certs`, and `path` with what `answer` makes.
async fn server_for(
    pki: &Pki,
    signer: Arc<Key>,
    path: &'static str,
    mut answer: impl FnMut(&Request) -> Answer + Send + 'static,
) -> Server {
    Server::start(&pki.tls, move |request| match request.path.as_str() {
        "certs" => Answer::Reply(200, certs_reply(&signer)),
        other if other.ends_with(path) => answer(request),
        other => panic!("unexpected request {other}"),
    })
    .await
}

#[tokio::test]
async fn device_goes_from_nothing_to_a_config_and_keeps_it_without_a_network() {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let device = Arc::new(Device::new(false));
    let (key, known) = (Arc::clone(&signer), Arc::clone(&device));
    let server = Server::start(&pki.tls, move |request| {
        let reply = |payload: Vec<u8>| envelope(&payload, &key);
        if let Some(path) = request.path.strip_prefix(&format!("id/{UUID}/")) {
            assert!(!request.head.to_lowercase().contains("x-serial-number"), "the UUID is known by now");
            let payload = request.payload(&known.device);
            return match path {
                "attest" => {
                    let step = ZAttestReq::decode(payload.as_slice()).expect("attest");
                    let mut answer = ZAttestResponse::default();
                    match step.req_type() {
                        ZAttestReqType::AttestReqCert => {
                            assert_eq!(step.certs[0].r#type, 13);
                            assert_eq!(step.certs[0].cert_hash, support::sha256(&step.certs[0].cert)[..16]);
                            answer.resp_type = ZAttestRespType::AttestRespCert.into();
                        }
                        ZAttestReqType::AttestReqNonce => {
                            answer.resp_type = ZAttestRespType::AttestRespNonce.into();
                            answer.nonce = Some(ZAttestNonceResp { nonce: b"0123456789ab".to_vec() });
                        }
                        ZAttestReqType::AttestReqQuote => {
                            let quote = step.quote.expect("quote");
                            assert!(quote.pcr_values.is_empty() && quote.signature.is_empty(), "no TPM, no PCR values");
                            assert_eq!(quote.versions[0].version, "1.0");
                            answer.resp_type = ZAttestRespType::AttestRespQuoteResp.into();
                            answer.quote_resp = Some(ZAttestQuoteResp {
                                response: ZAttestResponseCode::Success.into(),
                                integrity_token: b"token".to_vec(),
                                ..ZAttestQuoteResp::default()
                            });
                        }
                        other => panic!("a device without a TPM has no keys to store: {other:?}"),
                    }
                    Answer::Reply(201, reply(answer.encode_to_vec()))
                }
                "config" => {
                    let wanted = ConfigRequest::decode(payload.as_slice()).expect("config request");
                    match (wanted.integrity_token.as_slice(), wanted.config_hash.as_str()) {
                        (b"token", "hash of 1") => Answer::Reply(304, Vec::new()),
                        (b"token", _) => Answer::Reply(200, reply(config_response("1", 100))),
                        _ => Answer::Reply(403, Vec::new()),
                    }
                }
                other => panic!("unexpected request {other}"),
            };
        }
        assert!(request.head.to_lowercase().contains("x-serial-number: serial-1"), "{}", request.head);
        assert!(request.head.to_lowercase().contains("x-request-id: "));
        match request.path.as_str() {
            "certs" => {
                assert_eq!((request.method.as_str(), request.body.len()), ("GET", 0));
                Answer::Reply(200, certs_reply(&key))
            }
            "register" => {
                let message = ZRegisterMsg::decode(request.payload(&known.onboarding).as_slice()).expect("register");
                assert_eq!((message.serial.as_str(), message.soft_serial.as_str()), ("serial-1", "soft_1"));
                let sender = AuthContainer::decode(request.body.as_slice()).expect("envelope").sender_cert;
                use base64::{Engine, engine::general_purpose::STANDARD};
                assert_eq!(STANDARD.decode(sender).expect("base64"), known.onboarding.pem.as_bytes());
                assert_eq!(STANDARD.decode(message.pem_cert).expect("base64"), known.device.pem.as_bytes());
                // What the reference controller says to a device it knows already.
                Answer::Reply(500, Vec::new())
            }
            "uuid" => {
                request.payload(&known.device);
                let answer =
                    UuidResponse { uuid: UUID.to_owned(), manufacturer: "maker".to_owned(), ..UuidResponse::default() };
                Answer::Reply(200, reply(answer.encode_to_vec()))
            }
            other => panic!("unexpected request {other}"),
        }
    })
    .await;
    let client = server.client(&pki.root_pem);
    let mut seen = Vec::new();

    let onboarded = onboard(&client, &*device, |progress| {
        seen.push(match progress {
            Progress::Did(step) => (step, true),
            Progress::Failed { step, .. } => (step, false),
        });
    })
    .await;
    assert_eq!((onboarded.uuid.to_string().as_str(), onboarded.manufacturer.as_str()), (UUID, "maker"));
    assert_eq!(seen, [(Step::Certificates, true), (Step::Register, false), (Step::Uuid, true)]);

    let answer = client.poll_config(&*device, "", b"").await.expect("answer");
    assert!(matches!(answer, ConfigAnswer::TokenRefused), "{answer:?}");
    let mut states = Vec::new();
    let attested = attest(&client, &*device, |state| states.push(state)).await.expect("attested");
    assert_eq!(attested.token, b"token");
    assert_eq!(states.last(), Some(&AttestationState::Complete));
    let ConfigAnswer::New(config) = client.poll_config(&*device, "", &attested.token).await.expect("answer") else {
        panic!("no config")
    };
    let answer = client.poll_config(&*device, config.hash(), &attested.token).await.expect("answer");
    assert!(matches!(answer, ConfigAnswer::Unchanged), "{answer:?}");

    let dir = tempfile::tempdir().expect("directory");
    let store = ConfigStore::open(dir.path()).expect("store");
    store.save_config(&config).expect("save");
    store.save_certificates(&config.certificates).expect("save");
    let traffic = client.traffic();
    assert!(traffic.successes >= 6 && traffic.failures == 2, "{traffic:?}");
    drop(server);

    let kept = store.load_config(client.roots(), false).expect("load").expect("config");
    assert_eq!((kept.hash(), kept.response.config.clone()), ("hash of 1", config.response.config.clone()));
    assert!(store.load_certificates(client.roots()).expect("load").is_some());
    let foreign = holdfast_api::certs::Roots::from_pem(Pki::new().root_pem.as_bytes()).expect("roots");
    assert!(store.load_config(&foreign, false).is_err(), "a config of another site is not used");
}

#[tokio::test]
async fn device_with_a_tpm_sends_quote_event_log_and_keys() {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let device = Arc::new(Device::new(true));
    let (key, known) = (Arc::clone(&signer), Arc::clone(&device));
    let server = server_for(&pki, Arc::clone(&signer), "/attest", move |request| {
        let step = ZAttestReq::decode(request.payload(&known.device).as_slice()).expect("attest");
        let mut answer = ZAttestResponse::default();
        match step.req_type() {
            ZAttestReqType::AttestReqCert => {
                assert_eq!(step.certs[0].meta_data_items[0].meta_data, [9, 9]);
                answer.resp_type = ZAttestRespType::AttestRespCert.into();
            }
            ZAttestReqType::AttestReqNonce => answer.nonce = Some(ZAttestNonceResp { nonce: vec![5; 16] }),
            ZAttestReqType::AttestReqQuote => {
                let quote = step.quote.expect("quote");
                assert_eq!(
                    (quote.attest_data.as_slice(), quote.signature.as_slice()),
                    ([5; 16].as_slice(), [0x30, 0].as_slice())
                );
                assert_eq!(quote.pcr_values.len(), 16);
                assert_eq!(quote.pcr_values[3].value, [3; 32]);
                let mut log = Vec::new();
                GzDecoder::new(quote.tpm_binary_event_log.as_slice()).read_to_end(&mut log).expect("gzip");
                assert_eq!(log, [1; 1000]);
                answer.quote_resp = Some(ZAttestQuoteResp {
                    response: ZAttestResponseCode::Success.into(),
                    integrity_token: vec![8],
                    keys: vec![AttestVolumeKey { key: vec![1], ..AttestVolumeKey::default() }],
                });
            }
            ZAttestReqType::StoreKeys => {
                let keys = step.storage_keys.expect("keys");
                assert_eq!(
                    (keys.integrity_token.as_slice(), keys.keys[0].key.as_slice()),
                    ([8].as_slice(), [4, 2].as_slice())
                );
                let stored = AttestStorageKeysResp { response: AttestStorageKeysResponseCode::Success.into() };
                answer.storage_keys_resp = Some(stored);
            }
            ZAttestReqType::AttestReqNone => panic!("no type"),
        }
        Answer::Reply(201, envelope(&answer.encode_to_vec(), &key))
    })
    .await;
    let client = server.client(&pki.root_pem);
    client.set_uuid(Uuid::try_parse(UUID).expect("UUID"));
    let attested = attest(&client, &*device, |_| {}).await.expect("attested");
    assert_eq!((attested.escrowed, attested.escrow_error), (vec![EscrowKey(vec![1])], None));
    assert_eq!(server.paths().iter().filter(|path| path.ends_with("attest")).count(), 4);
}

#[tokio::test]
async fn refused_certificates_are_told_apart_from_a_controller_that_is_away() {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let device = Device::new(false);
    for (status, refused) in [(403, true), (503, false)] {
        let server = server_for(&pki, Arc::clone(&signer), "/attest", move |_| Answer::Reply(status, Vec::new())).await;
        let error = attest(&server.client(&pki.root_pem), &device, |_| {}).await.expect_err("refused");
        assert_eq!(matches!(error, AttestError::CertificatesRefused(_)), refused, "{status}: {error}");
    }
}

#[tokio::test]
async fn config_answers_become_what_the_table_of_the_api_says() {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let device = Device::new(false);
    let other = pki.signing_key("other");
    let good = envelope(&config_response("1", 1), &signer);
    let mut changed = AuthContainer::decode(good.as_slice()).expect("envelope");
    changed.protected_payload.as_mut().expect("payload").payload[3] ^= 1;
    let large = vec![0; holdfast_controller_client::timing::limits::CONFIG + 1];
    type Make = Box<dyn Fn() -> Answer + Send>;
    let answers: Vec<(&str, Make, &str)> = vec![
        ("200", Box::new(move || Answer::Reply(200, good.clone())), "New"),
        ("304", Box::new(|| Answer::Reply(304, Vec::new())), "Unchanged"),
        ("400", Box::new(|| Answer::Reply(400, Vec::new())), "DeviceUnknown"),
        ("404", Box::new(|| Answer::Reply(404, Vec::new())), "DeviceUnknown"),
        ("403", Box::new(|| Answer::Reply(403, Vec::new())), "TokenRefused"),
        ("401", Box::new(|| Answer::Reply(401, Vec::new())), "Err Unauthorized"),
        ("429", Box::new(|| Answer::Reply(429, Vec::new())), "Err TooMany"),
        ("500", Box::new(|| Answer::Reply(500, b"out of order".to_vec())), "Err ServerError"),
        ("503", Box::new(|| Answer::Reply(503, Vec::new())), "Err Temporary"),
        ("changed payload", Box::new(move || Answer::Reply(200, changed.encode_to_vec())), "Err BadAnswer"),
        (
            "unknown signer",
            Box::new(move || Answer::Reply(200, envelope(&config_response("1", 1), &other))),
            "Err BadAnswer",
        ),
        ("bare payload", Box::new(|| Answer::Reply(200, config_response("1", 1))), "Err BadAnswer"),
        ("too large", Box::new(move || Answer::Reply(200, large.clone())), "Err BadAnswer"),
        ("cut body", Box::new(|| Answer::CutBody(vec![0; 1000])), "Err NoContact"),
        ("cut", Box::new(|| Answer::Cut), "Err NoContact"),
        ("hang", Box::new(|| Answer::Hang), "Err NoContact"),
    ];
    for (what, answer, expected) in answers {
        let server = server_for(&pki, Arc::clone(&signer), "/config", move |_| answer()).await;
        let client = server.client(&pki.root_pem);
        client.fetch_certificates().await.expect("certificates");
        if what == "hang" {
            client.set_timing(short());
        }
        let found = match client.poll_config(&device, "", b"token").await {
            Ok(ConfigAnswer::New(_)) => "New".to_owned(),
            Ok(ConfigAnswer::Unchanged) => "Unchanged".to_owned(),
            Ok(ConfigAnswer::DeviceUnknown) => "DeviceUnknown".to_owned(),
            Ok(ConfigAnswer::TokenRefused) => "TokenRefused".to_owned(),
            Err(failure) => {
                assert!(failure.to_string().contains("config"), "{what}: the message names the request: {failure}");
                format!("Err {:?}", failure.class())
            }
        };
        assert_eq!(found, expected, "{what}");
    }
}

#[tokio::test]
async fn rotated_signing_certificate_is_fetched_and_the_reply_accepted() {
    let pki = Pki::new();
    let old = pki.signing_key("old");
    let new = pki.signing_key("new");
    let fetches = AtomicUsize::new(0);
    let server = Server::start(&pki.tls, move |request| match request.path.as_str() {
        "certs" => {
            let signer = if fetches.fetch_add(1, Ordering::Relaxed) == 0 { &old } else { &new };
            Answer::Reply(200, certs_reply(signer))
        }
        _ => Answer::Reply(200, envelope(&config_response("1", 1), &new)),
    })
    .await;
    let client = server.client(&pki.root_pem);
    client.fetch_certificates().await.expect("certificates");
    let answer = client.poll_config(&Device::new(false), "", b"token").await.expect("answer");
    let ConfigAnswer::New(config) = answer else { panic!("{answer:?}") };
    // What verified it is kept with it, so that it verifies after a reboot too.
    let dir = tempfile::tempdir().expect("directory");
    let store = ConfigStore::open(dir.path()).expect("store");
    store.save_config(&config).expect("save");
    assert!(store.load_config(client.roots(), false).expect("load").is_some());
}

#[tokio::test]
async fn replayed_older_config_is_recognised() {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let key = Arc::clone(&signer);
    let mut seconds = vec![100, 200];
    let server = server_for(&pki, signer, "/config", move |_| {
        let at = seconds.pop().expect("two polls");
        Answer::Reply(200, envelope(&config_response(&at.to_string(), at), &key))
    })
    .await;
    let client = server.client(&pki.root_pem);
    let device = Device::new(false);
    let poll = async || match client.poll_config(&device, "", b"token").await.expect("answer") {
        ConfigAnswer::New(config) => config,
        other => panic!("{other:?}"),
    };
    let (newer, older) = (poll().await, poll().await);
    let refused = |config: &ReceivedConfig, applied: &ReceivedConfig| refusal(config, Some(applied.timestamp()), None);
    assert!(refused(&older, &newer).is_some());
    assert_eq!((refused(&newer, &older), refused(&newer, &newer)), (None, None));
}

#[tokio::test]
async fn server_that_is_not_the_sites_is_refused() {
    let pki = Pki::new();
    let foreign = Pki::new();
    let server = Server::start(&foreign.tls, |_| Answer::Reply(200, Vec::new())).await;
    let failure = server.client(&pki.root_pem).ping().await.expect_err("foreign root");
    assert_eq!(failure.class(), Class::NoContact);
    assert!(failure.to_string().contains("TLS"), "{failure}");

    let server = Server::start(&pki.tls, |_| Answer::Reply(200, Vec::new())).await;
    let mut config = server.config(&pki.root_pem);
    config.server = format!("other.test:{}", server.port);
    let failure =
        holdfast_controller_client::Client::new(config).expect("client").ping().await.expect_err("other name");
    assert!(failure.to_string().contains("TLS"), "{failure}");
    assert!(server.paths().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn server_certificate_that_is_itself_a_root_is_trusted() {
    let server_key = Key::self_signed("controller.test");
    let server = Server::start(&server_key, |_| Answer::Reply(200, Vec::new())).await;
    server.client(&server_key.pem).ping().await.expect("pinned");
    assert!(server.client(&Key::self_signed("controller.test").pem).ping().await.is_err());
}

#[tokio::test]
async fn controller_that_refuses_connections_is_away_for_a_while() {
    let pki = Pki::new();
    let server = Server::start(&pki.tls, |_| Answer::Reply(200, Vec::new())).await;
    let client = server.client(&pki.root_pem);
    client.ping().await.expect("ping");
    drop(server);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(client.ping().await.expect_err("gone").class(), Class::Temporary);
}

#[tokio::test]
async fn next_uplink_is_tried_when_the_first_leads_nowhere() {
    let pki = Pki::new();
    let server = Server::start(&pki.tls, |_| Answer::Reply(200, Vec::new())).await;
    let client = server.client(&pki.root_pem);
    // 192.0.2.0/24 is for documentation: no machine has such an address.
    let uplink = |adapter: &str, source: &str| Uplink {
        adapter: adapter.to_owned(),
        source: Some(source.parse().expect("address")),
        interface: None,
    };
    let nowhere = uplink("wan", "192.0.2.77");
    client.set_uplinks(vec![nowhere.clone()]);
    assert_eq!(client.ping().await.expect_err("nowhere").class(), Class::NoContact);
    let tried = client.take_tried();
    let [Tried { adapter, result: Err(text) }] = tried.as_slice() else { panic!("{tried:?}") };
    assert!(adapter == "wan" && text.contains("assign"), "{adapter}: {text}");
    client.set_uplinks(vec![nowhere, uplink("lan", "127.0.0.1")]);
    client.ping().await.expect("second uplink");
    let tried: Vec<_> = client.take_tried().into_iter().map(|tried| (tried.adapter, tried.result.is_ok())).collect();
    assert_eq!(tried, [("lan".to_owned(), true), ("wan".to_owned(), false)]);
    assert_eq!(client.take_tried(), []);
}

#[tokio::test]
async fn clock_is_never_believed_to_be_before_its_floor() {
    // The certificates end in the year 4096; a floor beyond it must make them count as expired, which shows that TLS
    // uses the floor.
    let pki = Pki::new();
    let server = Server::start(&pki.tls, |_| Answer::Reply(200, Vec::new())).await;
    let mut config = server.config(&pki.root_pem);
    config.clock_floor = SystemTime::now() + Duration::from_secs(4000 * 365 * 86_400);
    let failure = holdfast_controller_client::Client::new(config).expect("client").ping().await.expect_err("expired");
    assert!(failure.to_string().contains("TLS"), "{failure}");
}

fn info(state: u32) -> (holdfast_api::info::InfoKey, ZInfoMsg) {
    use holdfast_api::info::{InfoKey, InfoKind};
    use holdfast_api::proto::info::{ZInfoDevice, z_info_msg::InfoContent};
    let device = ZInfoDevice { ncpu: state, ..ZInfoDevice::default() };
    let message = ZInfoMsg { info_content: Some(InfoContent::Dinfo(device)), ..ZInfoMsg::default() };
    (InfoKey { kind: InfoKind::Device, id: String::new() }, message)
}

/// Runs the report queue until `done` or five seconds have passed; returns statuses and states that arrived.
async fn report(statuses: Vec<u16>) -> (Vec<u32>, Vec<bool>) {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let device = Device::new(false);
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let (kept, mut left) = (Arc::clone(&arrived), statuses.clone().into_iter());
    let server = server_for(&pki, signer, "/info", move |request| {
        let payload = AuthContainer::decode(request.body.as_slice())
            .expect("envelope")
            .protected_payload
            .expect("payload")
            .payload;
        let message = ZInfoMsg::decode(payload.as_slice()).expect("info");
        let Some(holdfast_api::proto::info::z_info_msg::InfoContent::Dinfo(device)) = message.info_content else {
            panic!("no device")
        };
        kept.lock().expect("lock").push(device.ncpu);
        Answer::Reply(left.next().unwrap_or(201), Vec::new())
    })
    .await;
    let client = server.client(&pki.root_pem);
    let queue = ReportQueue::new();
    let (key, message) = info(1);
    queue.info(key, message);
    let mut dropped = Vec::new();
    let identity: &dyn DeviceIdentity = &device;
    {
        let run = queue.run(&client, identity, |refusal| dropped.push(refusal.dropped));
        let done = async {
            while queue.info_waiting() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            never = run => match never {},
            () = done => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("still waiting"),
        }
    }
    let arrived = arrived.lock().expect("lock").clone();
    (arrived, dropped)
}

#[tokio::test]
async fn info_is_sent_again_after_a_server_error() {
    assert_eq!(report(vec![500, 201]).await, (vec![1, 1], vec![false]));
}

#[tokio::test]
async fn info_is_dropped_on_rejection() {
    assert_eq!(report(vec![400]).await, (vec![1], vec![true]));
}

#[tokio::test]
async fn config_store_falls_back_to_the_backup() {
    let pki = Pki::new();
    let signer = Arc::new(pki.signing_key("signing"));
    let key = Arc::clone(&signer);
    let mut revision = 0;
    let server = server_for(&pki, signer, "/config", move |_| {
        revision += 1;
        Answer::Reply(200, envelope(&config_response(&revision.to_string(), revision), &key))
    })
    .await;
    let client = server.client(&pki.root_pem);
    let device = Device::new(false);
    let poll = async || match client.poll_config(&device, "", b"token").await.expect("answer") {
        ConfigAnswer::New(config) => config,
        other => panic!("{other:?}"),
    };
    let (first, second) = (poll().await, poll().await);
    let dir = tempfile::tempdir().expect("directory");
    let store = ConfigStore::open(dir.path()).expect("store");
    let hash = |after_crash| store.load_config(client.roots(), after_crash).map(|c| c.map(|c| c.hash().to_owned()));
    let age = Duration::from_secs(600);

    assert_eq!(hash(false).expect("load"), None);
    store.save_config(&first).expect("save");
    assert_eq!(hash(true).expect("load").as_deref(), Some("hash of 1"), "no backup yet: the last config");
    assert!(!store.back_up(Duration::from_secs(599), age).expect("too young"));
    assert!(store.back_up(age, age).expect("old enough"));
    assert!(!store.back_up(age, age).expect("the same"));
    store.save_config(&second).expect("save");
    assert_eq!(hash(false).expect("load").as_deref(), Some("hash of 2"));
    assert_eq!(hash(true).expect("load").as_deref(), Some("hash of 1"), "after a crash: the backup");

    let path = dir.path().join("lastconfig");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).expect("write");
    assert_eq!(hash(false).expect("load").as_deref(), Some("hash of 1"), "damaged: the backup");
    std::fs::write(dir.path().join("lastconfig.bak"), b"").expect("write");
    let error = hash(false).expect_err("both damaged").to_string();
    assert!(error.contains("lastconfig"), "{error}");
}

#[tokio::test]
async fn failure_text_says_what_was_asked_and_what_came() {
    let pki = Pki::new();
    let server = Server::start(&pki.tls, |_| Answer::Reply(502, b"bad gateway".to_vec())).await;
    let failure = server.client(&pki.root_pem).ping().await.expect_err("502");
    assert_eq!(failure.to_string(), "ping: expected success, the controller answered 502: \"bad gateway\"");
    assert!(matches!(failure, Failure::Status { status: 502, .. }));
}
