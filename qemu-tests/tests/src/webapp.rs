//! The demo's app as a container image in the controller's registry, and its part of the configuration.

use crate::world::APP_PORT;
use crate::{World, artefacts, http};
use anyhow::{Context, Result, ensure};
use holdfast_test_controller::DeviceConfig;
use holdfast_test_controller::config::{App, Datastore, DatastoreKind, Image, NetworkInstance};
use holdfast_test_controller::oci_build::{self, Built, Entry, ImageConfig};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Name of the app, its image and its repository.
pub const NAME: &str = "webapp";
/// Name of its network instance.
pub const NETWORK: &str = "apps";
/// Name of the datastore that is the controller's registry.
pub const REGISTRY: &str = "registry";
/// Bytes that [`World::fetch_bulk`] asks the app for.
pub const BULK_BYTES: u64 = 4 << 20;
/// SHA-256 of so many bytes of the app's stream (`qemu-tests/webapp/src/bulk.rs`).
pub const BULK_SHA256: &str = "aec939e1948e860ea9ef40c85e67cbd926945a5425d08f41dea8072b1c581d61";
/// Subnet of the network instance.
pub const SUBNET: &str = "10.11.0.0/24";

impl World {
    /// Builds the app's image and serves it; gives its digests.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn publish_webapp(&self) -> Result<Built> {
        let program = std::fs::read(artefacts::webapp()?)?;
        let files = [(NAME.to_owned(), Entry { mode: 0o755, content: program })].into();
        let config = ImageConfig {
            entrypoint: vec![format!("/{NAME}")],
            env: vec!["APP_NAME=webapp".into()],
            exposed_ports: vec!["80/tcp".into()],
            ..ImageConfig::default()
        };
        let built = oci_build::from_files(&files, &config, "latest", &self.folder().join("webapp-image"))?;
        self.controller().publish_image(NAME, &built.layout)?;
        Ok(built)
    }

    /// The controller's registry as a datastore.
    pub fn registry(&self) -> Datastore {
        Datastore::new(REGISTRY, DatastoreKind::Registry, &self.artifact_host(), &[self.controller().root_pem()])
    }

    /// Publishes the app, configures it with its network instance, and waits until it runs and answers.
    ///
    /// # Errors
    /// At the deadline, which is for all steps together.
    pub fn deploy_webapp(&mut self, limit: Duration) -> Result<()> {
        let began = std::time::Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        self.publish_webapp()?;
        let registry = self.registry();
        self.configure(|config| add(config, registry))?;
        self.wait_accepted(left())?;
        self.wait_app_state(NAME, "RUNNING", left())?;
        self.http_get("/health", left()).map(drop).context("the app runs")
    }

    /// Fetches [`BULK_BYTES`] of the app's stream through the port map, and compares their SHA-256. `step` bounds each wait for
    /// some of them.
    ///
    /// # Errors
    /// No whole answer in time; other bytes.
    pub fn fetch_bulk(&self, step: Duration) -> Result<()> {
        let path = format!("/bulk?bytes={BULK_BYTES}");
        let (head, body) = http::get_bytes(self.app_address(), &path, step, BULK_BYTES + 4096)?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "GET {path}: {head}");
        let found = hex::encode(Sha256::digest(&body));
        ensure!(
            found == BULK_SHA256,
            "GET {path}: expected {BULK_BYTES} bytes with SHA-256 {BULK_SHA256}, found {} with {found}",
            body.len()
        );
        Ok(())
    }

    /// The app's entry in the configuration document.
    ///
    /// # Errors
    /// When the controller cannot keep the changed document.
    pub fn configure_webapp(&mut self, change: impl FnOnce(&mut App)) -> Result<()> {
        self.configure(|config| {
            if let Some(app) = config.apps.iter_mut().find(|app| app.name == NAME) {
                change(app);
            }
        })
    }
}

/// Adds registry, image, network instance and app to a document.
pub fn add(config: &mut DeviceConfig, registry: Datastore) {
    config.datastores.push(registry);
    config.images.push(Image::container(NAME, REGISTRY, &format!("{NAME}:latest")));
    config.network_instances.push(NetworkInstance::local(NETWORK, "eth0", SUBNET));
    let mut app = App::container(NAME, NAME, NETWORK, &[(APP_PORT, 80)]);
    app.env.insert("GREETING".into(), "Hello from Holdfast".into());
    config.apps.push(app);
}
