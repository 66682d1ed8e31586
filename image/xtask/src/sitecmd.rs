//! `cargo xtask image-site` and the site options that `run` and `flash` share: which controller a device belongs to.

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast_format::layout::{self, Part};
use holdfast_format::site::{Addressing, FirstNetwork, Site};
use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr};
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
    #[arg(long, value_name = "TEXT", requires = "controller")]
    pub serial: Option<String>,
    /// Interface that leads to the controller until a config says more, such as eth0 [default: every Ethernet port].
    #[arg(long, value_name = "NAME", requires = "controller")]
    pub interface: Option<String>,
    /// IPv4 address of that interface, instead of asking DHCP.
    #[arg(long, value_name = "ADDRESS/PREFIX", requires = "controller")]
    pub address: Option<String>,
    /// Default gateway that goes with --address.
    #[arg(long, value_name = "ADDRESS", requires = "address")]
    pub gateway: Option<Ipv4Addr>,
    /// Name server that goes with --address; may be given several times.
    #[arg(long, value_name = "ADDRESS", requires = "address")]
    pub dns: Vec<IpAddr>,
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
            network: FirstNetwork { interface: self.interface.clone(), addressing: self.addressing()? },
        }))
    }

    fn addressing(&self) -> Result<Addressing> {
        let Some(text) = &self.address else {
            return Ok(Addressing::Dhcp);
        };
        let parsed = text.split_once('/').and_then(|(a, n)| Some((a.parse().ok()?, n.parse().ok()?)));
        let Some((address, prefix_len)) = parsed.filter(|(_, n)| (1..=32).contains(n)) else {
            bail!("--address: expected an IPv4 address and a prefix of 1 to 32, such as 192.0.2.7/24, found {text:?}");
        };
        Ok(Addressing::Static { address, prefix_len, gateway: self.gateway, dns: self.dns.clone() })
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_format::io::ReadAt;
    use holdfast_format::site;

    /// An image as small as the layout allows, with nothing but its partition table; sparse.
    pub(crate) fn empty_image(path: &Path) {
        let bytes = layout::image_bytes(layout::DATA_MIN);
        let file = File::create(path).unwrap();
        file.set_len(bytes).unwrap();
        for copy in layout::table(bytes).unwrap().encode().unwrap() {
            file.write_all_at(&copy.data, copy.offset).unwrap();
        }
    }

    fn document(server: &str, root: &str) -> Site {
        Site {
            server: server.into(),
            server_address: Some([192, 0, 2, 7].into()),
            root_certs_pem: root.into(),
            onboard_cert_pem: "c".into(),
            onboard_key_pem: "k".into(),
            serial: Some("SN-1".into()),
            soft_serial: None,
            hosts: vec![],
            network: FirstNetwork::default(),
        }
    }

    /// The SITE partition of an image, as a device reads it.
    struct Partition {
        file: File,
        offset: u64,
    }

    impl ReadAt for Partition {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            FileExt::read_exact_at(&self.file, buf, self.offset + offset)
        }
    }

    fn partition(path: &Path) -> Partition {
        let table = layout::table(layout::image_bytes(layout::DATA_MIN)).unwrap();
        let offset = table.find(Part::Site.name()).unwrap().offset_bytes();
        Partition { file: File::open(path).unwrap(), offset }
    }

    fn read(path: &Path) -> Option<Site> {
        site::read(&partition(path)).unwrap().map(|found| found.site)
    }

    #[test]
    fn a_site_is_written_into_an_image_and_read_back_and_nothing_of_an_older_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        empty_image(&path);
        assert_eq!(read(&path), None, "a fresh image belongs to nobody");
        for site in [document("a.example:443", &"long ".repeat(3000)), document("b.example:443", "short")] {
            write(&path, &site).unwrap();
            assert_eq!(read(&path), Some(site));
        }
        let mut head = vec![0; 32 << 10];
        partition(&path).read_exact_at(&mut head, 0).unwrap();
        assert!(!head.windows(10).any(|w| w == b"long long "));
    }

    #[test]
    fn what_is_no_image_of_ours_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photo");
        fs::write(&path, vec![7; 100_000]).unwrap();
        let error = format!("{:#}", write(&path, &document("a:1", "r")).unwrap_err());
        assert!(error.contains("photo") && error.contains("expected a Holdfast image"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), vec![7; 100_000]);
    }

    #[test]
    fn options_that_are_missing_or_malformed_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.pem");
        fs::write(&file, "PEM").unwrap();
        let full = SiteArgs {
            controller: Some("c.example:443=192.0.2.1".into()),
            root_cert: Some(file.clone()),
            onboard_cert: Some(file.clone()),
            onboard_key: Some(file),
            address: Some("192.0.2.9/24".into()),
            gateway: Some([192, 0, 2, 1].into()),
            ..SiteArgs::default()
        };
        let site = full.site().unwrap().unwrap();
        assert_eq!((site.server.as_str(), site.server_address), ("c.example:443", Some([192, 0, 2, 1].into())));
        let static_address = Addressing::Static {
            address: [192, 0, 2, 9].into(),
            prefix_len: 24,
            gateway: Some([192, 0, 2, 1].into()),
            dns: vec![],
        };
        assert_eq!(site.network.addressing, static_address);
        assert_eq!(SiteArgs::default().site().unwrap(), None);
        let error = |args: SiteArgs| format!("{:#}", args.site().unwrap_err());
        assert!(error(SiteArgs { onboard_key: None, ..full.clone() }).contains("--onboard-key"));
        assert!(error(SiteArgs { controller: Some("c:1=somewhere".into()), ..full.clone() }).contains("somewhere"));
        for address in ["192.0.2.9", "192.0.2.9/33", "x/24"] {
            assert!(error(SiteArgs { address: Some(address.into()), ..full.clone() }).contains(address));
        }
        assert!(error(SiteArgs { root_cert: Some("/no/such".into()), ..full }).contains("/no/such"));
    }
}
