//! What each endpoint of the device API does with an opened request. Synchronous, one request at a time: the rules of
//! `eve-wire` part 1 and nothing of HTTP but the status.

use crate::attest;
use crate::envelope::Sealed;
use crate::faults::Endpoint;
use crate::logs::{self, Kind, LogError};
use crate::records::DeviceRecord;
use crate::state::{MAX_APP_LOGS, MAX_INFO_OBJECTS, State, StateError, now_ms};
use crate::x509::Cert;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::proto::attest::ZAttestReq;
use holdfast_api::proto::config::ConfigRequest;
use holdfast_api::proto::flowlog::FlowMessage;
use holdfast_api::proto::hardwarehealth::ZHardwareHealth;
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_api::proto::info::{ZInfoMsg, ZInfoTypes};
use holdfast_api::proto::metrics::ZMetricMsg;
use holdfast_api::proto::register::ZRegisterMsg;
use holdfast_api::proto::uuid::{UuidRequest, UuidResponse};
use prost::Message;
use uuid::Uuid;

/// Where the reference controller answers otherwise than the specification, and a device must cope with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks {
    /// 500 when the same device certificate registers again, instead of 200.
    pub reregister_500: bool,
    /// 200 for hardware health, instead of 201.
    pub hardwarehealth_200: bool,
    /// 404 while no configuration is set even if the token is wrong, instead of 403.
    pub config_404_first: bool,
}

/// What goes back.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Goes into an envelope; `None`: empty body.
    pub payload: Option<Vec<u8>>,
    /// For the request log.
    pub note: String,
}

impl Answer {
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, payload: None, note: String::new() }
    }

    fn with(status: u16, payload: Vec<u8>) -> Self {
        Self { status, payload: Some(payload), note: String::new() }
    }

    pub(crate) fn refuse(status: u16, note: impl ToString) -> Self {
        Self { status, payload: None, note: note.to_string() }
    }
}

/// A request with its path taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What for.
    pub endpoint: Endpoint,
    /// UUID in the path.
    pub device: Option<Uuid>,
    /// App in the path.
    pub app: Option<Uuid>,
}

impl Route {
    /// Takes the path of a request apart; anything unknown is [`Endpoint::Other`].
    pub fn parse(path: &str) -> Self {
        let other = Self { endpoint: Endpoint::Other, device: None, app: None };
        let Some(rest) = path.strip_prefix("/api/v2/edgedevice/") else {
            return other;
        };
        let plain = |endpoint| Self { endpoint, device: None, app: None };
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            ["ping"] => plain(Endpoint::Ping),
            ["certs"] => plain(Endpoint::Certs),
            ["register"] => plain(Endpoint::Register),
            ["uuid"] => plain(Endpoint::Uuid),
            ["config"] => plain(Endpoint::Config),
            ["id", uuid, rest @ ..] => {
                let Ok(uuid) = Uuid::try_parse(uuid) else {
                    return other;
                };
                let of = |endpoint, app| Self { endpoint, device: Some(uuid), app };
                match rest {
                    ["attest"] => of(Endpoint::Attest, None),
                    ["config"] => of(Endpoint::Config, None),
                    ["info"] => of(Endpoint::Info, None),
                    ["metrics"] => of(Endpoint::Metrics, None),
                    ["newlogs"] => of(Endpoint::Newlogs, None),
                    ["flowlog"] => of(Endpoint::Flowlog, None),
                    ["hardwarehealth"] => of(Endpoint::Hardwarehealth, None),
                    ["apps", "instanceid", app, "newlogs"] => match Uuid::try_parse(app) {
                        Ok(app) => of(Endpoint::AppNewlogs, Some(app)),
                        Err(_) => other,
                    },
                    _ => other,
                }
            }
            _ => other,
        }
    }

    /// True if the endpoint is asked with this method.
    pub fn allows(&self, method: &str) -> bool {
        match self.endpoint {
            Endpoint::Ping => method == "GET",
            Endpoint::Certs => matches!(method, "GET" | "POST"),
            _ => method == "POST",
        }
    }
}

/// Answers one request.
pub fn answer(state: &mut State, quirks: Quirks, route: Route, body: &[u8]) -> Answer {
    match try_answer(state, quirks, route, body) {
        Ok(answer) | Err(Failure::Refused(answer)) => answer,
        Err(Failure::Own(error)) => Answer::refuse(500, error),
    }
}

enum Failure {
    Refused(Answer),
    Own(StateError),
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::Own(error)
    }
}

fn refused(status: u16, note: impl ToString) -> Failure {
    Failure::Refused(Answer::refuse(status, note))
}

fn try_answer(state: &mut State, quirks: Quirks, route: Route, body: &[u8]) -> Result<Answer, Failure> {
    match route.endpoint {
        Endpoint::Ping => return Ok(Answer::empty(200)),
        Endpoint::Certs => return Ok(Answer::with(200, state.pki.zcerts().encode_to_vec())),
        Endpoint::Register => return register(state, quirks, body),
        _ => {}
    }
    let sealed = Sealed::parse(body).map_err(|error| refused(401, error))?;
    let uuid = *state.by_cert.get(&sealed.sender).ok_or_else(|| {
        refused(401, format!("no registered device has the certificate {}", hex::encode(sealed.sender)))
    })?;
    let payload = sealed.open_from_device(&state.device(uuid)?.cert).map_err(|error| refused(401, error))?;
    if let Some(named) = route.device.filter(|named| *named != uuid) {
        return Err(refused(401, format!("the path names device {named}, but {uuid} signed the request")));
    }
    state.device_mut(uuid)?.last_seen_ms = now_ms();
    match route.endpoint {
        Endpoint::Uuid => {
            UuidRequest::decode(payload.as_slice()).map_err(|e| refused(400, format!("uuid: {e}")))?;
            let response = UuidResponse { uuid: uuid.to_string(), ..Default::default() };
            Ok(Answer::with(200, response.encode_to_vec()))
        }
        Endpoint::Attest => attest_step(state, uuid, &payload),
        Endpoint::Config => config(state, quirks, uuid, &payload),
        Endpoint::Info => info(state, uuid, &payload),
        Endpoint::Metrics => {
            let message = ZMetricMsg::decode(payload.as_slice()).map_err(|e| refused(400, format!("metrics: {e}")))?;
            check_dev_id("metrics", &message.dev_id, uuid)?;
            state.add_metrics(uuid, message)?;
            Ok(Answer::empty(201))
        }
        Endpoint::Newlogs => newlogs(state, uuid, None, &payload),
        Endpoint::AppNewlogs => newlogs(state, uuid, route.app, &payload),
        Endpoint::Flowlog => {
            FlowMessage::decode(payload.as_slice()).map_err(|e| refused(400, format!("flowlog: {e}")))?;
            state.device_mut(uuid)?.flowlog = Some(payload);
            Ok(Answer::empty(201))
        }
        Endpoint::Hardwarehealth => {
            ZHardwareHealth::decode(payload.as_slice()).map_err(|e| refused(400, format!("hardwarehealth: {e}")))?;
            state.device_mut(uuid)?.hardware = Some(payload);
            Ok(Answer::empty(if quirks.hardwarehealth_200 { 200 } else { 201 }))
        }
        _ => Ok(Answer::refuse(404, "no such endpoint")),
    }
}

fn check_dev_id(what: &str, found: &str, uuid: Uuid) -> Result<(), Failure> {
    if found.parse() == Ok(uuid) {
        Ok(())
    } else {
        Err(refused(400, format!("{what}: device id: expected {uuid}, found {found:?}")))
    }
}

fn register(state: &mut State, quirks: Quirks, body: &[u8]) -> Result<Answer, Failure> {
    let sealed = Sealed::parse(body).map_err(|error| refused(401, error))?;
    let pem = STANDARD
        .decode(&sealed.sender_cert)
        .map_err(|error| refused(401, format!("senderCert: not base64: {error}")))?;
    let onboarding = Cert::from_pem("senderCert", &pem).map_err(|error| refused(401, error))?;
    if onboarding.der_hash() != sealed.sender {
        return Err(refused(401, "senderCertHash is not the hash of the DER of senderCert"));
    }
    let key = onboarding.verifying_key("senderCert").map_err(|error| refused(401, error))?;
    let payload = sealed.open(&key).map_err(|error| refused(401, error))?;
    let hash = hex::encode(onboarding.der_hash());
    let allowed = state
        .onboarding
        .get(&hash)
        .ok_or_else(|| refused(403, format!("onboarding certificate {hash} is not known")))?
        .serials
        .clone();

    let message = ZRegisterMsg::decode(payload.as_slice()).map_err(|e| refused(400, format!("register: {e}")))?;
    if !(100..=10_240).contains(&message.pem_cert.len()) {
        return Err(refused(400, format!("pemCert: expected 100 to 10240 bytes, found {}", message.pem_cert.len())));
    }
    #[allow(deprecated, reason = "a device that still fills the field shall be told so")]
    let old_key = !message.on_board_key.is_empty();
    if old_key {
        return Err(refused(400, "onBoardKey: expected empty"));
    }
    for (name, serial) in [("serial", &message.serial), ("softSerial", &message.soft_serial)] {
        if serial.chars().count() > 256 {
            return Err(refused(400, format!("{name}: more than 256 characters")));
        }
    }
    if !message.soft_serial.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        return Err(refused(400, "softSerial: expected letters, digits, _ and -"));
    }
    let permits = |serial: &str| allowed.iter().any(|a| a == "*" || (!serial.is_empty() && a == serial));
    if !permits(&message.serial) && !permits(&message.soft_serial) {
        return Err(refused(
            403,
            format!(
                "serial {:?}, soft serial {:?}: not known for this onboarding certificate",
                message.serial, message.soft_serial
            ),
        ));
    }
    let pem =
        STANDARD.decode(&message.pem_cert).map_err(|error| refused(400, format!("pemCert: not base64: {error}")))?;
    let cert = Cert::from_pem("device certificate", &pem).map_err(|error| refused(400, error))?;
    let key = cert.verifying_key("device certificate").map_err(|error| refused(400, error))?;
    if !cert.is_signed_by(&key) {
        return Err(refused(400, "device certificate: is not signed by its own key"));
    }
    if let Some(uuid) = state.by_cert.get(&cert.der_hash()) {
        let status = if quirks.reregister_500 { 500 } else { 200 };
        return Ok(Answer::refuse(status, format!("is device {uuid} already")));
    }
    let taken = state.devices.values().find(|device| {
        device.record.onboarding == hash
            && device.record.serial == message.serial
            && device.record.soft_serial == message.soft_serial
            && !(message.serial.is_empty() && message.soft_serial.is_empty())
    });
    if let Some(taken) = taken {
        return Err(refused(409, format!("serial {:?} is that of device {}", message.serial, taken.record.uuid)));
    }
    let uuid = Uuid::new_v4();
    state.add_device(DeviceRecord {
        uuid,
        cert_pem: cert.pem,
        onboarding: hash,
        serial: message.serial,
        soft_serial: message.soft_serial,
        registered_at_ms: now_ms(),
        proof: Default::default(),
    })?;
    Ok(Answer { status: 201, payload: None, note: format!("is device {uuid} now") })
}

fn attest_step(state: &mut State, uuid: Uuid, payload: &[u8]) -> Result<Answer, Failure> {
    let policy = state.policy.clone();
    let device = state.device_mut(uuid)?;
    let before = device.record.proof.clone();
    let response = attest::answer(payload, &device.cert, &mut device.record.proof, &mut device.nonce, &policy)
        .map_err(|error| refused(400, error))?;
    let proof = &device.record.proof;
    let note = match (&proof.report, ZAttestReq::decode(payload).map(|r| r.req_type)) {
        (Some(report), Ok(3)) => report.reason.clone(),
        _ => String::new(),
    };
    let changed = *proof != before;
    let new_certs = proof.certs != before.certs;
    if changed {
        state.save_device(uuid)?;
    }
    if new_certs {
        state.rebuild_config(uuid)?;
    }
    Ok(Answer { status: 201, payload: Some(response.encode_to_vec()), note })
}

fn config(state: &mut State, quirks: Quirks, uuid: Uuid, payload: &[u8]) -> Result<Answer, Failure> {
    let request = ConfigRequest::decode(payload).map_err(|e| refused(400, format!("config: {e}")))?;
    let device = state.device_mut(uuid)?;
    let token = device.record.proof.token.as_ref().is_some_and(|token| *token == hex::encode(&request.integrity_token));
    let waiting = device.served.as_ref().err().cloned();
    if let (Some(reason), true) = (&waiting, quirks.config_404_first || token) {
        return Err(refused(404, reason));
    }
    if !token {
        let note = if request.integrity_token.is_empty() { "empty" } else { "wrong" };
        return Err(refused(403, format!("integrity_token is {note}: attestation is needed")));
    }
    device.applied = Some((request.config_hash.clone(), now_ms()));
    let Ok(served) = &device.served else {
        return Ok(Answer::empty(404));
    };
    if served.hash == request.config_hash {
        return Ok(Answer::empty(304));
    }
    // ConfigResponse written field by field, so that the bytes the hash is of go out unchanged.
    let mut response = Vec::with_capacity(served.bytes.len() + 64);
    prost::encoding::bytes::encode(1, &served.bytes, &mut response);
    prost::encoding::string::encode(2, &served.hash, &mut response);
    Ok(Answer::with(200, response))
}

fn info(state: &mut State, uuid: Uuid, payload: &[u8]) -> Result<Answer, Failure> {
    let message = ZInfoMsg::decode(payload).map_err(|e| refused(400, format!("info: {e}")))?;
    check_dev_id("info", &message.dev_id, uuid)?;
    let key = info_key(&message).map_err(|cause| refused(400, cause))?;
    let device = state.device(uuid)?;
    if !device.info.contains_key(&key) && device.info.len() >= MAX_INFO_OBJECTS {
        return Err(refused(400, format!("info: more than {MAX_INFO_OBJECTS} objects")));
    }
    state.add_info(uuid, key, message)?;
    Ok(Answer::empty(201))
}

/// Kind and object of an info message, such as `app-UUID`; also a file name, so the object's id must be tame.
pub fn info_key(message: &ZInfoMsg) -> Result<String, String> {
    let content = message.info_content.as_ref().ok_or("info: no content")?;
    let (kind, name, id) = match content {
        InfoContent::Dinfo(_) => (ZInfoTypes::ZiDevice, "device", None),
        InfoContent::Ainfo(app) => (ZInfoTypes::ZiApp, "app", Some(&app.app_id)),
        InfoContent::Niinfo(ni) => (ZInfoTypes::ZiNetworkInstance, "network-instance", Some(&ni.network_id)),
        InfoContent::Vinfo(volume) => (ZInfoTypes::ZiVolume, "volume", Some(&volume.uuid)),
        InfoContent::Cinfo(tree) => (ZInfoTypes::ZiContentTree, "content-tree", Some(&tree.uuid)),
        InfoContent::Binfo(_) => (ZInfoTypes::ZiBlobList, "blobs", None),
        InfoContent::Amdinfo(data) => (ZInfoTypes::ZiAppInstMetaData, "app-metadata", Some(&data.uuid)),
        InfoContent::Hwinfo(_) => (ZInfoTypes::ZiHardware, "hardware", None),
        InfoContent::Evinfo(_) => (ZInfoTypes::ZiEdgeview, "edgeview", None),
        InfoContent::Locinfo(_) => (ZInfoTypes::ZiLocation, "location", None),
        InfoContent::PatchInfo(_) => (ZInfoTypes::ZiPatchEnvelope, "patch-envelopes", None),
        InfoContent::NtpSources(_) => (ZInfoTypes::ZiNtpSources, "ntp-sources", None),
        InfoContent::ClusterNode(_) => (ZInfoTypes::ZiNop, "cluster-node", None),
        InfoContent::ClusterInfo(_) => (ZInfoTypes::ZiKubeCluster, "cluster", None),
        InfoContent::ClusterUpdateInfo(_) => (ZInfoTypes::ZiKubeClusterUpdateStatus, "cluster-update", None),
    };
    if kind != ZInfoTypes::ZiNop && message.ztype != kind as i32 {
        return Err(format!("info: ztype {} does not belong to content {name}", message.ztype));
    }
    match id {
        None => Ok(name.to_owned()),
        Some(id) => {
            let id = Uuid::try_parse(id).map_err(|_| format!("info: {name}: id: expected a UUID, found {id:?}"))?;
            Ok(format!("{name}-{id}"))
        }
    }
}

fn newlogs(state: &mut State, uuid: Uuid, app: Option<Uuid>, payload: &[u8]) -> Result<Answer, Failure> {
    let kind = if app.is_some() { Kind::App } else { Kind::Device };
    let upload = logs::parse(kind, payload).map_err(|error| match error {
        LogError::Size(_) => refused(413, error),
        _ => refused(400, error),
    })?;
    if let Some(comment) = &upload.comment {
        check_dev_id("newlogs: comment", &comment.dev_id, uuid)?;
    }
    let device = state.device(uuid)?;
    let is_new = app.is_some_and(|app| !device.app_logs.contains_key(&app));
    if is_new && device.app_logs.len() >= MAX_APP_LOGS {
        return Err(refused(400, format!("newlogs: logs of more than {MAX_APP_LOGS} apps")));
    }
    state.add_logs(uuid, app, upload.lines)?;
    Ok(Answer::empty(201))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let uuid = Uuid::from_u128(5);
        let app = Uuid::from_u128(6);
        let of = |endpoint, app| Route { endpoint, device: Some(uuid), app };
        let cases = [
            ("ping".to_owned(), Route { endpoint: Endpoint::Ping, device: None, app: None }),
            ("config".to_owned(), Route { endpoint: Endpoint::Config, device: None, app: None }),
            (format!("id/{uuid}/config"), of(Endpoint::Config, None)),
            (format!("id/{uuid}/apps/instanceid/{app}/newlogs"), of(Endpoint::AppNewlogs, Some(app))),
        ];
        for (path, route) in cases {
            assert_eq!(Route::parse(&format!("/api/v2/edgedevice/{path}")), route);
        }
        for path in [
            "/api/v1/edgedevice/ping".to_owned(),
            "/api/v2/edgedevice/id/x/config".to_owned(),
            format!("/api/v2/edgedevice/id/{uuid}/apps/instances/id/{app}/newlogs"),
            format!("/api/v2/edgedevice/id/{uuid}"),
        ] {
            assert_eq!(Route::parse(&path).endpoint, Endpoint::Other, "{path}");
        }
    }

    #[test]
    fn info_is_kept_by_object_and_odd_ids_are_refused() {
        use holdfast_api::proto::info::ZInfoApp;
        let id = Uuid::from_u128(9).to_string();
        let app = |id: &str| ZInfoMsg {
            ztype: ZInfoTypes::ZiApp as i32,
            info_content: Some(InfoContent::Ainfo(ZInfoApp { app_id: id.into(), ..Default::default() })),
            ..Default::default()
        };
        assert_eq!(info_key(&app(&id)), Ok(format!("app-{id}")));
        assert!(info_key(&app("../../etc/passwd")).is_err());
        let mut wrong = app(&id);
        wrong.ztype = ZInfoTypes::ZiDevice as i32;
        assert!(info_key(&wrong).is_err());
        assert!(info_key(&ZInfoMsg::default()).is_err());
    }
}
