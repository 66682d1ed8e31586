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

/// Copies a partition over another one of the same size.
///
/// # Errors
/// Not an image of Holdfast.
pub fn copy_partition(image: &Path, from: Part, to: Part) -> Result<()> {
    let ((file, from), (_, to)) = (partition(image, from)?, partition(image, to)?);
    let (size, mut buffer) = (from.size_bytes().min(to.size_bytes()), vec![0; 1 << 20]);
    for at in (0..size).step_by(buffer.len()) {
        file.read_exact_at(&mut buffer, from.offset_bytes() + at)?;
        // The file stays sparse.
        if buffer.iter().any(|byte| *byte != 0) {
            file.write_all_at(&buffer, to.offset_bytes() + at)?;
        }
    }
    Ok(())
}

/// What a partition holds, without the zeros behind the last block of 4096 bytes in use.
///
/// # Errors
/// Not an image of Holdfast.
pub fn content(image: &Path, part: Part) -> Result<Vec<u8>> {
    let (file, place) = partition(image, part)?;
    let (size, mut buffer, mut all) = (place.size_bytes(), vec![0; 1 << 20], Vec::new());
    let mut end = 0;
    for at in (0..size).step_by(buffer.len()) {
        file.read_exact_at(&mut buffer, place.offset_bytes() + at)?;
        all.extend_from_slice(&buffer);
        if let Some(last) = buffer.iter().rposition(|byte| *byte != 0) {
            end = (usize::try_from(at)? + last + 1).next_multiple_of(4096);
        }
    }
    all.truncate(end);
    Ok(all)
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
    let middle = middle_of_uki_section(image, section)?;
    let mut byte = [0];
    read(image, Part::esp(Slot::A), middle, &mut byte)?;
    write(image, Part::esp(Slot::A), middle, &[byte[0] ^ 1])
}

/// Where in ESP-A the middle of a section of slot A's UKI is.
///
/// # Errors
/// As [`uki`], or when there is no such section.
pub fn middle_of_uki_section(image: &Path, section: &str) -> Result<u64> {
    let (start, bytes) = uki(image, Slot::A)?;
    let parsed = pe::Pe::parse(&bytes)?;
    let data = parsed.section(section).with_context(|| format!("no section {section}"))?.data(&bytes);
    Ok(start + (data.as_ptr() as usize - bytes.as_ptr() as usize + data.len() / 2) as u64)
}

/// Flips one bit of a byte of a partition on the disk (qcow2) of a device that is off. `image` is the raw image that the device started
/// from: partitions begin at the same places.
///
/// # Errors
/// When `qemu-io` does not do it.
pub fn flip_on_disk(disk: &Path, image: &Path, part: Part, offset: u64) -> Result<()> {
    let at = partition(image, part)?.1.offset_bytes() + offset;
    let found = qemu_io(disk, &format!("read -v {at} 1"))?;
    // "0014d00000:  7f  ." : the dump's offset is in hexadecimal.
    let byte = found.lines().find_map(|line| {
        let (place, rest) = line.split_once(':')?;
        (u64::from_str_radix(place, 16) == Ok(at)).then_some(())?;
        u8::from_str_radix(rest.split_whitespace().next()?, 16).ok()
    });
    let byte = byte.with_context(|| format!("qemu-io: expected a dump of byte {at}, found {found:?}"))?;
    qemu_io(disk, &format!("write -P {:#04x} {at} 1", byte ^ 1)).map(drop)
}

fn qemu_io(disk: &Path, command: &str) -> Result<String> {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(disk).output().context("qemu-io")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // It ends well also when the command did not succeed.
    if !output.status.success() || said.contains("failed") {
        bail!("qemu-io {command:?} on {}: {said}{}", disk.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_an_overlay_is_flipped_and_the_image_below_stays() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk.qcow2"));
        let file = File::create(&image)?;
        let bytes = holdfast_format::layout::image_bytes(0);
        file.set_len(bytes)?;
        let table = holdfast_format::layout::table(bytes)?;
        for extent in table.encode()? {
            file.write_all_at(&extent.data, extent.offset)?;
        }
        write(&image, Part::OsB, 4097, &[0x7f])?;
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&image, &disk])
            .status()?;
        assert!(status.success());
        assert_eq!(content(&image, Part::OsB)?.len(), 8192);
        assert!(content(&image, Part::OsA)?.is_empty());
        flip_on_disk(&disk, &image, Part::OsB, 4097)?;
        let at = partition(&image, Part::OsB)?.1.offset_bytes() + 4096;
        let found = qemu_io(&disk, &format!("read -v {at} 3"))?;
        assert!(found.contains("00 7e 00"), "{found}");
        let mut below = [0];
        read(&image, Part::OsB, 4097, &mut below)?;
        assert_eq!(below, [0x7f]);
        Ok(())
    }
}
