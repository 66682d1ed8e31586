//! `cargo xtask flash DISK`: the image onto a disk of this machine.

use crate::sitecmd::{self, SiteArgs};
use crate::{images, packages};
use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast_format::gpt::Table;
use holdfast_format::layout;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `flash`.
#[derive(Debug, Args)]
pub struct FlashArgs {
    /// The whole disk, such as /dev/sdb (not a partition), or a file of its size.
    disk: PathBuf,
    /// Write this image, made before, instead of building one.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Folder of keys to build with, as in `cargo xtask build`.
    #[arg(long, value_name = "FOLDER", conflicts_with = "image")]
    keys: Option<PathBuf>,
    /// Do not ask first. Everything on the disk is lost either way.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    site: SiteArgs,
}

/// Flashes.
///
/// # Errors
/// A disk in use, too small or not a disk; an image that is not one.
pub fn run(args: &FlashArgs) -> Result<ExitCode> {
    let site = args.site.site()?;
    let meta = fs::metadata(&args.disk).with_context(|| format!("{}: expected a disk", args.disk.display()))?;
    let block = meta.file_type().is_block_device();
    if block
        && PathBuf::from("/sys/class/block").join(args.disk.file_name().unwrap_or_default()).join("partition").exists()
    {
        bail!("{} is a partition: name the whole disk", args.disk.display());
    }
    let image = match &args.image {
        Some(image) => image.clone(),
        None => {
            packages::ensure(packages::Need::Build)?;
            images::build(&images::Options { keys: args.keys.clone(), ..images::Options::default() })?.artefacts.image
        }
    };
    let mut source = File::open(&image).with_context(|| format!("cannot open {}", image.display()))?;
    let total = sitecmd::length(&source)?;
    Table::read(&source, total)
        .and_then(|(table, _)| layout::check(&table))
        .with_context(|| format!("{}: expected a Holdfast image", image.display()))?;
    // O_EXCL on a block device: the kernel refuses while it is mounted or otherwise in use.
    let flags = if block { libc::O_EXCL } else { 0 };
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(&args.disk)
        .with_context(|| format!("{} is in use or not writable: unmount what is on it", args.disk.display()))?;
    let room = sitecmd::length(&disk)?;
    if room < total {
        let hint = if block { String::new() } else { format!(": truncate -s {total} {}", args.disk.display()) };
        bail!("{} has {room} bytes, the image needs {total}{hint}", args.disk.display());
    }
    confirm(args)?;
    let mut buffer = vec![0u8; 4 << 20];
    let mut done = 0u64;
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        disk.write_all_at(&buffer[..n], done)
            .with_context(|| format!("writing {} at byte {done}", args.disk.display()))?;
        done += n as u64;
        eprint!("\r{:4} of {} MiB", done >> 20, total >> 20);
    }
    disk.sync_all()?;
    eprintln!();
    drop(disk);
    if let Some(site) = site {
        sitecmd::write(&args.disk, &site)?;
        println!("SITE names controller {}", site.server);
    } else {
        println!(
            "no --controller given: the device starts, and waits for a SITE partition (cargo xtask image-site {} ...)",
            args.disk.display()
        );
    }
    println!(
        "{} carries Holdfast; boot it with UEFI firmware. DATA grows to the disk's end at the first start.",
        args.disk.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn confirm(args: &FlashArgs) -> Result<()> {
    if args.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("everything on {} would be lost: say --yes", args.disk.display());
    }
    eprint!("Everything on {} will be lost. Type its name to go on: ", args.disk.display());
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() != args.disk.to_string_lossy() {
        bail!("nothing was written");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn options(disk: &Path, image: &Path) -> FlashArgs {
        FlashArgs {
            disk: disk.to_owned(),
            image: Some(image.to_owned()),
            keys: None,
            yes: true,
            site: SiteArgs::default(),
        }
    }

    #[test]
    fn a_target_that_is_too_small_or_absent_and_a_source_that_is_no_image_are_refused_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, image) = (folder.path().join("disk"), folder.path().join("image"));
        sitecmd::tests::empty_image(&image);
        let error = |args: &FlashArgs| format!("{:#}", run(args).unwrap_err());

        assert!(error(&options(&disk, &image)).contains("expected a disk"));
        fs::write(&disk, "what was there").unwrap();
        let text = error(&options(&disk, &image));
        assert!(text.contains("has 14 bytes") && text.contains("truncate -s"), "{text}");
        fs::write(&image, "not an image").unwrap();
        let text = error(&options(&disk, &image));
        assert!(text.contains("image: expected a Holdfast image"), "{text}");
        assert_eq!(fs::read_to_string(&disk).unwrap(), "what was there");
    }
}
