//! The client against the controller of `qemu-tests`, which was written from the same specification by another hand
//! and shares nothing with the client but the message types.
//!
//! A test of the client against its own reading of the wire would pass with any mistake made twice; this one does not.

mod support;

use holdfast_api::cipher::Keys;
use holdfast_api::config::to_desired;
use holdfast_api::newlog::{Line, Origin, Stamp};
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_api::{info, metrics};
use holdfast_controller_client::freshness::{Refusal, refusal};
use holdfast_controller_client::{
    Class, Client, ClientConfig, ConfigAnswer, ReceivedConfig, ReportQueue, attest, onboard,
};
use holdfast_model::gauges::Gauges;
use holdfast_model::observed::{AppState, AppStatus, DeviceState, Observed};
use holdfast_test_controller::config::{App, Datastore, DatastoreKind, Image, ImageFormat, NetworkInstance};
use holdfast_test_controller::pki::Role;
use holdfast_test_controller::{Action, Controller, DeviceConfig, Endpoint, Options, Rule};
use std::time::{Duration, SystemTime};
use support::{Device, Key};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(10);

/// A controller, a device that it may take, and a client between them.
struct Bench {
    controller: Controller,
    device: Device,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let controller = Controller::start(Options::loopback(dir.path())).expect("controller");
        let (certificate, key) = controller.onboarding_material();
        controller.onboard(&certificate, "*").expect("onboarding certificate");
        let device = Device { onboarding: Key::from_pem(&certificate, &key), ..Device::new(false) };
        let client = Client::new(ClientConfig {
            server: format!("controller.test:{}", controller.device_addr().port()),
            address: Some(controller.device_addr().ip()),
            roots_pem: controller.root_pem().into_bytes(),
            clock_floor: SystemTime::UNIX_EPOCH,
            serial: "serial-1".to_owned(),
            soft_serial: "soft_1".to_owned(),
        })
        .expect("client");
        Self { controller, device, client, _dir: dir }
    }

    /// Onboarded and attested: UUID and token.
    async fn joined(&self) -> (Uuid, Vec<u8>) {
        let onboarded = onboard(&self.client, &self.device, |_| {}).await;
        let attested = attest(&self.client, &self.device, |_| {}).await.expect("attested");
        (onboarded.uuid, attested.token)
    }

    async fn config(&self, token: &[u8]) -> ReceivedConfig {
        match self.client.poll_config(&self.device, "", token).await.expect("answer") {
            ConfigAnswer::New(config) => *config,
            other => panic!("{other:?}"),
        }
    }
}

/// A config with secrets for an app behind a port map.
fn demo() -> DeviceConfig {
    let mut config = DeviceConfig::quick();
    config.datastores = vec![Datastore {
        name: "registry".into(),
        kind: DatastoreKind::Registry,
        address: "registry.test:5000".into(),
        path: String::new(),
        user: "user".into(),
        password: "secret".into(),
        encrypt: true,
        ca_pem: Vec::new(),
    }];
    config.images = vec![Image {
        name: "web".into(),
        datastore: "registry".into(),
        url: "web:1".into(),
        format: ImageFormat::Container,
        sha256: String::new(),
        max_size_bytes: 0,
        generation: 0,
    }];
    config.network_instances = vec![NetworkInstance::local("net", "eth0", "10.11.12.0/24")];
    let mut app = App::container("web", "web", "net", &[(8080, 80)]);
    app.env = [("GREETING".to_owned(), "hello".to_owned())].into();
    app.encrypt = true;
    config.apps = vec![app];
    config
}

#[tokio::test]
async fn device_joins_reads_its_secrets_and_reports() {
    let bench = Bench::new();
    let (uuid, token) = bench.joined().await;
    assert_eq!(bench.controller.devices(), [uuid]);
    let answer = bench.client.poll_config(&bench.device, "", &token).await.expect("answer");
    assert!(matches!(answer, ConfigAnswer::DeviceUnknown), "no config set yet: {answer:?}");

    bench.controller.set_config(uuid, demo()).expect("config");
    let config = bench.config(&token).await;
    let keys = Keys { certificates: &config.certificates, agreement: &bench.device.ecdh };
    let desired = to_desired(config.response.config.as_ref().expect("config"), Some(keys));
    assert!(desired.faults.is_empty(), "{:#?}", desired.faults);
    assert_eq!(desired.device, uuid);
    assert_eq!((desired.datastores[0].user.as_str(), desired.datastores[0].password.as_str()), ("user", "secret"));
    assert!(desired.apps[0].user_data.contains("GREETING=hello"), "{:?}", desired.apps[0].user_data);
    assert_eq!(desired.properties.config_interval_seconds, 5);

    let answer = bench.client.poll_config(&bench.device, config.hash(), &token).await.expect("answer");
    assert!(matches!(answer, ConfigAnswer::Unchanged), "{answer:?}");
    bench.controller.wait_config_accepted(uuid, LIMIT).expect("accepted");

    let mut observed = Observed::default();
    observed.device.id = uuid;
    observed.device.state = DeviceState::Online;
    let app = &desired.apps[0];
    observed.apps.push(AppStatus {
        id: app.id,
        name: app.name.clone(),
        state: AppState::Running,
        ..AppStatus::default()
    });
    let now = SystemTime::now();
    let reports = ReportQueue::new();
    let mut timing = bench.client.timing();
    timing.fast_logs = true;
    bench.client.set_timing(timing);
    reports.info_all(info::messages(
        &observed,
        info::Context { now, properties: Some(&desired.properties), gauges: None },
    ));
    reports.metrics(metrics::message(
        &observed,
        &Gauges::default(),
        &metrics::Context { now: Some(now), ..Default::default() },
    ));
    let stamp = Stamp { seconds: 1_800_000_000, nanos: 5 };
    let line =
        |content: &str| Line { content: content.into(), severity: "info".into(), timestamp: stamp, ..Line::default() };
    let origin = Origin::Device { device: uuid.to_string(), image: "IMGA".into(), version: "1.0".into() };
    reports.logs(&origin, &[line("device speaks")]);
    reports.logs(&Origin::App { id: app.id.to_string(), name: app.name.clone() }, &[line("app speaks")]);

    let done = async {
        while reports.info_waiting() + reports.logs_waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        never = reports.run(&bench.client, &bench.device, |refusal| panic!("{refusal:?}")) => match never {},
        () = done => {}
        () = tokio::time::sleep(LIMIT) => panic!("reports are still waiting"),
    }
    let running = |message: &holdfast_api::proto::info::ZInfoMsg| matches!(&message.info_content, Some(InfoContent::Ainfo(app)) if app.state == 7);
    bench.controller.wait_info(uuid, "the app to run", LIMIT, running).expect("info");
    bench.controller.wait_app_log(uuid, "web", "app speaks", LIMIT).expect("app log");
    let logs = bench.controller.device_logs(uuid).expect("logs");
    assert!(logs.iter().any(|record| record.line.content == "device speaks"), "{logs:?}");
    assert_eq!(bench.controller.metrics(uuid).expect("metrics").len(), 1);
}

#[tokio::test]
async fn faults_of_the_controller_are_survived() {
    let bench = Bench::new();
    let (uuid, token) = bench.joined().await;
    bench.controller.set_config(uuid, DeviceConfig::quick()).expect("config");
    for (action, class) in [
        (Action::Status { code: 503 }, Class::Temporary),
        (Action::Status { code: 500 }, Class::ServerError),
        (Action::Status { code: 429 }, Class::TooMany),
        (Action::BadSignature, Class::BadAnswer),
        (Action::WrongSenderHash, Class::BadAnswer),
        (Action::CutBefore, Class::NoContact),
        (Action::CutAfter { bytes: 40 }, Class::NoContact),
    ] {
        bench.controller.add_fault(Rule::new(Endpoint::Config, action).times(1)).expect("fault");
        let failure = bench.client.poll_config(&bench.device, "", &token).await.expect_err("fault");
        assert_eq!(failure.class(), class, "{action:?}: {failure}");
        bench.config(&token).await;
    }
}

#[tokio::test]
async fn replayed_config_is_older_than_the_one_in_force() {
    let bench = Bench::new();
    let (uuid, token) = bench.joined().await;
    bench.controller.set_config(uuid, DeviceConfig::quick()).expect("config");
    bench.config(&token).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bench.controller.set_config(uuid, DeviceConfig { maintenance: true, ..DeviceConfig::quick() }).expect("config");
    // The newest config first, then the one before it again.
    bench.controller.add_fault(Rule::new(Endpoint::Config, Action::Replay).times(1)).expect("fault");
    let replayed = bench.config(&token).await;
    let newest = bench.config(&token).await;
    assert!(newest.response.config.as_ref().expect("config").maintenance_mode);
    let refused = refusal(&replayed, Some(newest.timestamp()), Some(uuid));
    assert!(matches!(refused, Some(Refusal::Older { .. })), "{refused:?}");
    let other = refusal(&newest, None, Some(uuid::Uuid::from_u128(7)));
    assert!(matches!(other, Some(Refusal::OtherDevice { .. })), "{other:?}");
}

#[tokio::test]
async fn rotation_of_every_certificate_is_followed() {
    let bench = Bench::new();
    let (uuid, token) = bench.joined().await;
    bench.controller.set_config(uuid, demo()).expect("config");
    bench.config(&token).await;
    for role in [Role::Signing, Role::Tls, Role::Ecdh] {
        bench.controller.rotate(role).expect("rotation");
        let config = bench.config(&token).await;
        let wire = config.response.config.as_ref().expect("config");
        // A new certificate of object encryption is known by the time the config that needs it is handed out.
        let keys = Keys { certificates: &config.certificates, agreement: &bench.device.ecdh };
        let desired = to_desired(wire, Some(keys));
        assert!(desired.faults.is_empty(), "{role:?}: {:#?}", desired.faults);
        assert_eq!(desired.datastores[0].password, "secret", "{role:?}");
    }
}

#[tokio::test]
async fn token_that_was_taken_away_makes_the_device_attest_again() {
    let bench = Bench::new();
    let (uuid, token) = bench.joined().await;
    bench.controller.set_config(uuid, DeviceConfig::quick()).expect("config");
    bench.controller.revoke_token(uuid).expect("revoke");
    let answer = bench.client.poll_config(&bench.device, "", &token).await.expect("answer");
    assert!(matches!(answer, ConfigAnswer::TokenRefused), "{answer:?}");
    let attested = attest(&bench.client, &bench.device, |_| {}).await.expect("attested");
    bench.config(&attested.token).await;
}

#[tokio::test]
async fn device_that_lost_power_between_register_and_uuid_heals() {
    let bench = Bench::new();
    bench.client.fetch_certificates().await.expect("certificates");
    bench.client.register(&bench.device).await.expect("registered");
    let uuid = onboard(&bench.client, &bench.device, |_| {}).await.uuid;
    assert_eq!(bench.controller.devices(), [uuid]);
}
