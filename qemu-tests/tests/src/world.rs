//! One controller and one device that belong together.

use crate::artefacts::Artefacts;
use crate::stages::{self, Line};
use crate::{http, offline};
use anyhow::{Context, Result, bail};
use holdfast_format::site::{FirstNetwork, Site};
use holdfast_harness::{Device, Nic, secs};
use holdfast_test_controller::controller::Options;
use holdfast_test_controller::{Action, Controller, DeviceConfig, Rule};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

/// Port of the device through which the app answers.
pub const APP_PORT: u16 = 8080;
/// Name under which the device knows its controller; there is no name server for it, SITE carries the address.
pub const CONTROLLER_NAME: &str = "controller.test";
/// Pause between two looks of a wait.
const LOOK: Duration = Duration::from_millis(150);
/// Console lines that a failure shows.
const LINES_SHOWN: usize = 40;
/// Longest wait for each step of one HTTP request.
const HTTP_STEP: Duration = Duration::from_secs(5);

/// Changes the image before the device first sees it.
type Prepare = Box<dyn FnOnce(&Path) -> Result<()>>;

/// Describes a world; see [`World::builder`].
pub struct Builder {
    name: String,
    artefacts: Option<Artefacts>,
    tpm: bool,
    secure_boot: bool,
    memory_mib: u32,
    disk_bytes: u64,
    isolated: bool,
    site: Option<Site>,
    config: DeviceConfig,
    prepare: Vec<Prepare>,
    interrupt: Arc<AtomicBool>,
}

impl Builder {
    /// Starts with this version instead of [`Artefacts::first`].
    #[must_use]
    pub fn artefacts(self, artefacts: Artefacts) -> Self {
        Self { artefacts: Some(artefacts), ..self }
    }

    /// A TPM; on if not said.
    #[must_use]
    pub fn tpm(self, tpm: bool) -> Self {
        Self { tpm, ..self }
    }

    /// Secure Boot; on if not said.
    #[must_use]
    pub fn secure_boot(self, secure_boot: bool) -> Self {
        Self { secure_boot, ..self }
    }

    /// A network card whose network leads nowhere: the controller cannot be reached.
    #[must_use]
    pub fn isolated(self) -> Self {
        Self { isolated: true, ..self }
    }

    /// Another SITE than the one of our own controller.
    #[must_use]
    pub fn site(self, site: Site) -> Self {
        Self { site: Some(site), ..self }
    }

    /// The configuration that the device finds when it first asks; [`DeviceConfig::quick`] if not said.
    #[must_use]
    pub fn config(self, config: DeviceConfig) -> Self {
        Self { config, ..self }
    }

    /// Sets a device property of the first configuration.
    #[must_use]
    pub fn property(mut self, key: &str, value: &str) -> Self {
        self.config.properties.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Changes the device's copy of the image (SITE is written already) before it is first booted; see [`crate::offline`].
    #[must_use]
    pub fn prepare(mut self, change: impl FnOnce(&Path) -> Result<()> + 'static) -> Self {
        self.prepare.push(Box::new(change));
        self
    }

    /// Every wait ends with an error once this is true.
    #[must_use]
    pub fn interrupt(self, interrupt: Arc<AtomicBool>) -> Self {
        Self { interrupt, ..self }
    }

    /// Starts the controller and makes the device. It is off.
    ///
    /// # Errors
    /// A missing image, firmware or tool.
    pub fn build(self) -> Result<World> {
        World::make(self)
    }
}

/// A controller and a device. Dropped, both end; their files go too unless a test has failed or `$HOLDFAST_KEEP` is set.
pub struct World {
    /// The device.
    pub device: Device,
    controller: Option<Controller>,
    options: Options,
    config: DeviceConfig,
    uuid: Option<Uuid>,
    artefacts: Artefacts,
    image: PathBuf,
    site_document: Vec<u8>,
    site: Site,
    artifact_addr: SocketAddr,
    began: Instant,
    interrupt: Arc<AtomicBool>,
    folder: Option<TempDir>,
}

/// Runs a scenario: makes the world, hands it over, prints the time. A failure shows the controller's view, the end of the console
/// and where everything is kept.
///
/// # Panics
/// When the scenario fails.
pub fn scenario(builder: Builder, story: impl FnOnce(&mut World) -> Result<()>) {
    let name = builder.name.clone();
    let began = Instant::now();
    let mut world = match builder.build() {
        Ok(world) => world,
        Err(error) => panic!("{name}: cannot start: {error:#}"),
    };
    if let Err(error) = story(&mut world) {
        panic!("{name}: after {:.0} s: {error:#}\n{}", began.elapsed().as_secs_f32(), world.describe());
    }
    eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f32());
}

impl World {
    /// Starts the description of a world; `name` appears in file names and messages.
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            artefacts: None,
            tpm: true,
            secure_boot: true,
            memory_mib: 1536,
            disk_bytes: 8 << 30,
            isolated: false,
            site: None,
            config: DeviceConfig::quick(),
            prepare: Vec::new(),
            interrupt: Arc::default(),
        }
    }

    fn make(builder: Builder) -> Result<Self> {
        let artefacts = builder.artefacts.map_or_else(Artefacts::first, Ok)?;
        let parent = std::env::var_os("HOLDFAST_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let folder = tempfile::Builder::new().prefix(&format!("holdfast-{}-", builder.name)).tempdir_in(parent)?;

        let mut options = Options::loopback(folder.path().join("controller"));
        let controller = Controller::start(options.clone())?;
        options.device_addr = controller.device_addr();
        let artifact_addr = controller.artifact_addr().context("the controller serves no artifacts")?;
        options.artifact_addr = Some(artifact_addr);
        options.admin_addr = controller.admin_addr();

        let serial = format!("HF-{}", builder.name);
        let (onboard_cert_pem, onboard_key_pem) = controller.onboarding_material();
        controller.onboard(&onboard_cert_pem, &serial)?;
        let site = builder.site.unwrap_or_else(|| Site {
            server: format!("{CONTROLLER_NAME}:{}", options.device_addr.port()),
            server_address: Some(Nic::gateway(0).into()),
            root_certs_pem: controller.root_pem(),
            onboard_cert_pem,
            onboard_key_pem,
            serial: Some(serial.clone()),
            soft_serial: None,
            hosts: Vec::new(),
            network: FirstNetwork::default(),
        });

        let image = folder.path().join("system.img");
        offline::copy(&artefacts.image, &image)?;
        let site_document = offline::write_site(&image, &site)?;
        for change in builder.prepare {
            change(&image)?;
        }
        let mut nic = Nic::user().forward(APP_PORT);
        if builder.isolated {
            nic = nic.isolated();
        }
        let device = Device::builder(&builder.name)
            .folder(folder.path().join("device"))
            .image(&image)
            .disk_bytes(builder.disk_bytes)
            .memory_mib(builder.memory_mib)
            .tpm(builder.tpm)
            .secure_boot(builder.secure_boot)
            .nic(nic)
            .serial_number(&serial)
            .build()?;
        Ok(Self {
            device,
            controller: Some(controller),
            options,
            config: builder.config,
            uuid: None,
            artefacts,
            image,
            site_document,
            site,
            artifact_addr,
            began: Instant::now(),
            interrupt: builder.interrupt,
            folder: Some(folder),
        })
    }

    // --- the machine -----------------------------------------------------------------------------------------------

    /// Switches the machine on.
    ///
    /// # Errors
    /// When it is on already, or QEMU does not start.
    pub fn power_on(&mut self) -> Result<()> {
        self.device.power_on()
    }

    /// Cuts the power and switches on again: what was not on disk is gone.
    ///
    /// # Errors
    /// When the machine was off.
    pub fn power_cycle(&mut self) -> Result<()> {
        self.device.power_cut()?;
        self.device.power_on()
    }

    /// Lines of PID 1 and its units since power on.
    pub fn console(&mut self) -> Vec<Line> {
        stages::lines(&self.device.serial().text())
    }

    /// Waits for a console line that contains `text` among those since power on, also those said before.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_console(&mut self, text: &str, limit: Duration) -> Result<Line> {
        self.until(&format!("the console to say {text:?}"), limit, |world| {
            Ok(world.console().into_iter().find(|l| format!("{}: {}", l.who, l.text).contains(text)))
        })
    }

    /// The image that the device started from, with its SITE.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The version that the device started from.
    pub fn artefacts(&self) -> &Artefacts {
        &self.artefacts
    }

    /// The SITE document: what PID 1 measures into PCR 14.
    pub fn site_document(&self) -> &[u8] {
        &self.site_document
    }

    /// The SITE that the document says.
    pub fn site(&self) -> &Site {
        &self.site
    }

    // --- the controller --------------------------------------------------------------------------------------------

    /// Our controller runs; not so for a device of somebody else's.
    pub fn has_controller(&self) -> bool {
        self.controller.is_some()
    }

    /// The controller.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn controller(&self) -> &Controller {
        self.controller.as_ref().expect("the controller runs; it was stopped by stop_controller")
    }

    /// Ends the controller: nobody listens on its ports until [`World::start_controller`].
    pub fn stop_controller(&mut self) {
        self.controller = None;
    }

    /// Starts it again with what it had stored, on the same ports.
    ///
    /// # Errors
    /// When something else took a port meanwhile.
    pub fn start_controller(&mut self) -> Result<()> {
        if self.controller.is_none() {
            self.controller = Some(Controller::start(self.options.clone())?);
        }
        Ok(())
    }

    /// Every request is cut from now on, as if a cable were unplugged behind the next router; returns the rule's number for
    /// [`Controller::remove_faults`].
    ///
    /// # Errors
    /// Too many rules.
    pub fn cut_controller(&self) -> Result<u64> {
        let rule = Rule {
            on: None,
            device: None,
            path_contains: None,
            action: Action::CutBefore,
            skip: 0,
            count: None,
            seconds: None,
        };
        Ok(self.controller().add_fault(rule)?)
    }

    /// Where the device finds the controller's artifact server, as `address:port`.
    pub fn artifact_host(&self) -> String {
        format!("{}:{}", Nic::gateway(0), self.artifact_addr.port())
    }

    /// Folder that the artifact server serves as `/files/`.
    ///
    /// # Errors
    /// Never so far: the controller is started with one.
    pub fn files(&self) -> Result<PathBuf> {
        self.options.files_dir.clone().context("the controller serves no files")
    }

    /// Folder for what a scenario makes.
    ///
    /// # Panics
    /// Never while the world lives.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("the folder lives as long as the world").path()
    }

    /// The device's UUID.
    ///
    /// # Errors
    /// When it has not registered.
    pub fn uuid(&self) -> Result<Uuid> {
        self.uuid.context("the device has not registered yet: wait_online comes first")
    }

    /// The configuration document in force.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// Changes the configuration document and hands it to the controller.
    ///
    /// # Errors
    /// When the controller cannot keep it.
    pub fn configure(&mut self, change: impl FnOnce(&mut DeviceConfig)) -> Result<()> {
        change(&mut self.config);
        if let Some(uuid) = self.uuid {
            self.controller().set_config(uuid, self.config.clone())?;
        }
        Ok(())
    }

    /// [`World::configure`], then waits until the device says that it has it.
    ///
    /// # Errors
    /// At the deadline.
    pub fn configure_and_wait(&mut self, limit: Duration, change: impl FnOnce(&mut DeviceConfig)) -> Result<()> {
        self.configure(change)?;
        self.wait_accepted(limit)
    }

    /// Waits until the device has asked with the hash of the present configuration.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_accepted(&mut self, limit: Duration) -> Result<()> {
        let uuid = self.uuid()?;
        self.until("the device to accept its configuration", limit, |world| {
            Ok(world.controller().status(uuid)?.config_accepted.then_some(()))
        })
    }

    /// Waits until the device has registered, proved itself and accepted its configuration.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_online(&mut self, limit: Duration) -> Result<Uuid> {
        let began = Instant::now();
        let uuid = match self.uuid {
            Some(uuid) => uuid,
            None => {
                let uuid = self.until("the device to register", limit, |world| {
                    Ok(world.controller().devices().first().copied())
                })?;
                self.uuid = Some(uuid);
                self.controller().set_config(uuid, self.config.clone())?;
                uuid
            }
        };
        self.wait_accepted(limit.saturating_sub(began.elapsed()))?;
        Ok(uuid)
    }

    /// Waits until the device asks for its configuration again, that is: until this boot has reached the controller.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_contact(&mut self, since: u64, limit: Duration) -> Result<()> {
        self.until("the device to ask for its configuration", limit, |world| {
            let seen = world.controller().requests();
            Ok(seen
                .iter()
                .any(|r| {
                    r.seq > since
                        && r.endpoint == holdfast_test_controller::Endpoint::Config
                        && matches!(r.status, 200 | 304)
                })
                .then_some(()))
        })
    }

    // --- the app ---------------------------------------------------------------------------------------------------

    /// Where the app answers, on this machine.
    pub fn app_address(&self) -> SocketAddr {
        self.device.forwarded(APP_PORT)
    }

    /// Asks the app once.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub fn http_once(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.app_address(), path, HTTP_STEP)
    }

    /// Asks the app until it answers with 200; gives the body.
    ///
    /// # Errors
    /// At the deadline; the last answer is told.
    pub fn http_get(&mut self, path: &str, limit: Duration) -> Result<String> {
        let mut last = String::from("nothing");
        let answer = self.until(&format!("GET {path} to be answered"), limit, |world| {
            match world.http_once(path) {
                Ok((200, body)) => return Ok(Some(body)),
                Ok((status, body)) => last = format!("status {status}: {body}"),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        });
        answer.with_context(|| format!("GET {path}: last answer: {last}"))
    }

    // --- waiting ---------------------------------------------------------------------------------------------------

    /// Looks until there is something to see. Ends at once when `look` fails, the machine dies or the world is interrupted.
    ///
    /// # Errors
    /// At the deadline, with what the controller and the console last showed.
    pub fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&mut World) -> Result<Option<T>>,
    ) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(seen) = look(self).with_context(|| format!("while waiting for {what}"))? {
                return Ok(seen);
            }
            if self.interrupt.load(Ordering::Relaxed) {
                bail!("interrupted while waiting for {what}");
            }
            if !self.device.is_on() {
                bail!("the machine went off while waiting for {what}");
            }
            if began.elapsed() >= limit {
                bail!("waited {} s for {what}, in vain", limit.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Checks for a while that something stays as it is.
    ///
    /// # Errors
    /// As soon as `look` fails.
    pub fn throughout(&mut self, time: Duration, mut look: impl FnMut(&mut World) -> Result<()>) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            look(self)?;
            if self.interrupt.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Time since the world was made.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// What was last seen, and where to look: for failures.
    pub fn describe(&mut self) -> String {
        let mut out = String::new();
        match &self.controller {
            None => out.push_str("controller: stopped\n"),
            Some(controller) => {
                for uuid in controller.devices() {
                    out.push_str(&controller.status(uuid).map_or_else(|e| e.to_string(), |s| s.to_string()));
                }
                out.push_str("last requests:\n");
                for r in controller.requests().iter().rev().take(10).rev() {
                    out.push_str(&format!("  {} {}: {} {}\n", r.method, r.path, r.status, r.note));
                }
            }
        }
        let text = self.device.serial().text();
        let lines: Vec<&str> = text.lines().collect();
        out.push_str("the console ends with:\n");
        for line in &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
            out.push_str(&format!("  {line}\n"));
        }
        out.push_str(&self.device.evidence());
        out
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if (std::thread::panicking() || std::env::var_os("HOLDFAST_KEEP").is_some())
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept for inspection: {}", folder.keep().display());
        }
    }
}

/// A deadline for what takes seconds on a device that is up.
pub fn soon() -> Duration {
    secs(90)
}

/// A deadline for a boot up to the first contact.
pub fn boot_limit() -> Duration {
    secs(300)
}
