//! What is kept of devices, requests and reports: plain data, most of it as it stands in the store.

use crate::attest::Proof;
use crate::config::DeviceConfig;
use crate::faults::{Action, Endpoint};
use crate::logs::LogLine;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_api::proto::info::ZInfoMsg;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// An onboarding certificate and for which serials it is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onboarding {
    /// PEM text.
    pub cert_pem: String,
    /// Serials; `*` is any.
    pub serials: Vec<String>,
}

/// Identity of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// UUID given at registration.
    pub uuid: Uuid,
    /// Device certificate.
    pub cert_pem: String,
    /// Hash of the onboarding certificate, hex.
    pub onboarding: String,
    /// Hardware serial.
    pub serial: String,
    /// Serial made by the installer.
    pub soft_serial: String,
    /// Milliseconds since 1970.
    pub registered_at_ms: u64,
    /// What it has proved.
    pub proof: Proof,
}

/// Where a configuration came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A friendly document.
    Document(Box<DeviceConfig>),
    /// A message, encoded, hex. Hash, revision and stamp are filled in.
    Raw(String),
}

/// The configuration of a device as it was set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Counts the configurations of this device.
    pub revision: u64,
    /// Milliseconds since 1970.
    pub set_at_ms: u64,
    /// The content.
    pub source: Source,
}

/// A configuration as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Encoded EdgeDevConfig.
    pub bytes: Vec<u8>,
    /// The hash that devices echo.
    pub hash: String,
}

impl Served {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(&bytes));
        Self { bytes, hash }
    }
}

/// An info message.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// Position among everything that happened.
    pub seq: u64,
    /// Kind and object, such as `app-UUID`.
    pub key: String,
    /// The message.
    pub message: ZInfoMsg,
}

/// A log line with its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Position among everything that happened.
    pub seq: u64,
    /// The line.
    #[serde(flatten)]
    pub line: LogLine,
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Position among everything that happened.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Who signed it, if known.
    pub device: Option<Uuid>,
    /// What for.
    pub endpoint: Endpoint,
    /// HTTP method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// `X-Request-Id`.
    pub request_id: String,
    /// HTTP status; 0: the connection was cut.
    pub status: u16,
    /// Bytes of the body.
    pub bytes: usize,
    /// Why it was refused, or what else is worth saying.
    pub note: String,
    /// The fault that was used.
    pub fault: Option<Action>,
}
