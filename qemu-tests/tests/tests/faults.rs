//! A controller that asks for what cannot be: each fault stays with its object, everything else works.
//!
//! The wrong way to see it would be to look for errors only, or for working apps only: a device that refuses the whole document has errors, a
//! device that swallows faults has working apps. Both are looked at, after the same document. That a refused download "leaves nothing" is not
//! believed either: it is seen in the space that the data partition has.

use anyhow::{Context, Result, ensure};
use holdfast_api::proto::config as wire;
use holdfast_api::proto::info::ErrorInfo;
use holdfast_api::proto::info::z_info_msg::InfoContent;
use holdfast_api::proto::metrics::z_metric_msg::MetricContent;
use holdfast_scenarios::webapp::{self, NAME, REGISTRY};
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{World, artefacts, scenario, secs};
use holdfast_test_controller::config::{App, Image};
use holdfast_test_controller::oci_build::{self, Entry, ImageConfig};
use holdfast_test_controller::{Action, Endpoint, Rule};
use uuid::Uuid;

#[test]
fn config_with_broken_objects_names_each_and_applies_the_rest() {
    scenario(World::builder("broken-config"), |world| {
        world.power_on()?;
        world.wait_online(boot_limit())?;
        world.publish_webapp()?;
        let registry = world.registry();
        world.configure(|config| webapp::add(config, registry))?;

        let uuid = world.uuid()?;
        let mut config = world.controller().served_config(uuid)?.context("no configuration is served")?;
        let broken = break_it(&mut config)?;
        world.controller().set_config_raw(uuid, &config)?;
        world.wait_accepted(soon())?;

        world.wait_app_state(NAME, "RUNNING", boot_limit())?;
        world.http_get("/health", soon())?;
        for (object, expected) in broken {
            let error = world.until(&format!("an error on {object}"), soon(), |world| error_of(world, &object))?;
            eprintln!("{object}: {error}");
            ensure!(error.contains(expected), "{object}: expected a word about {expected:?}, found {error:?}");
        }
        Ok(())
    });
}

/// Adds broken objects to a good configuration; gives their names with a word that their error must contain.
fn break_it(config: &mut wire::EdgeDevConfig) -> Result<Vec<(String, &'static str)>> {
    let fresh = |n: u128| Uuid::from_u128(0xbad0_0000_0000_4000_8000_0000_0000_0000 + n).to_string();
    let versioned = |n| Some(wire::UuiDandVersion { uuid: fresh(n), version: "1".into() });

    let mut app = config.apps.first().context("no app to copy")?.clone();
    app.uuidandversion = versioned(1);
    app.displayname = "no-volume".into();
    app.volume_ref_list[0].uuid = fresh(2);
    app.interfaces.clear();
    config.apps.push(app);

    let mut instance = config.network_instances.first().context("no network instance to copy")?.clone();
    instance.uuidandversion = versioned(3);
    instance.displayname = "bad-subnet".into();
    if let Some(ip) = &mut instance.ip {
        ip.subnet = "10.300.0.0/24".into();
    }
    config.network_instances.push(instance);

    config.config_items.retain(|item| item.key != "timer.metric.interval");
    config.config_items.push(wire::ConfigItem { key: "timer.metric.interval".into(), value: "often".into() });
    Ok(vec![
        ("no-volume".into(), "volume"),
        ("bad-subnet".into(), "10.300.0.0"),
        ("timer.metric.interval".into(), "often"),
    ])
}

/// The error reported of an object or property of this name.
fn error_of(world: &World, name: &str) -> Result<Option<String>> {
    let texts = |errors: &[ErrorInfo]| {
        let texts: Vec<&str> = errors.iter().map(|e| e.description.as_str()).filter(|t| !t.is_empty()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    };
    for message in world.controller().info(world.uuid()?)? {
        let error = match message.info_content {
            Some(InfoContent::Ainfo(app)) if app.app_name == name => texts(&app.app_err),
            Some(InfoContent::Niinfo(ni)) if ni.displayname == name => texts(&ni.network_err),
            Some(InfoContent::Cinfo(tree)) if tree.display_name == name => texts(tree.err.as_slice()),
            Some(InfoContent::Dinfo(device)) => device
                .config_item_status
                .and_then(|status| status.config_items.get(name).map(|item| item.error.clone()))
                .filter(|error| !error.is_empty()),
            _ => None,
        };
        if error.is_some() {
            return Ok(error);
        }
    }
    Ok(None)
}

/// Bytes that the spoilt download is padded with: many times what anything else in these tests writes.
const PADDING: usize = 48 << 20;

#[test]
fn wrong_image_hash_leaves_nothing_behind() {
    scenario(World::builder("wrong-hash"), |world| {
        world.power_on()?;
        world.wait_online(boot_limit())?;
        let manifest = publish_padded(world)?;
        let registry = world.registry();
        world.configure(|config| webapp::add(config, registry))?;
        world.wait_app_state(NAME, "RUNNING", boot_limit())?;
        let before = used_mib(world)?;

        // A digest that the registry's image does not have.
        let wrong = "0".repeat(64);
        world.configure(|config| {
            config
                .images
                .push(Image { sha256: wrong.clone(), ..Image::container("padded", REGISTRY, "padded:latest") });
            let mut app = App::container("padded", "padded", webapp::NETWORK, &[]);
            app.interfaces.clear();
            config.apps.push(app);
        })?;
        let error = world.until("an error on the image", soon(), |world| error_of(world, "padded"))?;
        ensure!(error.contains(&wrong) || error.contains(&wrong[..12]), "the error names no digest: {error}");
        ensure!(world.app_info("padded")?.is_some_and(|a| a.boot_time.is_none()), "the app ran");

        // The right digest, but a byte of the layer changes on the way, after nearly all of it was written.
        let rule = Rule::new(Endpoint::Blob, Action::Corrupt { offset: (PADDING as u64) - 1000 });
        let rule = world.controller().add_fault(rule)?;
        world.configure(|config| {
            if let Some(image) = config.images.iter_mut().find(|i| i.name == "padded") {
                image.sha256 = manifest.clone();
                image.generation += 1;
            }
        })?;
        let error = world.until("an error of the changed layer", secs(180), |world| {
            Ok(error_of(world, "padded")?.filter(|e| !e.contains(&wrong[..12])))
        })?;
        eprintln!("changed layer: {error}");
        let after = used_mib(world)?;
        ensure!(after < before + 16, "the data partition holds {after} MiB, before the failed downloads {before} MiB");
        world.http_get("/health", soon())?;

        // Nothing is stuck either: what arrives unchanged is taken.
        world.controller().remove_faults(Some(rule));
        world.configure(|config| {
            if let Some(image) = config.images.iter_mut().find(|i| i.name == "padded") {
                image.generation += 1;
            }
        })?;
        world.wait_app_state("padded", "RUNNING", secs(240))?;
        Ok(())
    });
}

/// Serves the app with padding that does not compress; gives its manifest's digest in hex.
fn publish_padded(world: &World) -> Result<String> {
    world.publish_webapp()?;
    let program = std::fs::read(artefacts::webapp()?)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let padding = std::iter::repeat_with(|| {
        // xorshift64: noise enough for a compressor.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let padding: Vec<u8> = padding.take(PADDING / 8).flatten().collect();
    let files = [
        (NAME.to_owned(), Entry { mode: 0o755, content: program }),
        ("padding".to_owned(), Entry { mode: 0o644, content: padding }),
    ];
    let config = ImageConfig { entrypoint: vec![format!("/{NAME}")], ..ImageConfig::default() };
    let built = oci_build::from_files(&files.into(), &config, "latest", &world.folder().join("padded-image"))?;
    world.controller().publish_image("padded", &built.layout)?;
    Ok(built.manifest_digest.trim_start_matches("sha256:").to_owned())
}

/// What the data partition holds, by metrics that come after now.
fn used_mib(world: &mut World) -> Result<u64> {
    let uuid = world.uuid()?;
    let since = world.controller().position();
    world.until("fresh metrics", soon(), |world| {
        // The second message after now: the first may have been made before.
        let fresh =
            world.controller().requests().iter().filter(|r| r.seq > since && r.endpoint == Endpoint::Metrics).count();
        if fresh < 2 {
            return Ok(None);
        }
        let used = world.controller().metrics(uuid)?.last().and_then(|m| match &m.metric_content {
            Some(MetricContent::Dm(device)) => device.disk.iter().find(|d| d.mount_path == "/data").map(|d| d.used),
            _ => None,
        });
        Ok(used)
    })
}
