//! What is done to a disk image while the machine is off: SITE, and damage on purpose.

use anyhow::{Context, Result, bail};
use holdfast_format::layout::Part;
use holdfast_format::site::Site;
use holdfast_format::{gpt, pe, uki};
use holdfast_model::slot::Slot;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Copies an image without its holes.
///
/// # Errors
/// When there is no space.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["--sparse=always", "--reflink=auto", "--"]).arg(from).arg(to).status()?;
    if !status.success() {
        bail!("cp {} {} ended with {status}", from.display(), to.display());
    }
    Ok(())
}

/// Writes the SITE partition; returns the document that PID 1 measures.
///
/// # Errors
/// Not an image of Holdfast.
pub fn write_site(image: &Path, site: &Site) -> Result<Vec<u8>> {
    xtask::sitecmd::write(image, site)?;
    let mut start = vec![0; 1 << 16];
    read(image, Part::Site, 0, &mut start)?;
    let found = holdfast_format::site::read(start.as_slice())?.context("SITE is empty right after it was written")?;
    Ok(found.document)
}

fn partition(image: &Path, part: Part) -> Result<(File, gpt::Partition)> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let (table, _) = gpt::Table::read(&file, file.metadata()?.len()).with_context(|| image.display().to_string())?;
    let place = table.find(part.name()).with_context(|| format!("no partition {}", part.name()))?.clone();
    Ok((file, place))
}

/// Reads from a partition.
///
/// # Errors
/// Not an image of Holdfast.
pub fn read(image: &Path, part: Part, offset: u64, data: &mut [u8]) -> Result<()> {
    let (file, place) = partition(image, part)?;
    Ok(file.read_exact_at(data, place.offset_bytes() + offset)?)
}

/// Writes into a partition.
///
/// # Errors
/// Not an image of Holdfast.
pub fn write(image: &Path, part: Part, offset: u64, data: &[u8]) -> Result<()> {
    let (file, place) = partition(image, part)?;
    Ok(file.write_all_at(data, place.offset_bytes() + offset)?)
}

/// Where the UKI of a slot begins in its ESP, and the bytes from there to the ESP's end. The ESP holds that one file, in one piece.
///
/// # Errors
/// Not an image of Holdfast, or an empty slot.
pub fn uki(image: &Path, slot: Slot) -> Result<(u64, Vec<u8>)> {
    let (file, place) = partition(image, Part::esp(slot))?;
    let mut esp = vec![0; usize::try_from(place.size_bytes())?];
    file.read_exact_at(&mut esp, place.offset_bytes())?;
    let start = esp.chunks(512).position(|sector| sector.starts_with(b"MZ"));
    let start = start.with_context(|| format!("{}: no UKI in the ESP of slot {slot}", image.display()))? * 512;
    Ok((start as u64, esp.split_off(start)))
}

/// What PCR 11 becomes when the UKI of slot A has booted and these phases were entered; lower-case hex.
///
/// # Errors
/// As [`uki`].
pub fn predict_pcr11(image: &Path, phases: &[&str]) -> Result<String> {
    let (_, uki_bytes) = uki(image, Slot::A)?;
    Ok(hex::encode(uki::predict_pcr11(&uki_bytes, phases)?))
}

/// Flips one bit in the middle of a section of slot A's UKI.
///
/// # Errors
/// As [`uki`], or when there is no such section.
pub fn spoil_uki(image: &Path, section: &str) -> Result<()> {
    let (start, bytes) = uki(image, Slot::A)?;
    let parsed = pe::Pe::parse(&bytes)?;
    let data = parsed.section(section).with_context(|| format!("no section {section}"))?.data(&bytes);
    let middle = data.as_ptr() as usize - bytes.as_ptr() as usize + data.len() / 2;
    write(image, Part::esp(Slot::A), start + middle as u64, &[bytes[middle] ^ 1])
}
