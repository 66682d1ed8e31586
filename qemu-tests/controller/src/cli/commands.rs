//! Everything but `serve`.

use crate::args::{Command, Config, Devices, Faults, Image, Logs, Policy};
use crate::client::{Client, Failure};
use holdfast_test_controller::config::{self, App, Datastore, DatastoreKind, DeviceConfig, NetworkInstance};
use holdfast_test_controller::faults::{Active, Rule};
use holdfast_test_controller::oci_build::{self, ImageConfig, Owners};
use holdfast_test_controller::records::{LogRecord, RequestRecord};
use holdfast_test_controller::status::DeviceStatus;
use serde_json::json;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

pub fn run(command: Command, admin: SocketAddr) -> Result<(), Failure> {
    let client = Client::new(admin)?;
    match command {
        // Handled in main: they need no running controller, or are one.
        Command::Serve(_) | Command::Image(_) => Ok(()),
        Command::Material { out } => material(&client, &out),
        Command::Onboard { cert, serial } => {
            let cert_pem = match cert {
                Some(path) => read_text(&path)?,
                None => text_of(&client.json("/api/onboarding/material")?, "cert_pem"),
            };
            print(&client.post("/api/onboarding", &json!({ "cert_pem": cert_pem, "serials": serial }))?)
        }
        Command::Devices(Devices::List) => {
            let devices: Vec<DeviceStatus> = serde_json::from_slice(&client.get("/api/devices")?)?;
            for device in devices {
                let config = if device.config_accepted { "accepted" } else { "waiting" };
                line(&format!(
                    "{} serial {:?} config revision {} {config}",
                    device.uuid, device.serial, device.config_revision
                ))?;
            }
            Ok(())
        }
        Command::Devices(Devices::Show(device)) => {
            let status: DeviceStatus = serde_json::from_slice(&client.get(&format!("/api/devices/{}", device.id()))?)?;
            line(status.to_string().trim_end())
        }
        Command::Devices(Devices::Remove(device)) => print(&client.delete(&format!("/api/devices/{}", device.id()))?),
        Command::Config(command) => config_command(&client, command),
        Command::Info(device) => print(&client.get(&format!("/api/devices/{}/info", device.id()))?),
        Command::Metrics(device) => print(&client.get(&format!("/api/devices/{}/metrics", device.id()))?),
        Command::Logs(options) => logs(&client, &options),
        Command::Requests { on } => {
            let requests: Vec<RequestRecord> = serde_json::from_slice(&client.get("/api/requests")?)?;
            for request in requests.iter().filter(|request| on.is_none_or(|on| on == request.endpoint)) {
                line(&format!(
                    "{:>6} {} {} {} {} bytes {}",
                    request.seq, request.method, request.path, request.status, request.bytes, request.note
                ))?;
            }
            Ok(())
        }
        Command::Faults(command) => faults(&client, command),
        Command::Policy(Policy::Get) => print(&client.get("/api/policy")?),
        Command::Policy(Policy::Set { file }) => {
            print(&client.put("/api/policy", "application/json", read_text(&file)?.into())?)
        }
        Command::Rotate { role } => print(&client.post("/api/rotate", &json!({ "role": role }))?),
    }
}

/// `image`: building needs no running controller.
pub fn image(command: Image, admin: SocketAddr) -> Result<(), Failure> {
    match command {
        Image::Build { root, keep_owners, entrypoint, env, user, workdir, expose, tag, out } => {
            let config = ImageConfig {
                entrypoint,
                env,
                user,
                working_dir: workdir,
                exposed_ports: expose,
                ..ImageConfig::default()
            };
            let owners = if keep_owners { Owners::Keep } else { Owners::Root };
            let built = oci_build::from_dir(&root, owners, &config, &tag, &out)?;
            line(&built.manifest_digest)
        }
        Image::Publish { repository, layout } => {
            let layout = std::path::absolute(layout)?;
            print(&Client::new(admin)?.post("/api/images", &json!({ "repository": repository, "layout": layout }))?)
        }
        Image::List => print(&Client::new(admin)?.get("/api/images")?),
    }
}

fn material(client: &Client, out: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(out)?;
    let material = client.json("/api/onboarding/material")?;
    let root = client.get("/api/root.pem")?;
    let files = [
        ("root.pem", String::from_utf8(root.to_vec())?),
        ("onboard.cert.pem", text_of(&material, "cert_pem")),
        ("onboard.key.pem", text_of(&material, "key_pem")),
    ];
    for (name, text) in files {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        line(&path.display().to_string())?;
    }
    Ok(())
}

fn config_command(client: &Client, command: Config) -> Result<(), Failure> {
    match command {
        Config::Set { file, wire, device } => {
            let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let binary = file.extension().is_some_and(|extension| extension == "pb");
            let (path, content_type) = match (wire, binary) {
                (false, _) => ("config", "application/json"),
                (true, false) => ("edge-dev-config", "application/json"),
                (true, true) => ("edge-dev-config", "application/x-proto-binary"),
            };
            print(&client.put(&format!("/api/devices/{}/{path}", device.id()), content_type, bytes)?)
        }
        Config::Get { wire, device } => {
            let path = if wire { "edge-dev-config" } else { "config" };
            print(&client.get(&format!("/api/devices/{}/{path}", device.id()))?)
        }
        Config::Example => line(&serde_json::to_string_pretty(&example())?),
    }
}

/// One app behind one local network: what most people begin with.
fn example() -> DeviceConfig {
    let mut app = App::container("web", "webapp", "local", &[(8080, 80)]);
    app.env.insert("GREETING".into(), "hello".into());
    DeviceConfig {
        datastores: vec![Datastore::new("registry", DatastoreKind::Registry, "10.0.2.2:8444", &[])],
        images: vec![config::Image::container("webapp", "registry", "demo/webapp:1")],
        network_instances: vec![NetworkInstance::local("local", "eth0", "10.11.12.0/24")],
        apps: vec![app],
        ..DeviceConfig::quick()
    }
}

fn logs(client: &Client, options: &Logs) -> Result<(), Failure> {
    let id = options.device.id();
    let path = match &options.app {
        None => format!("/api/devices/{id}/logs"),
        Some(app) => format!("/api/devices/{id}/apps/{app}/logs"),
    };
    let mut rest = Vec::new();
    let path = if options.follow { format!("{path}?follow=1") } else { path };
    client.stream(&path, |piece| {
        rest.extend_from_slice(piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = rest.drain(..=end).collect();
            if options.json {
                line(std::str::from_utf8(&text)?.trim_end())?;
            } else {
                let record: LogRecord = serde_json::from_slice(&text)?;
                let entry = record.line;
                line(&format!("{} {} {}: {}", entry.timestamp.seconds, entry.severity, entry.source, entry.content))?;
            }
        }
        Ok(())
    })
}

fn faults(client: &Client, command: Faults) -> Result<(), Failure> {
    match command {
        Faults::List => {
            let rules: Vec<Active> = serde_json::from_slice(&client.get("/api/faults")?)?;
            for active in rules {
                line(&format!("{} used {} times: {}", active.id, active.used, serde_json::to_string(&active.rule)?))?;
            }
            Ok(())
        }
        Faults::Add { on, action, count, seconds, skip, path, device } => {
            let rule = Rule { on, device: device.device, path_contains: path, action, skip, count, seconds };
            print(&client.post("/api/faults", &serde_json::to_value(rule)?)?)
        }
        Faults::Remove { id: None } => print(&client.delete("/api/faults")?),
        Faults::Remove { id: Some(id) } => print(&client.delete(&format!("/api/faults/{id}"))?),
    }
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn text_of(value: &serde_json::Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    Ok(std::io::stdout().lock().write_all(bytes)?)
}

fn line(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
