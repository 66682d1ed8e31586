//! Somebody else's software from somebody else's registry: Debian's nginx, pulled from Debian's `docker-registry` over TLS.
//!
//! The wrong way to see it would be our own server answering our own client: so neither the image, nor the registry, nor the HTTP server
//! that answers in the end is ours, and what `fetch` makes of the image is read back by `fsck.erofs` and compared by GNU tar.

use anyhow::{Context, Result, bail, ensure};
use holdfast_fetch::report::Reporter;
use holdfast_fetch::run::{Files, execute};
use holdfast_harness::{Nic, secs};
use holdfast_model::contract::Version;
use holdfast_model::contract::fetch::{Job, Outcome, Server, Task};
use holdfast_scenarios::debian::{self, as_root};
use holdfast_scenarios::docker_registry::Registry;
use holdfast_scenarios::world::{APP_PORT, boot_limit, soon};
use holdfast_scenarios::{World, http, scenario};
use holdfast_test_controller::DeviceConfig;
use holdfast_test_controller::config::{App, Datastore, DatastoreKind, Image, NetworkInstance};
use holdfast_test_controller::oci_build::{self, Built, ImageConfig};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use xtask::workspace::run;

const REPOSITORY: &str = "library/nginx";
const TAG: &str = "bookworm";
/// Name of the datastore and of the network instance.
const DATASTORE: &str = "debian";
const NETWORK: &str = "web";
const MEMORY_MIB: u32 = 256;

#[test]
fn debian_nginx_runs_from_debians_registry_by_tag_and_by_digest() {
    let folder = tempfile::tempdir().expect("a folder for the image");
    let image = image(folder.path()).expect("the image");
    scenario(World::builder("debian-nginx"), |world| {
        world.power_on()?;
        // The device boots while the registry is filled.
        let registry = Registry::start(&world.folder().join("registry"), &[Nic::gateway(0).to_string()])?;
        registry.push(REPOSITORY, TAG, &image)?;
        world.wait_online(boot_limit())?;
        eprintln!("online after {:.0} s", world.age().as_secs_f32());

        let address = format!("{}:{}", Nic::gateway(0), registry.port());
        let datastore = Datastore::new(DATASTORE, DatastoreKind::Registry, &address, &[registry.ca_pem().into()]);
        world.configure(|config| {
            config.datastores.push(datastore);
            config.network_instances.push(NetworkInstance::local(NETWORK, "eth0", "10.12.0.0/24"));
        })?;

        run_nginx(world, "nginx-by-tag", Image::container("by-tag", DATASTORE, &format!("{REPOSITORY}:{TAG}")))?;
        let log = registry.log();
        ensure!(log.contains(&format!("GET /v2/{REPOSITORY}/manifests/{TAG}")), "no pull by tag:\n{log}");

        world.configure(|config| {
            config.apps.clear();
            config.images.clear();
        })?;
        world.until("nginx to be gone", soon(), |world| Ok(world.http_once("/").is_err().then_some(())))?;

        let pinned = Image {
            sha256: image.manifest_digest.trim_start_matches("sha256:").into(),
            ..Image::container("by-digest", DATASTORE, &format!("{REPOSITORY}@{}", image.manifest_digest))
        };
        run_nginx(world, "nginx-by-digest", pinned)?;
        let log = registry.log();
        ensure!(
            log.contains(&format!("GET /v2/{REPOSITORY}/manifests/{}", image.manifest_digest)),
            "no pull by digest:\n{log}"
        );
        Ok(())
    });
}

#[test]
fn what_fetch_makes_of_debians_nginx_is_what_debootstrap_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let built = image(folder.path()).expect("the image");
    let registry = Registry::start(&at("registry"), &[]).expect("a registry");
    registry.push(REPOSITORY, TAG, &built).expect("pushed");

    let erofs = File::create_new(at("image.erofs")).expect("an output");
    let task = Task::Oci {
        repository: REPOSITORY.into(),
        reference: TAG.into(),
        sha256: String::new(),
        max_bytes: 0,
        output_fd: -1,
        spool_fd: -1,
    };
    let server = Server {
        base_url: format!("https://127.0.0.1:{}", registry.port()),
        user: String::new(),
        password: String::new(),
        ca_pem: vec![registry.ca_pem().into()],
    };
    let spool = || tempfile::tempfile().expect("a spool file");
    let files = Files::Oci { output: erofs, layer_spool: spool(), contents_spool: spool() };
    let job = Job { version: Version, report_fd: -1, server, task };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let began = Instant::now();
    let done = runtime.block_on(execute(&job, files, &mut Reporter::new(spool()))).expect("fetched");
    let Outcome::Oci { manifest_sha256, size_bytes, config } = done else { panic!("{done:?}") };
    eprintln!("{} bytes in {:.1} s", size_bytes, began.elapsed().as_secs_f32());
    assert_eq!(format!("sha256:{manifest_sha256}"), built.manifest_digest);
    assert_eq!(config.entrypoint, run_config().entrypoint);

    let tar = debian::NGINX.tar().expect("the tar");
    compare(&at("image.erofs"), &tar, &at("extracted")).expect("the same as in the tar");
    run(as_root("rm").arg("-rf").arg(at("extracted"))).expect("removed");
}

/// Contents, modes, owners, times, link targets: GNU tar names every difference.
fn compare(erofs: &Path, tar: &Path, extracted: &Path) -> Result<()> {
    run(as_root("fsck.erofs").arg(format!("--extract={}", extracted.display())).arg("--preserve").arg(erofs))?;
    let modes = modes(tar)?;
    let found = run(as_root("find").arg(extracted))?.lines().count();
    ensure!(found == modes.len(), "expected {} files, found {found}", modes.len());
    let mut command = as_root("tar");
    command.args(["--compare", "--numeric-owner", "--file"]).arg(tar).arg("--directory").arg(extracted);
    let output = command.output().context("tar")?;
    ensure!(output.stderr.is_empty(), "tar --compare: {}", String::from_utf8_lossy(&output.stderr));
    let image = File::open(erofs)?;
    let (mut set_id, mut linked) = (0, 0);
    // fsck.erofs 1.5 loses set-id bits by its chown and extracts each hard link by itself: there the inodes must tell.
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((path, other)) = line.split_once(": Not linked to ") {
            ensure!(nid(erofs, path)? == nid(erofs, other)?, "{line}");
            linked += 1;
        } else if let Some(path) = line.strip_suffix(": Mode differs") {
            let (mode, expected) = (mode(&image, nid(erofs, path)?)?, modes[path]);
            ensure!(mode == expected, "{path}: expected mode {expected:o}, found {mode:o}");
            set_id += 1;
        } else {
            bail!("{line}");
        }
    }
    ensure!(set_id > 0 && linked > 0, "Debian has set-id programs and hard links");
    Ok(())
}

/// Permission and set-id bits by path as GNU tar writes it.
fn modes(tar: &Path) -> Result<HashMap<String, u32>> {
    let mut archive = tar::Archive::new(File::open(tar)?);
    let entries = archive.entries()?.map(|entry| {
        let entry = entry?;
        Ok((String::from_utf8_lossy(&entry.path_bytes()).into_owned(), entry.header().mode()? & 0o7777))
    });
    entries.collect()
}

/// Number of the inode at `path`, as dump.erofs finds it.
fn nid(erofs: &Path, path: &str) -> Result<u64> {
    let path = path.trim_start_matches('.');
    let text = run(Command::new("dump.erofs").arg(format!("--path={path}")).arg(erofs))?;
    let number = text.split_once("NID: ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("dump.erofs {path}: expected a NID, found {text}"))
}

/// Permission and set-id bits of an inode: a slot of 32 bytes in the metadata area, whose block is at 40 in the superblock
/// (Linux, `fs/erofs/erofs_fs.h`). dump.erofs 1.5 shows the lower nine bits only.
fn mode(image: &File, nid: u64) -> Result<u32> {
    let mut meta_block = [0; 4];
    image.read_exact_at(&mut meta_block, 1024 + 40)?;
    let mut mode = [0; 2];
    image.read_exact_at(&mut mode, u64::from(u32::from_le_bytes(meta_block)) * 4096 + nid * 32 + 4)?;
    Ok(u32::from(u16::from_le_bytes(mode)) & 0o7777)
}

fn run_config() -> ImageConfig {
    ImageConfig {
        entrypoint: ["nginx", "-g", "daemon off;"].map(String::from).into(),
        exposed_ports: vec!["80/tcp".into()],
        ..ImageConfig::default()
    }
}

fn image(folder: &Path) -> Result<Built> {
    let tar = debian::NGINX.tar()?;
    let began = Instant::now();
    let built = oci_build::from_tar(File::open(tar)?, &run_config(), TAG, &folder.join("image"))?;
    eprintln!("image of {} bytes packed in {:.1} s", built.layer_bytes, began.elapsed().as_secs_f32());
    Ok(built)
}

/// Adds an app of `image`, waits until nginx answers as itself, and until its log of that has come.
fn run_nginx(world: &mut World, name: &str, image: Image) -> Result<()> {
    let began = Instant::now();
    let since = world.controller().position();
    world.configure_and_wait(soon(), |config: &mut DeviceConfig| {
        let mut app = App::container(name, &image.name, NETWORK, &[(APP_PORT, 80)]);
        app.memory_mib = MEMORY_MIB;
        config.apps.push(app);
        config.images.push(image);
    })?;
    world.wait_app_state(name, "RUNNING", secs(240))?;
    eprintln!("{name}: running after {:.0} s", began.elapsed().as_secs_f32());
    let asked = format!("/?asked-by={name}");
    let page = world.http_get(&asked, soon())?;
    ensure!(page.contains("<title>Welcome to nginx!</title>"), "expected nginx's welcome page, found:\n{page}");
    let (head, _) = http::get_with_head(world.app_address(), "/", Duration::from_secs(10)).context("the head")?;
    ensure!(head.lines().any(|l| l.to_lowercase().starts_with("server: nginx")), "expected nginx, found:\n{head}");
    let line = world.wait_app_log(name, since, &format!("GET {asked} HTTP/1.1\" 200"), soon())?;
    eprintln!("{name}: after {:.0} s its log says: {line}", began.elapsed().as_secs_f32());
    Ok(())
}
