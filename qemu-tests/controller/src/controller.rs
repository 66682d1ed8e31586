//! The controller as an object: tests and the demo start it, talk to it with plain blocking calls, and drop it.

use crate::artifacts::{self, Artifacts, Auth};
use crate::attest::Policy;
use crate::config::{DeviceConfig, object_id};
use crate::endpoints::Quirks;
use crate::faults::{Active, Rule};
use crate::http::{self, TlsSettings};
use crate::pki::{Pki, PkiError, PkiOptions, Role};
use crate::records::{LogRecord, RequestRecord, Served, Source};
use crate::state::{Device, Shared, State, StateError};
use crate::status::DeviceStatus;
use crate::store::{self, StoreError};
use crate::{admin, device_api};
use holdfast_api::proto::config::EdgeDevConfig;
use holdfast_api::proto::info::ZInfoMsg;
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_api::proto::metrics::ZMetricMsg;
use prost::Message;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// How to start a controller.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the durable state; made if it is not there.
    pub data_dir: PathBuf,
    /// Device API (HTTPS).
    pub device_addr: SocketAddr,
    /// Admin API (plain HTTP, no authentication): keep it on loopback. `None`: not served.
    pub admin_addr: Option<SocketAddr>,
    /// Artifact server (HTTPS). `None`: not served.
    pub artifact_addr: Option<SocketAddr>,
    /// Names and addresses by which devices reach the controller and the artifacts.
    pub server_names: Vec<String>,
    /// Issue signing certificates through an intermediate CA.
    pub intermediate: bool,
    /// Files served below `/files/` of the artifact server; the folder is made if it is not there.
    pub files_dir: Option<PathBuf>,
    /// Answer as the reference controller where it differs from the specification.
    pub quirks: Quirks,
}

impl Options {
    /// Everything on free ports of 127.0.0.1, also reachable by QEMU guests as 10.0.2.2.
    pub fn loopback(data_dir: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let data_dir = data_dir.into();
        Self {
            files_dir: Some(data_dir.join("files")),
            data_dir,
            device_addr: any,
            admin_addr: Some(any),
            artifact_addr: Some(any),
            server_names: ["localhost", "127.0.0.1", "10.0.2.2", "controller.test"].map(str::to_owned).into(),
            intermediate: false,
            quirks: Quirks::default(),
        }
    }
}

/// Why a controller did not start or a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// Disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port.
    #[error("{what}: cannot listen on {addr}: {cause}; end what uses it, or choose another address")]
    Listen {
        /// Which server.
        what: &'static str,
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// TLS settings.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A fault rule.
    #[error("{0}")]
    Fault(String),
    /// Threads or the event loop.
    #[error("controller: cannot start: {0}")]
    Start(std::io::Error),
    /// Something did not happen in time.
    #[error("waited {limit:?} for {what}; last seen:\n{last_seen}")]
    Timeout {
        /// What did not happen.
        what: String,
        /// How long it was waited for.
        limit: Duration,
        /// Status of the device or devices.
        last_seen: String,
    },
}

/// A running controller. Dropping it closes all its connections and ends its thread.
pub struct Controller {
    shared: Arc<Shared>,
    artifacts: Arc<Artifacts>,
    tls: TlsSettings,
    device_addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    artifact_addr: Option<SocketAddr>,
    data_dir: PathBuf,
    _lock: File,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Starts a controller on its own thread.
    pub fn start(options: Options) -> Result<Self, ControllerError> {
        let lock = store::lock(&options.data_dir)?;
        let pki_options = PkiOptions { server_names: options.server_names.clone(), intermediate: options.intermediate };
        let pki = Pki::load_or_create(&options.data_dir.join("pki"), &pki_options)?;
        let tls = TlsSettings::new(&pki.tls)?;
        let shared = Arc::new(Shared::new(State::load(options.data_dir.clone(), pki)?));
        if let Some(files) = &options.files_dir {
            std::fs::create_dir_all(files).map_err(|error| StoreError {
                path: files.clone(),
                action: "create folder",
                cause: error.to_string(),
            })?;
        }
        let artifacts = Arc::new(Artifacts::new(options.files_dir.clone()));
        let images: Option<BTreeMap<String, PathBuf>> = store::read_json(&options.data_dir.join("images.json"))?;
        for (name, layout) in images.unwrap_or_default() {
            artifacts.publish(&name, layout);
        }

        let (device_listener, device_addr) = listen("device API", options.device_addr)?;
        let admin = options.admin_addr.map(|addr| listen("admin API", addr)).transpose()?;
        let artifact = options.artifact_addr.map(|addr| listen("artifact server", addr)).transpose()?;
        let admin_addr = admin.as_ref().map(|(_, addr)| *addr);
        let artifact_addr = artifact.as_ref().map(|(_, addr)| *addr);
        let (stop, stopped) = watch::channel(false);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ControllerError::Start)?;
        let context = admin::Context {
            shared: shared.clone(),
            artifacts: artifacts.clone(),
            tls: tls.clone(),
            data_dir: options.data_dir.clone(),
            device_addr,
            artifact_addr,
        };
        let (device_tls, device_shared, quirks) = (tls.clone(), shared.clone(), options.quirks);
        let (artifact_tls, artifact_shared, artifact_store) = (tls.clone(), shared.clone(), artifacts.clone());
        let serving = async move {
            let tokio_listener = |listener: TcpListener| tokio::net::TcpListener::from_std(listener);
            let mut servers = tokio::task::JoinSet::new();
            if let Ok(listener) = tokio_listener(device_listener) {
                servers.spawn(http::serve(
                    listener,
                    Some(device_tls),
                    move |connection, request| device_api::handle(device_shared.clone(), quirks, connection, request),
                    stopped.clone(),
                ));
            }
            if let Some(Ok(listener)) = admin.map(|(listener, _)| tokio_listener(listener)) {
                servers.spawn(http::serve(
                    listener,
                    None,
                    move |_, request| admin::handle(context.clone(), request),
                    stopped.clone(),
                ));
            }
            if let Some(Ok(listener)) = artifact.map(|(listener, _)| tokio_listener(listener)) {
                servers.spawn(http::serve(
                    listener,
                    Some(artifact_tls),
                    move |connection, request| {
                        artifacts::handle(artifact_shared.clone(), artifact_store.clone(), connection, request)
                    },
                    stopped,
                ));
            }
            while servers.join_next().await.is_some() {}
        };
        let thread = std::thread::Builder::new()
            .name("controller".into())
            .spawn(move || runtime.block_on(serving))
            .map_err(ControllerError::Start)?;
        Ok(Self {
            shared,
            artifacts,
            tls,
            device_addr,
            admin_addr,
            artifact_addr,
            data_dir: options.data_dir,
            _lock: lock,
            stop,
            thread: Some(thread),
        })
    }

    /// Where the device API listens.
    pub fn device_addr(&self) -> SocketAddr {
        self.device_addr
    }

    /// Where the admin API listens.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// Where the artifact server listens.
    pub fn artifact_addr(&self) -> Option<SocketAddr> {
        self.artifact_addr
    }

    /// Folder of the durable state.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The root certificate, PEM: goes into the device's SITE.
    pub fn root_pem(&self) -> String {
        self.shared.read(|state| state.pki.root.cert.pem.clone())
    }

    /// A ready-made onboarding certificate and its key, PEM. It is good for nothing until [`Controller::onboard`].
    pub fn onboarding_material(&self) -> (String, String) {
        self.shared.read(|state| {
            let identity = &state.pki.onboarding;
            (identity.cert.pem.clone(), identity.key_pem.clone())
        })
    }

    /// Lets devices with this onboarding certificate and one of these serials (comma separated, `*` is any) register.
    pub fn onboard(&self, cert_pem: &str, serials: &str) -> Result<(), ControllerError> {
        let serials = serials.split(',').map(|serial| serial.trim().to_owned()).collect();
        self.shared.update(|state| state.onboard(cert_pem, serials))?;
        Ok(())
    }

    /// UUIDs of all devices.
    pub fn devices(&self) -> Vec<Uuid> {
        self.shared.read(|state| state.devices.keys().copied().collect())
    }

    /// Removes a device with all it sent; its serial may register again.
    pub fn remove_device(&self, uuid: Uuid) -> Result<(), ControllerError> {
        Ok(self.shared.update(|state| state.remove_device(uuid))?)
    }

    /// Summary of a device.
    pub fn status(&self, uuid: Uuid) -> Result<DeviceStatus, ControllerError> {
        Ok(self.shared.read(|state| state.device(uuid).map(DeviceStatus::of))?)
    }

    /// Blocks until some device has registered.
    pub fn wait_device(&self, limit: Duration) -> Result<Uuid, ControllerError> {
        self.wait("a device to register", limit, |state| state.devices.keys().next().copied())
    }

    /// Sets the configuration of a device.
    pub fn set_config(&self, uuid: Uuid, config: DeviceConfig) -> Result<(), ControllerError> {
        Ok(self.shared.update(|state| state.set_config(uuid, Source::Document(Box::new(config))))?)
    }

    /// Sets the configuration of a device word by word; id, version and certificate hash are filled in.
    pub fn set_config_raw(&self, uuid: Uuid, config: &EdgeDevConfig) -> Result<(), ControllerError> {
        let source = Source::Raw(hex::encode(config.encode_to_vec()));
        Ok(self.shared.update(|state| state.set_config(uuid, source))?)
    }

    /// The configuration that is served to a device, `None` if there is none (yet).
    pub fn served_config(&self, uuid: Uuid) -> Result<Option<EdgeDevConfig>, ControllerError> {
        let served: Option<Served> = self.shared.read(|state| state.device(uuid).map(|d| d.served.clone().ok()))?;
        served
            .map(|served| EdgeDevConfig::decode(served.bytes.as_slice()))
            .transpose()
            .map_err(|error| StateError::Raw(error.to_string()).into())
    }

    /// Blocks until the device has asked with the hash of the present configuration, that is: has it.
    pub fn wait_config_accepted(&self, uuid: Uuid, limit: Duration) -> Result<(), ControllerError> {
        self.wait("the device to accept its configuration", limit, |state| {
            state.devices.get(&uuid).filter(|device| device.has_current_config()).map(|_| ())
        })
    }

    /// The last info message of each object of a device.
    pub fn info(&self, uuid: Uuid) -> Result<Vec<ZInfoMsg>, ControllerError> {
        Ok(self.shared.read(|state| {
            let device = state.device(uuid)?;
            Ok::<_, StateError>(device.info.values().map(|info| info.message.clone()).collect())
        })?)
    }

    /// Blocks until the last info message of some object fits.
    pub fn wait_info(
        &self,
        uuid: Uuid,
        what: &str,
        limit: Duration,
        fits: impl Fn(&ZInfoMsg) -> bool,
    ) -> Result<ZInfoMsg, ControllerError> {
        self.wait(what, limit, |state| {
            let device = state.devices.get(&uuid)?;
            device.info.values().map(|info| &info.message).find(|message| fits(message)).cloned()
        })
    }

    /// Blocks until an info message that arrived after position `since` (see [`Controller::position`]) fits. Sees
    /// states that were there for a moment only.
    pub fn wait_info_since(
        &self,
        uuid: Uuid,
        since: u64,
        what: &str,
        limit: Duration,
        fits: impl Fn(&ZInfoMsg) -> bool,
    ) -> Result<ZInfoMsg, ControllerError> {
        self.wait(what, limit, |state| {
            let device = state.devices.get(&uuid)?;
            let new = device.info_history.iter().filter(|info| info.seq > since);
            new.map(|info| &info.message).find(|message| fits(message)).cloned()
        })
    }

    /// Blocks until the app `name` of the configuration document is reported in this state (such as `RUNNING`).
    pub fn wait_app_state(
        &self,
        uuid: Uuid,
        name: &str,
        state_name: &str,
        limit: Duration,
    ) -> Result<ZInfoMsg, ControllerError> {
        let id = object_id(uuid, "app", name).to_string();
        self.wait_info(uuid, &format!("app {name:?} to be {state_name}"), limit, |message| {
            matches!(&message.info_content, Some(InfoContent::Ainfo(app))
                if app.app_id == id && crate::status::sw_state(app.state) == state_name)
        })
    }

    /// Position among everything that happened; later events have larger numbers.
    pub fn position(&self) -> u64 {
        self.shared.read(State::seq)
    }

    /// Log lines of the device.
    pub fn device_logs(&self, uuid: Uuid) -> Result<Vec<LogRecord>, ControllerError> {
        Ok(self.shared.read(|state| state.device(uuid).map(|d| d.logs.iter().cloned().collect()))?)
    }

    /// Log lines of the app `name` of the configuration document.
    pub fn app_logs(&self, uuid: Uuid, name: &str) -> Result<Vec<LogRecord>, ControllerError> {
        let app = object_id(uuid, "app", name);
        Ok(self.shared.read(|state| {
            let device = state.device(uuid)?;
            Ok::<_, StateError>(device.app_logs.get(&app).into_iter().flatten().cloned().collect())
        })?)
    }

    /// Blocks until a line of the app's log contains `text`.
    pub fn wait_app_log(
        &self,
        uuid: Uuid,
        name: &str,
        text: &str,
        limit: Duration,
    ) -> Result<LogRecord, ControllerError> {
        let app = object_id(uuid, "app", name);
        self.wait(&format!("app {name:?} to log {text:?}"), limit, |state| {
            let lines = state.devices.get(&uuid)?.app_logs.get(&app)?;
            lines.iter().find(|record| record.line.content.contains(text)).cloned()
        })
    }

    /// Last metrics messages of a device.
    pub fn metrics(&self, uuid: Uuid) -> Result<Vec<ZMetricMsg>, ControllerError> {
        Ok(self.shared.read(|state| state.device(uuid).map(|d| d.metrics.iter().map(|(_, m)| m.clone()).collect()))?)
    }

    /// Last requests, oldest first.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.read(|state| state.requests.iter().cloned().collect())
    }

    /// Blocks until a request after position `since` fits.
    pub fn wait_request(
        &self,
        since: u64,
        what: &str,
        limit: Duration,
        fits: impl Fn(&RequestRecord) -> bool,
    ) -> Result<RequestRecord, ControllerError> {
        self.wait(what, limit, |state| {
            state.requests.iter().find(|request| request.seq > since && fits(request)).cloned()
        })
    }

    /// Adds a fault rule; returns its number.
    pub fn add_fault(&self, rule: Rule) -> Result<u64, ControllerError> {
        self.shared.update(|state| state.faults.add(rule)).map_err(ControllerError::Fault)
    }

    /// Removes one fault rule, or all.
    pub fn remove_faults(&self, id: Option<u64>) -> usize {
        self.shared.update(|state| state.faults.remove(id))
    }

    /// Fault rules with how often each was used.
    pub fn faults(&self) -> Vec<Active> {
        self.shared.read(|state| state.faults.list().to_vec())
    }

    /// Sets the attestation policy.
    pub fn set_policy(&self, policy: Policy) -> Result<(), ControllerError> {
        Ok(self.shared.update(|state| state.set_policy(policy))?)
    }

    /// Takes a device's integrity token away: its next config request is answered 403.
    pub fn revoke_token(&self, uuid: Uuid) -> Result<(), ControllerError> {
        Ok(self.shared.update(|state| {
            state.device_mut(uuid)?.record.proof.token = None;
            state.save_device(uuid)
        })?)
    }

    /// Replaces one of the controller's certificates.
    pub fn rotate(&self, role: Role) -> Result<(), ControllerError> {
        rotate(&self.shared, &self.tls, role)
    }

    /// Serves the OCI layout at `layout` as `repository` on the artifact server.
    pub fn publish_image(&self, repository: &str, layout: &Path) -> Result<(), ControllerError> {
        publish(&self.artifacts, &self.data_dir, repository, layout)
    }

    /// Sets what the registry asks of its clients.
    pub fn set_registry_auth(&self, auth: Auth) {
        self.artifacts.set_auth(auth);
    }

    fn wait<R>(
        &self,
        what: &str,
        limit: Duration,
        look: impl FnMut(&State) -> Option<R>,
    ) -> Result<R, ControllerError> {
        self.shared.wait(limit, look).ok_or_else(|| ControllerError::Timeout {
            what: what.to_owned(),
            limit,
            last_seen: self.shared.read(last_seen),
        })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a failed wait shows: the devices, or if there is none the last requests.
fn last_seen(state: &State) -> String {
    let mut out: String = state.devices.values().map(|d: &Device| DeviceStatus::of(d).to_string()).collect();
    out.push_str("last requests:\n");
    if state.requests.is_empty() {
        out.push_str("  none\n");
    }
    for request in state.requests.iter().rev().take(10).rev() {
        out.push_str(&format!("  {} {}: {} {}\n", request.method, request.path, request.status, request.note));
    }
    out
}

fn listen(what: &'static str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), ControllerError> {
    let fail = |cause| ControllerError::Listen { what, addr, cause };
    let listener = TcpListener::bind(addr).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let addr = listener.local_addr().map_err(fail)?;
    Ok((listener, addr))
}

/// Replaces a certificate and everything that depends on it.
pub(crate) fn rotate(shared: &Shared, tls: &TlsSettings, role: Role) -> Result<(), ControllerError> {
    shared.update(|state| {
        state.pki.rotate(role)?;
        state.pki.save(&state.dir.join("pki"))?;
        if role == Role::Tls {
            tls.replace(&state.pki.tls)?;
        }
        let devices: Vec<Uuid> = state.devices.keys().copied().collect();
        for uuid in devices {
            state.rebuild_config(uuid)?;
        }
        Ok(())
    })
}

/// Serves an image and remembers it.
pub(crate) fn publish(
    artifacts: &Artifacts,
    data_dir: &Path,
    repository: &str,
    layout: &Path,
) -> Result<(), ControllerError> {
    artifacts.publish(repository, layout.to_owned());
    store::replace_json(&data_dir.join("images.json"), &artifacts.images())?;
    Ok(())
}
