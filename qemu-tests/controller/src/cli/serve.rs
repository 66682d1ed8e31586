//! `serve`: the controller in the foreground.

use crate::args::Serve;
use crate::client::Failure;
use holdfast_test_controller::endpoints::Quirks;
use holdfast_test_controller::{Controller, Options};
use std::net::SocketAddr;
use std::path::Path;

pub fn run(args: Serve, admin: SocketAddr) -> Result<(), Failure> {
    if let Some(files) = args.files.as_ref().filter(|files| !files.is_dir()) {
        return Err(format!("--files {}: no such folder", files.display()).into());
    }
    let quirks = if args.adam {
        Quirks { reregister_500: true, hardwarehealth_200: true, config_404_first: true }
    } else {
        Quirks::default()
    };
    let controller = Controller::start(Options {
        data_dir: args.data,
        device_addr: args.listen,
        admin_addr: Some(admin),
        artifact_addr: Some(args.artifacts),
        server_names: args.names,
        intermediate: args.intermediate,
        files_dir: args.files,
        quirks,
    })?;
    for image in &args.images {
        let (repository, layout) =
            image.split_once('=').ok_or_else(|| format!("--image {image}: expected REPOSITORY=DIR"))?;
        controller.publish_image(repository, &std::path::absolute(Path::new(layout))?)?;
    }
    println!("device API   https://{}/api/v2/edgedevice/", controller.device_addr());
    if let Some(addr) = controller.artifact_addr() {
        println!("artifacts    https://{addr}/files/ and https://{addr}/v2/");
    }
    println!("admin API    http://{admin}/api/");
    println!("state        {}", controller.data_dir().display());
    println!("Ctrl-C ends it. In another terminal: holdfast-controller --admin {admin} devices list");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
        }
    })?;
    drop(controller);
    Ok(())
}
