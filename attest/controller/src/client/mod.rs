//! The requests of the EVE device API v2, each with its envelope.
//!
//! `call` carries one of them over the uplinks and counts it.

mod call;

use crate::failure::{Class, Failure};
use crate::freshness::Timestamp;
use crate::identity::{DeviceIdentity, KeyError, Signer};
use crate::timing::{Timing, limits};
use crate::tls::{self, Clock};
use crate::transport::Server;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holdfast_api::certs::{CertificateError, ControllerCertificates, Roots, ValidAt};
use holdfast_api::envelope::{self, EnvelopeError};
use holdfast_api::metrics::ControllerTraffic;
use holdfast_api::newlog::Origin;
use holdfast_api::proto::attest::{ZAttestReq, ZAttestResponse};
use holdfast_api::proto::config::{ConfigRequest, ConfigResponse};
use holdfast_api::proto::info::ZInfoMsg;
use holdfast_api::proto::metrics::ZMetricMsg;
use holdfast_api::proto::register::ZRegisterMsg;
use holdfast_api::proto::uuid::{UuidRequest, UuidResponse};
use holdfast_model::net::{Tried, Uplink};
use hyper::Method;
use prost::Message;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use uuid::Uuid;

/// What the site says about the controller.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `name`, `name:port` or an address; port 443 when not given.
    pub server: String,
    /// Connect to this address instead of looking the name up.
    pub address: Option<IpAddr>,
    /// Root certificates, PEM: trusted for TLS and for the controller's signing certificates.
    pub roots_pem: Vec<u8>,
    /// A moment known to have passed (the build of the image): the clock is never believed to be earlier.
    pub clock_floor: SystemTime,
    /// Hardware serial number, sent while the UUID is not known.
    pub serial: String,
    /// Serial number of the site, sent while the UUID is not known.
    pub soft_serial: String,
}

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server text.
    #[error("controller {0:?}: expected name, name:port or an address")]
    Server(String),
    /// The roots.
    #[error(transparent)]
    Roots(#[from] CertificateError),
    /// TLS refuses the roots.
    #[error("TLS settings: {0}")]
    Tls(String),
}

/// A client of one controller.
///
/// All methods take `&self`, so tasks can share it; each request is one connection.
pub struct Client {
    server: Server,
    roots: Roots,
    clock: Clock,
    tls: Arc<rustls::ClientConfig>,
    serials: [(&'static str, String); 2],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    uuid: Option<Uuid>,
    certificates: Option<Arc<ControllerCertificates>>,
    uplinks: Vec<Uplink>,
    /// Result of the last attempt by adapter, since they were last taken.
    tried: BTreeMap<String, Result<(), String>>,
    timing: Timing,
    traffic: ControllerTraffic,
}

/// What `/config` answered.
#[derive(Debug)]
pub enum ConfigAnswer {
    /// A config.
    New(Box<ReceivedConfig>),
    /// The one that is in force.
    Unchanged,
    /// 403: attest again, then ask again.
    TokenRefused,
    /// 400 or 404: ask `/uuid` (at most every [`crate::timing::UUID_RECHECK`]); the present config stays in force.
    DeviceUnknown,
}

/// A verified config with what verified it.
#[derive(Debug, Clone)]
pub struct ReceivedConfig {
    /// The reply as it came.
    pub envelope: Vec<u8>,
    /// The `ConfigResponse` as it came: what is newer than the messages known here is only in these bytes.
    pub payload: Vec<u8>,
    /// The certificates that verified it.
    pub certificates: Arc<ControllerCertificates>,
    /// What was in it.
    pub response: ConfigResponse,
}

impl ReceivedConfig {
    /// Text to be sent with the next poll.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.response.config_hash
    }

    /// When it was made.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        let stamp = self.response.config.as_ref().and_then(|config| config.config_timestamp.as_ref());
        stamp.map_or((0, 0), |stamp| (stamp.seconds, stamp.nanos))
    }

    /// The device that it is for; `None` when its id is no UUID.
    #[must_use]
    pub fn device(&self) -> Option<Uuid> {
        let id = self.response.config.as_ref()?.id.as_ref()?;
        Uuid::try_parse(&id.uuid).ok()
    }
}

impl Client {
    /// Makes a client; nothing is sent.
    ///
    /// # Errors
    /// [`ClientError`] when the server text or the roots cannot be used.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let server =
            Server::parse(&config.server, config.address).ok_or_else(|| ClientError::Server(config.server.clone()))?;
        let roots = Roots::from_pem(&config.roots_pem)?;
        let clock = Clock { floor: config.clock_floor };
        let tls = tls::settings(&roots, clock).map_err(|error| ClientError::Tls(error.to_string()))?;
        Ok(Self {
            server,
            roots,
            clock,
            tls: Arc::new(tls),
            serials: [("X-Serial-Number", header(&config.serial)), ("X-Soft-Serial", header(&config.soft_serial))],
            state: Mutex::default(),
        })
    }

    /// The controller as the site names it.
    #[must_use]
    pub fn server(&self) -> String {
        self.server.authority()
    }

    /// Uplinks to try, best first. None = wherever routing leads.
    pub fn set_uplinks(&self, uplinks: Vec<Uplink>) {
        self.state().uplinks = uplinks;
    }

    /// What the last attempt over each adapter brought, of those since this was last asked.
    #[must_use]
    pub fn take_tried(&self) -> Vec<Tried> {
        let tried = std::mem::take(&mut self.state().tried);
        tried.into_iter().map(|(adapter, result)| Tried { adapter, result }).collect()
    }

    /// Times in force from now on.
    pub fn set_timing(&self, timing: Timing) {
        self.state().timing = timing;
    }

    /// Times in force.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.state().timing
    }

    /// The device's UUID, once known.
    pub fn set_uuid(&self, uuid: Uuid) {
        self.state().uuid = Some(uuid);
    }

    /// The device's UUID, if known.
    #[must_use]
    pub fn known_uuid(&self) -> Option<Uuid> {
        self.state().uuid
    }

    /// The controller's certificates, if known.
    #[must_use]
    pub fn certificates(&self) -> Option<Arc<ControllerCertificates>> {
        self.state().certificates.clone()
    }

    /// Takes certificates kept from before a reboot.
    pub fn set_certificates(&self, certificates: Arc<ControllerCertificates>) {
        self.state().certificates = Some(certificates);
    }

    /// The roots of the site.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Counters since start, for metrics.
    #[must_use]
    pub fn traffic(&self) -> ControllerTraffic {
        self.state().traffic.clone()
    }

    /// `GET /ping`: true contact, nothing else.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn ping(&self) -> Result<(), Failure> {
        self.call(Method::GET, "ping", Bytes::new(), limits::OTHER).await.map(|_| ())
    }

    /// `GET /certs`: fetches, verifies and remembers the controller's certificates.
    ///
    /// # Errors
    /// [`Failure`]; what was known before stays known.
    pub async fn fetch_certificates(&self) -> Result<Arc<ControllerCertificates>, Failure> {
        let reply = self.call(Method::GET, "certs", Bytes::new(), limits::CERTIFICATES).await?;
        let verified = ControllerCertificates::from_reply(&reply.body, &self.roots, ValidAt::Time(self.clock.now()));
        let certificates = Arc::new(verified.inspect_err(|_| self.count_bad_envelope())?);
        self.set_certificates(Arc::clone(&certificates));
        Ok(certificates)
    }

    /// `POST /register`: makes the device known to the controller.
    ///
    /// # Errors
    /// [`Failure`]; a controller that knows the device already may answer 500, so ask `/uuid` then.
    pub async fn register(&self, identity: &dyn DeviceIdentity) -> Result<(), Failure> {
        let onboarding =
            identity.onboarding().ok_or_else(|| KeyError::new("onboarding key", "the site carries none"))?;
        let message = ZRegisterMsg {
            pem_cert: STANDARD.encode(identity.device().certificate_pem()).into_bytes(),
            serial: identity.serial().to_owned(),
            soft_serial: identity.soft_serial().to_owned(),
            ..ZRegisterMsg::default()
        };
        let body = envelope::seal_registration(message.encode_to_vec(), onboarding)?;
        self.call(Method::POST, "register", body.into(), limits::OTHER).await.map(|_| ())
    }

    /// `POST /uuid`: asks who this device is, and remembers it.
    ///
    /// # Errors
    /// [`Failure`]; 401 when the device is not registered.
    pub async fn ask_uuid(&self, identity: &dyn DeviceIdentity) -> Result<UuidResponse, Failure> {
        let answer: UuidResponse = self.ask("uuid", &UuidRequest::default(), identity.device(), limits::OTHER).await?;
        let uuid = Uuid::try_parse(&answer.uuid).map_err(|_| Failure::Malformed {
            path: "uuid".to_owned(),
            reason: format!("expected a UUID, found {:?}", answer.uuid),
        })?;
        self.set_uuid(uuid);
        Ok(answer)
    }

    /// `POST /id/UUID/attest`: one step of attestation. See [`crate::attestation`].
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn attest_step(
        &self,
        identity: &dyn DeviceIdentity,
        request: &ZAttestReq,
    ) -> Result<ZAttestResponse, Failure> {
        self.ask(&self.device_path("attest"), request, identity.device(), limits::ATTESTATION).await
    }

    /// `POST /id/UUID/config` with the hash of the config in force (empty when none) and the integrity token.
    ///
    /// # Errors
    /// [`Failure`], but 400, 403 and 404 are answers.
    pub async fn poll_config(
        &self,
        identity: &dyn DeviceIdentity,
        hash: &str,
        token: &[u8],
    ) -> Result<ConfigAnswer, Failure> {
        let path = self.device_path("config");
        let request = ConfigRequest { config_hash: hash.to_owned(), integrity_token: token.to_vec() };
        let body = envelope::seal(request.encode_to_vec(), identity.device())?;
        let reply = match self.call(Method::POST, &path, body.into(), limits::CONFIG).await {
            Ok(reply) => reply,
            Err(failure) => {
                return match failure.class() {
                    Class::Forbidden => Ok(ConfigAnswer::TokenRefused),
                    Class::Unknown => Ok(ConfigAnswer::DeviceUnknown),
                    _ => Err(failure),
                };
            }
        };
        if reply.status == 304 {
            return Ok(ConfigAnswer::Unchanged);
        }
        let payload = self.open(&path, &reply.body).await?;
        let response: ConfigResponse = decode(&path, &payload)?;
        if response.config.is_none() {
            return Err(Failure::Malformed { path, reason: "no config in it".to_owned() });
        }
        if !hash.is_empty() && response.config_hash == hash {
            return Ok(ConfigAnswer::Unchanged);
        }
        let certificates = self.certificates().ok_or_else(|| unknown_sender(&path))?;
        let certificates = self.certificates_for(certificates, &response, &reply.body).await?;
        let envelope = reply.body.to_vec();
        Ok(ConfigAnswer::New(Box::new(ReceivedConfig { envelope, payload, certificates, response })))
    }

    /// The certificates to keep with a config: asked for again when its secrets need one that is not known yet.
    ///
    /// A failure to get them is one of the poll: the config comes again with the next, rather than being put in force
    /// with secrets that cannot be read.
    async fn certificates_for(
        &self,
        known: Arc<ControllerCertificates>,
        response: &ConfigResponse,
        envelope: &[u8],
    ) -> Result<Arc<ControllerCertificates>, Failure> {
        let contexts = response.config.iter().flat_map(|config| &config.cipher_contexts);
        if contexts.into_iter().all(|context| known.by_hash(&context.controller_cert_hash).is_some()) {
            return Ok(known);
        }
        let fresh = self.fetch_certificates().await?;
        // What is kept with a config must verify it again after a reboot.
        Ok(if fresh.open(envelope).is_ok() { fresh } else { known })
    }

    /// `POST /id/UUID/info`.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn send_info(&self, identity: &dyn DeviceIdentity, message: &ZInfoMsg) -> Result<(), Failure> {
        self.tell(&self.device_path("info"), message.encode_to_vec(), identity.device()).await
    }

    /// `POST /id/UUID/metrics`.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn send_metrics(&self, identity: &dyn DeviceIdentity, message: &ZMetricMsg) -> Result<(), Failure> {
        self.tell(&self.device_path("metrics"), message.encode_to_vec(), identity.device()).await
    }

    /// Sends a log file made by [`holdfast_api::newlog::pack`]: to `newlogs` of the device or of the app.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn send_logs(
        &self,
        identity: &dyn DeviceIdentity,
        origin: &Origin,
        gzip: Vec<u8>,
    ) -> Result<(), Failure> {
        let path = match origin {
            Origin::Device { .. } => self.device_path("newlogs"),
            Origin::App { id, .. } => self.device_path(&format!("apps/instanceid/{id}/newlogs")),
        };
        self.tell(&path, gzip, identity.device()).await
    }

    /// Sends a message whose reply holds nothing of interest.
    async fn tell(&self, path: &str, payload: Vec<u8>, signer: &dyn Signer) -> Result<(), Failure> {
        let body = envelope::seal(payload, signer)?;
        self.call(Method::POST, path, body.into(), limits::OTHER).await.map(|_| ())
    }

    /// Sends a message and reads the verified reply.
    async fn ask<A: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
        signer: &dyn Signer,
        limit: usize,
    ) -> Result<A, Failure> {
        let body = envelope::seal(request.encode_to_vec(), signer)?;
        let reply = self.call(Method::POST, path, body.into(), limit).await?;
        let payload = self.open(path, &reply.body).await?;
        decode(path, &payload)
    }

    /// Opens a reply's envelope. An unknown signer makes the client ask for the certificates again, once.
    async fn open(&self, path: &str, envelope: &[u8]) -> Result<Vec<u8>, Failure> {
        let known = self.certificates();
        let first = known
            .as_ref()
            .map_or_else(|| Err(EnvelopeError::UnknownSender("none known yet".to_owned())), |c| c.open(envelope));
        let result = match first {
            Err(EnvelopeError::UnknownSender(_)) => self.fetch_certificates().await?.open(envelope),
            other => other,
        };
        result.map_err(|error| {
            self.count_bad_envelope();
            Failure::Envelope { path: path.to_owned(), error }
        })
    }

    fn device_path(&self, what: &str) -> String {
        // Before the UUID is known nothing below `id/` can succeed; the controller says so.
        let uuid = self.known_uuid().unwrap_or_default();
        format!("id/{uuid}/{what}")
    }

    fn count_bad_envelope(&self) {
        self.state().traffic.envelope_failures += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that could panic runs while the lock is held; a poisoned lock still guards good data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown_sender(path: &str) -> Failure {
    Failure::Envelope { path: path.to_owned(), error: EnvelopeError::UnknownSender("none known yet".to_owned()) }
}

fn decode<A: Message + Default>(path: &str, payload: &[u8]) -> Result<A, Failure> {
    A::decode(payload).map_err(|error| Failure::Malformed { path: path.to_owned(), reason: error.to_string() })
}

/// A text fit for a header: visible ASCII, at most 256 characters.
fn header(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
