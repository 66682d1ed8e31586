//! `cargo xtask image-site` and the site options that `run` and `flash` share: which controller a device belongs to.

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast_format::layout::{self, Part};
use holdfast_format::site::{Addressing, FirstNetwork, Site};
use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options that say which controller a device belongs to.
#[derive(Debug, Clone, Default, Args)]
pub struct SiteArgs {
    /// The controller: NAME:PORT, or NAME:PORT=ADDRESS where no name server knows NAME.
    #[arg(long, value_name = "NAME:PORT[=ADDRESS]")]
    pub controller: Option<String>,
    /// Root certificates that the controller's chain ends at (PEM).
    #[arg(long, value_name = "FILE", requires = "controller")]
    pub root_cert: Option<PathBuf>,
    /// Onboarding certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "controller")]
    pub onboard_cert: Option<PathBuf>,
    /// Key of the onboarding certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "controller")]
    pub onboard_key: Option<PathBuf>,
    /// Serial number that the controller expects; else that of the machine's firmware.
    #[arg(long, requires = "controller")]
    pub serial: Option<String>,
}

impl SiteArgs {
    /// The SITE document, or `None` when no controller is named.
    ///
    /// # Errors
    /// A missing option or file, named.
    pub fn site(&self) -> Result<Option<Site>> {
        let Some(controller) = &self.controller else {
            return Ok(None);
        };
        let (server, address) = match controller.split_once('=') {
            Some((server, address)) => (
                server,
                Some(
                    address
                        .parse::<IpAddr>()
                        .with_context(|| format!("--controller {controller}: {address:?} is not an IP address"))?,
                ),
            ),
            None => (controller.as_str(), None),
        };
        let read = |option: &str, path: &Option<PathBuf>| -> Result<String> {
            let path = path.as_ref().with_context(|| format!("--controller needs {option} FILE too"))?;
            fs::read_to_string(path).with_context(|| format!("{option}: cannot read {}", path.display()))
        };
        Ok(Some(Site {
            server: server.to_owned(),
            server_address: address,
            root_certs_pem: read("--root-cert", &self.root_cert)?,
            onboard_cert_pem: read("--onboard-cert", &self.onboard_cert)?,
            onboard_key_pem: read("--onboard-key", &self.onboard_key)?,
            serial: self.serial.clone(),
            soft_serial: None,
            hosts: Vec::new(),
            network: FirstNetwork { interface: None, addressing: Addressing::Dhcp },
        }))
    }
}

/// Options of `image-site`.
#[derive(Debug, Args)]
pub struct ImageSiteArgs {
    /// The image (or disk) to change.
    image: PathBuf,
    #[command(flatten)]
    site: SiteArgs,
}

/// Writes the SITE partition of an image.
///
/// # Errors
/// Not an image of Holdfast, or a bad option.
pub fn run(args: &ImageSiteArgs) -> Result<ExitCode> {
    let Some(site) = args.site.site()? else { bail!("--controller NAME:PORT is missing: see --help") };
    write(&args.image, &site)?;
    println!("{}: SITE names controller {}", args.image.display(), site.server);
    Ok(ExitCode::SUCCESS)
}

/// Writes `site` into the SITE partition of the image or disk at `path`.
///
/// # Errors
/// Not an image of Holdfast, or a document that does not fit.
pub fn write(path: &Path, site: &Site) -> Result<()> {
    let document = site.encode().context("SITE document")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let bytes = length(&file)?;
    let (table, _) = holdfast_format::gpt::Table::read(&file, bytes)
        .with_context(|| format!("{}: expected a Holdfast image", path.display()))?;
    layout::check(&table).with_context(|| format!("{}: expected a Holdfast image", path.display()))?;
    let name = Part::Site.name();
    let partition = table.find(name).with_context(|| format!("{}: no partition {name}", path.display()))?;
    if document.len() as u64 > partition.size_bytes() {
        bail!("SITE document has {} bytes, the partition {}", document.len(), partition.size_bytes());
    }
    // An older, longer document must not show through behind the new one.
    let mut whole = vec![0u8; usize::try_from(partition.size_bytes())?];
    whole[..document.len()].copy_from_slice(&document);
    file.write_all_at(&whole, partition.offset_bytes())?;
    file.sync_all()?;
    Ok(())
}

/// Length of a file or block device.
///
/// # Errors
/// When it cannot be told.
pub fn length(file: &File) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut handle = file;
    let end = handle.seek(SeekFrom::End(0))?;
    handle.seek(SeekFrom::Start(0))?;
    Ok(end)
}
