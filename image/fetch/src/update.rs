//! The job that streams an update payload into the partitions of the other slot.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use holdfast_format::keys::verifying_key;
use holdfast_format::payload::{Body, Chunk, Expect, ImageKind, Manifest, Reader};
use sha2::{Digest as _, Sha256};

use crate::digest::{self, Digest};
use crate::download::{Bounds, download};
use crate::failure::Failure;
use crate::fds::{sync_and_drop_cache, zero_range};
use crate::http::Client;
use crate::report::Reporter;
use holdfast_model::contract::fetch::{Outcome, Phase};

/// What to install, and where.
pub struct Install<'a> {
    /// Path on the server.
    pub path: &'a str,
    /// SHA-256 of the whole payload in hexadecimal; empty = none.
    pub sha256: &'a str,
    /// Longest payload; 0 = twice what the partitions hold.
    pub max_bytes: u64,
    /// Release public key, PEM.
    pub release_key_pem: &'a str,
    /// Product that it must be for.
    pub product: &'a str,
    /// Lowest epoch accepted.
    pub min_epoch: u32,
    /// Version that it must carry.
    pub version: &'a str,
    /// The ESP partition.
    pub esp: File,
    /// The OS partition.
    pub os: File,
}

/// Downloads and writes, each chunk verified before it touches a partition; then reads both back from the disk.
///
/// # Errors
/// [`Failure`]; the slot is then not bootable and must not be tried.
pub async fn install(client: &Client, job: Install<'_>, report: &mut Reporter) -> Result<Outcome, Failure> {
    let key = verifying_key(job.release_key_pem).map_err(|e| Failure::local(format!("release key: {e}")))?;
    let (os_bytes, esp_bytes) = (size(&job.os, "OS partition")?, size(&job.esp, "ESP")?);
    let expected = (!job.sha256.is_empty())
        .then(|| {
            Digest::from_hex(job.sha256).ok_or_else(|| {
                Failure::local(format!("update: expected a SHA-256 in hexadecimal, found {:?}", job.sha256))
            })
        })
        .transpose()?;
    let max = if job.max_bytes == 0 { (os_bytes + esp_bytes).saturating_mul(2) } else { job.max_bytes };
    let url = client.url(job.path);
    let refused = |e: holdfast_format::payload::PayloadError| Failure::content(format!("{url}: {e}"));

    let mut reader = Reader::new(Expect {
        product: job.product.to_owned(),
        keys: vec![key],
        min_epoch: job.min_epoch,
        os_bytes,
        esp_bytes,
    });
    let mut hash = Sha256::new();
    let mut done = 0;
    let mut version_checked = false;
    report.progress(Phase::Resolving, 0, 0)?;
    download(client, job.path, Bounds { exact: None, max }, |bytes, total| {
        hash.update(bytes);
        done += bytes.len() as u64;
        let mut input = bytes;
        while let Some(chunk) = reader.next(&mut input).map_err(refused)? {
            // The first chunk comes after the manifest, and nothing is written before this.
            if !version_checked {
                let found = reader.manifest().map(|m| m.version.as_str()).unwrap_or_default();
                if found != job.version {
                    let text = format!("{url}: expected version {:?}, found {found:?}", job.version);
                    return Err(Failure::content(text));
                }
                version_checked = true;
            }
            let (file, name) = target(&job, chunk.image);
            write_chunk(file, &chunk).map_err(Failure::file(name))?;
        }
        report.progress(Phase::Downloading, done, total)
    })
    .await?;
    let manifest = reader.finish().map_err(refused)?;
    if let Some(expected) = expected {
        digest::expect(&url, expected, Digest(hash.finalize().into()))?;
    }
    read_back(&job, &manifest, report)?;
    Ok(Outcome::Update { version: manifest.version, epoch: manifest.epoch })
}

fn target<'a>(job: &'a Install<'_>, image: ImageKind) -> (&'a File, &'static str) {
    match image {
        ImageKind::Os => (&job.os, "OS partition"),
        ImageKind::Esp => (&job.esp, "ESP"),
    }
}

fn write_chunk(file: &File, chunk: &Chunk) -> std::io::Result<()> {
    match &chunk.body {
        Body::Data(bytes) => file.write_all_at(bytes, chunk.offset),
        Body::Zero(length) => zero_range(file, chunk.offset, *length),
    }
}

/// What the disk says now must be what the release signed.
fn read_back(job: &Install<'_>, manifest: &Manifest, report: &mut Reporter) -> Result<(), Failure> {
    let total = manifest.total_bytes();
    let mut done = 0;
    for image in &manifest.images {
        let (file, name) = target(job, image.kind);
        sync_and_drop_cache(file).map_err(Failure::file(name))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < image.size {
            let part = buffer.len().min(usize::try_from(image.size - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..part], at).map_err(Failure::file(name))?;
            hash.update(&buffer[..part]);
            at += part as u64;
            done += part as u64;
            report.progress(Phase::Verifying, done, total)?;
        }
        let found = Digest(hash.finalize().into());
        if Digest::from_hex(&image.sha256) != Some(found) {
            return Err(Failure::local(format!(
                "{name}: read back {found}, expected sha256:{} as written: is the disk failing?",
                image.sha256
            )));
        }
    }
    Ok(())
}

fn size(mut file: &File, name: &str) -> Result<u64, Failure> {
    file.seek(SeekFrom::End(0)).map_err(Failure::file(name))
}
