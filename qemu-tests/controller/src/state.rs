//! Everything the controller knows, in memory behind one lock, written through to the [`crate::store`].
//!
//! Whoever changes something does it in [`Shared::update`], which wakes all who wait; whoever waits, in a thread or in
//! a task, names what for and until when. The lock is held for short, synchronous work only.

use crate::attest::{Nonce, Policy};
use crate::config::{self, BuildError};
use crate::faults::{Endpoint, Faults};
use crate::logs::LogLine;
use crate::pki::Pki;
use crate::records::{DeviceRecord, Info, LogRecord, Onboarding, RequestRecord, Served, Source, Wanted};
use crate::store::{self, StoreError};
use crate::x509::{Cert, CertError};
use holdfast_api::proto::certs::ZCertType;
use holdfast_api::proto::config::EdgeDevConfig;
use holdfast_api::proto::info::ZInfoMsg;
use holdfast_api::proto::metrics::ZMetricMsg;
use prost::Message;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Requests kept in memory.
const MAX_REQUESTS: usize = 10_000;
/// Info messages kept in memory for each device, besides the last of each object.
const MAX_INFO_HISTORY: usize = 2_000;
/// Objects of one device about which info is kept.
pub const MAX_INFO_OBJECTS: usize = 1_000;
/// Metrics messages kept for each device.
const MAX_METRICS: u64 = 20;
/// Log lines kept in memory for each device and each app.
const MAX_LOG_LINES: usize = 50_000;
/// Apps of one device whose logs are kept.
pub const MAX_APP_LOGS: usize = 200;

/// Why stored state cannot be used, or a change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// A key pair.
    #[error(transparent)]
    Pki(#[from] crate::pki::PkiError),
    /// A configuration.
    #[error("configuration: {0}")]
    Config(#[from] BuildError),
    /// No such device.
    #[error("device {0}: not known to this controller")]
    NoDevice(String),
    /// A message that was to be set raw.
    #[error("configuration: not an EdgeDevConfig: {0}")]
    Raw(String),
}

/// One device.
#[derive(Debug)]
pub struct Device {
    /// Identity; durable.
    pub record: DeviceRecord,
    /// The certificate of the record, read.
    pub cert: Cert,
    /// A nonce that was handed out.
    pub nonce: Option<Nonce>,
    /// Wanted configuration; durable.
    pub wanted: Option<Wanted>,
    /// Configuration as served, or why there is none.
    pub served: Result<Served, String>,
    /// Hash the device sent with its last config request, and when (milliseconds since 1970).
    pub applied: Option<(String, u64)>,
    /// Last info of each object; durable.
    pub info: BTreeMap<String, Info>,
    /// Info messages in order.
    pub info_history: VecDeque<Info>,
    /// Last metrics messages; durable.
    pub metrics: VecDeque<(u64, ZMetricMsg)>,
    /// Log of the device; durable.
    pub logs: VecDeque<LogRecord>,
    /// Logs of apps; durable.
    pub app_logs: BTreeMap<Uuid, VecDeque<LogRecord>>,
    /// Last flow log message, encoded.
    pub flowlog: Option<Vec<u8>>,
    /// Last hardware health message, encoded.
    pub hardware: Option<Vec<u8>>,
    /// Last good request.
    pub last_seen_ms: u64,
}

impl Device {
    fn new(record: DeviceRecord) -> Result<Self, CertError> {
        let cert = Cert::from_pem("device certificate", record.cert_pem.as_bytes())?;
        Ok(Self {
            record,
            cert,
            nonce: None,
            wanted: None,
            served: Err("no configuration has been set".into()),
            applied: None,
            info: BTreeMap::new(),
            info_history: VecDeque::new(),
            metrics: VecDeque::new(),
            logs: VecDeque::new(),
            app_logs: BTreeMap::new(),
            flowlog: None,
            hardware: None,
            last_seen_ms: 0,
        })
    }

    /// True if the device asked with the hash of the configuration that is served now: it has it.
    pub fn has_current_config(&self) -> bool {
        match (&self.served, &self.applied) {
            (Ok(served), Some((hash, _))) => served.hash == *hash,
            _ => false,
        }
    }
}

/// Everything.
#[derive(Debug)]
pub struct State {
    /// Folder of the store.
    pub dir: PathBuf,
    /// Own certificates.
    pub pki: Pki,
    /// Onboarding certificates by hash of the DER, hex.
    pub onboarding: BTreeMap<String, Onboarding>,
    /// Devices.
    pub devices: BTreeMap<Uuid, Device>,
    /// Devices by hash of their certificate's DER.
    pub by_cert: HashMap<[u8; 32], Uuid>,
    /// Attestation policy; durable.
    pub policy: Policy,
    /// Faults in force.
    pub faults: Faults,
    /// Last requests.
    pub requests: VecDeque<RequestRecord>,
    /// Last answer of each endpoint to each device, for replays.
    pub previous: HashMap<(Option<Uuid>, Endpoint), Vec<u8>>,
    seq: u64,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl State {
    /// Loads what the store holds.
    pub fn load(dir: PathBuf, pki: Pki) -> Result<Self, StateError> {
        let mut state = Self {
            pki,
            onboarding: BTreeMap::new(),
            devices: BTreeMap::new(),
            by_cert: HashMap::new(),
            policy: store::read_json(&dir.join("policy.json"))?.unwrap_or_default(),
            faults: Faults::default(),
            requests: VecDeque::new(),
            previous: HashMap::new(),
            seq: 0,
            dir,
        };
        let folder = state.dir.join("onboarding");
        for name in store::list(&folder)? {
            if let (Some(hash), Some(entry)) = (name.strip_suffix(".json"), store::read_json(&folder.join(&name))?) {
                state.onboarding.insert(hash.to_owned(), entry);
            }
        }
        let requests: Vec<RequestRecord> = store::tail(&state.dir.join("requests.log"), MAX_REQUESTS)?;
        state.seq = requests.last().map_or(0, |request| request.seq);
        state.requests = requests.into();
        for name in store::list(&state.dir.join("devices"))? {
            if let Ok(uuid) = name.parse() {
                state.load_device(uuid)?;
            }
        }
        Ok(state)
    }

    fn load_device(&mut self, uuid: Uuid) -> Result<(), StateError> {
        let dir = self.device_dir(uuid);
        let Some(record) = store::read_json::<DeviceRecord>(&dir.join("device.json"))? else {
            return Ok(());
        };
        let mut device = Device::new(record)?;
        device.wanted = store::read_json(&dir.join("config.json"))?;
        if let Some(bytes) = store::read_optional(&dir.join("config.pb"))? {
            device.served = Ok(Served::new(bytes));
        }
        for name in store::list(&dir.join("info"))? {
            let (Some(key), Some(bytes)) =
                (name.strip_suffix(".pb"), store::read_optional(&dir.join("info").join(&name))?)
            else {
                continue;
            };
            if let Ok(message) = ZInfoMsg::decode(bytes.as_slice()) {
                device.info.insert(key.to_owned(), Info { seq: 0, key: key.to_owned(), message });
            }
        }
        for name in store::list(&dir.join("metrics"))? {
            let seq = name.strip_suffix(".pb").and_then(|n| n.parse().ok());
            let bytes = store::read_optional(&dir.join("metrics").join(&name))?;
            if let (Some(seq), Some(Ok(message))) = (seq, bytes.map(|b| ZMetricMsg::decode(b.as_slice()))) {
                device.metrics.push_back((seq, message));
            }
        }
        device.metrics.make_contiguous().sort_by_key(|(seq, _)| *seq);
        device.logs = store::tail(&dir.join("device.log"), MAX_LOG_LINES)?.into();
        for name in store::list(&dir)? {
            let app = name.strip_prefix("app-").and_then(|n| n.strip_suffix(".log"));
            if let Some(Ok(app)) = app.map(str::parse) {
                device.app_logs.insert(app, store::tail(&dir.join(&name), MAX_LOG_LINES)?.into());
            }
        }
        let logged = device.logs.iter().chain(device.app_logs.values().flatten()).map(|l| l.seq);
        let last = logged.chain(device.metrics.iter().map(|(seq, _)| *seq)).max().unwrap_or(0);
        self.seq = self.seq.max(last);
        self.by_cert.insert(device.cert.der_hash(), uuid);
        self.devices.insert(uuid, device);
        Ok(())
    }

    /// Folder of one device.
    pub fn device_dir(&self, uuid: Uuid) -> PathBuf {
        self.dir.join("devices").join(uuid.to_string())
    }

    /// The next position.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// The last position.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Allows an onboarding certificate for serials. Returns its hash.
    pub fn onboard(&mut self, cert_pem: &str, serials: Vec<String>) -> Result<String, StateError> {
        let cert = Cert::from_pem("onboarding certificate", cert_pem.as_bytes())?;
        cert.verifying_key("onboarding certificate")?;
        let hash = hex::encode(cert.der_hash());
        let entry = Onboarding { cert_pem: cert_pem.to_owned(), serials };
        store::replace_json(&self.dir.join("onboarding").join(format!("{hash}.json")), &entry)?;
        self.onboarding.insert(hash.clone(), entry);
        Ok(hash)
    }

    /// Forbids an onboarding certificate; devices that used it stay.
    pub fn forget_onboarding(&mut self, hash: &str) -> Result<bool, StateError> {
        if self.onboarding.remove(hash).is_none() {
            return Ok(false);
        }
        store::remove(&self.dir.join("onboarding").join(format!("{hash}.json")))?;
        Ok(true)
    }

    /// Adds a device that registered.
    pub fn add_device(&mut self, record: DeviceRecord) -> Result<(), StateError> {
        let uuid = record.uuid;
        let device = Device::new(record)?;
        self.by_cert.insert(device.cert.der_hash(), uuid);
        self.devices.insert(uuid, device);
        self.save_device(uuid)
    }

    /// Writes the durable part of a device.
    pub fn save_device(&self, uuid: Uuid) -> Result<(), StateError> {
        let device = self.device(uuid)?;
        store::replace_json(&self.device_dir(uuid).join("device.json"), &device.record)?;
        Ok(())
    }

    /// Removes a device with all it sent.
    pub fn remove_device(&mut self, uuid: Uuid) -> Result<(), StateError> {
        let device = self.devices.remove(&uuid).ok_or_else(|| StateError::NoDevice(uuid.to_string()))?;
        self.by_cert.remove(&device.cert.der_hash());
        self.previous.retain(|(owner, _), _| *owner != Some(uuid));
        store::remove_dir(&self.device_dir(uuid))?;
        Ok(())
    }

    /// One device.
    pub fn device(&self, uuid: Uuid) -> Result<&Device, StateError> {
        self.devices.get(&uuid).ok_or_else(|| StateError::NoDevice(uuid.to_string()))
    }

    /// One device, to be changed.
    pub fn device_mut(&mut self, uuid: Uuid) -> Result<&mut Device, StateError> {
        self.devices.get_mut(&uuid).ok_or_else(|| StateError::NoDevice(uuid.to_string()))
    }

    /// Sets the configuration of a device. What lacks only the device's own certificate is accepted and served later.
    pub fn set_config(&mut self, uuid: Uuid, source: Source) -> Result<(), StateError> {
        let device = self.device(uuid)?;
        let wanted = Wanted {
            revision: device.wanted.as_ref().map_or(0, |wanted| wanted.revision) + 1,
            set_at_ms: now_ms(),
            source,
        };
        let served = match self.make_config(device, &wanted) {
            Ok(served) => Ok(served),
            Err(error @ StateError::Config(BuildError::NoDeviceKey { .. })) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        let dir = self.device_dir(uuid);
        store::replace_json(&dir.join("config.json"), &wanted)?;
        let device = self.device_mut(uuid)?;
        device.wanted = Some(wanted);
        device.served = served;
        self.save_served(uuid)
    }

    /// Makes the served form again after a certificate of either side changed.
    pub fn rebuild_config(&mut self, uuid: Uuid) -> Result<(), StateError> {
        let device = self.device(uuid)?;
        let Some(wanted) = &device.wanted else {
            return Ok(());
        };
        let served = self.make_config(device, wanted).map_err(|error| error.to_string());
        self.device_mut(uuid)?.served = served;
        self.save_served(uuid)
    }

    fn save_served(&self, uuid: Uuid) -> Result<(), StateError> {
        let path = self.device_dir(uuid).join("config.pb");
        match &self.device(uuid)?.served {
            Ok(served) => store::replace(&path, &served.bytes)?,
            Err(_) => store::remove(&path)?,
        }
        Ok(())
    }

    fn make_config(&self, device: &Device, wanted: &Wanted) -> Result<Served, StateError> {
        let message = match &wanted.source {
            Source::Document(document) => {
                let ecdh = ZCertType::CertTypeDeviceEcdhExchange as i32;
                let device_key = match device.record.proof.certs.iter().find(|cert| cert.kind == ecdh) {
                    None => None,
                    Some(cert) => {
                        let read = Cert::from_pem("device's key-agreement certificate", cert.pem.as_bytes())?;
                        let hash = hex::decode(&cert.hash).map_err(|e| StateError::Raw(e.to_string()))?;
                        Some((read.public_key("device's key-agreement certificate")?, hash))
                    }
                };
                config::build(
                    document,
                    &config::Context {
                        device: device.record.uuid,
                        revision: wanted.revision,
                        set_at_ms: wanted.set_at_ms,
                        ecdh: &self.pki.ecdh,
                        device_key,
                        certs_hash: self.pki.confighash(),
                    },
                )?
            }
            Source::Raw(text) => {
                let bytes = hex::decode(text).map_err(|error| StateError::Raw(error.to_string()))?;
                let mut message =
                    EdgeDevConfig::decode(bytes.as_slice()).map_err(|error| StateError::Raw(error.to_string()))?;
                let id = message.id.get_or_insert_default();
                id.uuid = device.record.uuid.to_string();
                id.version = wanted.revision.to_string();
                message.controllercert_confighash = self.pki.confighash();
                if message.config_timestamp.is_none() {
                    message.config_timestamp = Some(prost_types::Timestamp {
                        seconds: i64::try_from(wanted.set_at_ms / 1000).unwrap_or(i64::MAX),
                        nanos: 0,
                    });
                }
                message
            }
        };
        Ok(Served::new(message.encode_to_vec()))
    }

    /// Keeps an info message; the last of each object is durable.
    pub fn add_info(&mut self, uuid: Uuid, key: String, message: ZInfoMsg) -> Result<(), StateError> {
        let path = self.device_dir(uuid).join("info").join(format!("{key}.pb"));
        store::replace(&path, &message.encode_to_vec())?;
        let info = Info { seq: self.next_seq(), key: key.clone(), message };
        let device = self.device_mut(uuid)?;
        push_bounded(&mut device.info_history, info.clone(), MAX_INFO_HISTORY);
        device.info.insert(key, info);
        Ok(())
    }

    /// Keeps a metrics message.
    pub fn add_metrics(&mut self, uuid: Uuid, message: ZMetricMsg) -> Result<(), StateError> {
        let seq = self.next_seq();
        let dir = self.device_dir(uuid).join("metrics");
        store::replace(&dir.join(format!("{seq}.pb")), &message.encode_to_vec())?;
        let device = self.device_mut(uuid)?;
        device.metrics.push_back((seq, message));
        while device.metrics.len() as u64 > MAX_METRICS {
            if let Some((old, _)) = device.metrics.pop_front() {
                store::remove(&dir.join(format!("{old}.pb")))?;
            }
        }
        Ok(())
    }

    /// Keeps log lines of the device or of one app.
    pub fn add_logs(&mut self, uuid: Uuid, app: Option<Uuid>, lines: Vec<LogLine>) -> Result<(), StateError> {
        let records: Vec<LogRecord> = lines.into_iter().map(|line| LogRecord { seq: self.next_seq(), line }).collect();
        let name = app.map_or_else(|| "device.log".to_owned(), |app| format!("app-{app}.log"));
        store::append(&self.device_dir(uuid).join(name), &records)?;
        let device = self.device_mut(uuid)?;
        let kept = match app {
            None => &mut device.logs,
            Some(app) => device.app_logs.entry(app).or_default(),
        };
        for record in records {
            push_bounded(kept, record, MAX_LOG_LINES);
        }
        Ok(())
    }

    /// Keeps a request.
    pub fn add_request(&mut self, mut request: RequestRecord) -> Result<(), StateError> {
        request.seq = self.next_seq();
        store::append(&self.dir.join("requests.log"), std::slice::from_ref(&request))?;
        push_bounded(&mut self.requests, request, MAX_REQUESTS);
        Ok(())
    }

    /// Sets the attestation policy.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), StateError> {
        store::replace_json(&self.dir.join("policy.json"), &policy)?;
        self.policy = policy;
        Ok(())
    }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, limit: usize) {
    if queue.len() >= limit {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// The state with those who wait for it.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    generation: tokio::sync::watch::Sender<u64>,
}

impl Shared {
    /// Wraps a state.
    pub fn new(state: State) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new(), generation: tokio::sync::watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a failed test already; the state itself is written object by object and usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the state and wakes everybody who waits.
    pub fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        self.generation.send_modify(|generation| *generation += 1);
        result
    }

    /// Blocks until `look` finds something, at most for `limit`.
    pub fn wait<R>(&self, limit: Duration, mut look: impl FnMut(&State) -> Option<R>) -> Option<R> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// For tasks: changes whenever the state does.
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
